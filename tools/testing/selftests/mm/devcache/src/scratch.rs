// SPDX-License-Identifier: GPL-2.0
//! A file system made for one test: with options of its own, small enough to fill, or of a kind that
//! is not under test otherwise.

use crate::disk::Disk;
use crate::mount::FileSystem;
use crate::mount::Mount;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use nix::mount::umount2;
use nix::mount::MntFlags;
use std::fs;
use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

/// A mounted file system, gone with all it needed when dropped.
#[derive(Debug)]
pub struct Scratch {
    kind: String,
    /// Holds the mount point and the image.
    dir: PathBuf,
    /// The block device, if there is one.
    device: Option<String>,
    /// What is on top of it, if it may fail.
    disk: Option<Disk>,
    mounted: bool,
}

/// Runs a program; gives its output, or what it complained about.
pub fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

impl Scratch {
    /// Makes room for one.
    fn new(kind: &str) -> Result<Self> {
        let dir = PathBuf::from(format!("/tmp/devcache-{}-{kind}", std::process::id()));
        fs::create_dir(&dir)?;
        fs::create_dir(dir.join("mnt"))?;
        Ok(Scratch {
            kind: kind.to_owned(),
            dir,
            device: None,
            disk: None,
            mounted: false,
        })
    }

    fn mount(&mut self, source: &str, options: &str) -> Result<()> {
        let target = self.file_system().dir.display().to_string();
        output("mount", &["-t", &self.kind, "-o", options, source, &target])?;
        self.mounted = true;
        Ok(())
    }

    /// One without a disk.
    pub fn in_memory(kind: &str, options: &str) -> Result<Self> {
        let mut scratch = Self::new(kind)?;
        scratch.mount(kind, options)?;
        Ok(scratch)
    }

    /// One without a file system, on a disk of `mib` MiB.
    fn with_device(kind: &str, mib: u64) -> Result<(Self, String)> {
        let mut scratch = Self::new(kind)?;
        let image = scratch.dir.join("image").display().to_string();
        File::create(&image)?.set_len(mib << 20)?;

        let device = output("losetup", &["--find", "--show", &image])?;
        scratch.device = Some(device.clone());
        Ok((scratch, device))
    }

    /// Makes the file system and mounts it.
    fn make(mut self, device: &str, format: &[&str], options: &str) -> Result<Self> {
        let program = format!("mkfs.{}", self.kind);
        output(&program, &[format, &["-q", device]].concat())?;
        self.mount(device, options)?;
        Ok(self)
    }

    /// One on a disk of `mib` MiB, made with the options `format`.
    pub fn on_disk(kind: &str, mib: u64, format: &[&str], options: &str) -> Result<Self> {
        let (scratch, device) = Self::with_device(kind, mib)?;
        scratch.make(&device, format, options)
    }

    /// The same on a disk that may fail.
    pub fn on_bad_disk(kind: &str, mib: u64, format: &[&str]) -> Result<Self> {
        let (mut scratch, device) = Self::with_device(kind, mib)?;
        let name = format!("devcache-{}-{kind}", std::process::id());
        let disk = scratch.disk.insert(Disk::on(&device, &name)?);
        let device = disk.path();
        scratch.make(&device, format, "defaults")
    }

    /// The disk, if it may fail.
    pub fn disk(&self) -> Option<&Disk> {
        self.disk.as_ref()
    }

    /// What it is and where.
    pub fn file_system(&self) -> FileSystem {
        FileSystem {
            kind: self.kind.clone(),
            dir: self.dir.join("mnt"),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let fs = self.file_system();
        if self.mounted {
            let unmounted = Mount::at(&fs.dir).and_then(|mount| mount.unmount());
            if unmounted.is_err() {
                let _ = umount2(&fs.dir, MntFlags::MNT_DETACH);
            }
        }
        drop(self.disk.take());
        if let Some(device) = &self.device {
            let _ = output("losetup", &["--detach", device]);
        }
        let _ = fs::remove_file(self.dir.join("image"));
        let _ = fs::remove_dir(&fs.dir);
        let _ = fs::remove_dir(&self.dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs() {
        assert_eq!(output("echo", &["a", "b"]).unwrap(), "a b");
        assert!(output("false", &[]).is_err());
    }
}
