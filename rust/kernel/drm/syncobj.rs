// SPDX-License-Identifier: GPL-2.0 OR MIT

//! DRM synchronisation objects.
//!
//! A [`SyncObj`] is a place for a fence, with a handle by which programs name it, and which they
//! can share. It is empty, or has a fence, signalled or not. A driver takes the fence out to wait
//! for it ([`SyncObj::find_fence`]), and puts one in to tell of the end of something
//! ([`SyncObj::find`], [`SyncObj::replace_fence`]).
//!
//! C header: [`include/drm/drm_syncobj.h`](srctree/include/drm/drm_syncobj.h)

use crate::{
    bindings,
    dma_fence::Fence,
    drm::{
        self,
        file::DriverFile, //
    },
    error::to_result,
    prelude::*,
    sync::aref::{
        ARef,
        AlwaysRefCounted, //
    },
    types::Opaque, //
};
use core::ptr::{
    self,
    NonNull, //
};

/// A synchronisation object.
///
/// # Invariants
///
/// `self.0` is a valid instance of a `struct drm_syncobj` with a reference count.
#[repr(transparent)]
pub struct SyncObj(Opaque<bindings::drm_syncobj>);

// SAFETY: The last reference may be dropped by any thread.
unsafe impl Send for SyncObj {}
// SAFETY: The object has a lock of its own for what can be done with a shared reference.
unsafe impl Sync for SyncObj {}

// SAFETY: The type invariants say that there is a reference count.
unsafe impl AlwaysRefCounted for SyncObj {
    fn inc_ref(&self) {
        // SAFETY: The existence of a shared reference means that the count is not zero.
        unsafe { bindings::drm_syncobj_get(self.0.get()) };
    }

    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: The caller gives up a reference. The cast is right as `SyncObj` is transparent.
        unsafe { bindings::drm_syncobj_put(obj.cast().as_ptr()) };
    }
}

impl SyncObj {
    /// Returns the handles of `file`, which has some if its driver has the feature.
    fn handles<F: DriverFile>(file: &drm::File<F>) -> *mut bindings::drm_file {
        const {
            assert!(
                <F::Driver as drm::Driver>::FEAT_SYNCOBJ,
                "the driver has no FEAT_SYNCOBJ"
            )
        };
        file.as_raw()
    }

    /// Returns the object that a program names by `handle`.
    ///
    /// Context: any. Takes the lock of the handles of the file.
    ///
    /// # Errors
    ///
    /// `ENOENT` if the file has no such handle.
    pub fn find<F: DriverFile>(file: &drm::File<F>, handle: u32) -> Result<ARef<Self>> {
        // SAFETY: The file is open, and its handles were initialised when it was opened, as the
        // driver has the feature.
        let obj = unsafe { bindings::drm_syncobj_find(Self::handles(file), handle) };
        let obj = NonNull::new(obj).ok_or(ENOENT)?;
        // INVARIANT: `drm_syncobj_find` returns null or a valid object.
        //
        // SAFETY: It also returns a reference, which is ours. `SyncObj` is transparent.
        Ok(unsafe { ARef::from_raw(obj.cast()) })
    }

    /// Returns the fence that is in the object that a program names by `handle`.
    ///
    /// Does not wait for one to be put there. If the object is a timeline, the fence is that of its
    /// last point.
    ///
    /// Context: any. Takes the lock of the handles of the file.
    ///
    /// # Errors
    ///
    /// - `ENOENT`: the file has no such handle.
    /// - `EINVAL`: the object is empty.
    pub fn find_fence<F: DriverFile>(file: &drm::File<F>, handle: u32) -> Result<ARef<Fence>> {
        let mut fence = ptr::null_mut();
        let file = Self::handles(file);
        // SAFETY: The file is open, and its handles were initialised when it was opened, as the
        // driver has the feature. `fence` is valid for the call.
        let found = unsafe { bindings::drm_syncobj_find_fence(file, handle, 0, 0, &mut fence) };
        to_result(found)?;
        let fence = NonNull::new(fence).ok_or(EINVAL)?;
        // SAFETY: On success there is a valid fence, with a reference that is ours.
        Ok(unsafe { Fence::from_owned(fence) })
    }

    /// Puts a fence into the object, or makes it empty, and wakes those who wait for that.
    ///
    /// Context: process context or softirq. Takes the lock of the object, and does not sleep.
    pub fn replace_fence(&self, fence: Option<&Fence>) {
        let fence = fence.map_or(ptr::null_mut(), Fence::as_raw);
        // SAFETY: The object is valid by the type invariants, and so is the fence, if there is one.
        // The object takes a reference of its own.
        unsafe { bindings::drm_syncobj_replace_fence(self.0.get(), fence) };
    }
}
