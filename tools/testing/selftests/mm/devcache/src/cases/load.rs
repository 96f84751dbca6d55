// SPDX-License-Identifier: GPL-2.0
//! Programs that compute all the time while they are killed and the driver comes and goes.
//!
//! Every worker is a process with a file of its own. Each word of the file carries the number of its
//! page, and a count of the jobs that have changed it: a page that comes from elsewhere, is stale, or
//! was changed by a job that had been cancelled, shows at the next look. When a worker was killed, or
//! its job was cut short, each word is as before that job or as after it.

use crate::case::Case;
use crate::case::Ctx;
use crate::cases::lifecycle::wait_for_gpu;
use crate::cases::lifecycle::Unbound;
use crate::cases::resize::vram_becomes_free;
use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::gpu::Direction;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::gpu::Work;
use devcache_selftests::map::Map;
use devcache_selftests::random::Random;
use devcache_selftests::sys::start_child;
use devcache_selftests::PAGE;
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

pub(crate) const CASES: &[Case] = &[
    Case::every("load_unbind", |ctx| run(ctx, false)).limit(150),
    Case::every("load_unbind_and_kill", |ctx| run(ctx, true)).limit(150),
];

/// How long the workers are disturbed, at least, and for how many jobs of each.
const TIME: Duration = Duration::from_secs(10);
const JOBS: u32 = 10;
const WORKERS: usize = 3;
const PAGES: usize = 64;
const WORDS: usize = PAGE / 4;

/// Words of the board that all processes see: when to stop, and how often each worker's job ended well.
const STOP: usize = 0;
const DONE: usize = 4;

/// The word that page `page` is full of when `count` jobs have changed it.
fn word(page: usize, count: u16) -> u32 {
    ((page as u32 + 1) << 16) | u32::from(count)
}

/// What one process works with.
struct Worker<'a> {
    board: &'a Map,
    file: File,
    map: Map,
    counts: [u16; PAGES],
    random: Random,
}

impl Worker<'_> {
    /// Takes over a file in whatever state the last worker left it.
    fn adopt(board: &Map, file: File, seed: u64) -> Result<Worker<'_>> {
        let map = Map::shared(&file, PAGES * PAGE)?;
        let mut worker = Worker {
            board,
            file,
            map,
            counts: [0; PAGES],
            random: Random::new(seed),
        };
        for page in 0..PAGES {
            for word in worker.look(page)? {
                ensure!(
                    word >> 16 == page as u32 + 1,
                    "a word of page {page} is {word:#x} after a worker was killed"
                );
            }
            worker.store(page)?;
        }
        Ok(worker)
    }

    /// Makes a page what it has to be.
    fn store(&mut self, page: usize) -> Result<()> {
        let bytes = word(page, self.counts[page]).to_le_bytes().repeat(WORDS);
        match self.random.below(2) {
            0 => self.map.write(page * PAGE, &bytes),
            _ => self.file.write_all_at(&bytes, (page * PAGE) as u64)?,
        }
        Ok(())
    }

    /// The words of a page, by read(2) or by loads.
    fn look(&mut self, page: usize) -> Result<Vec<u32>> {
        let mut bytes = vec![0; PAGE];
        match self.random.below(2) {
            0 => bytes = self.map.read(page * PAGE..(page + 1) * PAGE),
            _ => self.file.read_exact_at(&mut bytes, (page * PAGE) as u64)?,
        }
        let words = bytes.chunks_exact(4);
        Ok(words
            .map(|bytes| u32::from_le_bytes(bytes.try_into().expect("4 bytes")))
            .collect())
    }

    /// Each word of a page must be one of these.
    fn check(&mut self, page: usize, counts: &[u16]) -> Result<()> {
        for (at, got) in self.look(page)?.into_iter().enumerate() {
            if !counts.iter().any(|count| got == word(page, *count)) {
                bail!("word {at} of page {page} is {got:#x}, want count {counts:?}");
            }
        }
        Ok(())
    }

    /// Lets the GPU add one to some pages; whether it did.
    fn compute(&self, gpu: &Gpu, pages: Range<usize>) -> Result<(), Errno> {
        let ended = gpu.run(Work::Add {
            dst: self.map.page_addr(pages.start),
            count: pages.len() * WORDS,
            value: 1,
        })?;
        match ended.status {
            0 => Ok(()),
            status => Err(Errno::from_raw(-status)),
        }
    }

    /// Works with a GPU until that has gone.
    fn work(&mut self, gpu: &Gpu, number: usize) -> Result<()> {
        while self.board.cell(STOP).load(Ordering::Relaxed) == 0 {
            let first = self.random.below(PAGES);
            let pages = first..(first + 1 + self.random.below(16)).min(PAGES);
            let gone = match gpu.migrate(&self.map, pages.clone(), Direction::ToVram) {
                Ok(_) => self.compute(gpu, pages.clone()).err(),
                Err(error) => Some(error),
            };
            match gone {
                None => {
                    for page in pages {
                        self.counts[page] += 1;
                    }
                    let done = self.board.cell(DONE + 4 * number);
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Some(Errno::ENODEV | Errno::ENXIO | Errno::ECANCELED) => {
                    for page in pages {
                        let count = self.counts[page];
                        self.check(page, &[count, count + 1])?;
                        self.store(page)?;
                    }
                    return Ok(());
                }
                Some(error) => bail!("the GPU says {error}"),
            }
            let page = self.random.below(PAGES);
            self.check(page, &[self.counts[page]])?;
            if self.random.below(20) == 0 {
                self.file.sync_data()?;
            }
        }
        for page in 0..PAGES {
            self.check(page, &[self.counts[page]])?;
        }
        Ok(())
    }
}

