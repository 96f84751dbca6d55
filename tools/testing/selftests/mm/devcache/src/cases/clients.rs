// SPDX-License-Identifier: GPL-2.0
//! Programs that share a GPU: what one of them does to itself is none of the others' business.

use crate::case::Case;
use crate::case::Ctx;
use crate::check::refused;
use crate::check::same;
use crate::knobs::Knob;
use crate::knobs::Knobs;
use crate::resident::Resident;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::cgroup::Cgroup;
use devcache_selftests::gpu::Direction;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::gpu::Work;
use devcache_selftests::map::Map;
use devcache_selftests::model::add_u32;
use devcache_selftests::stats::Counters;
use devcache_selftests::sys;
use devcache_selftests::sys::in_child;
use devcache_selftests::sys::start_child;
use devcache_selftests::PAGE;
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::sys::wait::WaitStatus;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

pub(crate) const CASES: &[Case] = &[
    Case::disk("client_waits_for_frozen", waits_for_frozen),
    Case::once("client_hangs", hangs),
    Case::once("clients_take_all_channels", take_all_channels),
    Case::disk("gpu_fault_is_charged", fault_is_charged),
    Case::once("client_statistics", statistics),
];

/// How long a job of somebody who is not concerned may take: less than the driver needs to notice a hang.
const SOON: Duration = Duration::from_secs(3);

/// Jobs of somebody else, on memory that the GPU has to fault for, are done soon.
fn others_go_on() -> Result<()> {
    let gpu = Gpu::open()?;
    for _ in 0..3 {
        let map = Map::anonymous(4 * PAGE)?;
        let ended = gpu.wait(gpu.submit(Work::add(&map, 1))?, SOON);
        let ended = ended.context("a job of another program")?;
        same("status of another's job", ended.status, 0)?;
        same("memory of another", map.read(0..4), vec![1, 0, 0, 0])?;
    }
    Ok(())
}

/// A program whose job waits for a page of a frozen file system: how it ends.
fn stuck(map: &Map, begun: &Map) -> Result<()> {
    let gpu = Gpu::open()?;
    let job = gpu.submit(Work::add(map, 1))?;
    let early = gpu.wait(job, Duration::from_millis(300));
    refused("the wait while frozen", early, Errno::ETIME)?;
    begun.cell(0).fetch_add(1, Ordering::Relaxed);
    let ended = gpu.wait(job, Duration::from_secs(30))?;
    same("status of the job that waits", ended.status, 0)
}

/// A program waits for a page of a frozen file system: others do not. If it is killed instead, it is gone
/// at once.
fn waits_for_frozen(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 4)?;
    let begun = Map::shared_memory(PAGE)?;
    file.on_device(0..4)?;

    ctx.mount.freeze()?;
    let result = (|| {
        let waits = start_child(|| stuck(&file.map, &begun))?;
        let leaves = start_child(|| stuck(&file.map, &begun))?;
        let deadline = Instant::now() + 3 * SOON;
        while begun.cell(0).load(Ordering::Relaxed) < 2 {
            ensure!(Instant::now() < deadline, "the jobs do not wait");
            thread::sleep(Duration::from_millis(10));
        }
        others_go_on()?;
        let start = Instant::now();
        kill(leaves, Signal::SIGKILL)?;
        waitpid(leaves, None)?;
        let took = start.elapsed();
        ensure!(took < SOON, "killing took {took:?}");
        Ok(waits)
    })();
    ctx.mount.thaw()?;

    let ended = waitpid(result?, None)?;
    ensure!(
        matches!(ended, WaitStatus::Exited(_, 0)),
        "the program that waited ended with {ended:?}"
    );
    add_u32(&mut file.want, 1);
    file.is_right()
}

