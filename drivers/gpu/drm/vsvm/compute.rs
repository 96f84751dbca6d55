// SPDX-License-Identifier: GPL-2.0

//! Compute channels: each address space has one, and with it a queue of jobs of its own.
//!
//! Interrupts only wake those who wait; whoever holds the lock of a queue first looks at the
//! completion array for jobs that have ended ([`ComputeChannel::lock`]), so what is seen under the
//! lock is always up to date. Somebody must look: the program that waits for a job, or a follower
//! ([`super::follow`]).
//!
//! # Hangs
//!
//! Those who wait also watch ([`ComputeChannel::watch`]): an interrupt may be lost, the engine may
//! hang in a job, and the device may vanish. A job that hangs fails and the channel is restarted;
//! those behind it have not begun, and are queued again, with new fences. When the device has gone,
//! all jobs fail. Other channels do not notice.
//!
//! # Pauses
//!
//! While the device is reset or sleeps, jobs are queued, but not given to it. See
//! [`super::power`].
//!
//! # Locks
//!
//! `ComputeChannel::queue` is taken with no other lock of the driver held but those of [`super::power`],
//! and only that of [`Wake`] is taken inside, and those of fences and syncobjs, which are leaves.

use kernel::{
    device::{
        Bound,
        Device, //
    },
    new_mutex,
    new_spinlock,
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc,
        Mutex,
        MutexGuard,
        SpinLock, //
    },
    time::{
        delay::fsleep,
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
        HasWake,
        Wake, //
    },
    hw::{
        self,
        Done,
        Status, //
    },
    job::{
        End,
        Job, //
    },
    queue::{
        Entry,
        Obstacle,
        Queue,
        State, //
    },
    regs::Regs,
    stats::{
        ClientStats,
        Stats, //
    },
    syncobj::Fences, //
};

/// How often to look whether a job has ended, in case its interrupt got lost.
const LOOK_AGAIN: Msecs = 100;

/// How long a job may run without a fault.
const HANG_TIMEOUT: Delta = Delta::from_secs(5);

/// What the compute channels of a device share.
#[pin_data]
pub(crate) struct ComputeUnit<'bound> {
    dev: &'bound Device<Bound>,
    regs: Arc<Regs<'bound>>,
    stats: Arc<Stats>,
    /// A bit for each compute channel that is in use.
    #[pin]
    used: SpinLock<u32>,
    #[pin]
    wake: Wake,
}

const _: () = assert!(hw::COMPUTE_CHANNELS <= u32::BITS);

impl HasWake for ComputeUnit<'_> {
    fn wake(&self) -> &Wake {
        &self.wake
    }
}

impl<'bound> ComputeUnit<'bound> {
    /// Creates a unit none of whose channels is in use.
    pub(crate) fn new(
        dev: &'bound Device<Bound>,
        regs: Arc<Regs<'bound>>,
        stats: Arc<Stats>,
    ) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                dev,
                regs,
                stats,
                used <- new_spinlock!(0, "ComputeUnit::used"),
                wake <- Wake::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// Takes a channel that is not in use.
    fn claim(self: &Arc<Self>) -> Result<Claim<'bound>> {
        let mut used = self.used.lock();
        let index = used.trailing_ones();
        if index >= hw::COMPUTE_CHANNELS {
            return Err(ENOSPC);
        }
        *used |= 1 << index;
        Ok(Claim {
            unit: self.clone(),
            index,
        })
    }
}

/// The right to use a compute channel.
struct Claim<'bound> {
    unit: Arc<ComputeUnit<'bound>>,
    index: u32,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        *self.unit.used.lock() &= !(1 << self.index);
    }
}

/// A compute channel.
#[pin_data]
pub(crate) struct ComputeChannel<'bound> {
    unit: Arc<ComputeUnit<'bound>>,
    channel: Channel<'bound>,
    #[pin]
    queue: Mutex<Queue>,
    stats: Arc<ClientStats>,
    // Dropped after the channel has been stopped.
    _claim: Claim<'bound>,
}

