// SPDX-License-Identifier: GPL-2.0

//! The GPU's own memory.
//!
//! An anonymous mapping that no other process sees, reached only through `vm-memory`'s volatile
//! slices. The copy channel, the compute channel and the instance window may touch the same bytes
//! at the same time, as units of a real GPU may; what they then read is a mixture. That is no data
//! race in the language's sense, because no Rust reference to the bytes ever exists: every access is
//! an atomic one or a volatile copy done by that crate. Entries of page tables are always accessed
//! as one atomic word.

use std::sync::atomic::Ordering;

use anyhow::Context;
use vm_memory::{AtomicAccess, Bytes, MmapRegion, VolatileMemory, VolatileSlice};

/// Video memory.
pub(crate) struct Vram(MmapRegion);

impl Vram {
    /// Allocates `size` bytes of zeroes.
    pub(crate) fn new(size: u64) -> anyhow::Result<Self> {
        let region = usize::try_from(size)
            .map_err(anyhow::Error::from)
            .and_then(|size| Ok(MmapRegion::new(size)?))
            .with_context(|| format!("cannot allocate {} MiB of VRAM", size >> 20))?;
        Ok(Self(region))
    }

    /// Returns the size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.0.size() as u64
    }

    /// Returns the bytes at `offset`, or `None` if the range is not inside VRAM.
    pub(crate) fn slice(&self, offset: u64, length: u64) -> Option<VolatileSlice<'_>> {
        let offset = usize::try_from(offset).ok()?;
        let length = usize::try_from(length).ok()?;
        self.0.get_slice(offset, length).ok()
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
    fn starts_as_zero_and_keeps_what_is_stored() {
        let vram = Vram::new(1 << 16).unwrap();
        assert_eq!(vram.load::<u64>(8), Some(0));
        vram.store(8, 0x0123_4567_89ab_cdef_u64);
        assert_eq!(vram.load::<u32>(12), Some(0x0123_4567));
        vram.store(1 << 16, 1_u64);
    }
}
