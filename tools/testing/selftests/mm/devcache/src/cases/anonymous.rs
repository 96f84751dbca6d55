// SPDX-License-Identifier: GPL-2.0
//! Anonymous memory moves by the kernel's older way; it must go on working beside files.

use crate::case::Case;
use crate::case::Ctx;
use crate::check::same;
use crate::check::same_bytes;
use crate::resident::send;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::Result;
use devcache_selftests::gpu::Direction;
use devcache_selftests::gpu::Work;
use devcache_selftests::map::Map;
use devcache_selftests::model::add_u32;
use devcache_selftests::random::Random;
use devcache_selftests::sys::beside_child;
use devcache_selftests::sys::in_child;
use devcache_selftests::PAGE;
use std::fs;

pub(crate) const CASES: &[Case] = &[
    Case::once("anonymous_round_trip", round_trip),
    Case::once("anonymous_back_by_request", back_by_request),
    Case::once("anonymous_without_migration", without_migration),
    Case::once("anonymous_fork", fork_copies),
    Case::once("anonymous_from_file", computed_from_file),
    Case::every("device_page_reused", reused_after_file),
];

/// Anonymous memory with contents.
fn memory(pages: usize) -> Result<(Map, Vec<u8>)> {
    let map = Map::anonymous(pages * PAGE)?;
    let want = Random::new(77).bytes(pages * PAGE);
    map.write(0, &want);
    Ok((map, want))
}

/// The GPU adds to a whole mapping and the model.
fn add(ctx: &Ctx, map: &Map, want: &mut [u8], value: u32) -> Result<()> {
    ctx.gpu()?.compute(Work::Add {
        dst: map.addr(),
        count: map.len() / 4,
        value,
    })?;
    add_u32(want, value);
    Ok(())
}

/// There by request, back by touching.
fn round_trip(ctx: &Ctx) -> Result<()> {
    let (map, mut want) = memory(64)?;

    send(ctx.gpu()?, &map, 0..64, Touch::Write)?;
    add(ctx, &map, &mut want, 1)?;
    same_bytes("memory", &map.read_all(), &want)?;
    send(ctx.gpu()?, &map, 0..64, Touch::Write)?;
    map.write(5000, b"by the CPU");
    want[5000..5010].copy_from_slice(b"by the CPU");
    add(ctx, &map, &mut want, 2)?;
    same_bytes("memory", &map.read_all(), &want)
}

/// There and back by request.
fn back_by_request(ctx: &Ctx) -> Result<()> {
    let (map, mut want) = memory(64)?;

    send(ctx.gpu()?, &map, 0..64, Touch::Write)?;
    add(ctx, &map, &mut want, 1)?;
    send(ctx.gpu()?, &map, 0..64, Touch::Write)?;
    let counts = ctx.gpu()?.migrate(&map, 0..64, Direction::ToRam)?;
    same("pages that moved", counts.moved, 64)?;
    same_bytes("memory", &map.read_all(), &want)
}

/// The GPU's faults alone make it work, also where nothing was ever stored.
fn without_migration(ctx: &Ctx) -> Result<()> {
    let map = Map::anonymous(64 * PAGE)?;
    let mut want = vec![0; map.len()];

    add(ctx, &map, &mut want, 0x0505_0505)?;
    same_bytes("memory", &map.read_all(), &want)
}

/// fork(2) copies on write what is on the device.
fn fork_copies(ctx: &Ctx) -> Result<()> {
    let (map, mut want) = memory(16)?;

    send(ctx.gpu()?, &map, 0..16, Touch::Write)?;
    add(ctx, &map, &mut want, 1)?;
    send(ctx.gpu()?, &map, 0..16, Touch::Write)?;
    in_child(|| {
        same_bytes("memory of the child", &map.read_all(), &want)?;
        map.write(0, &[0; 16 * PAGE]);
        Ok(())
    })?;
    same_bytes("memory", &map.read_all(), &want)
}

/// A job that reads anonymous memory and writes a file.
fn computed_from_file(ctx: &Ctx) -> Result<()> {
    let (map, want) = memory(16)?;
    let file = ctx.file("result")?;
    file.set_len(map.len() as u64)?;
    let result = Map::shared(&file, map.len())?;

    send(ctx.gpu()?, &map, 0..16, Touch::Write)?;
    ctx.gpu()?.compute(Work::Copy {
        dst: result.addr(),
        src: map.addr(),
        count: map.len() / 4,
    })?;
    same_bytes("the file", &fs::read(ctx.path("result"))?, &want)
}

/// A device page that was a file's and becomes anonymous carries no flag over: one of them makes it
/// look exclusive, and a write after fork(2) would then change the child's copy too
/// (`zone_device_page_init`).
fn reused_after_file(ctx: &Ctx) -> Result<()> {
    const PAGES: usize = 256;
    let file = Resident::clean(ctx, PAGES)?;
    file.on_device(0..PAGES)?;
    file.file.set_len(0)?;
    drop(file);

    let (map, want) = memory(PAGES)?;
    beside_child(
        || {
            send(ctx.gpu()?, &map, 0..PAGES, Touch::Read)?;
            map.write(0, &[0; PAGES * PAGE]);
            Ok(())
        },
        || same_bytes("memory of the child", &map.read_all(), &want),
    )
}
