// SPDX-License-Identifier: GPL-2.0

//! Reads what `cargo test` prints: the format of Rust's own test harness.

use crate::ktap::{Outcome, Verdict};

/// The tests in the output; what a failed test said comes after the results.
pub fn parse(text: &str) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for line in text.lines() {
        let Some((name, result)) = line
            .strip_prefix("test ")
            .and_then(|line| line.rsplit_once(" ... "))
        else {
            continue;
        };
        let (verdict, notes) = match result {
            "ok" => (Verdict::Passed, Vec::new()),
            "FAILED" => (Verdict::Failed, said(text, name)),
            ignored if ignored.starts_with("ignored") => {
                (Verdict::Skipped, vec![ignored.to_owned()])
            }
            _ => continue,
        };
        outcomes.push(Outcome {
            name: name.to_owned(),
            verdict,
            notes,
        });
    }
    outcomes
}

fn said(text: &str, name: &str) -> Vec<String> {
    let start = format!("---- {name} stdout ----");
    let lines = text.lines().skip_while(|line| *line != start).skip(1);
    lines
        .take_while(|line| !line.starts_with("---- ") && *line != "failures:")
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_and_what_was_said() {
        let text =
            "running 3 tests\ntest a::b ... ok\ntest c ... FAILED\ntest d ... ignored, slow\n\n\
                    failures:\n\n---- c stdout ----\npanicked\n\nfailures:\n    c\n";
        let outcomes = parse(text);
        let verdicts: Vec<_> = outcomes.iter().map(|outcome| outcome.verdict).collect();
        assert_eq!(
            verdicts,
            [Verdict::Passed, Verdict::Failed, Verdict::Skipped]
        );
        assert_eq!(outcomes[1].notes, ["panicked", ""]);
    }
}
