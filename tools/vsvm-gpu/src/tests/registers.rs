// SPDX-License-Identifier: GPL-2.0

//! BAR 0: registers, odd accesses, the instance window and reset.

use proptest::prelude::*;

use crate::hw::*;
use crate::rig::*;

const WINDOW: u64 = WINDOW_OFFSET as u64;

fn read(rig: &mut Rig, offset: u64, length: usize) -> Vec<u8> {
    let mut data = vec![0x55; length];
    rig.device.read(offset, &mut data);
    data
}

#[test]
fn identity() {
    let mut rig = Rig::new();
    assert_eq!(rig.read32(reg::ID), ID_MAGIC);
    assert_eq!(read(&mut rig, reg::ID as u64, 4), b"MVSV");
    assert_eq!(rig.read32(reg::VERSION), INTERFACE_VERSION);
    assert_eq!(rig.read64(reg::VRAM_SIZE), VRAM);
    rig.write32(reg::ID, 0);
    assert_eq!(rig.read32(reg::ID), ID_MAGIC);
}

#[test]
fn odd_accesses() {
    let mut rig = Rig::new();
    rig.write64(reg::TLB_START, 0x1122_3344_5566_7788);
    let start = reg::TLB_START as u64;
    assert_eq!(read(&mut rig, start, 1), [0x88]);
    assert_eq!(read(&mut rig, start + 3, 2), [0x55, 0x44]);
    assert_eq!(read(&mut rig, start + 1, 4), [0x77, 0x66, 0x55, 0x44]);
    // Narrow writes are ignored, and so are the ragged ends of wide ones.
    rig.device.write(start, &[0xff]);
    rig.device.write(start + 2, &[0xff; 2]);
    rig.device.write(start + 1, &[0xff; 4]);
    assert_eq!(rig.read64(reg::TLB_START), 0x1122_3344_5566_7788);
    rig.write32(reg::TLB_START + 4, 0x99);
    assert_eq!(rig.read64(reg::TLB_START), 0x99_5566_7788);
    // Nothing there, and beyond the end.
    assert_eq!(rig.read32(0xff00), 0);
    assert_eq!(read(&mut rig, BAR_SIZE as u64 - 1, 2)[1], 0xff);
    assert_eq!(read(&mut rig, u64::MAX, 4), [0xff; 4]);
    rig.device.write(u64::MAX, &[0; 8]);
    rig.device.write(BAR_SIZE as u64, &[0; 8]);
}

#[test]
fn the_window_shows_vram() {
    let mut rig = Rig::new();
    rig.write32(reg::WINDOW, 2);
    rig.write64(WINDOW_OFFSET + 8, 0x0807_0605_0403_0201);
    assert_eq!(rig.get_vram(0x2_0008, 8), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(read(&mut rig, WINDOW + 11, 3), [4, 5, 6]);
    rig.device.write(WINDOW + 9, &[9, 9]);
    assert_eq!(rig.get_vram(0x2_0008, 4), [1, 9, 9, 4]);
    // The last block, and beyond VRAM.
    rig.write32(reg::WINDOW, (VRAM / WINDOW_SIZE as u64) as u32 - 1);
    rig.write64(WINDOW_OFFSET + WINDOW_SIZE - 8, 7);
    assert_eq!(rig.get_vram(VRAM - 8, 1), [7]);
    for window in [(VRAM / WINDOW_SIZE as u64) as u32, u32::MAX] {
        rig.write32(reg::WINDOW, window);
        rig.write64(WINDOW_OFFSET, 0);
        assert_eq!(rig.read64(WINDOW_OFFSET), u64::MAX);
    }
}

#[test]
fn an_aligned_word_in_the_window_is_written_at_once() {
    let mut rig = Rig::new();
    let gpu = std::sync::Arc::clone(rig.device.gpu());
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let word = gpu.vram.load::<u64>(8);
                assert!(matches!(word, Some(0 | u64::MAX)), "{word:x?}");
            }
        });
        for n in 0..300_000 {
            rig.write64(WINDOW_OFFSET + 8, if n % 2 == 0 { u64::MAX } else { 0 });
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn reset_stops_everything_and_keeps_vram() {
    let mut rig = Rig::new();
    rig.put_vram(VDATA, &[5; 16]);
    let mut fill = super::compute::command(ComputeOp::Fill);
    (fill.dst, fill.count) = (0x1000, 1);
    let job = rig.submit(CHANNEL_COMPUTE, &fill.encode());
    rig.wait_fault(1);
    rig.run(CHANNEL_COPY, &[0, 77, 0, 0, 0, 0, 0, 0]);
    rig.write64(reg::TLB_ROOT, 0x1000);
    rig.write32(reg::WINDOW, 1);
    rig.write32(reg::RESET, RESET);
    until(|| rig.read32(reg::RESET) == 0);
    for index in 0..CHANNELS {
        let base = channel::base(index);
        for offset in (0..channel::STRIDE).step_by(4) {
            assert_eq!(rig.read32(base + offset), 0, "{offset:#x}");
        }
    }
    for offset in (reg::RESET..reg::STAT_DMA_READ).step_by(4) {
        assert_eq!(rig.read32(offset), 0, "{offset:#x}");
    }
    assert_eq!(rig.poll(CHANNEL_COMPUTE, job), None);
    assert_eq!(rig.get_vram(VDATA, 16), [5; 16]);
    // Works again after being set up again.
    rig.enable(CHANNEL_COPY);
    let fence = [1, 9, 0, 0, 0, 0, 0, 0];
    assert_eq!(rig.run(CHANNEL_COPY, &fence).fence, 9);
}

const RESET: u32 = reg::RESET_ALL;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any accesses at all: no panic, no hang, and the device still works after a reset.
    #[test]
    fn survives_any_access(
        accesses in prop::collection::vec(
            (0_u64..0x2_0010, prop::collection::vec(any::<u8>(), 1..12), any::<bool>()),
            0..60,
        ),
        words in prop::collection::vec((0_usize..0x60, 0_u32..0x40), 0..60),
    ) {
        let mut rig = Rig::new();
        for (offset, data, write) in accesses {
            if write {
                rig.device.write(offset, &data);
            } else {
                read(&mut rig, offset, data.len());
            }
        }
        for (offset, value) in words {
            let block = [0, channel::base(0), channel::base(1)][offset % 3];
            rig.write32(block + offset / 3 * 4, value);
        }
        rig.write32(reg::RESET, RESET);
        until(|| rig.read32(reg::RESET) == 0);
        rig.enable(CHANNEL_COPY);
        prop_assert_eq!(rig.run(CHANNEL_COPY, &[1, 9, 0, 0, 0, 0, 0, 0]).fence, 9);
    }
}
