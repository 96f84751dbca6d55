// SPDX-License-Identifier: GPL-2.0

//! A virtual machine with the GPU attached, for one run.
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

use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use anyhow::Result;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

pub mod console;
pub mod disks;
pub mod guest;
pub mod machine;

/// Exit status when a run itself failed, whatever its command did.
pub const RUN_FAILED: u8 = 254;

/// A flag that is set when the user wants this process to end.
pub fn interruption() -> Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    Ok(interrupted)
}
