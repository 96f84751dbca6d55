// SPDX-License-Identifier: GPL-2.0

//! The compute engine: jobs of all clients in one queue.
//!
//! A job is named by the first fence of its descriptor. Interrupts only wake those who wait; whoever
//! holds the lock of the queue first looks at the completion array for jobs that have ended
//! ([`ComputeEngine::lock`]), so what is seen under the lock is always up to date.
//!
//! # Hangs
//!
//! Those who wait also watch ([`ComputeEngine::watch`]): an interrupt may be lost, the engine may
//! hang in a job, and the device may vanish. A job that hangs fails and the channel is restarted;
//! those behind it have not begun, and are queued again, with new fences. When the device has gone,
//! all jobs fail.
//!
//! # Locks
//!
//! `ComputeEngine::queue` is taken with no other lock of the driver held, and only that of [`Wake`]
//! is taken inside.

use core::ops::Range;
use kernel::{
    device::{
        Bound,
        Device, //
    },
    new_mutex,
    num::casts::{
        self,
        arch::IntoSafeCastArch, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex,
        MutexGuard,
        SetOnce, //
    },
    time::{
        msecs_to_jiffies,
        Delta,
        Instant,
        Monotonic,
        Msecs, //
    }, //
};

use crate::{
    channel::{
        Channel,
        Cursor,
        HasWake,
        Wake,
        RING_SIZE, //
    },
    hw::{
        self,
        ComputeCommand,
        ComputeOp,
        Descriptor,
        Done,
        Element,
        Status, //
    },
    regs::Regs,
    stats::Stats, //
};

/// How often to look whether a job has ended, in case its interrupt got lost.
const LOOK_AGAIN: Msecs = 100;

/// How long a job may run without a fault.
const HANG_TIMEOUT: Delta = Delta::from_secs(5);

/// How long the jobs of an address space that is going away may take to end.
const DRAIN_TIMEOUT: Delta = Delta::from_secs(10);

/// What a job is to do. Addresses have been checked.
pub(crate) struct Work {
    pub(crate) op: ComputeOp,
    pub(crate) element: Element,
    /// VRAM offset of the root page table.
    pub(crate) root: u64,
    /// The array that is written.
    pub(crate) dst: Option<Range<u64>>,
    /// The arrays that are read.
    pub(crate) src: [Option<Range<u64>>; 2],
    pub(crate) count: u64,
    pub(crate) scalar: u32,
    /// The pages of its arrays are to be moved to VRAM.
    pub(crate) to_vram: bool,
}

impl Work {
    /// Returns the descriptor.
    fn encode(&self, fence: u64) -> Descriptor {
        let start = |array: &Option<Range<u64>>| array.as_ref().map_or(0, |array| array.start);
        let [a, b] = &self.src;
        ComputeCommand {
            op: self.op,
            element: self.element,
            irq: true,
            fence,
            root: self.root,
            dst: start(&self.dst),
            a: start(a),
            b: start(b),
            count: self.count,
            scalar: self.scalar,
        }
        .encode()
    }
}

/// How a job ended.
#[derive(Clone, Copy)]
pub(crate) struct End {
    pub(crate) status: Result,
    pub(crate) result: u64,
    pub(crate) fault_addr: u64,
}

impl End {
    const fn failed(error: Error) -> Self {
        Self {
            status: Err(error),
            result: 0,
            fault_addr: 0,
        }
    }
}

/// A job in the queue, or one that has ended.
pub(crate) struct Job {
    work: Work,
    /// Fence of its descriptor.
    fence: Atomic<u64>,
    /// Why a fault of the job could not be resolved.
    fault: SetOnce<Error>,
    end: SetOnce<End>,
}

impl Job {
    /// Returns the array that contains `va`, which the job will access from there on, and whether
    /// it will write to it.
    pub(crate) fn access(&self, va: u64) -> Option<(Range<u64>, bool)> {
        let page = va..va + hw::PAGE_SIZE;
        let overlaps = |array: &&Range<u64>| array.start < page.end && page.start < array.end;
        if let Some(array) = self.work.dst.as_ref().filter(overlaps) {
            return Some((array.clone(), true));
        }
        let mut arrays = self.work.src.iter().flatten();
        arrays.find(overlaps).map(|array| (array.clone(), false))
    }

    /// Returns whether pages are to be moved to VRAM when the job faults on them.
    pub(crate) fn wants_vram(&self) -> bool {
        self.work.to_vram
    }

    /// Tells why a fault could not be resolved, before the fault is cancelled.
    pub(crate) fn set_fault(&self, error: Error) {
        self.fault.populate(error);
    }

    fn finish(&self, end: End) {
        self.end.populate(end);
    }
}

/// The jobs that have not ended.
struct Queue {
    cursor: Cursor,
    /// Fence of the oldest job.
    oldest: u64,
    /// Jobs from `oldest` to before the cursor; the index is the fence modulo the size.
    jobs: KVec<Option<Arc<Job>>>,
    /// When the oldest job began, or faulted.
    progress: Instant<Monotonic>,
    /// The channel could not be stopped after it hung, so it must not be used any more.
    dead: bool,
}

