// SPDX-License-Identifier: GPL-2.0

//! Faults, replay, cancellation and stale translations.

use super::compute::command;
use crate::hw::*;
use crate::rig::*;

const VA: u64 = 0x5555_5555_0000;
const CHANNEL: usize = channel::base(CHANNEL_COMPUTE);

/// A command that adds 1 to the elements of `pages` pages at `VA`.
fn increment(pages: u64) -> ComputeCommand {
    ComputeCommand {
        dst: VA,
        a: VA,
        count: pages * PAGE_SIZE / 4,
        scalar: 1,
        ..command(ComputeOp::Add)
    }
}

fn page(rig: &Rig, index: u64) -> Vec<u8> {
    rig.get_vram(VDATA + index * PAGE_SIZE, PAGE_SIZE as usize)
}

fn all(value: u32) -> Vec<u8> {
    value.to_le_bytes().repeat(PAGE_SIZE as usize / 4)
}

fn fault(seq: u32, page: u64, reason: FaultReason) -> Fault {
    Fault {
        seq,
        channel: CHANNEL_COMPUTE,
        access: Access::Write,
        reason,
        root: ROOT,
        va: VA + page * PAGE_SIZE,
    }
}

#[test]
fn each_page_is_done_once() {
    let mut rig = Rig::new();
    let job = rig.submit(CHANNEL_COMPUTE, &increment(3).encode());
    for index in 0..3 {
        let seq = 2 * index as u32 + 1;
        let vector = VECTOR_FAULT as usize;
        rig.events[vector].wait();
        assert_eq!(
            rig.wait_fault(seq),
            fault(seq, index, FaultReason::NotPresent)
        );
        rig.wait_status(
            CHANNEL_COMPUTE,
            channel::STATUS_BUSY | channel::STATUS_STALLED,
        );
        // A replay in vain faults again.
        rig.write32(reg::FAULT_GET, seq);
        rig.write32(reg::FAULT_REPLAY, seq);
        assert_eq!(
            rig.wait_fault(seq + 1),
            fault(seq + 1, index, FaultReason::NotPresent)
        );
        rig.events[vector].wait();
        rig.set_pte(
            VA + index * PAGE_SIZE,
            Pte::vram(VDATA + index * PAGE_SIZE, true),
        );
        assert_eq!(rig.poll(CHANNEL_COMPUTE, job), None);
        rig.write32(reg::FAULT_GET, seq + 1);
        rig.write32(reg::FAULT_REPLAY, seq + 1);
    }
    assert_eq!(rig.wait(CHANNEL_COMPUTE, job).status, Status::Ok);
    for index in 0..3 {
        assert!(page(&rig, index) == all(1), "page {index}");
    }
    assert_eq!(rig.read32(reg::FAULT_PUT), 6);
    assert_eq!(rig.read64(reg::STAT_FAULTS), 6);
}

#[test]
fn cancel_fails_the_command_at_the_address() {
    let mut rig = Rig::new();
    rig.set_pte(VA, Pte::vram(VDATA, true));
    let mut command = increment(2);
    (command.a, command.dst, command.count) = (VA + 8, VA + 8, command.count - 2);
    let job = rig.submit(CHANNEL_COMPUTE, &command.encode());
    rig.wait_fault(1);
    // Not this one.
    rig.write32(reg::FAULT_CANCEL, 2);
    rig.write32(reg::FAULT_CANCEL, 0);
    std::thread::sleep(std::time::Duration::from_millis(5));
    assert_eq!(
        rig.read32(CHANNEL + channel::STATUS) & channel::STATUS_STALLED,
        4
    );
    assert_eq!(rig.poll(CHANNEL_COMPUTE, job), None);
    rig.write32(reg::FAULT_CANCEL, 1);
    let done = rig.wait(CHANNEL_COMPUTE, job);
    assert_eq!((done.status, done.address), (Status::Fault, VA + PAGE_SIZE));
    // What came before the fault stays done, and the channel is well.
    assert!(page(&rig, 0)[8..] == all(1)[8..]);
    rig.wait_status(CHANNEL_COMPUTE, 0);
    let mut next = increment(1);
    next.fence = 2;
    assert_eq!(rig.run(CHANNEL_COMPUTE, &next.encode()).status, Status::Ok);
}

