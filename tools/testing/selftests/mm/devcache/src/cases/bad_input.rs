// SPDX-License-Identifier: GPL-2.0
//! Migrations that cannot be: a clear error or a count, and nothing lost.

use crate::case::skip;
use crate::case::Case;
use crate::case::Ctx;
use crate::check::refused;
use crate::check::same;
use crate::check::same_bytes;
use crate::resident::Resident;
use anyhow::ensure;
use anyhow::Result;
use devcache_selftests::gpu::Direction;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::map::Map;
use devcache_selftests::map::READ_WRITE;
use devcache_selftests::pagemap;
use devcache_selftests::pagemap::Place;
use devcache_selftests::sys::in_child;
use devcache_selftests::uapi;
use devcache_selftests::PAGE;
use nix::errno::Errno;
use nix::sys::mman::ProtFlags;
use std::fs;

pub(crate) const CASES: &[Case] = &[
    Case::once("migrate_unmapped", unmapped),
    Case::once("migrate_hole_in_range", hole_in_range),
    Case::once("migrate_misaligned", misaligned),
    Case::once("migrate_overflow", overflow),
    Case::once("migrate_bad_arguments", bad_arguments),
    Case::every("migrate_prot_none", prot_none),
    Case::once("migrate_foreign_memory", foreign_memory),
    Case::once("migrate_not_attached", not_attached),
    Case::once("attach_twice", attach_twice),
    Case::once("migrate_from_other_process", other_process),
    Case::once("get_param", get_param),
    Case::once("unknown_ioctl", unknown_ioctl),
    Case::once("vram_full", vram_full).limit(120),
    Case::every("vram_full_of_file", vram_full_of_file).limit(120),
];

/// A range nothing is mapped at.
fn unmapped(ctx: &Ctx) -> Result<()> {
    let map = Map::anonymous(4 * PAGE)?;
    let start = map.addr();
    drop(map);
    for direction in [Direction::ToVram, Direction::ToRam] {
        let result = ctx.gpu()?.migrate_range(start, 4 * PAGE, direction);
        refused("unmapped range", result, Errno::ENOMEM)?;
    }
    Ok(())
}

/// A range with a hole: the range is checked before any page is moved.
fn hole_in_range(ctx: &Ctx) -> Result<()> {
    let map = Map::anonymous(16 * PAGE)?;
    map.write(0, &[7; 16 * PAGE]);
    // SAFETY: Nobody uses these pages of the mapping afterwards.
    let result = unsafe { libc::munmap(map.page_addr(8) as *mut libc::c_void, PAGE) };
    Errno::result(result)?;

    let result = ctx.gpu()?.migrate(&map, 0..16, Direction::ToVram);
    refused("range with a hole", result, Errno::ENOMEM)?;
    let moved = pagemap::elsewhere(&map, 0..8, Place::Ram)?;
    same("pages that moved all the same", moved, vec![])?;
    same_bytes("memory", &map.read(0..8 * PAGE), &[7; 8 * PAGE])
}

/// Addresses and lengths that are not those of pages.
fn misaligned(ctx: &Ctx) -> Result<()> {
    let map = Map::anonymous(4 * PAGE)?;
    map.touch_write(0..4)?;
    let gpu = ctx.gpu()?;

    for (start, length) in [
        (map.addr() + 1, PAGE),
        (map.addr() + 4, PAGE),
        (map.addr(), PAGE + 1),
        (map.addr(), 1),
        (map.addr(), 0),
    ] {
        let result = gpu.migrate_range(start, length, Direction::ToVram);
        refused(
            &format!("{length} bytes at {start:#x}"),
            result,
            Errno::EINVAL,
        )?;
    }
    Ok(())
}

/// Ranges that wrap around or end beyond what can be reached.
fn overflow(ctx: &Ctx) -> Result<()> {
    let map = Map::anonymous(PAGE)?;
    let gpu = ctx.gpu()?;

    let result = gpu.migrate_range(map.addr(), 0_usize.wrapping_sub(PAGE), Direction::ToVram);
    refused("wrapping range", result, Errno::EINVAL)?;
    let result = gpu.migrate_range(0_usize.wrapping_sub(PAGE), 2 * PAGE, Direction::ToVram);
    refused("range over the end", result, Errno::EINVAL)?;
    let result = gpu.migrate_range(1 << 62, PAGE, Direction::ToVram);
    refused("address beyond all", result, Errno::ENOMEM)
}

/// Flags that do not exist and a direction that does not either.
fn bad_arguments(ctx: &Ctx) -> Result<()> {
    let map = Map::anonymous(PAGE)?;
    map.touch_write(0..1)?;
    let good = uapi::drm_vsvm_migrate {
        start: map.addr() as u64,
        length: PAGE as u64,
        ..Default::default()
    };

    for flags in [1, 1 << 31] {
        let result = ctx
            .gpu()?
            .migrate_raw(&mut uapi::drm_vsvm_migrate { flags, ..good });
        refused("flags", result, Errno::EINVAL)?;
    }
    for direction in [2, u32::MAX] {
        let result = ctx
            .gpu()?
            .migrate_raw(&mut uapi::drm_vsvm_migrate { direction, ..good });
        refused("direction", result, Errno::EINVAL)?;
    }
    Ok(ctx.gpu()?.migrate_raw(&mut { good })?)
}

/// Memory without any access right, anonymous and of a file.
fn prot_none(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 4)?;

    file.on_device(0..4)?;
    file.map.protect(1..2, ProtFlags::PROT_NONE)?;
    let result = ctx.gpu()?.migrate(&file.map, 0..4, Direction::ToVram);
    refused("PROT_NONE", result, Errno::EACCES)?;
    file.map.protect(1..2, READ_WRITE)?;
    file.is_right()
}

