// SPDX-License-Identifier: GPL-2.0
//! The file, and the ways to read and write a cell of it.

use crate::layout::Cell;
use crate::layout::Layout;
use crate::layout::WORD;
use crate::ledger::Found;
use crate::stamp::stamp;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::gpu::Work;
use devcache_selftests::map::Map;
use devcache_selftests::random::Random;
use devcache_selftests::sys;
use devcache_selftests::PAGE;
use nix::errno::Errno;
use std::fs::File;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;

/// How a cell is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// Loads from the mapping that is also stored to.
    Load,
    /// Loads from another mapping.
    LoadElsewhere,
    /// pread(2)
    Pread,
    /// The same with O_DIRECT: what the disk has, after what is dirty was written to it.
    Direct,
    /// The GPU copies it to private memory.
    GpuCopy,
    /// The GPU adds up its words.
    GpuSum,
}

/// How a cell is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// Stores.
    Store,
    /// Atomic additions to what is there.
    FetchAdd,
    /// pwrite(2)
    Pwrite,
    /// The same with O_DIRECT, for whole pages.
    Direct,
    /// The GPU stores.
    GpuFill,
    /// The GPU adds to what is there.
    GpuAdd,
    /// The GPU copies from private memory.
    GpuCopy,
}

impl Read {
    pub(crate) const BY_CPU: &[Read] =
        &[Read::Load, Read::LoadElsewhere, Read::Pread, Read::Direct];
    pub(crate) const BY_GPU: &[Read] = &[Read::GpuCopy, Read::GpuSum];

    /// Its name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Read::Load => "loads",
            Read::LoadElsewhere => "loads elsewhere",
            Read::Pread => "preads",
            Read::Direct => "reads directly",
            Read::GpuCopy => "copies from",
            Read::GpuSum => "sums up",
        }
    }

    /// Whether it looks at the page cache, and not at the disk.
    pub(crate) fn cached(self) -> bool {
        self != Read::Direct
    }
}

impl Write {
    const BY_CPU: &[Write] = &[Write::Store, Write::FetchAdd, Write::Pwrite, Write::Direct];
    const BY_GPU: &[Write] = &[Write::GpuFill, Write::GpuAdd, Write::GpuCopy];

    /// The ways to write this cell.
    pub(crate) fn ways(cell: &Cell, gpu: bool) -> &'static [Write] {
        match (gpu, cell.whole) {
            (true, _) => Self::BY_GPU,
            (false, true) => Self::BY_CPU,
            // A direct write would write over what others have in its pages.
            (false, false) => &Self::BY_CPU[..3],
        }
    }

    /// Its name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Write::Store => "stores",
            Write::FetchAdd => "fetch_adds",
            Write::Pwrite => "pwrites",
            Write::Direct => "writes directly",
            Write::GpuFill => "fills",
            Write::GpuAdd => "adds to",
            Write::GpuCopy => "copies to",
        }
    }
}

/// What each thread has for itself.
#[derive(Debug)]
pub(crate) struct Hand {
    gpu: Option<Gpu>,
    /// Private memory, as large as the pages of any cell.
    buffer: Map,
    pub(crate) random: Random,
}

impl Hand {
    /// For a thread that lets a GPU compute, if it has one.
    pub(crate) fn new(gpu: Option<Gpu>, layout: &Layout, seed: u64) -> Result<Self> {
        let pages = layout.cells().iter().map(|cell| cell.pages().len()).max();
        Ok(Hand {
            gpu,
            buffer: Map::anonymous(pages.unwrap_or(1) * PAGE)?,
            random: Random::new(seed),
        })
    }

    /// Whether it has a GPU.
    pub(crate) fn has_gpu(&self) -> bool {
        self.gpu.is_some()
    }

    /// One of these.
    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.random.below(from.len())]
    }

    /// Computes where the pages are, or in VRAM.
    fn compute(&mut self, work: Work) -> Result<u64> {
        let in_vram = self.random.below(2) == 0;
        let gpu = self.gpu.as_ref().context("a thread without a GPU")?;
        Ok(match in_vram {
            true => gpu.compute_in_vram(work)?,
            false => gpu.compute(work)?,
        })
    }
}

/// The words of bytes.
fn words(bytes: &[u8]) -> Found {
    let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
    Found::Words(bytes.chunks_exact(WORD).map(word).collect())
}

/// The open file.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) file: File,
    direct: File,
    /// What CPU and GPU store to.
    pub(crate) map: Map,
    /// Another mapping, for reading.
    pub(crate) elsewhere: Map,
}