/// A program's channel hangs in a job, and is reset after a while: others do not notice.
fn hangs(ctx: &Ctx) -> Result<()> {
    let map = Map::anonymous(PAGE)?;
    let knobs = Knobs::new()?;
    knobs.set(Knob::HangCompute, 1)?;
    let job = ctx.gpu()?.submit(Work::add(&map, 1))?;
    knobs.wait_for(Knob::HangCompute)?;

    others_go_on()?;
    let early = ctx.gpu()?.wait(job, Duration::ZERO);
    refused("the job that hangs", early, Errno::ETIME)?;
    let ended = ctx.gpu()?.wait(job, Duration::from_secs(30))?;
    same("status of the job that hung", ended.status, -libc::EIO)?;
    others_go_on()
}

/// Each program has a channel as long as there are any. The last one does not take from the others.
fn take_all_channels(_ctx: &Ctx) -> Result<()> {
    const MANY: usize = 1000;
    let mut gpus = Vec::new();
    let last = loop {
        ensure!(gpus.len() < MANY, "there is no end of channels");
        let gpu = Gpu::open_detached()?;
        match gpu.attach() {
            Ok(_) => gpus.push(gpu),
            Err(error) => break (gpu, error),
        }
    };
    same("the last attachment", last.1, Errno::ENOSPC)?;
    println!("{} channels", gpus.len());

    let maps = gpus.iter().map(|_| Map::anonymous(PAGE));
    let maps = maps.collect::<Result<Vec<_>, _>>()?;
    let mut jobs = Vec::new();
    for (gpu, map) in gpus.iter().zip(&maps) {
        jobs.push(gpu.submit(Work::add(map, 1))?);
    }
    for ((gpu, map), job) in gpus.iter().zip(&maps).zip(jobs) {
        let ended = gpu.wait(job, Duration::from_secs(20))?;
        same("status", ended.status, 0)?;
        same("memory", map.read(0..4), vec![1, 0, 0, 0])?;
    }
    gpus.pop();
    last.0.attach()?;
    last.0.compute(Work::add(&maps[0], 1))?;
    Ok(())
}

/// What the GPU has read from disk is charged to the program that made it.
fn fault_is_charged(ctx: &Ctx) -> Result<()> {
    const PAGES: usize = 2048;
    let file = ctx.file("cold")?;
    file.write_all_at(&[7; PAGES * PAGE], 0)?;
    file.sync_all()?;
    sys::drop_caches()?;

    in_child(|| {
        let group = Cgroup::enter(256 << 20)?;
        let map = Map::shared(&file, PAGES * PAGE)?;
        let gpu = Gpu::open()?;
        let before = group.current()?;
        gpu.compute(Work::Sum {
            src: map.addr(),
            count: PAGES * PAGE / 4,
        })?;
        let rise = group.current()?.saturating_sub(before);
        let size = (PAGES * PAGE) as u64;
        ensure!(
            rise >= size * 9 / 10,
            "{rise} bytes were charged for {size} that the GPU has read"
        );
        Ok(())
    })
}

/// What is counted for a client is what was done for it, and a part of the totals.
fn statistics(_: &Ctx) -> Result<()> {
    const PAGES: u64 = 4;
    let (busy, idle) = (Gpu::open()?, Gpu::open()?);
    let map = Map::anonymous(PAGES as usize * PAGE)?;
    map.touch_write(0..map.pages())?;

    let before = Counters::gpu(&busy)?;
    busy.migrate(&map, 0..map.pages(), Direction::ToVram)?;
    busy.compute(Work::add(&map, 1))?;
    let (after, client) = (Counters::gpu(&busy)?, Counters::client(&busy)?);
    for (name, want) in [
        ("pages-in", PAGES),
        ("gpu-faults", 1),
        ("pages-mapped", PAGES),
        ("jobs", 1),
    ] {
        let key = format!("vsvm-{name}");
        same(&key, client.get(&key)?, want)?;
        same(&key, Counters::client(&idle)?.get(&key)?, 0)?;
        let rise = after.get(name)? - before.get(name)?;
        ensure!(rise >= want, "{name} of the device rose by {rise}");
    }
    Ok(())
}
