// SPDX-License-Identifier: GPL-2.0

//! The copy channel.

use proptest::prelude::*;

use crate::hw::*;
use crate::rig::*;

/// Where the tests put scatter lists.
const LIST: u64 = RAM + 0x2_0000;

/// Writes a scatter list and returns the command for it.
fn command(rig: &Rig, op: CopyOp, segments: &[(u64, u64, u64)]) -> CopyCommand {
    for (at, (other, vram, length)) in (LIST..).step_by(SEGMENT_SIZE as usize).zip(segments) {
        let segment = Segment {
            other: *other,
            vram: *vram,
            length: *length,
        };
        rig.put_words(at, &segment.encode());
    }
    CopyCommand {
        op,
        irq: false,
        fence: 1,
        list: LIST,
        segments: segments.len() as u32,
        pattern: 0,
    }
}

fn run(rig: &mut Rig, op: CopyOp, segments: &[(u64, u64, u64)]) -> Done {
    let command = command(rig, op, segments);
    rig.run(CHANNEL_COPY, &command.encode())
}

/// The outcome of a command whose segment `index` failed.
fn failed(status: Status, index: u64) -> Done {
    Done {
        fence: 1,
        status,
        address: index,
        result: index,
    }
}

fn success(segments: u64) -> Done {
    Done {
        fence: 1,
        status: Status::Ok,
        address: 0,
        result: segments,
    }
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(length)
    .collect()
}

#[test]
fn a_large_copy_there_and_back() {
    let mut rig = Rig::new();
    // More than one chunk, in one segment.
    let data = noise((crate::bus::CHUNK + 5) as usize);
    let length = data.len() as u64;
    rig.put(DATA, &data);
    let done = run(&mut rig, CopyOp::ToVram, &[(DATA, VDATA + 1, length)]);
    assert_eq!(done, success(1));
    assert!(rig.get_vram(VDATA + 1, data.len()) == data);
    rig.put(DATA, &vec![0; data.len()]);
    let done = run(&mut rig, CopyOp::FromVram, &[(DATA, VDATA + 1, length)]);
    assert_eq!(done, success(1));
    assert!(rig.get(DATA, data.len()) == data);
    assert_eq!(rig.read64(reg::STAT_DMA_READ), length);
    assert_eq!(rig.read64(reg::STAT_DMA_WRITE), length);
}

#[test]
fn inside_vram() {
    let mut rig = Rig::new();
    let data = noise(0x3000);
    rig.put_vram(VDATA, &data);
    let segments = [(VDATA, VDATA + 0x3000, 0x3000)];
    assert_eq!(run(&mut rig, CopyOp::VramToVram, &segments), success(1));
    assert!(rig.get_vram(VDATA + 0x3000, 0x3000) == data);
    // Overlap.
    let segments = [(VDATA, VDATA + 0x2fff, 0x3000)];
    let done = run(&mut rig, CopyOp::VramToVram, &segments);
    assert_eq!(done, failed(Status::BadVram, 0));
}

#[test]
fn fill() {
    let mut rig = Rig::new();
    rig.put_vram(VDATA, &[9; 0x3000]);
    let mut command = command(&rig, CopyOp::Fill, &[(0, VDATA + 4, 0x1804)]);
    command.pattern = 0x0403_0201;
    assert_eq!(rig.run(CHANNEL_COPY, &command.encode()), success(1));
    let expected: Vec<u8> = [1, 2, 3, 4].repeat(0x1804 / 4);
    assert_eq!(rig.get_vram(VDATA + 4, 0x1804), expected);
    assert_eq!(rig.get_vram(VDATA, 4), [9; 4]);
    assert_eq!(rig.get_vram(VDATA + 0x1808, 4), [9; 4]);
    for segment in [(0, VDATA + 2, 4), (0, VDATA, 6)] {
        let done = run(&mut rig, CopyOp::Fill, &[segment]);
        assert_eq!(done, failed(Status::BadVram, 0));
    }
}

#[test]
fn no_segments_is_a_fence() {
    let mut rig = Rig::new();
    assert_eq!(run(&mut rig, CopyOp::ToVram, &[]), success(0));
    assert_eq!(
        run(&mut rig, CopyOp::ToVram, &[(DATA, VDATA, 0)]),
        success(1)
    );
}

