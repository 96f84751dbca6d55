// SPDX-License-Identifier: GPL-2.0
//! Jobs that wait for fences of others, and syncobjs that tell of their end.
//!
//! A syncobj of a pending job has no fence (`drivers/gpu/drm/vsvm/syncobj.rs` says why), so what
//! the jobs here wait for are fences of vgem, or of jobs that have ended.

use crate::case::skip;
use crate::case::Case;
use crate::case::Ctx;
use crate::cases::lifecycle::modprobe;
use crate::cases::lifecycle::wait_for_gpu;
use crate::cases::lifecycle::Unbound;
use crate::check::refused;
use crate::check::same;
use crate::knobs::Knob;
use crate::knobs::Knobs;
use crate::knobs::ALWAYS;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::gpu::JobId;
use devcache_selftests::gpu::Work;
use devcache_selftests::map::Map;
use devcache_selftests::syncobj::Fence;
use devcache_selftests::syncobj::Syncobj;
use devcache_selftests::sys::start_child;
use devcache_selftests::uapi;
use devcache_selftests::PAGE;
use nix::errno::Errno;
use nix::sys::mman::ProtFlags;
use nix::sys::signal::kill;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

pub(crate) const CASES: &[Case] = &[
    Case::once("syncobj_bad_arguments", bad_arguments),
    Case::once("syncobj_wait", waits),
    Case::once("syncobj_wait_for_failed", waits_for_failed),
    Case::once("syncobj_signal", signals),
    Case::once("syncobj_signal_hangs", signals_hangs),
    Case::once("syncobj_interrupts_lost", interrupts_lost),
    Case::once("syncobj_two_files", two_files),
    Case::once("syncobj_close", close),
    Case::once("syncobj_kill", killed),
    Case::once("syncobj_unbind", unbind).limit(120),
];

/// How long to see that something does not happen.
const WHILE: Duration = Duration::from_millis(300);
/// How long something may take that has nothing to wait for.
const SOON: Duration = Duration::from_secs(3);
/// How long a job may take.
const LONG: Duration = Duration::from_secs(20);

/// A fence that is signalled when the test says so.
fn fence() -> Result<Fence> {
    if let Some(fence) = Fence::new()? {
        return Ok(fence);
    }
    if modprobe(&["vgem"]).is_err() {
        return skip("there is no driver vgem, whose fences could be waited for");
    }
    Fence::new()?.context("vgem has no device")
}

/// A job that stores a number in the elements of a mapping.
fn fill(map: &Map, value: u32) -> Work {
    Work::Fill {
        dst: map.addr(),
        count: map.len() / 4,
        value,
    }
}

/// A job that fails with EFAULT.
const FAILS: Work = Work::Sum {
    src: PAGE,
    count: 1,
};

/// The first element of a mapping.
fn value(map: &Map) -> u32 {
    map.cell(0).load(Ordering::Relaxed)
}

/// A job has ended, with this status.
fn ended(gpu: &Gpu, job: JobId, status: i32) -> Result<()> {
    let ended = gpu.wait(job, LONG)?;
    same("status of the job", ended.status, status)?;
    same("fault address", ended.fault_addr, 0)
}

/// A job has not ended, and does not for a while.
fn is_pending(gpu: &Gpu, job: JobId) -> Result<()> {
    refused("the job", gpu.wait(job, WHILE), Errno::ETIME)
}

