// SPDX-License-Identifier: GPL-2.0
//! When the GPU may write: only where a write fault of the CPU has succeeded, so that holes are
//! allocated, errors come before the data, and a page that the GPU has changed is dirty.

use crate::case::Case;
use crate::case::Ctx;
use crate::check::same;
use crate::check::same_bytes;
use crate::resident::send;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::ensure;
use anyhow::Result;
use devcache_selftests::gpu::Direction;
use devcache_selftests::gpu::Migrated;
use devcache_selftests::gpu::Work;
use devcache_selftests::map::Map;
use devcache_selftests::model::Checksum;
use devcache_selftests::sys;
use devcache_selftests::PAGE;
use nix::fcntl::posix_fadvise;
use nix::fcntl::PosixFadviseAdvice;
use nix::sys::mman::MapFlags;
use nix::sys::mman::ProtFlags;
use std::fs;
use std::fs::File;
use std::os::unix::fs::MetadataExt;

pub(crate) const CASES: &[Case] = &[
    Case::every("counts", counts),
    Case::every("migrate_back", migrate_back),
    Case::every("gpu_write_stays_on_device", gpu_write_stays),
    Case::every("gpu_write_to_clean_page", gpu_write_to_clean),
    Case::every("gpu_write_read_only_mapping", gpu_write_read_only),
    Case::every("gpu_read_read_only_mapping", gpu_read_read_only),
    Case::every("fadvise_dontneed_dirty", fadvise_dirty),
    Case::every("admitted_by_another_mapping", admitted_by_another),
    Case::every("gpu_write_to_hole", gpu_write_to_hole),
    Case::every("gpu_read_of_hole", gpu_read_of_hole),
    Case::every("untouched_file_computes", untouched_file),
];

/// The kernel's counts of a migration are those of the pages.
fn counts(ctx: &Ctx) -> Result<()> {
    let file = Resident::in_ram(ctx, 8)?;
    file.map.touch_write(0..8)?;
    let gpu = ctx.gpu()?;
    let expect = |moved, present| Migrated {
        moved,
        present,
        skipped: 0,
    };

    same(
        "first half",
        gpu.migrate(&file.map, 0..4, Direction::ToVram)?,
        expect(4, 0),
    )?;
    same(
        "all",
        gpu.migrate(&file.map, 0..8, Direction::ToVram)?,
        expect(4, 4),
    )?;
    same(
        "again",
        gpu.migrate(&file.map, 0..8, Direction::ToVram)?,
        expect(0, 8),
    )?;
    same(
        "half back",
        gpu.migrate(&file.map, 0..4, Direction::ToRam)?,
        expect(4, 0),
    )?;
    same(
        "all back",
        gpu.migrate(&file.map, 0..8, Direction::ToRam)?,
        expect(4, 4),
    )?;
    file.is_right()
}

/// A program can send pages back by itself.
fn migrate_back(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 8)?;

    file.on_device(0..8)?;
    let counts = ctx.gpu()?.migrate(&file.map, 0..8, Direction::ToRam)?;
    same("pages that moved", counts.moved, 8)?;
    file.off_device(0..8)?;
    file.is_right()
}

/// Writing to a page that may be written leaves it on the device: that is what it is there for.
fn gpu_write_stays(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::in_ram(ctx, 8)?;

    file.send(0..8, Touch::Write)?;
    file.gpu_add(0..8, 1)?;
    file.on_device(0..8)?;
    file.is_right()
}

