// SPDX-License-Identifier: GPL-2.0

//! Reads KTAP: what KUnit writes to the console and kselftests to their output.
//!
//! A report is a tree. A line `KTAP version 1`, more indented than what is around it, opens a level; the
//! result line that follows the level, less indented, sums it up. Only leaves are tests. A plan `1..N`
//! that is not kept means that tests did not run, and counts as a failure like any other.

/// What became of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passed.
    Passed,
    /// It failed, or was announced and did not run.
    Failed,
    /// It said that it cannot run here.
    Skipped,
}

/// One test.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its name, with those of the levels around it that are known.
    pub name: String,
    /// What became of it.
    pub verdict: Verdict,
    /// What it said about itself: the diagnostics before a failure, or why it was skipped.
    pub notes: Vec<String>,
}

/// A level of the report that has been opened.
#[derive(Default)]
struct Level {
    indent: usize,
    name: Option<String>,
    plan: Option<usize>,
    /// Result lines seen at this level.
    seen: usize,
    /// Where the outcomes of this level begin.
    first: usize,
}

/// Reads a report; other lines, such as the rest of a kernel's console, are taken as diagnostics.
pub fn parse(text: &str) -> Vec<Outcome> {
    let mut parser = Parser::default();
    for line in text.lines() {
        parser.line(strip_time(line.trim_end()));
    }
    parser.close(0);
    parser.outcomes
}

/// Takes the console's time stamp off a line.
fn strip_time(line: &str) -> &str {
    let Some((time, rest)) = line
        .strip_prefix('[')
        .and_then(|line| line.split_once("] "))
    else {
        return line;
    };
    let is_time = time
        .chars()
        .all(|c| c.is_ascii_digit() || c == '.' || c == ' ');
    if is_time {
        rest
    } else {
        line
    }
}

#[derive(Default)]
struct Parser {
    outcomes: Vec<Outcome>,
    levels: Vec<Level>,
    notes: Vec<String>,
}

impl Parser {
    fn line(&mut self, line: &str) {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        if text.starts_with("KTAP version ") || text.starts_with("TAP version ") {
            self.close(indent);
            self.levels.push(Level {
                indent,
                first: self.outcomes.len(),
                ..Level::default()
            });
            self.notes.clear();
        } else if let Some(result) = Line::parse(text) {
            self.result(indent, result);
        } else if let Some(name) = text.strip_prefix("# Subtest: ") {
            if let Some(level) = self.levels.last_mut() {
                level.name = Some(name.to_owned());
            }
        } else if let Some(plan) = text.strip_prefix("1..") {
            if let Some(level) = self.levels.last_mut() {
                let number = plan
                    .split_whitespace()
                    .next()
                    .and_then(|number| number.parse().ok());
                level.plan = level.plan.or(number);
            }
        } else if !text.is_empty() {
            self.notes.push(text.to_owned());
        }
    }

    /// Ends all levels at `indent` or deeper.
    fn close(&mut self, indent: usize) {
        let kept = self
            .levels
            .iter()
            .take_while(|level| level.indent < indent)
            .count();
        while self.levels.len() > kept {
            let Some(level) = self.levels.pop() else {
                return;
            };
            let missing = level.plan.unwrap_or(0).saturating_sub(level.seen);
            for _ in 0..missing {
                let name = self.path(level.name.as_deref().unwrap_or("?"));
                self.outcomes.push(Outcome {
                    name: format!("{name}: a planned test"),
                    verdict: Verdict::Failed,
                    notes: vec!["no result".to_owned()],
                });
            }
        }
    }

    fn result(&mut self, indent: usize, line: Line) {
        let summed = self
            .levels
            .iter()
            .find(|level| level.indent > indent)
            .map(|level| level.first);
        self.close(indent + 1);
        match self.levels.last_mut() {
            Some(level) if level.indent == indent => level.seen += 1,
            // A result that belongs to no report, such as a program's talk of its own.
            _ => return,
        }
        let notes = std::mem::take(&mut self.notes);
        let below = summed.map_or(&[][..], |first| &self.outcomes[first..]);
        let explained = below
            .iter()
            .any(|outcome| outcome.verdict == Verdict::Failed);
        // The sum of a level adds a test only when it says more than its parts did.
        if below.is_empty() || (line.verdict == Verdict::Failed && !explained) {
            let name = self.path(&line.name);
            let notes = match line.verdict {
                Verdict::Passed => Vec::new(),
                Verdict::Failed => notes,
                Verdict::Skipped => vec![line.reason],
            };
            self.outcomes.push(Outcome {
                name,
                verdict: line.verdict,
                notes,
            });
        }
    }

