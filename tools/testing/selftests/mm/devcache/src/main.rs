// SPDX-License-Identifier: GPL-2.0
//! Selftests of devcache on a real device: whatever the CPU side does to a file whose pages are in
//! GPU memory, the result is what it would have been had they been in system memory.
//!
//! Every test runs once per file system, in a process of its own ([`runner`]), on pages that were
//! proven to be on the device just before ([`resident`]). The report is KTAP.

mod case;
mod cases;
mod check;
mod knobs;
mod resident;
mod rules;
mod runner;

use clap::Parser;
use devcache_selftests::mount::FileSystems;
use std::process::ExitCode;

/// Selftests of devcache. Needs root, the vsvm driver, and mounted file systems to work on.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Tests to run: those whose name contains one of these words; all without any.
    names: Vec<String>,

    #[command(flatten)]
    file_systems: FileSystems,

    /// List the tests and stop.
    #[arg(long)]
    list: bool,

    /// Instead of testing the kernel, break its rules one by one and see that a test fails. The kernel
    /// is of no use afterwards.
    #[arg(long)]
    controls: bool,

    /// Run each test so often: to meet rare races, and for storms of hangs or vanishing devices.
    #[arg(long, value_name = "N", default_value_t = 1)]
    repeat: u32,

    /// Multiply every time limit, for slow machines.
    #[arg(long, value_name = "N", default_value_t = 1)]
    patience: u32,

    /// Run one test in this process: how the tests are run by themselves.
    #[arg(long, hide = true)]
    here: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();

    if options.list {
        for case in cases::all() {
            println!("{}", case.name);
        }
        return ExitCode::SUCCESS;
    }

    let result = if options.controls {
        runner::run_controls(options.patience)
    } else if options.here {
        runner::run_here(&options.names[0], &options.file_systems.list[0])
    } else {
        runner::run_all(
            &options.names,
            &options.file_systems.list,
            options.patience,
            options.repeat,
        )
    };

    result.unwrap_or_else(|error| {
        eprintln!("devcache-selftests: {error:#}");
        ExitCode::FAILURE
    })
}
