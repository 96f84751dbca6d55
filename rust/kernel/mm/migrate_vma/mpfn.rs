// SPDX-License-Identifier: GPL-2.0

//! The entries of the arrays of a migration.
//!
//! C code keeps what it knows of a page in one word: the page frame number, shifted, and below it
//! the `MIGRATE_PFN_*` flags. [`MigratePfn`] is that word.

use crate::{
    bindings,
    mm::new_folio::NewFolio,
    prelude::*, //
};
use core::ptr::NonNull;

/// One entry: what is known of a page.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mm) struct MigratePfn(c_ulong);

impl MigratePfn {
    /// No page, and nothing that can migrate.
    pub(in crate::mm) const NONE: Self = Self(0);

    // CAST: The flags are small positive constants, `u32` fits into `c_ulong`.
    const VALID: c_ulong = bindings::MIGRATE_PFN_VALID as c_ulong;
    // CAST: As above.
    const MIGRATE: c_ulong = bindings::MIGRATE_PFN_MIGRATE as c_ulong;
    // CAST: As above.
    const WRITE: c_ulong = bindings::MIGRATE_PFN_WRITE as c_ulong;

    /// Makes an entry that names a page frame.
    #[inline]
    fn from_pfn(pfn: usize) -> Self {
        Self((pfn << bindings::MIGRATE_PFN_SHIFT) | Self::VALID)
    }

    /// Makes an entry that owns a new folio.
    pub(super) fn for_folio(folio: NewFolio) -> Self {
        let pfn = folio.pfn();
        let _ = folio.into_raw();
        Self::from_pfn(pfn)
    }

    /// Returns whether the entry names a page frame.
    #[inline]
    pub(super) fn is_valid(self) -> bool {
        self.0 & Self::VALID != 0
    }

    /// Returns whether the page can migrate or, after the migration, has migrated.
    #[inline]
    pub(super) fn is_migrating(self) -> bool {
        self.0 & Self::MIGRATE != 0
    }

    /// Returns whether a CPU page table allowed writing.
    #[inline]
    pub(super) fn is_writable(self) -> bool {
        self.0 & Self::WRITE != 0
    }

    /// Returns the folio of the page frame.
    pub(super) fn folio(self) -> Option<NonNull<bindings::folio>> {
        if !self.is_valid() {
            return None;
        }
        // SAFETY: The entry is valid, so it names a page frame that has a `struct page`.
        let page = unsafe { bindings::migrate_pfn_to_page(self.0) };
        // SAFETY: `page` points to a `struct page`, see above.
        NonNull::new(unsafe { bindings::page_folio(page) })
    }

    /// Takes the folio out of an entry made by [`MigratePfn::for_folio`].
    ///
    /// # Safety
    ///
    /// If the entry is valid, it must have been made by [`MigratePfn::for_folio`], and the folio
    /// must not have been taken out before or been given to a migration.
    pub(super) unsafe fn into_new_folio(self) -> Option<NewFolio> {
        let folio = self.folio()?;
        // SAFETY: The folio came from `NewFolio::into_raw` in `for_folio`, and the caller promises
        // that this was not undone before.
        Some(unsafe { NewFolio::from_raw(folio) })
    }
}

#[cfg(CONFIG_RUST_DEVICE_MEMORY_KUNIT_TEST)]
#[kunit_tests(rust_migrate_vma)]
mod tests {
    use super::*;

    /// An entry as C code makes it.
    fn entry(pfn: usize, flags: u32) -> MigratePfn {
        MigratePfn((pfn << bindings::MIGRATE_PFN_SHIFT) | flags as usize)
    }

    #[test]
    fn nothing_is_known_of_an_empty_entry() {
        assert!(!MigratePfn::NONE.is_valid());
        assert!(!MigratePfn::NONE.is_migrating());
        assert!(!MigratePfn::NONE.is_writable());
        assert!(MigratePfn::NONE.folio().is_none());
    }

    #[test]
    fn unpopulated_address_migrates_without_a_page() {
        let hole = entry(0, bindings::MIGRATE_PFN_MIGRATE);

        assert!(hole.is_migrating());
        assert!(!hole.is_valid());
        assert!(hole.folio().is_none());
    }

    #[test]
    fn flags_are_independent_of_the_page_frame() {
        let page = entry(
            usize::MAX,
            bindings::MIGRATE_PFN_VALID | bindings::MIGRATE_PFN_MIGRATE,
        );

        assert!(page.is_valid());
        assert!(page.is_migrating());
        assert!(!page.is_writable());
    }

    #[test]
    fn entry_for_a_page_frame_is_the_one_c_code_makes() {
        assert_eq!(
            MigratePfn::from_pfn(0x1234),
            entry(0x1234, bindings::MIGRATE_PFN_VALID)
        );
    }

    #[test]
    fn new_folio_survives_the_way_through_an_entry() -> Result {
        let folio = NewFolio::alloc()?;
        let pfn = folio.pfn();

        let entry = MigratePfn::for_folio(folio);
        assert!(entry.is_valid());
        assert!(!entry.is_migrating());

        // SAFETY: The entry was made by `for_folio`, and its folio is taken out once.
        let folio = unsafe { entry.into_new_folio() }.ok_or(EINVAL)?;
        assert_eq!(folio.pfn(), pfn);
        Ok(())
    }
}
