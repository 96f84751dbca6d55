// SPDX-License-Identifier: GPL-2.0
//! Jobs that cannot be done, and jobs whose program goes away.

use crate::case::Case;
use crate::case::Ctx;
use crate::cases::resize::vram_becomes_free;
use crate::check::refused;
use crate::check::same;
use crate::resident::Resident;
use anyhow::ensure;
use anyhow::Result;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::gpu::JobId;
use devcache_selftests::gpu::Work;
use devcache_selftests::map::Map;
use devcache_selftests::sys::in_child;
use devcache_selftests::uapi;
use devcache_selftests::PAGE;
use nix::errno::Errno;
use nix::sys::mman::ProtFlags;
use std::fs;
use std::time::Duration;

pub(crate) const CASES: &[Case] = &[
    Case::once("exec_bad_arguments", bad_arguments),
    Case::once("exec_not_attached", not_attached),
    Case::once("exec_unmapped", unmapped),
    Case::once("exec_prot_none", prot_none),
    Case::once("exec_after_failure", after_failure),
    Case::once("wait_unknown_job", wait_unknown),
    Case::once("wait_twice", wait_twice),
    Case::every("close_during_job", close_during_job),
    Case::every("exit_during_job", exit_during_job),
    Case::every("unmap_during_job", unmap_during_job),
];

/// Values the driver refuses before it queues anything.
fn bad_arguments(ctx: &Ctx) -> Result<()> {
    let map = Map::anonymous(PAGE)?;
    let gpu = ctx.gpu()?;
    let fill = Work::Fill {
        dst: map.addr(),
        count: 4,
        value: 1,
    };
    let good = fill.argument();

    let bad = [
        ("operation", uapi::drm_vsvm_exec { op: 1000, ..good }),
        (
            "type",
            uapi::drm_vsvm_exec {
                type_: 1000,
                ..good
            },
        ),
        ("flags", uapi::drm_vsvm_exec { flags: 2, ..good }),
        ("count of zero", uapi::drm_vsvm_exec { count: 0, ..good }),
        (
            "huge count",
            uapi::drm_vsvm_exec {
                count: 1 << 62,
                ..good
            },
        ),
        (
            "misaligned address",
            uapi::drm_vsvm_exec {
                dst: good.dst + 2,
                ..good
            },
        ),
        (
            "unused address",
            uapi::drm_vsvm_exec {
                src_b: good.dst,
                ..good
            },
        ),
        (
            "address beyond all",
            uapi::drm_vsvm_exec {
                dst: 1 << 62,
                ..good
            },
        ),
    ];
    for (what, mut argument) in bad {
        refused(what, gpu.exec_raw(&mut argument), Errno::EINVAL)?;
    }
    gpu.compute(fill)?;
    Ok(())
}

/// A file without an address space.
fn not_attached(_: &Ctx) -> Result<()> {
    let map = Map::anonymous(PAGE)?;
    let gpu = Gpu::open_detached()?;
    let work = Work::Sum {
        src: map.addr(),
        count: 1,
    };
    refused("before attaching", gpu.submit(work), Errno::ENXIO)
}

/// The job fails at the first address that is not mapped; what comes before is done.
fn unmapped(ctx: &Ctx) -> Result<()> {
    let map = Map::anonymous(4 * PAGE)?;
    // SAFETY: Nobody uses this page of the mapping afterwards.
    let result = unsafe { libc::munmap(map.page_addr(2) as *mut libc::c_void, PAGE) };
    Errno::result(result)?;

    let ended = ctx.gpu()?.run(Work::Fill {
        dst: map.addr(),
        count: 4 * PAGE / 4,
        value: 0x5555_5555,
    })?;
    same("status", ended.status, -libc::EFAULT)?;
    same("fault address", ended.fault_addr, map.page_addr(2) as u64)?;
    same("before it", map.read(0..2 * PAGE), vec![0x55; 2 * PAGE])?;
    same("behind it", map.read(3 * PAGE..4 * PAGE), vec![0; PAGE])
}

