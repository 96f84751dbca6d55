// SPDX-License-Identifier: GPL-2.0
//! A file under the storm: open and mapped as long as that lasts, for reading only.
//!
//! The mapping stays, because its page table tells which pages are still on the device. Its memory is never
//! accessed: the file may have become shorter.

use crate::found::Found;
use crate::found::Identity;
use crate::window;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::gpu::Direction;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::map::Map;
use devcache_selftests::pagemap;
use devcache_selftests::PAGE;
use nix::errno::Errno;
use nix::sys::mman::MapFlags;
use nix::sys::mman::ProtFlags;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

/// The file.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) id: Identity,
    map: Map,
    /// How many parts were taken.
    taken: AtomicUsize,
}

impl Target {
    /// Opens a file.
    pub(crate) fn open(found: &Found) -> Result<Self> {
        let file = File::open(&found.path)?;
        let metadata = file.metadata()?;
        ensure!(
            (metadata.dev(), metadata.ino()) == (found.id.device, found.id.inode),
            "another file has its name now"
        );
        let len = found.pages * PAGE;
        let map = Map::of_file(&file, len, ProtFlags::PROT_READ, MapFlags::MAP_SHARED)?;
        Ok(Target {
            id: found.id,
            map,
            taken: AtomicUsize::new(0),
        })
    }

    /// Pages that it had when it was opened.
    pub(crate) fn pages(&self) -> usize {
        self.map.pages()
    }

    /// Moves the next part of it to a GPU.
    pub(crate) fn send(&self, gpu: &Gpu) -> Result<()> {
        let number = self.taken.fetch_add(1, Ordering::Relaxed);
        let part = window::part(number, self.pages());
        let places = pagemap::places(&self.map, part.clone())?;
        let in_core = self.map.in_core(part.clone())?;
        let to_map = window::to_map(part.start, &places, &in_core);
        if !window::any_to_move(&places, &to_map) {
            return Ok(());
        }
        for pages in to_map {
            match self.map.advise_raw(pages, libc::MADV_POPULATE_READ) {
                // The file ends before, by now.
                Err(Errno::EFAULT) => return Ok(()),
                other => other.context("map pages")?,
            }
        }
        match gpu.migrate(&self.map, part, Direction::ToVram) {
            Err(Errno::EBUSY) => Ok(()),
            other => other.map(drop).context("move pages to the GPU"),
        }
    }
}
