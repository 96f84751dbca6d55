// SPDX-License-Identifier: GPL-2.0
//! Memory control: pages on the device stay charged to whom they belong, and are given back when
//! memory is short (`mm/devcache/shrink.rs`).

use crate::case::Case;
use crate::case::Ctx;
use crate::check::same;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::ensure;
use anyhow::Result;
use devcache_selftests::cgroup::Cgroup;
use devcache_selftests::map::Map;
use devcache_selftests::stats::Counters;
use devcache_selftests::sys;
use devcache_selftests::PAGE;

pub(crate) const CASES: &[Case] = &[
    Case::every("charge_follows", charge_follows),
    Case::disk("limit_drops_clean", limit_drops_clean),
    Case::disk("limit_writes_dirty", limit_writes_dirty),
    Case::every("drop_caches_keeps_data", drop_caches_keeps_data),
    Case::disk("drop_caches_drops_clean", drop_caches_drops_clean),
];

const MIB: usize = 1 << 20;

/// Pages of the files that meet a limit: 16 MiB.
const PAGES: usize = 16 * MIB / PAGE;

/// How much of the core's counter is more than before.
fn rise(name: &str, before: &Counters) -> Result<u64> {
    Ok(Counters::core()?.get(name)? - before.get(name)?)
}

/// The group pays for its pages wherever they are, and not when they are gone.
fn charge_follows(ctx: &Ctx) -> Result<()> {
    const NOISE: u64 = 2 * MIB as u64;
    let size = (PAGES * PAGE) as u64;
    let group = Cgroup::enter(256 * MIB)?;
    let empty = group.current()?;

    let file = Resident::dirty(ctx, PAGES)?;
    let out = group.current()?;
    ensure!(
        out >= empty + size && out <= empty + 2 * size + NOISE,
        "{empty} bytes were charged, and {out} with {size} on the device"
    );
    file.map_is_right()?;
    let back = group.current()?;
    ensure!(
        back.abs_diff(out) <= NOISE,
        "{out} bytes were charged with the file on the device, and {back} with it back"
    );
    file.send(0..PAGES, Touch::Read)?;
    file.file.set_len(0)?;
    sys::drop_caches()?;
    let gone = group.current()?;
    ensure!(
        gone <= out - size / 2,
        "{out} bytes were charged with the file on the device, and {gone} with it truncated"
    );
    Ok(())
}

/// A group whose limit is used up by clean pages on the device can still have memory.
fn limit_drops_clean(ctx: &Ctx) -> Result<()> {
    device_gives(|| Resident::clean(ctx, PAGES), "pages_dropped")
}

/// The same with pages that have to be written first.
fn limit_writes_dirty(ctx: &Ctx) -> Result<()> {
    device_gives(|| Resident::dirty(ctx, PAGES), "pages_back")
}

/// With a file on the device, a group meets its limit: pages must leave in the way that `counter` counts.
fn device_gives<'a>(file: impl FnOnce() -> Result<Resident<'a>>, counter: &str) -> Result<()> {
    let group = Cgroup::enter(256 * MIB)?;
    let file = file()?;
    let before = Counters::core()?;

    meet_limit(&group)?;
    ensure!(
        rise(counter, &before)? > 0,
        "the group got memory without the device giving any"
    );
    same("pages lost", rise("pages_lost", &before)?, 0)?;
    // Looking at the file takes memory too.
    group.set_max(256 * MIB)?;
    file.is_right()
}

/// Sets a limit that is used up already, and asks for more memory. Who gets none is killed.
fn meet_limit(group: &Cgroup) -> Result<()> {
    let used = usize::try_from(group.current()?)?;
    group.set_max(used)?;
    let memory = Map::anonymous(8 * MIB)?;
    Ok(memory.touch_write(0..memory.pages())?)
}

/// Dropping caches under dirty pages on the device loses nothing.
fn drop_caches_keeps_data(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 64)?;
    let before = Counters::core()?;
    for _ in 0..3 {
        sys::drop_caches()?;
    }
    same("pages lost", rise("pages_lost", &before)?, 0)?;
    same("pages dropped", rise("pages_dropped", &before)?, 0)?;
    file.is_right()
}

/// Dropping caches takes clean pages from the device too.
fn drop_caches_drops_clean(ctx: &Ctx) -> Result<()> {
    let file = Resident::clean(ctx, 64)?;
    let before = Counters::core()?;
    sys::drop_caches()?;
    ensure!(
        rise("pages_dropped", &before)? >= 64,
        "{} of 64 clean pages were dropped",
        rise("pages_dropped", &before)?
    );
    same("pages back", rise("pages_back", &before)?, 0)?;
    file.is_right()
}
