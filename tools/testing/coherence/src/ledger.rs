// SPDX-License-Identifier: GPL-2.0
//! What is known of each cell without looking at it: in memory of the program, where no page moves.

use crate::layout::Cell;
use crate::stamp;
use crate::stamp::Bounds;
use crate::stamp::Fault;
use anyhow::ensure;
use std::ops::RangeInclusive;
use std::sync::atomic::fence;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

/// One cell's state.
#[derive(Debug)]
struct State {
    /// Somebody has the right to write.
    owned: AtomicBool,
    /// The version that was written last, or is being written.
    started: AtomicU32,
    /// The version that was written last.
    published: AtomicU32,
    /// The newest version that anybody has seen in each word. Empty if that promises nothing: a direct
    /// write may be on the disk, for all to see, while the page cache still has what was there before.
    seen: Vec<AtomicU32>,
}

/// The states of all cells.
#[derive(Debug)]
pub(crate) struct Ledger(Vec<State>);

/// The right to write a cell. Who fails keeps it, so that nobody writes over what he leaves.
#[derive(Debug)]
pub(crate) struct Claim<'a> {
    state: &'a State,
}

/// A read that has begun.
#[derive(Debug)]
pub(crate) struct Reading<'a> {
    state: &'a State,
    bounds: Bounds,
    /// It looks at the page cache, and not at the disk.
    cached: bool,
}

/// What a read showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// All words of the cell.
    Words(Vec<u32>),
    /// Their sum.
    Sum(u64),
}

impl Found {
    /// The versions in it, from the oldest to the newest, as far as it is made of versions of this cell.
    pub(crate) fn versions(&self, cell: &Cell) -> Option<RangeInclusive<u32>> {
        let versions = match self {
            Found::Words(words) => words
                .iter()
                .map(|&word| stamp::version(cell.number, word))
                .collect::<Option<Vec<u32>>>()?,
            Found::Sum(sum) => {
                let count = cell.words() as u64;
                let word = u32::try_from(sum / count).ok()?;
                let alike = sum % count == 0;
                vec![stamp::version(cell.number, word).filter(|_| alike)?]
            }
        };
        Some(*versions.iter().min()?..=*versions.iter().max()?)
    }
}

impl Ledger {
    /// Cells of which none was ever written.
    pub(crate) fn new(cells: &[Cell]) -> Self {
        let state = |cell: &Cell| State {
            owned: AtomicBool::new(false),
            started: AtomicU32::new(0),
            published: AtomicU32::new(0),
            seen: match cell.whole {
                true => Vec::new(),
                false => (0..cell.words()).map(|_| AtomicU32::new(0)).collect(),
            },
        };
        Ledger(cells.iter().map(state).collect())
    }

    /// The last version of a cell.
    pub(crate) fn published(&self, cell: &Cell) -> u32 {
        self.0[cell.number].published.load(Ordering::Acquire)
    }

    /// Takes the right to write a cell, unless another has it. With it comes all that the last owner did.
    pub(crate) fn claim(&self, cell: &Cell) -> Option<Claim<'_>> {
        let state = &self.0[cell.number];
        let taken = state.owned.swap(true, Ordering::Acquire);
        (!taken).then_some(Claim { state })
    }

    /// To be called before a cell is read, by its owner or by another.
    pub(crate) fn begin(&self, cell: &Cell, owner: bool, cached: bool) -> Reading<'_> {
        let state = &self.0[cell.number];
        let mut oldest = vec![self.published(cell); cell.words()];
        if cached {
            for (oldest, seen) in oldest.iter_mut().zip(&state.seen) {
                *oldest = seen.load(Ordering::Acquire).max(*oldest);
            }
        }
        fence(Ordering::SeqCst);
        Reading {
            state,
            bounds: Bounds {
                cell: cell.number,
                oldest,
                newest: 0,
                owner,
            },
            cached,
        }
    }
}

impl Reading<'_> {
    /// To be called with what was read. Says whether the cell was being written meanwhile.
    pub(crate) fn end(mut self, found: &Found) -> Result<bool, Fault> {
        fence(Ordering::SeqCst);
        self.bounds.newest = self.state.started.load(Ordering::Acquire);
        match found {
            Found::Words(words) => {
                self.bounds.judge(words)?;
                if self.cached {
                    self.note(words);
                }
            }
            Found::Sum(sum) => self.bounds.judge_sum(*sum)?,
        }
        Ok(*self.versions().start() != self.bounds.newest)
    }

    fn versions(&self) -> RangeInclusive<u32> {
        let oldest = self.bounds.oldest.iter().min().copied();
        oldest.unwrap_or(0)..=self.bounds.newest
    }

    /// From now on nobody may see less.
    fn note(&self, words: &[u32]) {
        let cell = self.bounds.cell;
        // Where bytes could mix, a word may look like a version that was not there yet.
        if !stamp::one_byte(cell, self.versions()) {
            return;
        }
        for (seen, &word) in self.state.seen.iter().zip(words) {
            if let Some(version) = stamp::version(cell, word) {
                seen.fetch_max(version, Ordering::AcqRel);
            }
        }
    }
}

