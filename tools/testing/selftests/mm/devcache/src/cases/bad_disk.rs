// SPDX-License-Identifier: GPL-2.0
//! Errors of the disk below a file system.
//!
//! A page that cannot be read is an error for whoever wants it, a GPU too. A page that cannot be written
//! comes back from the device for writeback as ever, and fsync tells of it.

use crate::case::Case;
use crate::case::Ctx;
use crate::cases::errors::sigbus;
use crate::cases::formats::SIZE;
use crate::check::same;
use crate::check::same_bytes;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::disk::Disk;
use devcache_selftests::disk::Mode;
use devcache_selftests::gpu::Direction;
use devcache_selftests::gpu::Work;
use devcache_selftests::map::Map;
use devcache_selftests::scratch::Scratch;
use devcache_selftests::sys;
use devcache_selftests::PAGE;
use std::fs;
use std::fs::File;
use std::time::Duration;

pub(crate) const CASES: &[Case] = &[
    Case::disk("bad_disk_reads", reads),
    Case::disk("bad_disk_writes", writes),
];

const PAGES: usize = 16;

/// How long a job may take that cannot be done.
const SOON: Duration = Duration::from_secs(20);

/// A file system of the kind under test, on a disk that fails when it is told to.
fn scratch(ctx: &Ctx) -> Result<Scratch> {
    Scratch::on_bad_disk(&ctx.mount.kind, SIZE, &[])
}

fn disk(scratch: &Scratch) -> Result<&Disk> {
    scratch.disk().context("it is on a disk that may fail")
}

/// A job on pages that cannot be read ends, and says so, as a load is SIGBUS
/// (`hmm_range_fault_unlocked_timeout`). It is no error later on.
fn reads(ctx: &Ctx) -> Result<()> {
    let scratch = scratch(ctx)?;
    let own = Ctx::new(&scratch.file_system())?;
    let file = Resident::in_ram(&own, PAGES)?;
    file.file.sync_all()?;
    let (path, want) = file.close();
    own.mount.remount()?;

    let file = File::options().read(true).write(true).open(&path)?;
    let map = Map::shared(&file, PAGES * PAGE)?;
    let gpu = own.gpu()?;
    disk(&scratch)?.set(Mode::Fails)?;
    let job = gpu.submit(Work::Checksum {
        src: map.addr(),
        count: PAGES * PAGE / 4,
    })?;
    let ended = gpu.wait(job, SOON).context("wait for a job")?;
    same("the job's end", ended.status, -libc::EFAULT)?;
    same("its address", ended.fault_addr, map.addr() as u64)?;
    sigbus(|| map.touch_read(3..4))?;
    let moved = gpu.migrate(&map, 0..PAGES, Direction::ToVram)?.moved;
    same("pages moved", moved, 0)?;

    disk(&scratch)?.set(Mode::Works)?;
    drop((map, file));
    own.mount.remount()?;
    same_bytes("the disk", &fs::read(&path)?, &want)
}

/// What the GPU wrote cannot be written when somebody else who has the file open wants it to be: fsync says
/// so, though the disk works again, and the disk has what it had.
fn writes(ctx: &Ctx) -> Result<()> {
    let scratch = scratch(ctx)?;
    let own = Ctx::new(&scratch.file_system())?;
    let mut file = Resident::in_ram(&own, PAGES)?;
    file.file.sync_all()?;
    let before = file.want.clone();
    file.send(0..PAGES, Touch::Write)?;
    file.gpu_add(0..PAGES, 0x0505_0505)?;
    file.on_device(0..PAGES)?;
    let other = File::open(own.path("resident"))?;
    disk(&scratch)?.set(Mode::FailsToWrite)?;
    // It may hear of it, but on btrfs the error is known only later.
    let _ = sys::sync_range(&other, 0..PAGES * PAGE);
    disk(&scratch)?.set(Mode::Works)?;
    let error = file.file.sync_all().err().context("fsync succeeded")?;
    let errno = error.raw_os_error();
    ensure!(
        [Some(libc::EIO), Some(libc::EROFS)].contains(&errno),
        "fsync: {error}"
    );

    drop(other);
    let (path, _) = file.close();
    own.mount.remount()?;
    same_bytes("the disk", &fs::read(&path)?, &before)
}
