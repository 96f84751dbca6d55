// SPDX-License-Identifier: GPL-2.0
//! Files of many pages: what is done to them must be done to many at once.

use crate::case::Case;
use crate::case::Ctx;
use crate::cases::lifecycle::wait_for_gpu;
use crate::cases::lifecycle::Unbound;
use crate::check::same;
use crate::check::same_bytes;
use crate::knobs::Knob;
use crate::knobs::Knobs;
use anyhow::ensure;
use anyhow::Result;
use devcache_selftests::gpu::Direction;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::gpu::JobId;
use devcache_selftests::gpu::Work;
use devcache_selftests::map::Map;
use devcache_selftests::model::add_u32;
use devcache_selftests::pagemap;
use devcache_selftests::pagemap::Place;
use devcache_selftests::random::Random;
use devcache_selftests::stats::Counters;
use devcache_selftests::uapi;
use devcache_selftests::PAGE;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;
use std::time::Instant;

pub(crate) const CASES: &[Case] = &[
    Case::every("there_and_back", there_and_back).limit(120),
    Case::every("first_write", first_write).limit(120),
    Case::every("first_write_to_vram", first_write_to_vram).limit(120),
    Case::every("larger_than_vram", larger_than_vram).limit(180),
    Case::once("larger_than_vram_anonymous", larger_anonymous).limit(180),
];

/// A clean file, written at once, so that its folios are as large as the file system likes.
fn clean_file(ctx: &Ctx, pages: usize) -> Result<(File, Map, Vec<u8>)> {
    let file = ctx.file("large")?;
    let want = Random::new(1).bytes(pages * PAGE);
    file.write_all_at(&want, 0)?;
    file.sync_all()?;
    let map = Map::shared(&file, pages * PAGE)?;
    Ok((file, map, want))
}

/// How many pages are on the device.
fn on_device(map: &Map) -> Result<usize> {
    let elsewhere = pagemap::elsewhere(map, 0..map.pages(), Place::Device)?;
    Ok(map.pages() - elsewhere.len())
}

/// Moves a file to the device and brings it back in several ways; prints what a page costs.
fn there_and_back(ctx: &Ctx) -> Result<()> {
    const PAGES: usize = 2048;
    let gpu: &Gpu = ctx.gpu()?;
    let (file, map, want) = clean_file(ctx, PAGES)?;
    let mut got = vec![0; want.len()];
    let ways: [(&str, &mut dyn FnMut() -> Result<()>); 4] = [
        ("a load", &mut || {
            map.touch_read(0..PAGES);
            Ok(())
        }),
        ("pread", &mut || Ok(file.read_exact_at(&mut got, 0)?)),
        ("fsync", &mut || Ok(file.sync_all()?)),
        ("request", &mut || {
            gpu.migrate(&map, 0..PAGES, Direction::ToRam)?;
            Ok(())
        }),
    ];

    for (name, back) in ways {
        if name == "fsync" && !ctx.mount.on_disk() {
            continue;
        }
        map.touch_write(0..PAGES)?;
        let mut start = Instant::now();
        let moved = gpu.migrate(&map, 0..PAGES, Direction::ToVram)?.moved;
        ensure!(moved > PAGES as u64 * 9 / 10, "{moved} pages moved only");
        let there = start.elapsed();
        start = Instant::now();
        back()?;
        let back = start.elapsed();
        ensure!(on_device(&map)? == 0, "pages stay after {name}");
        let each = |time: Duration| time.as_micros() / PAGES as u128;
        println!(
            "us per page: there {}, back by {name} {}",
            each(there),
            each(back)
        );
        same_bytes("the mapping", &map.read_all(), &want)?;
    }
    same_bytes("what pread gave", &got, &want)
}

/// The GPU writes to pages that nobody has written to since they were clean. The file system has to be
/// asked for each, which needs it in system memory; then it is back on the device.
fn first_write(ctx: &Ctx) -> Result<()> {
    const PAGES: usize = 4096;
    let gpu: &Gpu = ctx.gpu()?;
    let (file, map, mut want) = clean_file(ctx, PAGES)?;
    map.touch_read(0..PAGES);
    let moved = gpu.migrate(&map, 0..PAGES, Direction::ToVram)?.moved;
    ensure!(moved > PAGES as u64 * 9 / 10, "{moved} pages moved only");

    let start = Instant::now();
    gpu.compute(Work::Add {
        dst: map.addr(),
        count: PAGES * PAGE / 4,
        value: 11,
    })?;
    let took = start.elapsed();
    let there = on_device(&map)?;
    println!("{PAGES} pages in {took:?}, {there} of them on the device afterwards");
    // The driver asks for the neighbours of the page that faulted for a while only, which is not enough
    // for all on a slow machine.
    ensure!(there > PAGES / 2, "{there} pages are on the device");

    add_u32(&mut want, 11);
    let mut got = vec![0; want.len()];
    file.read_exact_at(&mut got, 0)?;
    same_bytes("the file", &got, &want)
}

