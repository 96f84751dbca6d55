// SPDX-License-Identifier: GPL-2.0

//! The identity of an owner of device memory.
//!
//! Memory management asks "is this device memory yours?" by comparing an opaque pointer that the
//! driver chose (`dev_pagemap::owner`). [`PagemapOwner`] is that pointer as a value which can be
//! compared and passed on, but not made up: the only source is [`DevicePagemap::owner`].
//!
//! C header: [`include/linux/memremap.h`](srctree/include/linux/memremap.h)
//!
//! [`DevicePagemap::owner`]: super::device_pagemap::DevicePagemap::owner

use crate::prelude::*;
use core::ptr::NonNull;

/// The identity of an owner of device memory.
///
/// The pointer is never dereferenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagemapOwner(NonNull<c_void>);

// SAFETY: The pointer is only compared, so it may be sent to another thread.
unsafe impl Send for PagemapOwner {}
// SAFETY: The pointer is only compared, so it may be shared between threads.
unsafe impl Sync for PagemapOwner {}

impl PagemapOwner {
    /// Makes the address of an object the identity of its owner.
    #[inline]
    pub(crate) fn from_address<T>(address: NonNull<T>) -> Self {
        Self(address.cast())
    }

    /// Returns the pointer C code compares.
    #[inline]
    pub(crate) fn as_raw(self) -> *mut c_void {
        self.0.as_ptr()
    }
}
