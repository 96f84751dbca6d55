// SPDX-License-Identifier: GPL-2.0
//! Many at one file, each sure of what it alone stores.
//!
//! Every thread owns some bytes of the file and knows what they must be: it checks them, by another
//! path than the one it stores by where it can, before it stores the next value. Threads that own nothing
//! move pages about. A value that is lost, stale or torn shows at once, at its owner.

use crate::case::Case;
use crate::case::Ctx;
use crate::check::same;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::gpu::Direction;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::gpu::Work;
use devcache_selftests::map::Map;
use devcache_selftests::random::Random;
use devcache_selftests::sys;
use devcache_selftests::tally::Tally;
use devcache_selftests::PAGE;
use nix::fcntl::posix_fadvise;
use nix::fcntl::PosixFadviseAdvice;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

pub(crate) const CASES: &[Case] = &[
    Case::every("stress_cells", |ctx| {
        run(ctx, &[writer, storer, gpu_adder, mover, syncer, dropper])
    }),
    Case::every("stress_truncate", |ctx| {
        run(ctx, &[writer, gpu_adder, truncater, mover, mover, dropper])
    }),
    Case::every("stress_direct", |ctx| {
        run(
            ctx,
            &[direct_writer, gpu_adder, dropper, dropper, mover, syncer],
        )
    }),
    Case::every("stress_returns", |ctx| {
        run(ctx, &[storer, gpu_adder, mover, returner, syncer, writer])
    }),
];

/// How long the threads run, and how much longer if no page has moved by then on a slow machine.
const TIME: Duration = Duration::from_secs(5);
const LONGER: Duration = Duration::from_secs(45);

/// Pages whose cells are shared by all; behind them lie those of [`direct_writer`], then those that
/// [`truncater`] makes and removes.
const SHARED: usize = 64;
const DIRECT: std::ops::Range<usize> = SHARED..SHARED + 16;
const TAIL: std::ops::Range<usize> = DIRECT.end..DIRECT.end + 32;

/// Offsets within every shared page: the writer's cell, the storer's, and the GPU's elements.
const WRITER_CELL: usize = 0;
const STORER_CELL: usize = 64;
const GPU_CELLS: usize = 1024;
const GPU_COUNT: usize = 64;

/// What the threads share.
struct Arena<'a> {
    gpu: &'a Gpu,
    file: File,
    direct: File,
    map: Map,
    over: AtomicBool,
}

/// A thread's work.
type Role = fn(&Arena<'_>, &mut Random) -> Result<()>;

impl Arena<'_> {
    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// A cell as read(2) sees it.
    fn read_cell(&self, offset: usize) -> Result<u32> {
        let mut cell = [0; 4];
        self.file.read_exact_at(&mut cell, offset as u64)?;
        Ok(u32::from_le_bytes(cell))
    }

    /// A cell as a load sees it.
    fn load_cell(&self, offset: usize) -> u32 {
        self.map.cell(offset).load(Ordering::Relaxed)
    }
}