    fn path(&self, name: &str) -> String {
        let names = self.levels.iter().filter_map(|level| level.name.as_deref());
        names.chain([name]).collect::<Vec<_>>().join(".")
    }
}

/// A result line.
pub struct Line {
    /// What it says became of the test.
    pub verdict: Verdict,
    /// The test.
    pub name: String,
    /// Why it was skipped.
    reason: String,
}

impl Line {
    /// Reads `ok N NAME` and `not ok N NAME`, without indentation.
    pub fn parse(text: &str) -> Option<Self> {
        let (passed, rest) = match text.strip_prefix("not ok ") {
            Some(rest) => (false, rest),
            None => (true, text.strip_prefix("ok ")?),
        };
        let (number, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        number.parse::<u64>().ok()?;
        let (name, directive) = rest.split_once('#').unwrap_or((rest, ""));
        let skipped = directive.trim_start().strip_prefix("SKIP");
        let verdict = match (skipped, passed) {
            (Some(_), _) => Verdict::Skipped,
            (None, true) => Verdict::Passed,
            (None, false) => Verdict::Failed,
        };
        Some(Self {
            verdict,
            name: name.trim().trim_start_matches("- ").to_owned(),
            reason: skipped.unwrap_or_default().trim().to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(text: &str) -> Vec<(String, Verdict)> {
        parse(text)
            .into_iter()
            .map(|outcome| (outcome.name, outcome.verdict))
            .collect()
    }

    fn named(name: &str, verdict: Verdict) -> (String, Verdict) {
        (name.to_owned(), verdict)
    }

    #[test]
    fn flat() {
        let text = "TAP version 13\n1..3\nok 1 - a\nnot ok 2 b\nok 3 c # SKIP no such device\n";
        let expected = [
            named("a", Verdict::Passed),
            named("b", Verdict::Failed),
            named("c", Verdict::Skipped),
        ];
        assert_eq!(verdicts(text), expected);
        assert_eq!(parse(text)[2].notes, ["no such device"]);
    }

    #[test]
    fn only_leaves_count() {
        let text = "[    1.0] KTAP version 1\n[    1.0] 1..1\n[    1.0]     KTAP version 1\n\
                    [    1.0]     # Subtest: suite\n[    1.0]     1..2\n[    1.1]     ok 1 a\n\
                    [    1.1]     ok 2 b\n[    1.1] ok 1 suite\n";
        assert_eq!(
            verdicts(text),
            [
                named("suite.a", Verdict::Passed),
                named("suite.b", Verdict::Passed)
            ]
        );
    }

    #[test]
    fn a_report_that_ends_early_fails() {
        let text =
            "KTAP version 1\n1..2\n    KTAP version 1\n    # Subtest: s\n    1..2\n    ok 1 a\n";
        let failed = verdicts(text)
            .iter()
            .filter(|(_, verdict)| *verdict == Verdict::Failed)
            .count();
        assert_eq!(failed, 3); // s.b, and both results of the first level
    }

    #[test]
    fn a_suite_can_fail_although_its_tests_passed() {
        let text = "KTAP version 1\n1..1\n    KTAP version 1\n    # Subtest: s\n    1..1\n    ok 1 a\nnot ok 1 s\n";
        assert_eq!(
            verdicts(text),
            [named("s.a", Verdict::Passed), named("s", Verdict::Failed)]
        );
    }

    #[test]
    fn a_failed_test_fails_its_suite_once() {
        let text = "KTAP version 1\n1..1\n    KTAP version 1\n    # Subtest: s\n    1..1\n    # expected 1\n    \
                    not ok 1 a\nnot ok 1 s\n";
        assert_eq!(verdicts(text), [named("s.a", Verdict::Failed)]);
        assert_eq!(parse(text)[0].notes, ["# expected 1"]);
    }

    #[test]
    fn a_suite_without_tests_of_its_own_is_skipped_as_one() {
        let text = "KTAP version 1\n1..1\n    KTAP version 1\n    # Subtest: s\n    1..0\nok 1 s # SKIP nothing\n";
        assert_eq!(verdicts(text), [named("s", Verdict::Skipped)]);
    }

    #[test]
    fn two_reports_in_one_text() {
        let text = "KTAP version 1\n1..1\nok 1 a\nKTAP version 1\n1..1\nok 1 b\n";
        assert_eq!(
            verdicts(text),
            [named("a", Verdict::Passed), named("b", Verdict::Passed)]
        );
    }

    #[test]
    fn talk_is_no_result() {
        assert_eq!(verdicts("ok 1 a\nok then\n[drm] ok\n"), []);
    }
}
