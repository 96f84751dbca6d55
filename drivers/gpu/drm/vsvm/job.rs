// SPDX-License-Identifier: GPL-2.0

//! Jobs: what a program wants to be computed, and how that ended.

use core::ops::Range;
use kernel::{
    prelude::*,
    sync::{
        atomic::Atomic,
        Arc,
        SetOnce, //
    }, //
};

use crate::{
    hw::{
        self,
        Descriptor, //
    },
    request::Work, //
};

/// How a job ended.
#[derive(Clone, Copy)]
pub(crate) struct End {
    pub(crate) status: Result,
    pub(crate) result: u64,
    pub(crate) fault_addr: u64,
}

impl End {
    /// The end of a job that was not executed, or only in part.
    pub(crate) const fn failed(error: Error) -> Self {
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
    /// VRAM offset of the root page table.
    root: u64,
    /// The pages of its arrays are to be moved to VRAM.
    to_vram: bool,
    /// Fence of its descriptor; zero while it has none.
    pub(crate) fence: Atomic<u64>,
    /// Why a fault of the job could not be resolved.
    fault: SetOnce<Error>,
    end: SetOnce<End>,
}

impl Job {
    /// Creates a job that is not in a queue yet.
    pub(crate) fn new(work: Work, root: u64, to_vram: bool) -> Result<Arc<Self>> {
        let job = Self {
            work,
            root,
            to_vram,
            fence: Atomic::new(0),
            fault: SetOnce::new(),
            end: SetOnce::new(),
        };
        Ok(Arc::new(job, GFP_KERNEL)?)
    }

    /// Returns the descriptor.
    pub(crate) fn encode(&self, fence: u64) -> Descriptor {
        self.work.encode(self.root, fence)
    }

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
        self.to_vram
    }

    /// Tells why a fault could not be resolved, before the fault is cancelled.
    pub(crate) fn set_fault(&self, error: Error) {
        self.fault.populate(error);
    }

    /// Returns why a fault could not be resolved, if one could not.
    pub(crate) fn fault(&self) -> Option<Error> {
        self.fault.copy()
    }

    /// Ends the job.
    pub(crate) fn finish(&self, end: End) {
        self.end.populate(end);
    }

    /// Returns how the job ended, if it has.
    pub(crate) fn end(&self) -> Option<End> {
        self.end.copy()
    }
}
