// SPDX-License-Identifier: GPL-2.0
//! Allocations that fail, one after the other, on every path to the device and back.
//!
//! The kernel counts allocations of a task down and fails the one at zero (`fail-nth`). So a call is
//! made with its first allocation failing, then its second, and so on, until it makes no more. Each time
//! it may succeed or fail with an errno; no data may be lost, and the kernel may not complain.
//!
//! The faults of the GPU are served by whatever worker takes them from the queue, so there is no task to
//! count for. What is counted there is what the driver asks for, found by its address on the stack.

use crate::case::Case;
use crate::case::Ctx;
use crate::cases::errors::loses;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::failing::set;
use devcache_selftests::failing::switch_on;
use devcache_selftests::failing::Injection;
use devcache_selftests::gpu::Direction;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::gpu::Work;
use devcache_selftests::PAGE;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub(crate) const CASES: &[Case] = &[
    Case::every("no_memory_out", out).limit(120),
    Case::every("no_memory_back_read", |ctx| {
        back(ctx, |file| {
            let mut bytes = vec![0; file.want.len()];
            file.file.read_exact_at(&mut bytes, 0)
        })
    })
    .limit(120),
    Case::every("no_memory_back_load", |ctx| {
        back(ctx, |file| {
            file.map.touch_read(0..PAGES);
            Ok(())
        })
    })
    .limit(120),
    Case::every("no_memory_back_store", |ctx| {
        back(ctx, |file| Ok(file.map.touch_write(0..PAGES)?))
    })
    .limit(120),
    Case::every("no_memory_back_fsync", |ctx| {
        back(ctx, |file| file.file.sync_all())
    })
    .limit(120),
    Case::every("no_memory_fault", gpu_fault).limit(120),
    Case::once("no_memory_open", open).limit(120),
];

const PAGES: usize = 4;

/// A limit in case the count never reaches the end.
const ALLOCATIONS: u32 = 5000;

/// Folders of the kernel's two places of fault injection, and the unit their `space` counts in: a
/// fraction of what is allocated, so that no allocation is stepped over. Bytes for objects, pages for
/// pages.
const OBJECTS: (&str, u32) = ("failslab", 32);
const WHOLE_PAGES: (&str, u32) = ("fail_page_alloc", 1);

/// Calls `attempt` with 1, 2, and so on, until it says that no allocation failed. Returns how many
/// there were.
fn until_none_fails(mut attempt: impl FnMut(u32) -> Result<bool>) -> Result<u32> {
    for nth in 1..ALLOCATIONS {
        if !attempt(nth).with_context(|| format!("allocation {nth} failed"))? {
            println!("{} allocations", nth - 1);
            return Ok(nth - 1);
        }
    }
    anyhow::bail!("there is no end of allocations")
}

/// As [`until_none_fails`], for work that cannot do without allocations.
fn each_fails(attempt: impl FnMut(u32) -> Result<bool>) -> Result<()> {
    let allocations = until_none_fails(attempt)?;
    ensure!(allocations > 0, "nothing was allocated: nothing was tested");
    Ok(())
}

/// To the device.
fn out(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::in_ram(ctx, PAGES)?;
    let gpu = ctx.gpu()?;
    let injection = Injection::new()?;
    loses(0, || {
        each_fails(|nth| {
            file.map.touch_write(0..PAGES)?;
            let migrate = || gpu.migrate(&file.map, 0..PAGES, Direction::ToVram);
            let (_, failed) = injection.with(nth, migrate)?;
            file.gpu_add(0..PAGES, 1)?;
            file.is_right()?;
            Ok(failed)
        })
    })
}

/// Back, by `access`. Where nothing else is allocated than the pages themselves, which never fails,
/// there is but one round.
fn back(ctx: &Ctx, access: fn(&Resident<'_>) -> std::io::Result<()>) -> Result<()> {
    let mut file = Resident::in_ram(ctx, PAGES)?;
    let injection = Injection::new()?;
    loses(0, || {
        until_none_fails(|nth| {
            file.send(0..PAGES, Touch::Write)?;
            file.gpu_add(0..PAGES, 1)?;
            let (_, failed) = injection.with(nth, || access(&file))?;
            file.is_right()?;
            Ok(failed)
        })
        .map(drop)
    })
}

/// The fault injection of the kernel for the allocations that the driver asks for in any task, of one
/// kind. None fails any more when this is dropped.
struct InDriver {
    folder: &'static str,
}

impl InDriver {
    /// One allocation is to fail, the first after `space` units of what the folder counts in.
    fn fail_after(folder: &'static str, space: u32) -> Result<Self> {
        let modules = fs::read_to_string("/proc/modules")?;
        let line = modules.lines().find(|line| line.starts_with("vsvm "));
        let fields: Vec<_> = line
            .context("the driver is not a module")?
            .split(' ')
            .collect();
        let size: u64 = fields[1].parse()?;
        let start = u64::from_str_radix(fields[5].trim_start_matches("0x"), 16)?;
        set(folder, "require-start", start)?;
        set(folder, "require-end", start + size)?;
        set(folder, "space", space)?;
        set(folder, "times", 1)?;
        let on = InDriver { folder };
        set(folder, "probability", 100)?;
        Ok(on)
    }

    /// Whether there was an allocation to fail.
    fn has_failed(self) -> Result<bool> {
        let times = Path::new("/sys/kernel/debug")
            .join(self.folder)
            .join("times");
        Ok(fs::read_to_string(times)?.trim() == "0")
    }
}

impl Drop for InDriver {
    fn drop(&mut self) {
        for (attribute, value) in [
            ("probability", 0),
            ("require-start", 0),
            ("require-end", u64::MAX),
        ] {
            if let Err(error) = set(self.folder, attribute, value) {
                println!("{error:#}");
            }
        }
    }
}

/// In the service of faults of the GPU: the job fails, or not; the next one works.
fn gpu_fault(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::in_ram(ctx, PAGES)?;
    switch_on()?;
    loses(0, || {
        for (folder, unit) in [OBJECTS, WHOLE_PAGES] {
            let rounds = each_fails(|nth| {
                // Pages to be made writable by a detour, to a GPU that has not seen them.
                file.file.sync_all()?;
                file.send(0..PAGES, Touch::Read)?;
                let gpu = Gpu::open()?;
                let fill = Work::Fill {
                    dst: file.map.addr(),
                    count: PAGES * PAGE / 4,
                    value: nth,
                };
                let injection = InDriver::fail_after(folder, (nth - 1) * unit)?;
                // With an errno or without.
                let _ = gpu.run(fill);
                let failed = injection.has_failed()?;
                gpu.compute(fill)?;
                file.want = nth.to_le_bytes().repeat(PAGES * PAGE / 4);
                file.is_right()?;
                Ok(failed)
            });
            rounds.context(folder)?;
        }
        Ok(())
    })
}

/// When a program opens the GPU.
fn open(_: &Ctx) -> Result<()> {
    let injection = Injection::new()?;
    each_fails(|nth| Ok(injection.with(nth, Gpu::open)?.1))?;
    Gpu::open()?;
    Ok(())
}
