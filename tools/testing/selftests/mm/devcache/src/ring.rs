// SPDX-License-Identifier: GPL-2.0
//! io_uring, one request at a time.

use crate::map::Map;
use io_uring::opcode;
use io_uring::squeue;
use io_uring::types::Fd;
use io_uring::IoUring;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// A ring.
pub struct Ring {
    ring: IoUring,
}

/// Length as io_uring takes it.
fn length(len: usize) -> u32 {
    u32::try_from(len).expect("requests here are small")
}

impl Ring {
    /// Makes a ring.
    pub fn new() -> io::Result<Self> {
        Ok(Ring {
            ring: IoUring::new(4)?,
        })
    }

    /// Submits a request and waits for its end.
    ///
    /// # Safety
    ///
    /// The memory that `request` names must be valid and unused by others during the call.
    unsafe fn perform(&mut self, request: &squeue::Entry) -> io::Result<usize> {
        // SAFETY: By the function's contract the request stays valid until it has ended, and it
        // has ended when this function returns.
        unsafe { self.ring.submission().push(request) }.map_err(io::Error::other)?;
        self.ring.submit_and_wait(1)?;

        let end = self.ring.completion().next().expect("waited for it");
        usize::try_from(end.result()).map_err(|_| io::Error::from_raw_os_error(-end.result()))
    }

    /// Reads at `offset`; returns what was read.
    pub fn read(&mut self, file: &File, offset: usize, len: usize) -> io::Result<Vec<u8>> {
        self.read_flags(file, offset, len, 0)
    }

    /// The same, unless it would have to wait.
    pub fn read_nowait(&mut self, file: &File, offset: usize, len: usize) -> io::Result<Vec<u8>> {
        self.read_flags(file, offset, len, libc::RWF_NOWAIT)
    }

    fn read_flags(
        &mut self,
        file: &File,
        offset: usize,
        len: usize,
        flags: i32,
    ) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0_u8; len];
        let request = opcode::Read::new(Fd(file.as_raw_fd()), bytes.as_mut_ptr(), length(len))
            .offset(offset as u64)
            .rw_flags(flags)
            .build();
        // SAFETY: The request names `bytes`, which is only used after the call.
        let len = unsafe { self.perform(&request) }?;
        bytes.truncate(len);
        Ok(bytes)
    }

    /// Writes at `offset`.
    pub fn write(&mut self, file: &File, offset: usize, bytes: &[u8]) -> io::Result<usize> {
        let fd = Fd(file.as_raw_fd());
        let request = opcode::Write::new(fd, bytes.as_ptr(), length(bytes.len()))
            .offset(offset as u64)
            .build();
        // SAFETY: The request names `bytes`, which is borrowed for the call.
        unsafe { self.perform(&request) }
    }

    /// Registers a mapping as the ring's buffer number 0: pins its pages for long.
    pub fn register(&mut self, map: &Map) -> io::Result<()> {
        let iov = libc::iovec {
            iov_base: map.addr() as *mut libc::c_void,
            iov_len: map.len(),
        };
        // SAFETY: The vector describes the mapping. The kernel holds the pages themselves, so that
        // they stay valid however long the registration lasts.
        unsafe { self.ring.submitter().register_buffers(&[iov]) }
    }

    /// Ends the registration.
    pub fn unregister(&mut self) -> io::Result<()> {
        self.ring.submitter().unregister_buffers()
    }

    /// Writes `len` bytes from the start of the registered mapping to a file at `offset`.
    pub fn write_registered(
        &mut self,
        file: &File,
        map: &Map,
        offset: usize,
        len: usize,
    ) -> io::Result<usize> {
        assert!(len <= map.len());
        let place = map.addr() as *const u8;
        let request = opcode::WriteFixed::new(Fd(file.as_raw_fd()), place, length(len), 0)
            .offset(offset as u64)
            .build();
        // SAFETY: The request names the mapping, whose contents others may change.
        unsafe { self.perform(&request) }
    }

    /// Reads `len` bytes of a file at `offset` into the start of the registered mapping.
    pub fn read_registered(
        &mut self,
        file: &File,
        map: &Map,
        offset: usize,
        len: usize,
    ) -> io::Result<usize> {
        assert!(len <= map.len());
        let place = map.addr() as *mut u8;
        let request = opcode::ReadFixed::new(Fd(file.as_raw_fd()), place, length(len), 0)
            .offset(offset as u64)
            .build();
        // SAFETY: The request names the mapping, whose contents others may change.
        unsafe { self.perform(&request) }
    }
}
