// SPDX-License-Identifier: GPL-2.0
//! What the kernel says moved.

use crate::figures::Figures;
use crate::stats::Counters;
use anyhow::Result;
use std::fmt;

/// Numbers of pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Went to a device.
    pub out: u64,
    /// Came back.
    pub back: u64,
    /// Could not be brought back.
    pub lost: u64,
}

impl Tally {
    /// Since boot.
    pub fn now() -> Result<Self> {
        let counters = Counters::core()?;
        Ok(Tally {
            out: counters.get("pages_out")?,
            back: counters.get("pages_back")?,
            lost: counters.get("pages_lost")?,
        })
    }

    /// Since an earlier one.
    pub fn since(self, before: Tally) -> Tally {
        Tally {
            out: self.out - before.out,
            back: self.back - before.back,
            lost: self.lost - before.lost,
        }
    }

    /// As figures of a report.
    pub fn figures(self) -> Figures {
        Figures::default()
            .with(self.out, "pages to a device")
            .with(self.back, "pages back")
            .with(self.lost, "pages lost")
    }

    /// Whether pages moved both ways.
    pub fn both_ways(self) -> bool {
        self.out != 0 && self.back != 0
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { out, back, lost } = self;
        write!(f, "{out} pages went to a GPU and {back} came back")?;
        match lost {
            0 => Ok(()),
            _ => write!(f, ", {lost} were lost"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences() {
        let before = Tally {
            out: 5,
            back: 3,
            lost: 0,
        };
        let after = Tally {
            out: 7,
            back: 3,
            lost: 1,
        };
        let since = after.since(before);
        assert!(!since.both_ways());
        assert_eq!(
            since.to_string(),
            "2 pages went to a GPU and 0 came back, 1 were lost"
        );
    }
}
