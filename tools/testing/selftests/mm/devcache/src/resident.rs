// SPDX-License-Identifier: GPL-2.0
//! A mapped file whose pages are in GPU memory, and what it must contain.
//!
//! The model is [`Resident::want`]: everything a test does to the file, by CPU or GPU, it does to
//! `want` too. A test that has checked [`Resident::on_device`] and then finds `want` through some
//! access path has shown that the path does not see stale data in system memory: what is only in VRAM
//! differs from what the file had before.

use crate::case::Ctx;
use crate::check::same_bytes;
use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::gpu::Direction;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::gpu::Work;
use devcache_selftests::map::Map;
use devcache_selftests::model::add_u32;
use devcache_selftests::model::Checksum;
use devcache_selftests::pagemap;
use devcache_selftests::pagemap::Place;
use devcache_selftests::random::Random;
use devcache_selftests::PAGE;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

/// How often a page that could not be moved is tried again: something may hold it for a moment.
const TRIES: usize = 5;

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Resident<'a> {
    ctx: &'a Ctx,
    /// Where the file is.
    pub(crate) path: PathBuf,
    /// The file, open for reading and writing.
    pub(crate) file: File,
    /// The whole of it, mapped MAP_SHARED for reading and writing.
    pub(crate) map: Map,
    /// What it must contain.
    pub(crate) want: Vec<u8>,
}

/// How pages are touched before they are moved: a page has to be mapped to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Touch {
    /// By a load: the GPU gets to read only, where the file system wants to know about writes.
    Read,
    /// By a store that changes nothing: the page is dirty and the GPU may write.
    Write,
}

/// Moves `pages` of `map` to the device; an error if some cannot be moved.
pub(crate) fn send(gpu: &Gpu, map: &Map, pages: Range<usize>, touch: Touch) -> Result<()> {
    let mut counts = None;

    for _ in 0..TRIES {
        for page in pagemap::elsewhere(map, pages.clone(), Place::Device)? {
            match touch {
                Touch::Read => map.touch_read(page..page + 1),
                Touch::Write => map.touch_write(page..page + 1)?,
            }
        }
        let migrated = gpu
            .migrate(map, pages.clone(), Direction::ToVram)
            .with_context(|| format!("move pages {pages:?} to the device"))?;
        if pagemap::elsewhere(map, pages.clone(), Place::Device)?.is_empty() {
            return Ok(());
        }
        counts = Some(migrated);
        thread::sleep(Duration::from_millis(50));
    }
    let left = pagemap::elsewhere(map, pages.clone(), Place::Device)?;
    bail!(
        "{} of {pages:?} did not move to the device, the last try: {counts:?}",
        list(&left)
    )
}

/// Page numbers for a message, which need not name all of very many.
fn list(pages: &[usize]) -> String {
    const SHOWN: usize = 8;
    match pages {
        [first, .., last] if pages.len() > SHOWN => {
            format!("{} pages from {first} to {last}", pages.len())
        }
        _ => format!("pages {pages:?}"),
    }
}

impl<'a> Resident<'a> {
    /// A file of random contents in system memory, mapped but not yet touched.
    ///
    /// It is written page by page, so that its folios are small where the file system can choose.
    pub(crate) fn in_ram(ctx: &'a Ctx, pages: usize) -> Result<Self> {
        let file = ctx.file("resident")?;
        let want = Random::new(pages as u64).bytes(pages * PAGE);
        for page in 0..pages {
            file.write_all_at(&want[page * PAGE..][..PAGE], (page * PAGE) as u64)?;
        }
        let map = Map::shared(&file, pages * PAGE)?;

        Ok(Resident {
            ctx,
            path: ctx.path("resident"),
            file,
            map,
            want,
        })
    }

