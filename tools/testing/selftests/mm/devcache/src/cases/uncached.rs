// SPDX-License-Identifier: GPL-2.0
//! Reads and writes that leave nothing in the page cache (RWF_DONTCACHE). Pages that were there before
//! stay, wherever they are; those that are to leave do not move to the device.

use crate::case::skip;
use crate::case::Case;
use crate::case::Ctx;
use crate::check::same;
use crate::check::same_bytes;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::ensure;
use anyhow::Result;
use devcache_selftests::gpu::Direction;
use devcache_selftests::stats::Counters;
use devcache_selftests::sys;
use devcache_selftests::PAGE;
use nix::errno::Errno;
use std::fs;

pub(crate) const CASES: &[Case] = &[
    Case::disk("uncached_read", uncached_read),
    Case::disk("uncached_write", uncached_write),
    Case::disk("uncached_page_stays", uncached_page_stays),
];

/// Skips the test where the file system cannot do it.
fn known<T>(result: Result<T, Errno>) -> Result<T> {
    match result {
        Err(Errno::EOPNOTSUPP) => skip("this file system does not know RWF_DONTCACHE"),
        other => Ok(other?),
    }
}

/// A read finds what the GPU wrote, and does not throw it away (`filemap_get_pages`).
fn uncached_read(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 8)?;

    file.on_device(0..8)?;
    let got = known(sys::read_uncached(&file.file, 100..8 * PAGE))?;
    same_bytes("uncached read", &got, &file.want[100..])?;
    file.is_right()
}

/// A write into device pages keeps the rest of what the GPU wrote, also on the disk
/// (`__filemap_get_folio_mpol`).
fn uncached_write(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 8)?;
    let text = [0x5d; PAGE];

    file.on_device(0..8)?;
    let written = known(sys::write_uncached(&file.file, PAGE + 1000, &text))?;
    same("bytes", written, PAGE)?;
    file.want[PAGE + 1000..][..PAGE].copy_from_slice(&text);
    file.on_device(4..8)?;
    file.gpu_sees(0..8)?;
    file.is_right()?;
    file.file.sync_all()?;
    let (path, want) = file.close();
    ctx.mount.power_cut()?;
    same_bytes("the disk", &fs::read(path)?, &want)
}

/// Pages that an uncached read has read ahead leave when they are read; until then they are not
/// admitted (`state::admission`), though they can be mapped.
fn uncached_page_stays(ctx: &Ctx) -> Result<()> {
    let file = Resident::in_ram(ctx, 16)?;
    file.file.sync_all()?;
    sys::drop_caches()?;
    known(sys::read_uncached(&file.file, 0..PAGE))?;
    // A fault on one maps its neighbours.
    file.map.touch_read(8..9);

    let before = Counters::core()?.get("refused_dropbehind")?;
    let counts = ctx.gpu()?.migrate(&file.map, 0..16, Direction::ToVram)?;
    let refused = Counters::core()?.get("refused_dropbehind")? - before;
    ensure!(
        refused > 0 && counts.skipped > 0,
        "{refused} pages were refused, {counts:?}"
    );
    file.is_right()?;
    file.send(0..16, Touch::Read)?;
    file.gpu_sees(0..16)
}
