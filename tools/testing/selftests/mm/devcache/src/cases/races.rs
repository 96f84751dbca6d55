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
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::gpu::Direction;
use devcache_selftests::map::Map;
use devcache_selftests::scratch::Scratch;
use devcache_selftests::stats::Counters;
use devcache_selftests::sys;
use devcache_selftests::uffd::Mode;
use devcache_selftests::uffd::Uffd;
use devcache_selftests::PAGE;
use nix::fcntl::fallocate;
use nix::fcntl::FallocateFlags;
use nix::sys::mman::MmapAdvise;
use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;
use std::time::Instant;

pub(crate) const CASES: &[Case] = &[
    Case::disk("held_in_a_batch", held_in_a_batch),
    Case::disk("direct_write_against_back", direct_write_against_back),
    Case::every("hole_against_back", hole_against_back),
    Case::every("hole_against_read", hole_against_read),
    Case::only("ext4", "unlink_against_commit", unlink_against_commit),
    Case::disk("shmem_page_becomes_file_page", reused),
    Case::every("mappings_change_all_the_time", mappings_change),
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

/// While a direct write waits for its source, the page that it replaces is read in and moved; when the
/// write is done, somebody is bringing it back. What is read then is what was written: whoever
/// invalidates the page finds what took its place (`invalidate_inode_pages2_range`).
fn direct_write_against_back(ctx: &Ctx) -> Result<()> {
    let latency = Duration::from_secs(2);
    let file = Resident::in_ram(ctx, 1)?;
    file.file.sync_all()?;
    let direct = sys::open_direct(&file.path)?;
    let source = Map::shared_memory(PAGE)?;
    let new = [0xa5; PAGE];
    source.write(0, &new);
    source.advise(0..1, MmapAdvise::MADV_DONTNEED)?;
    let knobs = Knobs::new()?;

    let waited = thread::scope(|scope| {
        // Closed when something fails, which lets the write go on.
        let uffd = Uffd::new(&source, Mode::Minor)?;
        let writer = scope.spawn(|| {
            let len = sys::write_from(&direct, 0, &source, 0..PAGE)?;
            same("bytes", len, PAGE)
        });
        let fault = (0..100).find_map(|_| uffd.next().transpose());
        let fault = fault.context("the write took nothing from its source")??;
        let cached = sys::cachestat(&file.file, 0..PAGE)?.cache;
        same("pages in the page cache", cached, 0)?;
        file.map.touch_read(0..1);
        let moved = ctx
            .gpu()?
            .migrate(&file.map, 0..1, Direction::ToVram)?
            .moved;
        knobs.set(Knob::Latency, u32::try_from(latency.as_micros())?)?;
        let start = Instant::now();
        let reader = scope.spawn(|| {
            file.file.read_exact_at(&mut [0; PAGE], 0)?;
            anyhow::Ok(())
        });
        thread::sleep(latency / 4);
        uffd.resume(fault.address)?;
        writer.join().expect("does not panic")?;
        let waited = start.elapsed();
        reader.join().expect("does not panic")?;
        same("pages moved", moved, 1)?;
        anyhow::Ok(waited)
    })?;
    ensure!(
        waited > latency / 2,
        "the write was over after {waited:?}: nobody was bringing the page back"
    );
    let mut page = [0; PAGE];
    file.file.read_exact_at(&mut page, 0)?;
    ensure!(
        page == new,
        "what was there before the write is read after it"
    );
    Ok(())
}

/// While somebody is bringing the last whole page of a range back, the range becomes a hole. Who makes
/// it waits for that page, and finds what took its place (`truncate_inode_pages_range`).
fn hole_against_back(ctx: &Ctx) -> Result<()> {
    const PAGES: usize = 4;
    const END: usize = PAGES * PAGE + 100;
    const LAST: u64 = (PAGES as u64 - 1) * PAGE as u64;
    let latency = Duration::from_secs(1);
    let file = Resident::dirty(ctx, PAGES + 1)?;
    // The page that the hole ends in has nothing to wait for.
    file.map.touch_read(PAGES..PAGES + 1);
    let knobs = Knobs::new()?;
    knobs.set(Knob::Latency, u32::try_from(latency.as_micros())?)?;

    let waited = thread::scope(|scope| {
        let reader = scope.spawn(|| file.file.read_exact_at(&mut [0; PAGE], LAST));
        thread::sleep(latency / 4);
        let start = Instant::now();
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file.file, flags, 0, i64::try_from(END)?)?;
        let waited = start.elapsed();
        reader.join().expect("does not panic")?;
        anyhow::Ok(waited)
    })?;
    ensure!(
        waited > latency / 2,
        "the hole was made after {waited:?}: nobody was bringing the page back"
    );
    let mut got = vec![1; END];
    file.file.read_exact_at(&mut got, 0)?;
    let first = got.iter().position(|&byte| byte != 0);
    ensure!(
        first.is_none(),
        "there is something at {first:#x?} in the hole"
    );
    Ok(())
}

