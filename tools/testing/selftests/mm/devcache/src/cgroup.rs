// SPDX-License-Identifier: GPL-2.0
//! A control group with a limit on memory, for the process that makes it.

use anyhow::Context;
use anyhow::Result;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::path::PathBuf;

/// Where version 2 of the control groups is mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// A group below the root. Dropping it moves the process back to the root and removes the group.
#[derive(Debug)]
pub struct Cgroup {
    dir: PathBuf,
}

impl Cgroup {
    /// Makes a group whose processes may use up to `max` bytes and no swap, and moves this process
    /// into it. What the process had before stays charged to its old group.
    pub fn enter(max: usize) -> Result<Self> {
        write(Path::new(ROOT), "cgroup.subtree_control", "+memory")?;
        let dir = Path::new(ROOT).join(format!("devcache-{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
        let group = Cgroup { dir };
        group.set_max(max)?;
        write(&group.dir, "cgroup.procs", "0")?;
        Ok(group)
    }

    /// Changes the limit, in bytes. To go below what is in use makes the kernel reclaim.
    pub fn set_max(&self, max: usize) -> Result<()> {
        write(&self.dir, "memory.max", &max.to_string())
    }

    /// Makes the kernel reclaim this many bytes, or what there is.
    pub fn reclaim(&self, bytes: usize) -> Result<()> {
        let path = self.dir.join("memory.reclaim");
        match fs::write(&path, bytes.to_string()) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            result => result.with_context(|| format!("write to {}", path.display())),
        }
    }

    /// Bytes charged to the group.
    pub fn current(&self) -> Result<u64> {
        let text = fs::read_to_string(self.dir.join("memory.current"))?;
        Ok(text.trim().parse()?)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A test that fails has something better to tell.
        let _ = write(Path::new(ROOT), "cgroup.procs", "0");
        let _ = fs::remove_dir(&self.dir);
    }
}

fn write(dir: &Path, file: &str, value: &str) -> Result<()> {
    let path = dir.join(file);
    fs::write(&path, value).with_context(|| format!("write {value} to {}", path.display()))
}
