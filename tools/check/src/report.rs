// SPDX-License-Identifier: GPL-2.0

//! Shows results as they come and counts them in the end.
//!
//! The file of results has a line `VERDICT NAME` for every test.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use devcache_stage::Stage;

use crate::ktap::{Outcome, Verdict};

/// Lines shown of what a failed test said.
const SHOWN_NOTES: usize = 40;

impl Verdict {
    /// What a report says of it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

impl Outcome {
    /// A test that either passed or failed, with what it said.
    pub fn new(name: impl Into<String>, passed: bool, said: &str) -> Self {
        Self {
            name: name.into(),
            verdict: if passed {
                Verdict::Passed
            } else {
                Verdict::Failed
            },
            notes: said.lines().map(str::to_owned).collect(),
        }
    }
}

/// Numbers of tests by verdict, as text.
pub fn totals(verdicts: impl Iterator<Item = Verdict>) -> String {
    let mut count = [0; 3];
    for verdict in verdicts {
        count[verdict as usize] += 1;
    }
    let [passed, failed, skipped] = count;
    format!("{passed} passed, {failed} failed, {skipped} skipped")
}

/// Runs a group of tests as a stage, shows what failed or was skipped and adds it all to the results.
pub fn group(
    results: &Path,
    name: &str,
    tests: impl FnOnce() -> Result<Vec<Outcome>>,
) -> Result<()> {
    let stage = Stage::begin(format!("test: {name}"));
    let mut outcomes = tests()?;
    if outcomes.is_empty() {
        outcomes.push(Outcome::new(name, false, "no test ran"));
    }
    stage.done_with(&totals(outcomes.iter().map(|outcome| outcome.verdict)));

    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for outcome in &outcomes {
        match outcome.verdict {
            Verdict::Passed => {}
            Verdict::Failed => {
                println!("  failed: {}", outcome.name);
                for note in &outcome.notes[outcome.notes.len().saturating_sub(SHOWN_NOTES)..] {
                    println!("    {note}");
                }
            }
            Verdict::Skipped => {
                let reason = outcome.notes.first().map_or("", String::as_str);
                reasons.entry(reason).or_default().push(&outcome.name);
            }
        }
    }
    for (reason, names) in reasons {
        println!("  skipped ({reason}): {}", names.join(" "));
    }

    let mut file = File::options().append(true).create(true).open(results)?;
    for outcome in &outcomes {
        writeln!(file, "{} {name}: {}", outcome.verdict.word(), outcome.name)?;
    }
    Ok(())
}

/// Shows the numbers; says whether no test failed.
pub fn sum(results: &Path) -> Result<bool> {
    let text = fs::read_to_string(results)
        .with_context(|| format!("cannot read {}", results.display()))?;
    let verdict = |line: &str| {
        let verdicts = [Verdict::Passed, Verdict::Failed, Verdict::Skipped];
        verdicts
            .into_iter()
            .find(|verdict| line.split(' ').next() == Some(verdict.word()))
    };
    for line in text
        .lines()
        .filter(|line| verdict(line) == Some(Verdict::Failed))
    {
        println!("{line}");
    }
    println!("{}", totals(text.lines().filter_map(verdict)));
    Ok(text
        .lines()
        .all(|line| verdict(line).is_some_and(|verdict| verdict != Verdict::Failed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_fails_the_whole() -> Result<()> {
        let results = tempfile::NamedTempFile::new()?;
        group(results.path(), "a", || {
            Ok(vec![Outcome::new("x", true, "")])
        })?;
        assert!(sum(results.path())?);
        group(results.path(), "b", || {
            Ok(vec![Outcome::new("y", false, "why")])
        })?;
        assert!(!sum(results.path())?);
        Ok(())
    }

    #[test]
    fn a_group_without_tests_is_a_failure() -> Result<()> {
        let results = tempfile::NamedTempFile::new()?;
        group(results.path(), "a", || Ok(Vec::new()))?;
        assert!(!sum(results.path())?);
        Ok(())
    }

    #[test]
    fn skipped_is_not_passed() {
        let verdicts = [Verdict::Passed, Verdict::Skipped, Verdict::Skipped];
        assert_eq!(
            totals(verdicts.into_iter()),
            "1 passed, 0 failed, 2 skipped"
        );
    }
}
