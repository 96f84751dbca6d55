// SPDX-License-Identifier: GPL-2.0

//! Which pages of VRAM are free, and which were used last.
//!
//! VRAM is cut in two when the device is probed ([`Layout`]): most of it holds pages of programs,
//! the rest page tables of the GPU. Each part has its own [`PagePool`], so that filling the first
//! with data never leaves the driver without page tables. When the first is full, pages that were not
//! used for long make room ([`Usage`]).
//!
//! Pages are given back one by one, wherever the last reference to one is dropped, also under a
//! spinlock. So a pool is a bitmap: `kernel::gpu::buddy` takes a mutex, and memory for each block.
//!
//! Nothing in this file touches hardware.

use core::ops::Range;
use kernel::{
    bitmap::BitmapVec,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

use crate::hw;

/// One page table out of so many pages of VRAM. A leaf table maps 512 pages, so this is enough to
/// map all of VRAM many times over, and as much system memory.
const TABLE_SHARE: u64 = 32;

/// How VRAM is used. All members are VRAM offsets, page aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// End of the pages of programs, which begin at zero, and start of the page tables.
    pub(crate) tables: u64,
    /// End of the page tables.
    pub(crate) end: u64,
}

impl Layout {
    /// Divides `size` bytes of VRAM.
    ///
    /// # Errors
    ///
    /// `ENODEV` if that is too little for both parts.
    pub(crate) fn new(size: u64) -> Result<Self> {
        let pages = size / hw::PAGE_SIZE;
        let tables = pages / TABLE_SHARE;
        if tables < u64::from(hw::LEVELS) {
            return Err(ENODEV);
        }
        Ok(Self {
            tables: (pages - tables) * hw::PAGE_SIZE,
            end: pages * hw::PAGE_SIZE,
        })
    }
}

/// The free pages of a part of VRAM, named by their index in it.
pub(crate) struct PagePool {
    used: BitmapVec,
    free: usize,
    /// No page below this index is free.
    next: usize,
}

impl PagePool {
    /// Creates a pool of `pages` free pages.
    pub(crate) fn new(pages: usize) -> Result<Self> {
        Ok(Self {
            used: BitmapVec::new(pages, GFP_KERNEL)?,
            free: pages,
            next: 0,
        })
    }

    /// Takes the free page with the lowest index, or none if all are in use.
    pub(crate) fn alloc(&mut self) -> Option<usize> {
        if self.free == 0 {
            return None;
        }
        let index = self.used.next_zero_bit(self.next)?;
        self.used.set_bit(index);
        self.free -= 1;
        self.next = index + 1;
        Some(index)
    }

    /// Gives a page back that [`Self::alloc`] returned.
    pub(crate) fn free(&mut self, index: usize) {
        self.used.clear_bit(index);
        self.free += 1;
        self.next = self.next.min(index);
    }

    /// Returns how many pages are free.
    pub(crate) fn available(&self) -> usize {
        self.free
    }
}

/// Pages that make room together.
const CHUNK: usize = 512;

/// When the chunks of a part of VRAM were used.
///
/// Hardware does not tell. A page counts as used when the driver puts it there or maps it for the
/// GPU, so what matters is when a job that uses it began, more or less.
pub(crate) struct Usage {
    chunks: KVec<Atomic<u64>>,
    clock: Atomic<u64>,
}

impl Usage {
    /// Returns the usage of `pages` pages that were never used.
    pub(crate) fn new(pages: usize) -> Result<Self> {
        let mut chunks = KVec::new();
        for _ in 0..pages.div_ceil(CHUNK) {
            chunks.push(Atomic::new(0), GFP_KERNEL)?;
        }
        Ok(Self {
            chunks,
            clock: Atomic::new(0),
        })
    }

    /// Returns the number of chunks.
    pub(crate) fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Takes note that the page with an index is used.
    pub(crate) fn mark(&self, index: usize) {
        if let Some(chunk) = self.chunks.get(index / CHUNK) {
            chunk.store(self.clock.fetch_add(1, Relaxed) + 1, Relaxed);
        }
    }

    /// Returns the pages that were not used for longest, and marks them as used, so that the next
    /// call finds others.
    pub(crate) fn take_oldest(&self) -> Range<usize> {
        let ages = self.chunks.iter().map(|chunk| chunk.load(Relaxed));
        let oldest = ages.enumerate().min_by_key(|&(_, age)| age);
        let first = oldest.map_or(0, |(chunk, _)| chunk * CHUNK);
        self.mark(first);
        first..first + CHUNK
    }
}

#[cfg(CONFIG_DRM_VSVM_KUNIT_TEST)]
#[kunit_tests(drm_vsvm_vram)]
mod tests {
    use super::*;

    #[test]
    fn layout_covers_vram() -> Result {
        let layout = Layout::new(256 << 20)?;
        assert_eq!(layout.end, 256 << 20);
        assert_eq!(layout.tables, 248 << 20);
        assert!(Layout::new(64 << 10).is_err());
        Ok(())
    }

    #[test]
    fn pool_hands_out_each_page_once() -> Result {
        let mut pool = PagePool::new(100)?;
        for index in 0..100 {
            assert_eq!(pool.alloc(), Some(index));
        }
        assert_eq!(pool.alloc(), None);
        assert_eq!(pool.available(), 0);
        Ok(())
    }

    #[test]
    fn oldest_chunk_comes_first() -> Result {
        let usage = Usage::new(3 * CHUNK)?;
        for index in [0, CHUNK, 2 * CHUNK, 5] {
            usage.mark(index);
        }
        assert_eq!(usage.take_oldest(), CHUNK..2 * CHUNK);
        assert_eq!(usage.take_oldest(), 2 * CHUNK..3 * CHUNK);
        assert_eq!(usage.take_oldest(), 0..CHUNK);
        assert_eq!(usage.take_oldest(), CHUNK..2 * CHUNK);
        usage.mark(usize::MAX);
        Ok(())
    }

    #[test]
    fn pool_reuses_freed_pages() -> Result {
        let mut pool = PagePool::new(100)?;
        for _ in 0..100 {
            pool.alloc();
        }
        pool.free(70);
        pool.free(3);
        assert_eq!(pool.available(), 2);
        assert_eq!(pool.alloc(), Some(3));
        assert_eq!(pool.alloc(), Some(70));
        assert_eq!(pool.alloc(), None);
        Ok(())
    }
}
