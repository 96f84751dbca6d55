// SPDX-License-Identifier: GPL-2.0
//! Truncating, extending, and making or removing holes in a file whose pages are on the device.
//!
//! Pages that go away as a whole are dropped where they are; of those that go away in part, the part
//! that stays keeps what the GPU wrote and the other part becomes zero, also when the file grows over
//! it again.

use crate::case::skip;
use crate::case::Case;
use crate::case::Ctx;
use crate::check::same;
use crate::check::same_bytes;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::ensure;
use anyhow::Result;
use devcache_selftests::gpu::Work;
use devcache_selftests::PAGE;
use nix::errno::Errno;
use nix::fcntl::fallocate;
use nix::fcntl::FallocateFlags;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

pub(crate) const CASES: &[Case] = &[
    Case::every("truncate_mid_page", truncate_mid_page),
    Case::every("truncate_preallocated", truncate_preallocated),
    Case::every("truncate_on_border", truncate_on_border),
    Case::every("truncate_to_nothing", truncate_to_nothing),
    Case::every("truncate_frees_vram", truncate_frees_vram),
    Case::every("gpu_beyond_the_end", gpu_beyond_the_end),
    Case::every("extend", extend),
    Case::every("punch_hole", punch_hole),
    Case::every("punch_hole_in_one_page", punch_hole_in_one_page),
    Case::disk("zero_range", zero_range),
    Case::disk("collapse_range", collapse_range),
    Case::disk("insert_range", insert_range),
    Case::every("fallocate_over", fallocate_over),
    Case::every("unlink", unlink),
    Case::every("rename", rename),
    Case::every("overwrite_by_rename", overwrite_by_rename),
];

/// fallocate(2); a file system that does not know the mode skips the test.
fn change(file: &Resident<'_>, mode: FallocateFlags, range: &Range<usize>) -> Result<()> {
    let (offset, len) = (i64::try_from(range.start)?, i64::try_from(range.len())?);
    match fallocate(&file.file, mode, offset, len) {
        Err(Errno::EOPNOTSUPP) => skip("this file system does not know this kind of fallocate"),
        other => Ok(other?),
    }
}

/// What read(2) gives of the whole file must be `want`.
fn file_is(file: &Resident<'_>, want: &[u8]) -> Result<()> {
    same_bytes("the file", &fs::read(&file.path)?, want)
}

/// The page that a truncation cuts comes back and is zeroed behind the cut
/// (`truncate_inode_pages_range`, `shmem_get_partial_folio`): stale data would show after extending.
fn truncate_mid_page(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 4)?;
    let end = PAGE + 1234;

    file.on_device(0..4)?;
    file.file.set_len(end as u64)?;
    file.file.set_len(4 * PAGE as u64)?;
    file.want[end..].fill(0);
    file.is_right()?;
    file.send(0..3, Touch::Write)?;
    file.gpu_sees(0..4)
}

/// The same where blocks are allocated and not written yet: XFS zeroes only what it finds dirty in the
/// page cache (`__iomap_get_folio`).
fn truncate_preallocated(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::in_ram(ctx, 4)?;
    let (want, end) = (file.want.clone(), PAGE + 1234);
    file.file.set_len(0)?;
    change(&file, FallocateFlags::empty(), &(0..4 * PAGE))?;
    // Small folios: a large one is written out to be split.
    for (page, bytes) in want.chunks(PAGE).enumerate() {
        file.pwrite(page * PAGE, bytes)?;
    }
    file.send(0..4, Touch::Write)?;
    file.gpu_add(0..4, 17)?;
    file.send(0..4, Touch::Write)?;

    file.file.set_len(end as u64)?;
    file.file.set_len(4 * PAGE as u64)?;
    file.want[end..].fill(0);
    file.is_right()?;
    file.send(0..3, Touch::Write)?;
    file.gpu_sees(0..4)
}

/// A truncation at a page's border drops whole pages only. (The file's size is on the disk before: XFS
/// writes what lies before the new end if that is not so.)
fn truncate_on_border(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::clean(ctx, 4)?;

    file.on_device(0..4)?;
    file.file.set_len(2 * PAGE as u64)?;
    file.on_device(0..2)?;
    file.file.set_len(4 * PAGE as u64)?;
    file.want[2 * PAGE..].fill(0);
    file.is_right()
}

/// Everything goes.
fn truncate_to_nothing(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 8)?;

    file.on_device(0..8)?;
    file.file.set_len(0)?;
    file_is(&file, &[])?;
    file.file.set_len(8 * PAGE as u64)?;
    file.want.fill(0);
    file.is_right()
}

/// Waits until as much VRAM is free as `want`.
pub(crate) fn vram_becomes_free(ctx: &Ctx, want: u64) -> Result<()> {
    for _ in 0..100 {
        if ctx.gpu()?.vram_free()? == want {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(20));
    }
    same("bytes of free VRAM", ctx.gpu()?.vram_free()?, want)
}

