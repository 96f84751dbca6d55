// SPDX-License-Identifier: GPL-2.0

//! The shared hardware file: encodings.

use proptest::prelude::*;

use crate::hw::*;

#[test]
fn layouts_do_not_move() {
    let copy = CopyCommand {
        op: CopyOp::FromVram,
        irq: true,
        fence: 7,
        list: 0x1122_3344_5566_7788,
        segments: 9,
        pattern: 3,
    };
    let words = [
        2 | (1 << 32),
        7,
        0x1122_3344_5566_7788,
        9 | (3 << 32),
        0,
        0,
        0,
        0,
    ];
    assert_eq!(copy.encode(), words);
    let compute = ComputeCommand {
        op: ComputeOp::Saxpy,
        element: Element::F32,
        irq: false,
        fence: 1,
        root: 2,
        dst: 3,
        a: 4,
        b: 5,
        count: 6,
        scalar: 7,
    };
    assert_eq!(compute.encode(), [3, 1, 2, 3, 4, 5, 6, 7 | (1 << 32)]);
    let done = Done {
        fence: 1,
        status: Status::Fault,
        address: 2,
        result: 3,
    };
    assert_eq!(done.encode(), [1, 4, 2, 3]);
    let fault = Fault {
        seq: 1,
        channel: 2,
        access: Access::Write,
        reason: FaultReason::ReadOnly,
        root: 0x3000,
        va: 0x4000,
    };
    assert_eq!(
        fault.encode(),
        [1 | (2 << 32), 0x3000, 0x4000, 2 | (2 << 32)]
    );
    let segment = Segment {
        other: 1,
        vram: 2,
        length: 3,
    };
    assert_eq!(segment.encode(), [1, 2, 3, 0]);
}

#[test]
fn page_table_entries() {
    let pte = Pte::vram(0x1234_5678, true);
    assert_eq!(pte.into_raw(), 0x1234_5003);
    assert!(pte.is_present() && pte.is_writable() && !pte.is_system());
    let pte = Pte::system(0xf_ffff_ffff_f000, false);
    assert_eq!(pte.into_raw(), 0xf_ffff_ffff_f005);
    assert!(pte.is_present() && !pte.is_writable() && pte.is_system());
    assert!(pte.is_well_formed(0) && !pte.is_well_formed(1));
    assert_eq!(Pte::table(0x2000).into_raw(), 0x2001);
    assert!(!Pte::NONE.is_present());
    assert_eq!(VA_END, 1 << 48);
    let va = (1 << 39) | (2 << 30) | (3 << 21) | (4 << 12) | 5;
    assert_eq!(
        [3, 2, 1, 0].map(|level| table_index(va, level)),
        [1, 2, 3, 4]
    );
}

#[test]
fn reserved_bits_and_unknown_codes_are_refused() {
    let copy = [1, 0, 0, 0, 0, 0, 0, 0];
    assert!(CopyCommand::decode(&copy).is_ok());
    for (word, value) in [
        (0, 0),
        (0, 5),
        (0, 1 | (2 << 32)),
        (4, 1),
        (5, 1),
        (6, 1),
        (7, 1 << 63),
    ] {
        let mut raw = copy;
        raw[word] = value;
        assert!(CopyCommand::decode(&raw).is_err(), "{raw:?}");
    }
    let compute = [1, 0, 0, 0, 0, 0, 0, 0];
    assert!(ComputeCommand::decode(&compute).is_ok());
    for (word, value) in [(0, 0), (0, 7), (0, 1 | (1 << 63)), (7, 2 << 32)] {
        let mut raw = compute;
        raw[word] = value;
        assert!(ComputeCommand::decode(&raw).is_err(), "{raw:?}");
    }
    assert!(Segment::decode(&[0, 0, 0, 1]).is_err());
    assert!(Done::decode(&[0, 6, 0, 0]).is_err());
    assert!(Done::decode(&[0, 1 << 32, 0, 0]).is_err());
    assert!(Fault::decode(&[0, 0, 0, 1]).is_err());
    let fault = [0, 0, VA_END - PAGE_SIZE, 1 | (1 << 32)];
    assert!(Fault::decode(&fault).is_ok());
    for va in [VA_END, 1, u64::MAX - PAGE_SIZE + 1] {
        let mut raw = fault;
        raw[2] = va;
        assert!(Fault::decode(&raw).is_err(), "{va:#x}");
    }
}

proptest! {
    #[test]
    fn what_decodes_encodes_to_the_same(
        op in 0_u64..8, flags in 0_u64..3, rest in any::<[u64; 6]>(), tail in 0_u64..3,
    ) {
        let [b, c, d, e, f, g] = rest;
        let raw = [op | (flags << 32), b, c, d, e, f, g, (tail << 32) | 5];
        if let Ok(command) = ComputeCommand::decode(&raw) {
            prop_assert_eq!(command.encode(), raw);
        }
        let raw = [op | (flags << 32), b, c, d, 0, 0, 0, 0];
        if let Ok(command) = CopyCommand::decode(&raw) {
            prop_assert_eq!(command.encode(), raw);
        }
        let raw = [b, c, d & (VA_END - PAGE_SIZE), op | (flags << 32)];
        if let Ok(fault) = Fault::decode(&raw) {
            prop_assert_eq!(fault.encode(), raw);
        }
        let raw = [b, op, c, d];
        if let Ok(done) = Done::decode(&raw) {
            prop_assert_eq!(done.encode(), raw);
        }
    }
}
