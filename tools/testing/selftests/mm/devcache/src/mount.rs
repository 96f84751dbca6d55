// SPDX-License-Identifier: GPL-2.0
//! The file systems files are tested on, and what can be done to a whole one.

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use nix::errno::Errno;
use nix::mount::MntFlags;
use nix::mount::MsFlags;
use std::fmt;
use std::fs;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::str::FromStr;
use std::thread;
use std::time::Duration;
use std::time::Instant;

/// A file system named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// Its type.
    pub kind: String,
    /// Where it is mounted.
    pub dir: PathBuf,
}

impl FromStr for FileSystem {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (kind, dir) = match text.split_once('=') {
            Some((kind, dir)) => (kind, PathBuf::from(dir)),
            None => (text, PathBuf::from("/mnt").join(text)),
        };

        if kind.is_empty() || dir.as_os_str().is_empty() {
            return Err("expected TYPE or TYPE=FOLDER".to_owned());
        }
        Ok(FileSystem {
            kind: kind.to_owned(),
            dir,
        })
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.dir.display())
    }
}

impl FileSystem {
    /// What is mounted there, which must be of the named type.
    pub fn mount(&self) -> Result<Mount> {
        let mount = Mount::at(&self.dir)?;
        ensure!(
            mount.kind == self.kind,
            "{} is mounted at {}, not {}",
            mount.kind,
            self.dir.display(),
            self.kind
        );
        Ok(mount)
    }
}

/// The option of a program that works on one file system after the other.
#[derive(Clone, Debug, clap::Args)]
pub struct FileSystems {
    /// File system to work on, as TYPE or TYPE=FOLDER; the folder is /mnt/TYPE if not given.
    #[arg(
        id = "fs",
        long,
        value_name = "TYPE[=FOLDER]",
        value_delimiter = ',',
        default_values = ["tmpfs", "ext4", "xfs", "btrfs"]
    )]
    pub list: Vec<FileSystem>,
}

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub dir: PathBuf,
    /// Type, such as "ext4".
    pub kind: String,
    /// Block device, or a word for file systems without one.
    pub source: String,
    /// Options for mounting it again as it is.
    pub options: String,
}

/// `_IOR('X', 125, __u32)` with the flag "do not flush the log": FS_IOC_SHUTDOWN.
const FS_IOC_SHUTDOWN: libc::Ioctl = nix::request_code_read!(b'X', 125, size_of::<u32>());
const SHUTDOWN_NO_LOG_FLUSH: u32 = 2;
/// FIFREEZE and FITHAW of linux/fs.h.
const FIFREEZE: libc::Ioctl = nix::request_code_readwrite!(b'X', 119, size_of::<i32>());
const FITHAW: libc::Ioctl = nix::request_code_readwrite!(b'X', 120, size_of::<i32>());

/// Repeats a call that fails while there are open files: the kernel closes some a moment after close()
/// or exit().
fn when_not_busy(call: impl Fn() -> nix::Result<()>) -> nix::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match call() {
            Err(Errno::EBUSY) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(20));
            }
            other => return other,
        }
    }
}

impl Mount {
    /// The file system mounted at `dir`.
    pub fn at(dir: &Path) -> Result<Self> {
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        table
            .lines()
            .rev()
            .filter_map(Mount::from_mountinfo)
            .find(|mount| mount.dir == dir)
            .with_context(|| format!("nothing is mounted at {}", dir.display()))
    }

    /// The file system that a file is on.
    pub fn of(path: &Path) -> Result<Self> {
        let device = fs::metadata(path)?.dev();
        let device = format!("{}:{}", libc::major(device), libc::minor(device));
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        table
            .lines()
            .filter(|line| line.split(' ').nth(2) == Some(&device))
            .find_map(Mount::from_mountinfo)
            .with_context(|| format!("{} is on no file system", path.display()))
    }

    /// Parses "id parent dev root dir options tags... - type source super-options".
    fn from_mountinfo(line: &str) -> Option<Self> {
        let (mount, superblock) = line.split_once(" - ")?;
        let mut superblock = superblock.split(' ');
        let kind = superblock.next()?.to_owned();
        let source = superblock.next()?.to_owned();
        let options: Vec<&str> = superblock.next()?.split(',').collect();

        Some(Mount {
            dir: PathBuf::from(mount.split(' ').nth(4)?),
            kind,
            source,
            options: options[1.min(options.len())..].join(","),
        })
    }