/// Adds to all elements of a mapping, with its pages moved to VRAM as the job gets to them.
fn add_in_vram(gpu: &Gpu, map: &Map, value: u32) -> Result<()> {
    let work = Work::Add {
        dst: map.addr(),
        count: map.len() / 4,
        value,
    };
    let mut argument = uapi::drm_vsvm_exec {
        flags: uapi::DRM_VSVM_EXEC_TO_VRAM,
        ..work.argument()
    };
    gpu.exec_raw(&mut argument)?;
    let ended = gpu.wait(JobId(argument.job), Duration::from_secs(100))?;
    same("status of the job", ended.status, 0)
}

/// The job itself moves the pages, and asks the file system before: no page makes a detour.
fn first_write_to_vram(ctx: &Ctx) -> Result<()> {
    const PAGES: usize = 4096;
    let gpu: &Gpu = ctx.gpu()?;
    let (file, map, mut want) = clean_file(ctx, PAGES)?;

    let before = Counters::core()?.get("pages_back")?;
    let start = Instant::now();
    add_in_vram(gpu, &map, 12)?;
    let took = start.elapsed();
    let there = on_device(&map)?;
    let back = Counters::core()?.get("pages_back")? - before;
    println!(
        "{PAGES} pages in {took:?}, {there} of them on the device afterwards, {back} came back"
    );
    ensure!(there > PAGES / 2, "{there} pages are on the device");
    ensure!(back < PAGES as u64 / 10, "{back} pages came back");

    add_u32(&mut want, 12);
    let mut got = vec![0; want.len()];
    file.read_exact_at(&mut got, 0)?;
    same_bytes("the file", &got, &want)
}

/// VRAM is so small that what follows is four times as large.
struct SmallVram(Knobs);

impl SmallVram {
    const MIB: u32 = 8;
    const PAGES: usize = 4 * (SmallVram::MIB as usize) * (1 << 20) / PAGE;

    fn new() -> Result<Self> {
        let small = SmallVram(Knobs::new()?);
        small.0.set(Knob::Vram, Self::MIB)?;
        drop(Unbound::now()?);
        wait_for_gpu()?;
        Ok(small)
    }
}

impl Drop for SmallVram {
    fn drop(&mut self) {
        let all = || {
            self.0.set(Knob::Vram, 0)?;
            drop(Unbound::now()?);
            wait_for_gpu()
        };
        if let Err(error) = all() {
            eprintln!("{error:#}");
        }
    }
}

/// Computes twice on memory four times as large as VRAM; what was used longest ago makes room.
fn larger(map: &Map, want: &mut [u8]) -> Result<()> {
    let gpu = Gpu::open()?;
    let total = usize::try_from(gpu.param(uapi::DRM_VSVM_PARAM_VRAM_TOTAL)?)? / PAGE;
    ensure!(map.pages() > 4 * total, "VRAM has {total} pages");
    for value in [13, 14] {
        let before = Counters::gpu(&gpu)?;
        let start = Instant::now();
        add_in_vram(&gpu, map, value)?;
        let after = Counters::gpu(&gpu)?;
        let rise = |name| anyhow::Ok(after.get(name)? - before.get(name)?);
        let (moved, evicted) = (rise("pages-in")?, rise("pages-evicted")?);
        let there = on_device(map)?;
        println!(
            "{} pages in {:?}: {moved} moved to VRAM of {total}, {evicted} evicted, {there} left there",
            map.pages(),
            start.elapsed()
        );
        ensure!(moved > map.pages() as u64 * 9 / 10, "{moved} pages moved");
        ensure!(there > total / 2, "{there} pages are on the device");
        add_u32(want, value);
    }
    same_bytes("the memory", &map.read_all(), want)
}

/// A file four times the size of VRAM, in one job.
fn larger_than_vram(ctx: &Ctx) -> Result<()> {
    let _small = SmallVram::new()?;
    let (file, map, mut want) = clean_file(ctx, SmallVram::PAGES)?;
    larger(&map, &mut want)?;
    file.sync_all()?;
    let mut got = vec![0; want.len()];
    file.read_exact_at(&mut got, 0)?;
    same_bytes("the file", &got, &want)
}

/// Anonymous memory four times the size of VRAM.
fn larger_anonymous(_: &Ctx) -> Result<()> {
    let _small = SmallVram::new()?;
    let map = Map::anonymous(SmallVram::PAGES * PAGE)?;
    let mut want = Random::new(3).bytes(map.len());
    map.write(0, &want);
    larger(&map, &mut want)
}
