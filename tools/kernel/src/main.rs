// SPDX-License-Identifier: GPL-2.0

//! Builds the kernel with this project in it.
//!
//! Source -> tree -> build, each in the cache folder and each reused when its inputs are unchanged:
//!
//! - `src/`: the pristine source, Debian's package or what `KSRC` names ([`source`]);
//! - `tree/`: the source with `patches/` and the checkout's files in it; a file is written only when
//!   its content changes, so that its time stamp tells `make` the truth ([`tree`]);
//! - `build-CONFIG/`: objects and the result ([`build`], [`config`]).

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use devcache_stage::Cache;

mod build;
mod config;
mod source;
mod tree;

/// Build the kernel with the devcache core and the vsvm driver in it.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Which kernel: as users run it, with every cheap check, or with KASAN too.
    #[arg(long, env = "CONFIG", value_enum, default_value_t)]
    config: config::Flavour,

    /// Kernel source to use instead of Debian's package: a git tree, a folder or a tarball.
    #[arg(long, env = "KSRC")]
    ksrc: Option<PathBuf>,

    /// What the user calls the kernel source, for messages.
    #[arg(long, env = "KSRC_SHOWN", hide = true)]
    ksrc_shown: Option<PathBuf>,

    /// Debian mirror to fetch the package from instead of the sysroot's.
    #[arg(long, env = "MIRROR")]
    mirror: Option<String>,

    /// The checkout of this project.
    #[arg(long, default_value = ".")]
    checkout: PathBuf,

    /// Copy bzImage and the modules to this folder.
    #[arg(long)]
    out: PathBuf,

    /// Build the same kernel without the project too, to `base` in that folder, and the kernel's own
    /// tests of mm for both, to `mm-tests` in what each guest sees.
    #[arg(long)]
    base: bool,
}

fn run(args: &Args) -> Result<()> {
    let cache = Cache::from_env()?;
    let source = match &args.ksrc {
        Some(path) => source::given(&cache, path, args.ksrc_shown.as_deref().unwrap_or(path))?,
        None => source::debian(&cache, args.mirror.as_deref())?,
    };
    let checkout = args
        .checkout
        .canonicalize()
        .context("cannot read the checkout")?;
    let tree = tree::assemble(&cache, &source, &checkout)?;
    let built = build::build(&cache, &tree, &checkout, args.config)?;
    built.copy_to(&args.out)?;
    if args.base {
        let pristine = tree::Tree::pristine(&source);
        let base = build::build(&cache, &pristine, &checkout, args.config)?;
        base.copy_to(&args.out.join("base"))?;
        for guest in ["guest", "base/guest"] {
            let out = args.out.join(guest).join("mm-tests");
            build::mm_tests(&cache, &tree, &built, &out)?;
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("devcache: {error:#}");
            ExitCode::FAILURE
        }
    }
}
