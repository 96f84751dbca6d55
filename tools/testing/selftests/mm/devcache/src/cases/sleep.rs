// SPDX-License-Identifier: GPL-2.0
//! The machine goes to sleep while pages are on the device: they come back before.
//!
//! It is suspend to idle up to the point where the machine would wait, which is as far as devices are
//! concerned. The serial ports through which the virtual machine of this project reports do not survive
//! that, so these tests run on demand, with their report in the kernel's log:
//! `devcache-selftests sleep >/dev/kmsg`.

use crate::case::skip;
use crate::case::Case;
use crate::case::Ctx;
use crate::check::same;
use crate::check::same_bytes;
use crate::knobs::Knob;
use crate::knobs::Knobs;
use crate::resident::send;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::gpu::Work;
use devcache_selftests::map::Map;
use devcache_selftests::uffd::Mode;
use devcache_selftests::uffd::Uffd;
use devcache_selftests::PAGE;
use nix::errno::Errno;
use std::fs;
use std::io;
use std::time::Duration;

pub(crate) const CASES: &[Case] = &[
    Case::every("sleep", pages_come_back).on_demand(),
    Case::once("sleep_waits_for_jobs", waits_for_jobs).on_demand(),
    Case::only("tmpfs", "sleep_is_refused", is_refused).on_demand(),
];

const PAGES: usize = 64;

/// Sends the machine to sleep, and wakes it at once.
fn sleep() -> Result<io::Result<()>> {
    if fs::write("/sys/power/pm_test", "platform").is_err() {
        return skip("this kernel cannot sleep for a test");
    }
    fs::write("/sys/module/suspend/parameters/pm_test_delay", "0")
        .context("set the time of sleep")?;
    Ok(fs::write("/sys/power/state", "freeze"))
}

/// Pages of files and of memory come back with what the GPU has written, and everything works
/// afterwards.
fn pages_come_back(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, PAGES)?;
    let gpu = ctx.gpu()?;
    let anonymous = Map::anonymous(PAGES * PAGE)?;
    send(gpu, &anonymous, 0..PAGES, Touch::Write)?;
    gpu.compute(Work::add(&anonymous, 1))?;
    file.gpu_add(0..PAGES, 1)?;
    file.on_device(0..PAGES)?;

    sleep()?.context("sleep")?;
    file.off_device(0..PAGES)?;
    same("free VRAM", gpu.vram_free()?, gpu.vram_total()?)?;
    let ones = 1_u32.to_le_bytes().repeat(PAGES * PAGE / 4);
    same_bytes("memory", &anonymous.read_all(), &ones)?;
    file.is_right()?;

    file.send(0..PAGES, Touch::Write)?;
    file.gpu_add(0..PAGES, 1)?;
    gpu.compute(Work::add(&anonymous, 1))?;
    Gpu::open()?.compute(Work::add(&anonymous, 1))?;
    let threes = 3_u32.to_le_bytes().repeat(PAGES * PAGE / 4);
    same_bytes("memory", &anonymous.read_all(), &threes)?;
    file.is_right()
}

/// A job under way is executed to its end, once.
fn waits_for_jobs(ctx: &Ctx) -> Result<()> {
    const MICROSECONDS: u32 = 500_000;
    let gpu = ctx.gpu()?;
    let map = Map::anonymous(PAGES * PAGE)?;
    let knobs = Knobs::new()?;
    knobs.set(Knob::Latency, MICROSECONDS)?;
    let jobs = [
        gpu.submit(Work::add(&map, 1))?,
        gpu.submit(Work::add(&map, 1))?,
    ];

    sleep()?.context("sleep")?;
    for job in jobs {
        same("status", gpu.wait(job, Duration::ZERO)?.status, 0)?;
    }
    let twos = 2_u32.to_le_bytes().repeat(PAGES * PAGE / 4);
    same_bytes("memory", &map.read_all(), &twos)
}

/// A job that does not end, since nobody serves its fault, keeps the machine awake, and nothing has
/// happened.
fn is_refused(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 1)?;
    let served = Map::shared(&file.file, PAGE)?;
    let uffd = Uffd::new(&served, Mode::Minor)?;
    let gpu = ctx.gpu()?;
    let job = gpu.submit(Work::add(&served, 1))?;
    let fault = loop {
        if let Some(fault) = uffd.next()? {
            break fault;
        }
    };

    let slept = sleep()?;
    let error = slept.err().and_then(|error| error.raw_os_error());
    same("going to sleep", error, Some(Errno::EBUSY as i32))?;
    uffd.resume(fault.address)?;
    let ended = gpu.wait(job, Duration::from_secs(20))?;
    same("status", ended.status, 0)?;
    gpu.compute(Work::add(&Map::anonymous(PAGE)?, 1))?;
    Ok(())
}
