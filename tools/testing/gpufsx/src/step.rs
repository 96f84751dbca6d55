// SPDX-License-Identifier: GPL-2.0
//! What a sequence is made of: steps, each something that is done to the file and a way to look at it
//! afterwards.
//!
//! A step does not know how large the file is when its turn comes: its numbers are taken modulo what
//! is possible then ([`Span::within`]). So a sequence makes sense whatever is left out of it, which is
//! how a failing one is made short.

use proptest::collection::vec;
use proptest::prelude::*;
use serde::Deserialize;
use serde::Serialize;
use std::ops::Range;

/// The file is never longer: small enough for steps to meet, large enough for some pages to be on the
/// device while others are not. In bytes.
pub(crate) const MAX: usize = 64 * devcache_selftests::PAGE;

/// Part of the file, before its size is known.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Span {
    at: usize,
    len: usize,
}

impl Span {
    #[cfg(test)]
    pub(crate) fn new(at: usize, len: usize) -> Self {
        Span { at, len }
    }

    /// The part of the first `size` bytes that this is, from and to multiples of `unit`. Empty only if
    /// there is not one unit.
    pub(crate) fn within(self, size: usize, unit: usize) -> Range<usize> {
        let units = size / unit;
        if units == 0 {
            return 0..0;
        }
        let at = self.at / unit % units;
        let len = 1 + self.len / unit % (units - at);
        at * unit..(at + len) * unit
    }

    fn any(size: usize) -> impl Strategy<Value = Span> {
        let len = prop_oneof![2 => 1..64_usize, 2 => 1..3 * 4096_usize, 1 => 1..size];
        (0..size, len).prop_map(|(at, len)| Span { at, len })
    }
}

/// Something that goes wrong from then on, or no longer does.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Fault {
    /// So many copies by the GPU fail, beginning with the next.
    CopyError(u32),
    /// So many copies to the GPU store what cannot be read again.
    Poison(u32),
    /// The GPU is no longer on the bus.
    Vanish,
    /// The file system has no free space.
    Fill,
    /// The disk has errors: all requests fail, or only writes.
    Disk { reads: bool },
    /// Of the allocations that the next operation makes, this one fails.
    Starve(u32),
    /// Nothing does any more.
    Off,
}

/// Something that is done to the file. What is written follows from `seed`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Op {
    /// pwrite(2), also behind the end
    Write { span: Span, seed: u64 },
    /// The same with O_DIRECT.
    DirectWrite { span: Span, seed: u64 },
    /// A store to the mapping.
    MapWrite { span: Span, seed: u64 },
    /// A store by a child.
    ForkWrite { span: Span, seed: u64 },
    /// A private mapping is read and written to, by the GPU or by the CPU; the file stays as it is.
    PrivateWrite { span: Span, seed: u64, gpu: bool },
    /// What was stored to a private mapping moves to the GPU with the rest of the file, before and after
    /// a fork, and the GPU adds to it; the child has what was stored.
    PrivateFork { span: Span, seed: u64, value: u32 },
    /// pread(2)
    Read(Span),
    /// The same with O_DIRECT.
    DirectRead(Span),
    /// A load from the mapping.
    MapRead(Span),
    /// A buffered read by io_uring.
    RingRead(Span),
    /// ftruncate(2) to this size.
    Truncate(usize),
    /// fallocate(2): FALLOC_FL_PUNCH_HOLE
    Punch(Span),
    /// FALLOC_FL_ZERO_RANGE, also behind the end
    Zero(Span),
    /// fallocate(2): blocks, also behind the end, that nothing was written to
    Preallocate(Span),
    /// What is written from now on is compressed, or not.
    Compress(bool),
    /// FALLOC_FL_COLLAPSE_RANGE
    Collapse(Span),
    /// FALLOC_FL_INSERT_RANGE
    Insert(Span),
    /// fsync(2)
    Fsync,
    /// msync(2)
    Msync,
    /// Clean page cache is dropped, and shrinkers run.
    DropCaches,
    /// Only shrinkers.
    Shrink,
    /// posix_fadvise(2): POSIX_FADV_DONTNEED
    Forget(Span),
    /// The kernel is made to find as much memory in what the process uses.
    Reclaim(Span),
    /// madvise(2): MADV_PAGEOUT
    PageOut(Span),
    /// Everything is closed, and the file system unmounted and mounted.
    Remount,
    /// Pages move to the GPU, after a load or a store.
    Send { span: Span, write: bool },
    /// Pages move to the GPU by way of a mapping that is only for reading, after a load by way of both.
    SendReadOnly(Span),
    /// Pages move back.
    Recall(Span),
    /// The GPU stores one value everywhere.
    GpuFill { span: Span, value: u32 },
    /// The GPU adds to what is there.
    GpuAdd { span: Span, value: u32 },
    /// The GPU copies from one part to another.
    GpuCopy { from: Span, to: Span },
    /// The GPU's checksum.
    GpuRead(Span),
    /// Pages move to the device of hmm_dmirror.
    MirrorSend(Span),
    /// Pages move back from it.
    MirrorRecall(Span),
    /// It reads.
    MirrorRead(Span),
    /// It writes.
    MirrorWrite { span: Span, seed: u64 },
    /// Not to the file: see [`Fault`].
    Fault(Fault),
}

/// How the whole file is looked at.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Look {
    /// Only at its size: what is in it stays where it is.
    Size,
    /// By the GPU, wherever the pages are.
    Gpu,
    /// By read(2), which brings it back.
    Read,
    /// By loads, which bring it back.
    Map,
}

