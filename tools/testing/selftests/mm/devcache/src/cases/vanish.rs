// SPDX-License-Identifier: GPL-2.0
//! The device vanishes from the bus, and what was in its memory with it.
//!
//! Nothing waits for ever: calls fail, jobs end, the driver can be unbound. What is lost is told as in
//! `errors`. When the device is there again, so is all it does.

use crate::case::Case;
use crate::case::Ctx;
use crate::cases::errors::dirty_on_disk;
use crate::cases::errors::fsync_fails_once;
use crate::cases::errors::load_is_sigbus;
use crate::cases::errors::loses;
use crate::cases::errors::sigbus;
use crate::check::refused;
use crate::check::same;
use crate::check::same_bytes;
use crate::knobs::Knob;
use crate::knobs::Knobs;
use crate::resident::send;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::ensure;
use anyhow::Result;
use devcache_selftests::bus;
use devcache_selftests::gpu::Direction;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::gpu::Work;
use devcache_selftests::map::Map;
use devcache_selftests::PAGE;
use nix::errno::Errno;
use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;
use std::time::Instant;

pub(crate) const CASES: &[Case] = &[
    Case::every("vanish", vanish).limit(120),
    Case::disk("vanish_clean", clean).limit(120),
    Case::once("vanish_anonymous", anonymous).limit(120),
    Case::every("vanish_during_job", during_job).limit(120),
    Case::once("vanish_and_remove", and_remove).limit(120),
];

/// Milliseconds for which the device is gone: until it is called back.
const LONG: u32 = 600_000;

/// How long anything may take while the device is gone.
const PATIENCE: Duration = Duration::from_secs(20);

/// Does something that must not take long.
fn soon<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let result = work()?;
    let took = start.elapsed();
    ensure!(took < PATIENCE, "{what} took {took:?}");
    Ok(result)
}

/// The GPU is of no use: neither jobs nor migrations work, and none hangs.
fn is_of_no_use(gpu: &Gpu, map: &Map) -> Result<()> {
    let ended = soon("a job", || match gpu.run(Work::add(map, 1)) {
        Ok(ended) => Ok(ended.status),
        Err(error) => Ok(-(error as i32)),
    })?;
    ensure!(
        [-libc::EIO, -libc::ENODEV].contains(&ended),
        "the job ended with {ended}"
    );
    let migrated = soon("a migration", || {
        Ok(gpu.migrate(map, 0..map.pages(), Direction::ToVram)?)
    })?;
    same("pages moved", migrated.moved, 0)
}

/// Unbinds the driver, lets the device come back, and has the bus find it.
fn bring_back(knobs: Knobs) -> Result<()> {
    let device = knobs.device.clone();
    soon("unbinding", || bus::unbind(&device))?;
    knobs.set(Knob::Gone, 0)?;
    bus::remove(&device)?;
    // The function they belong to exists no more.
    std::mem::forget(knobs);
    bus::rescan(&device)
}

/// Everything works for a new file.
fn works(ctx: &Ctx) -> Result<()> {
    let gpu = Gpu::open()?;
    let file = ctx.file("new")?;
    file.write_all_at(&[7; 8 * PAGE], 0)?;
    let map = Map::shared(&file, 8 * PAGE)?;
    send(&gpu, &map, 0..8, Touch::Write)?;
    gpu.compute(Work::add(&map, 1))?;
    let want = 0x0707_0708_u32.to_le_bytes().repeat(8 * PAGE / 4);
    same_bytes("a new file", &fs::read(ctx.path("new"))?, &want)
}

