// SPDX-License-Identifier: GPL-2.0
//! Where a file system does not let a program write, the GPU may not either: the job ends with an error
//! at the page that could not be had, and neither that page nor what lies behind it has changed.

use crate::case::skip;
use crate::case::Case;
use crate::case::Ctx;
use crate::check::refused;
use crate::check::same;
use crate::check::same_bytes;
use crate::resident::send;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::ensure;
use anyhow::Result;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::gpu::Work;
use devcache_selftests::map::Map;
use devcache_selftests::model::add_u32;
use devcache_selftests::scratch::output;
use devcache_selftests::scratch::Scratch;
use devcache_selftests::sys;
use devcache_selftests::sys::in_child;
use devcache_selftests::PAGE;
use nix::errno::Errno;
use nix::fcntl::fallocate;
use nix::fcntl::FallocateFlags;
use nix::sys::mman::MapFlags;
use nix::sys::mman::ProtFlags;
use nix::unistd::setuid;
use nix::unistd::Uid;
use std::fs;
use std::fs::File;
use std::os::unix::fs::fchown;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

pub(crate) const CASES: &[Case] = &[
    Case::disk("gpu_write_without_space", gpu_write_without_space),
    Case::every("gpu_write_over_quota", gpu_write_over_quota),
    Case::disk("gpu_write_while_frozen", gpu_write_while_frozen),
    Case::disk("gpu_write_read_only_mount", gpu_write_read_only_mount),
    Case::only("xfs", "gpu_write_after_shutdown", gpu_write_after_shutdown),
];

/// Pages of a file that is a hole and larger than what can be had.
const HOLE: usize = 16;

/// A job that fills the hole fails, and the file shows how far it got.
fn fill_fails(gpu: &Gpu, map: &Map, path: &Path) -> Result<()> {
    let ended = gpu.run(Work::Fill {
        dst: map.addr(),
        count: map.len() / 4,
        value: 0x4444_4444,
    })?;
    same("status", ended.status, -libc::EFAULT)?;
    ensure!(ended.fault_addr != 0, "no address is named");

    let failed = usize::try_from(ended.fault_addr)? - map.addr();
    let mut want = vec![0; map.len()];
    want[..failed / PAGE * PAGE].fill(0x44);
    same_bytes("the file", &fs::read(path)?, &want)
}

/// On a full file system a job that writes to a hole fails before it writes; nothing else suffers.
fn gpu_write_without_space(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 4)?;
    let hole = ctx.file("hole")?;
    hole.set_len((HOLE * PAGE) as u64)?;
    let map = Map::shared(&hole, HOLE * PAGE)?;
    let filler = fill(ctx)?;

    // A file system that is short of space may have written everything out.
    file.send(0..4, Touch::Read)?;
    fill_fails(ctx.gpu()?, &map, &ctx.path("hole"))?;
    filler.set_len(0)?;
    file.gpu_add(0..4, 1)?;
    file.is_right()
}

/// Takes all blocks of the file system.
fn fill(ctx: &Ctx) -> Result<File> {
    let filler = ctx.file("filler")?;
    let mut piece: i64 = 1 << 30;
    let mut end = 0;

    while piece >= PAGE as i64 {
        match fallocate(&filler, FallocateFlags::empty(), end, piece) {
            Ok(()) => end += piece,
            Err(Errno::ENOSPC) => piece /= 2,
            Err(Errno::EOPNOTSUPP) => return skip("this file system cannot be filled quickly"),
            Err(error) => return Err(error.into()),
        }
    }
    // What is reserved for delayed allocation does not count as free for fallocate.
    let block = [0; PAGE];
    let mut end = u64::try_from(end)?;
    while filler.write_all_at(&block, end).is_ok() {
        end += PAGE as u64;
    }
    Ok(filler)
}

/// A frozen file system is not written: a job that wants to waits until it is thawed.
fn gpu_write_while_frozen(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 4)?;
    let gpu = ctx.gpu()?;
    let add = Work::Add {
        dst: file.map.addr(),
        count: 4 * PAGE / 4,
        value: 51,
    };

    file.on_device(0..4)?;
    ctx.mount.freeze()?;
    let job = gpu.submit(add);
    let early = job.and_then(|job| gpu.wait(job, Duration::from_millis(300)));
    let contents = file.file_is_right();
    ctx.mount.thaw()?;

    contents?;
    refused("the wait while frozen", early, Errno::ETIME)?;
    let ended = gpu.wait(job?, Duration::from_secs(20))?;
    same("status", ended.status, 0)?;
    add_u32(&mut file.want, 51);
    file.is_right()
}

