// SPDX-License-Identifier: GPL-2.0
//! devcache-powercut: the power goes while GPU jobs write files. What fsync(2) and the like had
//! confirmed is there afterwards, on ext4, xfs and btrfs at once.
//!
//! ```text
//!   host                                     guest
//!
//!   boots it                                 mounts: the logs are replayed
//!                                            unmounts, checks by e2fsck, xfs_repair, btrfs check
//!   judges each byte            <----------  mounts, reads all files
//!   random time from now        <----------  "ready"
//!   writes down                 <----------  "records 3, 17 of ext4/0 get version 5.12"
//!                                            the GPU writes to them, in VRAM
//!                                            fsync(2)
//!   writes down                 <----------  "confirmed"
//!   kills the machine
//!   loses what the disks had not flushed
//!   boots it, with the same disks
//! ```
//!
//! This program is both sides. Each file is full of records ([`record`]), which share pages and
//! reach across them; all their bytes follow from a version. Each step of the guest is told before
//! it is taken ([`message`]). So after a cut it is known of each byte what it may be ([`ledger`]).
//!
//! To kill the machine alone would prove little: what the guest has written is then in the host's
//! page cache, flushed or not. So the host serves the disks itself ([`nbd`]), from a model of a
//! disk with a write cache ([`disk`]): all, some or none of the blocks written since the last flush
//! are lost.
//!
//! The disks are formatted once and live through all cuts, as those of a real machine do: damage
//! that nobody sees at first adds up.

mod book;
mod disk;
mod files;
mod guest;
mod host;
mod ledger;
mod message;
mod nbd;
mod port;
mod record;
mod writer;

use clap::Parser;
use clap::Subcommand;
use devcache_vm::RUN_FAILED;
use std::process::ExitCode;

/// Power cuts while GPU jobs write files.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    side: Side,
}

#[derive(Subcommand)]
enum Side {
    Cut(host::Options),
    Write(guest::Options),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().side {
        Side::Cut(options) => host::run(&options),
        Side::Write(options) => guest::run(&options).map(|()| 0),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("devcache-powercut: {error:#}");
            ExitCode::from(RUN_FAILED)
        }
    }
}