impl Claim<'_> {
    /// The version that the cell must have.
    pub(crate) fn version(&self) -> u32 {
        self.state.published.load(Ordering::Relaxed)
    }

    /// To be called before the next version is written; gives that version.
    pub(crate) fn start(&self) -> anyhow::Result<u32> {
        let next = self.version() + 1;
        ensure!(next <= stamp::LAST, "there are no more versions");
        self.state.started.store(next, Ordering::Release);
        fence(Ordering::SeqCst);
        Ok(next)
    }

    /// The version that was started has been written. The next may have the cell.
    pub(crate) fn publish(self) {
        fence(Ordering::SeqCst);
        let version = self.state.started.load(Ordering::Relaxed);
        self.state.published.store(version, Ordering::Release);
        self.state.owned.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;
    use crate::stamp::stamp;
    use devcache_selftests::random::Random;
    use std::thread;

    /// A cell of five words that never leaves memory, and its history.
    struct History {
        layout: Layout,
        ledger: Ledger,
        memory: Vec<AtomicU32>,
    }

    const CELL: usize = 1;

    impl History {
        fn new() -> Self {
            let layout = Layout::new(2);
            History {
                ledger: Ledger::new(layout.cells()),
                memory: (0..5).map(|_| AtomicU32::new(0)).collect(),
                layout,
            }
        }

        fn cell(&self) -> &Cell {
            &self.layout.cells()[CELL]
        }

        fn claim(&self) -> Option<Claim<'_>> {
            self.ledger.claim(self.cell())
        }

        fn begin(&self, owner: bool) -> Reading<'_> {
            self.ledger.begin(self.cell(), owner, true)
        }

        fn read(&self) -> Found {
            let words = self.memory.iter();
            Found::Words(words.map(|word| word.load(Ordering::Relaxed)).collect())
        }

        /// A read that nothing happens to.
        fn look(&self, owner: bool) -> Result<bool, Fault> {
            self.begin(owner).end(&self.read())
        }

        fn store(&self, words: std::ops::Range<usize>, version: u32) {
            for word in &self.memory[words] {
                word.store(stamp(CELL, version), Ordering::Relaxed);
            }
        }

        /// Writes versions up to this one.
        fn write_up_to(&self, version: u32) {
            for _ in 0..version {
                let claim = self.claim().unwrap();
                let version = claim.start().unwrap();
                self.store(0..5, version);
                claim.publish();
            }
        }
    }

    #[test]
    fn a_write_that_is_read_meanwhile() {
        let history = History::new();
        history.write_up_to(2);
        assert_eq!(history.look(false), Ok(false));
        let claim = history.claim().unwrap();
        assert!(history.claim().is_none());
        assert_eq!(history.look(true), Ok(false));
        let early = history.begin(false);
        assert_eq!(claim.start().unwrap(), 3);
        history.store(0..2, 3);
        assert_eq!(history.look(false), Ok(true));
        history.store(2..5, 3);
        claim.publish();
        assert_eq!(early.end(&history.read()), Ok(true));
        assert_eq!(history.look(false), Ok(false));
        assert_eq!(history.ledger.published(history.cell()), 3);
    }

    #[test]
    fn a_stale_read() {
        let history = History::new();
        history.write_up_to(2);
        let before = history.read();
        history.write_up_to(1);
        let stale = Fault::Stale {
            word: 0,
            got: 2,
            oldest: 3,
        };
        assert_eq!(history.begin(false).end(&before), Err(stale));
    }

    #[test]
    fn a_lost_write() {
        let history = History::new();
        history.write_up_to(3);
        history.store(0..5, 2);
        let _claim = history.claim().unwrap();
        let lost = Fault::Lost { got: 2, last: 3 };
        assert_eq!(history.look(true), Err(lost));
    }

    #[test]
    fn a_torn_cell() {
        let history = History::new();
        history.write_up_to(3);
        history.store(4..5, 2);
        let torn = Fault::Torn {
            word: 4,
            got: 2,
            last: 3,
        };
        assert_eq!(history.look(false), Err(torn));
    }

    #[test]
    fn what_was_seen_does_not_go_back() {
        let history = History::new();
        history.write_up_to(2);
        let claim = history.claim().unwrap();
        claim.start().unwrap();
        history.store(0..1, 3);
        assert_eq!(history.look(false), Ok(true));
        history.store(0..1, 2);
        let stale = Fault::Stale {
            word: 0,
            got: 2,
            oldest: 3,
        };
        assert_eq!(history.look(false), Err(stale));
        // A direct read is told only what had been written when it began.
        let direct = history.ledger.begin(history.cell(), false, false);
        assert_eq!(direct.end(&history.read()), Ok(true));
    }

    #[test]
    fn sums_are_judged_too() {
        let history = History::new();
        history.write_up_to(2);
        let sum = |version| Found::Sum(5 * u64::from(stamp(CELL, version)));
        assert_eq!(history.begin(false).end(&sum(2)), Ok(false));
        assert!(history.begin(false).end(&sum(1)).is_err());
        assert_eq!(sum(2).versions(history.cell()), Some(2..=2));
        assert_eq!(Found::Sum(7).versions(history.cell()), None);
    }

    /// Memory is coherent: no history of it is found wrong.
    #[test]
    fn threads_on_memory() {
        let history = &History::new();
        thread::scope(|scope| {
            for seed in 0..4 {
                scope.spawn(move || {
                    let mut random = Random::new(seed);
                    for _ in 0..20_000 {
                        let claim = match random.below(2) {
                            0 => history.claim(),
                            _ => None,
                        };
                        history.look(claim.is_some()).unwrap();
                        if let Some(claim) = claim {
                            let version = claim.start().unwrap();
                            history.store(0..5, version);
                            claim.publish();
                        }
                    }
                });
            }
        });
        assert!(history.ledger.published(history.cell()) > 1000);
    }
}
