// SPDX-License-Identifier: GPL-2.0
//! System calls that nix has no safe function for.

use crate::map::Map;
use crate::PAGE;
use nix::errno::Errno;
use nix::sys::wait::waitpid;
use nix::sys::wait::WaitStatus;
use nix::unistd::fork;
use nix::unistd::pipe;
use nix::unistd::ForkResult;
use nix::unistd::Pid;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Read;
use std::io::Write;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// A byte range as system calls take it.
fn offset_and_length(range: Range<usize>) -> (i64, i64) {
    let number = |value| i64::try_from(value).expect("files here are small");
    (number(range.start), number(range.len()))
}

/// Opens a file for direct I/O.
pub fn open_direct(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
}

/// preadv2(2) with RWF_NOWAIT: the bytes read, fewer when it would have to wait.
pub fn read_nowait(file: &File, range: Range<usize>) -> Result<Vec<u8>, Errno> {
    read_with(file, range, libc::RWF_NOWAIT)
}

/// preadv2(2) with RWF_DONTCACHE: what this call brings into the page cache leaves it again.
pub fn read_uncached(file: &File, range: Range<usize>) -> Result<Vec<u8>, Errno> {
    read_with(file, range, libc::RWF_DONTCACHE)
}

fn read_with(file: &File, range: Range<usize>, flags: i32) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0_u8; range.len()];
    let iov = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    let (offset, _) = offset_and_length(range);
    // SAFETY: The vector describes `bytes`, which nobody else uses.
    let result = unsafe { libc::preadv2(file.as_raw_fd(), &iov, 1, offset, flags) };
    let len = Errno::result(result)?;
    bytes.truncate(usize::try_from(len).expect("not negative"));
    Ok(bytes)
}

/// pwritev2(2) with RWF_DONTCACHE: what this call brings into the page cache is written to the disk at
/// once and leaves it again.
pub fn write_uncached(file: &File, offset: usize, bytes: &[u8]) -> Result<usize, Errno> {
    let iov = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let (offset, _) = offset_and_length(offset..offset);
    // SAFETY: The vector describes `bytes`, which is only read.
    let result = unsafe { libc::pwritev2(file.as_raw_fd(), &iov, 1, offset, libc::RWF_DONTCACHE) };
    Errno::result(result).map(|len| usize::try_from(len).expect("not negative"))
}

/// write(2) at `offset` of `file` with the mapping itself as the source.
pub fn write_from(file: &File, offset: usize, map: &Map, range: Range<usize>) -> io::Result<usize> {
    assert!(range.end <= map.len());
    let source = (map.addr() + range.start) as *const libc::c_void;
    let (offset, _) = offset_and_length(offset..offset);
    // SAFETY: The source lies inside the mapping.
    let result = unsafe { libc::pwrite(file.as_raw_fd(), source, range.len(), offset) };
    Ok(Errno::result(result).map(|len| usize::try_from(len).expect("not negative"))?)
}

/// read(2) at `offset` of `file` with the mapping itself as the destination.
pub fn read_into(file: &File, offset: usize, map: &Map, range: Range<usize>) -> io::Result<usize> {
    assert!(range.end <= map.len());
    let target = (map.addr() + range.start) as *mut libc::c_void;
    let (offset, _) = offset_and_length(offset..offset);
    // SAFETY: The destination lies inside the mapping, into which nobody holds references.
    let result = unsafe { libc::pread(file.as_raw_fd(), target, range.len(), offset) };
    Ok(Errno::result(result).map(|len| usize::try_from(len).expect("not negative"))?)
}

/// sync_file_range(2) that waits, writes, and waits.
pub fn sync_range(file: &File, range: Range<usize>) -> Result<(), Errno> {
    let (offset, length) = offset_and_length(range);
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: No memory is involved.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, flags) };
    Errno::result(result).map(drop)
}

/// What cachestat(2) tells of a range: numbers of pages.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStat {
    /// In the page cache.
    pub cache: u64,
    /// Dirty.
    pub dirty: u64,
    /// Under writeback.
    pub writeback: u64,
    /// Evicted.
    pub evicted: u64,
    /// Evicted not long ago.
    pub recently_evicted: u64,
}

/// Number of cachestat(2), the same on every architecture; libc does not have it everywhere.
const SYS_CACHESTAT: libc::c_long = 451;

