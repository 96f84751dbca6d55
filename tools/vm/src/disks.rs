// SPDX-License-Identifier: GPL-2.0

//! The guest's disks: sparse files, formatted before the guest boots.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use devcache_stage::{Cache, Log};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// Size and the program that formats it, in the order of the guest's names `vda`, `vdb`, ...
const DISKS: [(&str, u64, Option<&[&str]>); 4] = [
    (
        "ext4",
        1024 * MIB,
        Some(&[
            "mkfs.ext4",
            "-q",
            "-E",
            "lazy_itable_init=0,lazy_journal_init=0",
        ]),
    ),
    ("xfs", 1024 * MIB, Some(&["mkfs.xfs", "-q"])),
    ("btrfs", 1024 * MIB, Some(&["mkfs.btrfs", "-q"])),
    ("spare", 512 * MIB, None),
];

/// A folder with the disks, deleted when dropped.
pub struct Disks(TempDir);

impl Disks {
    /// Makes and formats them in a new folder of the cache.
    pub fn create(cache: &Cache, log: &Log) -> Result<Self> {
        let parent = cache.path("vm");
        fs::create_dir_all(&parent)?;
        let disks = Self(TempDir::with_prefix_in("disks-", parent)?);
        for ((_, size, format), path) in DISKS.iter().zip(disks.paths()) {
            File::create_new(&path)?.set_len(*size)?;
            if let Some([program, options @ ..]) = format {
                log.run(Command::new(program).args(options).arg(&path))?;
            }
        }
        Ok(disks)
    }

    /// Their files, in order.
    pub fn paths(&self) -> impl Iterator<Item = PathBuf> + '_ {
        DISKS.iter().map(|(name, ..)| self.0.path().join(name))
    }

    /// Leaves them in their folder for good, which is given.
    pub fn keep(self) -> PathBuf {
        self.0.keep()
    }
}
