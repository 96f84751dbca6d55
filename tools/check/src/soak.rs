// SPDX-License-Identifier: GPL-2.0

//! All that looks for faults by chance, in turn, again and again, on two kernels, until the time is over;
//! everything once at least.
//!
//! Each turn is a guest of its own, and what chooses has a seed: the one given, plus the number of the
//! round, plus one with KASAN, so that what is different with every second seed is done on one of them.
//! The report is written anew after each turn, so that one that is interrupted has what was done so far.
//! The console of a guest with failures is kept.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use devcache_selftests::figures::Figures;
use devcache_stage::Stage;

use crate::guest::{power_cuts, Run, Runs};
use crate::ktap::{Outcome, Verdict};
use crate::report;

/// Seconds for one turn, not counting what it takes to boot.
const SHORTEST: u64 = 40;
const LONGEST: u64 = 1200;

/// Seconds that a guest may take beyond its turn.
const MORE: u64 = 3600;

/// The file systems: what works on one of them at a time takes the next in each round.
const FILE_SYSTEMS: [&str; 4] = ["ext4", "xfs", "btrfs", "tmpfs"];

/// Seconds that one power cut takes, about.
const CUT: u64 = 15;

/// Seconds that the tests of recovery take, about.
const RECOVERY: u64 = 60;

#[derive(clap::Args)]
pub struct Args {
    /// Folder with the kernel with every cheap check: bzImage and guest.
    #[arg(long)]
    test: PathBuf,

    /// The same for the kernel with KASAN.
    #[arg(long)]
    kasan: PathBuf,

    #[command(flatten)]
    runs: Runs,

    /// How long.
    #[arg(long, env = "MINUTES", default_value_t = 60)]
    minutes: u64,

    /// What the choices of the first round follow from.
    #[arg(long, env = "SEED", default_value_t = 1)]
    seed: u64,
}

/// What takes turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    Operations,
    Faults,
    Coherence,
    Programs,
    Recovery,
    PowerCuts,
}

impl Task {
    const ALL: [Self; 6] = [
        Self::Operations,
        Self::Faults,
        Self::Coherence,
        Self::Programs,
        Self::Recovery,
        Self::PowerCuts,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Operations => "random operations",
            Self::Faults => "random faults",
            Self::Coherence => "coherence",
            Self::Programs => "programs under a storm",
            Self::Recovery => "hangs, vanishing and unbinding",
            Self::PowerCuts => "power cuts",
        }
    }

    /// What a guest runs for about so many seconds; nothing for power cuts, which make guests themselves.
    fn command(self, seconds: u64, round: u64, seed: u64, args: &Args) -> Option<String> {
        let each = seconds.div_ceil(FILE_SYSTEMS.len() as u64);
        let patience = args.runs.patience;
        let fs = FILE_SYSTEMS[round as usize % FILE_SYSTEMS.len()];
        Some(match self {
            // A round of it is many sequences, each with the next seed.
            Self::Operations => format!("gpufsx --seconds {each} --seed {}", seed * 1_000_000),
            Self::Faults => format!(
                "gpufsx --faults --seconds {each} --seed {}",
                seed * 1_000_000
            ),
            Self::Coherence => format!("devcache-coherence --seconds {each} --seed {seed}"),
            Self::Programs => {
                // The programs count their rounds, and take small numbers.
                let seed = seed % 1000;
                format!(
                    "devcache-storm cases --seconds 0 --rounds 1 --seed {seed} \
                     --patience {patience} --fs {fs}"
                )
            }
            Self::Recovery => format!(
                "devcache-selftests --patience {patience} --fs {fs} --repeat {} \
                 compute_channel_hangs close_while_hanging vanish unbind",
                seconds.div_ceil(RECOVERY)
            ),
            Self::PowerCuts => return None,
        })
    }
}

/// One kernel, one task: all turns so far.
struct Row {
    kernel: &'static str,
    task: Task,
    turns: u64,
    time: Duration,
    passed: usize,
    failed: usize,
    skipped: usize,
    figures: Figures,
}

impl Row {
    fn new(kernel: &'static str, task: Task) -> Self {
        Self {
            kernel,
            task,
            turns: 0,
            time: Duration::ZERO,
            passed: 0,
            failed: 0,
            skipped: 0,
            figures: Figures::default(),
        }
    }

    /// Takes in a turn; gives what is to say of its failures.
    fn add(&mut self, time: Duration, outcomes: &[Outcome], printed: &str, seed: u64) -> String {
        self.turns += 1;
        self.time += time;
        self.figures.add_all(&Figures::of_report(printed));
        let mut failures = String::new();
        for outcome in outcomes {
            match outcome.verdict {
                Verdict::Passed => self.passed += 1,
                Verdict::Skipped => self.skipped += 1,
                Verdict::Failed => {
                    self.failed += 1;
                    let (kernel, task, name) = (self.kernel, self.task.name(), &outcome.name);
                    failures += &format!("{kernel}, {task}, seed {seed}: {name}\n");
                    for note in &outcome.notes {
                        failures += &format!("  {note}\n");
                    }
                }
            }
        }
        failures
    }
}

