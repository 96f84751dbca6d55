// SPDX-License-Identifier: GPL-2.0

//! Folios: memory managed as a unit by the page cache or as anonymous memory.
//!
//! A C `struct folio` becomes one Rust type for each right held over it:
//!
//! | type | right |
//! |---|---|
//! | [`Folio`] behind a reference or [`ARef`] | its memory stays allocated; flags may change at any time |
//! | [`LockedFolio`] | it can neither leave the page cache nor be written back or migrated |
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use super::mapping::Mapping;
use crate::{
    bindings,
    sync::aref::{
        ARef,
        AlwaysRefCounted, //
    },
    types::Opaque, //
};
use core::{
    mem::ManuallyDrop,
    ops::Deref,
    ptr::NonNull, //
};

/// A folio, of system or device memory.
///
/// Wraps `struct folio`.
///
/// # Invariants
///
/// Instances of this type are always refcounted; an [`ARef`] holds a reference that keeps the
/// folio from being freed.
///
/// # Examples
///
/// ```
/// use kernel::mm::folio::Folio;
/// use kernel::sync::aref::ARef;
///
/// /// Waits until nobody holds the lock of `folio`, then says whether a file still has it.
/// fn in_page_cache(folio: ARef<Folio>) -> bool {
///     folio.lock().mapping().is_some()
/// }
/// ```
#[repr(transparent)]
pub struct Folio {
    inner: Opaque<bindings::folio>,
}

// SAFETY: A reference to a folio may be put in any thread.
unsafe impl Send for Folio {}

// SAFETY: All methods of `Folio` are C functions that may be called concurrently.
unsafe impl Sync for Folio {}

// SAFETY: `folio_get()` and `folio_put()` count references, and a folio is not freed while there
// are any.
unsafe impl AlwaysRefCounted for Folio {
    fn inc_ref(&self) {
        // SAFETY: `self` is valid, so its refcount is not zero.
        unsafe { bindings::folio_get(self.as_raw()) };
    }

    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: The caller gives up a reference that it holds.
        unsafe { bindings::folio_put(obj.cast().as_ptr()) };
    }
}

impl Folio {
    /// Borrows a C folio.
    ///
    /// # Safety
    ///
    /// `folio` must be valid, and hold a reference, for all of `'a`.
    #[inline]
    pub unsafe fn from_raw<'a>(folio: *const bindings::folio) -> &'a Self {
        // SAFETY: The layouts are the same by `repr(transparent)`, and the caller promises the
        // lifetime.
        unsafe { &*folio.cast() }
    }

    /// Returns the C folio.
    #[inline]
    pub fn as_raw(&self) -> *mut bindings::folio {
        self.inner.get()
    }

    /// Returns the number of the folio's first page frame.
    #[inline]
    pub fn pfn(&self) -> usize {
        // SAFETY: `self` is valid.
        unsafe { bindings::folio_pfn(self.as_raw()) }
    }

    /// Is this memory of a device that the CPU cannot address (`MEMORY_DEVICE_PRIVATE`)?
    #[inline]
    pub fn is_device_private(&self) -> bool {
        // SAFETY: `self` is valid.
        unsafe { bindings::folio_is_device_private(self.as_raw()) }
    }

    /// Is this anonymous memory? Stable only while the folio is mapped or locked.
    #[inline]
    pub fn is_anon(&self) -> bool {
        // SAFETY: `self` is valid.
        unsafe { bindings::folio_test_anon(self.as_raw()) }
    }

    /// Has the folio been written to since it was last in agreement with its backing store?
    #[inline]
    pub fn is_dirty(&self) -> bool {
        // SAFETY: `self` is valid.
        unsafe { bindings::folio_test_dirty(self.as_raw()) }
    }

    /// Is the folio in any page table, by a present or a device-private entry?
    #[inline]
    pub fn is_mapped(&self) -> bool {
        // SAFETY: `self` is valid.
        unsafe { bindings::folio_mapped(self.as_raw()) }
    }

    /// Locks the folio, waiting as long as it takes.
    ///
    /// Context: may sleep. Folio locks of one file are taken in ascending order of index.
    #[inline]
    pub fn lock(&self) -> LockedFolio {
        // SAFETY: `self` is valid, and stays so since `self` holds a reference.
        unsafe { bindings::folio_lock(self.as_raw()) };
        // INVARIANT: The lock was just taken.
        LockedFolio { folio: self.into() }
    }

    /// Locks the folio unless somebody else has it locked.
    #[inline]
    pub fn try_lock(&self) -> Option<LockedFolio> {
        // SAFETY: `self` is valid.
        if unsafe { bindings::folio_trylock(self.as_raw()) } {
            // INVARIANT: The lock was just taken.
            Some(LockedFolio { folio: self.into() })
        } else {
            None
        }
    }
}

/// A folio whose lock (`PG_locked`) this value holds, with a reference.
///
/// The lock has no owner task, so a locked folio may move to another thread. Dropping it unlocks
/// the folio and puts the reference.
///
/// # Invariants
///
/// `folio` is locked, and this value is what will unlock it.
pub struct LockedFolio {
    folio: ARef<Folio>,
}

impl LockedFolio {
    /// Takes over a locked folio from C.
    ///
    /// # Safety
    ///
    /// The caller hands over the folio lock and one reference.
    #[inline]
    pub unsafe fn from_raw(folio: NonNull<bindings::folio>) -> Self {
        // INVARIANT: The caller hands over the lock.
        Self {
            // SAFETY: The caller hands over a reference.
            folio: unsafe { ARef::from_raw(folio.cast()) },
        }
    }

    /// Hands the folio, its lock and the reference to C.
    #[inline]
    pub fn into_raw(self) -> NonNull<bindings::folio> {
        NonNull::from(&**ManuallyDrop::new(self)).cast()
    }

    /// Unlocks the folio and keeps the reference.
    #[inline]
    pub fn unlock(self) -> ARef<Folio> {
        ARef::clone(&self.folio)
    }

    /// Returns the file mapping that has the folio in its page cache; `None` for anonymous memory
    /// and for a folio that was truncated or has been replaced.
    ///
    /// The lock keeps the folio in the mapping, and the mapping alive.
    #[inline]
    pub fn mapping(&self) -> Option<&Mapping> {
        if self.is_anon() {
            return None;
        }
        // SAFETY: `self.as_raw()` is valid, and `mapping` does not change under the folio lock.
        let mapping = unsafe { (*self.as_raw()).__bindgen_anon_1.__bindgen_anon_1.mapping };
        // SAFETY: A mapping outlives the folios in it, and a locked folio cannot leave.
        NonNull::new(mapping).map(|mapping| unsafe { Mapping::from_raw(mapping.as_ptr()) })
    }
}

impl Deref for LockedFolio {
    type Target = Folio;

    #[inline]
    fn deref(&self) -> &Folio {
        &self.folio
    }
}

impl Drop for LockedFolio {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant, the folio is locked and the lock is ours to release.
        unsafe { bindings::folio_unlock(self.folio.as_raw()) };
    }
}
