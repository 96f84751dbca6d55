// SPDX-License-Identifier: GPL-2.0

//! Rings, completions, interrupts and the error state.

use std::time::{Duration, Instant};

use crate::hw::*;
use crate::rig::*;

const CHANNEL: usize = channel::base(CHANNEL_COPY);

fn fence(value: u64, irq: bool) -> Descriptor {
    let command = CopyCommand {
        op: CopyOp::ToVram,
        irq,
        fence: value,
        list: 0,
        segments: 0,
        pattern: 0,
    };
    command.encode()
}

/// A descriptor that makes no sense.
const BAD: Descriptor = [0, 77, 0, 0, 0, 0, 0, 0];

#[test]
fn the_ring_wraps() {
    let mut rig = Rig::new();
    for number in 0..SLOTS * 3 {
        let value = u64::from(number) + 1;
        assert_eq!(rig.run(CHANNEL_COPY, &fence(value, false)).fence, value);
    }
    until(|| rig.read32(CHANNEL + channel::GET) == SLOTS * 3);
    assert_eq!(rig.read64(reg::STAT_COMMANDS), u64::from(SLOTS) * 3);
}

#[test]
fn interrupts_only_when_asked_for_or_failed() {
    let mut rig = Rig::new();
    let vector = VECTOR_COPY as usize;
    rig.run(CHANNEL_COPY, &fence(1, false));
    rig.run(CHANNEL_COPY, &fence(2, true));
    rig.events[vector].wait();
    assert_eq!(rig.events[vector].take(), 0);
    // The address of the list is out of reach.
    let mut command = CopyCommand::decode(&fence(3, false)).unwrap();
    command.segments = 1;
    assert_eq!(
        rig.run(CHANNEL_COPY, &command.encode()).status,
        Status::BusError
    );
    rig.events[vector].wait();
    assert_eq!(rig.events[VECTOR_COMPUTE as usize].take(), 0);
    assert_eq!(rig.events[VECTOR_FAULT as usize].take(), 0);
}

#[test]
fn the_compute_channel_has_its_own_vector() {
    let mut rig = Rig::new();
    let mut command = super::compute::command(ComputeOp::Fill);
    command.irq = true;
    rig.run(CHANNEL_COMPUTE, &command.encode());
    rig.events[VECTOR_COMPUTE as usize].wait();
    assert_eq!(rig.events[VECTOR_COPY as usize].take(), 0);
}

#[test]
fn the_error_state_stops_the_channel_until_cleared() {
    let mut rig = Rig::new();
    let done = rig.run(CHANNEL_COPY, &BAD);
    assert_eq!((done.fence, done.status), (77, Status::BadCommand));
    rig.wait_status(CHANNEL_COPY, channel::STATUS_ERROR);
    rig.events[VECTOR_COPY as usize].wait();
    let next = rig.submit(CHANNEL_COPY, &fence(78, false));
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(rig.poll(CHANNEL_COPY, next), None);
    assert_eq!(rig.read32(CHANNEL + channel::GET), 1);
    rig.write32(CHANNEL + channel::ERROR, 0);
    assert_eq!(rig.wait(CHANNEL_COPY, next).fence, 78);
    rig.wait_status(CHANNEL_COPY, 0);
    // The other channel never noticed.
    assert_eq!(rig.error(CHANNEL_COMPUTE), 0);
}

#[test]
fn a_doorbell_beyond_the_ring_is_an_error() {
    let mut rig = Rig::new();
    rig.write32(CHANNEL + channel::PUT, SLOTS + 1);
    assert_eq!(rig.error(CHANNEL_COPY), ChannelError::BadPut.code());
    assert_eq!(rig.read32(CHANNEL + channel::PUT), 0);
    rig.write32(CHANNEL + channel::ERROR, 0);
    rig.write32(CHANNEL + channel::PUT, u32::MAX);
    assert_eq!(rig.error(CHANNEL_COPY), ChannelError::BadPut.code());
    rig.write32(CHANNEL + channel::ERROR, 0);
    assert_eq!(rig.run(CHANNEL_COPY, &fence(1, false)).fence, 1);
}

