// SPDX-License-Identifier: GPL-2.0
//! Copies that fail, and memory of the device that loses what was stored.
//!
//! What must come of it is in Documentation/mm/devcache.rst, "Errors": a clean page is read from the
//! disk again, the loss of a dirty one is told by fsync once for each open file, and a page of tmpfs is
//! an error until it is truncated. Never is the content zeroes, or older than what the disk has.

use crate::case::skip;
use crate::case::Case;
use crate::case::Ctx;
use crate::check::refused;
use crate::check::same;
use crate::check::same_bytes;
use crate::knobs::Knob;
use crate::knobs::Knobs;
use crate::knobs::ALWAYS;
use crate::resident::send;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::gpu::Direction;
use devcache_selftests::gpu::Work;
use devcache_selftests::map::Map;
use devcache_selftests::pagemap;
use devcache_selftests::pagemap::Place;
use devcache_selftests::stats::Counters;
use devcache_selftests::sys::in_child;
use devcache_selftests::PAGE;
use nix::fcntl::fallocate;
use nix::fcntl::FallocateFlags;
use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt;

pub(crate) const CASES: &[Case] = &[
    Case::disk("copy_error_clean", clean),
    Case::disk("copy_error_dirty", dirty),
    Case::disk("copy_error_fsync", fsync),
    Case::every("copy_error_tmpfs", tmpfs),
    Case::every("copy_error_one_page", one_page),
    Case::every("copy_error_out", out),
    Case::once("copy_error_anonymous", anonymous),
    Case::every("poisoned_vram", poisoned),
];

const PAGES: usize = 16;

/// Runs `work`, during which so many pages must be lost, and no more.
pub(crate) fn loses(pages: u64, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let lost = || Counters::core()?.get("pages_lost");
    let before = lost()?;
    work()?;
    same("pages lost", lost()? - before, pages)
}

/// Reads a page with pread(2).
fn read_page(file: &File, page: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; PAGE];
    file.read_exact_at(&mut bytes, (page * PAGE) as u64)?;
    Ok(bytes)
}

/// The pages of `file` that must be what they were, read one by one.
fn are_not_lost(file: &Resident, mut pages: impl Iterator<Item = usize>) -> Result<()> {
    pages.try_for_each(|page| {
        let want = &file.want[page * PAGE..][..PAGE];
        let got = read_page(&file.file, page)?;
        same_bytes("a page that was not lost", &got, want)
    })
}

/// The errno of a failed call.
fn errno<T>(result: std::io::Result<T>) -> Result<T, i32> {
    result.map_err(|error| error.raw_os_error().unwrap_or(0))
}

/// Something must raise SIGBUS.
pub(crate) fn sigbus(work: impl FnOnce()) -> Result<()> {
    let result = in_child(|| {
        work();
        Ok(())
    });
    let error = result.err().context("there was no SIGBUS")?.to_string();
    ensure!(error.contains("SIGBUS"), "{error}");
    Ok(())
}

/// A load from a page must raise SIGBUS.
pub(crate) fn load_is_sigbus(file: &Resident<'_>, page: usize) -> Result<()> {
    sigbus(|| file.map.touch_read(page..page + 1)).with_context(|| format!("page {page}"))
}

/// A file whose dirty pages are on the device, and what the disk has of them.
pub(crate) fn dirty_on_disk(ctx: &Ctx) -> Result<(Resident<'_>, Vec<u8>)> {
    let mut file = Resident::in_ram(ctx, PAGES)?;
    file.file.sync_all()?;
    let disk = file.want.clone();
    file.send(0..PAGES, Touch::Write)?;
    file.gpu_add(0..PAGES, 0x0303_0303)?;
    file.on_device(0..PAGES)?;
    Ok((file, disk))
}

