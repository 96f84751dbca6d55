// SPDX-License-Identifier: GPL-2.0
//! Writes records on one file system until the power goes, mostly by a GPU, and has them confirmed.

use crate::files;
use crate::message::Message;
use crate::message::Pages;
use crate::port::Port;
use crate::record;
use crate::record::FileId;
use crate::record::Version;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::gpu::Direction;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::gpu::Work;
use devcache_selftests::map::Map;
use devcache_selftests::mount::Mount;
use devcache_selftests::pagemap;
use devcache_selftests::pagemap::Place;
use devcache_selftests::random::Random;
use devcache_selftests::stats::Counters;
use devcache_selftests::sys;
use devcache_selftests::PAGE;
use nix::sys::mman::MsFlags;
use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// The most records of a round.
const RECORDS: usize = 12;

/// Of so many rounds, one is left alone, so that what it wrote waits for the next, and one is
/// written to the disk without a flush: from its cache the disk may lose that.
const AMONG: usize = 4;

/// Bytes of the GPU's element.
const ELEMENT: usize = 4;

/// How a record is written.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// The GPU copies it there, from private memory.
    Gpu,
    /// Stores through the mapping.
    Store,
    /// write(2)
    Write,
}

const WAYS: &[Way] = &[Way::Gpu, Way::Gpu, Way::Gpu, Way::Store, Way::Write];

/// What confirms.
#[derive(Clone, Copy, Debug)]
enum Sync {
    Fsync,
    Fdatasync,
    Msync,
}

const SYNCS: &[Sync] = &[Sync::Fsync, Sync::Fdatasync, Sync::Msync];

/// A file that is written.
#[derive(Debug)]
struct Target {
    id: FileId,
    file: File,
    map: Map,
    /// Pages that a job has written to in VRAM since they were last confirmed.
    written: BTreeSet<usize>,
}

/// One for each file system.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    port: &'a Port,
    gpu: Gpu,
    /// What the GPU copies from.
    source: Map,
    targets: Vec<Target>,
    random: Random,
    next: Version,
}

impl<'a> Writer<'a> {
    /// Prepares the files, and a channel of the GPU.
    pub(crate) fn new(port: &'a Port, mount: &Mount, boot: u32, seed: u64) -> Result<Self> {
        let len = record::file_len();
        let targets = files::prepare(port, mount, boot)?
            .into_iter()
            .map(|(id, file)| {
                Ok(Target {
                    map: Map::shared(&file, len)?,
                    written: BTreeSet::new(),
                    id,
                    file,
                })
            });
        let seed = seed ^ u64::from(boot) ^ Random::new(mount.kind.len() as u64).value();
        Ok(Writer {
            targets: targets.collect::<Result<_>>()?,
            gpu: Gpu::open().context("open the GPU")?,
            source: Map::anonymous(len)?,
            random: Random::new(seed),
            next: Version { boot, round: 1 },
            port,
        })
    }

    /// Writes until the power goes.
    pub(crate) fn write_for_ever(mut self) -> Result<()> {
        loop {
            let target = self.random.below(self.targets.len());
            self.write(target)?;
            match self.random.below(AMONG) {
                0 => {}
                1 => sys::sync_range(&self.targets[target].file, 0..record::file_len())?,
                _ => self.confirm(target)?,
            }
        }
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.random.below(from.len())]
    }

    /// Gives some records a new version.
    fn write(&mut self, target: usize) -> Result<()> {
        let version = self.next;
        self.next.round += 1;
        let count = 1 + self.random.below(RECORDS);
        let records: BTreeSet<usize> = (0..count)
            .map(|_| self.random.below(record::COUNT))
            .collect();
        let file = self.targets[target].id.clone();
        self.port.tell(&Message::Starting {
            file: file.clone(),
            version,
            records: records.iter().copied().collect(),
        })?;
        for record in records {
            let place = record::place(record).context("there is such a record")?;
            let bytes = record::contents(&file, record, version);
            let way = self.pick(WAYS);
            let target = &mut self.targets[target];
            match way {
                Way::Gpu => {
                    self.source.write(place.start, &bytes);
                    let pages = target.copy_in_vram(&self.gpu, &self.source, place)?;
                    target.written.extend(pages);
                }
                Way::Store => target.map.write(place.start, &bytes),
                Way::Write => target.file.write_all_at(&bytes, place.start as u64)?,
            }
        }
        Ok(())
    }

    /// Has all that was written to a file confirmed, and tells so.
    fn confirm(&mut self, target: usize) -> Result<()> {
        let how = self.pick(SYNCS);
        let target = &mut self.targets[target];
        let written = std::mem::take(&mut target.written);
        let synced = target.in_vram(written.iter().copied())?;
        match how {
            Sync::Fsync => target.file.sync_all()?,
            Sync::Fdatasync => target.file.sync_data()?,
            Sync::Msync => target.map.sync(MsFlags::MS_SYNC)?,
        }
        let core = Counters::core()?;
        self.port.tell(&Message::Confirmed {
            file: target.id.clone(),
            pages: Pages {
                written: written.len() as u64,
                synced: synced.len() as u64,
                out: core.get("pages_out")?,
                back: core.get("pages_back")?,
            },
        })
    }
}

impl Target {
    /// Lets the GPU copy a record to its place, where that is in VRAM. Gives the pages that were
    /// there right before and after.
    fn copy_in_vram(
        &self,
        gpu: &Gpu,
        source: &Map,
        place: Range<usize>,
    ) -> Result<BTreeSet<usize>> {
        let pages = place.start / PAGE..place.end.div_ceil(PAGE);
        // As if stored to, so that the GPU may write.
        self.map.touch_write(pages.clone())?;
        gpu.migrate(&self.map, pages.clone(), Direction::ToVram)?;
        let before = self.in_vram(pages.clone())?;
        gpu.compute_in_vram(Work::Copy {
            dst: self.map.addr() + place.start,
            src: source.addr() + place.start,
            count: place.len() / ELEMENT,
        })?;
        let after = self.in_vram(pages)?;
        Ok(before.intersection(&after).copied().collect())
    }

    /// Those of some pages that are in VRAM.
    fn in_vram(&self, pages: impl Iterator<Item = usize>) -> Result<BTreeSet<usize>> {
        let places = pagemap::places(&self.map, 0..self.map.pages())?;
        Ok(pages
            .filter(|&page| places[page] == Place::Device)
            .collect())
    }
}
