// SPDX-License-Identifier: GPL-2.0

//! Misbehaviour, and that it ends.

use std::time::{Duration, Instant};

use crate::hw::*;
use crate::inject::Knob;
use crate::rig::*;

const LIST: u64 = RAM + 0x2_0000;

/// Returns a command that copies one page per index between `DATA` and `VDATA`.
fn copy(rig: &Rig, op: CopyOp, pages: std::ops::Range<u64>) -> Descriptor {
    for (number, page) in (0..).zip(pages.clone()) {
        let segment = Segment {
            other: DATA + page * PAGE_SIZE,
            vram: VDATA + page * PAGE_SIZE,
            length: PAGE_SIZE,
        };
        rig.put_words(LIST + number * SEGMENT_SIZE, &segment.encode());
    }
    CopyCommand {
        op,
        irq: true,
        fence: 1,
        list: LIST,
        segments: pages.count() as u32,
        pattern: 0,
    }
    .encode()
}

fn set(rig: &Rig, knob: Knob, value: u32) {
    rig.device.gpu().inject.set(knob, value);
}

/// Executes a command on pages; returns the status and how many segments were done.
fn run(rig: &mut Rig, op: CopyOp, pages: std::ops::Range<u64>) -> (Status, u64) {
    let command = copy(rig, op, pages);
    let done = rig.run(CHANNEL_COPY, &command);
    (done.status, done.result)
}

#[test]
fn copy_errors_end() {
    let mut rig = Rig::new();
    set(&rig, Knob::CopyError, 2);
    for _ in 0..2 {
        assert_eq!(run(&mut rig, CopyOp::ToVram, 0..3), (Status::BusError, 0));
    }
    assert_eq!(run(&mut rig, CopyOp::ToVram, 0..3), (Status::Ok, 3));
}

#[test]
fn poison_stays_until_overwritten() {
    let mut rig = Rig::new();
    set(&rig, Knob::Poison, 1);
    assert_eq!(run(&mut rig, CopyOp::ToVram, 0..2), (Status::Ok, 2));
    for _ in 0..2 {
        assert_eq!(run(&mut rig, CopyOp::FromVram, 0..2), (Status::Memory, 0));
    }
    assert_eq!(run(&mut rig, CopyOp::FromVram, 1..2), (Status::Ok, 1));
    rig.set_pte(0, Pte::vram(VDATA, true));
    let sum = ComputeCommand {
        op: ComputeOp::Sum,
        element: Element::U32,
        irq: false,
        fence: 2,
        root: ROOT,
        dst: 0,
        a: 0,
        b: 0,
        count: 4,
        scalar: 0,
    };
    assert_eq!(
        rig.run(CHANNEL_COMPUTE, &sum.encode()).status,
        Status::Memory
    );
    assert_eq!(run(&mut rig, CopyOp::ToVram, 0..1), (Status::Ok, 1));
    assert_eq!(rig.run(CHANNEL_COMPUTE, &sum.encode()).status, Status::Ok);
}

#[test]
fn interrupts_get_lost_and_come_from_nowhere() {
    let mut rig = Rig::new();
    set(&rig, Knob::LostIrq, 1);
    run(&mut rig, CopyOp::ToVram, 0..1);
    set(&rig, Knob::SpuriousIrq, 1);
    run(&mut rig, CopyOp::ToVram, 0..1);
    // The first was lost; the second came twice.
    rig.events[VECTOR_COPY as usize].wait();
    rig.events[VECTOR_COPY as usize].wait();
    rig.events[VECTOR_COMPUTE as usize].wait();
    assert_eq!(rig.events[VECTOR_COPY as usize].take(), 0);
}

#[test]
fn a_channel_hangs_until_it_is_disabled() {
    let mut rig = Rig::new();
    set(&rig, Knob::HangCopy, 1);
    let command = copy(&rig, CopyOp::ToVram, 0..1);
    let number = rig.submit(CHANNEL_COPY, &command);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(rig.poll(CHANNEL_COPY, number), None);
    let base = channel::base(CHANNEL_COPY);
    assert_eq!(rig.read32(base + channel::STATUS), channel::STATUS_BUSY);
    rig.write32(base + channel::CTRL, 0);
    rig.wait_status(CHANNEL_COPY, 0);
    rig.enable(CHANNEL_COPY);
    assert_eq!(run(&mut rig, CopyOp::ToVram, 0..1), (Status::Ok, 1));
}

#[test]
fn descriptors_take_their_time() {
    let mut rig = Rig::new();
    set(&rig, Knob::Latency, 30_000);
    let start = Instant::now();
    run(&mut rig, CopyOp::ToVram, 0..1);
    assert!(start.elapsed() >= Duration::from_millis(30));
}

#[test]
fn a_fault_entry_is_garbage_and_the_next_one_is_not() {
    let mut rig = Rig::new();
    set(&rig, Knob::CorruptFault, 1);
    let fill = ComputeCommand {
        op: ComputeOp::Fill,
        element: Element::U32,
        irq: false,
        fence: 1,
        root: ROOT,
        dst: 0x5000,
        a: 0,
        b: 0,
        count: 4,
        scalar: 1,
    };
    rig.submit(CHANNEL_COMPUTE, &fill.encode());
    rig.events[VECTOR_FAULT as usize].wait();
    assert!(rig.fault_entry(1).is_err());
    rig.write32(reg::FAULT_REPLAY, 1);
    assert_eq!(rig.wait_fault(2).va, 0x5000);
}
