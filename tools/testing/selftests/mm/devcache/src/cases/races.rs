// SPDX-License-Identifier: GPL-2.0
//! Races that are rare by themselves, made likely by a device that is slow to copy.

use crate::case::Case;
use crate::case::Ctx;
use crate::check::same;
use crate::knobs::Knob;
use crate::knobs::Knobs;
use crate::resident::send;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::ensure;
use anyhow::Result;
use devcache_selftests::gpu::Direction;
use devcache_selftests::map::Map;
use devcache_selftests::stats::Counters;
use devcache_selftests::sys;
use devcache_selftests::PAGE;
use nix::sys::memfd::memfd_create;
use nix::sys::memfd::MFdFlags;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

pub(crate) const CASES: &[Case] = &[
    Case::disk("held_in_a_batch", held_in_a_batch),
    Case::disk("direct_write_against_back", direct_write_against_back),
    Case::disk("shmem_page_becomes_file_page", reused),
];

/// A direct write invalidates many pages, each of which has to come back, and has references to all of
/// them meanwhile. Whoever wants the last one does not wait for the others (`folio_migrate_any_refs`).
fn held_in_a_batch(ctx: &Ctx) -> Result<()> {
    const PAGES: usize = 24;
    const LAST: u64 = (PAGES as u64 - 1) * PAGE as u64;
    let file = Resident::clean(ctx, PAGES)?;
    let direct = sys::open_direct(&file.path)?;
    let buffer = Map::anonymous(PAGES * PAGE)?;
    buffer.write(0, &file.want);
    let knobs = Knobs::new()?;
    let latency = Duration::from_millis(100);
    knobs.set(Knob::Latency, u32::try_from(latency.as_micros())?)?;

    let (read, write) = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let start = Instant::now();
            let len = sys::write_from(&direct, 0, &buffer, 0..PAGES * PAGE)?;
            same("bytes", len, PAGES * PAGE)?;
            anyhow::Ok(start.elapsed())
        });
        // By then the first page is on its way.
        thread::sleep(latency / 2);
        let start = Instant::now();
        let mut page = vec![0; PAGE];
        file.file.read_exact_at(&mut page, LAST)?;
        let read = start.elapsed();
        anyhow::Ok((read, writer.join().expect("does not panic")?))
    })?;
    println!("the read took {read:?}, the write {write:?}");
    ensure!(
        write > latency * 4,
        "the write took only {write:?}: the pages were not on the device"
    );
    ensure!(
        read < write / 2,
        "the read of one page took {read:?} of the {write:?} of the write"
    );
    file.is_right()
}

/// While a direct write is under way, a page behind it is read in, moved and comes back again and again.
/// What is read after the write is what it wrote (`invalidate_inode_pages2_range`).
fn direct_write_against_back(ctx: &Ctx) -> Result<()> {
    const PAGES: usize = 512;
    const LAST: usize = PAGES - 1;
    const TIME: Duration = Duration::from_secs(6);
    let file = ctx.file("resident")?;
    file.write_all_at(&vec![0; PAGES * PAGE], 0)?;
    file.sync_all()?;
    let direct = sys::open_direct(&ctx.path("resident"))?;
    let map = Map::shared(&file, PAGES * PAGE)?;
    let buffer = Map::anonymous(PAGES * PAGE)?;
    let gpu = ctx.gpu()?;
    let knobs = Knobs::new()?;
    knobs.set(Knob::Latency, 10_000)?;
    let goes_on = AtomicBool::new(true);
    let first_cell = |file: &File| {
        let mut cell = [0; 4];
        file.read_exact_at(&mut cell, (LAST * PAGE) as u64)?;
        anyhow::Ok(u32::from_le_bytes(cell))
    };

    thread::scope(|scope| {
        let mover = scope.spawn(|| {
            let mut moved = 0;
            while goes_on.load(Ordering::Relaxed) {
                map.touch_read(LAST..LAST + 1);
                moved += gpu.migrate(&map, LAST..LAST + 1, Direction::ToVram)?.moved;
            }
            anyhow::Ok(moved)
        });
        let reader = scope.spawn(|| {
            while goes_on.load(Ordering::Relaxed) {
                first_cell(&file)?;
            }
            anyhow::Ok(())
        });
        let writes = || {
            let end = Instant::now() + TIME;
            let mut version = 0_u32;
            while Instant::now() < end {
                version += 1;
                buffer.write(0, &version.to_le_bytes().repeat(PAGES * PAGE / 4));
                let len = sys::write_from(&direct, 0, &buffer, 0..PAGES * PAGE)?;
                same("bytes", len, PAGES * PAGE)?;
                same("what is read after the write", first_cell(&file)?, version)?;
            }
            anyhow::Ok(version)
        };
        let writes = writes();
        goes_on.store(false, Ordering::Relaxed);
        let moved = mover.join().expect("does not panic")?;
        reader.join().expect("does not panic")?;
        println!("{} writes, {moved} times moved", writes?);
        ensure!(moved > 0, "the page never moved");
        Ok(())
    })
}

/// A device page that was shmem's counts as a page of a file when it becomes one
/// (`zone_device_page_init`).
fn reused(ctx: &Ctx) -> Result<()> {
    const PAGES: usize = 512;
    const ROUNDS: u64 = 4;
    let shmem = || Counters::vmstat()?.get("nr_shmem");
    let before = shmem()?;

    for _ in 0..ROUNDS {
        let memory = File::from(memfd_create("devcache", MFdFlags::empty())?);
        memory.set_len((PAGES * PAGE) as u64)?;
        let map = Map::shared(&memory, PAGES * PAGE)?;
        send(ctx.gpu()?, &map, 0..PAGES, Touch::Write)?;
        drop(map);
        drop(memory);

        let file = Resident::dirty(ctx, PAGES)?;
        file.on_device(0..PAGES)?;
        file.file.set_len(0)?;
        let (path, _) = file.close();
        std::fs::remove_file(path)?;
    }
    let after = shmem()?;
    ensure!(
        after.abs_diff(before) < PAGES as u64,
        "nr_shmem was {before} and is {after} after {ROUNDS} times {PAGES} pages"
    );
    Ok(())
}
