// SPDX-License-Identifier: GPL-2.0

//! Mappings: the page cache of one file.
//!
//! C header: [`include/linux/pagemap.h`](srctree/include/linux/pagemap.h)

use super::folio::Folio;
use crate::{
    bindings,
    error::{
        to_result,
        Error, //
    },
    fs::File,
    prelude::*,
    sync::aref::ARef,
    types::Opaque, //
};
use core::{
    ops::Range,
    ptr::NonNull, //
};

#[cfg(CONFIG_DEVCACHE)]
use bindings::devcache_prepare as prepare;

/// Without the core, no file's folios move.
///
/// # Safety
///
/// None; as the C function that it stands for.
#[cfg(not(CONFIG_DEVCACHE))]
unsafe fn prepare(_: *mut bindings::address_space, _: usize, _: usize) -> c_int {
    EOPNOTSUPP.to_errno()
}

/// What the page cache holds at an index.
pub enum Entry {
    /// Nothing.
    Empty,
    /// No folio, but a note about one: a shadow of an evicted folio, or a swap entry of shmem.
    Value,
    /// A folio, with a reference.
    Folio(ARef<Folio>),
}

/// The page cache of one file.
///
/// Wraps `struct address_space`. A `&Mapping` comes from something that keeps the inode alive: an
/// open file, a VMA or a locked folio.
///
/// # Examples
///
/// ```
/// use kernel::mm::mapping::{Entry, Mapping};
///
/// /// Is the page at `index` in memory?
/// fn in_memory(mapping: &Mapping, index: usize) -> bool {
///     matches!(mapping.entry(index), Entry::Folio(_))
/// }
/// ```
#[repr(transparent)]
pub struct Mapping {
    inner: Opaque<bindings::address_space>,
}

// SAFETY: All methods of `Mapping` are C functions that may be called concurrently.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Borrows a C mapping.
    ///
    /// # Safety
    ///
    /// `mapping` must be valid for all of `'a`.
    #[inline]
    pub unsafe fn from_raw<'a>(mapping: *const bindings::address_space) -> &'a Self {
        // SAFETY: The layouts are the same by `repr(transparent)`, and the caller promises the
        // lifetime.
        unsafe { &*mapping.cast() }
    }

    /// Returns the page cache of an open file (`file->f_mapping`).
    #[inline]
    pub fn of_file(file: &File) -> &Self {
        // SAFETY: `file` is valid, and its `f_mapping` is set when it is opened and then constant.
        let mapping = unsafe { (*file.as_ptr()).f_mapping };
        // SAFETY: An open file keeps its mapping.
        unsafe { Self::from_raw(mapping) }
    }

    /// Returns the C mapping.
    #[inline]
    pub fn as_raw(&self) -> *mut bindings::address_space {
        self.inner.get()
    }

    /// Looks up page `index`, whatever memory its folio is in.
    ///
    /// Wraps `filemap_get_entry()`. Context: any, does not sleep.
    #[inline]
    pub fn entry(&self, index: usize) -> Entry {
        // SAFETY: `self` is valid.
        let entry = unsafe { bindings::filemap_get_entry(self.as_raw(), index) };
        match NonNull::new(entry) {
            None => Entry::Empty,
            // XArray value entries have the lowest bit set.
            Some(entry) if entry.as_ptr().addr() & 1 != 0 => Entry::Value,
            // SAFETY: All other entries of a page cache are folios, and `filemap_get_entry()` took
            // a reference for us.
            Some(folio) => Entry::Folio(unsafe { ARef::from_raw(folio.cast()) }),
        }
    }

    /// Splits the large folios among the pages `indexes`, so that they can move to device memory.
    ///
    /// Their page table entries are gone after that. A folio that is in use stays large.
    ///
    /// Wraps `devcache_prepare()`. Context: may sleep and write to disk; no mmap lock, no folio
    /// locks.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` if the folios of this file never move, `EINTR` on a fatal signal.
    #[inline]
    pub fn prepare_for_device(&self, indexes: Range<usize>) -> Result {
        // SAFETY: `self` is valid.
        to_result(unsafe { prepare(self.as_raw(), indexes.start, indexes.end) })
    }

    /// Has the file system agreed that folios of this file move to device memory?
    #[inline]
    pub fn accepts_device_folios(&self) -> bool {
        // SAFETY: `self` is valid.
        unsafe { bindings::mapping_devcache(self.as_raw()) }
    }

    /// Is the inode being evicted, so that all folios will be dropped next?
    #[inline]
    pub fn is_exiting(&self) -> bool {
        // SAFETY: `self` is valid.
        unsafe { bindings::mapping_exiting(self.as_raw()) }
    }

    /// Are dirty folios of this file written to a backing store? Not so for shmem.
    #[inline]
    pub fn can_writeback(&self) -> bool {
        // SAFETY: `self` is valid.
        unsafe { bindings::mapping_can_writeback(self.as_raw()) }
    }

    /// Records that data was lost, for the next `fsync()` of each open file to report.
    #[inline]
    pub fn set_error(&self, error: Error) {
        // SAFETY: `self` is valid.
        unsafe { bindings::mapping_set_error(self.as_raw(), error.to_errno()) };
    }
}
