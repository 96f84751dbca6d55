// SPDX-License-Identifier: GPL-2.0
//! userfaultfd(2): faults of a mapping that the program itself serves.

use crate::map::Map;
use crate::sys;
use crate::PAGE;
use nix::errno::Errno;
use nix::poll::poll;
use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use std::fs::File;
use std::io::ErrorKind;
use std::io::Read;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::fd::FromRawFd;
use std::os::fd::RawFd;

/// Faults that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Stores to pages that were write-protected by [`Uffd::protect`].
    WriteProtect,
    /// Faults for pages that are in the page cache.
    Minor,
}

/// A fault that waits to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Where.
    pub address: usize,
    /// What for.
    pub mode: Mode,
}

/// `struct uffdio_range`
#[repr(C)]
#[derive(Clone, Copy)]
struct Bytes {
    start: u64,
    len: u64,
}

/// `struct uffdio_api`
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register` and, with another last member, `struct uffdio_continue`.
#[repr(C)]
struct RangeMode {
    range: Bytes,
    mode: u64,
    result: i64,
}

/// `struct uffdio_writeprotect`
#[repr(C)]
struct Protect {
    range: Bytes,
    mode: u64,
}

const API: u64 = 0xaa;
const FEATURE_MINOR_SHMEM: u64 = 1 << 10;
const FEATURE_WP_SHMEM: u64 = 1 << 12;
const MODE_WP: u64 = 1 << 1;
const MODE_MINOR: u64 = 1 << 2;
const FLAG_WP: u64 = 1 << 1;
const FLAG_MINOR: u64 = 1 << 2;

const UFFDIO_API: libc::Ioctl = nix::request_code_readwrite!(0xaa, 0x3f, size_of::<Api>());
const UFFDIO_REGISTER: libc::Ioctl = nix::request_code_readwrite!(0xaa, 0, size_of::<RangeMode>());
const UFFDIO_WRITEPROTECT: libc::Ioctl =
    nix::request_code_readwrite!(0xaa, 6, size_of::<Protect>());
const UFFDIO_CONTINUE: libc::Ioctl = nix::request_code_readwrite!(0xaa, 7, size_of::<RangeMode>());

/// A userfaultfd. Closing it ends all it does.
#[derive(Debug)]
pub struct Uffd(File);

impl Uffd {
    /// Opens one that serves the faults of a whole mapping of shared memory.
    pub fn new(map: &Map, mode: Mode) -> Result<Self, Errno> {
        // A fault may end between poll(2) and read(2), and does not wait for it.
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: The call takes flags only.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        let fd = RawFd::try_from(Errno::result(fd)?).expect("a file descriptor");
        // SAFETY: The descriptor is new.
        let uffd = Uffd(unsafe { File::from_raw_fd(fd) });
        let (features, mode) = match mode {
            Mode::Minor => (FEATURE_MINOR_SHMEM, MODE_MINOR),
            Mode::WriteProtect => (FEATURE_WP_SHMEM, MODE_WP),
        };
        let mut api = Api {
            api: API,
            features,
            ioctls: 0,
        };
        uffd.ioctl(UFFDIO_API, &mut api)?;
        let mut register = RangeMode {
            range: bytes(map, 0..map.pages()),
            mode,
            result: 0,
        };
        uffd.ioctl(UFFDIO_REGISTER, &mut register)?;
        Ok(uffd)
    }

    fn ioctl<T>(&self, request: libc::Ioctl, argument: &mut T) -> Result<(), Errno> {
        sys::ioctl(&self.0, request, argument)
    }

    /// The next fault; none if there is none for a while.
    pub fn next(&self) -> Result<Option<Event>, Errno> {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(100_u8))? == 0 {
            return Ok(None);
        }
        // `struct uffd_msg`: flags at 8, address at 16.
        let mut message = [0_u8; 32];
        match (&self.0).read_exact(&mut message) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            result => result.map_err(|_| Errno::EIO)?,
        }
        let word = |at: usize| u64::from_ne_bytes(message[at..at + 8].try_into().expect("8 bytes"));
        let mode = match word(8) {
            flags if flags & FLAG_WP != 0 => Mode::WriteProtect,
            flags if flags & FLAG_MINOR != 0 => Mode::Minor,
            _ => return Err(Errno::EPROTO),
        };
        Ok(Some(Event {
            address: usize::try_from(word(16)).expect("an address"),
            mode,
        }))
    }

    /// UFFDIO_CONTINUE: maps what the page cache has at the page of `address`.
    pub fn resume(&self, address: usize) -> Result<(), Errno> {
        let mut argument = RangeMode {
            range: Bytes {
                start: (address / PAGE * PAGE) as u64,
                len: PAGE as u64,
            },
            mode: 0,
            result: 0,
        };
        self.ioctl(UFFDIO_CONTINUE, &mut argument)
    }

    /// UFFDIO_WRITEPROTECT: protects pages, or ends that and wakes who waits.
    pub fn protect(&self, map: &Map, pages: Range<usize>, protect: bool) -> Result<(), Errno> {
        let mut argument = Protect {
            range: bytes(map, pages),
            mode: protect.into(),
        };
        self.ioctl(UFFDIO_WRITEPROTECT, &mut argument)
    }
}

/// Pages of a mapping as the calls take them.
fn bytes(map: &Map, pages: Range<usize>) -> Bytes {
    Bytes {
        start: map.page_addr(pages.start) as u64,
        len: (pages.len() * PAGE) as u64,
    }
}