/// Writing to a clean page, admitted for reading, makes it dirty by the way of a write fault.
fn gpu_write_to_clean(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::clean(ctx, 8)?;

    file.on_device(0..8)?;
    file.gpu_sees(0..8)?;
    file.gpu_add(0..8, 1)?;
    posix_fadvise(&file.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    sys::drop_caches()?;
    file.is_right()
}

/// A mapping of a file opened for reading: the job fails with the address, and the file is unchanged.
fn gpu_write_read_only(ctx: &Ctx) -> Result<()> {
    let file = Resident::clean(ctx, 4)?;
    let map = read_only(&file)?;
    map.touch_read(0..4);

    file.on_device(0..4)
        .or_else(|_| file.send(0..4, Touch::Read))?;
    let ended = ctx.gpu()?.run(Work::Fill {
        dst: map.addr(),
        count: 4 * PAGE / 4,
        value: 0,
    })?;
    same("status", ended.status, -libc::EFAULT)?;
    same("fault address", ended.fault_addr, map.addr() as u64)?;
    file.is_right()
}

/// Maps a file opened for reading only.
fn read_only(file: &Resident<'_>) -> Result<Map> {
    Ok(Map::of_file(
        &File::open(&file.path)?,
        file.map.len(),
        ProtFlags::PROT_READ,
        MapFlags::MAP_SHARED,
    )?)
}

/// Reading through such a mapping, and moving it, works.
fn gpu_read_read_only(ctx: &Ctx) -> Result<()> {
    let file = Resident::in_ram(ctx, 4)?;
    let map = read_only(&file)?;

    send(ctx.gpu()?, &map, 0..4, Touch::Read)?;
    let sum = ctx.gpu()?.compute(Work::Checksum {
        src: map.addr(),
        count: 4 * PAGE / 4,
    })?;
    same("checksum", sum, Checksum::of(&file.want))?;
    file.is_right()
}

/// A page the GPU has changed is dirty: nothing that drops clean pages may drop it.
fn fadvise_dirty(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 8)?;

    file.on_device(0..8)?;
    posix_fadvise(&file.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    file.is_right()
}

/// The same for a page admitted by a mapping that may only read, while another mapping may write
/// without telling anybody, as on tmpfs: the page must be dirty from then on.
fn admitted_by_another(ctx: &Ctx) -> Result<()> {
    let file = ctx.file("resident")?;
    file.set_len(8 * PAGE as u64)?;
    let writable = Map::shared(&file, 8 * PAGE)?;
    let map = Map::of_file(&file, 8 * PAGE, ProtFlags::PROT_READ, MapFlags::MAP_SHARED)?;
    writable.touch_read(0..8);
    map.touch_read(0..8);
    send(ctx.gpu()?, &map, 0..8, Touch::Read)?;

    ctx.gpu()?.compute(Work::Fill {
        dst: writable.addr(),
        count: 8 * PAGE / 4,
        value: 0x2222_2222,
    })?;
    drop(writable);
    drop(map);
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    sys::drop_caches()?;
    same_bytes(
        "the file",
        &fs::read(ctx.path("resident"))?,
        &[0x22; 8 * PAGE],
    )
}

/// Writing to a hole allocates blocks.
fn gpu_write_to_hole(ctx: &Ctx) -> Result<()> {
    let file = ctx.file("resident")?;
    file.set_len(8 * PAGE as u64)?;
    let map = Map::shared(&file, 8 * PAGE)?;

    ctx.gpu()?.compute(Work::Fill {
        dst: map.addr(),
        count: 8 * PAGE / 4,
        value: 0x3333_3333,
    })?;
    file.sync_all()?;
    ensure!(
        file.metadata()?.blocks() * 512 >= 8 * PAGE as u64,
        "the hole is still there"
    );
    drop(map);
    drop(file);
    if ctx.mount.on_disk() {
        ctx.mount.remount()?;
    }
    same_bytes(
        "the file",
        &fs::read(ctx.path("resident"))?,
        &[0x33; 8 * PAGE],
    )
}

/// Reading a hole gives zeroes, on the device too.
fn gpu_read_of_hole(ctx: &Ctx) -> Result<()> {
    let file = ctx.file("resident")?;
    file.set_len(8 * PAGE as u64)?;
    let map = Map::shared(&file, 8 * PAGE)?;
    let sum = Work::Sum {
        src: map.addr(),
        count: 8 * PAGE / 4,
    };

    same("sum in RAM or wherever", ctx.gpu()?.compute(sum)?, 0)?;
    send(ctx.gpu()?, &map, 0..8, Touch::Read)?;
    same("sum on the device", ctx.gpu()?.compute(sum)?, 0)?;
    same_bytes("the file", &fs::read(ctx.path("resident"))?, &[0; 8 * PAGE])
}

/// A program that never asks for a migration gets right results too.
fn untouched_file(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::in_ram(ctx, 16)?;

    file.gpu_sees(0..16)?;
    file.gpu_add(0..16, 61)?;
    file.is_right()
}
