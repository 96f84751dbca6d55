// SPDX-License-Identifier: GPL-2.0

//! Runs every test of the project and counts the results.
//!
//! Three calls, as building and running happen apart: `host` checks the sources and runs the tests that
//! need no guest, `guest` boots the kernel for KUnit and kselftests, `sum` says how it all went. What
//! they have in common is a file of results ([`report`]). Two more stand
//! alone: `upstream` compares two kernels, `soak` goes on for as long as one likes.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod compare;
mod guest;
mod host;
mod ktap;
mod libtest;
mod report;
mod soak;
mod upstream;

/// Run every test of the project and count the results.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The file that collects the results.
    #[arg(long)]
    results: PathBuf,

    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Tests and style checks that need no guest.
    Host(host::Args),
    /// KUnit and kselftests, in guests.
    Guest(guest::Args),
    /// Count; fails when a test failed.
    Sum,
    /// The kernel's own tests of mm, on this kernel and on one without the project.
    Upstream(upstream::Args),
    /// What looks for faults by chance, again and again.
    Soak(soak::Args),
}

fn run(args: &Args) -> Result<bool> {
    match &args.what {
        What::Host(what) => host::check(what, &args.results),
        What::Guest(what) => guest::check(what, &args.results),
        What::Sum => return report::sum(&args.results),
        What::Upstream(what) => return upstream::check(what, &args.results),
        What::Soak(what) => return soak::soak(what, &args.results),
    }?;
    Ok(true)
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("devcache: {error:#}");
            ExitCode::FAILURE
        }
    }
}
