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

use crate::hw::{
    self,
    ComputeCommand,
    ComputeOp,
    Descriptor,
    Element, //
};

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
    /// Fence of its descriptor.
    pub(crate) fence: Atomic<u64>,
    /// Why a fault of the job could not be resolved.
    fault: SetOnce<Error>,
    end: SetOnce<End>,
}

impl Job {
    /// Creates a job that is not in a queue yet.
    pub(crate) fn new(work: Work) -> Result<Arc<Self>> {
        let job = Self {
            work,
            fence: Atomic::new(0),
            fault: SetOnce::new(),
            end: SetOnce::new(),
        };
        Ok(Arc::new(job, GFP_KERNEL)?)
    }

    /// Returns the descriptor.
    pub(crate) fn encode(&self, fence: u64) -> Descriptor {
        self.work.encode(fence)
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
        self.work.to_vram
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