/// Values the driver refuses. Nothing is queued then, and no syncobj has changed.
fn bad_arguments(ctx: &Ctx) -> Result<()> {
    let gpu = ctx.gpu()?;
    let map = Map::anonymous(PAGE)?;
    let empty = Syncobj::new(gpu, false)?;
    let signalled = Syncobj::new(gpu, true)?;
    let good = [signalled.handle()];
    let one_empty = [good[0], empty.handle()];
    let (unknown, many) = ([good[0], 12345], [good[0]; 65]);

    let lists: [(_, &[u32], &[u32], _); 6] = [
        ("an empty one", &one_empty, &good, Errno::EINVAL),
        ("an unknown one to wait for", &unknown, &good, Errno::ENOENT),
        ("an unknown one to signal", &good, &unknown, Errno::ENOENT),
        ("no handle", &[0], &good, Errno::ENOENT),
        ("too many to wait for", &many, &good, Errno::EINVAL),
        ("too many to signal", &good, &many, Errno::EINVAL),
    ];
    for (what, waits, signals, error) in lists {
        refused(
            what,
            gpu.submit_with(Work::add(&map, 1), waits, signals),
            error,
        )?;
    }

    let mut ours = Work::add(&map, 1).argument();
    ours.list_syncobjs(&good, &good);
    let bad = Map::anonymous(PAGE)?;
    bad.protect(0..1, ProtFlags::PROT_NONE)?;
    let bad = bad.addr() as u64;
    for (what, mut argument, error) in [
        (
            "a list to wait for that cannot be read",
            uapi::drm_vsvm_exec {
                wait_syncobjs: bad,
                ..ours
            },
            Errno::EFAULT,
        ),
        (
            "a list to signal that cannot be read",
            uapi::drm_vsvm_exec {
                signal_syncobjs: bad,
                ..ours
            },
            Errno::EFAULT,
        ),
        (
            "a list of kernel memory",
            uapi::drm_vsvm_exec {
                wait_syncobjs: 0xffff_8880_0000_0000,
                ..ours
            },
            Errno::EFAULT,
        ),
        (
            "a list at the end of all addresses",
            uapi::drm_vsvm_exec {
                signal_syncobjs: u64::MAX,
                ..ours
            },
            Errno::EINVAL,
        ),
        (
            "an address of no list to wait for",
            uapi::drm_vsvm_exec {
                wait_count: 0,
                ..ours
            },
            Errno::EINVAL,
        ),
        (
            "an address of no list to signal",
            uapi::drm_vsvm_exec {
                signal_count: 0,
                ..ours
            },
            Errno::EINVAL,
        ),
    ] {
        refused(what, gpu.exec_raw(&mut argument), error)?;
    }
    same("the fence of one to signal", signalled.status()?, 1)?;

    // As many as there may be, and one twice.
    let job = gpu.submit_with(Work::add(&map, 1), &[good[0]; 64], &[empty.handle(); 64])?;
    ended(gpu, job, 0)?;
    same("the memory", value(&map), 1)?;
    same("the fence of the empty one", empty.status()?, 1)
}

/// A job waits for all of its fences, and those behind it wait, too. Others do not.
fn waits(ctx: &Ctx) -> Result<()> {
    let gpu = ctx.gpu()?;
    let (map, other) = (Map::anonymous(PAGE)?, Map::anonymous(PAGE)?);
    let fences = [fence()?, fence()?];
    let before = [
        Syncobj::with(gpu, &fences[0])?,
        Syncobj::with(gpu, &fences[1])?,
    ];
    let done = Syncobj::new(gpu, true)?;

    let handles = [before[0].handle(), done.handle(), before[1].handle()];
    let first = gpu.submit_with(fill(&map, 7), &handles, &[])?;
    let second = gpu.submit(Work::add(&map, 1))?;
    is_pending(gpu, first)?;
    is_pending(gpu, second)?;
    Gpu::open()?.compute(Work::add(&other, 1))?;
    fences[1].signal()?;
    is_pending(gpu, first)?;
    same("the memory while they wait", value(&map), 0)?;

    fences[0].signal()?;
    ended(gpu, first, 0)?;
    ended(gpu, second, 0)?;
    same("the memory", value(&map), 8)?;
    same("the memory of another", value(&other), 1)
}

/// A job fails: so does the fence that it leaves, and a job that waits for that. Others do not.
fn waits_for_failed(ctx: &Ctx) -> Result<()> {
    let gpu = ctx.gpu()?;
    let map = Map::anonymous(PAGE)?;
    let [first, second, third] = [
        Syncobj::new(gpu, false)?,
        Syncobj::new(gpu, true)?,
        Syncobj::new(gpu, false)?,
    ];

    gpu.submit_with(FAILS, &[], &[first.handle()])?;
    first.wait(LONG)?;
    same(
        "the fence of the job that fails",
        first.status()?,
        -libc::EFAULT,
    )?;
    let waits = gpu.submit_with(Work::add(&map, 1), &[first.handle()], &[second.handle()])?;
    let behind = gpu.submit_with(Work::add(&map, 1), &[], &[third.handle()])?;
    second.wait(LONG)?;
    same(
        "the fence of the job that waits",
        second.status()?,
        -libc::EFAULT,
    )?;
    third.wait(LONG)?;
    same("the fence of the job behind", third.status()?, 1)?;
    ended(gpu, waits, -libc::EFAULT)?;
    ended(gpu, behind, 0)?;
    same("the memory", value(&map), 1)
}

