// SPDX-License-Identifier: GPL-2.0

//! Folios that nobody else knows yet.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use crate::{
    alloc::AllocError,
    bindings,
    mm::folio::Folio, //
};
use core::{
    mem::ManuallyDrop,
    ops::Deref,
    ptr::NonNull, //
};

/// A folio that nobody else knows yet: locked, with one reference, and neither mapped nor part of a
/// page cache.
///
/// It is what a migration wants as a destination. The folio is freed when the object is dropped.
///
/// # Invariants
///
/// The folio is valid and locked. This object owns the lock and the only reference, except for
/// short-lived ones of those who look at folios at random.
pub struct NewFolio(NonNull<bindings::folio>);

// SAFETY: A folio may be unlocked and its reference put by any thread.
unsafe impl Send for NewFolio {}
// SAFETY: All that can be done with a shared reference is what `Folio` allows, which is `Sync`.
unsafe impl Sync for NewFolio {}

impl NewFolio {
    /// Allocates a folio of one page of system memory, for a page of a program.
    ///
    /// Only the code of this directory may: a driver chooses destinations in device memory.
    pub(super) fn alloc() -> Result<Self, AllocError> {
        const FLAGS: bindings::gfp_t = bindings::GFP_HIGHUSER_MOVABLE | bindings::__GFP_NOWARN;

        // SAFETY: The caller may sleep. An order of zero is allowed.
        let folio = unsafe { bindings::folio_alloc(FLAGS, 0) };
        let folio = NonNull::new(folio).ok_or(AllocError)?;
        // SAFETY: The folio was just allocated, so it is valid, and nobody else holds its lock.
        unsafe { bindings::__folio_set_locked(folio.as_ptr()) };
        // INVARIANT: The folio is new, so the only reference is ours; the lock was just taken.
        Ok(Self(folio))
    }

    /// Takes over a folio.
    ///
    /// # Safety
    ///
    /// The folio must satisfy the type invariants; its lock and its reference pass to the result.
    #[inline]
    pub(super) unsafe fn from_raw(folio: NonNull<bindings::folio>) -> Self {
        // INVARIANT: By the requirements of this function.
        Self(folio)
    }

    /// Gives up the folio: lock and reference pass to the caller.
    #[inline]
    pub(super) fn into_raw(self) -> NonNull<bindings::folio> {
        ManuallyDrop::new(self).0
    }
}

impl Deref for NewFolio {
    type Target = Folio;

    #[inline]
    fn deref(&self) -> &Folio {
        // SAFETY: By the type invariants the folio is valid, and the reference that keeps it so is
        // held while `self` is borrowed.
        unsafe { Folio::from_raw(self.0.as_ptr()) }
    }
}

impl Drop for NewFolio {
    fn drop(&mut self) {
        // SAFETY: By the type invariants we own the lock.
        unsafe { bindings::folio_unlock(self.0.as_ptr()) };
        // SAFETY: By the type invariants we own a reference.
        unsafe { bindings::folio_put(self.0.as_ptr()) };
    }
}
