// SPDX-License-Identifier: GPL-2.0

//! The vsvm GPU: a model of a PCI GPU for QEMU's `vfio-user-pci`.
//!
//! What the hardware does is described in `drivers/gpu/drm/vsvm/hw.rs`, which the driver compiles
//! too. Here:
//!
//! - `vfio` answers the client: config space, BARs, DMA mappings, interrupts;
//! - `device` is BAR 0, owned by the server loop; `gpu` is what its threads share;
//! - `channel` runs descriptor rings on one thread each, `copy` and `compute` execute descriptors;
//! - `mmu` translates for `compute`, `faults` stalls it; `bus` is DMA, `msix` interrupts, `vram`
//!   memory;
//! - `inject` makes any of them misbehave when it is told to.
//!
//! Each client finds a GPU that was just powered on.

mod bus;
mod channel;
mod compute;
mod config_space;
mod copy;
mod device;
mod faults;
mod gpu;
#[path = "../../../drivers/gpu/drm/vsvm/hw.rs"]
mod hw;
mod inject;
mod mmu;
mod msix;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod tests;
mod vfio;
mod vram;
mod words;

use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail, Context};
use clap::Parser;
use vfio_user::Server;

use crate::inject::Setting;
use crate::vfio::Function;

/// Model of the vsvm GPU, served to QEMU's vfio-user-pci device.
#[derive(Parser)]
#[command(version)]
struct Options {
    /// UNIX socket to listen on; created, and removed at the end.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,

    /// Size of video memory in MiB.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    vram_mib: u64,

    /// Misbehaviour: what is to happen, and how often (COUNT times, or 1/N for once in N times); see
    /// drivers/gpu/drm/vsvm/hw/inject.rs.
    #[arg(long, value_name = "NAME=HOW-OFTEN")]
    inject: Vec<Setting>,

    /// Exit when the first client leaves.
    #[arg(long)]
    once: bool,
}

/// Makes sure that a socket can be created at `path`.
///
/// A socket that nobody listens on is left over from a model that was killed, and is removed. To
/// find out, a datagram socket tries to connect: where somebody listens it is of the wrong type, and
/// the listener notices nothing.
fn free_path(path: &Path) -> anyhow::Result<()> {
    let Ok(metadata) = path.symlink_metadata() else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        bail!("{} exists and is not a socket", path.display());
    }
    let probe = UnixDatagram::unbound().and_then(|socket| socket.connect(path));
    if !probe.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused) {
        bail!("{} is in use by another process", path.display());
    }
    std::fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))
}

/// Serves one client after the other on `listener`, or only one.
fn serve(listener: UnixListener, options: &Options) -> anyhow::Result<()> {
    let server = Server::from_owned_fd(listener.into(), true, vfio::irqs(), vfio::regions());
    loop {
        let mut function = Function::new(options.vram_mib << 20, &options.inject)?;
        println!(
            "vsvm-gpu: {} MiB of VRAM, listening on {}",
            options.vram_mib,
            options.socket.display()
        );
        let ended = server.run(&mut function);
        let counts = function.counts();
        eprintln!(
            "vsvm-gpu: {} commands, {} faults, {} bytes read and {} bytes written by DMA",
            counts.commands, counts.faults, counts.read, counts.written
        );
        // The error's text already contains its cause.
        let ended = ended.map_err(|error| anyhow!("the connection broke: {error}"));
        if options.once {
            return ended;
        }
        if let Err(error) = ended {
            eprintln!("vsvm-gpu: {error:#}");
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let path = &options.socket;
    free_path(path)?;
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    let ended = serve(listener, options);
    // Somebody else may have removed it, which is as good.
    let _ = std::fs::remove_file(path);
    ended
}

fn main() {
    let options = Options::parse();
    if let Err(error) = run(&options) {
        eprintln!("vsvm-gpu: {error:#}");
        std::process::exit(1);
    }
}