/// fsync of both files says EIO, once.
pub(crate) fn fsync_fails_once(first: &File, second: &File) -> Result<()> {
    for (name, file) in [("first", first), ("second", second)] {
        let result = errno(file.sync_all());
        refused(&format!("fsync of the {name} file"), result, libc::EIO)?;
        file.sync_all().context("another fsync of it")?;
    }
    Ok(())
}

/// Clean pages whose copy fails come from the disk, and nobody notices.
fn clean(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::clean(ctx, PAGES)?;
    let knobs = Knobs::new()?;
    knobs.set(Knob::CopyError, ALWAYS)?;

    loses(PAGES as u64, || {
        file.map_is_right()?;
        file.off_device(0..PAGES)
    })?;
    knobs.set(Knob::CopyError, 0)?;
    file.file.sync_all().context("nothing was lost")?;

    // Everything is as ever.
    file.send(0..PAGES, Touch::Write)?;
    file.gpu_add(0..PAGES, 5)?;
    file.is_right()
}

/// Dirty pages whose copy fails are lost: the disk's are there instead, and fsync tells.
fn dirty(ctx: &Ctx) -> Result<()> {
    let (mut file, disk) = dirty_on_disk(ctx)?;
    let other = File::open(&file.path)?;
    let knobs = Knobs::new()?;
    knobs.set(Knob::CopyError, ALWAYS)?;

    loses(PAGES as u64, || {
        same_bytes(
            "read(2)",
            &read_page(&file.file, 3)?,
            &disk[3 * PAGE..4 * PAGE],
        )?;
        same_bytes("all of the mapping", &file.map.read_all(), &disk)
    })?;
    knobs.set(Knob::CopyError, 0)?;
    fsync_fails_once(&file.file, &other)?;

    file.want = disk;
    file.is_right()?;
    file.pwrite(100, b"again")?;
    file.file.sync_all()?;
    drop(other);
    let (path, want) = file.close();
    ctx.mount.remount()?;
    same_bytes("after mounting again", &fs::read(path)?, &want)
}

/// The same when it is fsync that brings them back.
fn fsync(ctx: &Ctx) -> Result<()> {
    let (mut file, disk) = dirty_on_disk(ctx)?;
    let other = File::open(&file.path)?;
    let knobs = Knobs::new()?;
    knobs.set(Knob::CopyError, ALWAYS)?;

    loses(PAGES as u64, || fsync_fails_once(&file.file, &other))?;
    knobs.set(Knob::CopyError, 0)?;
    file.want = disk;
    file.is_right()
}

/// Pages of tmpfs whose copy fails are errors from then on, until they are truncated.
fn tmpfs(ctx: &Ctx) -> Result<()> {
    if ctx.mount.on_disk() {
        return skip("for files that are nowhere else");
    }
    let mut file = Resident::dirty(ctx, PAGES)?;
    let knobs = Knobs::new()?;
    knobs.set(Knob::CopyError, ALWAYS)?;

    loses(3, || {
        refused("read(2)", errno(read_page(&file.file, 0)), libc::EIO)?;
        load_is_sigbus(&file, 1)?;
        let result = errno(file.file.write_at(b"part", (2 * PAGE + 7) as u64));
        refused("write(2) to a part", result, libc::EIO)
    })?;
    knobs.set(Knob::CopyError, 0)?;
    for page in 0..3 {
        refused(
            "read(2) later",
            errno(read_page(&file.file, page)),
            libc::EIO,
        )?;
        load_is_sigbus(&file, page)?;
    }
    let ended = ctx.gpu()?.run(Work::Sum {
        src: file.map.addr(),
        count: 4,
    })?;
    ensure!(ended.status != 0, "the GPU could read a lost page");
    are_not_lost(&file, 3..PAGES)?;

    // One is punched out, the others are cut off.
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file.file, punch, 0, PAGE as i64)?;
    same_bytes("the hole", &read_page(&file.file, 0)?, &[0; PAGE])?;
    file.file.set_len(PAGE as u64)?;
    file.file.set_len((PAGES * PAGE) as u64)?;
    file.want.fill(0);
    file.is_right()?;
    file.send(0..PAGES, Touch::Write)?;
    file.gpu_add(0..PAGES, 6)?;
    file.is_right()
}

