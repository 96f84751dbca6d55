// SPDX-License-Identifier: GPL-2.0
//! Writing into a file whose contents are only in VRAM: the rest of every page keeps what the GPU wrote.

use crate::case::Case;
use crate::case::Ctx;
use crate::check::same;
use crate::check::same_bytes;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::Result;
use devcache_selftests::gpu::Direction;
use devcache_selftests::gpu::Migrated;
use devcache_selftests::map::Map;
use devcache_selftests::PAGE;
use nix::sys::uio::pwritev;
use std::fs;
use std::io::IoSlice;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

/// Seconds for a write: one that waits for a page in vain ends when periodic writeback, every 30 seconds,
/// has brought the page back.
const LIMIT: u32 = 20;

pub(crate) const CASES: &[Case] = &[
    Case::every("pwrite_part", pwrite_part).limit(LIMIT),
    Case::every("pwrite_4k_at_odd_offset", pwrite_4k_at_odd_offset).limit(LIMIT),
    Case::every("pwrite_whole_page", pwrite_whole_page).limit(LIMIT),
    Case::every("pwritev", pwritev_gathered).limit(LIMIT),
    Case::every("append", append),
    Case::every("last_page_stays", last_page_stays),
    Case::every("mmap_write", mmap_write),
    Case::every("mmap_write_elsewhere", mmap_write_elsewhere),
    Case::every("gpu_sees_pwrite", gpu_sees_pwrite),
    Case::every("gpu_sees_mmap_write", gpu_sees_mmap_write),
    Case::every("ping_pong", ping_pong),
];

/// A write into a part of a device page brings it back before it is changed
/// (`__filemap_get_folio_mpol`, `shmem_get_folio_gfp`).
fn pwrite_part(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 4)?;
    file.on_device(0..4)?;
    file.pwrite(PAGE + 33, &[0xab; 100])?;
    file.is_right()
}

/// 4 KiB over the border of two device pages.
fn pwrite_4k_at_odd_offset(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 4)?;
    file.on_device(0..4)?;
    file.pwrite(PAGE + 1357, &[0xcd; PAGE])?;
    file.is_right()
}

/// A whole page: nothing of the old contents is needed, and nothing may be left of it.
fn pwrite_whole_page(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 4)?;
    file.on_device(0..4)?;
    file.pwrite(2 * PAGE, &[0xef; PAGE])?;
    file.is_right()?;
    file.send(0..4, Touch::Write)?;
    file.gpu_sees(0..4)
}

/// writev(2) of pieces whose borders are not those of pages.
fn pwritev_gathered(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 4)?;
    let pieces = [vec![1; 3000], vec![2; 10], vec![3; 5000]];
    let at = 777;

    file.on_device(0..4)?;
    let slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    same("bytes", pwritev(&file.file, &slices, 777)?, 8010)?;
    file.want[at..at + 8010].copy_from_slice(&pieces.concat());
    file.is_right()
}

/// A write behind the end, while all pages before it are on the device.
fn append(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 3)?;
    file.on_device(0..3)?;
    file.file.write_all_at(b"the end", 3 * PAGE as u64)?;

    let want = [file.want.as_slice(), b"the end"].concat();
    same_bytes("the file", &fs::read(&file.path)?, &want)
}

/// The page that straddles the end of the file is not admitted: zeroing behind the end works on it.
fn last_page_stays(ctx: &Ctx) -> Result<()> {
    let file = Resident::in_ram(ctx, 4)?;
    file.file.set_len(3 * PAGE as u64 + 500)?;
    file.map.touch_write(0..4)?;

    let counts = ctx.gpu()?.migrate(&file.map, 0..4, Direction::ToVram)?;
    same(
        "counts",
        counts,
        Migrated {
            moved: 3,
            present: 0,
            skipped: 1,
        },
    )?;
    file.on_device(0..3)?;
    file.off_device(3..4)?;
    same_bytes(
        "the file",
        &fs::read(&file.path)?,
        &file.want[..3 * PAGE + 500],
    )
}

/// A store through the mapping that was moved.
fn mmap_write(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 4)?;
    file.on_device(0..4)?;
    file.map.write(PAGE + 9, b"by the CPU");
    file.want[PAGE + 9..][..10].copy_from_slice(b"by the CPU");
    file.is_right()
}

/// A store through another mapping.
fn mmap_write_elsewhere(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 4)?;
    let other = Map::shared(&file.file, 4 * PAGE)?;

    file.on_device(0..4)?;
    other.write(2 * PAGE - 3, b"border");
    file.want[2 * PAGE - 3..][..6].copy_from_slice(b"border");
    file.is_right()
}

/// What write(2) stored is what the GPU reads, with no synchronisation in between.
fn gpu_sees_pwrite(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 4)?;
    file.on_device(0..4)?;
    file.pwrite(100, &[7; 2 * PAGE])?;
    file.gpu_sees(0..4)?;
    file.gpu_add(0..4, 5)?;
    file.is_right()
}

/// What a store through a mapping stored is what the GPU reads.
fn gpu_sees_mmap_write(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 4)?;
    file.on_device(0..4)?;
    file.map.write(3 * PAGE, b"abcd");
    file.want[3 * PAGE..][..4].copy_from_slice(b"abcd");
    file.gpu_sees(0..4)?;
    file.gpu_add(0..4, 5)?;
    file.is_right()
}

/// CPU and GPU take turns at one counter; no turn is lost.
fn ping_pong(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 1)?;

    for _ in 0..50 {
        file.gpu_add(0..1, 1)?;
        file.map.cell(64).fetch_add(1, Ordering::Relaxed);
        let cell = u32::from_le_bytes(file.want[64..68].try_into()?).wrapping_add(1);
        file.want[64..68].copy_from_slice(&cell.to_le_bytes());
    }
    file.is_right()
}
