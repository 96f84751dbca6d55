// SPDX-License-Identifier: GPL-2.0

//! Physical addresses that nothing uses.
//!
//! Memory that only a device can reach has no physical address, but its `struct page`s need one.
//! They get addresses at which no memory and no device is.
//!
//! C header: [`include/linux/ioport.h`](srctree/include/linux/ioport.h)

use crate::{
    bindings,
    error::from_err_ptr,
    page::PAGE_SHIFT,
    prelude::*,
    str::CStrExt, //
};

/// A region of physical addresses that nothing else uses.
///
/// It is given back when the object is dropped.
///
/// # Invariants
///
/// The region was returned by `request_free_mem_region()`; `start` and `end` (inclusive) are its
/// bounds.
pub(super) struct FreeMemRegion {
    start: bindings::resource_size_t,
    end: bindings::resource_size_t,
}

impl FreeMemRegion {
    /// Requests a region of at least `size` bytes, to be listed as `name` in `/proc/iomem`.
    pub(super) fn request(size: usize, name: &'static CStr) -> Result<Self> {
        // SAFETY: `iomem_resource` is valid for ever, as is `name`, which the result points to.
        let resource = from_err_ptr(unsafe {
            bindings::request_free_mem_region(
                &raw mut bindings::iomem_resource,
                size,
                name.as_char_ptr(),
            )
        })?;
        // SAFETY: The function succeeded, so `resource` is valid, and it does not go away before it
        // is released.
        let (start, end) = unsafe { ((*resource).start, (*resource).end) };
        // INVARIANT: These are the bounds of the region returned above.
        Ok(Self { start, end })
    }

    /// Returns the range of addresses, as C code writes it: the end is inclusive.
    #[inline]
    pub(super) fn range(&self) -> bindings::range {
        bindings::range {
            start: self.start,
            end: self.end,
        }
    }

    /// Returns the number of the first page frame.
    #[inline]
    pub(super) fn first_pfn(&self) -> usize {
        // CAST: The page frame number of an address always fits into `usize`.
        (self.start >> PAGE_SHIFT) as usize
    }
}

impl Drop for FreeMemRegion {
    fn drop(&mut self) {
        // SAFETY: By the type invariants this is a region below `iomem_resource` that we own.
        unsafe {
            bindings::__release_region(
                &raw mut bindings::iomem_resource,
                self.start,
                self.end - self.start + 1,
            )
        };
    }
}
