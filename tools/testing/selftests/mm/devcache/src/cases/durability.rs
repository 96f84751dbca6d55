// SPDX-License-Identifier: GPL-2.0
//! What the GPU wrote reaches the disk by every way there is to ask for it.
//!
//! Unmounting writes everything, so that it would hide a sync that did nothing. These tests therefore
//! stop the file system as a power cut would, and look at what is there after mounting it again.

use crate::case::skip;
use crate::case::Case;
use crate::case::Ctx;
use crate::check::same_bytes;
use crate::resident::send;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::Result;
use devcache_selftests::gpu::Work;
use devcache_selftests::map::Map;
use devcache_selftests::model::add_u32;
use devcache_selftests::sys;
use nix::sys::mman::MsFlags;
use std::fs;
use std::fs::File;

pub(crate) const CASES: &[Case] = &[
    Case::disk("power_cut_without_sync", without_sync),
    Case::disk("fsync", |ctx| {
        survives(ctx, |file| Ok(file.file.sync_all()?))
    }),
    Case::disk("fdatasync", |ctx| {
        survives(ctx, |file| Ok(file.file.sync_data()?))
    }),
    Case::disk("msync", |ctx| {
        survives(ctx, |file| Ok(file.map.sync(MsFlags::MS_SYNC)?))
    }),
    Case::disk("sync", |ctx| {
        survives(ctx, |_| {
            nix::unistd::sync();
            Ok(())
        })
    }),
    Case::disk("syncfs", |ctx| {
        survives(ctx, |file| Ok(nix::unistd::syncfs(&file.file)?))
    }),
    Case::disk("sync_file_range", |ctx| {
        if ctx.mount.kind == "btrfs" {
            // It writes to new blocks, which the disk does not yet know of.
            return skip("sync_file_range makes nothing durable on this file system");
        }
        survives(ctx, |file| {
            Ok(sys::sync_range(&file.file, 0..file.want.len())?)
        })
    }),
    Case::disk("fsync_of_other_descriptor", |ctx| {
        survives(ctx, |file| Ok(File::open(&file.path)?.sync_all()?))
    }),
    Case::disk("fsync_twice", fsync_twice),
    Case::disk("fsync_new_file", fsync_new_file),
    Case::disk("unmount", unmount),
    Case::disk("remount_read_only", remount_read_only),
    Case::disk("freeze", freeze),
    Case::every("drop_caches_dirty", drop_caches_dirty),
    Case::every("drop_caches_clean", drop_caches_clean),
    Case::disk("gpu_reads_from_disk", gpu_reads_from_disk),
];

const PAGES: usize = 16;

/// A file that is on the disk with all its blocks, but whose newest contents are only in VRAM.
fn only_data_is_dirty(ctx: &Ctx) -> Result<Resident<'_>> {
    let mut file = Resident::in_ram(ctx, PAGES)?;
    file.file.sync_all()?;
    file.send(0..PAGES, Touch::Write)?;
    file.gpu_add(0..PAGES, 0x0101_0101)?;
    file.send(0..PAGES, Touch::Write)?;
    file.on_device(0..PAGES)?;
    Ok(file)
}

/// What the GPU wrote before `sync` is on the disk after a power cut.
fn survives(ctx: &Ctx, sync: fn(&Resident<'_>) -> Result<()>) -> Result<()> {
    let file = only_data_is_dirty(ctx)?;
    sync(&file)?;
    let (path, want) = file.close();
    ctx.mount.power_cut()?;
    same_bytes("the disk", &fs::read(path)?, &want)
}

/// Without any of these, nothing is on the disk: the other tests could fail.
fn without_sync(ctx: &Ctx) -> Result<()> {
    let file = Resident::in_ram(ctx, PAGES)?;
    let before = file.want.clone();
    drop(file);
    fs::remove_file(ctx.path("resident"))?;

    let (path, want) = only_data_is_dirty(ctx)?.close();
    ctx.mount.power_cut()?;
    anyhow::ensure!(before != want, "the GPU changed nothing");
    same_bytes("the disk", &fs::read(path)?, &before)
}

/// After a sync the GPU needs leave to write again, and the next sync sees that it did.
fn fsync_twice(ctx: &Ctx) -> Result<()> {
    let mut file = only_data_is_dirty(ctx)?;
    file.file.sync_all()?;
    file.gpu_add(0..PAGES, 3)?;
    file.file.sync_all()?;
    file.send(0..PAGES, Touch::Read)?;
    file.gpu_add(0..PAGES, 4)?;
    file.file.sync_all()?;
    let (path, want) = file.close();
    ctx.mount.power_cut()?;
    same_bytes("the disk", &fs::read(path)?, &want)
}

/// A file of which nothing was on the disk, with delayed allocation pending while it was moved.
fn fsync_new_file(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, PAGES)?;
    file.on_device(0..PAGES)?;
    file.file.sync_all()?;
    let (path, want) = file.close();
    ctx.mount.power_cut()?;
    same_bytes("the disk", &fs::read(path)?, &want)
}