/// With dirty pages on the device.
fn vanish(ctx: &Ctx) -> Result<()> {
    let (mut file, disk) = dirty_on_disk(ctx)?;
    let other = File::open(&file.path)?;
    let pages = file.pages();
    let gpu = ctx.gpu()?;
    let knobs = Knobs::new()?;
    knobs.set(Knob::Gone, LONG)?;

    loses(pages as u64, || {
        soon("reading", || {
            let mut bytes = [0; PAGE];
            let result = file.file.read_exact_at(&mut bytes, 0);
            if ctx.mount.on_disk() {
                result?;
                return same_bytes("read(2)", &bytes, &disk[..PAGE]);
            }
            ensure!(result.is_err_and(|error| error.raw_os_error() == Some(libc::EIO)));
            load_is_sigbus(&file, 1)
        })?;
        is_of_no_use(gpu, &file.map)?;
        // Unbinding finds the rest.
        bring_back(knobs)
    })?;
    refused(
        "the old file",
        gpu.submit(Work::add(&file.map, 1)),
        Errno::ENODEV,
    )?;
    file.off_device(0..pages)?;
    if ctx.mount.on_disk() {
        fsync_fails_once(&file.file, &other)?;
        file.want = disk;
    } else {
        (0..pages).try_for_each(|page| load_is_sigbus(&file, page))?;
        file.file.set_len(0)?;
        file.file.set_len((pages * PAGE) as u64)?;
        file.want.fill(0);
    }
    file.is_right()?;
    works(ctx)
}

/// With clean pages on the device: nobody notices.
fn clean(ctx: &Ctx) -> Result<()> {
    let file = Resident::clean(ctx, 64)?;
    let knobs = Knobs::new()?;
    knobs.set(Knob::Gone, LONG)?;

    let mut bytes = vec![0; 16 * PAGE];
    soon("reading", || Ok(file.file.read_exact_at(&mut bytes, 0)?))?;
    same_bytes("read(2)", &bytes, &file.want[..16 * PAGE])?;
    bring_back(knobs)?;
    file.is_right()?;
    file.file.sync_all()?;
    works(ctx)
}

/// With anonymous memory on the device: it is lost, and the program gets a signal, not zeroes. That a
/// program still has it does not keep the driver from going away.
fn anonymous(ctx: &Ctx) -> Result<()> {
    let map = Map::anonymous(8 * PAGE)?;
    map.write(0, &[9; 8 * PAGE]);
    send(ctx.gpu()?, &map, 0..4, Touch::Write)?;
    let knobs = Knobs::new()?;
    knobs.set(Knob::Gone, LONG)?;

    sigbus(|| map.touch_read(0..1))?;
    bring_back(knobs)?;
    for page in 0..4 {
        sigbus(|| map.touch_read(page..page + 1))?;
    }
    let rest = map.read(4 * PAGE..8 * PAGE);
    same_bytes("what was not on the device", &rest, &[9; 4 * PAGE])?;
    works(ctx)
}

/// While a job runs that faults all the time.
fn during_job(ctx: &Ctx) -> Result<()> {
    const HOLE: usize = 4096 * PAGE;
    let file = ctx.file("hole")?;
    file.set_len(HOLE as u64)?;
    let map = Map::shared(&file, HOLE)?;
    let knobs = Knobs::new()?;
    let gpu = ctx.gpu()?;
    let job = gpu.submit(Work::add(&map, 1))?;
    knobs.set(Knob::Gone, LONG)?;

    let ended = soon("the job", || Ok(gpu.wait(job, PATIENCE)?))?;
    ensure!(
        [-libc::EIO, -libc::ENODEV].contains(&ended.status),
        "the job ended with {}",
        ended.status
    );
    is_of_no_use(gpu, &map)?;
    bring_back(knobs)?;
    works(ctx)
}

/// The function is removed while it does not answer, and found again when it does.
fn and_remove(ctx: &Ctx) -> Result<()> {
    const MOMENT: u32 = 3000;
    let map = Map::anonymous(PAGE)?;
    ctx.gpu()?.compute(Work::add(&map, 1))?;
    let knobs = Knobs::new()?;
    knobs.set(Knob::Gone, MOMENT)?;
    let device = knobs.device.clone();
    soon("removing", || bus::remove(&device))?;
    refused(
        "a job",
        ctx.gpu()?.submit(Work::add(&map, 1)),
        Errno::ENODEV,
    )?;

    // The function they belong to exists no more.
    std::mem::forget(knobs);
    bus::rescan(&device)?;
    works(ctx)
}
