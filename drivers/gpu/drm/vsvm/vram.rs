// SPDX-License-Identifier: GPL-2.0

//! Which pages of VRAM are free.
//!
//! VRAM is cut in two when the device is probed ([`Layout`]): most of it holds pages of programs,
//! the rest page tables of the GPU. Each part has its own [`PagePool`], so that filling the first
//! with data never leaves the driver without page tables.
//!
//! Nothing in this file touches hardware.

use kernel::{
    bitmap::BitmapVec,
    prelude::*, //
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
