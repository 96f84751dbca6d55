// SPDX-License-Identifier: GPL-2.0
//! Allocations that fail, one after the other, on every path to the device and back.
//!
//! The kernel counts allocations of a task down and fails the one at zero (`fail-nth`). So a call is
//! made with its first allocation failing, then its second, and so on, until it makes no more. Each time
//! it may succeed or fail with an errno; no data may be lost, and the kernel may not complain.

use crate::case::skip;
use crate::case::Case;
use crate::case::Ctx;
use crate::cases::errors::loses;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::gpu::Direction;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::gpu::Work;
use devcache_selftests::PAGE;
use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;

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

/// The fault injection of the kernel, switched on for allocations.
struct Injection {
    fail_nth: PathBuf,
}

impl Injection {
    /// For this thread.
    fn new() -> Result<Self> {
        Self::of(Path::new("/proc/thread-self"))
    }

    /// For the task that has a folder in /proc.
    fn of(task: &Path) -> Result<Self> {
        let debug = Path::new("/sys/kernel/debug");
        if !debug.join("failslab").exists() || !task.join("fail-nth").exists() {
            return skip("the kernel has no fault injection");
        }
        for (file, value) in [
            ("failslab/verbose", "0"),
            ("failslab/ignore-gfp-wait", "N"),
            ("fail_page_alloc/verbose", "0"),
            ("fail_page_alloc/ignore-gfp-wait", "N"),
            ("fail_page_alloc/ignore-gfp-highmem", "N"),
            ("fail_page_alloc/min-order", "0"),
        ] {
            fs::write(debug.join(file), value).with_context(|| format!("set {file}"))?;
        }
        Ok(Injection {
            fail_nth: task.join("fail-nth"),
        })
    }

    /// Does something with its `nth` allocation failing. Returns what came of it, and whether there
    /// were that many.
    fn with<T>(&self, nth: u32, work: impl FnOnce() -> T) -> Result<(T, bool)> {
        // Opened in advance: nothing in between may allocate that is not meant.
        let file = File::options()
            .read(true)
            .write(true)
            .open(&self.fail_nth)?;
        file.write_at(nth.to_string().as_bytes(), 0)?;
        let result = work();
        let mut left = [0; 16];
        let len = file.read_at(&mut left, 0)?;
        let failed = left[..len].trim_ascii() == b"0";
        file.write_at(b"0", 0)?;
        Ok((result, failed))
    }
}

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

/// The folder in /proc of the thread that serves the faults of the GPU.
fn fault_thread() -> Result<PathBuf> {
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        if name.starts_with("irq/") && name.contains("vsvm-fau") {
            return Ok(path);
        }
    }
    anyhow::bail!("no thread serves the faults of the GPU")
}

/// In the service of faults of the GPU: the job fails, or not; the next one works.
fn gpu_fault(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::in_ram(ctx, PAGES)?;
    let injection = Injection::of(&fault_thread()?)?;
    loses(0, || {
        each_fails(|nth| {
            // Pages to be made writable by a detour, to a GPU that has not seen them.
            file.file.sync_all()?;
            file.send(0..PAGES, Touch::Read)?;
            let gpu = Gpu::open()?;
            let fill = Work::Fill {
                dst: file.map.addr(),
                count: PAGES * PAGE / 4,
                value: nth,
            };
            let (_, failed) = injection.with(nth, || gpu.run(fill))?;
            gpu.compute(fill)?;
            file.want = nth.to_le_bytes().repeat(PAGES * PAGE / 4);
            file.is_right()?;
            Ok(failed)
        })
    })
}

/// When a program opens the GPU.
fn open(_: &Ctx) -> Result<()> {
    let injection = Injection::new()?;
    each_fails(|nth| Ok(injection.with(nth, Gpu::open)?.1))?;
    Gpu::open()?;
    Ok(())
}
