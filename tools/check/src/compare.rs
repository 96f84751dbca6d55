// SPDX-License-Identifier: GPL-2.0

//! The results of the same tests on two kernels, and how they differ.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use crate::ktap::{Line, Verdict};

/// Comes before the name of a category, in a line before its results.
pub const CATEGORY: &str = "# category ";

/// What became of each test, by its name: category, program and, if the program says, its part.
#[derive(Default)]
pub struct Results(BTreeMap<String, Verdict>);

impl Results {
    /// Reads what `run_vmtests.sh` printed for some categories. It puts `# ` before the lines of a
    /// program, which may be results too.
    pub fn parse(text: &str) -> Self {
        let mut results = Self::default();
        let mut category = "";
        let mut program = String::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix(CATEGORY) {
                category = name;
            } else if let Some(command) = line.strip_prefix("# running ") {
                command.trim().clone_into(&mut program);
            } else if let Some(result) = Line::parse(line) {
                results.insert(category, &result.name, result.verdict);
            } else if let Some(part) = line.strip_prefix("# ") {
                if let Some(result) = Line::parse(part.trim_start()) {
                    let name = format!("{program}: {}", result.name);
                    results.insert(category, &name, result.verdict);
                }
            }
        }
        results
    }

    /// Adds a test. Of tests with one name, each counts.
    pub fn insert(&mut self, category: &str, name: &str, verdict: Verdict) {
        let name = format!("{category}: {}", without_random(name));
        let mut unique = name.clone();
        let mut number = 1;
        while self.0.contains_key(&unique) {
            number += 1;
            unique = format!("{name} ({number})");
        }
        self.0.insert(unique, verdict);
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.0.values().filter(|has| **has == verdict).count()
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [passed, failed, skipped] =
            [Verdict::Passed, Verdict::Failed, Verdict::Skipped].map(|verdict| self.count(verdict));
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// The results of two kernels.
#[derive(Default)]
pub struct Pair {
    base: Results,
    patched: Results,
}

/// A test and its results; `None` where it gave none.
pub struct Change<'a> {
    /// The test.
    pub name: &'a str,
    base: Option<Verdict>,
    patched: Option<Verdict>,
}

/// A test that gives no result has failed, for whatever reason.
fn rank(verdict: Option<Verdict>) -> u8 {
    match verdict {
        Some(Verdict::Passed) => 2,
        Some(Verdict::Skipped) => 1,
        Some(Verdict::Failed) | None => 0,
    }
}

/// The name of a test that was given a folder in /tmp, without the end of the folder's name.
fn without_random(name: &str) -> String {
    let words = name.split(' ').map(|word| match word.rsplit_once('_') {
        Some((start, _)) if start.starts_with("/tmp/") => start,
        _ => word,
    });
    words.collect::<Vec<_>>().join(" ")
}

fn without_numbers(name: &str) -> String {
    name.chars().filter(|c| !c.is_ascii_digit()).collect()
}

fn word(verdict: Option<Verdict>) -> &'static str {
    verdict.map_or("without a result", Verdict::word)
}

impl<'a> Change<'a> {
    /// The category of the test.
    pub fn category(&self) -> &'a str {
        self.name
            .split_once(": ")
            .map_or(self.name, |(category, _)| category)
    }

    /// What its name is in other runs too: without measurements.
    pub fn lasting_name(&self) -> String {
        without_numbers(self.name)
    }

    /// Is the second result worse than the first?
    pub fn is_worse(&self) -> bool {
        rank(self.patched) < rank(self.base)
    }
}

impl fmt::Display for Change<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (base, patched) = (word(self.base), word(self.patched));
        write!(f, "{}: {base}, with the project {patched}", self.name)
    }
}

impl Pair {
    /// Adds the results of other tests.
    ///
    /// Some tests have a measurement in their name. So tests that are found on one kernel only are
    /// taken for the same if their names differ in numbers alone.
    pub fn add(&mut self, base: Results, patched: Results) {
        let mut only_base: BTreeMap<String, VecDeque<&String>> = BTreeMap::new();
        for name in base.0.keys().filter(|name| !patched.0.contains_key(*name)) {
            let names = only_base.entry(without_numbers(name)).or_default();
            names.push_back(name);
        }
        for (name, verdict) in patched.0 {
            let same = (!base.0.contains_key(&name))
                .then(|| only_base.get_mut(&without_numbers(&name))?.pop_front())
                .flatten();
            let name = same.cloned().unwrap_or(name);
            self.patched.0.insert(name, verdict);
        }
        self.base.0.extend(base.0);
    }