/// The user that has a quota: root may exceed one.
const USER: u32 = 1000;

/// A file system with room for a quarter of a hole of `pages`, as far as [`USER`] is concerned.
fn with_quota(kind: &str, pages: usize) -> Result<Scratch> {
    let kib = (pages * PAGE / 4 / 1024) as u64;
    match kind {
        "tmpfs" => Scratch::in_memory(
            "tmpfs",
            &format!("usrquota,usrquota_block_hardlimit={kib}K"),
        ),
        "ext4" => {
            let scratch = Scratch::on_disk("ext4", 64, &["-O", "quota"], "usrquota")?;
            sys::set_quota(&File::open(scratch.file_system().dir)?, USER, kib)?;
            Ok(scratch)
        }
        "xfs" => {
            let scratch = Scratch::on_disk("xfs", 320, &[], "uquota")?;
            sys::set_quota(&File::open(scratch.file_system().dir)?, USER, kib)?;
            Ok(scratch)
        }
        // It limits subvolumes, whoever writes, and counts what describes the files too.
        "btrfs" => {
            let scratch = Scratch::on_disk("btrfs", 320, &[], "rw")?;
            let dir = scratch.file_system().dir.display().to_string();
            output("btrfs", &["quota", "enable", &dir])?;
            output("btrfs", &["qgroup", "limit", &format!("{kib}K"), &dir])?;
            Ok(scratch)
        }
        kind => skip(format!("no quota is known for {kind}")),
    }
}

/// A user's quota binds the GPU that works for that user, although the kernel serves its faults.
fn gpu_write_over_quota(ctx: &Ctx) -> Result<()> {
    let pages = match ctx.mount.kind.as_str() {
        "btrfs" => 6 * HOLE,
        _ => HOLE,
    };
    let scratch = with_quota(&ctx.mount.kind, pages)?;
    let ctx = Ctx::new(&scratch.file_system())?;
    let hole = ctx.file("hole")?;
    fchown(&hole, Some(USER), Some(USER))?;
    hole.set_len((pages * PAGE) as u64)?;
    let gpu = Gpu::open_detached()?;

    in_child(|| {
        let path = ctx.path("hole");
        setuid(Uid::from_raw(USER))?;
        gpu.attach()?;
        let map = Map::shared(&hole, pages * PAGE)?;
        fill_fails(&gpu, &map, &path)
    })
}

/// A file on a file system that is mounted for reading only can be on the device, unchanged.
fn gpu_write_read_only_mount(ctx: &Ctx) -> Result<()> {
    let (path, want) = Resident::dirty(ctx, 4)?.close();

    ctx.mount.set_read_only(true)?;
    let result = read_only_mount(ctx, &path, &want);
    ctx.mount.set_read_only(false)?;
    result?;
    same_bytes("the file", &fs::read(&path)?, &want)
}

fn read_only_mount(ctx: &Ctx, path: &Path, want: &[u8]) -> Result<()> {
    let file = File::open(path)?;
    let (prot, flags) = (ProtFlags::PROT_READ, MapFlags::MAP_SHARED);
    let map = Map::of_file(&file, 4 * PAGE, prot, flags)?;

    send(ctx.gpu()?, &map, 0..4, Touch::Read)?;
    let ended = ctx.gpu()?.run(Work::Fill {
        dst: map.addr(),
        count: 4 * PAGE / 4,
        value: 0,
    })?;
    same("status", ended.status, -libc::EFAULT)?;
    same_bytes("mapping", &map.read_all(), want)
}

/// XFS lets nobody store any more when it has been shut down. (Others do where blocks are allocated.)
fn gpu_write_after_shutdown(ctx: &Ctx) -> Result<()> {
    let file = Resident::clean(ctx, 4)?;

    file.on_device(0..4)?;
    ctx.mount.shut_down()?;
    let ended = ctx.gpu()?.run(Work::Fill {
        dst: file.map.addr(),
        count: 4 * PAGE / 4,
        value: 0,
    })?;
    let (path, want) = file.close();
    ctx.mount.remount()?;
    same("status", ended.status, -libc::EFAULT)?;
    same_bytes("the disk", &fs::read(path)?, &want)
}
