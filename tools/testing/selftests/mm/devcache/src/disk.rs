// SPDX-License-Identifier: GPL-2.0
//! A disk that fails when it is told to: a device of the device mapper on top of another, whose table is
//! replaced.

use crate::scratch::output;
use crate::skip::skip;
use anyhow::Result;
use std::path::Path;

/// What a disk does with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// What they say.
    Works,
    /// Writes and flushes fail.
    FailsToWrite,
    /// All of them fail.
    Fails,
}

/// Gone when dropped, which must be before what it is on top of.
#[derive(Debug)]
pub struct Disk {
    name: String,
    below: String,
    sectors: u64,
}

/// Runs dmsetup(8) where no udev makes device nodes.
fn dmsetup(arguments: &[&str]) -> Result<String> {
    let all = [&["DM_DISABLE_UDEV=1", "dmsetup"], arguments].concat();
    output("env", &all)
}

impl Disk {
    /// One that works, on top of the block device `below`.
    pub fn on(below: &str, name: &str) -> Result<Self> {
        if !Path::new("/sys/class/misc/device-mapper").exists() {
            return skip("the kernel has no device mapper");
        }
        let disk = Disk {
            name: name.to_owned(),
            below: below.to_owned(),
            sectors: output("blockdev", &["--getsz", below])?.parse()?,
        };
        dmsetup(&["create", name, "--table", &disk.table(Mode::Works)])?;
        Ok(disk)
    }

    fn table(&self, mode: Mode) -> String {
        let Disk { below, sectors, .. } = self;
        match mode {
            Mode::Works => format!("0 {sectors} linear {below} 0"),
            // It is up for no second and down for one, and then again.
            Mode::FailsToWrite => format!("0 {sectors} flakey {below} 0 0 1 1 error_writes"),
            Mode::Fails => format!("0 {sectors} error"),
        }
    }

    /// The path of its node.
    pub fn path(&self) -> String {
        format!("/dev/mapper/{}", self.name)
    }

    /// Has it do something else from now on.
    pub fn set(&self, mode: Mode) -> Result<()> {
        dmsetup(&["load", &self.name, "--table", &self.table(mode)])?;
        // Without a freeze of the file system, which would write all it has.
        dmsetup(&["resume", "--nolockfs", "--noflush", &self.name]).map(drop)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = dmsetup(&["remove", "--retry", &self.name]);
    }
}
