// SPDX-License-Identifier: GPL-2.0
//! Changing mappings of device pages, giving advice on them, and asking about them.

use crate::case::Case;
use crate::case::Ctx;
use crate::check::same;
use crate::check::same_bytes;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::Result;
use devcache_selftests::gpu::Work;
use devcache_selftests::map::Map;
use devcache_selftests::map::READ_WRITE;
use devcache_selftests::model::add_u32;
use devcache_selftests::stats::Counters;
use devcache_selftests::sys;
use devcache_selftests::PAGE;
use nix::sys::mman::MmapAdvise;
use nix::sys::mman::ProtFlags;
use std::mem;

pub(crate) const CASES: &[Case] = &[
    Case::every("mincore", mincore),
    Case::every("cachestat", cachestat),
    Case::every("mprotect_read", mprotect_read),
    Case::every("mprotect_none", mprotect_none),
    Case::every("mremap", mremap),
    Case::every("munmap", munmap),
    Case::every("map_elsewhere_while_on_device", map_elsewhere),
    Case::every("madvise_dontneed", madvise_dontneed),
    Case::every("madvise_willneed", madvise_willneed),
    Case::every("madvise_cold", madvise_cold),
    Case::every("madvise_pageout", madvise_pageout),
    Case::every("madvise_remove", madvise_remove),
    Case::every("madvise_collapse", madvise_collapse),
    Case::every("madvise_populate", madvise_populate),
];

/// mincore(2) looks at the page cache under a page table lock: it counts device pages as resident and
/// leaves them alone (`filemap_get_entry` stays raw).
fn mincore(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 8)?;
    let other = Map::shared(&file.file, 8 * PAGE)?;

    file.on_device(0..8)?;
    same(
        "by the device entries",
        file.map.in_core(0..8)?,
        vec![true; 8],
    )?;
    same("by the page cache", other.in_core(0..8)?, vec![true; 8])?;
    file.on_device(0..8)?;
    file.is_right()
}

/// cachestat(2) counts device pages as cached, and as dirty where the page cache keeps count of that.
fn cachestat(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 8)?;

    file.on_device(0..8)?;
    let stat = sys::cachestat(&file.file, 0..8 * PAGE)?;
    same("cached pages", stat.cache, 8)?;
    if ctx.mount.on_disk() {
        same("dirty pages", stat.dirty, 8)?;
    }
    file.on_device(0..8)?;
    file.is_right()
}

/// A mapping that may not be written any more may not be written by the GPU either
/// (`change_softleaf_pte`, and the driver's interval notifier).
fn mprotect_read(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 4)?;
    let add = Work::Add {
        dst: file.map.addr(),
        count: 4 * PAGE / 4,
        value: 1,
    };

    file.on_device(0..4)?;
    file.map.protect(0..4, ProtFlags::PROT_READ)?;
    let ended = ctx.gpu()?.run(add)?;
    same("status", ended.status, -libc::EFAULT)?;
    same("fault address", ended.fault_addr, file.map.addr() as u64)?;
    file.gpu_sees(0..4)?;
    file.map.protect(0..4, READ_WRITE)?;
    file.gpu_add(0..4, 1)?;
    file.is_right()
}

/// A mapping without any right is out of the GPU's reach, and keeps what the GPU wrote before.
fn mprotect_none(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 4)?;

    file.on_device(0..4)?;
    file.gpu_sees(0..4)?;
    file.map.protect(0..4, ProtFlags::PROT_NONE)?;
    let ended = ctx.gpu()?.run(Work::Checksum {
        src: file.map.addr(),
        count: 4 * PAGE / 4,
    })?;
    same("status", ended.status, -libc::EFAULT)?;
    file.map.protect(0..4, READ_WRITE)?;
    file.is_right()
}

