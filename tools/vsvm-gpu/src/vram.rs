// SPDX-License-Identifier: GPL-2.0

//! The GPU's own memory.
//!
//! An anonymous mapping that no other process sees, reached only through `vm-memory`'s volatile
//! slices. The copy channel, the compute channel and the instance window may touch the same bytes
//! at the same time, as units of a real GPU may; what they then read is a mixture. That is no data
//! race in the language's sense, because no Rust reference to the bytes ever exists: every access is
//! an atomic one or a volatile copy done by that crate. Entries of page tables are always accessed
//! as one atomic word.
//!
//! A page can be poisoned: then it is not readable until it has been written as a whole.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use vm_memory::{AtomicAccess, Bytes, MmapRegion, VolatileMemory, VolatileSlice};

use crate::hw::PAGE_SIZE;

const PAGE: usize = PAGE_SIZE as usize;

/// Video memory.
pub(crate) struct Vram {
    region: MmapRegion,
    poisoned: Vec<AtomicBool>,
}

impl Vram {
    /// Allocates `size` bytes of zeroes.
    pub(crate) fn new(size: u64) -> anyhow::Result<Self> {
        let region = usize::try_from(size)
            .map_err(anyhow::Error::from)
            .and_then(|size| Ok(MmapRegion::new(size)?))
            .with_context(|| format!("cannot allocate {} MiB of VRAM", size >> 20))?;
        let pages = region.size().div_ceil(PAGE);
        Ok(Self {
            region,
            poisoned: (0..pages).map(|_| AtomicBool::new(false)).collect(),
        })
    }

    /// Returns the size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.region.size() as u64
    }

    /// Returns the bytes at `offset`, or `None` if the range is not inside VRAM.
    pub(crate) fn slice(&self, offset: u64, length: u64) -> Option<VolatileSlice<'_>> {
        let offset = usize::try_from(offset).ok()?;
        let length = usize::try_from(length).ok()?;
        self.region.get_slice(offset, length).ok()
    }

    /// Reads one aligned integer at `offset`, or returns `None` outside of VRAM.
    pub(crate) fn load<T: AtomicAccess>(&self, offset: u64) -> Option<T> {
        let slice = self.slice(offset, size_of::<T>() as u64)?;
        slice.load(0, Ordering::Acquire).ok()
    }

    /// Writes one aligned integer at `offset`; outside of VRAM nothing happens.
    pub(crate) fn store<T: AtomicAccess>(&self, offset: u64, value: T) {
        if let Some(slice) = self.slice(offset, size_of::<T>() as u64) {
            // Fails only for a misaligned offset, which the callers exclude.
            let _ = slice.store(value, 0, Ordering::Release);
        }
    }

    /// Sets whether the pages that lie in a range as a whole are poisoned.
    pub(crate) fn set_poisoned(&self, offset: u64, length: u64, poisoned: bool) {
        let pages = offset.div_ceil(PAGE_SIZE)..offset.saturating_add(length) / PAGE_SIZE;
        for page in self.flags(pages) {
            page.store(poisoned, Ordering::Relaxed);
        }
    }

    /// Whether no page that a range touches is poisoned.
    pub(crate) fn is_readable(&self, offset: u64, length: u64) -> bool {
        let pages = offset / PAGE_SIZE..offset.saturating_add(length).div_ceil(PAGE_SIZE);
        !self
            .flags(pages)
            .iter()
            .any(|page| page.load(Ordering::Relaxed))
    }

    /// The flags of a range of pages; empty if it is not inside VRAM.
    fn flags(&self, pages: Range<u64>) -> &[AtomicBool] {
        let index = |page| usize::try_from(page).unwrap_or(usize::MAX);
        self.poisoned
            .get(index(pages.start)..index(pages.end))
            .unwrap_or_default()
    }

    /// Loses what is stored: whatever was written is something else now.
    pub(crate) fn lose(&self) {
        self.set_poisoned(0, self.size(), false);
        let mut page = [0; PAGE];
        for offset in (0..self.size()).step_by(PAGE) {
            let Some(slice) = self.slice(offset, PAGE_SIZE) else {
                return;
            };
            slice.copy_to(&mut page);
            // What was never written takes no memory of the host, and is to stay so.
            if page.iter().any(|byte| *byte != 0) {
                slice.copy_from(&[0xdb_u8; PAGE]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked() {
        let vram = Vram::new(1 << 20).unwrap();
        assert_eq!(vram.size(), 1 << 20);
        assert!(vram.slice(0, 1 << 20).is_some());
        assert!(vram.slice(1, 1 << 20).is_none());
        assert!(vram.slice(u64::MAX, 2).is_none());
        assert!(vram.slice(1 << 20, 0).is_some());
        assert_eq!(vram.load::<u64>((1 << 20) - 4), None);
    }

    #[test]
    fn poison_goes_by_pages() {
        let vram = Vram::new(1 << 16).unwrap();
        vram.set_poisoned(0x1000, 0x1000, true);
        assert!(vram.is_readable(0, 0x1000) && !vram.is_readable(0xffc, 8));
        vram.set_poisoned(0x1004, 0x1000, false);
        assert!(!vram.is_readable(0x1ffc, 4));
        vram.set_poisoned(0, 0x3000, false);
        assert!(vram.is_readable(0, 0x3000));
        vram.set_poisoned(u64::MAX, 1, true);
    }

    #[test]
    fn what_was_stored_gets_lost() {
        let vram = Vram::new(1 << 16).unwrap();
        vram.store(0x1008, 5_u64);
        vram.lose();
        assert_ne!(vram.load::<u64>(0x1008), Some(5));
        assert_eq!(vram.load::<u64>(0x2008), Some(0));
    }

    #[test]
    fn starts_as_zero_and_keeps_what_is_stored() {
        let vram = Vram::new(1 << 16).unwrap();
        assert_eq!(vram.load::<u64>(8), Some(0));
        vram.store(8, 0x0123_4567_89ab_cdef_u64);
        assert_eq!(vram.load::<u32>(12), Some(0x0123_4567));
        vram.store(1 << 16, 1_u64);
    }
}