#[test]
fn the_first_bad_segment_ends_the_command() {
    let mut rig = Rig::new();
    let good = (DATA, VDATA, 0x1000);
    let bad = [
        ((DATA, VRAM - 0xfff, 0x1000), Status::BadVram),
        ((DATA, u64::MAX, 2), Status::BadVram),
        ((DATA, 0, u64::MAX), Status::BadVram),
        ((RAM - 1, VDATA, 2), Status::BusError),
        ((RAM + RAM_SIZE - 1, VDATA, 2), Status::BusError),
        ((u64::MAX, VDATA, 2), Status::BusError),
    ];
    for (segment, status) in bad {
        for op in [CopyOp::ToVram, CopyOp::FromVram] {
            let done = run(&mut rig, op, &[good, good, segment, good]);
            assert_eq!(done, failed(status, 2), "{segment:x?}");
        }
    }
    // Such errors are the command's, not the channel's.
    assert_eq!(rig.error(CHANNEL_COPY), 0);
    assert_eq!(run(&mut rig, CopyOp::ToVram, &[good]), success(1));
}

#[test]
fn dma_only_where_and_while_mapped() {
    let mut rig = Rig::new();
    let bus = &rig.device.gpu().bus;
    bus.unmap(RAM, RAM_SIZE).unwrap();
    rig.map_ram(RAM, DATA - RAM);
    let segments = [(DATA, VDATA, 0x1000)];
    let done = run(&mut rig, CopyOp::ToVram, &segments);
    assert_eq!(done, failed(Status::BusError, 0));
    // Two ranges, of which one goes away again.
    rig.map_ram(DATA, 0x800);
    rig.map_ram(DATA + 0x800, 0x800);
    assert_eq!(run(&mut rig, CopyOp::ToVram, &segments), success(1));
    rig.device.gpu().bus.unmap(DATA + 0x800, 0x800).unwrap();
    let done = run(&mut rig, CopyOp::ToVram, &segments);
    assert_eq!(done, failed(Status::BusError, 0));
    // A list that cannot be read.
    let mut command = command(&rig, CopyOp::ToVram, &segments);
    command.list = DATA + 0x800;
    let done = rig.run(CHANNEL_COPY, &command.encode());
    assert_eq!(done, failed(Status::BusError, 0));
}

#[test]
fn nonsense_is_a_bad_command() {
    let mut rig = Rig::new();
    let fence = [1, 0, 0, 0, 0, 0, 0];
    let raw = |head: u64, rest: [u64; 7]| [head, rest[0], rest[1], rest[2], rest[3], 0, 0, 0];
    let bad = [
        raw(0, fence),
        raw(99, fence),
        raw(1 | (2 << 32), fence),
        raw(1, [1, 0, 0, 1, 0, 0, 0]),
        // A list that is not aligned, a pattern that is not used.
        raw(1, [1, LIST + 4, 0, 0, 0, 0, 0]),
        raw(1, [1, LIST, 1 << 32, 0, 0, 0, 0]),
    ];
    for raw in bad {
        let done = rig.run(CHANNEL_COPY, &raw);
        assert_eq!(done, failed(Status::BadCommand, 0), "{raw:?}");
        rig.wait_status(CHANNEL_COPY, channel::STATUS_ERROR);
        assert_eq!(rig.error(CHANNEL_COPY), ChannelError::BadCommand.code());
        rig.write32(channel::base(CHANNEL_COPY) + channel::ERROR, 0);
    }
    let done = run(&mut rig, CopyOp::Fill, &[(1, VDATA, 4)]);
    assert_eq!(done, failed(Status::BadCommand, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Scatter lists against a model of plain byte copies.
    #[test]
    fn scatter_lists(
        to_vram in any::<bool>(),
        segments in prop::collection::vec((0_u64..0x3000, 0_u64..0x3000, 0_u64..0x2000), 0..20),
    ) {
        let mut rig = Rig::new();
        let mut ram = noise(0x5000);
        let mut vram = ram.iter().map(|byte| !byte).collect::<Vec<_>>();
        rig.put(DATA, &ram);
        rig.put_vram(VDATA, &vram);
        let op = if to_vram { CopyOp::ToVram } else { CopyOp::FromVram };
        for (other, here, length) in &segments {
            let [other, here, length] = [*other, *here, *length].map(|n| n as usize);
            if to_vram {
                vram[here..here + length].copy_from_slice(&ram[other..other + length]);
            } else {
                ram[other..other + length].copy_from_slice(&vram[here..here + length]);
            }
        }
        let segments: Vec<_> = segments
            .iter()
            .map(|(other, here, length)| (DATA + other, VDATA + here, *length))
            .collect();
        let done = run(&mut rig, op, &segments);
        prop_assert_eq!(done, success(segments.len() as u64));
        prop_assert!(rig.get(DATA, ram.len()) == ram);
        prop_assert!(rig.get_vram(VDATA, vram.len()) == vram);
    }
}
