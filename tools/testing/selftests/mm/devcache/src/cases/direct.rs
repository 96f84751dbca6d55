// SPDX-License-Identifier: GPL-2.0
//! Direct I/O on a file whose pages are on the device, and into memory that is.

use crate::case::Case;
use crate::case::Ctx;
use crate::check::same;
use crate::check::same_bytes;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::Result;
use devcache_selftests::map::Map;
use devcache_selftests::random::Random;
use devcache_selftests::scratch::Scratch;
use devcache_selftests::sys;
use devcache_selftests::PAGE;
use std::fs;
use std::os::unix::fs::FileExt;

pub(crate) const CASES: &[Case] = &[
    Case::every("direct_read", direct_read),
    Case::every("direct_write", direct_write),
    Case::every("direct_write_clean", direct_write_clean),
    Case::every("direct_write_other_mapping", direct_write_other_mapping),
    Case::every(
        "direct_read_into_device_pages",
        direct_read_into_device_pages,
    ),
    Case::every(
        "direct_write_from_device_pages",
        direct_write_from_device_pages,
    ),
    Case::every("direct_write_onto_itself", direct_write_onto_itself),
    Case::only("ext4", "direct_write_extends", direct_write_extends),
];

/// A direct read writes dirty device pages back first (`filemap_get_folios_tag`).
fn direct_read(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 8)?;
    let direct = sys::open_direct(&file.path)?;
    let buffer = Map::anonymous(8 * PAGE)?;

    file.on_device(0..8)?;
    same(
        "bytes",
        sys::read_into(&direct, 0, &buffer, 0..8 * PAGE)?,
        8 * PAGE,
    )?;
    same_bytes("direct read", &buffer.read_all(), &file.want)?;
    file.is_right()
}

/// A direct write into the middle of dirty device pages: what it does not cover keeps what the GPU
/// wrote, and what it covers is not hidden by the cache (`invalidate_inode_pages2_range`).
fn direct_write(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 8)?;
    let direct = sys::open_direct(&file.path)?;
    let buffer = Map::anonymous(2 * PAGE)?;
    let text = Random::new(99).bytes(2 * PAGE);
    buffer.write(0, &text);

    file.on_device(0..8)?;
    let len = sys::write_from(&direct, 3 * PAGE, &buffer, 0..2 * PAGE)?;
    same("bytes", len, 2 * PAGE)?;
    file.want[3 * PAGE..5 * PAGE].copy_from_slice(&text);
    file.is_right()?;
    file.send(0..8, Touch::Read)?;
    file.gpu_sees(0..8)
}

/// The same over clean device pages: dropping them is right, leaving one as a page in RAM is not.
fn direct_write_clean(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::clean(ctx, 8)?;
    let direct = sys::open_direct(&file.path)?;
    let buffer = Map::anonymous(8 * PAGE)?;
    let text = Random::new(98).bytes(8 * PAGE);
    buffer.write(0, &text);

    file.on_device(0..8)?;
    let len = sys::write_from(&direct, 0, &buffer, 0..8 * PAGE)?;
    same("bytes", len, 8 * PAGE)?;
    file.want.copy_from_slice(&text);
    file.is_right()?;
    file.send(0..8, Touch::Read)?;
    file.gpu_sees(0..8)
}

/// The GPU does not go on with a page that a direct write has thrown out of the cache.
fn direct_write_other_mapping(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 4)?;
    let direct = sys::open_direct(&file.path)?;
    let buffer = Map::anonymous(PAGE)?;
    buffer.write(0, &[0x77; PAGE]);
    file.gpu_sees(0..4)?;

    file.on_device(0..4)?;
    same(
        "bytes",
        sys::write_from(&direct, PAGE, &buffer, 0..PAGE)?,
        PAGE,
    )?;
    file.want[PAGE..2 * PAGE].fill(0x77);
    file.gpu_sees(0..4)?;
    file.gpu_add(0..4, 3)?;
    file.is_right()
}

/// A direct read of another file into device pages pins them: they come back first (GUP).
fn direct_read_into_device_pages(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 4)?;
    let text = Random::new(97).bytes(2 * PAGE);
    ctx.file("other")?.write_all_at(&text, 0)?;
    let other = sys::open_direct(&ctx.path("other"))?;

    file.on_device(0..4)?;
    let len = sys::read_into(&other, 0, &file.map, PAGE..3 * PAGE)?;
    same("bytes", len, 2 * PAGE)?;
    file.want[PAGE..3 * PAGE].copy_from_slice(&text);
    file.send(0..4, Touch::Write)?;
    file.gpu_sees(0..4)?;
    file.is_right()
}

/// A direct write of another file from device pages.
fn direct_write_from_device_pages(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 4)?;
    drop(ctx.file("other")?);
    let other = sys::open_direct(&ctx.path("other"))?;

    file.on_device(0..4)?;
    let len = sys::write_from(&other, 0, &file.map, 0..4 * PAGE)?;
    same("bytes", len, 4 * PAGE)?;
    same_bytes("other file", &std::fs::read(ctx.path("other"))?, &file.want)
}

/// A direct write whose source is another part of the same file, on the device too.
fn direct_write_onto_itself(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 8)?;
    let direct = sys::open_direct(&file.path)?;

    file.on_device(0..8)?;
    let len = sys::write_from(&direct, 4 * PAGE, &file.map, 0..2 * PAGE)?;
    same("bytes", len, 2 * PAGE)?;
    file.want.copy_within(0..2 * PAGE, 4 * PAGE);
    file.is_right()
}

/// With blocks smaller than a page, a direct write extends a file whose last page is mapped: what is stored
/// in the rest of that page reaches the disk, though it had no blocks when it was mapped.
fn direct_write_extends(_: &Ctx) -> Result<()> {
    const SIZE: usize = 1387;
    let scratch = Scratch::on_disk("ext4", 64, &["-b", "1024"], "rw")?;
    let ctx = Ctx::new(&scratch.file_system())?;
    let mut want = vec![0; 4 * PAGE];
    {
        let file = ctx.file("data")?;
        file.set_len(SIZE as u64)?;
        let map = Map::shared(&file, 4 * PAGE)?;
        let direct = sys::open_direct(&ctx.path("data"))?;
        let buffer = Map::anonymous(PAGE)?;
        map.write(0, &[1; 100]);
        sys::write_from(&direct, 3 * PAGE, &buffer, 0..PAGE)?;
        map.write(PAGE - 100, &[2; 100]);
    }
    want[..100].fill(1);
    want[PAGE - 100..PAGE].fill(2);
    ctx.mount.remount()?;
    same_bytes("the file", &fs::read(ctx.path("data"))?, &want)
}
