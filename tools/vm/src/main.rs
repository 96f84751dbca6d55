// SPDX-License-Identifier: GPL-2.0

//! Runs a command in a virtual machine with the GPU attached, or gives a shell there.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use devcache_stage::Cache;
use devcache_vm::disks::Disks;
use devcache_vm::guest::{Guest, Session};
use devcache_vm::machine::{Drive, Machine};
use devcache_vm::RUN_FAILED;

/// Run a command in a virtual machine with the GPU attached; without a command, give a shell there.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    machine: Machine,

    /// Limit for the run, in seconds.
    #[arg(long, env = "TIMEOUT")]
    timeout: Option<u64>,

    /// Complaints of the kernel are not a failure: the command breaks it on purpose.
    #[arg(long)]
    broken: bool,

    /// Keep the console's log here.
    #[arg(long)]
    console: Option<PathBuf>,

    /// The command, for the guest's shell.
    command: Option<String>,
}

/// Limit for a run with a command when none is given.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);

/// Runs the command; gives the exit status it had in the guest.
///
/// # Errors
///
/// Whatever kept the guest from running it to its end within the limit, and any complaint of the kernel.
fn run(args: &Args) -> Result<u8> {
    let cache = Cache::from_env()?;
    let log = cache.log("vm")?;
    let interrupted = devcache_vm::interruption()?;
    let disks = Disks::create(&cache, &log)?;
    let console = tempfile::Builder::new()
        .prefix("console-")
        .suffix(".log")
        .tempfile_in(cache.path("log"))?;

    let session = Session {
        command: args.command.as_deref(),
        drives: disks.paths().map(Drive::File).collect(),
        port: None,
        console: console.path(),
    };
    let default = args.command.as_ref().map(|_| DEFAULT_TIMEOUT);
    let limit = args.timeout.map(Duration::from_secs).or(default);
    let ended = Guest::start(&args.machine, session, &log)?.wait(limit, &interrupted);

    let text = String::from_utf8_lossy(&fs::read(console.path())?).into_owned();
    let kept = args
        .console
        .clone()
        .unwrap_or_else(|| cache.path("log/console.log"));
    fs::copy(console.path(), &kept).with_context(|| format!("cannot write {}", kept.display()))?;
    ended?.judge(&text, &cache.shown(&kept), args.broken)
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("devcache: {error:#}");
            ExitCode::from(RUN_FAILED)
        }
    }
}