/// cachestat(2)
pub fn cachestat(file: &File, range: Range<usize>) -> Result<CacheStat, Errno> {
    let range = [range.start as u64, range.len() as u64];
    let mut stat = CacheStat::default();
    // SAFETY: Both pointers are to structures of the layout the call expects.
    let result = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_raw_fd(),
            range.as_ptr(),
            std::ptr::from_mut(&mut stat),
            0,
        )
    };
    Errno::result(result)?;
    Ok(stat)
}

/// FUTEX_WAIT in a mapping shared between processes.
pub fn futex_wait(cell: &AtomicU32, expected: u32, timeout: Duration) -> Result<(), Errno> {
    let timeout = libc::timespec {
        tv_sec: i64::try_from(timeout.as_secs()).expect("short"),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    // SAFETY: The cell and the time are valid for the duration of the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex,
            cell.as_ptr(),
            libc::FUTEX_WAIT,
            expected,
            std::ptr::from_ref(&timeout),
        )
    };
    Errno::result(result).map(drop)
}

/// FUTEX_WAKE of one waiter; returns how many were woken.
pub fn futex_wake(cell: &AtomicU32) -> Result<i64, Errno> {
    // SAFETY: The cell is valid.
    let result = unsafe { libc::syscall(libc::SYS_futex, cell.as_ptr(), libc::FUTEX_WAKE, 1) };
    Errno::result(result)
}

/// vmsplice(2): puts references to the pages of a mapping into a pipe. Returns the bytes taken.
pub fn vmsplice(pipe: &File, map: &Map) -> Result<usize, Errno> {
    let iov = libc::iovec {
        iov_base: map.addr() as *mut libc::c_void,
        iov_len: map.len(),
    };
    // SAFETY: The vector describes the mapping; the kernel takes its own references.
    let result = unsafe { libc::vmsplice(pipe.as_raw_fd(), &iov, 1, 0) };
    Errno::result(result).map(|len| usize::try_from(len).expect("not negative"))
}

/// `struct if_dqblk`
#[repr(C)]
#[derive(Default)]
struct Quota {
    block_hard_limit: u64,
    block_soft_limit: u64,
    numbers: [u64; 6],
    valid: u32,
}

/// Number of quotactl_fd(2), the same on every architecture.
const SYS_QUOTACTL_FD: libc::c_long = 443;
/// `QCMD(Q_SETQUOTA, USRQUOTA)`
const SET_USER_QUOTA: u32 = 0x80_0008 << 8;
/// `QIF_BLIMITS`
const BLOCK_LIMITS: u32 = 1;

/// Limits what a user may take of the file system that `file` is on.
pub fn set_quota(file: &File, user: u32, kib: u64) -> Result<(), Errno> {
    let quota = Quota {
        block_hard_limit: kib,
        valid: BLOCK_LIMITS,
        ..Default::default()
    };
    // SAFETY: The command takes a pointer to this structure.
    let result = unsafe {
        libc::syscall(
            SYS_QUOTACTL_FD,
            file.as_raw_fd(),
            SET_USER_QUOTA,
            user,
            std::ptr::from_ref(&quota),
        )
    };
    Errno::result(result).map(drop)
}

/// `struct fsverity_enable_arg`
#[repr(C)]
#[derive(Default)]
struct Verity {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    /// Salt and signature: none.
    rest: [u32; 29],
}

/// `FS_VERITY_HASH_ALG_SHA256`
const SHA256: u32 = 1;

const FS_IOC_ENABLE_VERITY: libc::Ioctl = nix::request_code_write!(b'f', 133, size_of::<Verity>());

/// FS_IOC_ENABLE_VERITY: from now on the file cannot be changed, and what is read from the disk is
/// compared with what the file had now.
pub fn enable_verity(file: &File) -> Result<(), Errno> {
    let argument = Verity {
        version: 1,
        hash_algorithm: SHA256,
        block_size: u32::try_from(PAGE).expect("small"),
        ..Default::default()
    };
    // SAFETY: The request takes a pointer to this structure.
    let result = unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            FS_IOC_ENABLE_VERITY,
            std::ptr::from_ref(&argument),
        )
    };
    Errno::result(result).map(drop)
}

/// Drops clean page cache, inodes and dentries.
pub fn drop_caches() -> io::Result<()> {
    fs::write("/proc/sys/vm/drop_caches", "3")
}

