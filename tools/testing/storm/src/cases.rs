// SPDX-License-Identifier: GPL-2.0
//! Runs programs under a storm, and judges.
//!
//! ```text
//!   storm on   round 1: work, check      round 2: work, check      ...   until the time is over
//!   storm off  unmount, mount            check: what is on the disk
//! ```
//!
//! A case passes when each check did, many pages moved both ways in its time, none was lost, and the kernel
//! did not complain.

use crate::found::Places;
use crate::programs::Program;
use crate::programs::PROGRAMS;
use crate::storm::Force;
use crate::storm::Storm;
use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::child;
use devcache_selftests::child::End;
use devcache_selftests::kmsg;
use devcache_selftests::kmsg::Kmsg;
use devcache_selftests::ktap::Ktap;
use devcache_selftests::ktap::Verdict;
use devcache_selftests::mount::FileSystems;
use devcache_selftests::mount::Mount;
use devcache_selftests::tally::Tally;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

/// Run real programs under the storm, which check their data by themselves, and report in KTAP.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Programs to run: those whose name, as in ext4.sqlite, contains one of these words; all without any.
    names: Vec<String>,

    #[command(flatten)]
    file_systems: FileSystems,

    /// Only the fastest of them, each on one file system.
    #[arg(long)]
    short: bool,

    /// How long each runs at least, in rounds that are as long as the program makes them.
    #[arg(long, value_name = "N", default_value_t = 10)]
    seconds: u64,

    /// How many rounds there are at least. Some programs do something else in every second one.
    #[arg(long, value_name = "N", default_value_t = 2)]
    rounds: u32,

    /// Number of the first round, which what a program does in it follows from.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u32,

    /// Multiply the time limits, for slow machines.
    #[arg(long, value_name = "N", default_value_t = 1)]
    patience: u32,
}

/// Pages that must have gone to a GPU at least, and come back, for a case to mean something.
const ENOUGH: u64 = 100;

/// The most rounds beyond the time given, until enough pages have moved both ways.
const MORE_ROUNDS: u32 = 20;

/// Limit for one call of a script.
const LIMIT: Duration = Duration::from_secs(300);

/// Lines of the kernel log to show for a case that failed.
const LOG_LINES: usize = 60;

/// A program on a file system.
struct Case<'a> {
    program: &'a Program,
    mount: Mount,
    /// Where it works.
    dir: PathBuf,
    /// Where it keeps what it compares with.
    safe: PathBuf,
    limit: Duration,
}

impl Case<'_> {
    /// Has the program do something.
    fn call(&self, word: &str, round: u32) -> Result<()> {
        let script = self.safe.join("script");
        let mut command = Command::new(self.program.interpreter);
        command.arg(&script).args([word, &round.to_string()]);
        command.current_dir(&self.dir).env("SAFE", &self.safe);
        let (_, end, text) = child::run(&mut command, self.limit, || {})?;
        let what = match end {
            End::Exited(status) if status.success() => return Ok(()),
            End::Exited(status) => status.to_string(),
            End::TooLate(stacks) => {
                format!("not done after {} s\n{stacks}", self.limit.as_secs())
            }
            End::Stuck => "it is stuck in the kernel".to_owned(),
        };
        bail!("{word} in round {round}: {what}\n{}", text.trim_end())
    }

    /// The rounds, under the storm; how many there were.
    fn rounds(
        &self,
        options: &Options,
        force: Force,
        before: Tally,
        report: &mut Ktap<io::Stdout>,
    ) -> Result<u32> {
        let places = Places {
            paths: vec![self.dir.clone()],
            ..Default::default()
        };
        let storm = Storm::start(places, force)?;
        let end = Instant::now() + Duration::from_secs(options.seconds);
        let mut more_rounds = MORE_ROUNDS;
        for round in options.seed.. {
            self.call("work", round)?;
            self.call("check", round)?;
            let moved = Tally::now()?.since(before);
            report.diagnostic(&format!("round {round}, up to now: {moved}"))?;
            let rounds = round - options.seed + 1;
            if Instant::now() < end || rounds < options.rounds {
                continue;
            }
            if enough(moved) || more_rounds == 0 {
                storm.stop()?;
                return Ok(rounds);
            }
            more_rounds -= 1;
        }
        bail!("too many rounds")
    }

    /// All of it; what moved, and how many rounds there were.
    fn run(
        &self,
        options: &Options,
        force: Force,
        report: &mut Ktap<io::Stdout>,
    ) -> Result<(Tally, u32)> {
        fs::create_dir(&self.dir)?;
        fs::create_dir(&self.safe)?;
        fs::write(self.safe.join("script"), self.program.script)?;
        let before = Tally::now()?;
        let rounds = self.rounds(options, force, before, report)?;
        if self.mount.on_disk() {
            self.mount.remount()?;
            self.call("check", options.seed + rounds - 1)
                .context("after the remount")?;
        }
        let moved = Tally::now()?.since(before);
        ensure!(enough(moved), "{moved}: this tested too little");
        ensure!(moved.lost == 0, "{moved}");
        Ok((moved, rounds))
    }
}

impl Drop for Case<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
        let _ = fs::remove_dir_all(&self.safe);
    }
}

fn enough(moved: Tally) -> bool {
    moved.out.min(moved.back) >= ENOUGH
}

/// Runs a case and writes what is to say.
fn judge(
    case: &Case<'_>,
    options: &Options,
    force: Force,
    log: &mut Kmsg,
    report: &mut Ktap<io::Stdout>,
) -> Result<Verdict> {
    let before = Tally::now()?;
    let started = Instant::now();
    let result = case.run(options, force, report);
    let seconds = started.elapsed().as_secs();
    let messages = log.new_messages();
    let complaint = messages.iter().any(|message| kmsg::is_complaint(message));
    match &result {
        Ok((moved, rounds)) => {
            report.diagnostic(&format!("{moved}, in {rounds} rounds and {seconds} s"))?;
        }
        Err(error) => {
            let moved = Tally::now()?.since(before);
            report.diagnostic(&format!("{moved}, in {seconds} s; {error:#}"))?;
        }
    }
    if result.is_ok() && !complaint {
        return Ok(Verdict::Pass);
    }
    report.diagnostic(&messages[..messages.len().min(LOG_LINES)].join("\n"))?;
    Ok(Verdict::Fail)
}

/// Runs all that were chosen.
pub(crate) fn run(options: &Options, force: Force) -> Result<u8> {
    let mut rows = Vec::new();
    for fs in &options.file_systems.list {
        for program in PROGRAMS {
            let name = format!("{}.{}", fs.kind, program.name);
            let named = options
                .names
                .iter()
                .any(|word| name.contains(word.as_str()));
            let chosen = named || options.names.is_empty();
            if chosen && program.runs_on(&fs.kind, options.short) {
                rows.push((name, fs, program));
            }
        }
    }
    ensure!(!rows.is_empty(), "no program has such a name");

    let mut log = Kmsg::open().context("open /dev/kmsg")?;
    let mut report = Ktap::new(io::stdout(), rows.len())?;
    let before = Tally::now()?;
    for (name, fs, program) in rows {
        let folder = format!("storm-{}-{name}", std::process::id());
        let case = Case {
            program,
            mount: fs.mount()?,
            dir: fs.dir.join(&folder),
            safe: std::env::temp_dir().join(&folder),
            limit: LIMIT * options.patience,
        };
        let verdict = judge(&case, options, force, &mut log, &mut report)?;
        report.result(&name, &verdict)?;
    }
    report.diagnostic(&Tally::now()?.since(before).figures().to_string())?;
    Ok(report.finish()?.exit_status())
}