/// Device entries move to another address with the mapping; the old address is gone for the GPU too.
fn mremap(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 4)?;
    let old = file.map.addr();

    file.gpu_sees(0..4)?;
    file.on_device(0..4)?;
    let map = mem::replace(&mut file.map, Map::anonymous(PAGE)?);
    file.map = map.moved()?;
    file.on_device(0..4)?;
    file.gpu_add(0..4, 1)?;

    let ended = ctx.gpu()?.run(Work::Fill {
        dst: old,
        count: PAGE / 4,
        value: 0,
    })?;
    same("status at the old address", ended.status, -libc::EFAULT)?;
    file.is_right()
}

/// Unmapping device pages of a file leaves them in the page cache (`zap_nonpresent_ptes`).
fn munmap(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 8)?;
    let core = Counters::core()?;

    file.on_device(0..8)?;
    let map = mem::replace(&mut file.map, Map::anonymous(PAGE)?);
    drop(map);
    let unmapped = Counters::core()?;
    same(
        "pages that came back by unmapping",
        unmapped.get("pages_back")? - core.get("pages_back")?,
        0,
    )?;
    file.file_is_right()
}

/// A page is mapped a second time while it is on the device, for the GPU: both addresses are one page.
fn map_elsewhere(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 4)?;
    let other = Map::shared(&file.file, 4 * PAGE)?;

    file.on_device(0..4)?;
    ctx.gpu()?.compute(Work::Add {
        dst: other.addr(),
        count: 4 * PAGE / 4,
        value: 3,
    })?;
    add_u32(&mut file.want, 3);
    file.gpu_sees(0..4)?;
    file.gpu_add(0..4, 4)?;
    same_bytes("other mapping", &other.read_all(), &file.want)?;
    file.is_right()
}

/// MADV_DONTNEED forgets page table entries, not the file's contents.
fn madvise_dontneed(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 4)?;

    file.on_device(0..4)?;
    file.map.advise(0..4, MmapAdvise::MADV_DONTNEED)?;
    file.gpu_add(0..4, 1)?;
    file.is_right()
}

/// MADV_WILLNEED finds the pages cached.
fn madvise_willneed(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 4)?;

    file.on_device(0..4)?;
    file.map.advise(0..4, MmapAdvise::MADV_WILLNEED)?;
    file.is_right()
}

/// MADV_COLD walks over device entries.
fn madvise_cold(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 4)?;

    file.on_device(0..4)?;
    file.map.advise_raw(0..4, libc::MADV_COLD)?;
    file.is_right()
}

/// MADV_PAGEOUT walks over device entries.
fn madvise_pageout(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 4)?;

    file.on_device(0..4)?;
    file.map.advise_raw(0..4, libc::MADV_PAGEOUT)?;
    file.is_right()
}

/// MADV_REMOVE punches a hole: nothing of the device's contents is left.
fn madvise_remove(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 8)?;

    file.on_device(0..8)?;
    file.map.advise(2..5, MmapAdvise::MADV_REMOVE)?;
    file.want[2 * PAGE..5 * PAGE].fill(0);
    file.gpu_sees(0..8)?;
    file.is_right()
}

/// MADV_COLLAPSE makes no huge page of device pages (`collapse_scan_file`); whether it fails or not,
/// the contents stay.
fn madvise_collapse(ctx: &Ctx) -> Result<()> {
    let huge = 2 << 20;
    let file = Resident::dirty(ctx, 2 * huge / PAGE)?;
    let first = (file.map.addr().next_multiple_of(huge) - file.map.addr()) / PAGE;

    file.on_device(0..file.pages())?;
    // Without huge pages for files the kernel says EINVAL, with them that it could not.
    let _ = file
        .map
        .advise_raw(first..first + huge / PAGE, libc::MADV_COLLAPSE);
    file.is_right()
}

/// MADV_POPULATE_READ and _WRITE bring pages back, as the touching they stand for does.
fn madvise_populate(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 4)?;

    file.on_device(0..4)?;
    file.map.advise_raw(0..2, libc::MADV_POPULATE_READ)?;
    file.map.advise_raw(2..4, libc::MADV_POPULATE_WRITE)?;
    file.off_device(0..4)?;
    file.is_right()?;
    file.send(0..4, Touch::Write)?;
    file.gpu_add(0..4, 1)?;
    file.is_right()
}