/// The same at memory without rights.
fn prot_none(ctx: &Ctx) -> Result<()> {
    let map = Map::anonymous(2 * PAGE)?;
    map.protect(1..2, ProtFlags::PROT_NONE)?;

    let ended = ctx.gpu()?.run(Work::Fill {
        dst: map.addr(),
        count: 2 * PAGE / 4,
        value: 1,
    })?;
    same("status", ended.status, -libc::EFAULT)?;
    same("fault address", ended.fault_addr, map.page_addr(1) as u64)
}

/// A job that failed does not spoil those behind it.
fn after_failure(ctx: &Ctx) -> Result<()> {
    let map = Map::anonymous(PAGE)?;
    let gpu = ctx.gpu()?;
    let bad = gpu.submit(Work::Sum {
        src: PAGE,
        count: 1,
    })?;
    let good = gpu.submit(Work::Fill {
        dst: map.addr(),
        count: 1,
        value: 9,
    })?;

    let wait = |job| gpu.wait(job, Duration::from_secs(20));
    same("status of the bad one", wait(bad)?.status, -libc::EFAULT)?;
    same("status of the good one", wait(good)?.status, 0)?;
    same("its result", map.read(0..4), vec![9, 0, 0, 0])
}

/// A number no job has.
fn wait_unknown(ctx: &Ctx) -> Result<()> {
    for job in [0, 12345, u64::MAX] {
        let result = ctx.gpu()?.wait(JobId(job), Duration::ZERO);
        refused("unknown job", result, Errno::ENOENT)?;
    }
    Ok(())
}

/// A job's end is told once.
fn wait_twice(ctx: &Ctx) -> Result<()> {
    let map = Map::anonymous(PAGE)?;
    let gpu = ctx.gpu()?;
    let job = gpu.submit(Work::Sum {
        src: map.addr(),
        count: 16,
    })?;

    same("status", gpu.wait(job, Duration::from_secs(20))?.status, 0)?;
    refused("second wait", gpu.wait(job, Duration::ZERO), Errno::ENOENT)
}

const HOLE_PAGES: usize = 1024;

/// Starts a long job: one that faults at every page of a hole in a file.
fn start(gpu: &Gpu, map: &Map) -> Result<JobId> {
    Ok(gpu.submit(Work::Fill {
        dst: map.addr(),
        count: HOLE_PAGES * PAGE / 4,
        value: 0x6666_6666,
    })?)
}

/// Every byte of the file is as before or as the job wanted it.
fn old_or_new(ctx: &Ctx) -> Result<()> {
    let got = fs::read(ctx.path("hole"))?;
    let wrong = got.iter().position(|byte| ![0, 0x66].contains(byte));
    ensure!(wrong.is_none(), "byte {wrong:?} is neither old nor new");
    same("size", got.len(), HOLE_PAGES * PAGE)
}

/// The file with a hole.
fn hole(ctx: &Ctx) -> Result<Map> {
    let file = ctx.file("hole")?;
    file.set_len((HOLE_PAGES * PAGE) as u64)?;
    Ok(Map::shared(&file, HOLE_PAGES * PAGE)?)
}

/// The GPU is closed while a job runs: it ends, and takes nothing with it.
fn close_during_job(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 8)?;
    let map = hole(ctx)?;
    let gpu = Gpu::open()?;

    file.on_device(0..8)?;
    start(&gpu, &map)?;
    drop(gpu);
    file.is_right()?;
    old_or_new(ctx)
}

/// A process exits while its job runs.
fn exit_during_job(ctx: &Ctx) -> Result<()> {
    let free = ctx.gpu()?.vram_free()?;
    let map = hole(ctx)?;

    in_child(|| {
        let gpu = Gpu::open()?;
        start(&gpu, &map)?;
        // Neither the file nor the mapping is closed in good order.
        std::mem::forget(gpu);
        Ok(())
    })?;
    old_or_new(ctx)?;
    drop(map);
    fs::remove_file(ctx.path("hole"))?;
    vram_becomes_free(ctx, free)
}

/// The memory goes away under a running job.
fn unmap_during_job(ctx: &Ctx) -> Result<()> {
    let map = hole(ctx)?;
    let gpu = ctx.gpu()?;

    let job = start(gpu, &map)?;
    drop(map);
    let ended = gpu.wait(job, Duration::from_secs(20))?;
    ensure!(
        [0, -libc::EFAULT].contains(&ended.status),
        "the job ended with status {}",
        ended.status
    );
    old_or_new(ctx)
}