/// Unmounting writes device pages that nobody synced.
fn unmount(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, PAGES)?;
    file.on_device(0..PAGES)?;
    let (path, want) = file.close();
    ctx.mount.remount()?;
    same_bytes("the disk", &fs::read(path)?, &want)
}

/// A file system that becomes read-only is complete on the disk, however it ends.
fn remount_read_only(ctx: &Ctx) -> Result<()> {
    let file = only_data_is_dirty(ctx)?;
    let (path, want) = file.close();
    ctx.mount.set_read_only(true)?;
    ctx.mount.power_cut()?;
    same_bytes("the disk", &fs::read(path)?, &want)
}

/// A freeze leaves nothing dirty on the device: what the disk holds then is complete.
fn freeze(ctx: &Ctx) -> Result<()> {
    let file = only_data_is_dirty(ctx)?;
    ctx.mount.freeze()?;
    ctx.mount.thaw()?;
    let (path, want) = file.close();
    ctx.mount.power_cut()?;
    same_bytes("the disk", &fs::read(path)?, &want)
}

/// Dropping caches drops no dirty page.
fn drop_caches_dirty(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, PAGES)?;

    file.on_device(0..PAGES)?;
    sys::drop_caches()?;
    file.is_right()?;
    file.send(0..PAGES, Touch::Write)?;
    let file = Unmapped::of(file)?;
    sys::drop_caches()?;
    file.is_right()
}

/// Clean device pages may be dropped, mapped or not: the disk has the same.
fn drop_caches_clean(ctx: &Ctx) -> Result<()> {
    let file = Resident::clean(ctx, PAGES)?;

    file.on_device(0..PAGES)?;
    sys::drop_caches()?;
    file.is_right()?;
    file.send(0..PAGES, Touch::Read)?;
    let file = Unmapped::of(file)?;
    sys::drop_caches()?;
    file.is_right()
}

/// A file whose mapping is gone, while its pages are where they were.
struct Unmapped {
    file: File,
    want: Vec<u8>,
}

impl Unmapped {
    fn of(file: Resident<'_>) -> Result<Self> {
        Ok(Unmapped {
            file: file.file.try_clone()?,
            want: file.close().1,
        })
    }

    fn is_right(&self) -> Result<()> {
        let mut got = vec![0; self.want.len()];
        std::os::unix::fs::FileExt::read_exact_at(&self.file, &mut got, 0)?;
        same_bytes("pread", &got, &self.want)
    }
}

/// Pages that were read from the disk, rather than written, compute and come back.
fn gpu_reads_from_disk(ctx: &Ctx) -> Result<()> {
    let (path, mut want) = Resident::dirty(ctx, PAGES)?.close();
    ctx.mount.remount()?;

    let file = File::options().read(true).write(true).open(&path)?;
    let map = Map::shared(&file, want.len())?;
    send(ctx.gpu()?, &map, 0..PAGES, Touch::Read)?;
    ctx.gpu()?.compute(Work::Add {
        dst: map.addr(),
        count: want.len() / 4,
        value: 9,
    })?;
    add_u32(&mut want, 9);
    same_bytes("mapping", &map.read_all(), &want)?;
    drop(map);
    drop(file);
    ctx.mount.remount()?;
    same_bytes("the disk", &fs::read(path)?, &want)
}