/// A syncobj gets its fence when the job has ended, and has none before, whatever it had.
fn signals(ctx: &Ctx) -> Result<()> {
    let gpu = ctx.gpu()?;
    let map = Map::anonymous(PAGE)?;
    let fence = fence()?;
    let before = Syncobj::with(gpu, &fence)?;
    let after = Syncobj::new(gpu, true)?;

    let job = gpu.submit_with(Work::add(&map, 1), &[before.handle()], &[after.handle()])?;
    refused("the syncobj", after.wait(WHILE), Errno::ETIME)?;
    refused("a sync file", after.status(), Errno::EINVAL)?;
    let early = gpu.submit_with(Work::add(&map, 1), &[after.handle()], &[]);
    refused("a job that waits for it", early, Errno::EINVAL)?;
    same("the memory before", value(&map), 0)?;

    fence.signal()?;
    after.wait(LONG)?;
    same("the memory", value(&map), 1)?;
    same("the fence", after.status()?, 1)?;
    same("the end", gpu.wait(job, Duration::ZERO)?.status, 0)?;

    // One syncobj may be both.
    let job = gpu.submit_with(Work::add(&map, 1), &[after.handle()], &[after.handle()])?;
    after.wait(LONG)?;
    ended(gpu, job, 0)
}

/// A job hangs, and nobody asks for it but those who wait for its syncobj: they are told.
fn signals_hangs(ctx: &Ctx) -> Result<()> {
    let gpu = ctx.gpu()?;
    let map = Map::anonymous(PAGE)?;
    let syncobjs = [Syncobj::new(gpu, false)?, Syncobj::new(gpu, false)?];
    let knobs = Knobs::new()?;
    knobs.set(Knob::HangCompute, 1)?;

    for syncobj in &syncobjs {
        gpu.submit_with(Work::add(&map, 1), &[], &[syncobj.handle()])?;
    }
    knobs.wait_for(Knob::HangCompute)?;
    refused("the syncobj", syncobjs[0].wait(WHILE), Errno::ETIME)?;
    for (syncobj, status) in syncobjs.iter().zip([-libc::EIO, 1]) {
        syncobj.wait(LONG)?;
        same("the fence", syncobj.status()?, status)?;
    }
    same("the memory", value(&map), 1)
}

/// The same when it is only the interrupts that get lost.
fn interrupts_lost(ctx: &Ctx) -> Result<()> {
    let gpu = ctx.gpu()?;
    let knobs = Knobs::new()?;
    knobs.set(Knob::LostIrq, ALWAYS)?;

    for _ in 0..3 {
        let map = Map::anonymous(PAGE)?;
        let syncobj = Syncobj::new(gpu, false)?;
        gpu.submit_with(Work::add(&map, 1), &[], &[syncobj.handle()])?;
        syncobj.wait(LONG)?;
        same("the memory", value(&map), 1)?;
    }
    Ok(())
}

/// A job of one file tells one of another, which starts when the other has ended.
fn two_files(ctx: &Ctx) -> Result<()> {
    let (first, second) = (ctx.gpu()?, Gpu::open()?);
    let map = Map::anonymous(PAGE)?;
    let fence = fence()?;
    let before = Syncobj::with(first, &fence)?;
    let tells = Syncobj::new(first, false)?;
    let told = tells.share(&second)?;

    let fills = first.submit_with(fill(&map, 7), &[before.handle()], &[tells.handle()])?;
    let early = second.submit_with(Work::add(&map, 1), &[told.handle()], &[]);
    refused("before there is a fence", early, Errno::EINVAL)?;
    fence.signal()?;
    told.wait(LONG)?;
    let adds = second.submit_with(Work::add(&map, 1), &[told.handle()], &[])?;
    ended(&second, adds, 0)?;
    ended(first, fills, 0)?;
    same("the memory", value(&map), 8)
}

