// SPDX-License-Identifier: GPL-2.0

//! A work queue whose work may borrow.

use super::RawWorkItem;
use crate::{
    bindings,
    prelude::*, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

/// A work queue of its own, for work that lives as long as `'scope`.
///
/// Work on the queues of the system must be `'static`, since nothing says when it is done. Dropping a
/// [`ScopedQueue`] waits until all its work is done. So the work of a driver may borrow what exists only
/// while the driver is bound.
///
/// The items run on any CPU, as many at a time as there are, so one that waits for long does not keep
/// others waiting.
///
/// # Invariants
///
/// `queue` points to a valid workqueue that is owned by this object.
pub struct ScopedQueue<'scope> {
    queue: NonNull<bindings::workqueue_struct>,
    // Invariant, for an item that is shorter-lived than the queue must not be accepted.
    _scope: PhantomData<fn(&'scope ()) -> &'scope ()>,
}

// SAFETY: A workqueue may be destroyed by any thread.
unsafe impl Send for ScopedQueue<'_> {}
// SAFETY: Work may be queued by any thread, also at the same time.
unsafe impl Sync for ScopedQueue<'_> {}

impl<'scope> ScopedQueue<'scope> {
    /// Creates a queue.
    ///
    /// # Safety
    ///
    /// The destructor must run before `'scope` ends: callers must not `mem::forget()` the returned
    /// queue or otherwise prevent its [`Drop`] implementation from running.
    pub unsafe fn new(name: &CStr) -> Result<Self> {
        // SAFETY: The format has one string as its argument, and both are nul-terminated.
        let queue = unsafe {
            bindings::alloc_workqueue_noprof(
                c"%s".as_char_ptr(),
                bindings::wq_flags_WQ_UNBOUND,
                0,
                name.as_char_ptr(),
            )
        };
        // INVARIANT: The queue was just created, and nobody else knows of it.
        Ok(Self {
            queue: NonNull::new(queue).ok_or(ENOMEM)?,
            _scope: PhantomData,
        })
    }

    /// Enqueues a work item.
    ///
    /// This may fail if the work item is already enqueued in a workqueue.
    pub fn enqueue<W, const ID: u64>(&self, item: W) -> W::EnqueueOutput
    where
        W: RawWorkItem<ID> + Send + 'scope,
    {
        // CAST: A small constant.
        let cpu = bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int;
        let queue = self.queue.as_ptr();
        let queue_work = |work| {
            // SAFETY: The workqueue is valid by the type invariants. The `work_struct` is valid until
            // its function is called if this returns true, which is all that `__enqueue` asks for.
            unsafe { bindings::queue_work_on(cpu, queue, work) }
        };
        // SAFETY:
        // - `queue_work_on` returns false only if the `work_struct` is already in a workqueue.
        // - `W` is `Send`.
        // - `W` lives as long as `'scope`, and the function is called before that ends: the destructor,
        //   which runs before, waits for it.
        unsafe { item.__enqueue(queue_work) }
    }
}

impl Drop for ScopedQueue<'_> {
    fn drop(&mut self) {
        // SAFETY: The workqueue is valid and owned by us. No work is added meanwhile: that takes a
        // reference to `self`.
        unsafe { bindings::destroy_workqueue(self.queue.as_ptr()) };
    }
}
