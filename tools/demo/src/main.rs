// SPDX-License-Identifier: GPL-2.0
//! The demonstration of devcache: a GPU computes on an mmapped file that lives in its memory, and
//! CPU and disk see the result without anybody copying it back.
//!
//! The last line is `demo: ok`, with exit status 0, or one that says why not, with exit status 1.

mod report;
mod show;

use anyhow::ensure;
use anyhow::Result;
use clap::Parser;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::mount::FileSystem;
use std::process::ExitCode;

/// Shows a GPU computing on an mmapped file whose pages live in its memory.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// File system to put the file on, as TYPE or TYPE=FOLDER; the folder is /mnt/TYPE if not given.
    #[arg(long = "fs", value_name = "TYPE[=FOLDER]", value_delimiter = ',', default_values = ["ext4", "tmpfs"])]
    file_systems: Vec<FileSystem>,

    /// Size of the file in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    size: u32,
}

fn run(options: &Options) -> Result<()> {
    let gpu = Gpu::open()?;
    let len = usize::try_from(options.size)? << 20;
    let free = usize::try_from(gpu.vram_free()?)?;
    ensure!(
        len <= free,
        "a file of {} MiB does not fit into {} MiB of free VRAM",
        len >> 20,
        free >> 20
    );

    options
        .file_systems
        .iter()
        .try_for_each(|fs| show::on_file_system(&gpu, fs, len))
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => {
            println!("demo: ok");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("demo: failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}