/// Dropped pages give their VRAM back.
fn truncate_frees_vram(ctx: &Ctx) -> Result<()> {
    let before = ctx.gpu()?.vram_free()?;
    let file = Resident::clean(ctx, 64)?;

    file.on_device(0..64)?;
    same(
        "VRAM in use",
        before - ctx.gpu()?.vram_free()?,
        64 * PAGE as u64,
    )?;
    file.file.set_len(16 * PAGE as u64)?;
    vram_becomes_free(ctx, before - 16 * PAGE as u64)?;
    file.file.set_len(0)?;
    vram_becomes_free(ctx, before)
}

/// A page that was truncated away is not reached by an old translation: the job fails there.
fn gpu_beyond_the_end(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 4)?;

    file.gpu_sees(0..4)?;
    file.on_device(0..4)?;
    file.file.set_len(2 * PAGE as u64)?;
    let ended = ctx.gpu()?.run(Work::Fill {
        dst: file.map.addr(),
        count: 4 * PAGE / 4,
        value: 0x1111_1111,
    })?;
    same("status", ended.status, -libc::EFAULT)?;
    same(
        "fault address",
        ended.fault_addr,
        file.map.page_addr(2) as u64,
    )?;
    file_is(&file, &[0x11; 2 * PAGE])
}

/// Growing a file leaves its pages where they are and adds zeroes.
fn extend(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 4)?;

    file.on_device(0..4)?;
    file.file.set_len(6 * PAGE as u64)?;
    let want = [file.want.as_slice(), &[0; 2 * PAGE]].concat();
    file_is(&file, &want)
}

/// A hole over whole pages and two parts.
fn punch_hole(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 8)?;
    let hole = PAGE + 100..5 * PAGE + 200;
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;

    file.on_device(0..8)?;
    change(&file, mode, &hole)?;
    file.want[hole].fill(0);
    file.is_right()?;
    file.send(0..8, Touch::Write)?;
    file.gpu_sees(0..8)
}

/// A hole within one page.
fn punch_hole_in_one_page(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 3)?;
    let hole = PAGE + 10..PAGE + 20;
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;

    file.on_device(0..3)?;
    change(&file, mode, &hole)?;
    file.want[hole].fill(0);
    file.is_right()
}

/// Zeroing a range keeps what is around it.
fn zero_range(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 8)?;
    let range = 2 * PAGE + 5..6 * PAGE + 7;

    file.on_device(0..8)?;
    change(&file, FallocateFlags::FALLOC_FL_ZERO_RANGE, &range)?;
    file.want[range].fill(0);
    file.is_right()
}

/// Taking pages out of the middle moves what is behind them.
fn collapse_range(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 8)?;

    file.on_device(0..8)?;
    change(
        &file,
        FallocateFlags::FALLOC_FL_COLLAPSE_RANGE,
        &(2 * PAGE..4 * PAGE),
    )?;
    let want = [&file.want[..2 * PAGE], &file.want[4 * PAGE..]].concat();
    file_is(&file, &want)?;
    same_bytes("mapping", &file.map.read(0..6 * PAGE), &want)
}

/// Putting pages into the middle moves what is behind them.
fn insert_range(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 8)?;

    file.on_device(0..8)?;
    change(
        &file,
        FallocateFlags::FALLOC_FL_INSERT_RANGE,
        &(4 * PAGE..8 * PAGE - 2 * PAGE),
    )?;
    let want = [
        &file.want[..4 * PAGE],
        &[0; 2 * PAGE],
        &file.want[4 * PAGE..],
    ]
    .concat();
    file_is(&file, &want)?;
    same_bytes("mapping", &file.map.read_all(), &want[..8 * PAGE])
}

/// Allocating blocks where there is data changes nothing.
fn fallocate_over(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 4)?;

    file.on_device(0..4)?;
    change(&file, FallocateFlags::empty(), &(0..8 * PAGE))?;
    let want = [file.want.as_slice(), &[0; 4 * PAGE]].concat();
    file_is(&file, &want)
}

/// A file without a name lives until its last user goes, and then gives all VRAM back.
fn unlink(ctx: &Ctx) -> Result<()> {
    let before = ctx.gpu()?.vram_free()?;
    let mut file = Resident::dirty(ctx, 8)?;

    fs::remove_file(&file.path)?;
    file.on_device(0..8)?;
    file.gpu_add(0..8, 17)?;
    file.is_right()?;
    file.send(0..8, Touch::Write)?;
    drop(file);
    vram_becomes_free(ctx, before)
}

/// The name of a file does not matter.
fn rename(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 4)?;

    file.on_device(0..4)?;
    fs::rename(&file.path, ctx.path("new name"))?;
    file.on_device(0..4)?;
    same_bytes("the file", &fs::read(ctx.path("new name"))?, &file.want)
}

/// Renaming over another resident file, which ext4 writes out at that moment.
fn overwrite_by_rename(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 4)?;
    ctx.file("target")?.write_all_at(b"old", 0)?;

    file.on_device(0..4)?;
    fs::rename(&file.path, ctx.path("target"))?;
    file.gpu_add(0..4, 1)?;
    ensure!(!file.path.exists(), "the old name is still there");
    same_bytes("the file", &fs::read(ctx.path("target"))?, &file.want)
}
