// SPDX-License-Identifier: GPL-2.0
//! KTAP output: version line, plan, one line per test, diagnostics behind `#`, totals.
//!
//! Format: Documentation/dev-tools/ktap.rst; the totals line is that of kselftest.h.

use std::io;
use std::io::Write;

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// What was to be shown was shown.
    Pass,
    /// It was not.
    Fail,
    /// The test says nothing here, for this reason.
    Skip(String),
}

/// A report being written.
pub struct Ktap<W: Write> {
    out: W,
    done: usize,
    totals: Totals,
}

/// Numbers of tests by verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Passed.
    pub pass: usize,
    /// Failed.
    pub fail: usize,
    /// Skipped.
    pub skip: usize,
}

impl Totals {
    /// The exit status kselftest's runner expects: 0 passed, 1 failed, 4 nothing could be tested.
    pub fn exit_status(self) -> u8 {
        match self {
            Totals { fail: 1.., .. } => 1,
            Totals { pass: 0, .. } => 4,
            _ => 0,
        }
    }
}

impl<W: Write> Ktap<W> {
    /// Begins a report of `planned` tests.
    pub fn new(mut out: W, planned: usize) -> io::Result<Self> {
        writeln!(out, "KTAP version 1")?;
        writeln!(out, "1..{planned}")?;
        Ok(Ktap {
            out,
            done: 0,
            totals: Totals::default(),
        })
    }

    /// Writes text that explains something; every line of it becomes a diagnostic line.
    pub fn diagnostic(&mut self, text: &str) -> io::Result<()> {
        for line in text.lines() {
            writeln!(self.out, "# {line}")?;
        }
        self.out.flush()
    }

    /// Reports the next test.
    pub fn result(&mut self, name: &str, verdict: &Verdict) -> io::Result<()> {
        self.done += 1;
        let number = self.done;

        match verdict {
            Verdict::Pass => {
                self.totals.pass += 1;
                writeln!(self.out, "ok {number} {name}")?;
            }
            Verdict::Fail => {
                self.totals.fail += 1;
                writeln!(self.out, "not ok {number} {name}")?;
            }
            Verdict::Skip(reason) => {
                self.totals.skip += 1;
                let reason = reason.replace('\n', " ");
                writeln!(self.out, "ok {number} {name} # SKIP {reason}")?;
            }
        }
        self.out.flush()
    }

    /// Says that no further test can be run.
    pub fn bail_out(&mut self, reason: &str) -> io::Result<()> {
        writeln!(self.out, "Bail out! {}", reason.replace('\n', " "))?;
        self.out.flush()
    }

    /// Ends the report.
    pub fn finish(mut self) -> io::Result<Totals> {
        let Totals { pass, fail, skip } = self.totals;
        writeln!(
            self.out,
            "# Totals: pass:{pass} fail:{fail} xfail:0 xpass:0 skip:{skip} error:0"
        )?;
        self.out.flush()?;
        Ok(self.totals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_report() {
        let mut out = Vec::new();
        let mut report = Ktap::new(&mut out, 3).unwrap();
        report.result("ext4.pread", &Verdict::Pass).unwrap();
        report.diagnostic("first\nsecond").unwrap();
        report.result("ext4.mmap", &Verdict::Fail).unwrap();
        report
            .result("ext4.swap", &Verdict::Skip("no\nswap".into()))
            .unwrap();
        let totals = report.finish().unwrap();

        assert_eq!(totals.exit_status(), 1);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "KTAP version 1\n\
             1..3\n\
             ok 1 ext4.pread\n\
             # first\n\
             # second\n\
             not ok 2 ext4.mmap\n\
             ok 3 ext4.swap # SKIP no swap\n\
             # Totals: pass:1 fail:1 xfail:0 xpass:0 skip:1 error:0\n"
        );
    }

    #[test]
    fn bail_out_is_one_line() {
        let mut out = Vec::new();
        Ktap::new(&mut out, 1).unwrap().bail_out("a\nb").unwrap();
        assert!(String::from_utf8(out).unwrap().ends_with("Bail out! a b\n"));
    }

    #[test]
    fn exit_status() {
        let totals = |pass, fail, skip| Totals { pass, fail, skip };
        assert_eq!(totals(3, 0, 1).exit_status(), 0);
        assert_eq!(totals(3, 1, 1).exit_status(), 1);
        assert_eq!(totals(0, 0, 2).exit_status(), 4);
    }
}