/// Page after page becomes a hole while others read it: what was there before is gone afterwards. No page is
/// on a device (`check_range_has_page` of btrfs).
fn hole_against_read(ctx: &Ctx) -> Result<()> {
    const PAGES: usize = 256;
    const FEWEST: usize = 64;
    const READERS: usize = 3;
    const TIME: Duration = Duration::from_secs(2);
    let file = ctx.file("holes")?;
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let at = AtomicUsize::new(0);
    let over = AtomicBool::new(false);

    let punch_all = || -> Result<()> {
        let begin = Instant::now();
        let mut holes = 0;
        while holes < FEWEST || begin.elapsed() < TIME {
            let page = holes % PAGES * PAGE;
            if page == 0 {
                file.write_all_at(&[0xaa; PAGES * PAGE], 0)?;
                file.sync_all()?;
            }
            at.store(page, Ordering::Relaxed);
            fallocate(&file, flags, i64::try_from(page)?, PAGE as i64)?;
            let mut got = [0xaa; PAGE];
            file.read_exact_at(&mut got, page as u64)?;
            ensure!(got == [0; PAGE], "something is left at {page:#x}");
            holes += 1;
        }
        Ok(())
    };
    thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let _ = file.read_at(&mut [0; PAGE], at.load(Ordering::Relaxed) as u64);
                }
            });
        }
        let punched = punch_all();
        over.store(true, Ordering::Relaxed);
        punched
    })
}

/// A device page that was shmem's counts as a page of a file when it becomes one
/// (`zone_device_page_init`).
fn reused(ctx: &Ctx) -> Result<()> {
    const PAGES: usize = 512;
    const ROUNDS: usize = 4;
    let shmem = || Counters::vmstat()?.get("nr_shmem");
    // The counter never shows less than none: here is something that it can lose.
    let counted = Map::shared_memory(ROUNDS * PAGES * PAGE)?;
    counted.touch_write(0..counted.pages())?;
    let before = shmem()?;

    for _ in 0..ROUNDS {
        let map = Map::shared_memory(PAGES * PAGE)?;
        send(ctx.gpu()?, &map, 0..PAGES, Touch::Write)?;
        drop(map);

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

/// While a thread never stops to give memory back, as a program that allocates does, the pages of other
/// mappings move nevertheless, the GPU works on them, and no call fails.
fn mappings_change(ctx: &Ctx) -> Result<()> {
    const PAGES: usize = 512;
    const TIMES: u32 = 16;
    let mut file = Resident::in_ram(ctx, PAGES)?;
    let gpu = ctx.gpu()?;
    let other = Map::anonymous(PAGE)?;
    let over = AtomicBool::new(false);

    let (moved, changes) = thread::scope(|scope| {
        let changer = scope.spawn(|| {
            let mut changes = 0_u32;
            while !over.load(Ordering::Relaxed) {
                other.advise(0..1, MmapAdvise::MADV_DONTNEED)?;
                changes += 1;
            }
            anyhow::Ok(changes)
        });
        let mut work = || -> Result<u64> {
            let mut moved = 0;
            for _ in 0..TIMES {
                for direction in [Direction::ToVram, Direction::ToRam] {
                    moved += gpu.migrate(&file.map, 0..PAGES, direction)?.moved;
                }
            }
            file.gpu_add(0..PAGES, 1)?;
            Ok(moved)
        };
        let moved = work();
        over.store(true, Ordering::Relaxed);
        let changes = changer.join().expect("does not panic")?;
        anyhow::Ok((moved?, changes))
    })?;
    println!("{moved} pages moved during {changes} changes");
    ensure!(changes > 100, "only {changes} changes");
    let all = 2 * u64::from(TIMES) * PAGES as u64;
    ensure!(moved > all / 2, "only {moved} of {all} pages moved");
    file.is_right()
}

/// A file is removed while the journal of ext4 writes its data, which it does without a reference to the
/// file. No page of the device gets to the disk: the one that is loop-mounted here would fault.
fn unlink_against_commit(_: &Ctx) -> Result<()> {
    const ROUNDS: u32 = 40;
    const PAGES: usize = 128;
    let scratch = Scratch::on_disk("ext4", 64, &[], "nodelalloc")?;
    let ctx = Ctx::new(&scratch.file_system())?;
    let whole = File::open(&ctx.dir)?;
    ctx.gpu()?;

    for round in 0..ROUNDS {
        let file = Resident::dirty(&ctx, PAGES)?;
        let begin = Barrier::new(2);
        thread::scope(|scope| {
            let commits = scope.spawn(|| {
                begin.wait();
                thread::sleep(Duration::from_micros(50) * round);
                nix::unistd::syncfs(&whole)
            });
            let (path, _) = file.close();
            begin.wait();
            fs::remove_file(path)?;
            commits.join().expect("does not panic")?;
            anyhow::Ok(())
        })?;
    }
    Ok(())
}
