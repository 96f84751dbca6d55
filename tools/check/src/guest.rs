// SPDX-License-Identifier: GPL-2.0

//! KUnit, kselftests and power cuts, each in guests of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use devcache_vm::RUN_FAILED;

use crate::ktap::{self, Outcome};
use crate::report;

/// Limit for each guest, in seconds, unless the user gives one.
const TIMEOUT: u32 = 1500;

/// Operations with faults: one sequence, as these take longer.
const FAULTS: &str = "gpufsx --faults --operations 100 --seed 50";

/// Number of power cuts: as few as show that the machine comes up again, twice.
const CUTS: u64 = 2;

#[derive(clap::Args)]
pub struct Args {
    /// The kernel.
    #[arg(long)]
    kernel: PathBuf,

    /// The folder that the guest sees at /devcache.
    #[arg(long)]
    guest: PathBuf,

    #[command(flatten)]
    runs: Runs,
}

/// What all runs of a guest have in common.
#[derive(clap::Args)]
pub struct Runs {
    /// Folder for the console logs.
    #[arg(long)]
    pub logs: PathBuf,

    /// Multiplies the time limits, for slow kernels.
    #[arg(long, default_value_t = 1)]
    pub patience: u32,

    /// More of the kernel's command line, in every run.
    #[arg(long, default_value = "")]
    pub append: String,
}

/// Runs all of it.
pub fn check(args: &Args, results: &Path) -> Result<()> {
    let selftests = format!("devcache-selftests --patience {}", args.runs.patience);
    report::group(results, "KUnit", || {
        let mut run = Run::new(args, "kunit", "kunit.enable=1");
        run.command.args(["--gpu", "0", "--", "true"]);
        let (mut outcomes, _) = run.finish()?;
        outcomes.extend(ktap::parse(&run.console()?));
        Ok(outcomes)
    })?;
    let storm = format!(
        "devcache-storm cases --short --seconds 2 --patience {}",
        args.runs.patience
    );
    // Some of these put a file in the current directory. The benchmark does nothing that others do
    // not, and fails where two minutes are not enough for it.
    let hmm = "cd /mnt/ext4 && hmm-tests -T benchmark_thp_migration";
    for (name, program, command) in [
        ("selftests", "devcache-selftests", selftests.as_str()),
        ("random operations", "gpufsx", "gpufsx"),
        ("random faults", "gpufsx-faults", FAULTS),
        ("coherence", "devcache-coherence", "devcache-coherence"),
        ("programs under a storm", "devcache-storm", storm.as_str()),
        ("hmm selftests", "hmm-tests", hmm),
    ] {
        report::group(results, name, || {
            let (outcomes, _) = Run::new(args, program, "").tests(command)?;
            Ok(outcomes)
        })?;
    }
    report::group(results, "power cuts", || {
        let (outcomes, _) = power_cuts(&args.kernel, &args.guest, &args.runs.append, CUTS, 1)?;
        Ok(outcomes)
    })?;
    report::group(results, "broken rules", || {
        let mut run = Run::new(args, "broken-rules", "");
        run.command.arg("--broken");
        let (outcomes, _) = run.tests(&format!("{selftests} --controls"))?;
        Ok(outcomes)
    })
}

/// Cuts the power so many times; gives the results and what was printed.
pub fn power_cuts(
    kernel: &Path,
    guest: &Path,
    append: &str,
    cuts: u64,
    seed: u64,
) -> Result<(Vec<Outcome>, String)> {
    let mut command = Command::new("devcache-powercut");
    command.arg("cut").arg("--kernel").arg(kernel);
    command.arg("--guest").arg(guest).args(["--append", append]);
    command.args(["--cuts", &cuts.to_string(), "--seed", &seed.to_string()]);
    let output = command.output().context("cannot run devcache-powercut")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let ended = matches!(output.status.code(), Some(0 | 1));
    let name = "the power cuts come to their end";
    let mut outcomes = vec![Outcome::new(name, ended, &said)];
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    outcomes.extend(ktap::parse(&printed));
    Ok((outcomes, printed))
}

/// One run of a guest.
pub struct Run {
    /// What starts it, to be completed.
    pub command: Command,
    console: PathBuf,
}

impl Run {
    fn new(args: &Args, name: &str, append: &str) -> Self {
        let console = args.runs.logs.join(format!("console-test-{name}.log"));
        let limit = TIMEOUT * args.runs.patience;
        let mut run = Self::on(&args.kernel, &args.guest, console, &limit.to_string());
        let append = format!("{} {append}", args.runs.append);
        run.command.args(["--append", append.trim()]);
        run
    }

    /// A run of this kernel, within `limit` seconds unless the user gives another limit.
    pub fn on(kernel: &Path, guest: &Path, console: PathBuf, limit: &str) -> Self {
        let mut command = Command::new("devcache-vm");
        command.arg("--kernel").arg(kernel);
        command.arg("--guest").arg(guest);
        command.arg("--console").arg(&console);
        if std::env::var_os("TIMEOUT").is_none() {
            command.args(["--timeout", limit]);
        }
        Self { command, console }
    }

    /// Runs a command in it that reports tests; gives their results and what it printed.
    pub fn tests(&mut self, command: &str) -> Result<(Vec<Outcome>, String)> {
        // Some tell on the standard error why a test failed.
        self.command.args(["--", &format!("{command} 2>&1")]);
        let (mut outcomes, output) = self.finish()?;
        let tests = ktap::parse(&output);
        if tests.is_empty() {
            outcomes.push(Outcome::new(command, false, "it reported no test"));
        }
        outcomes.extend(tests);
        Ok((outcomes, output))
    }

    /// Runs it; gives the result of the run itself and what the command printed.
    pub fn finish(&mut self) -> Result<(Vec<Outcome>, String)> {
        let output = self.command.output().context("cannot run devcache-vm")?;
        let passed = output
            .status
            .code()
            .is_some_and(|code| code != RUN_FAILED.into());
        let said = String::from_utf8_lossy(&output.stderr);
        let outcome = Outcome::new(
            "the guest ends well and the kernel does not complain",
            passed,
            &said,
        );
        Ok((
            vec![outcome],
            String::from_utf8_lossy(&output.stdout).into_owned(),
        ))
    }

    fn console(&self) -> Result<String> {
        let bytes = fs::read(&self.console).context("the run left no console log")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}
