// SPDX-License-Identifier: GPL-2.0
//! perf_event_open(2), for what the kernel tells about new mappings.

use crate::map::Map;
use crate::map::READ_WRITE;
use crate::PAGE;
use nix::errno::Errno;
use nix::sys::mman::MapFlags;
use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::fd::RawFd;
use std::sync::atomic::Ordering;

/// `struct perf_event_attr`, as long as its first version with the flags used here.
#[repr(C)]
struct Attr {
    kind: u32,
    size: u32,
    config: u64,
    unused: [u64; 3],
    flags: u64,
    rest: [u64; 11],
}

const SOFTWARE: u32 = 1;
const DUMMY: u64 = 9;
const EXCLUDE_KERNEL: u64 = 1 << 5;
const MMAP: u64 = 1 << 8;
const MMAP2: u64 = 1 << 23;
const BUILD_ID: u64 = 1 << 34;

/// `PERF_RECORD_MMAP2`
const RECORD_MMAP2: u32 = 10;
/// `PERF_RECORD_MISC_MMAP_BUILD_ID`, in the half of the word that `misc` is in.
const HAS_BUILD_ID: u32 = 1 << 14;

/// Offsets in `struct perf_event_mmap_page`.
const DATA_HEAD: usize = 1024;
/// Pages for records: a power of two.
const DATA_PAGES: usize = 8;

/// Watches the executable mappings that this process makes.
#[derive(Debug)]
pub struct Mappings {
    ring: Map,
    read: usize,
    _event: File,
}

impl Mappings {
    /// Begins.
    pub fn watch() -> Result<Self, Errno> {
        let attr = Attr {
            kind: SOFTWARE,
            size: u32::try_from(size_of::<Attr>()).expect("small"),
            config: DUMMY,
            unused: [0; 3],
            flags: EXCLUDE_KERNEL | MMAP | MMAP2 | BUILD_ID,
            rest: [0; 11],
        };
        // SAFETY: The structure says how long it is; the others are numbers: this process, any
        // processor, no group, no flags.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                std::ptr::from_ref(&attr),
                0,
                -1,
                -1,
                0,
            )
        };
        let fd = RawFd::try_from(Errno::result(fd)?).expect("a file descriptor");
        // SAFETY: The descriptor is new.
        let event = unsafe { File::from_raw_fd(fd) };
        let len = (1 + DATA_PAGES) * PAGE;
        let ring = Map::of_file(&event, len, READ_WRITE, MapFlags::MAP_SHARED)?;
        Ok(Mappings {
            ring,
            read: 0,
            _event: event,
        })
    }

    /// The build IDs of the mappings at `address` since the last call; none where the kernel could not
    /// tell.
    pub fn build_ids(&mut self, address: usize) -> Vec<Option<Vec<u8>>> {
        let head = self.ring.cell(DATA_HEAD).load(Ordering::Acquire) as usize;
        let mut found = Vec::new();

        while self.read < head {
            let record = self.record();
            let word = |at: usize| u32::from_ne_bytes(record[at..at + 4].try_into().expect("4"));
            let start = u64::from_ne_bytes(record[16..24].try_into().expect("8"));
            if word(0) == RECORD_MMAP2 && start == address as u64 {
                let known = word(4) & HAS_BUILD_ID != 0;
                found.push(known.then(|| record[44..44 + usize::from(record[40])].to_vec()));
            }
            self.read += record.len();
        }
        found
    }

    /// The next record, which may go around the end of the ring.
    fn record(&self) -> Vec<u8> {
        let byte = |at: usize| {
            let at = PAGE + (self.read + at) % (DATA_PAGES * PAGE);
            self.ring.read(at..at + 1)[0]
        };
        let len = usize::from(u16::from_ne_bytes([byte(6), byte(7)]));
        (0..len).map(byte).collect()
    }
}
