// SPDX-License-Identifier: GPL-2.0

//! Which pages of a range of device memory to look at when memory is short.
//!
//! One bit for each. It is set when a folio of a file moves to the page, and cleared when the
//! page is found free. What happens in between, as when the file is truncated, nobody tells, so a
//! bit that is set says where to look, and their number is what there may be at most.

use kernel::{
    bitmap::Bitmap,
    prelude::*, //
};

/// A set of pages, by their numbers in the range.
///
/// # Invariants
///
/// `words` has a bit for each of `pages` pages, which are at most `i32::MAX`, and `count` of them
/// are set.
pub(crate) struct Held {
    words: KVVec<usize>,
    pages: usize,
    count: usize,
}

impl Held {
    /// An empty set for a range of `pages`. May sleep.
    ///
    /// # Errors
    ///
    /// `EFBIG` for more than `i32::MAX` pages, `ENOMEM`.
    pub(crate) fn new(pages: usize) -> Result<Self> {
        i32::try_from(pages).map_err(|_| EFBIG)?;
        let words = KVVec::from_elem(0, pages.div_ceil(usize::BITS as usize), GFP_KERNEL)?;
        // INVARIANT: Just checked, and no bit is set.
        Ok(Self {
            words,
            pages,
            count: 0,
        })
    }

    fn bits(&self) -> &Bitmap {
        // SAFETY: By the type invariants; nobody writes while there is a reference to `self`.
        unsafe { Bitmap::from_raw(self.words.as_ptr(), self.pages) }
    }

    /// The word with the bit of a page, and that bit: where a [`Bitmap`] has it.
    fn bit_mut(&mut self, page: usize) -> Option<(&mut usize, usize)> {
        const BITS: usize = usize::BITS as usize;
        let word = self.words.get_mut(page / BITS)?;
        Some((word, 1 << (page % BITS)))
    }

    /// Adds a page of the range.
    pub(crate) fn insert(&mut self, page: usize) {
        if let Some((word, bit)) = self.bit_mut(page).filter(|(word, bit)| **word & bit == 0) {
            // INVARIANT: One more is set.
            *word |= bit;
            self.count += 1;
        }
    }

    /// Removes a page.
    pub(crate) fn remove(&mut self, page: usize) {
        if let Some((word, bit)) = self.bit_mut(page).filter(|(word, bit)| **word & bit != 0) {
            // INVARIANT: One less is set.
            *word &= !bit;
            self.count -= 1;
        }
    }

    /// The first page in the set that is not before `page`.
    pub(crate) fn next(&self, page: usize) -> Option<usize> {
        (page < self.pages).then(|| self.bits().next_bit(page))?
    }

    /// How many pages the set has.
    pub(crate) fn count(&self) -> usize {
        self.count
    }
}
