// SPDX-License-Identifier: GPL-2.0

//! Runs a command in a virtual machine with the GPU attached, or gives a shell there.
//!
//! A run is four things that live and end together: the GPU model, QEMU, the guest's first process
//! ([`guest-init.sh`](../guest-init.sh)) and the kernel's console. The command's output and errors, and
//! its exit status, come through ports of a virtio serial device, so that they never mix with the
//! console, which is a log that is searched for complaints of the kernel when the run is over
//! ([`console`]).
//!
//! virtme-ng, which does much of this, was looked at in trixie's version 1.35 and does not serve: it uses
//! KVM wherever /dev/kvm can be opened, sets `quiet loglevel=0` when it runs a script, shares the
//! guest's memory (which the GPU model needs for DMA) only together with virtiofs or NUMA, and neither
//! bounds the time of a run nor looks at the console.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

mod console;
mod disks;
mod machine;
mod run;

/// Run a command in a virtual machine with the GPU attached; without a command, give a shell there.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The kernel.
    #[arg(long)]
    kernel: PathBuf,

    /// The folder that the guest sees at /devcache, with bin/ and lib/modules/; files are added to it.
    #[arg(long)]
    guest: PathBuf,

    /// A folder that the guest sees at /host.
    #[arg(long, env = "SHARE")]
    share: Option<PathBuf>,

    /// Limit for the run, in seconds.
    #[arg(long, env = "TIMEOUT")]
    timeout: Option<u64>,

    /// Memory of the guest.
    #[arg(long, env = "MEM", default_value = "2G")]
    memory: String,

    /// Processors of the guest.
    #[arg(long, default_value_t = 2)]
    cpus: u8,

    /// How the guest's processors are run.
    #[arg(long, env = "ACCEL", value_enum, default_value_t = Accel::Tcg)]
    accel: Accel,

    /// Number of GPUs.
    #[arg(long, env = "GPU", default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=4))]
    gpu: u8,

    /// Whether the GPUs reach memory through an IOMMU only, which forgets at once what is unmapped.
    #[arg(long, env = "IOMMU", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=1))]
    iommu: u8,

    /// Options for the model of each GPU.
    #[arg(long, env = "GPU_ARGS", default_value = "", allow_hyphen_values = true)]
    gpu_args: String,

    /// More of the kernel's command line.
    #[arg(long, default_value = "")]
    append: String,

    /// Complaints of the kernel are not a failure: the command breaks it on purpose.
    #[arg(long)]
    broken: bool,

    /// Keep the console's log here.
    #[arg(long)]
    console: Option<PathBuf>,

    /// The command, for the guest's shell.
    command: Option<String>,
}

/// How the guest's processors are run.
#[derive(Clone, Copy, ValueEnum)]
enum Accel {
    /// By translation: slow and works everywhere.
    Tcg,
    /// By the host's processor. That /dev/kvm can be opened does not say that a guest will run.
    Kvm,
}

/// Exit status when the run itself failed, whatever its command did.
const RUN_FAILED: u8 = 254;

fn main() -> ExitCode {
    match run::run(&Args::parse()) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("devcache: {error:#}");
            ExitCode::from(RUN_FAILED)
        }
    }
}
