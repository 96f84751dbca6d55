// SPDX-License-Identifier: GPL-2.0

//! DMA fences.
//!
//! A fence stands for something that will have ended soon. Whoever has one may wait for it almost
//! anywhere: with locks held, in reclaim, in MMU notifiers. So from the moment at which others can
//! see a fence that is not signalled, nothing on the way to its signal may allocate memory, or need
//! a page fault to be served; see `Documentation/driver-api/dma-buf.rst`.
//!
//! A driver whose work may fault cannot promise that, but it can tell of an end that has come. So a
//! fence made here is an [`UnpublishedFence`], which becomes a [`Fence`] that others can see by
//! being signalled. A [`Fence`] that is not signalled is always one of another driver, made in C.
//!
//! C header: [`include/linux/dma-fence.h`](srctree/include/linux/dma-fence.h)

use crate::{
    bindings,
    error::to_result,
    prelude::*,
    sync::aref::{
        ARef,
        AlwaysRefCounted, //
    },
    task::MAX_SCHEDULE_TIMEOUT,
    time::Jiffies,
    types::Opaque, //
};
use core::ptr::NonNull;

/// A fence, of whatever driver.
///
/// # Invariants
///
/// `self.0` is a valid and initialised instance of a `struct dma_fence` with a reference count.
#[repr(transparent)]
pub struct Fence(Opaque<bindings::dma_fence>);

// SAFETY: The last reference to a fence may be dropped by any thread.
unsafe impl Send for Fence {}
// SAFETY: The functions that take a fence may be called by several threads at a time.
unsafe impl Sync for Fence {}

// SAFETY: The type invariants say that there is a reference count.
unsafe impl AlwaysRefCounted for Fence {
    fn inc_ref(&self) {
        // SAFETY: The existence of a shared reference means that the count is not zero.
        unsafe { bindings::dma_fence_get(self.as_raw()) };
    }

    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: The caller gives up a reference. The cast is right as `Fence` is transparent.
        unsafe { bindings::dma_fence_put(obj.cast().as_ptr()) };
    }
}

impl Fence {
    /// Takes over a reference to a fence.
    ///
    /// # Safety
    ///
    /// `ptr` points to a valid and initialised fence, and the caller gives up a reference to it.
    pub(crate) unsafe fn from_owned(ptr: NonNull<bindings::dma_fence>) -> ARef<Self> {
        // INVARIANT: The caller promises that the fence is valid and initialised.
        //
        // SAFETY: The cast is right as `Fence` is transparent; the caller gives up the reference.
        unsafe { ARef::from_raw(ptr.cast()) }
    }

    /// Returns the C fence.
    pub(crate) fn as_raw(&self) -> *mut bindings::dma_fence {
        self.0.get()
    }

    /// Returns how what the fence stands for has ended, or `None` if it has not.
    ///
    /// Context: any. Takes the lock of the fence.
    pub fn status(&self) -> Option<Result> {
        // SAFETY: The fence is valid by the type invariants.
        let status = unsafe { bindings::dma_fence_get_status(self.as_raw()) };
        (status != 0).then(|| to_result(status))
    }

    /// Waits until the fence is signalled, but not longer than `timeout`, and whatever signals
    /// arrive.
    ///
    /// It may be signalled or not when the function returns: see [`Self::status`].
    ///
    /// Context: process context, sleeps. The caller holds no lock that anybody takes on the way to
    /// signalling a fence, see `Documentation/driver-api/dma-buf.rst`.
    ///
    /// # Errors
    ///
    /// Those of drivers that wait in a way of their own: then the function may have returned early.
    pub fn wait_timeout(&self, timeout: Jiffies) -> Result {
        let timeout = timeout.try_into().unwrap_or(MAX_SCHEDULE_TIMEOUT);
        // SAFETY: The fence is valid by the type invariants, and the time is not negative.
        let left = unsafe { bindings::dma_fence_wait_timeout(self.as_raw(), false, timeout) };
        match left {
            0.. => Ok(()),
            error => Err(c_int::try_from(error).map_or(EINVAL, Error::from_errno)),
        }
    }
}

/// What the fences made here are called. Nobody asks for the name of one that is signalled.
extern "C" fn name(_fence: *mut bindings::dma_fence) -> *const c_char {
    c"unpublished".as_char_ptr()
}

static OPS: bindings::dma_fence_ops = bindings::dma_fence_ops {
    get_driver_name: Some(name),
    get_timeline_name: Some(name),
    enable_signaling: None,
    signaled: None,
    wait: None,
    release: None,
    set_deadline: None,
};

/// A fence that is not signalled, and that nobody but its owner knows of.
///
/// It is allocated while that may still fail, and becomes a [`Fence`] when what it stands for has
/// ended.
///
/// # Examples
///
/// ```
/// use kernel::dma_fence::UnpublishedFence;
///
/// let fence = UnpublishedFence::new()?.signal(Ok(()));
/// assert_eq!(fence.status(), Some(Ok(())));
///
/// let fence = UnpublishedFence::new()?.signal(Err(EIO));
/// assert_eq!(fence.status(), Some(Err(EIO)));
/// assert_eq!(fence.wait_timeout(1), Ok(()));
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// The fence is not signalled, and this is the only reference to it.
pub struct UnpublishedFence(ARef<Fence>);

impl UnpublishedFence {
    /// Allocates a fence.
    ///
    /// As nothing waits for it, it has no place in an order of fences: it belongs to no context,
    /// like the stubs of C.
    pub fn new() -> Result<Self> {
        let fence = KBox::new(Opaque::<bindings::dma_fence>::uninit(), GFP_KERNEL)?;
        let raw = NonNull::from(KBox::leak(fence)).cast();
        // SAFETY: There is memory for a fence at `raw`, of `kmalloc()`, as `dma_fence_free()`
        // expects.
        // `OPS` lives for ever, has the names, and there is no other lock than the one inside.
        unsafe { bindings::dma_fence_init(raw.as_ptr(), &OPS, core::ptr::null_mut(), 0, 0) };
        // SAFETY: The fence has just been initialised, with one reference, which is ours.
        let fence = unsafe { Fence::from_owned(raw) };
        // INVARIANT: Nobody else knows of the fence.
        Ok(Self(fence))
    }

    /// Signals the fence, with an error if what it stands for has failed.
    ///
    /// Context: any.
    pub fn signal(self, status: Result) -> ARef<Fence> {
        if let Err(error) = status {
            // SAFETY: The fence is not signalled by the type invariants, and an `Error` is a valid
            // errno.
            unsafe { bindings::dma_fence_set_error(self.0.as_raw(), error.to_errno()) };
        }
        // SAFETY: The fence is valid.
        unsafe { bindings::dma_fence_signal(self.0.as_raw()) };
        self.0
    }
}