/// A worker's life.
fn live(ctx: &Ctx, board: &Map, number: usize, seed: u64) -> Result<()> {
    let path = ctx.path(&format!("worker{number}"));
    let file = File::options().read(true).write(true).open(path)?;
    let mut worker = Worker::adopt(board, file, seed)?;
    while board.cell(STOP).load(Ordering::Relaxed) == 0 {
        match Gpu::open() {
            Ok(gpu) => worker.work(&gpu, number)?,
            // The driver is away.
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
    Ok(())
}

/// Starts a worker.
fn start(ctx: &Ctx, board: &Map, number: usize, seed: u64) -> Result<Pid> {
    start_child(|| live(ctx, board, number, seed).context(format!("worker {number}")))
}

/// Has the driver come and go for a while, and workers killed.
fn run(ctx: &Ctx, kill_workers: bool) -> Result<()> {
    let free = Gpu::open_detached()?.vram_free()?;
    let board = ctx.file("board")?;
    board.set_len(PAGE as u64)?;
    let board = Map::shared(&board, PAGE)?;
    for number in 0..WORKERS {
        let file = ctx.file(&format!("worker{number}"))?;
        let bytes = (0..PAGES).flat_map(|page| word(page, 0).to_le_bytes().repeat(WORDS));
        file.write_all_at(&bytes.collect::<Vec<u8>>(), 0)?;
    }

    let mut seed = 0..;
    let mut spawn = |number| start(ctx, &board, number, seed.next().unwrap_or(0));
    let mut workers = (0..WORKERS).map(&mut spawn).collect::<Result<Vec<_>>>()?;
    let mut random = Random::new(99);
    let (mut unbound, mut killed) = (0, 0);
    let done = |number| board.cell(DONE + 4 * number).load(Ordering::Relaxed);
    let end = Instant::now() + TIME;
    while Instant::now() < end || (0..WORKERS).any(|number| done(number) < JOBS) {
        thread::sleep(Duration::from_millis(100 + random.below(200) as u64));
        if !kill_workers || random.below(2) == 0 {
            drop(Unbound::now()?);
            wait_for_gpu()?;
            unbound += 1;
        } else {
            let number = random.below(WORKERS);
            kill(workers[number], Signal::SIGKILL)?;
            let ended = waitpid(workers[number], None)?;
            let by_signal = matches!(ended, WaitStatus::Signaled(_, Signal::SIGKILL, _));
            ensure!(by_signal, "worker {number} had ended: {ended:?}");
            workers[number] = spawn(number)?;
            killed += 1;
        }
    }

    board.cell(STOP).store(1, Ordering::Relaxed);
    for (number, worker) in workers.into_iter().enumerate() {
        let ended = waitpid(worker, None)?;
        let well = matches!(ended, WaitStatus::Exited(_, 0));
        ensure!(well, "worker {number} ended with {ended:?}");
        println!("worker {number}: {} jobs", done(number));
    }
    println!("{unbound} times unbound, {killed} workers killed");
    for number in 0..WORKERS {
        std::fs::remove_file(ctx.path(&format!("worker{number}"))).context("remove a file")?;
    }
    vram_becomes_free(ctx, free)
}
