// SPDX-License-Identifier: GPL-2.0
//! devcache-coherence: CPU threads and GPU jobs work on one file at the same time, while others move its
//! pages. No write may be lost and no read be stale.
//!
//! The file is made of *cells* ([`layout`]): some words each, most of them several to a page, some across
//! two pages, some with pages of their own. All words of a cell carry the same *stamp* ([`stamp`]): whose
//! they are, and a version.
//!
//! ```text
//!   owner of a cell                                    anybody, at any time
//!
//!   claim the cell                                     oldest = published, or newer if seen
//!   read it: all words are of the version published    read the cell
//!   started = version + 1                              newest = started
//!   write that version                                 each word is of a version in oldest..=newest
//!   published = version + 1; release the cell          what was seen, nobody may see less of
//! ```
//!
//! At any moment one thread at most has the right to write a cell. It may use any way to write: stores,
//! pwrite(2), a GPU's job ([`region`]). The right passes from one to the next, and so does what is known
//! of the cell, through memory of the program, which is not under test ([`ledger`]). Versions only grow.
//! So for each word of what was read it is known what it can be, however reads and writes overlap; what
//! cannot be is:
//!
//! * older than what had been published before the read began, or than what somebody had seen before: a
//!   *stale read*;
//! * the owner finds the cell older than its last version: a *lost write*;
//! * nobody was writing, and the words are of different versions: a *torn cell*. While somebody writes they
//!   may be: nobody promises that more than a word is written at once, and a copy by the kernel may even
//!   be seen byte by byte;
//! * of another cell, or of a version that nobody has begun to write.
//!
//! Two ways promise less. A direct read shows what the disk has, and may lack what others have already
//! seen of a write that has not ended. A direct write may be on the disk while the page cache still has
//! what was there before; as it takes whole pages from whoever shares them, only cells that share none are
//! written so, and what was seen of them binds nobody until it is published.
//!
//! Choices follow from the seed, the interleaving does not. So a failure prints it: the last events that
//! touched the cell, with the times of their begin and end on a clock that all threads share ([`log`]).

mod arena;
mod layout;
mod ledger;
mod log;
mod mover;
mod region;
mod round;
mod stamp;
mod worker;

use anyhow::Result;
use clap::Parser;
use devcache_selftests::ktap::Ktap;
use devcache_selftests::ktap::Verdict;
use devcache_selftests::mount::FileSystem;
use devcache_selftests::mount::FileSystems;
use devcache_selftests::tally::Tally;
use round::Outcome;
use round::Setup;
use std::io;
use std::process::ExitCode;
use std::time::Duration;
use std::time::Instant;

/// CPU threads and GPU jobs on one file at the same time: no write is lost, no read is stale. Needs root,
/// the vsvm driver, and mounted file systems to work on.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    #[command(flatten)]
    file_systems: FileSystems,

    /// How long on each of them.
    #[arg(long, value_name = "N", default_value_t = 3)]
    seconds: u64,

    /// Threads that read and write by the CPU.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=256))]
    cpu: u16,

    /// Threads that read and write by a GPU, each with a channel of its own.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=28))]
    gpu: u16,

    /// Cells of the file.
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u16).range(1..=stamp::MOST_CELLS as i64))]
    cells: u16,

    /// What all choices follow from.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

/// How long one file is worked on. The first writes to a file, which is a hole, are special; and versions
/// do not run out.
const ROUND: Duration = Duration::from_secs(3);

/// How many rounds there are beyond the time given, until everything has happened: a machine may be slow.
const MORE_ROUNDS: u32 = 20;

/// Tests one file system.
fn test(options: &Options, fs: &FileSystem, report: &mut Ktap<io::Stdout>) -> Result<Verdict> {
    let mount = fs.mount()?;
    let before = Tally::now()?;
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let mut sum = Outcome::default();
    let mut more_rounds = 0..MORE_ROUNDS;
    for seed in options.seed.. {
        let round = ROUND.min(end.saturating_duration_since(Instant::now()));
        let setup = Setup {
            cpu: options.cpu.into(),
            gpu: options.gpu.into(),
            cells: options.cells.into(),
            seed,
            end: Instant::now() + if round.is_zero() { ROUND } else { round },
        };
        let outcome = round::run(setup, &mount)?;
        sum.by_cpu.add(outcome.by_cpu);
        sum.by_gpu.add(outcome.by_gpu);
        report.diagnostic(&format!(
            "{}, seed {seed}, up to now: by CPU {}; by GPU {}",
            fs.kind, sum.by_cpu, sum.by_gpu
        ))?;
        if let Some(lines) = outcome.failure {
            report.diagnostic(&lines.join("\n"))?;
            return Ok(Verdict::Fail);
        }
        let moved = Tally::now()?.since(before);
        let parts = [
            moved.out,
            moved.back,
            (sum.by_cpu.raced + sum.by_gpu.raced) as u64,
            sum.by_cpu.writes as u64,
            sum.by_gpu.writes as u64,
        ];
        let all = !parts.contains(&0);
        if Instant::now() >= end && (all || more_rounds.next().is_none()) {
            let figures = moved.figures();
            let figures = figures.with((sum.by_cpu.reads + sum.by_gpu.reads) as u64, "cells read");
            let writes = sum.by_cpu.writes + sum.by_gpu.writes;
            report.diagnostic(&figures.with(writes as u64, "cells written").to_string())?;
            if !all {
                report.diagnostic("something never happened: this tested nothing")?;
                return Ok(Verdict::Fail);
            }
            if moved.lost != 0 {
                report.diagnostic("pages were lost without a fault")?;
                return Ok(Verdict::Fail);
            }
            break;
        }
    }
    Ok(Verdict::Pass)
}

fn run(options: &Options) -> Result<u8> {
    let mut report = Ktap::new(io::stdout(), options.file_systems.list.len())?;
    for fs in &options.file_systems.list {
        let verdict = test(options, fs, &mut report)?;
        report.result(&format!("coherence.{}", fs.kind), &verdict)?;
    }
    Ok(report.finish()?.exit_status())
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("devcache-coherence: {error:#}");
            ExitCode::FAILURE
        }
    }
}