#[test]
fn an_unfit_ring_is_not_enabled() {
    let mut rig = Rig::new();
    rig.write32(CHANNEL + channel::CTRL, 0);
    let fit = (RAM, RAM, SLOTS);
    for (ring, done, size) in [
        (RAM + 32, RAM, SLOTS),
        (RAM, RAM + 8, SLOTS),
        (RAM, RAM, 0),
        (RAM, RAM, 12),
        (RAM, RAM, RING_MAX * 2),
        (u64::MAX - 63, RAM, SLOTS),
        (RAM, u64::MAX - 31, SLOTS),
        fit,
    ] {
        rig.write64(CHANNEL + channel::RING, ring);
        rig.write64(CHANNEL + channel::DONE, done);
        rig.write32(CHANNEL + channel::SIZE, size);
        rig.write32(CHANNEL + channel::CTRL, channel::CTRL_ENABLE);
        let good = (ring, done, size) == fit;
        let expected = if good {
            ChannelError::None
        } else {
            ChannelError::BadSetup
        };
        assert_eq!(rig.error(CHANNEL_COPY), expected.code());
        assert_eq!(rig.read32(CHANNEL + channel::CTRL), u32::from(good));
    }
}

#[test]
fn a_ring_out_of_reach_is_read_again_after_the_error() {
    let mut rig = Rig::new();
    rig.device.gpu().bus.set_master(false);
    let job = rig.submit(CHANNEL_COPY, &fence(1, false));
    rig.wait_status(CHANNEL_COPY, channel::STATUS_ERROR);
    assert_eq!(rig.error(CHANNEL_COPY), ChannelError::RingRead.code());
    assert_eq!(rig.read32(CHANNEL + channel::GET), 0);
    rig.device.gpu().bus.set_master(true);
    rig.write32(CHANNEL + channel::ERROR, 0);
    assert_eq!(rig.wait(CHANNEL_COPY, job).fence, 1);
}

#[test]
fn a_completion_out_of_reach_is_an_error() {
    let mut rig = Rig::new();
    rig.write32(CHANNEL + channel::CTRL, 0);
    rig.write64(CHANNEL + channel::DONE, RAM + RAM_SIZE);
    rig.write32(CHANNEL + channel::CTRL, channel::CTRL_ENABLE);
    rig.submit(CHANNEL_COPY, &fence(1, false));
    rig.wait_status(CHANNEL_COPY, channel::STATUS_ERROR);
    assert_eq!(rig.error(CHANNEL_COPY), ChannelError::DoneWrite.code());
    assert_eq!(rig.read32(CHANNEL + channel::GET), 1);
}

#[test]
fn doorbells_of_a_disabled_channel_are_ignored() {
    let mut rig = Rig::new();
    rig.write32(CHANNEL + channel::CTRL, 0);
    rig.write32(CHANNEL + channel::PUT, 1);
    assert_eq!(rig.read32(CHANNEL + channel::PUT), 0);
    assert_eq!(rig.error(CHANNEL_COPY), 0);
    rig.wait_status(CHANNEL_COPY, 0);
}

#[test]
fn an_abandoned_descriptor_leaves_no_trace_in_the_next_life() {
    let mut rig = Rig::new();
    for delay in (0..100).cycle().take(3000) {
        rig.submit(CHANNEL_COPY, &BAD);
        let start = Instant::now();
        until(|| start.elapsed() >= Duration::from_micros(delay));
        rig.write32(CHANNEL + channel::CTRL, 0);
        // Sooner than the driver should, so that the old descriptor may still be under way.
        rig.enable(CHANNEL_COPY);
        rig.wait_status(CHANNEL_COPY, 0);
        assert_eq!(rig.read32(CHANNEL + channel::GET), 0);
        // Lest they fill up.
        rig.events[VECTOR_COPY as usize].take();
    }
}
