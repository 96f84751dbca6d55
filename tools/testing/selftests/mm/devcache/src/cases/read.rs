// SPDX-License-Identifier: GPL-2.0
//! Reading a file whose contents are only in VRAM, by read(2) and its kin and through mappings.

use crate::case::skip;
use crate::case::Case;
use crate::case::Ctx;
use crate::check::refused;
use crate::check::same;
use crate::check::same_bytes;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::Result;
use devcache_selftests::map::Map;
use devcache_selftests::pagemap;
use devcache_selftests::pagemap::Place;
use devcache_selftests::sys;
use devcache_selftests::PAGE;
use nix::errno::Errno;
use nix::sys::mman::MapFlags;
use nix::sys::mman::ProtFlags;
use nix::sys::uio::preadv;
use std::fs::File;
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;

pub(crate) const CASES: &[Case] = &[
    Case::every("mmap_read", mmap_read),
    Case::every("mmap_read_elsewhere", mmap_read_elsewhere),
    Case::every("fault_around", fault_around),
    Case::every("pread", pread),
    Case::every("pread_mixed", pread_mixed),
    Case::every("pread_unaligned", pread_unaligned),
    Case::every("preadv", preadv_scattered),
    Case::every("pread_last_page", pread_last_page),
    Case::every("nowait", nowait),
    Case::every("nowait_short", nowait_short),
    Case::every("only_what_is_read_returns", only_what_is_read_returns),
    Case::every("read_again_and_again", read_again_and_again),
];

/// A CPU load of a device page brings it back with what the GPU wrote (`do_swap_page`).
fn mmap_read(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 8)?;
    file.on_device(0..8)?;
    file.map_is_right()?;
    file.off_device(0..8)
}

/// A mapping that had no page table entry asks the page cache (`filemap_fault` and, on tmpfs,
/// `shmem_get_folio_gfp`), which must not hand out a device page.
fn mmap_read_elsewhere(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 8)?;
    let other = Map::of_file(
        &File::open(&file.path)?,
        8 * PAGE,
        ProtFlags::PROT_READ,
        MapFlags::MAP_SHARED,
    )?;

    file.on_device(0..8)?;
    same_bytes("other mapping", &other.read_all(), &file.want)?;
    file.off_device(0..8)
}

/// Fault-around maps what lies around a fault, but not device pages (`next_uptodate_folio`).
fn fault_around(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 16)?;
    let even = (0..16).step_by(2);
    for page in even {
        file.map.touch_read(page..page + 1);
    }
    let odd: Vec<usize> = (1..16).step_by(2).collect();
    let other = Map::shared(&file.file, 16 * PAGE)?;

    same(
        "on the device",
        pagemap::elsewhere(&file.map, 0..16, Place::Ram)?,
        odd.clone(),
    )?;
    other.touch_read(8..9);
    for page in odd {
        file.on_device(page..page + 1)?;
        same(
            "neighbour in the other mapping",
            pagemap::places(&other, page..page + 1)?[0],
            Place::None,
        )?;
    }
    same_bytes("other mapping", &other.read_all(), &file.want)
}

/// read(2) of device pages gives what the GPU wrote (`filemap_get_pages`).
fn pread(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 8)?;
    file.on_device(0..8)?;
    file.file_is_right()?;
    file.off_device(0..8)
}

/// One read across pages that are in RAM and on the device in turn is neither short nor endless
/// (`filemap_get_read_batch`, `filemap_get_pages`).
fn pread_mixed(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 32)?;
    for page in [0, 1, 3, 6, 10, 15, 21, 28] {
        file.map.touch_read(page..page + 1);
    }

    let mut got = vec![0; 32 * PAGE];
    file.on_device(7..10)?;
    same("bytes read", file.file.read_at(&mut got, 0)?, got.len())?;
    same_bytes("pread", &got, &file.want)
}

/// Reads that begin and end within a device page.
fn pread_unaligned(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 4)?;
    let range = PAGE - 100..3 * PAGE + 77;
    let mut got = vec![0; range.len()];

    file.on_device(0..4)?;
    same(
        "bytes",
        file.file.read_at(&mut got, range.start as u64)?,
        range.len(),
    )?;
    same_bytes("pread", &got, &file.want[range])
}

/// readv(2) into several buffers whose borders are not those of pages.
fn preadv_scattered(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 4)?;
    let mut first = vec![0; 1000];
    let mut second = vec![0; 2 * PAGE];
    let mut third = vec![0; 2 * PAGE - 1000];

    file.on_device(0..4)?;
    let len = preadv(
        &file.file,
        &mut [
            IoSliceMut::new(&mut first),
            IoSliceMut::new(&mut second),
            IoSliceMut::new(&mut third),
        ],
        0,
    )?;
    same("bytes", len, 4 * PAGE)?;
    same_bytes("readv", &[first, second, third].concat(), &file.want)
}

/// A read that ends at the end of the file, in a device page.
fn pread_last_page(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 3)?;
    let mut got = vec![0; 2 * PAGE];

    file.on_device(2..3)?;
    let len = file.file.read_at(&mut got, 2 * PAGE as u64 + 10)?;
    same("bytes", len, PAGE - 10)?;
    same_bytes("pread", &got[..len], &file.want[2 * PAGE + 10..])
}

/// A read that must not wait, if the file system knows such reads.
fn read_nowait(file: &Resident<'_>, len: usize) -> Result<Result<Vec<u8>, Errno>> {
    match sys::read_nowait(&file.file, 0..len) {
        Err(Errno::EOPNOTSUPP) => skip("this file system does not know RWF_NOWAIT"),
        result => Ok(result),
    }
}

/// A read that must not wait does not wait for the device: EAGAIN, and the page stays where it is
/// (`filemap_get_pages`).
fn nowait(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 2)?;

    file.on_device(0..2)?;
    let got = read_nowait(&file, PAGE)?.map(|bytes| bytes.len());
    refused("bytes read without waiting", got, Errno::EAGAIN)?;
    file.on_device(0..2)?;
    file.file_is_right()
}

/// A read that must not wait gives what it can before the first device page.
fn nowait_short(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 4)?;
    file.map.touch_read(0..2);

    file.on_device(2..4)?;
    let got = read_nowait(&file, 4 * PAGE)??;
    same("bytes read without waiting", got.len(), 2 * PAGE)?;
    file.on_device(2..4)?;
    same_bytes("what was read", &got, &file.want[..2 * PAGE])
}

/// Reading some pages leaves those far away on the device: a lookup is not an eviction.
fn only_what_is_read_returns(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 256)?;
    let mut got = vec![0; PAGE];

    file.on_device(0..256)?;
    file.file.read_exact_at(&mut got, 0)?;
    same_bytes("pread", &got, &file.want[..PAGE])?;
    file.on_device(128..256)
}

/// Going to and fro many times neither loses nor duplicates what either side adds.
fn read_again_and_again(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::in_ram(ctx, 4)?;

    for round in 1..=20 {
        file.send(0..4, Touch::Write)?;
        file.gpu_add(0..4, round)?;
        file.send(0..4, Touch::Write)?;
        match round % 2 {
            0 => file.map_is_right()?,
            _ => file.file_is_right()?,
        }
    }
    file.is_right()
}