/// The report, as text.
fn text(args: &Args, rows: &[Row], failures: &str) -> Result<String> {
    let mut text = format!("soak of {} minutes, seed {}\n", args.minutes, args.seed);
    for row in rows.iter().filter(|row| row.turns != 0) {
        writeln!(
            text,
            "\n{}, {}: {} turns, {} minutes; {} passed, {} failed, {} skipped\n  {}",
            row.kernel,
            row.task.name(),
            row.turns,
            row.time.as_secs().div_ceil(60),
            row.passed,
            row.failed,
            row.skipped,
            row.figures.list()
        )?;
    }
    for row in rows.iter().filter(|row| row.turns == 0) {
        writeln!(text, "\n{}, {}: not run", row.kernel, row.task.name())?;
    }
    match failures {
        "" => text += "\nno failures\n",
        failures => write!(text, "\nfailures:\n{failures}")?,
    }
    Ok(text)
}

/// Seconds for the next turn if so many of its round are left: some turns take longer than they should.
fn share(left: u64, turns: usize) -> u64 {
    (left / turns as u64).clamp(SHORTEST, LONGEST)
}

/// Does it all; says whether nothing failed.
pub fn soak(args: &Args, report: &Path) -> Result<bool> {
    let begin = Instant::now();
    let whole = Duration::from_secs(args.minutes * 60);
    let mut rows = Vec::new();
    for kernel in ["test", "kasan"] {
        rows.extend(Task::ALL.map(|task| Row::new(kernel, task)));
    }
    let mut failures = String::new();
    for number in 0.. {
        let left = whole.saturating_sub(begin.elapsed()).as_secs();
        let round = (number / rows.len()) as u64;
        if left == 0 && round != 0 {
            break;
        }
        let row = number % rows.len();
        let seconds = share(left, rows.len() - row);
        let said = take_turn(args, &mut rows[row], seconds, round)?;
        print!("{said}");
        failures += &said;
        fs::write(report, text(args, &rows, &failures)?)
            .with_context(|| report.display().to_string())?;
    }
    print!("{}", text(args, &rows, &failures)?);
    Ok(failures.is_empty())
}

/// One turn; gives what is to say of its failures.
fn take_turn(args: &Args, row: &mut Row, seconds: u64, round: u64) -> Result<String> {
    let built = match row.kernel {
        "kasan" => &args.kasan,
        _ => &args.test,
    };
    let (kernel, guest) = (built.join("bzImage"), built.join("guest"));
    let stage = Stage::begin(format!("soak: {}: {}", row.kernel, row.task.name()));
    let begin = Instant::now();
    let seed = args.seed + round + u64::from(row.kernel == "kasan");
    let log = |name: &str| args.runs.logs.join(format!("console-soak-{name}.log"));
    let (outcomes, printed) = match row.task.command(seconds, round, seed, args) {
        None => {
            let cuts = seconds.div_ceil(CUT);
            power_cuts(&kernel, &guest, &args.runs.append, cuts, seed)?
        }
        Some(command) => {
            let console = log(row.kernel);
            let limit = (seconds + MORE).to_string();
            let mut run = Run::on(&kernel, &guest, console.clone(), &limit);
            run.command.args(["--append", &args.runs.append]);
            let done = run.tests(&command)?;
            if done.0.iter().any(|it| it.verdict == Verdict::Failed) {
                let name = format!("{}-{seed}-{}", row.kernel, row.task.name());
                let kept = log(&name.replace(", ", " ").replace(' ', "-"));
                fs::rename(&console, &kept).context("keep the console of a guest that failed")?;
            }
            done
        }
    };
    stage.done_with(&report::totals(
        outcomes.iter().map(|outcome| outcome.verdict),
    ));
    Ok(row.add(begin.elapsed(), &outcomes, &printed, seed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args() -> Args {
        let line = "x --test t --kasan k --logs l --minutes 5 --seed 3";
        Line::parse_from(line.split(' ')).args
    }

    #[test]
    fn turns_are_added_up() -> Result<()> {
        let mut row = Row::new("test", Task::Operations);
        let passed = Outcome::new("a", true, "");
        let failed = Outcome::new("b", false, "why");
        let second = Duration::from_secs(1);
        let printed = "# figures: 5 operations";
        assert_eq!(row.add(second, &[passed], printed, 3), "");
        let failures = row.add(second, &[failed], printed, 4);
        assert_eq!(failures, "test, random operations, seed 4: b\n  why\n");

        let rows = [row, Row::new("kasan", Task::PowerCuts)];
        let text = text(&args(), &rows, &failures)?;
        let want = "soak of 5 minutes, seed 3\n\n\
                    test, random operations: 2 turns, 1 minutes; 1 passed, 1 failed, 0 skipped\n  \
                    10 operations\n\n\
                    kasan, power cuts: not run\n\n\
                    failures:\ntest, random operations, seed 4: b\n  why\n";
        assert_eq!(text, want);
        Ok(())
    }

    #[test]
    fn who_takes_longer_leaves_less() {
        assert_eq!(share(3600, 12), 300);
        assert_eq!(share(1000, 5), 200);
        assert_eq!(share(1000, 1), 1000);
        assert_eq!((share(10, 12), share(1 << 20, 12)), (SHORTEST, LONGEST));
    }

    #[test]
    fn rounds_differ() {
        for task in [Task::Operations, Task::Coherence, Task::Programs] {
            assert_ne!(
                task.command(40, 0, 3, &args()),
                task.command(40, 1, 4, &args())
            );
        }
        assert_eq!(Task::PowerCuts.command(40, 0, 3, &args()), None);
    }
}
