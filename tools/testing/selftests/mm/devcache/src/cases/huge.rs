// SPDX-License-Identifier: GPL-2.0
//! Files in large folios: these are split when they are to move, and nothing of them is lost.

use crate::case::skip;
use crate::case::Case;
use crate::case::Ctx;
use crate::check::same;
use crate::check::same_bytes;
use crate::resident::send;
use crate::resident::Touch;
use anyhow::Result;
use devcache_selftests::gpu::Direction;
use devcache_selftests::gpu::Work;
use devcache_selftests::map::Map;
use devcache_selftests::model::add_u32;
use devcache_selftests::pagemap;
use devcache_selftests::pagemap::Place;
use devcache_selftests::random::Random;
use devcache_selftests::scratch::Scratch;
use devcache_selftests::stats::Counters;
use devcache_selftests::sys;
use devcache_selftests::PAGE;
use std::fs::File;
use std::os::unix::fs::FileExt;

pub(crate) const CASES: &[Case] = &[
    Case::every("large_folios", large_folios),
    Case::every("large_folios_read", large_folios_read),
    Case::only("tmpfs", "huge_pages", huge_pages),
    Case::only("tmpfs", "huge_page_part", huge_page_part),
    Case::only(
        "tmpfs",
        "huge_page_of_device_pages",
        huge_page_of_device_pages,
    ),
];

/// A file written in large pieces, whose folios may be large: it moves, clean or dirty, as others do.
fn large_folios(ctx: &Ctx) -> Result<()> {
    let want = Random::new(5).bytes(1 << 20);
    let file = ctx.file("large")?;
    file.write_all_at(&want, 0)?;
    let map = Map::shared(&file, want.len())?;

    send(ctx.gpu()?, &map, 0..map.pages(), Touch::Write)?;
    computes(ctx, &file, &map, want)
}

/// The same for folios that readahead made.
fn large_folios_read(ctx: &Ctx) -> Result<()> {
    let want = Random::new(6).bytes(1 << 20);
    let file = ctx.file("large")?;
    file.write_all_at(&want, 0)?;
    file.sync_all()?;
    sys::drop_caches()?;
    file.read_exact_at(&mut vec![0; want.len()], 0)?;
    let map = Map::shared(&file, want.len())?;

    send(ctx.gpu()?, &map, 0..map.pages(), Touch::Read)?;
    computes(ctx, &file, &map, want)
}

/// The GPU adds to a file on the device, and everybody sees it.
fn computes(ctx: &Ctx, file: &File, map: &Map, mut want: Vec<u8>) -> Result<()> {
    ctx.gpu()?.compute(Work::Add {
        dst: map.addr(),
        count: want.len() / 4,
        value: 71,
    })?;
    add_u32(&mut want, 71);
    let mut got = vec![0; want.len()];
    file.read_exact_at(&mut got, 0)?;
    same_bytes("the file", &got, &want)?;
    same_bytes("mapping", &map.read_all(), &want)
}

const HUGE: usize = 2 << 20;

/// Runs a test on a file of two huge pages, on a tmpfs that makes them.
fn on_huge_pages(run: fn(&Ctx, &File, &Map, Vec<u8>) -> Result<()>) -> Result<()> {
    let scratch = Scratch::in_memory("tmpfs", "huge=always")?;
    let ctx = Ctx::new(&scratch.file_system())?;
    let file = ctx.file("huge")?;
    let before = Counters::meminfo()?.get("ShmemHugePages")?;
    let want = Random::new(7).bytes(2 * HUGE);
    file.set_len(2 * HUGE as u64)?;
    file.write_all_at(&want, 0)?;

    if Counters::meminfo()?.get("ShmemHugePages")? < before + 4 * 1024 {
        return skip("the kernel gave no huge pages");
    }
    let map = Map::shared(&file, 2 * HUGE)?;
    run(&ctx, &file, &map, want)
}

/// Both move.
fn huge_pages(_: &Ctx) -> Result<()> {
    on_huge_pages(|ctx, file, map, want| {
        send(ctx.gpu()?, map, 0..map.pages(), Touch::Write)?;
        computes(ctx, file, map, want)
    })
}

/// A part of one moves, and the rest of it stays where it is.
fn huge_page_part(_: &Ctx) -> Result<()> {
    on_huge_pages(|ctx, file, map, want| {
        send(ctx.gpu()?, map, 100..200, Touch::Write)?;
        map.touch_read(0..100);
        let left = pagemap::elsewhere(map, 100..200, Place::Device)?;
        same("pages that have left the device", left, vec![])?;

        file.set_len((150 * PAGE + 10) as u64)?;
        file.set_len(2 * HUGE as u64)?;
        let mut want = want;
        want[150 * PAGE + 10..].fill(0);
        computes(ctx, file, map, want)
    })
}

/// The kernel makes no huge page of what is partly on the device (`collapse_file`); when all is back, it
/// may.
fn huge_page_of_device_pages(_: &Ctx) -> Result<()> {
    on_huge_pages(|ctx, file, map, want| {
        let first = (map.addr().next_multiple_of(HUGE) - map.addr()) / PAGE;
        let pages = first..first + HUGE / PAGE;
        send(ctx.gpu()?, map, 0..map.pages(), Touch::Write)?;
        ctx.gpu()?
            .migrate(map, first..first + 10, Direction::ToRam)?;

        // It may refuse; what matters is what is there then.
        let _ = map.advise_raw(pages.clone(), libc::MADV_COLLAPSE);
        computes(ctx, file, map, want.clone())?;
        let mut want = want;
        add_u32(&mut want, 71);
        map.touch_read(0..map.pages());
        let _ = map.advise_raw(pages, libc::MADV_COLLAPSE);
        computes(ctx, file, map, want)
    })
}