#[test]
fn read_and_write_rights() {
    let mut rig = Rig::new();
    rig.set_pte(VA, Pte::vram(VDATA, false));
    let mut sum = command(ComputeOp::Sum);
    (sum.a, sum.count) = (VA, 1);
    assert_eq!(rig.run(CHANNEL_COMPUTE, &sum.encode()).status, Status::Ok);
    let job = rig.submit(CHANNEL_COMPUTE, &increment(1).encode());
    assert_eq!(rig.wait_fault(1), fault(1, 0, FaultReason::ReadOnly));
    // The right is granted, but the cached translation lacks it until invalidated.
    rig.set_pte(VA, Pte::vram(VDATA, true));
    rig.write32(reg::FAULT_REPLAY, 1);
    assert_eq!(rig.wait_fault(2), fault(2, 0, FaultReason::ReadOnly));
    rig.invalidate();
    rig.write32(reg::FAULT_REPLAY, 2);
    assert_eq!(rig.wait(CHANNEL_COMPUTE, job).status, Status::Ok);
    // A read that faults says so.
    sum.a = VA + PAGE_SIZE;
    rig.submit(CHANNEL_COMPUTE, &sum.encode());
    assert_eq!(rig.wait_fault(3).access, Access::Read);
}

#[test]
fn stale_translations_are_used_until_invalidated() {
    let mut rig = Rig::new();
    let far = VDATA + 8 * PAGE_SIZE;
    rig.set_pte(VA, Pte::vram(VDATA, true));
    rig.run(CHANNEL_COMPUTE, &increment(1).encode());
    rig.set_pte(VA, Pte::vram(far, true));
    rig.run(CHANNEL_COMPUTE, &increment(1).encode());
    assert!(page(&rig, 0) == all(2) && page(&rig, 8) == all(0));
    rig.write64(reg::TLB_ROOT, ROOT);
    rig.write64(reg::TLB_START, VA);
    rig.write64(reg::TLB_PAGES, 1);
    rig.write32(reg::TLB_COMMAND, reg::TLB_INVALIDATE_RANGE);
    assert_eq!(rig.read32(reg::TLB_STATUS), 0);
    rig.run(CHANNEL_COMPUTE, &increment(1).encode());
    assert!(page(&rig, 0) == all(2) && page(&rig, 8) == all(1));
}

#[test]
fn nothing_is_written_after_an_invalidation() {
    let mut rig = Rig::new();
    let pages = 64;
    let map = |rig: &mut Rig, present: bool| {
        for index in 0..pages {
            let offset = VDATA + index * PAGE_SIZE;
            let pte = if present {
                Pte::vram(offset, true)
            } else {
                Pte::NONE
            };
            rig.set_pte(VA + index * PAGE_SIZE, pte);
        }
    };
    for round in 0..20 {
        map(&mut rig, true);
        let job = rig.submit(CHANNEL_COMPUTE, &increment(pages).encode());
        for _ in 0..round * 50 {
            std::hint::spin_loop();
        }
        map(&mut rig, false);
        rig.invalidate();
        let before = rig.get_vram(VDATA, (pages * PAGE_SIZE) as usize);
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(rig.get_vram(VDATA, before.len()) == before);
        map(&mut rig, true);
        until(|| {
            let seq = rig.read32(reg::FAULT_PUT);
            rig.write32(reg::FAULT_GET, seq);
            rig.write32(reg::FAULT_REPLAY, seq);
            rig.poll(CHANNEL_COMPUTE, job).is_some()
        });
        assert_eq!(rig.wait(CHANNEL_COMPUTE, job).status, Status::Ok);
        // Stopped in the middle, still every page exactly once.
        for index in 0..pages {
            assert!(page(&rig, index) == all(round + 1), "page {index}");
        }
        rig.invalidate();
    }
}

#[test]
fn a_full_buffer_waits_for_room() {
    let mut rig = Rig::new();
    let job = rig.submit(CHANNEL_COMPUTE, &increment(1).encode());
    for seq in 1..=FAULT_SLOTS {
        rig.wait_fault(seq);
        rig.write32(reg::FAULT_REPLAY, seq);
    }
    // Stalled without an entry; a replay changes nothing about that.
    std::thread::sleep(std::time::Duration::from_millis(5));
    rig.wait_status(
        CHANNEL_COMPUTE,
        channel::STATUS_BUSY | channel::STATUS_STALLED,
    );
    assert_eq!(rig.read32(reg::FAULT_PUT), FAULT_SLOTS);
    rig.write32(reg::FAULT_GET, 1);
    assert_eq!(rig.wait_fault(FAULT_SLOTS + 1).va, VA);
    rig.write32(reg::FAULT_CANCEL, FAULT_SLOTS + 1);
    assert_eq!(rig.wait(CHANNEL_COMPUTE, job).status, Status::Fault);
}

