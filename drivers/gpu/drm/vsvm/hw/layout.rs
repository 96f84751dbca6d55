// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Layout of what driver and vsvm GPU exchange through guest memory.
//!
//! Each structure exists twice: as a Rust type with `encode` and `decode`, and as an array of
//! little-endian 64-bit words, the form in memory. Decoding fails for codes that do not exist and
//! for reserved bits that are not zero; what the values mean for VRAM, rings and page tables is
//! checked by the device when it executes them.

use super::{
    Access,
    ComputeOp,
    CopyOp,
    Element,
    FaultReason,
    Status,
    Unknown,
    PAGE_SIZE,
    VA_END, //
};

/// Size of an encoded [`CopyCommand`] or [`ComputeCommand`].
pub(crate) const DESCRIPTOR_SIZE: u64 = 64;
/// Size of an encoded [`Segment`].
pub(crate) const SEGMENT_SIZE: u64 = 32;
/// Size of an encoded [`Done`].
pub(crate) const DONE_SIZE: u64 = 32;
/// Size of an encoded [`Fault`].
pub(crate) const FAULT_ENTRY_SIZE: u64 = 32;

/// An encoded [`CopyCommand`] or [`ComputeCommand`], as it lies in the ring.
pub(crate) type Descriptor = [u64; 8];
/// An encoded [`Segment`], as it lies in the scatter list.
pub(crate) type RawSegment = [u64; 4];
/// An encoded [`Done`], as it lies in the completion array. Word 0 is the fence.
pub(crate) type RawDone = [u64; 4];
/// An encoded [`Fault`], as it lies in the fault buffer. The low half of word 0 is the sequence
/// number.
pub(crate) type RawFault = [u64; 4];

const _: () = assert!(size_of::<Descriptor>() == 64 && DESCRIPTOR_SIZE == 64);
const _: () = assert!(size_of::<RawSegment>() == 32 && SEGMENT_SIZE == 32);
const _: () = assert!(size_of::<RawDone>() == 32 && DONE_SIZE == 32);
const _: () = assert!(size_of::<RawFault>() == 32 && FAULT_ENTRY_SIZE == 32);

/// Returns the word made of two halves.
const fn join(low: u32, high: u32) -> u64 {
    // CAST: Widening.
    low as u64 | ((high as u64) << 32)
}

/// Returns the low half of a word.
const fn low(word: u64) -> u32 {
    // CAST: Truncation to the low half is the purpose.
    word as u32
}

/// Returns the high half of a word.
const fn high(word: u64) -> u32 {
    low(word >> 32)
}

/// Accepts `word` if it is zero, as reserved words must be.
const fn reserved(word: u64) -> Result<(), Unknown> {
    match word {
        0 => Ok(()),
        _ => Err(Unknown(low(word))),
    }
}

/// Returns the meaning of the flag bits of a descriptor: whether to raise an interrupt.
const fn irq_flag(flags: u32) -> Result<bool, Unknown> {
    match flags {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Unknown(flags)),
    }
}

/// A descriptor of the copy channel.
///
/// Executes `op` on each of `segments` in order. The first segment that fails ends the command:
/// [`Done::address`] is its index and [`Done::result`] the number of segments done before it.
/// Contents of the destination of the failed segment are undefined. No segments at all is a plain
/// fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CopyCommand {
    /// The operation.
    pub(crate) op: CopyOp,
    /// Whether to raise the channel's vector on success too.
    pub(crate) irq: bool,
    /// Written to [`Done::fence`]. Not interpreted, but see there.
    pub(crate) fence: u64,
    /// DMA address of an array of encoded [`Segment`]s, aligned to 8 bytes.
    pub(crate) list: u64,
    /// Number of segments.
    pub(crate) segments: u32,
    /// The pattern for [`CopyOp::Fill`], else zero.
    pub(crate) pattern: u32,
}

impl CopyCommand {
    /// Encodes the command for the ring.
    pub(crate) fn encode(&self) -> Descriptor {
        [
            join(self.op.code(), u32::from(self.irq)),
            self.fence,
            self.list,
            join(self.segments, self.pattern),
            0,
            0,
            0,
            0,
        ]
        .map(u64::to_le)
    }

    /// Decodes a command from the ring.
    pub(crate) fn decode(raw: &Descriptor) -> Result<Self, Unknown> {
        let [head, fence, list, tail, r4, r5, r6, r7] = raw.map(u64::from_le);
        reserved(r4 | r5 | r6 | r7)?;
        Ok(Self {
            op: CopyOp::try_from(low(head))?,
            irq: irq_flag(high(head))?,
            fence,
            list,
            segments: low(tail),
            pattern: high(tail),
        })
    }
}

/// One piece of a copy command. Addresses and length need no alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// The other side: a DMA address for copies to and from system memory, the source's VRAM
    /// offset for copies inside VRAM, zero for a fill.
    pub(crate) other: u64,
    /// The VRAM offset; the destination for copies inside VRAM.
    pub(crate) vram: u64,
    /// Bytes.
    pub(crate) length: u64,
}

impl Segment {
    /// Encodes the segment for the scatter list.
    pub(crate) fn encode(&self) -> RawSegment {
        [self.other, self.vram, self.length, 0].map(u64::to_le)
    }

