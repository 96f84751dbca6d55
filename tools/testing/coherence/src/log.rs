// SPDX-License-Identifier: GPL-2.0
//! Who did what when, for the report of a failure.

use crate::layout::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::ops::RangeInclusive;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

/// How many of his last events each remembers.
const REMEMBERED: usize = 4096;

/// How many events of a cell are told.
const TOLD: usize = 40;

/// The clock of all threads: what ends before another thing begins has the smaller number.
#[derive(Debug, Default)]
pub(crate) struct Clock(AtomicU64);

impl Clock {
    /// Ticks.
    pub(crate) fn tick(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }

    /// The time.
    pub(crate) fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// What an event was about.
#[derive(Clone, Debug)]
pub(crate) enum About {
    /// A cell and the versions that were written or found there, if they are versions.
    Cell(usize, Option<RangeInclusive<u32>>),
    /// Pages, whatever is in them.
    Pages(Range<usize>),
}

/// Something that was done.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) begin: u64,
    pub(crate) end: u64,
    pub(crate) what: &'static str,
    pub(crate) about: About,
}

/// What one thread did last.
#[derive(Debug)]
pub(crate) struct Log {
    who: String,
    events: VecDeque<Event>,
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            About::Cell(_, None) => write!(f, "words that are no versions"),
            About::Cell(_, Some(versions)) if versions.start() == versions.end() => {
                write!(f, "version {}", versions.start())
            }
            About::Cell(_, Some(versions)) => {
                write!(f, "versions {} to {}", versions.start(), versions.end())
            }
            About::Pages(pages) => write!(f, "pages {pages:?}"),
        }
    }
}

impl Log {
    pub(crate) fn new(who: String) -> Self {
        Log {
            who,
            events: VecDeque::new(),
        }
    }

    /// Whose it is.
    pub(crate) fn who(&self) -> &str {
        &self.who
    }

    /// Remembers an event.
    pub(crate) fn add(&mut self, event: Event) {
        if self.events.len() == REMEMBERED {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }
}

/// The last that happened to a cell, in the order in which it began: a line each, with the times of begin
/// and end.
pub(crate) fn interleaving(logs: &[Log], cell: &Cell) -> Vec<String> {
    let pages = cell.pages();
    let touches = |event: &Event| match &event.about {
        About::Cell(number, _) => *number == cell.number,
        About::Pages(moved) => moved.start < pages.end && pages.start < moved.end,
    };
    let mut events: Vec<(&Event, &str)> = logs
        .iter()
        .flat_map(|log| log.events.iter().map(|event| (event, log.who())))
        .filter(|(event, _)| touches(event))
        .collect();
    events.sort_unstable_by_key(|(event, _)| event.begin);
    events
        .iter()
        .skip(events.len().saturating_sub(TOLD))
        .map(|(event, who)| {
            format!(
                "{:>8} to {:<8} {who:<8} {} {}",
                event.begin, event.end, event.what, event.about
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_touched_a_cell_in_order() {
        let cell = Cell {
            number: 3,
            bytes: 4000..4200,
            whole: false,
        };
        let event = |begin, about| Event {
            begin,
            end: begin + 5,
            what: "does",
            about,
        };
        let mut first = Log::new("cpu 0".to_owned());
        first.add(event(9, About::Cell(3, Some(7..=8))));
        first.add(event(20, About::Cell(4, Some(1..=1))));
        let mut second = Log::new("mover 0".to_owned());
        second.add(event(2, About::Pages(1..5)));
        second.add(event(7, About::Pages(2..5)));
        second.add(event(12, About::Pages(0..1)));
        let told = interleaving(&[first, second], &cell);
        let words: Vec<Vec<&str>> = told
            .iter()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            words,
            [
                vec!["2", "to", "7", "mover", "0", "does", "pages", "1..5"],
                vec!["9", "to", "14", "cpu", "0", "does", "versions", "7", "to", "8"],
                vec!["12", "to", "17", "mover", "0", "does", "pages", "0..1"],
            ]
        );
    }

    #[test]
    fn only_the_last_are_remembered() {
        let mut log = Log::new("x".to_owned());
        for begin in 0..2 * REMEMBERED as u64 {
            log.add(Event {
                begin,
                end: begin,
                what: "does",
                about: About::Pages(0..1),
            });
        }
        assert_eq!(log.events.len(), REMEMBERED);
    }
}