impl<'bound> ComputeChannel<'bound> {
    /// Sets up a channel that is not in use. It is paused.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if all channels are in use.
    pub(crate) fn new(
        unit: Arc<ComputeUnit<'bound>>,
        stats: Arc<ClientStats>,
    ) -> Result<impl PinInit<Self, Error> + use<'bound>> {
        let claim = unit.claim()?;
        let index = hw::CHANNEL_COMPUTE + claim.index;
        let channel = Channel::new(unit.dev, unit.regs.clone(), index)?;
        let queue = Queue::new()?;
        Ok(try_pin_init!(Self {
            unit,
            channel,
            queue <- new_mutex!(queue, "ComputeChannel::queue"),
            stats,
            _claim: claim,
        }))
    }

    /// Takes the lock of the queue and removes the jobs that have ended.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        let mut queue = self.queue.lock();
        while let Some(done) = self.channel.completion(queue.oldest) {
            let Some(entry) = queue.pop() else {
                break;
            };
            let end = self.end_of(&entry.job, done);
            entry.finish(end);
            self.unit.stats.jobs.add(1);
            self.stats.jobs.add(1);
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
            // Without an error nobody knew of the fault: the buffer was off.
            Status::Fault => Err(job.fault().unwrap_or(EIO)),
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

    /// Queues a job. Returns whether it has fences, and the channel no follower yet: then the
    /// caller has to start one.
    ///
    /// # Errors
    ///
    /// - `EBUSY`: there are as many jobs as the ring has room for.
    /// - `EIO`: the channel does not work.
    /// - `ENODEV`: the device goes away.
    pub(crate) fn submit(&self, job: Arc<Job>, fences: Fences) -> Result<bool> {
        let mut queue = self.lock();
        match queue.state {
            State::Running | State::Paused => (),
            State::Dead => return Err(EIO),
            State::Closed => return Err(ENODEV),
        }
        if !queue.has_room() {
            return Err(EBUSY);
        }
        let follow = !fences.is_empty() && !queue.followed;
        let Fences { waits, signal } = fences;
        if let Some(signal) = &signal {
            signal.reset();
        }
        let entry = Entry { job, signal };
        if queue.holds() || !waits.is_empty() {
            queue.hold(entry, waits)?;
        } else {
            self.post(&mut queue, entry);
        }
        queue.followed |= follow;
        Ok(follow)
    }

    /// Gives a job to the engine, which must have room for it. While the channel is paused that has no
    /// effect but to put it in the queue.
    fn post(&self, queue: &mut Queue, entry: Entry) {
        if queue.posted() == 0 {
            queue.progress = Instant::now();
        }
        let fence = queue.cursor.next();
        let job = entry.job.clone();
        job.fence.store(fence, Relaxed);
        // The job must be there before the GPU can fault.
        queue.replace(fence, Some(entry));
        let encode = |fence| job.encode(fence);
        if let Err(error) = self.channel.post(&mut queue.cursor, encode) {
            if let Some(entry) = queue.replace(fence, None) {
                entry.finish(End::failed(error));
            }
        }
    }

    /// Looks after the jobs until there are none. The caller holds no locks.
    ///
    /// For `poke` see [`Self::wait_for`].
    pub(crate) fn follow(&self, poke: impl Fn()) {
        while let Some(obstacle) = self.advance() {
            match obstacle {
                Obstacle::Job(job) => self.wait_a_turn(&job, &poke),
                Obstacle::Fence(fence) => {
                    if fence.wait_timeout(msecs_to_jiffies(LOOK_AGAIN)).is_err() {
                        // Its driver does not wait, but will signal it.
                        fsleep(Delta::from_millis(LOOK_AGAIN.into()));
                    }
                }
            }
        }
    }

    /// Gives jobs to the engine that wait no longer. Returns what has to be waited for next; if
    /// there is nothing, the follower has to leave.
    fn advance(&self) -> Option<Obstacle> {
        let mut queue = self.lock();
        while let Some((entry, status)) = queue.release() {
            match status {
                Ok(()) => self.post(&mut queue, entry),
                Err(error) => {
                    entry.finish(End::failed(error));
                    self.unit.wake.wake();
                }
            }
        }
        let obstacle = queue.obstacle();
        queue.followed = obstacle.is_some();
        obstacle
    }

    /// Returns the job that has faulted: the one that the engine is executing.
    pub(crate) fn faulting(&self) -> Option<Arc<Job>> {
        let mut queue = self.lock();
        queue.progress = Instant::now();
        queue.job(queue.oldest).cloned()
    }

    /// Waits until a job has ended, but not beyond `deadline`, in nanoseconds of the monotonic clock.
    ///
    /// `poke` makes somebody look for faults, in case their interrupt got lost.
    ///
    /// # Errors
    ///
    /// - `ETIME`: it has not.
    /// - `ERESTARTSYS`: a signal arrived.
    pub(crate) fn wait_for(&self, job: &Job, deadline: i64, poke: impl Fn()) -> Result<End> {
        loop {
            drop(self.lock());
            if let Some(end) = job.end() {
                return Ok(end);
            }
            let left = deadline.saturating_sub(Instant::<Monotonic>::now().as_nanos());
            if left <= 0 {
                return Err(ETIME);
            }
            let left = Delta::from_nanos(left).as_millis_ceil();
            let turn = Msecs::try_from(left).unwrap_or(LOOK_AGAIN).min(LOOK_AGAIN);
            let wake = &self.unit.wake;
            let rest = wake.wait_interruptible(msecs_to_jiffies(turn), || self.has_ended(job))?;
            if rest == 0 {
                poke();
                self.watch();
            }
        }
    }

    /// Returns whether a job has ended, or the next look at the queue will end it. Does not sleep.
    fn has_ended(&self, job: &Job) -> bool {
        let fence = job.fence.load(Relaxed);
        (fence != 0 && self.channel.is_done(fence)) || job.end().is_some()
    }

    /// Waits for a job, until it is time to look again.
    fn wait_a_turn(&self, job: &Job, poke: &impl Fn()) {
        let wake = &self.unit.wake;
        if wake.wait(msecs_to_jiffies(LOOK_AGAIN), || self.has_ended(job)) == 0 {
            poke();
            self.watch();
        }
    }

    /// Looks after the channel when nothing has been heard of it for a while.
    fn watch(&self) {
        let mut queue = self.lock();
        if queue.posted() == 0 || queue.state != State::Running {
            return;
        }
        if let Err(error) = self.channel.check() {
            self.restart(queue, error);
        } else if self.channel.is_stalled() {
            queue.progress = Instant::now();
        } else if queue.progress.elapsed() > HANG_TIMEOUT {
            self.restart(queue, EIO);
        }
    }

    /// Makes the channel usable again after it hung. The oldest job fails with `error`, the others are
    /// queued again; if the channel cannot be used, they fail too.
    fn restart(&self, mut queue: MutexGuard<'_, Queue>, error: Error) {
        dev_err!(
            self.unit.dev,
            "channel {} does not answer, restarting it\n",
            self.channel.index()
        );
        self.halt(&mut queue, error);
        self.start(&mut queue, error);
        drop(queue);
        self.unit.wake.wake();
    }

    /// Stops the engine. The job that it is executing fails with `error`.
    fn halt(&self, queue: &mut Queue, error: Error) {
        queue.state = match self.channel.disable() {
            Ok(()) => State::Paused,
            Err(_) => State::Dead,
        };
        if let Some(entry) = queue.pop() {
            entry.finish(End::failed(error));
        }
    }

    /// Starts the engine, if it is paused, and gives it all jobs of the queue, with new fences. If it
    /// does not start they fail with `error`.
    fn start(&self, queue: &mut Queue, error: Error) {
        if queue.state != State::Paused {
            return queue.fail_all(error);
        }
        let count = queue.posted();
        if self.channel.enable(&mut queue.cursor).is_err() {
            queue.state = State::Dead;
            return queue.fail_all(error);
        }
        // The channel begins with slot 0, and so do the jobs.
        queue.renumber();
        queue.state = State::Running;

        for fence in queue.oldest..queue.oldest + count {
            if let Some(entry) = queue.replace(fence, None) {
                self.post(queue, entry);
            }
        }
    }

    /// Keeps the channel from being used until [`Self::resume`] is called. A job that is being executed
    /// fails with `EIO`.
    pub(crate) fn pause(&self) {
        let mut queue = self.lock();
        if queue.state == State::Running {
            self.halt(&mut queue, EIO);
        }
        drop(queue);
        self.unit.wake.wake();
    }

    /// Starts the channel, if it is paused.
    pub(crate) fn resume(&self) {
        let mut queue = self.lock();
        if queue.state == State::Paused {
            self.start(&mut queue, EIO);
        }
    }

    /// Waits until the queue is empty, but no longer than `timeout`. Returns whether it is.
    ///
    /// For `poke` see [`Self::wait_for`].
    pub(crate) fn drain(&self, timeout: Delta, poke: impl Fn()) -> bool {
        let start = Instant::<Monotonic>::now();
        loop {
            let queue = self.lock();
            let Some(job) = queue.first().cloned() else {
                return true;
            };
            drop(queue);
            if start.elapsed() > timeout {
                return false;
            }
            self.wait_a_turn(&job, &poke);
        }
    }

    /// Cancels all jobs, and takes no more. The engine accesses nothing on behalf of this address space
    /// when the function returns.
    pub(crate) fn close(&self) {
        let mut queue = self.lock();
        if self.channel.disable().is_err() {
            dev_err!(
                self.unit.dev,
                "channel {} does not stop\n",
                self.channel.index()
            );
        }
        queue.state = State::Closed;
        queue.fail_all(ECANCELED);
        drop(queue);
        self.unit.wake.wake();
    }
}
