// SPDX-License-Identifier: GPL-2.0
//! devcache-storm: keeps moving files to a GPU while programs that know nothing of it work on them.
//!
//! ```text
//!    program                   page cache                    storm
//!
//!    read, write, mmap  --->   page in RAM    --- moves --->  looks which pages of which files are
//!    of its own files          page on GPU  <---              in the page cache ([`window`]), maps
//!                      <---    comes back                     them for reading and moves them
//! ```
//!
//! The storm changes no file, so what a program finds wrong in its files is wrong. Which files are meant is
//! looked up again and again, by folders or by what processes map ([`found`], [`maps`]), and each is kept
//! open and mapped meanwhile ([`target`]). Threads take them in turn ([`storm`]). What moved is what the
//! kernel counted ([`devcache_selftests::tally`]), for all of the system.
//!
//! With `cases`, programs from Debian run under it, on each file system, and check their own data
//! ([`programs`], [`cases`]).

mod cases;
mod found;
mod maps;
mod programs;
mod storm;
mod target;
mod window;

use anyhow::bail;
use anyhow::Context;
use anyhow::Result;
use clap::Parser;
use devcache_selftests::tally::Tally;
use found::Places;
use nix::sys::signal::SigSet;
use nix::sys::signal::Signal;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;
use storm::Force;
use storm::Storm;

/// Keeps moving files to a GPU while any program works on them. Needs root and the vsvm driver.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    #[command(flatten)]
    force: Force,

    #[command(subcommand)]
    what: What,
}

/// What the storm is for.
#[derive(Debug, clap::Subcommand)]
enum What {
    On(On),
    Run(Run),
    Cases(cases::Options),
}

/// Move files, until it is interrupted, or the time is over, or the processes have ended.
#[derive(Debug, clap::Args)]
struct On {
    /// Files, and folders with all that is in them.
    #[arg(required_unless_present = "pids")]
    paths: Vec<PathBuf>,

    /// Move all files that this process maps.
    #[arg(long = "pid", value_name = "PID")]
    pids: Vec<u32>,

    /// For so long at most.
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
}

/// Run a program, and move all files that it and its children map, until it ends; gives its exit status.
#[derive(Debug, clap::Args)]
struct Run {
    /// Files and folders to move too.
    #[arg(long = "on", value_name = "PATH")]
    paths: Vec<PathBuf>,

    /// The program and its arguments.
    #[arg(last = true, required = true)]
    program: Vec<String>,
}

/// How often it is looked whether the end has come.
const TICK: Duration = Duration::from_millis(100);

/// Whether any of these processes has not ended.
fn any_left(pids: &[u32]) -> bool {
    let left = |pid| Path::new(&format!("/proc/{pid}")).exists();
    pids.is_empty() || pids.iter().any(left)
}

fn on(options: &On, force: Force) -> Result<u8> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    // Before there are threads, which inherit it.
    signals.thread_block()?;
    let (sender, interrupted) = mpsc::channel();
    thread::spawn(move || sender.send(signals.wait()));

    let before = Tally::now()?;
    let places = Places {
        paths: options.paths.clone(),
        pids: options.pids.clone(),
        family: None,
    };
    let storm = Storm::start(places, force)?;
    let started = Instant::now();
    let over = |seconds| started.elapsed() >= Duration::from_secs(seconds);
    while any_left(&options.pids) && !options.seconds.is_some_and(over) {
        if interrupted.recv_timeout(TICK).is_ok() {
            break;
        }
    }
    storm.stop()?;
    println!("{}", Tally::now()?.since(before));
    Ok(0)
}

fn run(options: &Run, force: Force) -> Result<u8> {
    let [program, arguments @ ..] = options.program.as_slice() else {
        bail!("no program is named");
    };
    let before = Tally::now()?;
    let mut child = Command::new(program)
        .args(arguments)
        .spawn()
        .with_context(|| format!("run {program}"))?;
    let places = Places {
        paths: options.paths.clone(),
        pids: Vec::new(),
        family: Some(child.id()),
    };
    let storm = Storm::start(places, force);
    let status = child.wait()?;
    storm?.stop()?;
    eprintln!("devcache-storm: {}", Tally::now()?.since(before));
    let code = status.code().and_then(|code| code.try_into().ok());
    code.with_context(|| format!("{program} ended: {status}"))
}

fn main() -> ExitCode {
    let options = Options::parse();
    let result = match &options.what {
        What::On(what) => on(what, options.force),
        What::Run(what) => run(what, options.force),
        What::Cases(what) => cases::run(what, options.force),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("devcache-storm: {error:#}");
            ExitCode::FAILURE
        }
    }
}