/// An operation, whether others use the file meanwhile ([`crate::crowd`]), and how it is looked at
/// afterwards.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) op: Op,
    pub(crate) crowd: bool,
    pub(crate) look: Look,
}

fn op(size: usize) -> impl Strategy<Value = Op> {
    let span = || Span::any(size);
    let seeded = || (span(), any::<u64>());
    let valued = || (span(), any::<u32>());
    prop_oneof![
        24 => seeded().prop_map(|(span, seed)| Op::Write { span, seed }),
        12 => seeded().prop_map(|(span, seed)| Op::DirectWrite { span, seed }),
        20 => seeded().prop_map(|(span, seed)| Op::MapWrite { span, seed }),
        4 => seeded().prop_map(|(span, seed)| Op::ForkWrite { span, seed }),
        8 => (seeded(), any::<bool>())
            .prop_map(|((span, seed), gpu)| Op::PrivateWrite { span, seed, gpu }),
        2 => (seeded(), any::<u32>())
            .prop_map(|((span, seed), value)| Op::PrivateFork { span, seed, value }),
        16 => span().prop_map(Op::Read),
        8 => span().prop_map(Op::DirectRead),
        16 => span().prop_map(Op::MapRead),
        8 => span().prop_map(Op::RingRead),
        16 => (0..=size).prop_map(Op::Truncate),
        8 => span().prop_map(Op::Punch),
        8 => span().prop_map(Op::Zero),
        4 => span().prop_map(Op::Preallocate),
        2 => any::<bool>().prop_map(Op::Compress),
        4 => span().prop_map(Op::Collapse),
        4 => span().prop_map(Op::Insert),
        8 => Just(Op::Fsync),
        8 => Just(Op::Msync),
        8 => span().prop_map(Op::Forget),
        8 => span().prop_map(Op::PageOut),
        8 => Just(Op::Shrink),
        // Each of these takes as long as a hundred others. There is a remount after each sequence.
        1 => prop_oneof![3 => Just(Op::DropCaches), 1 => span().prop_map(Op::Reclaim)],
        2 => Just(Op::Remount),
        48 => (span(), any::<bool>()).prop_map(|(span, write)| Op::Send { span, write }),
        12 => span().prop_map(Op::SendReadOnly),
        12 => span().prop_map(Op::Recall),
        16 => valued().prop_map(|(span, value)| Op::GpuFill { span, value }),
        24 => valued().prop_map(|(span, value)| Op::GpuAdd { span, value }),
        12 => (span(), span()).prop_map(|(from, to)| Op::GpuCopy { from, to }),
        16 => span().prop_map(Op::GpuRead),
        16 => span().prop_map(Op::MirrorSend),
        8 => span().prop_map(Op::MirrorRecall),
        8 => span().prop_map(Op::MirrorRead),
        12 => seeded().prop_map(|(span, seed)| Op::MirrorWrite { span, seed }),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        6 => (1..8_u32).prop_map(Fault::CopyError),
        4 => (1..8_u32).prop_map(Fault::Poison),
        2 => Just(Fault::Vanish),
        3 => Just(Fault::Fill),
        5 => any::<bool>().prop_map(|reads| Fault::Disk { reads }),
        12 => prop_oneof![1..4_u32, 1..40_u32].prop_map(Fault::Starve),
        6 => Just(Fault::Off),
    ]
}

/// An operation, or a fault. What a child meets it could tell only as text, so it is met here.
fn op_or_fault(size: usize) -> impl Strategy<Value = Op> {
    let op = op(size).prop_map(|op| match op {
        Op::ForkWrite { span, seed } => Op::MapWrite { span, seed },
        Op::PrivateFork { span, seed, .. } => Op::PrivateWrite {
            span,
            seed,
            gpu: true,
        },
        op => op,
    });
    prop_oneof![
        8 => op,
        1 => fault().prop_map(Op::Fault),
    ]
}

/// Sequences of up to `len` steps on a file of about `size` bytes, with faults or without.
pub(crate) fn sequences(len: usize, size: usize, faults: bool) -> BoxedStrategy<Vec<Step>> {
    let look = prop_oneof![
        8 => Just(Look::Size),
        6 => Just(Look::Gpu),
        1 => Just(Look::Read),
        1 => Just(Look::Map),
    ];
    let op = match faults {
        true => op_or_fault(size).boxed(),
        false => op(size).boxed(),
    };
    let step = (op, 0..100, look).prop_map(move |(op, chance, look)| {
        // What drops pages has most to fear from others.
        let crowd = match op {
            _ if faults => false,
            Op::DirectWrite { .. } | Op::Punch(_) | Op::Zero(_) => chance < 25,
            Op::Truncate(_) => chance < 15,
            _ => chance < 4,
        };
        Step { op, crowd, look }
    });
    vec(step, 1..=len).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_stay_inside() {
        let span = Span {
            at: 5000,
            len: 9000,
        };
        assert_eq!(span.within(0, 1), 0..0);
        assert_eq!(span.within(3, 4), 0..0);
        assert_eq!(span.within(MAX, 1), 5000..14001);
        assert_eq!(span.within(MAX, 4096), 4096..16384);
        assert_eq!(span.within(6000, 1), 5000..5001);
        assert_eq!(span.within(4097, 4096), 0..4096);
    }

    #[test]
    fn a_step_survives_the_script() {
        let step = Step {
            op: Op::Write {
                span: Span { at: 1, len: 2 },
                seed: u64::MAX,
            },
            crowd: true,
            look: Look::Gpu,
        };
        let text = serde_json::to_string(&step).unwrap();
        let again: Step = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&again).unwrap(), text);
    }
}