/// Runs the roles, each in a thread, on a file of zeroes.
fn run(ctx: &Ctx, roles: &[Role]) -> Result<()> {
    let file = ctx.file("arena")?;
    file.set_len((TAIL.start * PAGE) as u64)?;
    file.write_all_at(&vec![0; TAIL.start * PAGE], 0)?;
    let before = Tally::now()?;
    let arena = Arena {
        gpu: ctx.gpu()?,
        direct: sys::open_direct(&ctx.path("arena"))?,
        map: Map::shared(&file, TAIL.end * PAGE)?,
        file,
        over: AtomicBool::new(false),
    };

    let results: Vec<Result<()>> = thread::scope(|scope| {
        let threads: Vec<_> = roles
            .iter()
            .enumerate()
            .map(|(number, role)| {
                let arena = &arena;
                scope.spawn(move || {
                    let result = role(arena, &mut Random::new(number as u64));
                    if result.is_err() {
                        arena.over.store(true, Ordering::Relaxed);
                    }
                    result.with_context(|| format!("thread {number}"))
                })
            })
            .collect();
        let start = Instant::now();
        while arena.goes_on() && start.elapsed() < TIME + LONGER {
            let moved = Tally::now().is_ok_and(|now| now.since(before).both_ways());
            if moved && start.elapsed() > TIME {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        arena.over.store(true, Ordering::Relaxed);
        threads
            .into_iter()
            .map(|thread| thread.join().expect("does not panic"))
            .collect()
    });
    results.into_iter().collect::<Result<()>>()?;

    let moved = Tally::now()?.since(before);
    println!("{moved}");
    anyhow::ensure!(moved.both_ways(), "nothing was tested");
    Ok(())
}

/// Owns a cell of every shared page: checks it by read(2) and by a load, then stores by write(2).
fn writer(arena: &Arena<'_>, random: &mut Random) -> Result<()> {
    let mut last = [0_u32; SHARED];
    while arena.goes_on() {
        let page = random.below(SHARED);
        let offset = page * PAGE + WRITER_CELL;
        let got = match random.below(2) {
            0 => arena.read_cell(offset)?,
            _ => arena.load_cell(offset),
        };
        same(&format!("writer's cell in page {page}"), got, last[page])?;
        last[page] += 1;
        arena
            .file
            .write_all_at(&last[page].to_le_bytes(), offset as u64)?;
    }
    check_all(arena, &last, WRITER_CELL)
}

/// The same, storing through the mapping.
fn storer(arena: &Arena<'_>, random: &mut Random) -> Result<()> {
    let mut last = [0_u32; SHARED];
    while arena.goes_on() {
        let page = random.below(SHARED);
        let offset = page * PAGE + STORER_CELL;
        let got = match random.below(2) {
            0 => arena.read_cell(offset)?,
            _ => arena.load_cell(offset),
        };
        same(&format!("storer's cell in page {page}"), got, last[page])?;
        last[page] += 1;
        arena.map.cell(offset).store(last[page], Ordering::Relaxed);
    }
    check_all(arena, &last, STORER_CELL)
}

/// All cells at an offset, by read(2).
fn check_all(arena: &Arena<'_>, last: &[u32], cell: usize) -> Result<()> {
    for (page, want) in last.iter().enumerate() {
        let got = arena.read_cell(page * PAGE + cell)?;
        same(
            &format!("cell {cell} of page {page} at the end"),
            got,
            *want,
        )?;
    }
    Ok(())
}

/// Owns the GPU's elements of every shared page: the GPU adds one to all of them.
fn gpu_adder(arena: &Arena<'_>, random: &mut Random) -> Result<()> {
    let mut last = [0_u32; SHARED];
    while arena.goes_on() {
        let page = random.below(SHARED);
        let offset = page * PAGE + GPU_CELLS;
        arena.gpu.compute(Work::Add {
            dst: arena.map.addr() + offset,
            count: GPU_COUNT,
            value: 1,
        })?;
        last[page] += 1;

        let sum = arena.gpu.compute(Work::Sum {
            src: arena.map.addr() + offset,
            count: GPU_COUNT,
        })?;
        let want = u64::from(last[page]) * GPU_COUNT as u64;
        same(&format!("GPU's sum in page {page}"), sum, want)?;

        if random.below(4) == 0 {
            let got = arena.read_cell(offset + 4 * random.below(GPU_COUNT))?;
            same(&format!("GPU's element in page {page}"), got, last[page])?;
        }
    }
    check_all(arena, &last, GPU_CELLS)?;
    check_all(arena, &last, GPU_CELLS + 4 * (GPU_COUNT - 1))
}

/// Owns whole pages behind the shared ones: stores them by direct I/O, checks by read(2) and loads.
fn direct_writer(arena: &Arena<'_>, random: &mut Random) -> Result<()> {
    let buffer = Map::anonymous(PAGE)?;
    let mut last = [0_u32; DIRECT.end - DIRECT.start];

    while arena.goes_on() {
        let number = random.below(last.len());
        let page = DIRECT.start + number;
        let offset = page * PAGE + 4 * random.below(PAGE / 4);
        let got = match random.below(2) {
            0 => arena.read_cell(offset)?,
            _ => arena.load_cell(offset),
        };
        same(&format!("direct writer's page {page}"), got, last[number])?;

        last[number] += 1;
        buffer.write(0, &last[number].to_le_bytes().repeat(PAGE / 4));
        let len = sys::write_from(&arena.direct, page * PAGE, &buffer, 0..PAGE)?;
        same("bytes written directly", len, PAGE)?;
    }
    Ok(())
}

/// Owns the end of the file: cuts it within a page, grows it again, and finds zeroes behind the cut.
fn truncater(arena: &Arena<'_>, random: &mut Random) -> Result<()> {
    let start = TAIL.start * PAGE;
    let len = TAIL.len() * PAGE;

    while arena.goes_on() {
        let text = random.bytes(len);
        arena.file.write_all_at(&text, start as u64)?;
        let pages = TAIL.start..TAIL.end;
        arena.gpu.migrate(&arena.map, pages, Direction::ToVram)?;

        let cut = random.below(len);
        arena.file.set_len((start + cut) as u64)?;
        arena.file.set_len((start + len) as u64)?;
        let mut got = vec![0; len];
        arena.file.read_exact_at(&mut got, start as u64)?;
        crate::check::same_bytes("before the cut", &got[..cut], &text[..cut])?;
        crate::check::same_bytes("behind the cut", &got[cut..], &vec![0; len - cut])?;
    }
    Ok(())
}

/// Moves ranges to the device, after touching them.
fn mover(arena: &Arena<'_>, random: &mut Random) -> Result<()> {
    while arena.goes_on() {
        let first = random.below(TAIL.start);
        let pages = first..(first + 1 + random.below(16)).min(TAIL.start);
        arena.map.touch_read(pages.clone());
        arena.gpu.migrate(&arena.map, pages, Direction::ToVram)?;
    }
    Ok(())
}

/// Moves ranges back by request.
fn returner(arena: &Arena<'_>, random: &mut Random) -> Result<()> {
    while arena.goes_on() {
        let first = random.below(SHARED);
        let pages = first..(first + 1 + random.below(16)).min(SHARED);
        arena.gpu.migrate(&arena.map, pages, Direction::ToRam)?;
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Syncs, in turn by several calls.
fn syncer(arena: &Arena<'_>, random: &mut Random) -> Result<()> {
    while arena.goes_on() {
        match random.below(3) {
            0 => arena.file.sync_all()?,
            1 => arena.file.sync_data()?,
            _ => sys::sync_range(&arena.file, 0..SHARED * PAGE)?,
        }
        thread::sleep(Duration::from_millis(random.below(20) as u64));
    }
    Ok(())
}

/// Drops whatever is clean.
fn dropper(arena: &Arena<'_>, random: &mut Random) -> Result<()> {
    while arena.goes_on() {
        let first = random.below(TAIL.start) * PAGE;
        posix_fadvise(
            &arena.file,
            i64::try_from(first)?,
            16 * PAGE as i64,
            PosixFadviseAdvice::POSIX_FADV_DONTNEED,
        )?;
        if random.below(50) == 0 {
            sys::drop_caches()?;
        }
    }
    Ok(())
}