/// A file is closed while its job waits: whoever waits for the job is told, and closing takes no
/// time.
fn close(ctx: &Ctx) -> Result<()> {
    let gpu = ctx.gpu()?;
    let map = Map::anonymous(PAGE)?;
    let fence = fence()?;
    let told = Syncobj::new(gpu, false)?;

    let closed = Gpu::open()?;
    {
        let before = Syncobj::with(&closed, &fence)?;
        let tells = told.share(&closed)?;
        closed.submit_with(Work::add(&map, 1), &[before.handle()], &[tells.handle()])?;
    }
    refused("the syncobj", told.wait(WHILE), Errno::ETIME)?;
    let start = Instant::now();
    drop(closed);
    told.wait(SOON)?;
    let took = start.elapsed();
    ensure!(took < SOON, "closing took {took:?}");
    same("the fence", told.status()?, -libc::ECANCELED)?;
    fence.signal()?;
    same("the memory", value(&map), 0)
}

/// How many programs could attach now.
fn free_channels() -> Result<usize> {
    let mut gpus = Vec::new();
    loop {
        let gpu = Gpu::open_detached()?;
        match gpu.attach() {
            Ok(_) => gpus.push(gpu),
            Err(Errno::ENOSPC) => return Ok(gpus.len()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The program whose job waits is killed: it is gone at once, and leaves nothing behind.
fn killed(ctx: &Ctx) -> Result<()> {
    let gpu = ctx.gpu()?;
    let (vram, channels) = (gpu.vram_free()?, free_channels()?);
    let fence = fence()?;
    let before = Syncobj::with(gpu, &fence)?;
    let told = Syncobj::new(gpu, false)?;
    let begun = Map::shared_memory(PAGE)?;

    let child = start_child(|| {
        let gpu = Gpu::open()?;
        let map = Map::anonymous(PAGE)?;
        let [before, tells] = [before.share(&gpu)?, told.share(&gpu)?];
        let job = gpu.submit_with(Work::add(&map, 1), &[before.handle()], &[tells.handle()])?;
        begun.cell(0).store(1, Ordering::Relaxed);
        gpu.wait(job, LONG)?;
        Ok(())
    })?;
    let deadline = Instant::now() + SOON;
    while value(&begun) == 0 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    same("the job is queued", value(&begun), 1)?;
    refused("the syncobj", told.wait(WHILE), Errno::ETIME)?;

    let start = Instant::now();
    kill(child, Signal::SIGKILL)?;
    waitpid(child, None)?;
    told.wait(SOON)?;
    let took = start.elapsed();
    ensure!(took < SOON, "killing took {took:?}");
    same("the fence of the job", told.status()?, -libc::ECANCELED)?;
    same("the fence it waited for", before.status()?, 0)?;
    // The driver looks ten times per second whether it still has something to wait for.
    thread::sleep(WHILE);
    same("free channels", free_channels()?, channels)?;
    same("free VRAM", gpu.vram_free()?, vram)
}

/// The driver is unbound while a job waits: whoever waits for it is told, and unbinding takes no
/// time.
fn unbind(_: &Ctx) -> Result<()> {
    let fence = fence()?;
    let gpu = Gpu::open()?;
    let map = Map::anonymous(PAGE)?;
    let before = Syncobj::with(&gpu, &fence)?;
    let after = Syncobj::new(&gpu, false)?;
    gpu.submit_with(Work::add(&map, 1), &[before.handle()], &[after.handle()])?;

    let (unbound, took, told) = thread::scope(|scope| {
        let waits = scope.spawn(|| after.wait(LONG));
        thread::sleep(WHILE);
        let start = Instant::now();
        let unbound = Unbound::now();
        let took = start.elapsed();
        (unbound, took, waits.join().expect("does not panic"))
    });
    let unbound = unbound?;
    same("the wait for the syncobj", told, Ok(()))?;
    ensure!(took < SOON, "unbinding took {took:?}");
    drop(unbound);
    wait_for_gpu()?;
    Gpu::open()?.compute(Work::add(&map, 1))?;
    same("the memory", value(&map), 1)?;
    Ok(fence.signal()?)
}
