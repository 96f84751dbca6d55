// SPDX-License-Identifier: GPL-2.0
//! mlock(2) and device pages: locked memory may be on the device, but it is counted right.

use crate::case::Case;
use crate::case::Ctx;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::Result;
use devcache_selftests::stats::Counters;
use std::thread;
use std::time::Duration;

pub(crate) const CASES: &[Case] = &[
    Case::every("mlock_device_pages", mlock_device_pages),
    Case::every("mlock_on_fault", mlock_on_fault),
    Case::every("munlock_on_device", munlock_on_device),
    Case::every("unmap_locked_on_device", unmap_locked_on_device),
    Case::every("truncate_locked_on_device", truncate_locked_on_device),
];

/// Pages that are counted as locked.
fn locked() -> Result<u64> {
    Counters::vmstat()?.get("nr_mlock")
}

/// Waits until `want` pages are counted as locked: the kernel counts in batches.
fn locked_becomes(want: u64) -> Result<()> {
    for _ in 0..100 {
        if locked()? == want {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(20));
    }
    crate::check::same("pages counted as locked", locked()?, want)
}

/// mlock(2) makes pages present: it brings them back.
fn mlock_device_pages(ctx: &Ctx) -> Result<()> {
    let before = locked()?;
    let file = Resident::dirty(ctx, 16)?;

    file.on_device(0..16)?;
    file.map.lock(0..16)?;
    file.off_device(0..16)?;
    locked_becomes(before + 16)?;
    file.map.unlock(0..16)?;
    locked_becomes(before)?;
    file.is_right()
}

/// Locking on fault counts a page when it is touched, wherever it was.
fn mlock_on_fault(ctx: &Ctx) -> Result<()> {
    let before = locked()?;
    let file = Resident::dirty(ctx, 16)?;

    file.on_device(0..16)?;
    file.map.lock_on_fault(0..16)?;
    file.map_is_right()?;
    locked_becomes(before + 16)?;
    drop(file);
    locked_becomes(before)
}

/// Unlocking pages while they are on the device, where munlock(2) does not find them, leaves no page
/// counted for ever (`free_zone_device_folio`).
fn munlock_on_device(ctx: &Ctx) -> Result<()> {
    let before = locked()?;
    let mut file = Resident::dirty(ctx, 16)?;

    file.map.lock(0..16)?;
    file.send(0..16, Touch::Write)?;
    file.gpu_add(0..16, 1)?;
    file.send(0..16, Touch::Write)?;
    file.map.unlock(0..16)?;
    file.is_right()?;
    drop(file);
    locked_becomes(before)
}

/// Unmapping locked device pages.
fn unmap_locked_on_device(ctx: &Ctx) -> Result<()> {
    let before = locked()?;
    let file = Resident::dirty(ctx, 16)?;

    file.map.lock(0..16)?;
    file.send(0..16, Touch::Write)?;
    drop(file);
    locked_becomes(before)
}

/// Truncating locked device pages away.
fn truncate_locked_on_device(ctx: &Ctx) -> Result<()> {
    let before = locked()?;
    let file = Resident::dirty(ctx, 16)?;

    file.map.lock(0..16)?;
    file.send(0..16, Touch::Write)?;
    file.file.set_len(0)?;
    locked_becomes(before)
}