impl Region {
    /// Opens a file of the right size.
    pub(crate) fn open(path: &Path, layout: &Layout) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let len = layout.pages() * PAGE;
        Ok(Region {
            direct: sys::open_direct(path)?,
            map: Map::shared(&file, len)?,
            elsewhere: Map::shared(&file, len)?,
            file,
        })
    }

    /// Reads a cell.
    pub(crate) fn read(&self, hand: &mut Hand, how: Read, cell: &Cell) -> Result<Found> {
        let (start, len) = (cell.bytes.start, cell.bytes.len());
        Ok(match how {
            Read::Load => load(&self.map, cell),
            Read::LoadElsewhere => load(&self.elsewhere, cell),
            Read::Pread => {
                let mut bytes = vec![0; len];
                self.file.read_exact_at(&mut bytes, start as u64)?;
                words(&bytes)
            }
            Read::Direct => {
                let first = cell.pages().start * PAGE;
                self.read_directly(&hand.buffer, cell)?;
                words(&hand.buffer.read(start - first..start - first + len))
            }
            Read::GpuCopy => {
                let dst = hand.buffer.addr();
                let src = self.readable(hand).addr() + start;
                let count = cell.words();
                hand.compute(Work::Copy { dst, src, count })?;
                words(&hand.buffer.read(0..len))
            }
            Read::GpuSum => {
                let src = self.readable(hand).addr() + start;
                let count = cell.words();
                Found::Sum(hand.compute(Work::Sum { src, count })?)
            }
        })
    }

    /// Reads the pages of a cell directly.
    ///
    /// The kernel says EIO if a store got a page of a hole after what is dirty was written to the disk,
    /// and the page has no place there yet (IOMAP_DELALLOC in fs/iomap/direct-io.c). It gets one with
    /// fsync(2), so that happens once for each page.
    fn read_directly(&self, buffer: &Map, cell: &Cell) -> Result<()> {
        let (first, len) = (cell.pages().start * PAGE, cell.pages().len() * PAGE);
        let mut collisions = 0;
        loop {
            match sys::read_into(&self.direct, first, buffer, 0..len) {
                Err(error)
                    if error.raw_os_error() == Some(Errno::EIO as i32)
                        && collisions < cell.pages().len() =>
                {
                    collisions += 1;
                    // This fails if content was lost.
                    self.file.sync_all()?;
                }
                result => {
                    let got = result?;
                    ensure!(got == len, "a direct read of {len} bytes gave {got}");
                    return Ok(());
                }
            }
        }
    }

    /// One of the mappings.
    pub(crate) fn readable(&self, hand: &mut Hand) -> &Map {
        hand.pick(&[&self.map, &self.elsewhere])
    }

    /// Writes a version to a cell that has the one before.
    pub(crate) fn write(
        &self,
        hand: &mut Hand,
        how: Write,
        cell: &Cell,
        version: u32,
    ) -> Result<()> {
        let word = stamp(cell.number, version);
        let more = word - stamp(cell.number, version - 1);
        let (start, len, count) = (cell.bytes.start, cell.bytes.len(), cell.words());
        let dst = self.map.addr() + start;
        let bytes = || word.to_le_bytes().repeat(count);
        let place = |offset| self.map.cell(offset);
        match how {
            Write::Store => {
                for offset in cell.bytes.clone().step_by(WORD) {
                    place(offset).store(word, Ordering::Relaxed);
                }
            }
            Write::FetchAdd => {
                for offset in cell.bytes.clone().step_by(WORD) {
                    place(offset).fetch_add(more, Ordering::Relaxed);
                }
            }
            Write::Pwrite => self.file.write_all_at(&bytes(), start as u64)?,
            Write::Direct => {
                hand.buffer.write(0, &bytes());
                let put = sys::write_from(&self.direct, start, &hand.buffer, 0..len)?;
                ensure!(put == len, "a direct write of {len} bytes put {put}");
            }
            Write::GpuFill => {
                let value = word;
                hand.compute(Work::Fill { dst, count, value })?;
            }
            Write::GpuAdd => {
                let value = more;
                hand.compute(Work::Add { dst, count, value })?;
            }
            Write::GpuCopy => {
                hand.buffer.write(0, &bytes());
                let src = hand.buffer.addr();
                hand.compute(Work::Copy { dst, src, count })?;
            }
        }
        Ok(())
    }
}

/// Loads the words of a cell.
fn load(map: &Map, cell: &Cell) -> Found {
    let offsets = cell.bytes.clone().step_by(WORD);
    Found::Words(
        offsets
            .map(|offset| map.cell(offset).load(Ordering::Relaxed))
            .collect(),
    )
}