impl Queue {
    fn job(&self, fence: u64) -> Option<&Arc<Job>> {
        let index: usize = (fence % u64::from(RING_SIZE)).into_safe_cast_arch();
        self.jobs.get(index)?.as_ref()
    }

    fn set_job(&mut self, fence: u64, job: Option<Arc<Job>>) {
        let index: usize = (fence % u64::from(RING_SIZE)).into_safe_cast_arch();
        if let Some(slot) = self.jobs.get_mut(index) {
            *slot = job;
        }
    }
}

/// The compute engine.
#[pin_data]
pub(crate) struct ComputeEngine<'bound> {
    dev: &'bound Device<Bound>,
    stats: Arc<Stats>,
    channel: Channel<'bound, { hw::CHANNEL_COMPUTE }>,
    /// The device goes away: there are no new jobs.
    stopping: Atomic<bool>,
    #[pin]
    queue: Mutex<Queue>,
    #[pin]
    wake: Wake,
}

impl HasWake for ComputeEngine<'_> {
    fn wake(&self) -> &Wake {
        &self.wake
    }
}

impl<'bound> ComputeEngine<'bound> {
    /// Sets up the channel.
    pub(crate) fn new(
        dev: &'bound Device<Bound>,
        regs: Arc<Regs<'bound>>,
        stats: Arc<Stats>,
    ) -> Result<Arc<Self>> {
        let channel = Channel::new(dev, regs)?;
        let mut cursor = Cursor::new();
        channel.enable(&mut cursor)?;

        let mut jobs = KVec::with_capacity(casts::u32_as_usize(RING_SIZE), GFP_KERNEL)?;
        for _ in 0..RING_SIZE {
            jobs.push(None, GFP_KERNEL)?;
        }
        let queue = Queue {
            oldest: cursor.next(),
            cursor,
            jobs,
            progress: Instant::now(),
            dead: false,
        };
        Arc::pin_init(
            pin_init!(Self {
                dev,
                stats,
                channel,
                stopping: Atomic::new(false),
                queue <- new_mutex!(queue, "ComputeEngine::queue"),
                wake <- Wake::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// Takes the lock of the queue and removes the jobs that have ended.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        let mut queue = self.queue.lock();
        while queue.oldest != queue.cursor.next() {
            let fence = queue.oldest;
            let Some(done) = self.channel.completion(fence) else {
                break;
            };
            if let Some(job) = queue.job(fence) {
                job.finish(self.end_of(job, done));
                self.stats.jobs.add(1);
            }
            queue.set_job(fence, None);
            queue.oldest += 1;
            queue.progress = Instant::now();
        }
        queue
    }

    /// Returns how a job ended that has the given completion.
    fn end_of(&self, job: &Job, done: Result<Done>) -> End {
        let done = match done {
            Ok(done) => done,
            Err(error) => return End::failed(error),
        };
        let status = match done.status {
            Status::Ok => Ok(()),
            // Without an error nobody knew of the fault: the buffer was off, after a reset.
            Status::Fault => Err(job.fault.copy().unwrap_or(EIO)),
            Status::BadCommand => {
                // It is not well, and if it has gone that will be noticed elsewhere.
                let _ = self.channel.check();
                Err(EIO)
            }
            Status::BadVram | Status::BusError | Status::Memory => Err(EIO),
        };
        End {
            status,
            result: done.result,
            fault_addr: done.address,
        }
    }

    /// Queues a job and returns its fence.
    ///
    /// # Errors
    ///
    /// - `EBUSY`: the ring is full.
    /// - `EIO`: the engine does not work.
    /// - `ENODEV`: the device goes away.
    pub(crate) fn submit(&self, work: Work) -> Result<(u64, Arc<Job>)> {
        let job = Arc::new(
            Job {
                work,
                fence: Atomic::new(0),
                fault: SetOnce::new(),
                end: SetOnce::new(),
            },
            GFP_KERNEL,
        )?;
        let mut queue = self.lock();
        if self.stopping.load(Relaxed) {
            return Err(ENODEV);
        }
        if queue.dead {
            return Err(EIO);
        }
        if queue.cursor.next() - queue.oldest >= u64::from(RING_SIZE) {
            return Err(EBUSY);
        }
        if queue.oldest == queue.cursor.next() {
            queue.progress = Instant::now();
        }
        self.post(&mut queue, job.clone())?;
        Ok((job.fence.load(Relaxed), job))
    }

    /// Gives a job to the engine, which must have room for it.
    fn post(&self, queue: &mut Queue, job: Arc<Job>) -> Result {
        let fence = queue.cursor.next();
        job.fence.store(fence, Relaxed);
        // The job must be there before the GPU can fault.
        queue.set_job(fence, Some(job.clone()));
        let encode = |fence| job.work.encode(fence);
        self.channel.post(&mut queue.cursor, encode).map(|_| ())
    }

    /// Returns the job of address space `root` that has faulted: the one that the engine is
    /// executing, if it is one.
    pub(crate) fn faulting(&self, root: u64) -> Option<Arc<Job>> {
        let mut queue = self.lock();
        queue.progress = Instant::now();
        let job = queue.job(queue.oldest)?;
        (job.work.root == root).then(|| job.clone())
    }

    /// Waits until a job has ended, but not beyond `deadline`, in nanoseconds of the monotonic clock.
    ///
    /// `poke` makes somebody look for faults, in case their interrupt got lost.
    ///
    /// # Errors
    ///
    /// - `ETIME`: it has not.
    /// - `ERESTARTSYS`: a signal arrived.
    /// - `ENODEV`: the device goes away, and the job did not end although it was cancelled.
    pub(crate) fn wait_for(&self, job: &Job, deadline: i64, poke: impl Fn()) -> Result<End> {
        let mut stopping = None;
        loop {
            drop(self.lock());
            if let Some(end) = job.end.copy() {
                return Ok(end);
            }
            if self.stopping.load(Relaxed) {
                let since = stopping.get_or_insert_with(Instant::<Monotonic>::now);
                if since.elapsed() > DRAIN_TIMEOUT {
                    return Err(ENODEV);
                }
            }
            let left = deadline.saturating_sub(Instant::<Monotonic>::now().as_nanos());
            if left <= 0 {
                return Err(ETIME);
            }
            let left = Delta::from_nanos(left).as_millis_ceil();
            let turn = Msecs::try_from(left).unwrap_or(LOOK_AGAIN).min(LOOK_AGAIN);
            let rest = self.wake.wait_interruptible(msecs_to_jiffies(turn), || {
                self.channel.is_done(job.fence.load(Relaxed)) || job.end.as_ref().is_some()
            })?;
            if rest == 0 {
                poke();
                self.watch();
            }
        }
    }

    /// Waits until no job of address space `root` is left.
    ///
    /// Nothing may be mapped there any more, and faults must be cancelled, so that jobs end soon.
    /// If they do not, it is because of a job of another that is executed before them; that fails.
    /// For `poke` see [`Self::wait_for`].
    pub(crate) fn drain(&self, root: u64, poke: impl Fn()) {
        let mut start = Instant::<Monotonic>::now();
        while let Some(job) = self.last_of(root) {
            let rest = self.wake.wait(msecs_to_jiffies(LOOK_AGAIN), || {
                self.channel.is_done(job.fence.load(Relaxed))
            });
            if rest == 0 {
                poke();
                self.watch();
            }
            if start.elapsed() > DRAIN_TIMEOUT {
                self.restart(self.lock(), EIO);
                start = Instant::now();
            }
        }
    }

    /// Returns the last job of an address space.
    fn last_of(&self, root: u64) -> Option<Arc<Job>> {
        let queue = self.lock();
        let mut fences = (queue.oldest..queue.cursor.next()).rev();
        fences.find_map(|fence| {
            let job = queue.job(fence).filter(|job| job.work.root == root);
            job.cloned()
        })
    }

    /// Looks after the engine when nothing has been heard of it for a while.
    fn watch(&self) {
        let well = self.channel.check();
        let stalled = self.channel.is_stalled();
        let mut queue = self.lock();
        if queue.oldest == queue.cursor.next() {
            return;
        }
        if let Err(error) = well {
            self.restart(queue, error);
        } else if stalled {
            queue.progress = Instant::now();
        } else if queue.progress.elapsed() > HANG_TIMEOUT {
            self.restart(queue, EIO);
        }
    }

    /// Makes the engine usable again. The oldest job fails with `error`, the others are queued
    /// again; if the engine cannot be used, they fail too.
    fn restart(&self, mut queue: MutexGuard<'_, Queue>, error: Error) {
        let count = queue.cursor.next() - queue.oldest;
        if count == 0 {
            return;
        }
        dev_err!(self.dev, "compute engine does not answer, restarting it\n");
        let stopped = self.channel.disable();
        let oldest = queue.oldest;
        if let Some(job) = queue.job(oldest) {
            job.finish(End::failed(error));
        }
        queue.set_job(oldest, None);

        // The channel begins with slot 0, and so do the jobs that are left.
        let index: usize = ((oldest + 1) % u64::from(RING_SIZE)).into_safe_cast_arch();
        queue.jobs.rotate_left(index);
        let enabled = stopped.and_then(|()| self.channel.enable(&mut queue.cursor));
        queue.oldest = queue.cursor.next();
        queue.progress = Instant::now();
        queue.dead = enabled.is_err();
        if queue.dead {
            dev_err!(self.dev, "compute engine cannot be restarted\n");
        }

        for fence in queue.oldest..queue.oldest + (count - 1) {
            let Some(job) = queue.job(fence).cloned() else {
                continue;
            };
            if queue.dead || self.post(&mut queue, job.clone()).is_err() {
                queue.set_job(fence, None);
                job.finish(End::failed(error));
            }
        }
        drop(queue);
        self.wake.wake();
    }

    /// Refuses new jobs, since the device goes away.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Relaxed);
    }
}