    /// Whether its files are on a disk, so that they survive unmounting.
    pub fn on_disk(&self) -> bool {
        self.source.starts_with("/dev/")
    }

    /// Unmounts.
    pub fn unmount(&self) -> Result<()> {
        when_not_busy(|| nix::mount::umount2(&self.dir, MntFlags::empty()))
            .with_context(|| format!("unmount {}", self.dir.display()))
    }

    /// Mounts it where and as it was.
    pub fn mount(&self) -> Result<()> {
        nix::mount::mount(
            Some(self.source.as_str()),
            &self.dir,
            Some(self.kind.as_str()),
            MsFlags::empty(),
            Some(self.options.as_str()),
        )
        .with_context(|| format!("mount {} at {}", self.source, self.dir.display()))
    }

    /// Unmounts and mounts: afterwards everything comes from the disk.
    pub fn remount(&self) -> Result<()> {
        self.unmount()?;
        self.mount()
    }

    /// Stops the file system as a power cut would.
    pub fn shut_down(&self) -> Result<()> {
        self.control(FS_IOC_SHUTDOWN, SHUTDOWN_NO_LOG_FLUSH)
            .with_context(|| format!("shut down {}", self.dir.display()))
    }

    /// Stops the file system as a power cut would, and mounts it again: only what had reached the
    /// disk is there afterwards.
    pub fn power_cut(&self) -> Result<()> {
        self.shut_down()?;
        self.remount()
    }

    /// Forbids or allows to write to it.
    pub fn set_read_only(&self, read_only: bool) -> Result<()> {
        let flags = if read_only {
            MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY
        } else {
            MsFlags::MS_REMOUNT
        };
        let remount =
            || nix::mount::mount(None::<&str>, &self.dir, None::<&str>, flags, None::<&str>);
        when_not_busy(remount).with_context(|| format!("remount {}", self.dir.display()))
    }

    /// Freezes it, until [`Mount::thaw`].
    pub fn freeze(&self) -> Result<(), Errno> {
        self.control(FIFREEZE, 0)
    }

    /// Ends a freeze.
    pub fn thaw(&self) -> Result<(), Errno> {
        self.control(FITHAW, 0)
    }

    /// An ioctl on the root folder with a pointer to a 32-bit argument.
    fn control(&self, request: libc::Ioctl, argument: u32) -> Result<(), Errno> {
        let root = File::open(&self.dir)
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
        // SAFETY: All requests used here take a pointer to 32 bits, or ignore it.
        let result =
            unsafe { libc::ioctl(root.as_raw_fd(), request, std::ptr::from_ref(&argument)) };
        Errno::result(result).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_line() {
        let line = "36 35 254:16 / /mnt/ext4 rw,relatime shared:1 - ext4 /dev/vdb rw,nodelalloc";
        let mount = Mount::from_mountinfo(line).unwrap();
        assert_eq!(mount.dir, Path::new("/mnt/ext4"));
        assert_eq!(mount.kind, "ext4");
        assert_eq!(mount.source, "/dev/vdb");
        assert_eq!(mount.options, "nodelalloc");
        assert!(mount.on_disk());
    }

    #[test]
    fn no_options() {
        let line = "30 25 0:26 / /mnt/tmpfs rw - tmpfs tmpfs rw";
        let mount = Mount::from_mountinfo(line).unwrap();
        assert_eq!(mount.options, "");
        assert!(!mount.on_disk());
    }

    #[test]
    fn mount_of_a_file() {
        let mount = Mount::of(Path::new("/proc/self/status")).unwrap();
        assert_eq!(mount.kind, "proc");
    }

    #[test]
    fn proc_is_mounted() {
        assert!(Mount::at(Path::new("/proc")).is_ok());
        assert!(Mount::at(Path::new("/no/such/folder")).is_err());
    }

    #[test]
    fn file_system_from_text() {
        let fs: FileSystem = "ext4".parse().unwrap();
        assert_eq!(fs.to_string(), "ext4=/mnt/ext4");
        let fs: FileSystem = "xfs=/a/b".parse().unwrap();
        assert_eq!(fs.to_string(), "xfs=/a/b");
        assert!("".parse::<FileSystem>().is_err());
        assert!("=x".parse::<FileSystem>().is_err());
        assert!("x=".parse::<FileSystem>().is_err());
    }
}
