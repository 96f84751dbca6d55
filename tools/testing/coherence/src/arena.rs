// SPDX-License-Identifier: GPL-2.0
//! What all threads share.

use crate::layout::Cell;
use crate::layout::Layout;
use crate::ledger::Ledger;
use crate::log::Clock;
use crate::region::Region;
use devcache_selftests::random::Random;
use std::error::Error;
use std::fmt;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Instant;

/// A cell is not what it must be.
#[derive(Debug)]
pub(crate) struct Violation {
    pub(crate) cell: usize,
    pub(crate) text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cell {}: {}", self.cell, self.text)
    }
}

impl Error for Violation {}

/// The file, what is known of it, and whether to go on.
#[derive(Debug)]
pub(crate) struct Arena<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) ledger: &'a Ledger,
    pub(crate) region: &'a Region,
    pub(crate) clock: &'a Clock,
    pub(crate) seed: u64,
    /// When everybody stops.
    pub(crate) end: Instant,
    /// The first thing that went wrong. Everybody stops then, too.
    pub(crate) failure: Mutex<Option<anyhow::Error>>,
}

/// For how long, in ticks of the clock, everybody prefers the same cell.
const PREFERRED: u64 = 64;

impl Arena<'_> {
    /// The next cell for a thread: half of the time that which all prefer at this time, so that they meet.
    pub(crate) fn pick(&self, random: &mut Random) -> &Cell {
        let cells = self.layout.cells();
        let number = match random.below(2) {
            0 => Random::new(self.seed ^ (self.clock.now() / PREFERRED)).below(cells.len()),
            _ => random.below(cells.len()),
        };
        &cells[number]
    }

    /// Does something again and again as long as nothing goes wrong.
    pub(crate) fn repeat(&self, mut step: impl FnMut() -> anyhow::Result<()>) {
        while Instant::now() < self.end && self.failed().is_none() {
            if let Err(error) = step() {
                self.failed().get_or_insert(error);
            }
        }
    }

    /// What went wrong, once everybody has stopped.
    pub(crate) fn result(&self) -> anyhow::Result<()> {
        self.failed().take().map_or(Ok(()), Err)
    }

    fn failed(&self) -> MutexGuard<'_, Option<anyhow::Error>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
