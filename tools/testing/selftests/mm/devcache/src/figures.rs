// SPDX-License-Identifier: GPL-2.0
//! What a tool did, in numbers: a line of its report, which people read and which is added up over many
//! runs.
//!
//! ```text
//! # figures: 1596 operations, 1338 pages to a device, 1296 pages back
//! ```

use std::fmt;

/// What such a line begins with.
const HEAD: &str = "figures: ";

/// Numbers, each with the words that say of what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures(Vec<(u64, String)>);

impl Figures {
    /// With one more; equal words are added up. There must be no comma in them.
    pub fn with(mut self, number: u64, what: &str) -> Self {
        self.add(number, what);
        self
    }

    /// Adds a number.
    pub fn add(&mut self, number: u64, what: &str) {
        match self.0.iter_mut().find(|(_, known)| known == what) {
            Some((sum, _)) => *sum += number,
            None => self.0.push((number, what.to_owned())),
        }
    }

    /// The number of something; zero if it was not counted.
    pub fn get(&self, what: &str) -> u64 {
        let found = self.0.iter().find(|(_, known)| known == what);
        found.map_or(0, |(number, _)| *number)
    }

    /// Adds all others.
    pub fn add_all(&mut self, others: &Figures) {
        for (number, what) in &others.0 {
            self.add(*number, what);
        }
    }

    /// All that a report has.
    pub fn of_report(text: &str) -> Self {
        let mut sum = Figures::default();
        let lines = text.lines().filter_map(|line| line.strip_prefix("# "));
        for line in lines.filter_map(|line| line.strip_prefix(HEAD)) {
            for part in line.split(", ") {
                if let Some((number, what)) = part.split_once(' ') {
                    if let Ok(number) = number.parse() {
                        sum.add(number, what);
                    }
                }
            }
        }
        sum
    }

    /// The numbers without the head of the line.
    pub fn list(&self) -> String {
        let parts = self
            .0
            .iter()
            .map(|(number, what)| format!("{number} {what}"));
        parts.collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{HEAD}{}", self.list())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_added_up() {
        let first = Figures::default().with(5, "operations").with(2, "pages");
        let second = Figures::default().with(1, "pages").with(0, "cuts");
        let report = format!("KTAP version 1\n# {first}\nok 1 a\n# other: 7 pages\n# {second}\n");
        let sum = Figures::of_report(&report);
        assert_eq!(sum.list(), "5 operations, 3 pages, 0 cuts");

        assert_eq!((sum.get("pages"), sum.get("cells")), (3, 0));

        let mut twice = sum.clone();
        twice.add_all(&sum);
        assert_eq!(twice.list(), "10 operations, 6 pages, 0 cuts");
    }
}
