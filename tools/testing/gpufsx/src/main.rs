// SPDX-License-Identifier: GPL-2.0
//! gpufsx: random operations on a file, by the CPU, by a GPU and by a second device, against a model of
//! the file in memory.
//!
//! A run is made of sequences, each on a new file ([`step`], [`exercise`]). All of it follows from the
//! seed. A sequence that fails is made shorter as long as it fails, and printed as a script that
//! `--replay` takes. With `--faults` things go wrong meanwhile ([`campaign`], [`rules`], [`book`]).

mod access;
mod book;
mod campaign;
mod census;
mod crowd;
mod differs;
mod effect;
mod exercise;
mod faults;
#[allow(dead_code, reason = "the selftests need all of it")]
#[path = "../../selftests/mm/devcache/src/knobs.rs"]
mod knobs;
mod rules;
mod step;

use anyhow::Context;
use anyhow::Result;
use campaign::Campaign;
use census::Census;
use clap::Parser;
use devcache_selftests::figures::Figures;
use devcache_selftests::kmsg;
use devcache_selftests::ktap::Ktap;
use devcache_selftests::ktap::Verdict;
use devcache_selftests::mount::FileSystem;
use devcache_selftests::mount::FileSystems;
use devcache_selftests::random::Random;
use devcache_selftests::scratch::Scratch;
use devcache_selftests::swap::Swap;
use devcache_selftests::tally::Tally;
use exercise::Devices;
use exercise::Exercise;
use proptest::strategy::Strategy;
use proptest::strategy::ValueTree;
use proptest::test_runner::Config;
use proptest::test_runner::RngAlgorithm;
use proptest::test_runner::TestCaseError;
use proptest::test_runner::TestError;
use proptest::test_runner::TestRng;
use proptest::test_runner::TestRunner;
use std::cell::RefCell;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use std::time::Instant;
use step::Step;

/// Random operations on a file by CPU and GPU. Needs root, the vsvm driver, lib/test_hmm.c and mounted
/// file systems to work on.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    #[command(flatten)]
    file_systems: FileSystems,

    /// How many operations on each of them.
    #[arg(long, value_name = "N", default_value_t = 500)]
    operations: usize,

    /// How long on each of them at least, if that is more.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seconds: u64,

    /// How many of them on one file, at most.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    length: u64,

    /// What all of it follows from.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Let things go wrong meanwhile: copies and memory of the GPU, the GPU itself, the disk, space on
    /// the file system, allocations of the kernel. The files are on file systems of these types made for it.
    #[arg(long)]
    faults: bool,

    /// Instead of random operations do those that an earlier run printed.
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
}

/// Time between two lines that tell how far it is.
const PROGRESS: Duration = Duration::from_secs(10);

/// Attempts to make a failing sequence shorter.
const ATTEMPTS: u32 = 300;

/// Milliseconds after which no further attempt is made.
const ATTEMPTS_END: u32 = 180_000;

/// A sequence that fails, and how.
struct Failure {
    seed: u64,
    /// How many operations had been done before it, in other sequences.
    after: usize,
    steps: Vec<Step>,
    reason: String,
}

/// A generator of sequences for one seed.
fn runner(seed: u64) -> TestRunner {
    let config = Config {
        failure_persistence: None,
        max_shrink_iters: ATTEMPTS,
        max_shrink_time: ATTEMPTS_END,
        ..Config::default()
    };
    let seed = Random::new(seed).bytes(32);
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed))
}

/// How large the file of a sequence is, about, in bytes. In a small one more operations meet.
fn size(seed: u64) -> usize {
    step::MAX >> (seed % 3 * 2)
}

/// What operations are done with and on.
struct Ground<'a> {
    devices: &'a Devices,
    fs: &'a FileSystem,
    faults: bool,
    /// The file system made for it.
    scratch: RefCell<Option<Scratch>>,
    /// What went wrong, and what was made of it.
    figures: RefCell<Figures>,
}

impl Ground<'_> {
    /// Does the steps on a new file. Gives how they ended; fails if they could not even begin.
    fn exercise(&self, steps: &[Step]) -> Result<Result<()>> {
        if !self.faults {
            let census = Census::take()?;
            let mount = self.fs.mount()?;
            let ended = Exercise::new(self.devices, &mount, false)?.run(steps);
            return Ok(ended.and_then(|()| census.check()));
        }
        let left = self.scratch.take();
        let scratch = match left.filter(|scratch| scratch.file_system().mount().is_ok()) {
            Some(scratch) => scratch,
            None => scratch(&self.fs.kind)?,
        };
        let mount = scratch.file_system().mount()?;
        let ended = Campaign::new(self.devices, &mount, scratch.disk(), &self.figures)?.run(steps);
        if ended.is_ok() {
            // One that something is wrong with is not used again.
            self.scratch.replace(Some(scratch));
        }
        Ok(ended)
    }
}

/// A file system that may be filled.
fn scratch(kind: &str) -> Result<Scratch> {
    match kind {
        "tmpfs" => Scratch::in_memory("tmpfs", "size=16M"),
        "ext4" => Scratch::on_bad_disk("ext4", 64, &[]),
        // Without delayed allocation: XFS complains of space that stays reserved for pages that were
        // lost, as it does after memory failures.
        "xfs" => Scratch::on_bad_disk("xfs", 320, &["-d", "extszinherit=1"]),
        "btrfs" => Scratch::on_bad_disk("btrfs", 256, &[]),
        other => anyhow::bail!("no {other} is made for faults"),
    }
}