    /// Every test, by name.
    fn all(&self) -> impl Iterator<Item = Change<'_>> {
        let names: BTreeSet<&String> = self.base.0.keys().chain(self.patched.0.keys()).collect();
        names.into_iter().map(|name| Change {
            name,
            base: self.base.0.get(name).copied(),
            patched: self.patched.0.get(name).copied(),
        })
    }

    /// The tests whose results differ.
    pub fn changes(&self) -> impl Iterator<Item = Change<'_>> {
        self.all().filter(|test| test.base != test.patched)
    }

    /// The categories of all tests.
    pub fn categories(&self) -> BTreeSet<&str> {
        self.all().map(|test| test.category()).collect()
    }

    /// Every test with both results.
    pub fn table(&self) -> Vec<String> {
        self.all().map(|test| test.to_string()).collect()
    }

    /// The numbers of tests, as text.
    pub fn totals(&self) -> String {
        let mut same = [0; 3];
        let mut differ = 0;
        for test in self.all() {
            match (test.base, test.patched) {
                (Some(base), Some(patched)) if base == patched => same[base as usize] += 1,
                _ => differ += 1,
            }
        }
        let [passed, failed, skipped] = same;
        let tests = passed + failed + skipped + differ;
        format!(
            "{tests} tests on both kernels: {passed} passed, {failed} failed and {skipped} skipped \
             on both; {differ} differ"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "# category c\nTAP version 13\n\
        # -----------------\n# running ./cow -x\n# -----------------\n\
        # TAP version 13\n# 1..3\n# ok 1 one\n# # a note\n# not ok 2 two\n# ok 3 three # SKIP why\n\
        # [FAIL]\nnot ok 1 cow -x # exit=1\n\
        # running ./mkdirty\n# [PASS]\nok 2 mkdirty\n# SUMMARY: PASS=1 SKIP=0 FAIL=1\n1..2\n";

    fn pair(base: &str, patched: &str) -> Pair {
        let mut pair = Pair::default();
        pair.add(Results::parse(base), Results::parse(patched));
        pair
    }

    fn worse(pair: &Pair) -> Vec<&str> {
        let worse = pair.changes().filter(Change::is_worse);
        worse.map(|change| change.name).collect()
    }

    #[test]
    fn programs_and_their_parts_are_found() {
        let names: Vec<_> = Results::parse(BASE).0.into_iter().collect();
        let expected = [
            ("c: ./cow -x: one", Verdict::Passed),
            ("c: ./cow -x: three", Verdict::Skipped),
            ("c: ./cow -x: two", Verdict::Failed),
            ("c: cow -x", Verdict::Failed),
            ("c: mkdirty", Verdict::Passed),
        ];
        assert_eq!(
            names,
            expected.map(|(name, verdict)| (name.to_owned(), verdict))
        );
    }

    #[test]
    fn equal_results_are_no_change() {
        let pair = pair(BASE, BASE);
        assert_eq!(pair.changes().count(), 0);
        assert!(pair.totals().starts_with("5 tests"));
    }

    #[test]
    fn a_test_that_fails_now_is_worse() {
        let patched = BASE.replace("# ok 1 one", "# not ok 1 one");
        assert_eq!(worse(&pair(BASE, &patched)), ["c: ./cow -x: one"]);
        assert_eq!(worse(&pair(&patched, BASE)), [""; 0]);
    }

    #[test]
    fn a_test_that_is_skipped_now_is_worse() {
        let patched = BASE.replace("ok 2 mkdirty", "ok 2 mkdirty # SKIP");
        assert_eq!(worse(&pair(BASE, &patched)), ["c: mkdirty"]);
    }

    #[test]
    fn a_test_that_gives_no_result_is_worse() {
        let end = BASE.find("# running ./mkdirty").unwrap_or(0);
        assert_eq!(worse(&pair(BASE, &BASE[..end])), ["c: mkdirty"]);
    }

    #[test]
    fn measurements_in_names_are_no_change() {
        let base = "# category c\nok 1 faults 47 (0.1%)\nok 2 size 4\nok 3 size 8\n";
        let patched = "# category c\nok 1 faults 5 (0.1%)\nok 2 size 4\nnot ok 3 size 8\n";
        assert_eq!(pair(base, patched).changes().count(), 1);
        assert_eq!(worse(&pair(base, patched)), ["c: size 8"]);
    }

    #[test]
    fn folders_with_random_names_are_no_change() {
        let base = "# category c\n# running ./split /tmp/dir_a1B2c3\n# ok 1 order 2\n\
            ok 1 split /tmp/dir_a1B2c3\n";
        let patched = base.replace("a1B2c3", "zZ9xyy");
        assert_eq!(pair(base, &patched).changes().count(), 0);
        let patched = patched.replace("# ok 1", "# not ok 1");
        assert_eq!(
            worse(&pair(base, &patched)),
            ["c: ./split /tmp/dir order 2"]
        );
    }

    #[test]
    fn tests_of_one_name_are_told_apart() {
        let twice = "# category c\nok 1 a\nok 2 a\n";
        let once = "# category c\nok 1 a\nnot ok 2 a\n";
        assert_eq!(worse(&pair(twice, once)), ["c: a (2)"]);
    }
}
