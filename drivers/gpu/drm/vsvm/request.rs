// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What a program asks the engine to compute: checked, and as a descriptor. And which syncobjs go
//! with it.
//!
//! Everything here is arithmetic on numbers from user space: it must survive any bytes, and let nothing
//! pass that the engine calls nonsense. It uses `core` only, so that the same source is tested on the
//! host, against the engine of the model.

use core::ops::Range;

use crate::hw::{
    self,
    ComputeCommand,
    ComputeOp,
    Descriptor,
    Element, //
};

/// Bytes of an element.
const ELEMENT: u64 = 4;

/// What a program asks for. Only the codes have been checked.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) op: ComputeOp,
    pub(crate) element: Element,
    pub(crate) dst: u64,
    pub(crate) src: [u64; 2],
    pub(crate) count: u64,
    pub(crate) scalar: u32,
}

/// What a job is to do. Addresses have been checked.
pub(crate) struct Work {
    op: ComputeOp,
    element: Element,
    /// The array that is written.
    pub(crate) dst: Option<Range<u64>>,
    /// The arrays that are read.
    pub(crate) src: [Option<Range<u64>>; 2],
    count: u64,
    scalar: u32,
}

impl Work {
    /// Checks a request; `None` if it makes no sense.
    pub(crate) fn new(request: &Request) -> Option<Self> {
        // Which of destination, a, b and scalar the operation uses.
        let [uses_dst, uses_a, uses_b, uses_scalar] = match request.op {
            ComputeOp::Fill => [true, false, false, true],
            ComputeOp::Add => [true, true, false, true],
            ComputeOp::Saxpy => [true, true, true, true],
            ComputeOp::Copy => [true, true, false, false],
            ComputeOp::Sum | ComputeOp::Checksum => [false, true, false, false],
        };
        let checked = |start: u64, used: bool| match (used, start) {
            (true, _) => array(start, request.count).map(Some),
            (false, 0) => Some(None),
            (false, _) => None,
        };
        if request.scalar != 0 && !uses_scalar {
            return None;
        }
        let [a, b] = request.src;
        Some(Self {
            op: request.op,
            element: request.element,
            dst: checked(request.dst, uses_dst)?,
            src: [checked(a, uses_a)?, checked(b, uses_b)?],
            count: request.count,
            scalar: request.scalar,
        })
    }

    /// Returns the descriptor for the address space with the root page table `root`.
    pub(crate) fn encode(&self, root: u64, fence: u64) -> Descriptor {
        let start = |array: &Option<Range<u64>>| array.as_ref().map_or(0, |array| array.start);
        let [a, b] = &self.src;
        ComputeCommand {
            op: self.op,
            element: self.element,
            irq: true,
            fence,
            root,
            dst: start(&self.dst),
            a: start(a),
            b: start(b),
            count: self.count,
            scalar: self.scalar,
        }
        .encode()
    }
}

/// Handles of syncobjs that a job may have, to wait for or to signal.
pub(crate) const SYNCOBJS_MAX: u32 = 64;

/// Bytes of a handle.
const HANDLE: u64 = 4;

/// Returns the addresses of a list of `count` handles in the program's memory, unless there are too
/// many, or the list overflows, or there is an address but no list. Whether memory is there,
/// reading it will show.
pub(crate) fn handles(start: u64, count: u32) -> Option<Range<u64>> {
    let end = start.checked_add(u64::from(count) * HANDLE)?;
    let fits = count <= SYNCOBJS_MAX && (count != 0 || start == 0);
    fits.then_some(start..end)
}

/// Returns the addresses of an array of `count` elements, unless it is empty or misaligned, overflows, or
/// the GPU cannot reach all of it.
fn array(start: u64, count: u64) -> Option<Range<u64>> {
    let length = count.checked_mul(ELEMENT)?;
    let end = start.checked_add(length)?;
    let fits = count != 0 && start % ELEMENT == 0 && end <= hw::VA_END;
    fits.then_some(start..end)
}