    /// Decodes a segment from the scatter list.
    pub(crate) fn decode(raw: &RawSegment) -> Result<Self, Unknown> {
        let [other, vram, length, r3] = raw.map(u64::from_le);
        reserved(r3)?;
        Ok(Self {
            other,
            vram,
            length,
        })
    }
}

/// A descriptor of the compute channel.
///
/// Elements are processed in ascending order, in pieces that cross no page boundary of any array;
/// all reads of a piece come before its writes. Arrays must be aligned to 4 bytes and end at or
/// below [`super::VA_END`]. Members that `op` does not use must be zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ComputeCommand {
    /// The operation.
    pub(crate) op: ComputeOp,
    /// Type of the elements.
    pub(crate) element: Element,
    /// Whether to raise the channel's vector on success too.
    pub(crate) irq: bool,
    /// Written to [`Done::fence`]. Not interpreted, but see there.
    pub(crate) fence: u64,
    /// The address space: VRAM offset of the root page table.
    pub(crate) root: u64,
    /// Virtual address of the array that is written.
    pub(crate) dst: u64,
    /// Virtual address of the first array that is read.
    pub(crate) a: u64,
    /// Virtual address of the second array that is read.
    pub(crate) b: u64,
    /// Number of elements of each array.
    pub(crate) count: u64,
    /// The scalar, or the bits of it for `f32`.
    pub(crate) scalar: u32,
}

impl ComputeCommand {
    /// Encodes the command for the ring.
    pub(crate) fn encode(&self) -> Descriptor {
        [
            join(self.op.code(), u32::from(self.irq)),
            self.fence,
            self.root,
            self.dst,
            self.a,
            self.b,
            self.count,
            join(self.scalar, self.element.code()),
        ]
        .map(u64::to_le)
    }

    /// Decodes a command from the ring.
    pub(crate) fn decode(raw: &Descriptor) -> Result<Self, Unknown> {
        let [head, fence, root, dst, a, b, count, tail] = raw.map(u64::from_le);
        Ok(Self {
            op: ComputeOp::try_from(low(head))?,
            element: Element::try_from(high(tail))?,
            irq: irq_flag(high(head))?,
            fence,
            root,
            dst,
            a,
            b,
            count,
            scalar: low(tail),
        })
    }
}

/// Returns the fence of an encoded descriptor, also of one that makes no sense otherwise.
pub(crate) fn descriptor_fence(raw: &Descriptor) -> u64 {
    let [_, fence, ..] = raw;
    u64::from_le(*fence)
}

/// The completion of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Done {
    /// The descriptor's fence. The device writes it after the other words, with one 8-byte store:
    /// when the driver sees a fence that was not in this slot before and orders its reads, the
    /// rest is valid.
    pub(crate) fence: u64,
    /// How the descriptor ended.
    pub(crate) status: Status,
    /// If it failed, where: the index of a segment for a copy command, the virtual address of the
    /// first byte of the piece that failed for a compute command. Else zero.
    pub(crate) address: u64,
    /// Segments done for a copy command; the result of [`ComputeOp::Sum`] and
    /// [`ComputeOp::Checksum`]; else zero.
    pub(crate) result: u64,
}

impl Done {
    /// Encodes the completion.
    pub(crate) fn encode(&self) -> RawDone {
        [
            self.fence,
            join(self.status.code(), 0),
            self.address,
            self.result,
        ]
        .map(u64::to_le)
    }

    /// Decodes a completion.
    pub(crate) fn decode(raw: &RawDone) -> Result<Self, Unknown> {
        let [fence, status, address, result] = raw.map(u64::from_le);
        reserved(status >> 32)?;
        Ok(Self {
            fence,
            status: Status::try_from(low(status))?,
            address,
            result,
        })
    }
}

/// An entry of the fault buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Sequence number: 1 for the first fault after the buffer was enabled, then counting up,
    /// wrapping. It lies in slot `(seq - 1) % size`, and the word it is in is written last, with
    /// one 8-byte store: the entry is there when the slot has the next expected number.
    pub(crate) seq: u32,
    /// The stalled channel.
    pub(crate) channel: u32,
    /// What was tried.
    pub(crate) access: Access,
    /// Why it failed.
    pub(crate) reason: FaultReason,
    /// The address space: VRAM offset of the root page table.
    pub(crate) root: u64,
    /// The virtual address, rounded down to a page, below [`VA_END`].
    pub(crate) va: u64,
}

impl Fault {
    /// Encodes the entry.
    pub(crate) fn encode(&self) -> RawFault {
        [
            join(self.seq, self.channel),
            self.root,
            self.va,
            join(self.access.code(), self.reason.code()),
        ]
        .map(u64::to_le)
    }

    /// Decodes an entry.
    pub(crate) fn decode(raw: &RawFault) -> Result<Self, Unknown> {
        let [head, root, va, kind] = raw.map(u64::from_le);
        reserved(va & !(VA_END - PAGE_SIZE))?;
        Ok(Self {
            seq: low(head),
            channel: high(head),
            access: Access::try_from(low(kind))?,
            reason: FaultReason::try_from(high(kind))?,
            root,
            va,
        })
    }
}
