// SPDX-License-Identifier: GPL-2.0
//! mlock(2) and device pages: locked memory may be on the device, but it is counted right.

use crate::case::Case;
use crate::case::Ctx;
use crate::check::same;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::Result;
use devcache_selftests::map::Map;
use devcache_selftests::stats::Counters;
use devcache_selftests::PAGE;
use nix::sched::sched_getaffinity;
use nix::sched::sched_setaffinity;
use nix::sched::CpuSet;
use nix::unistd::Pid;

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

/// As many pages must be counted as locked as `want`.
///
/// Every processor collects changes and counts them when it has some, or when it is told to lock: so
/// that is done on each.
fn locked_is(want: u64) -> Result<()> {
    let all = sched_getaffinity(Pid::from_raw(0))?;
    let page = Map::anonymous(PAGE)?;

    for processor in (0..CpuSet::count()).filter(|number| all.is_set(*number).unwrap_or(false)) {
        let mut one = CpuSet::new();
        one.set(processor)?;
        sched_setaffinity(Pid::from_raw(0), &one)?;
        page.lock(0..1)?;
        page.unlock(0..1)?;
    }
    sched_setaffinity(Pid::from_raw(0), &all)?;
    same("pages counted as locked", locked()?, want)
}

/// mlock(2) makes pages present: it brings them back.
fn mlock_device_pages(ctx: &Ctx) -> Result<()> {
    let before = locked()?;
    let file = Resident::dirty(ctx, 16)?;

    file.on_device(0..16)?;
    file.map.lock(0..16)?;
    file.off_device(0..16)?;
    locked_is(before + 16)?;
    file.map.unlock(0..16)?;
    locked_is(before)?;
    file.is_right()
}

/// Locking on fault counts a page when it is touched, wherever it was.
fn mlock_on_fault(ctx: &Ctx) -> Result<()> {
    let before = locked()?;
    let file = Resident::dirty(ctx, 16)?;

    file.on_device(0..16)?;
    file.map.lock_on_fault(0..16)?;
    file.map_is_right()?;
    locked_is(before + 16)?;
    drop(file);
    locked_is(before)
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
    locked_is(before)
}

/// Unmapping locked device pages.
fn unmap_locked_on_device(ctx: &Ctx) -> Result<()> {
    let before = locked()?;
    let file = Resident::dirty(ctx, 16)?;

    file.map.lock(0..16)?;
    file.send(0..16, Touch::Write)?;
    drop(file);
    locked_is(before)
}

/// Truncating locked device pages away.
fn truncate_locked_on_device(ctx: &Ctx) -> Result<()> {
    let before = locked()?;
    let file = Resident::dirty(ctx, 16)?;

    file.map.lock(0..16)?;
    file.send(0..16, Touch::Write)?;
    file.file.set_len(0)?;
    locked_is(before)
}
