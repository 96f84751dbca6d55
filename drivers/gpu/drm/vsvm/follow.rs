// SPDX-License-Identifier: GPL-2.0

//! Followers: who looks after jobs with fences.
//!
//! A job without fences is looked after by the program that waits for it. One that waits for fences
//! must be given to the engine when they are signalled, and one that signals syncobjs must do so
//! when it has ended, or hung, also if nobody asks. A follower does both for a channel, from when
//! such a job is queued until the queue is empty, in work of its own, so that none keeps others
//! waiting.
//!
//! It holds no locks while it waits, and looks ten times per second whether the channel has been
//! closed: because the program closed the file or was killed, or because the driver is unbound.
//! Only unbinding waits for that.

use kernel::{
    prelude::*,
    sync::Arc,
    workqueue::{
        impl_has_work,
        new_work,
        ScopedQueue,
        Work,
        WorkItem, //
    }, //
};

use crate::{
    fault::FaultThread,
    svm::Svm, //
};

/// A follower.
#[pin_data]
pub(crate) struct Follower<'bound> {
    svm: Arc<Svm<'bound>>,
    faults: Arc<FaultThread<'bound>>,
    #[pin]
    work: Work<Self>,
}

impl_has_work! {
    impl{'bound} HasWork<Self> for Follower<'bound> { self.work }
}

impl WorkItem for Follower<'_> {
    type Pointer = Pin<KBox<Self>>;

    fn run(this: Pin<KBox<Self>>) {
        this.svm.channel.follow(|| this.faults.wake_thread());
    }
}

/// The followers of a device.
pub(crate) struct Followers<'bound> {
    /// Dropped first, since the work uses the rest.
    queue: ScopedQueue<'bound>,
    faults: Arc<FaultThread<'bound>>,
}

impl<'bound> Followers<'bound> {
    /// Creates the place for them.
    ///
    /// # Safety
    ///
    /// The destructor must run before the device is unbound.
    pub(crate) unsafe fn new(faults: Arc<FaultThread<'bound>>) -> Result<Arc<Self>> {
        // SAFETY: The destructor runs in time, as the caller makes sure.
        let queue = unsafe { ScopedQueue::new(c"vsvm-follow")? };
        Ok(Arc::new(Self { queue, faults }, GFP_KERNEL)?)
    }

    /// Allocates a follower.
    pub(crate) fn prepare(&self, svm: Arc<Svm<'bound>>) -> Result<Pin<KBox<Follower<'bound>>>> {
        let follower = pin_init!(Follower {
            svm,
            faults: self.faults.clone(),
            work <- new_work!("Follower::work"),
        });
        KBox::pin_init(follower, GFP_KERNEL)
    }

    /// Lets a follower do its work.
    pub(crate) fn start(&self, follower: Pin<KBox<Follower<'bound>>>) {
        self.queue.enqueue(follower);
    }
}