/// Does random operations, as many and for as long as `options` say, until one fails. Gives the number
/// of those that did not.
fn random(
    options: &Options,
    ground: &Ground<'_>,
    report: &mut Ktap<io::Stdout>,
) -> Result<(usize, Option<Failure>)> {
    let length = usize::try_from(options.length)?;
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let mut told = Instant::now();
    let mut done = 0;
    for seed in options.seed.. {
        if done >= options.operations && Instant::now() >= end {
            break;
        }
        let mut runner = runner(seed);
        let sequence = step::sequences(length, size(seed), ground.faults)
            .new_tree(&mut runner)
            .map_err(|reason| anyhow::anyhow!("no sequence: {reason}"))?;
        let operations = sequence.current().len();
        kmsg::note(&format!(
            "gpufsx: {}: seed {seed}, after {done} operations",
            ground.fs.kind
        ))?;
        let (first, unfit) = (RefCell::new(None), RefCell::new(None));
        let result = runner.run_one(sequence, |steps| {
            let ended = ground.exercise(&steps).map_err(|error| {
                unfit.replace(Some(error));
                TestCaseError::reject("it could not begin")
            })?;
            ended.map_err(|error| {
                let reason = format!("{error:#}");
                // To make it shorter takes a while. If the log cannot be written, the report has it.
                let _ = kmsg::note(&format!("gpufsx: {} steps: {reason}", steps.len()));
                first.borrow_mut().get_or_insert_with(|| reason.clone());
                TestCaseError::fail(reason)
            })
        });
        match result {
            Ok(true) => done += operations,
            Ok(false) => {
                let error = unfit.take().context("no sequence")?;
                return Err(error.context(format!("seed {seed}, after {done} operations")));
            }
            Err(TestError::Fail(reason, steps)) => {
                let mut reason = reason.to_string();
                if let Some(first) = first.take().filter(|first| *first != reason) {
                    reason += &format!("; before it was made shorter: {first}");
                }
                let failure = Failure {
                    seed,
                    after: done,
                    steps,
                    reason,
                };
                return Ok((done, Some(failure)));
            }
            Err(TestError::Abort(reason)) => anyhow::bail!("given up: {reason}"),
        }
        if told.elapsed() > PROGRESS {
            report.diagnostic(&format!("{done} operations on {}", ground.fs.kind))?;
            told = Instant::now();
        }
    }
    Ok((done, None))
}

/// Reads a script: a step per line. Other lines are left out, so that it may be a report.
fn script(path: &Path) -> Result<Vec<Step>> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let steps: Vec<Step> = text
        .lines()
        .map(|line| line.trim_start_matches("# "))
        .filter(|line| line.starts_with('{'))
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .with_context(|| format!("{} is no script of gpufsx", path.display()))?;
    anyhow::ensure!(!steps.is_empty(), "{} has no steps", path.display());
    Ok(steps)
}

/// Tests one file system.
fn test(
    options: &Options,
    devices: &Devices,
    fs: &FileSystem,
    report: &mut Ktap<io::Stdout>,
) -> Result<Verdict> {
    let ground = Ground {
        devices,
        fs,
        faults: options.faults,
        scratch: RefCell::default(),
        figures: RefCell::default(),
    };
    // What is not on a disk can be in swap.
    let swap = match fs.mount()?.on_disk() {
        true => None,
        false => Some(Swap::on()),
    };
    if let Some(Err(error)) = &swap {
        report.diagnostic(&format!("without swap: {error:#}"))?;
    }
    let before = Tally::now()?;
    let (done, failure) = match &options.replay {
        None => random(options, &ground, report)?,
        Some(path) => {
            let steps = script(path)?;
            let ended = ground.exercise(&steps)?;
            let failure = ended.err().map(|error| Failure {
                seed: options.seed,
                after: 0,
                steps: steps.clone(),
                reason: format!("{error:#}"),
            });
            (steps.len(), failure)
        }
    };
    let moved = Tally::now()?.since(before);
    let mut figures = moved.figures();
    figures.add(done as u64, "operations");
    figures.add_all(&ground.figures.borrow());
    report.diagnostic(&figures.to_string())?;
    let Some(failure) = failure else {
        let wrong = match (options.faults, options.replay.is_some()) {
            (false, _) if moved.lost != 0 => Some("pages were lost without a fault"),
            (_, true) => None,
            _ if moved.out == 0 => Some("no page moved to a device, so this shows nothing"),
            (true, false) if faults::COUNTED.iter().all(|what| figures.get(what) == 0) => {
                Some("nothing went wrong, so this shows nothing")
            }
            _ => None,
        };
        return match wrong {
            None => Ok(Verdict::Pass),
            Some(wrong) => {
                report.diagnostic(wrong)?;
                Ok(Verdict::Fail)
            }
        };
    };
    report.diagnostic(&format!(
        "with seed {}, after {} operations: {}",
        failure.seed, failure.after, failure.reason
    ))?;
    for step in &failure.steps {
        report.diagnostic(&serde_json::to_string(step)?)?;
    }
    Ok(Verdict::Fail)
}

fn run(options: &Options) -> Result<u8> {
    let devices = Devices::open()?;
    let mut report = Ktap::new(io::stdout(), options.file_systems.list.len())?;
    for fs in &options.file_systems.list {
        let verdict = test(options, &devices, fs, &mut report)?;
        report.result(&format!("gpufsx.{}", fs.kind), &verdict)?;
    }
    Ok(report.finish()?.exit_status())
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("gpufsx: {error:#}");
            ExitCode::FAILURE
        }
    }
}