/// Of many pages only the one is lost whose copy failed.
fn one_page(ctx: &Ctx) -> Result<()> {
    let (file, disk) = dirty_on_disk(ctx)?;
    let knobs = Knobs::new()?;
    knobs.set(Knob::CopyError, 1)?;

    let mut wrong = Vec::new();
    loses(1, || {
        for page in 0..PAGES {
            let range = page * PAGE..(page + 1) * PAGE;
            match read_page(&file.file, page) {
                Ok(got) if got == file.want[range.clone()] => {}
                Ok(got) if ctx.mount.on_disk() => {
                    same_bytes("the page that was lost", &got, &disk[range])?;
                    wrong.push(page);
                }
                got => {
                    refused("read(2)", errno(got), libc::EIO)?;
                    wrong.push(page);
                }
            }
        }
        Ok(())
    })?;
    knobs.is_used_up(Knob::CopyError)?;
    same("number of pages that were lost", wrong.len(), 1)
}

/// Pages that cannot be copied to the device stay where they are.
fn out(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::in_ram(ctx, PAGES)?;
    file.map.touch_write(0..PAGES)?;
    let gpu = ctx.gpu()?;
    let knobs = Knobs::new()?;
    knobs.set(Knob::CopyError, ALWAYS)?;

    let free = gpu.vram_free()?;
    loses(0, || {
        let migrated = gpu.migrate(&file.map, 0..PAGES, Direction::ToVram)?;
        same("pages moved", migrated.moved, 0)?;
        same("pages skipped", migrated.skipped, PAGES as u64)?;
        same("free VRAM", gpu.vram_free()?, free)?;
        let left = pagemap::elsewhere(&file.map, 0..PAGES, Place::Ram)?;
        same("pages that are not in memory", left, vec![])?;
        file.is_right()?;

        knobs.set(Knob::CopyError, 1)?;
        file.send(0..PAGES, Touch::Write)?;
        knobs.is_used_up(Knob::CopyError)?;
        file.gpu_add(0..PAGES, 7)?;
        file.is_right()
    })
}

/// Anonymous memory that cannot be copied is an error, and is there again when it can.
fn anonymous(ctx: &Ctx) -> Result<()> {
    let map = Map::anonymous(4 * PAGE)?;
    map.write(0, &[9; 4 * PAGE]);
    send(ctx.gpu()?, &map, 0..4, Touch::Write)?;
    let knobs = Knobs::new()?;
    knobs.set(Knob::CopyError, ALWAYS)?;

    sigbus(|| map.touch_read(1..2))?;
    knobs.set(Knob::CopyError, 0)?;
    same_bytes("memory", &map.read_all(), &[9; 4 * PAGE])
}

/// VRAM loses what was stored: the GPU's job fails, and so does the way back.
fn poisoned(ctx: &Ctx) -> Result<()> {
    let file = Resident::in_ram(ctx, PAGES)?;
    file.file.sync_all()?;
    let knobs = Knobs::new()?;
    knobs.set(Knob::Poison, 1)?;
    file.send(0..PAGES, Touch::Read)?;
    knobs.is_used_up(Knob::Poison)?;

    let sum = Work::Sum {
        src: file.map.addr(),
        count: PAGES * PAGE / 4,
    };
    let ended = ctx.gpu()?.run(sum)?;
    same("status of the job", ended.status, -libc::EIO)?;
    let page = (usize::try_from(ended.fault_addr)? - file.map.addr()) / PAGE;
    loses(1, || {
        if ctx.mount.on_disk() {
            return file.is_right();
        }
        refused("read(2)", errno(read_page(&file.file, page)), libc::EIO)?;
        load_is_sigbus(&file, page)?;
        are_not_lost(&file, (0..PAGES).filter(|other| *other != page))
    })
}
