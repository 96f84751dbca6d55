// SPDX-License-Identifier: GPL-2.0
//! A thread that reads and writes cells, by the CPU or by a GPU.

use crate::arena::Arena;
use crate::arena::Violation;
use crate::layout::Cell;
use crate::ledger::Claim;
use crate::log::About;
use crate::log::Event;
use crate::log::Log;
use crate::region::Hand;
use crate::region::Read;
use crate::region::Write;
use anyhow::Context;
use anyhow::Result;
use std::fmt;
use std::ops::RangeInclusive;

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    pub(crate) reads: usize,
    /// Reads of cells that were being written meanwhile.
    pub(crate) raced: usize,
    pub(crate) writes: usize,
}

impl Done {
    /// Adds what was done elsewhere.
    pub(crate) fn add(&mut self, other: Done) {
        self.reads += other.reads;
        self.raced += other.raced;
        self.writes += other.writes;
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Done {
            reads,
            raced,
            writes,
        } = self;
        write!(
            f,
            "{writes} writes and {reads} reads, {raced} of them during a write"
        )
    }
}

/// The thread.
#[derive(Debug)]
pub(crate) struct Worker<'a> {
    arena: &'a Arena<'a>,
    hand: Hand,
    log: Log,
    done: Done,
}

/// What went wrong when something was done to a cell.
fn violation(cell: &Cell, what: &str, error: &dyn fmt::Display) -> Violation {
    Violation {
        cell: cell.number,
        text: format!("{what}: {error:#}"),
    }
}

impl<'a> Worker<'a> {
    pub(crate) fn new(arena: &'a Arena<'a>, hand: Hand, who: String) -> Self {
        Worker {
            arena,
            hand,
            log: Log::new(who),
            done: Done::default(),
        }
    }

    /// Works until everybody stops.
    pub(crate) fn run(mut self) -> (Log, Done) {
        let arena = self.arena;
        arena.repeat(|| {
            let result = self.step();
            result.with_context(|| self.log.who().to_owned())
        });
        (self.log, self.done)
    }

    /// Reads a cell, or has its turn as the cell's owner.
    fn step(&mut self) -> Result<()> {
        let cell = self.arena.pick(&mut self.hand.random);
        let claim = match self.hand.random.below(2) {
            0 => self.arena.ledger.claim(cell),
            _ => None,
        };
        match claim {
            Some(claim) => self.own(cell, claim),
            None => self.look(cell, false),
        }
    }

    /// Sees that the cell is as the last owner left it, and writes the next version.
    fn own(&mut self, cell: &Cell, claim: Claim<'_>) -> Result<()> {
        self.look(cell, true)?;
        let how = self.hand.pick(Write::ways(cell, self.hand.has_gpu()));
        let version = claim.start()?;
        let begin = self.arena.clock.tick();
        let result = self.arena.region.write(&mut self.hand, how, cell, version);
        self.note(begin, how.name(), cell, Some(version..=version));
        result.map_err(|error| violation(cell, how.name(), &error))?;
        claim.publish();
        self.done.writes += 1;
        Ok(())
    }

    /// Reads a cell and judges what is there.
    fn look(&mut self, cell: &Cell, owner: bool) -> Result<()> {
        let how = match self.hand.has_gpu() {
            true => self.hand.pick(Read::BY_GPU),
            false => self.hand.pick(Read::BY_CPU),
        };
        let begin = self.arena.clock.tick();
        let reading = self.arena.ledger.begin(cell, owner, how.cached());
        let found = self
            .arena
            .region
            .read(&mut self.hand, how, cell)
            .map_err(|error| violation(cell, how.name(), &error))?;
        let judged = reading.end(&found);
        self.note(begin, how.name(), cell, found.versions(cell));
        self.done.reads += 1;
        let raced = judged.map_err(|fault| violation(cell, how.name(), &fault))?;
        self.done.raced += usize::from(raced);
        Ok(())
    }

    fn note(
        &mut self,
        begin: u64,
        what: &'static str,
        cell: &Cell,
        versions: Option<RangeInclusive<u32>>,
    ) {
        self.log.add(Event {
            begin,
            end: self.arena.clock.tick(),
            what,
            about: About::Cell(cell.number, versions),
        });
    }
}