/// Pages of the kernel's own, which it maps into every process, stay where they are.
fn foreign_memory(ctx: &Ctx) -> Result<()> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let line = maps
        .lines()
        .find(|line| line.ends_with("[vvar]"))
        .or_else(|| maps.lines().find(|line| line.ends_with("[vdso]")));
    let Some((start, _)) = line.and_then(|line| line.split_once('-')) else {
        return skip("this process has no mapping made by the kernel");
    };
    let start = usize::from_str_radix(start, 16)?;

    match ctx.gpu()?.migrate_range(start, PAGE, Direction::ToVram) {
        Ok(counts) => same("pages that moved", counts.moved, 0),
        result => refused("memory of the kernel", result, Errno::EOPNOTSUPP),
    }
}

/// A file without an address space.
fn not_attached(_: &Ctx) -> Result<()> {
    let map = Map::anonymous(PAGE)?;
    map.touch_write(0..1)?;
    let gpu = Gpu::open_detached()?;
    refused(
        "before attaching",
        gpu.migrate(&map, 0..1, Direction::ToVram),
        Errno::ENXIO,
    )
}

/// One address space for one file.
fn attach_twice(ctx: &Ctx) -> Result<()> {
    refused("second attach", ctx.gpu()?.attach(), Errno::EBUSY)
}

/// A child has its parent's file, but not its address space.
fn other_process(ctx: &Ctx) -> Result<()> {
    let map = Map::anonymous(PAGE)?;
    map.touch_write(0..1)?;
    let gpu = ctx.gpu()?;
    in_child(|| {
        refused(
            "migrate",
            gpu.migrate(&map, 0..1, Direction::ToVram),
            Errno::EPERM,
        )
    })
}

/// Parameters: what they are, and what is not one.
fn get_param(ctx: &Ctx) -> Result<()> {
    let gpu = ctx.gpu()?;
    same("version", gpu.param(uapi::DRM_VSVM_PARAM_VERSION)?, 1)?;
    same(
        "page size",
        gpu.param(uapi::DRM_VSVM_PARAM_PAGE_SIZE)?,
        PAGE as u64,
    )?;
    let total = gpu.param(uapi::DRM_VSVM_PARAM_VRAM_TOTAL)?;
    ensure!(gpu.vram_free()? <= total, "more VRAM is free than there is");
    refused("unknown parameter", gpu.param(1000), Errno::EINVAL)
}

/// A request the driver does not have.
fn unknown_ioctl(ctx: &Ctx) -> Result<()> {
    let mut argument = [0_u64; 8];
    let request = nix::request_code_readwrite!(b'd', 0x9e, size_of_val(&argument));
    let fd = std::os::fd::AsRawFd::as_raw_fd(ctx.gpu()?.file());
    // SAFETY: The request carries the size of the argument.
    let result = unsafe { libc::ioctl(fd, request, argument.as_mut_ptr()) };
    refused("unknown request", Errno::result(result), Errno::EINVAL)
}

/// More pages than VRAM can hold: the kernel moves some, says how many, and loses none.
fn vram_full(ctx: &Ctx) -> Result<()> {
    let pages = more_pages_than_vram(ctx)?;
    let map = Map::anonymous(pages * PAGE)?;
    overfill(ctx, &map, pages)
}

/// The same with the pages of a file.
fn vram_full_of_file(ctx: &Ctx) -> Result<()> {
    let pages = more_pages_than_vram(ctx)?;
    let file = ctx.file("large")?;
    if let Err(error) = nix::fcntl::posix_fallocate(&file, 0, i64::try_from(pages * PAGE)?) {
        ensure!(error == Errno::ENOSPC, "fallocate: {error}");
        return skip("the file system is smaller than VRAM");
    }
    let map = Map::shared(&file, pages * PAGE)?;
    overfill(ctx, &map, pages)
}

/// A number of pages that VRAM cannot hold and memory can.
fn more_pages_than_vram(ctx: &Ctx) -> Result<usize> {
    let total = ctx.gpu()?.param(uapi::DRM_VSVM_PARAM_VRAM_TOTAL)?;
    let total = usize::try_from(total)?;
    if total > 512 << 20 {
        return skip("too much VRAM to fill it within the time limit");
    }
    Ok(total / PAGE + 2048)
}

/// Stores a number into every page, moves all of them, and looks for some of the numbers.
fn overfill(ctx: &Ctx, map: &Map, pages: usize) -> Result<()> {
    let number = |page: usize| {
        u32::try_from(page)
            .expect("few")
            .wrapping_mul(2_654_435_761)
    };
    let store = |page: usize| map.write(page * PAGE + 8, &number(page).to_le_bytes());
    (0..pages).for_each(store);

    let counts = ctx.gpu()?.migrate(map, 0..pages, Direction::ToVram)?;
    println!("{counts:?} of {pages}");
    ensure!(counts.moved > 0, "no page moved");
    same(
        "pages in all",
        counts.moved + counts.present + counts.skipped,
        pages as u64,
    )?;

    // Bringing back every page takes long and would say no more.
    for page in (0..pages).step_by(16) {
        let got = map.read(page * PAGE + 8..page * PAGE + 12);
        let got = u32::from_le_bytes(got.try_into().expect("4 bytes"));
        same(&format!("number in page {page}"), got, number(page))?;
    }
    Ok(())
}