/// Runs all shrinkers: clean pages on devices are dropped, dirty ones come back.
pub fn shrink() -> io::Result<()> {
    fs::write("/proc/sys/vm/drop_caches", "2")
}

/// Moves the pages in the LRU batches of all processors to where reclaim sees them, by dropping clean
/// page cache. No shrinker runs, so what is on a device stays there.
pub fn empty_lru_batches() -> io::Result<()> {
    fs::write("/proc/sys/vm/drop_caches", "1")
}

/// Runs `work` in a forked child; its error comes back as text.
///
/// The process must have one thread only, as the child may allocate.
pub fn in_child(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    beside_child(|| Ok(()), work)
}

/// Starts a child that does `work`; its exit status says whether it could, its error goes to stderr.
///
/// The process must have one thread only, as the child may allocate.
pub fn start_child(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Pid> {
    // SAFETY: The caller promises that there are no other threads.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let result = work();
            if let Err(error) = &result {
                eprintln!("{error:#}");
            }
            // SAFETY: Ends this process without running the parent's exit handlers.
            unsafe { libc::_exit(i32::from(result.is_err())) }
        }
    }
}

/// Forks; runs `first` in this process, and when it is done `then` in the child.
///
/// The process must have one thread only, as the child may allocate.
pub fn beside_child(
    first: impl FnOnce() -> anyhow::Result<()>,
    then: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (text_reader, text_writer) = pipe()?;
    let (go_reader, go_writer) = pipe()?;

    // SAFETY: The caller promises that there are no other threads.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop(go_writer);
            let go = File::from(go_reader).read_to_end(&mut Vec::new());
            let status = match go.map_err(anyhow::Error::from).and_then(|_| then()) {
                Ok(()) => 0,
                Err(error) => {
                    // If that fails, the exit status still tells.
                    let _ = File::from(text_writer).write_all(format!("{error:#}").as_bytes());
                    1
                }
            };
            // SAFETY: Ends this process without running the parent's exit handlers.
            unsafe { libc::_exit(status) }
        }
        ForkResult::Parent { child } => {
            drop(text_writer);
            let ours = first();
            drop(go_writer);
            let mut text = String::new();
            File::from(text_reader).read_to_string(&mut text)?;
            let end = waitpid(child, None)?;
            ours?;
            match end {
                WaitStatus::Exited(_, 0) => Ok(()),
                WaitStatus::Exited(..) => anyhow::bail!("in the child: {text}"),
                other => anyhow::bail!("the child ended with {other:?}"),
            }
        }
    }
}

/// `FS_COMPR_FL` of linux/fs.h
const FS_COMPR_FL: libc::c_int = 4;

/// Has the file system compress what is written to a file from now on, or not.
pub fn set_compressed(file: &File, on: bool) -> Result<(), Errno> {
    // The kernel takes an int, whatever the numbers say.
    let mut flags: libc::c_int = 0;
    ioctl(file, libc::FS_IOC_GETFLAGS, &mut flags)?;
    let changed = match on {
        true => flags | FS_COMPR_FL,
        false => flags & !FS_COMPR_FL,
    };
    match changed == flags {
        true => Ok(()),
        false => ioctl(file, libc::FS_IOC_SETFLAGS, &mut { changed }),
    }
}

/// ioctl(2) that passes a structure; the type of `argument` must be that of the request.
pub(crate) fn ioctl<T>(
    file: &impl AsRawFd,
    request: impl Into<libc::Ioctl>,
    argument: &mut T,
) -> Result<(), Errno> {
    let (fd, request) = (file.as_raw_fd(), request.into());
    // SAFETY: The request numbers carry the size of their argument's type, and the callers pair them.
    let result = unsafe { libc::ioctl(fd, request, std::ptr::from_mut(argument)) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn futex_compares() {
        let cell = AtomicU32::new(5);
        let soon = Duration::from_millis(1);
        assert_eq!(futex_wait(&cell, 4, soon), Err(Errno::EAGAIN));
        assert_eq!(futex_wait(&cell, 5, soon), Err(Errno::ETIMEDOUT));
        assert_eq!(futex_wake(&cell), Ok(0));
    }

    #[test]
    fn ranges() {
        assert_eq!(offset_and_length(3..10), (3, 7));
    }
}
