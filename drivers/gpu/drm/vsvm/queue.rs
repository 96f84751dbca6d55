// SPDX-License-Identifier: GPL-2.0

//! The queue of a compute channel: jobs that have not ended, in the order in which they were
//! queued.
//!
//! The engine has those up to the first that waits for fences. This one, and all behind it, are
//! held until the fences are signalled.

use kernel::{
    dma_fence::Fence,
    num::casts::{
        self,
        arch::IntoSafeCastArch, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        Arc, //
    },
    time::{
        Instant,
        Monotonic, //
    }, //
};

use crate::{
    channel::{
        Cursor,
        RING_SIZE, //
    },
    job::{
        End,
        Job, //
    },
    syncobj::Signal, //
};

/// Whether a channel takes jobs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// It is enabled.
    Running,
    /// It is disabled and will be enabled; jobs are kept.
    Paused,
    /// It could not be stopped after it hung, or not be started, so it must not be used any more.
    Dead,
    /// The address space is being destroyed.
    Closed,
}

/// A job in the queue.
pub(crate) struct Entry {
    pub(crate) job: Arc<Job>,
    pub(crate) signal: Option<Signal>,
}

impl Entry {
    /// Ends the job.
    pub(crate) fn finish(self, end: End) {
        self.job.finish(end);
        if let Some(signal) = self.signal {
            signal.send(end.status);
        }
    }
}

/// A job that the engine does not have yet.
struct Held {
    entry: Entry,
    /// What it waits for.
    waits: KVec<ARef<Fence>>,
}

impl Held {
    /// Returns whether the job can begin, or that it has failed. If none, the last of `waits` is
    /// not signalled.
    fn status(&mut self) -> Option<Result> {
        while let Some(fence) = self.waits.last() {
            let status = fence.status()?;
            if status.is_err() {
                return Some(status);
            }
            self.waits.pop();
        }
        Some(Ok(()))
    }
}

/// What keeps a queue from being empty.
pub(crate) enum Obstacle {
    /// The job that the engine executes.
    Job(Arc<Job>),
    /// The engine has no job, and the next waits for this.
    Fence(ARef<Fence>),
}

/// The jobs that have not ended.
pub(crate) struct Queue {
    pub(crate) cursor: Cursor,
    /// Fence of the oldest job that the engine has.
    pub(crate) oldest: u64,
    /// Those that the engine has, from `oldest` to before the cursor; the index is the fence modulo
    /// the size.
    jobs: KVec<Option<Entry>>,
    /// Those behind them.
    held: KVec<Held>,
    /// When the oldest job began, or faulted.
    pub(crate) progress: Instant<Monotonic>,
    pub(crate) state: State,
    /// There is a follower.
    pub(crate) followed: bool,
}

impl Queue {
    /// Creates an empty queue of a channel that is paused.
    pub(crate) fn new() -> Result<Self> {
        let size = casts::u32_as_usize(RING_SIZE);
        let mut jobs = KVec::with_capacity(size, GFP_KERNEL)?;
        for _ in 0..size {
            jobs.push(None, GFP_KERNEL)?;
        }
        let cursor = Cursor::new();
        Ok(Self {
            oldest: cursor.next(),
            cursor,
            jobs,
            held: KVec::with_capacity(size, GFP_KERNEL)?,
            progress: Instant::now(),
            state: State::Paused,
            followed: false,
        })
    }

    /// Returns the job with a fence, if the engine has it.
    pub(crate) fn job(&self, fence: u64) -> Option<&Arc<Job>> {
        let index: usize = (fence % u64::from(RING_SIZE)).into_safe_cast_arch();
        self.jobs.get(index)?.as_ref().map(|entry| &entry.job)
    }

    /// Returns the oldest of all jobs.
    pub(crate) fn first(&self) -> Option<&Arc<Job>> {
        let held = self.held.first().map(|held| &held.entry.job);
        self.job(self.oldest).or(held)
    }

    /// Replaces what is in the slot of a fence.
    pub(crate) fn replace(&mut self, fence: u64, entry: Option<Entry>) -> Option<Entry> {
        let index: usize = (fence % u64::from(RING_SIZE)).into_safe_cast_arch();
        core::mem::replace(self.jobs.get_mut(index)?, entry)
    }

    /// Returns how many jobs the engine has.
    pub(crate) fn posted(&self) -> u64 {
        self.cursor.next() - self.oldest
    }

    /// Returns whether there is room for one more job: the engine is to have room for all of them.
    pub(crate) fn has_room(&self) -> bool {
        self.posted() + casts::usize_as_u64(self.held.len()) < u64::from(RING_SIZE)
    }

    /// Returns whether a job would have to wait that has no fences to wait for.
    pub(crate) fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// Adds a job that waits; there must be room.
    pub(crate) fn hold(&mut self, entry: Entry, waits: KVec<ARef<Fence>>) -> Result {
        Ok(self.held.push(Held { entry, waits }, GFP_KERNEL)?)
    }

    /// Removes the first job that is held, if it waits no longer: it can begin, or it has failed.
    pub(crate) fn release(&mut self) -> Option<(Entry, Result)> {
        let status = self.held.first_mut()?.status()?;
        let held = self.held.remove(0).ok()?;
        Some((held.entry, status))
    }

    /// Removes the oldest job that the engine has, if there is one. The engine must be done with
    /// it.
    pub(crate) fn pop(&mut self) -> Option<Entry> {
        let entry = self.replace(self.oldest, None)?;
        self.oldest += 1;
        Some(entry)
    }

    /// Makes the engine's jobs begin at the cursor, which is at slot 0.
    pub(crate) fn renumber(&mut self) {
        let index: usize = (self.oldest % u64::from(RING_SIZE)).into_safe_cast_arch();
        self.jobs.rotate_left(index);
        self.oldest = self.cursor.next();
    }

    /// Ends all jobs. The engine must be stopped.
    pub(crate) fn fail_all(&mut self, error: Error) {
        while let Some(entry) = self.pop() {
            entry.finish(End::failed(error));
        }
        for held in self.held.drain_all() {
            held.entry.finish(End::failed(error));
        }
    }

    /// Returns what the queue waits for, if it is not empty. Jobs that can be released have been.
    pub(crate) fn obstacle(&self) -> Option<Obstacle> {
        if let Some(job) = self.job(self.oldest) {
            return Some(Obstacle::Job(job.clone()));
        }
        let fence = self.held.first()?.waits.last()?;
        Some(Obstacle::Fence(fence.clone()))
    }
}