#[test]
fn without_a_buffer_faults_are_final() {
    let mut rig = Rig::new();
    let job = rig.submit(CHANNEL_COMPUTE, &increment(1).encode());
    rig.wait_fault(1);
    // Disabling cancels, and from then on there is no waiting.
    rig.write32(reg::FAULT_CTRL, 0);
    assert_eq!(rig.wait(CHANNEL_COMPUTE, job).status, Status::Fault);
    assert_eq!(
        rig.run(CHANNEL_COMPUTE, &increment(1).encode()).status,
        Status::Fault
    );
    // An unfit buffer is not enabled; one out of reach neither reports nor waits.
    for (base, size) in [(RAM + 8, 4), (RAM, 3), (RAM, 0), (RAM, RING_MAX * 2)] {
        rig.write64(reg::FAULT_BASE, base);
        rig.write32(reg::FAULT_SIZE, size);
        rig.write32(reg::FAULT_CTRL, reg::FAULT_CTRL_ENABLE);
        assert_eq!(rig.read32(reg::FAULT_CTRL), 0);
    }
    rig.write64(reg::FAULT_BASE, RAM + RAM_SIZE);
    rig.write32(reg::FAULT_SIZE, 4);
    rig.write32(reg::FAULT_CTRL, reg::FAULT_CTRL_ENABLE);
    assert_eq!(rig.read32(reg::FAULT_CTRL), reg::FAULT_CTRL_ENABLE);
    assert_eq!(
        rig.run(CHANNEL_COMPUTE, &increment(1).encode()).status,
        Status::Fault
    );
    assert_eq!(rig.read32(reg::FAULT_PUT), 0);
}

#[test]
fn disabling_the_channel_abandons_a_stalled_command() {
    let mut rig = Rig::new();
    let job = rig.submit(CHANNEL_COMPUTE, &increment(1).encode());
    rig.wait_fault(1);
    rig.write32(CHANNEL + channel::CTRL, 0);
    rig.wait_status(CHANNEL_COMPUTE, 0);
    assert_eq!(rig.poll(CHANNEL_COMPUTE, job), None);
    // The channel can be used again at once.
    rig.set_pte(VA, Pte::vram(VDATA, true));
    rig.enable(CHANNEL_COMPUTE);
    assert_eq!(
        rig.run(CHANNEL_COMPUTE, &increment(1).encode()).status,
        Status::Ok
    );
    assert!(page(&rig, 0) == all(1));
}

#[test]
fn a_broken_table_is_reported_and_can_be_repaired() {
    let mut rig = Rig::new();
    let beyond = Pte::vram(VRAM, true);
    rig.set_pte(VA, beyond);
    let job = rig.submit(CHANNEL_COMPUTE, &increment(1).encode());
    assert_eq!(rig.wait_fault(1), fault(1, 0, FaultReason::Malformed));
    rig.set_pte(VA, Pte::vram(VDATA, true));
    rig.write32(reg::FAULT_REPLAY, 1);
    assert_eq!(rig.wait(CHANNEL_COMPUTE, job).status, Status::Ok);
}

/// A channel that is stalled, hangs or is disabled leaves the others alone.
#[test]
fn channels_work_at_the_same_time() {
    let mut rig = Rig::new();
    let other = CHANNELS - 1;
    let stalled = rig.submit(CHANNEL_COMPUTE, &increment(1).encode());
    rig.wait_fault(1);
    let fill = ComputeCommand {
        dst: VA + PAGE_SIZE,
        count: 4,
        scalar: 7,
        irq: true,
        ..command(ComputeOp::Fill)
    };
    rig.set_pte(VA + PAGE_SIZE, Pte::vram(VDATA + PAGE_SIZE, true));
    assert_eq!(rig.run(other, &fill.encode()).status, Status::Ok);
    rig.events[VECTOR_COMPUTE as usize].wait();
    assert_eq!(rig.poll(CHANNEL_COMPUTE, stalled), None);
    // A replay or cancellation of another fault is not for it.
    rig.write32(reg::FAULT_REPLAY, 2);
    rig.write32(reg::FAULT_CANCEL, 2);
    assert_eq!(rig.run(other, &fill.encode()).status, Status::Ok);
    assert_eq!(rig.read32(reg::FAULT_PUT), 1);

    rig.write32(CHANNEL + channel::CTRL, 0);
    rig.wait_status(CHANNEL_COMPUTE, 0);
    assert_eq!(rig.run(other, &fill.encode()).status, Status::Ok);
}

/// An invalidation reaches the translations of all channels.
#[test]
fn channels_forget_together() {
    let mut rig = Rig::new();
    rig.set_pte(VA, Pte::vram(VDATA, true));
    for index in CHANNEL_COMPUTE..CHANNELS {
        rig.run(index, &increment(1).encode());
    }
    rig.set_pte(VA, Pte::vram(VDATA + PAGE_SIZE, true));
    rig.run(CHANNELS - 1, &increment(1).encode());
    rig.invalidate();
    for index in CHANNEL_COMPUTE..CHANNELS {
        rig.run(index, &increment(1).encode());
    }
    assert!(page(&rig, 0) == all(COMPUTE_CHANNELS + 1));
    assert!(page(&rig, 1) == all(COMPUTE_CHANNELS));
}
