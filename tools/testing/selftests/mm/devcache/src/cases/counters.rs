// SPDX-License-Identifier: GPL-2.0
//! What the kernel counts is right while pages are on the device, and as before when they are gone.
//!
//! Other things happen in the system meanwhile, so that its counters are compared after an amount of
//! work beside which the noise is small: one page lost per page moved would be seen.

use crate::case::Case;
use crate::case::Ctx;
use crate::cases::resize::vram_becomes_free;
use crate::check::same;
use crate::resident::Resident;
use anyhow::ensure;
use anyhow::Result;
use devcache_selftests::gpu::Direction;
use devcache_selftests::stats::Counters;
use devcache_selftests::sys;
use devcache_selftests::PAGE;
use std::fs;
use std::os::unix::fs::FileExt;

pub(crate) const CASES: &[Case] = &[
    Case::every("core_counts", core_counts),
    Case::every("truncation_copies_nothing", truncation_copies_nothing),
    Case::every("vram_returns", vram_returns),
    Case::every("vmstat_returns", vmstat_returns),
    Case::disk("dirty_pages_count", dirty_pages_count),
    Case::every("process_counts", process_counts),
];

/// The core counts every page once each way, and none is lost.
fn core_counts(ctx: &Ctx) -> Result<()> {
    let file = Resident::in_ram(ctx, 16)?;
    file.map.touch_write(0..16)?;
    let before = Counters::core()?;
    let counts = ctx.gpu()?.migrate(&file.map, 0..16, Direction::ToVram)?;
    same("pages that moved", counts.moved, 16)?;
    let out = Counters::core()?;
    file.map_is_right()?;
    let back = Counters::core()?;

    let rise = |name, from: &Counters, to: &Counters| anyhow::Ok(to.get(name)? - from.get(name)?);
    same("pages out", rise("pages_out", &before, &out)?, 16)?;
    same(
        "pages back before they are used",
        rise("pages_back", &before, &out)?,
        0,
    )?;
    same("pages back", rise("pages_back", &out, &back)?, 16)?;
    same("pages out by reading", rise("pages_out", &out, &back)?, 0)?;
    same("pages lost", rise("pages_lost", &before, &back)?, 0)
}

/// Pages that are truncated away as a whole are dropped where they are.
fn truncation_copies_nothing(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 64)?;
    let before = Counters::core()?;

    file.on_device(0..64)?;
    file.file.set_len(0)?;
    let after = Counters::core()?;
    same(
        "pages back",
        after.get("pages_back")? - before.get("pages_back")?,
        0,
    )
}

/// Ways for device pages of a file to end.
const ENDS: [fn(&Resident<'_>) -> Result<()>; 6] = [
    |file| file.map_is_right(),
    |file| file.file_is_right(),
    |file| Ok(file.file.set_len(0)?),
    |file| Ok(file.file.write_all_at(&[1; 100], PAGE as u64 + 10)?),
    |file| Ok(file.file.sync_all()?),
    |_| Ok(()),
];

/// Every way gives all VRAM back when the file is removed.
fn vram_returns(ctx: &Ctx) -> Result<()> {
    let before = ctx.gpu()?.vram_free()?;

    for end in ENDS {
        let file = Resident::dirty(ctx, 32)?;
        end(&file)?;
        let (path, _) = file.close();
        fs::remove_file(path)?;
        vram_becomes_free(ctx, before)?;
    }
    Ok(())
}

/// Numbers of pages that must return to what they were.
const RETURNING: [&str; 8] = [
    "nr_file_pages",
    "nr_shmem",
    "nr_anon_pages",
    "nr_mapped",
    "nr_dirty",
    "nr_writeback",
    "nr_mlock",
    "nr_unevictable",
];

/// The system's numbers of pages do not drift (flags of a device page are reset between uses, and
/// the statistics move with the page).
fn vmstat_returns(ctx: &Ctx) -> Result<()> {
    const PAGES: usize = 256;
    const NOISE: u64 = 400;
    let settle = || {
        nix::unistd::sync();
        sys::drop_caches()?;
        Counters::vmstat()
    };
    let before = settle()?;

    for end in ENDS {
        let file = Resident::dirty(ctx, PAGES)?;
        end(&file)?;
        let (path, _) = file.close();
        fs::remove_file(path)?;
    }
    let after = settle()?;
    for name in RETURNING {
        let (before, after) = (before.get(name)?, after.get(name)?);
        println!("{name} {before} -> {after}");
        ensure!(
            before.abs_diff(after) <= NOISE,
            "{name} was {before} and is {after} after moving {} pages",
            ENDS.len() * PAGES
        );
    }
    Ok(())
}

/// Dirty pages on the device count as dirty.
fn dirty_pages_count(ctx: &Ctx) -> Result<()> {
    const PAGES: u64 = 512;
    nix::unistd::sync();
    let dirty = || Counters::vmstat()?.get("nr_dirty");
    let before = dirty()?;
    let file = Resident::dirty(ctx, 512)?;

    file.on_device(0..512)?;
    let resident = dirty()?;
    ensure!(
        resident >= before + PAGES,
        "nr_dirty was {before} and is {resident} with {PAGES} dirty pages on the device"
    );
    file.file.sync_all()?;
    let after = dirty()?;
    ensure!(
        after < before + PAGES / 2,
        "nr_dirty was {before} and is {after} after fsync"
    );
    file.is_right()
}

/// The process's own numbers of pages return too; the kernel complains at exit if they do not.
fn process_counts(ctx: &Ctx) -> Result<()> {
    let rss = || {
        let status = Counters::status()?;
        anyhow::Ok(status.get("RssFile")? + status.get("RssShmem")?)
    };
    let before = rss()?;
    let file = Resident::dirty(ctx, 1024)?;

    file.on_device(0..1024)?;
    file.map_is_right()?;
    drop(file);
    let after = rss()?;
    ensure!(
        after < before + 2048,
        "RssFile and RssShmem were {before} KiB and are {after} KiB after unmapping 4096 KiB"
    );
    Ok(())
}
