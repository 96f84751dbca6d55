// SPDX-License-Identifier: GPL-2.0
//! A device that answers late, wrongly or not at all: nothing may wait for ever, and nothing is lost that
//! the device still has.

use crate::case::Case;
use crate::case::Ctx;
use crate::cases::errors::loses;
use crate::check::same;
use crate::knobs::one_in;
use crate::knobs::Knob;
use crate::knobs::Knobs;
use crate::knobs::ALWAYS;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::gpu::Work;
use devcache_selftests::map::Map;
use devcache_selftests::PAGE;
use std::fs;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

pub(crate) const CASES: &[Case] = &[
    Case::every("interrupts_lost", |ctx| {
        works_with(ctx, &[(Knob::LostIrq, ALWAYS)])
    }),
    Case::every("interrupts_wild", |ctx| {
        works_with(
            ctx,
            &[(Knob::LostIrq, one_in(3)), (Knob::SpuriousIrq, one_in(3))],
        )
    }),
    Case::every("fault_entries_garbage", |ctx| {
        works_with(ctx, &[(Knob::CorruptFault, 3)])
    }),
    Case::every("slow_device", |ctx| {
        works_with(ctx, &[(Knob::Latency, 20_000)])
    }),
    Case::every("copy_channel_hangs", copy_hangs).limit(120),
    Case::once("compute_channel_hangs", compute_hangs),
    Case::once("close_while_hanging", close_while_hanging),
    Case::every("reset_function", reset_function),
    Case::once("reset_against_unmap", reset_against_unmap),
];

const PAGES: usize = 8;

/// Everything works although the device misbehaves.
fn works_with(ctx: &Ctx, settings: &[(Knob, u32)]) -> Result<()> {
    let mut file = Resident::dirty(ctx, PAGES)?;
    let knobs = Knobs::new()?;
    for (knob, value) in settings {
        knobs.set(*knob, *value)?;
    }

    loses(0, || {
        file.map_is_right()?;
        file.send(0..PAGES, Touch::Write)?;
        // Each job faults, for its file is new to this GPU.
        for value in 1..4 {
            let gpu = Gpu::open()?;
            let ended = gpu.run(Work::Add {
                dst: file.map.addr(),
                count: PAGES * PAGE / 4,
                value,
            })?;
            same("status of a job", ended.status, 0)?;
            devcache_selftests::model::add_u32(&mut file.want, value);
        }
        file.is_right()?;
        file.file.sync_all()?;
        Ok(())
    })?;
    if settings.iter().any(|(knob, _)| *knob == Knob::CorruptFault) {
        knobs.is_used_up(Knob::CorruptFault)?;
    }
    Ok(())
}

/// The copy channel hangs, is restarted, and nothing is lost.
fn copy_hangs(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, PAGES)?;
    let knobs = Knobs::new()?;
    knobs.set(Knob::HangCopy, 1)?;

    loses(0, || file.is_right())?;
    knobs.is_used_up(Knob::HangCopy)?;
    file.send(0..PAGES, Touch::Write)?;
    file.on_device(0..PAGES)?;
    file.is_right()
}

/// Adds one to the elements of a page.
fn add_one(map: &Map) -> Work {
    Work::Add {
        dst: map.addr(),
        count: PAGE / 4,
        value: 1,
    }
}

/// The compute channel hangs in a job: that job fails, the one behind it does not, and no page is lost.
fn compute_hangs(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, PAGES)?;
    let map = Map::anonymous(PAGE)?;
    let gpu = ctx.gpu()?;
    let knobs = Knobs::new()?;
    knobs.set(Knob::HangCompute, 1)?;

    let jobs = [gpu.submit(add_one(&map))?, gpu.submit(add_one(&map))?];
    let mut status = Vec::new();
    for job in jobs {
        status.push(gpu.wait(job, Duration::from_secs(30))?.status);
    }
    same("how the jobs ended", status, vec![-libc::EIO, 0])?;
    same("the memory", map.read(0..4), vec![1, 0, 0, 0])?;
    knobs.is_used_up(Knob::HangCompute)?;
    loses(0, || file.is_right())
}

/// A program goes away while the engine hangs in a job of its own: that takes no time.
fn close_while_hanging(ctx: &Ctx) -> Result<()> {
    let map = Map::anonymous(PAGE)?;
    let gpu = Gpu::open()?;
    let knobs = Knobs::new()?;
    knobs.set(Knob::HangCompute, 1)?;
    gpu.submit(add_one(&map))?;
    knobs.wait_for(Knob::HangCompute)?;

    let start = Instant::now();
    drop(gpu);
    let took = start.elapsed();
    ensure!(took < Duration::from_secs(3), "closing took {took:?}");
    ctx.gpu()?.compute(add_one(&map))?;
    same("the memory", map.read(0..4), vec![1, 0, 0, 0])
}

/// Somebody resets the function. VRAM keeps what it has, so nothing is lost, and no job fails that was not
/// being executed.
fn reset_function(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, PAGES)?;
    let map = Map::anonymous(PAGE)?;
    let gpu = ctx.gpu()?;
    gpu.compute(add_one(&map))?;
    let knobs = Knobs::new()?;

    for _ in 0..3 {
        file.send(0..PAGES, Touch::Write)?;
        fs::write(knobs.device.join("reset"), "1").context("reset the function")?;
        loses(0, || file.is_right())?;
        // At once, also where the GPU has to fault.
        let fresh = Map::anonymous(PAGE)?;
        gpu.compute(add_one(&fresh))?;
        let before = map.cell(0).load(Ordering::Relaxed);
        gpu.compute(add_one(&map))?;
        let words = [&fresh, &map].map(|map| map.cell(0).load(Ordering::Relaxed));
        same("what the GPU computed", words, [1, before + 1])?;
        file.send(0..PAGES, Touch::Write)?;
        file.gpu_add(0..PAGES, 1)?;
    }
    file.is_right()
}

/// A page that the GPU can reach is replaced while somebody resets the function, which does not listen
/// then: the GPU has the new one afterwards.
fn reset_against_unmap(ctx: &Ctx) -> Result<()> {
    let gpu = ctx.gpu()?;
    let knobs = Knobs::new()?;
    let reset = knobs.device.join("reset");
    let mut map = Map::anonymous(PAGE)?;
    // It takes 100 ms or more.
    for round in 0..10 {
        gpu.compute(add_one(&map))?;
        let new = Map::anonymous(PAGE)?;
        new.cell(0).store(1000 * round, Ordering::Relaxed);
        map = thread::scope(|scope| {
            let resets = scope.spawn(|| fs::write(&reset, "1"));
            thread::sleep(Duration::from_millis(10) * round);
            let map = new.moved_to(map)?;
            resets
                .join()
                .expect("does not panic")
                .context("reset the function")?;
            anyhow::Ok(map)
        })?;
        gpu.compute(add_one(&map))?;
        let word = map.cell(0).load(Ordering::Relaxed);
        same("what the GPU computed", word, 1000 * round + 1)?;
    }
    Ok(())
}