    /// A file all of whose pages are on the device, and what they contain only there.
    pub(crate) fn dirty(ctx: &'a Ctx, pages: usize) -> Result<Self> {
        let mut resident = Self::in_ram(ctx, pages)?;
        resident.send(0..pages, Touch::Write)?;
        resident.gpu_add(0..pages, 0x0101_0101)?;
        resident.send(0..pages, Touch::Write)?;
        Ok(resident)
    }

    /// A file all of whose pages are on the device and the same as on the disk.
    pub(crate) fn clean(ctx: &'a Ctx, pages: usize) -> Result<Self> {
        let resident = Self::in_ram(ctx, pages)?;
        resident.file.sync_all()?;
        resident.send(0..pages, Touch::Read)?;
        Ok(resident)
    }

    /// Pages of the file as it was made.
    pub(crate) fn pages(&self) -> usize {
        self.map.pages()
    }

    /// Moves pages to the device and makes sure that they are there.
    pub(crate) fn send(&self, pages: Range<usize>, touch: Touch) -> Result<()> {
        send(self.ctx.gpu()?, &self.map, pages, touch)
    }

    /// Lets the GPU add to every element of some pages, wherever they are.
    pub(crate) fn gpu_add(&mut self, pages: Range<usize>, value: u32) -> Result<()> {
        self.ctx.gpu()?.compute(Work::Add {
            dst: self.map.page_addr(pages.start),
            count: pages.len() * PAGE / 4,
            value,
        })?;
        add_u32(&mut self.want[pages.start * PAGE..pages.end * PAGE], value);
        Ok(())
    }

    /// The GPU's checksum of some pages must be that of what they must contain.
    pub(crate) fn gpu_sees(&self, pages: Range<usize>) -> Result<()> {
        let got = self.ctx.gpu()?.compute(Work::Checksum {
            src: self.map.page_addr(pages.start),
            count: pages.len() * PAGE / 4,
        })?;
        let want = Checksum::of(&self.want[pages.start * PAGE..pages.end * PAGE]);
        ensure!(
            got == want,
            "the GPU's checksum of pages {pages:?} is {got:#x}, want {want:#x}"
        );
        Ok(())
    }

    /// These pages must be on the device.
    pub(crate) fn on_device(&self, pages: Range<usize>) -> Result<()> {
        let left = pagemap::elsewhere(&self.map, pages, Place::Device)?;
        ensure!(left.is_empty(), "{} have left the device", list(&left));
        Ok(())
    }

    /// These pages must not be on the device.
    pub(crate) fn off_device(&self, pages: Range<usize>) -> Result<()> {
        let places = pagemap::places(&self.map, pages.clone())?;
        let left: Vec<usize> = pages
            .zip(places)
            .filter_map(|(page, place)| (place == Place::Device).then_some(page))
            .collect();
        ensure!(left.is_empty(), "{} are still on the device", list(&left));
        Ok(())
    }

    /// What the CPU reads through the mapping must be right.
    pub(crate) fn map_is_right(&self) -> Result<()> {
        same_bytes("read through the mapping", &self.map.read_all(), &self.want)
    }

    /// What read(2) gives must be right.
    pub(crate) fn file_is_right(&self) -> Result<()> {
        let mut got = vec![0; self.want.len()];
        self.file.read_exact_at(&mut got, 0)?;
        same_bytes("pread", &got, &self.want)
    }

    /// Both, which nobody may tell apart.
    pub(crate) fn is_right(&self) -> Result<()> {
        self.file_is_right()?;
        self.map_is_right()
    }

    /// Stores into the file with write(2).
    pub(crate) fn pwrite(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, offset as u64)?;
        self.want[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    /// Closes everything and returns where the file was and what it must contain.
    pub(crate) fn close(self) -> (PathBuf, Vec<u8>) {
        (self.path, self.want)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_pages() {
        assert_eq!(list(&[3, 5]), "pages [3, 5]");
        let many: Vec<usize> = (10..30).collect();
        assert_eq!(list(&many), "20 pages from 10 to 29");
    }
}
