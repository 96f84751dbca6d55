// SPDX-License-Identifier: GPL-2.0
//! A round: a new file, all threads at work on it for a while, and a look at the whole of it.

use crate::arena::Arena;
use crate::arena::Violation;
use crate::layout::Layout;
use crate::ledger::Ledger;
use crate::log;
use crate::log::About;
use crate::log::Clock;
use crate::log::Log;
use crate::mover;
use crate::region::Hand;
use crate::region::Read;
use crate::region::Region;
use crate::worker::Done;
use crate::worker::Worker;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::mount::Mount;
use devcache_selftests::random::Random;
use std::fs;
use std::fs::File;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

/// Threads that move pages.
const MOVERS: usize = 2;

/// Who works, and what the choices follow from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) cpu: usize,
    pub(crate) gpu: usize,
    pub(crate) cells: usize,
    pub(crate) seed: u64,
    pub(crate) end: Instant,
}

/// How a round went.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) by_cpu: Done,
    pub(crate) by_gpu: Done,
    /// What went wrong, if something did, and what led to it.
    pub(crate) failure: Option<Vec<String>>,
}

/// Compares the whole file.
fn compare(what: &str, got: &[u8], want: &[u8], layout: &Layout) -> Result<()> {
    anyhow::ensure!(got.len() == want.len(), "{what} has {} bytes", got.len());
    let Some(at) = (0..got.len()).find(|&at| got[at] != want[at]) else {
        return Ok(());
    };
    let text = format!(
        "lost write: {what}, byte {at:#x} is {:#04x} instead of {:#04x}",
        got[at], want[at]
    );
    match layout.at(at) {
        Some(cell) => Err(Violation {
            cell: cell.number,
            text,
        }
        .into()),
        None => anyhow::bail!("{text}, and it is in no cell"),
    }
}

/// A round, and what outlives its open file.
struct Round<'a> {
    setup: Setup,
    mount: &'a Mount,
    path: &'a Path,
    layout: Layout,
    ledger: Ledger,
    clock: Clock,
    logs: Vec<Log>,
    outcome: Outcome,
}

impl Round<'_> {
    /// Has everybody work.
    fn work(&mut self, region: &Region) -> Result<()> {
        let Setup {
            cpu,
            gpu,
            seed,
            end,
            ..
        } = self.setup;
        let mut seeds = Random::new(seed);
        let arena = &Arena {
            layout: &self.layout,
            ledger: &self.ledger,
            region,
            clock: &self.clock,
            seed,
            end,
            failure: Mutex::new(None),
        };
        let mut hand = |gpu| Hand::new(gpu, &self.layout, seeds.value());
        let mut workers = Vec::new();
        for number in 0..cpu {
            workers.push(Worker::new(arena, hand(None)?, format!("cpu {number}")));
        }
        for number in 0..gpu {
            let hand = hand(Some(Gpu::open_in_turn(number)?))?;
            workers.push(Worker::new(arena, hand, format!("gpu {number}")));
        }
        let mut movers = Vec::new();
        for number in 0..MOVERS {
            movers.push((
                Gpu::open_in_turn(number)?,
                hand(None)?,
                format!("mover {number}"),
            ));
        }

        thread::scope(|scope| {
            let workers: Vec<_> = workers
                .into_iter()
                .map(|worker| scope.spawn(|| worker.run()))
                .collect();
            let movers: Vec<_> = movers
                .into_iter()
                .map(|(gpu, hand, who)| scope.spawn(move || mover::run(arena, &gpu, hand, who)))
                .collect();
            for (number, worker) in workers.into_iter().enumerate() {
                let (log, done) = worker.join().expect("does not panic");
                let by = match number < cpu {
                    true => &mut self.outcome.by_cpu,
                    false => &mut self.outcome.by_gpu,
                };
                by.add(done);
                self.logs.push(log);
            }
            let logs = movers
                .into_iter()
                .map(|mover| mover.join().expect("does not panic"));
            self.logs.extend(logs);
        });
        arena.result()
    }

    /// Looks at the file as it is now, and then at what the disk has.
    fn look(&self, region: Region) -> Result<()> {
        let want = self.layout.image(|cell| self.ledger.published(cell));
        let whole = || fs::read(self.path).context("read the whole file");
        let compare = |what, got: &[u8]| compare(what, got, &want, &self.layout);
        compare("in a mapping", &region.elsewhere.read_all())?;
        compare("by read(2)", &whole()?)?;
        drop(region);
        if self.mount.on_disk() {
            self.mount.remount()?;
            compare("on the disk", &whole()?)?;
        }
        Ok(())
    }

    /// What went wrong, and what is known of the cell.
    fn report(&self, error: &anyhow::Error, region: Option<&Region>) -> Result<Vec<String>> {
        let mut lines = vec![format!("{error:#}")];
        let Some(violation) = error.downcast_ref::<Violation>() else {
            return Ok(lines);
        };
        let cell = &self.layout.cells()[violation.cell];
        lines.push(format!(
            "cell {} is bytes {:#x?} of the file, {} words in pages {:?}; written up to version {}",
            cell.number,
            cell.bytes,
            cell.words(),
            cell.pages(),
            self.ledger.published(cell)
        ));
        lines.extend(log::interleaving(&self.logs, cell));
        if let Some(region) = region {
            let mut hand = Hand::new(None, &self.layout, self.setup.seed)?;
            for &how in Read::BY_CPU {
                let found = region.read(&mut hand, how, cell)?;
                let about = About::Cell(cell.number, found.versions(cell));
                lines.push(format!("afterwards: {} {about}", how.name()));
            }
        }
        Ok(lines)
    }

    /// All of it.
    fn run(&mut self) -> Result<()> {
        File::create(self.path)?.set_len(self.layout.image(|_| 0).len() as u64)?;
        let region = Region::open(self.path, &self.layout)?;
        if let Err(error) = self.work(&region) {
            self.outcome.failure = Some(self.report(&error, Some(&region))?);
        } else if let Err(error) = self.look(region) {
            self.outcome.failure = Some(self.report(&error, None)?);
        }
        Ok(())
    }
}

/// Does a round.
pub(crate) fn run(setup: Setup, mount: &Mount) -> Result<Outcome> {
    let layout = Layout::new(setup.cells);
    let path = mount.dir.join(format!("coherence-{}", std::process::id()));
    let mut round = Round {
        setup,
        mount,
        path: &path,
        ledger: Ledger::new(layout.cells()),
        layout,
        clock: Clock::default(),
        logs: Vec::new(),
        outcome: Outcome::default(),
    };
    let result = round.run();
    let outcome = round.outcome;
    fs::remove_file(&path)?;
    result.map(|()| outcome)
}
