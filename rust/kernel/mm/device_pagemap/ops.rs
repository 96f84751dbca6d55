// SPDX-License-Identifier: GPL-2.0

//! What a driver provides for the pages in its device memory.

use crate::{
    bindings,
    error::to_result,
    mm::folio::Folio,
    page::PAGE_SHIFT,
    prelude::*, //
};

/// What a driver does for the pages in its device memory.
pub trait DevicePrivateOps: Send + Sync {
    /// A page of the device memory is free: its last reference has gone.
    ///
    /// From the moment of the call it can be claimed again.
    ///
    /// Context: atomic; spin locks of memory management may be held. Must not sleep, allocate, or
    /// put references of folios.
    fn folio_free(&self, index: usize);

    /// Copies pages from device memory to system memory.
    ///
    /// For each element, the content of the page with [`DeviceCopy::index`] must be copied to
    /// [`DeviceCopy::destination`], and the result be told by [`DeviceCopy::set_result`]. The
    /// content of a page whose result is an error stays in device memory where possible; for a page
    /// of a file the error is reported as an I/O error.
    ///
    /// The pages are mapped nowhere, neither by a CPU nor by an address space of the device: their
    /// content does not change during the call.
    ///
    /// Context: process context, may sleep. The pages are locked, and file systems, truncation and
    /// reclaim may be waiting for them. So this function must be a *leaf*: it takes bounded time,
    /// on a channel of the device that never faults and does not depend on a program. It must not
    /// be interrupted by signals, take the mmap lock, a folio lock or a `dma_resv`, wait for the
    /// service of a device fault, or allocate in a way that reclaims memory; nor take a lock that
    /// is held elsewhere while doing so.
    fn copy_to_ram(&self, copies: &mut [DeviceCopy]);
}

/// One page to be copied from device memory to system memory.
///
/// # Invariants
///
/// During [`DevicePrivateOps::copy_to_ram`], both folios are valid and locked. `src` is in the
/// memory of the pagemap the function is called for, which is device-private.
#[repr(transparent)]
pub struct DeviceCopy(bindings::devcache_copy);

impl DeviceCopy {
    /// An element that is not used.
    pub(super) const NONE: Self = Self(bindings::devcache_copy {
        dst: core::ptr::null_mut(),
        src: core::ptr::null_mut(),
        error: 0,
    });

    /// Makes an element; both folios must satisfy the type invariants while it is used.
    pub(super) fn new(src: &Folio, dst: &Folio) -> Self {
        Self(bindings::devcache_copy {
            dst: dst.as_raw(),
            src: src.as_raw(),
            error: EIO.to_errno(),
        })
    }

    /// Returns the folio in device memory.
    #[inline]
    pub fn source(&self) -> &Folio {
        // SAFETY: By the type invariants the folio is valid while `self` can be used.
        unsafe { Folio::from_raw(self.0.src) }
    }

    /// Returns the folio in system memory.
    #[inline]
    pub fn destination(&self) -> &Folio {
        // SAFETY: By the type invariants the folio is valid while `self` can be used.
        unsafe { Folio::from_raw(self.0.dst) }
    }

    /// Returns the index of the source in the device memory.
    #[inline]
    pub fn index(&self) -> usize {
        // SAFETY: By the type invariants the folio is that of a device-private pagemap.
        unsafe { folio_index(self.source()) }
    }

    /// Tells the result of the copy.
    #[inline]
    pub fn set_result(&mut self, result: Result) {
        self.0.error = match result {
            Ok(()) => 0,
            Err(error) => error.to_errno(),
        };
    }

    /// Returns the result of the copy.
    pub(super) fn result(&self) -> Result {
        to_result(self.0.error)
    }
}

/// What came back to system memory.
#[derive(Clone, Copy, Debug)]
#[must_use = "tells whether everything came back"]
pub struct Returned {
    /// How many pages moved.
    pub pages: usize,
    /// The first error that kept a page from moving: `ENOMEM`, or what
    /// [`DevicePrivateOps::copy_to_ram`] said. Pages also stay, without an error, when they are
    /// locked or referenced by somebody else.
    pub result: Result,
}

/// Returns the index of a folio in its device memory.
///
/// # Safety
///
/// The folio must be in a device-private pagemap with one range.
unsafe fn folio_index(folio: &Folio) -> usize {
    // SAFETY: The folio is in a pagemap, by the requirement. A folio starts with its `struct page`.
    let pgmap = unsafe { bindings::page_pgmap(folio.as_raw().cast()) };
    // SAFETY: The pagemap lives as long as its folios, and has one range, by the requirement.
    let start = unsafe { (*pgmap).__bindgen_anon_1.range.as_ref().start };
    // CAST: The page frame number of an address always fits into `usize`.
    folio.pfn() - (start >> PAGE_SHIFT) as usize
}
