// SPDX-License-Identifier: GPL-2.0
//! Where a file's data lies on the disk, and files that share it.

use nix::errno::Errno;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// `struct file_clone_range`
#[repr(C)]
struct CloneRange {
    src_fd: i64,
    src_offset: u64,
    src_length: u64,
    dest_offset: u64,
}

/// `struct file_dedupe_range` with one `struct file_dedupe_range_info`.
#[repr(C)]
struct DedupeRange {
    src_offset: u64,
    src_length: u64,
    dest_count: u16,
    reserved1: u16,
    reserved2: u32,
    dest_fd: i64,
    dest_offset: u64,
    bytes_deduped: u64,
    status: i32,
    reserved: u32,
}

/// Bytes of `struct file_dedupe_range` without what follows it.
const DEDUPE_HEAD: usize = 24;

const FICLONERANGE: libc::Ioctl = nix::request_code_write!(0x94, 13, size_of::<CloneRange>());
const FIDEDUPERANGE: libc::Ioctl = nix::request_code_readwrite!(0x94, 54, DEDUPE_HEAD);

/// FICLONERANGE: a range of `to` at `offset` shares the data of a range of `from`.
pub fn clone_range(
    from: &File,
    range: Range<usize>,
    to: &File,
    offset: usize,
) -> Result<(), Errno> {
    let argument = CloneRange {
        src_fd: from.as_raw_fd().into(),
        src_offset: range.start as u64,
        src_length: range.len() as u64,
        dest_offset: offset as u64,
    };
    // SAFETY: The request takes a pointer to this structure.
    let result =
        unsafe { libc::ioctl(to.as_raw_fd(), FICLONERANGE, std::ptr::from_ref(&argument)) };
    Errno::result(result).map(drop)
}

/// FIDEDUPERANGE: shares the data of two ranges if it is the same; tells whether it is.
pub fn dedupe_range(
    from: &File,
    range: Range<usize>,
    to: &File,
    offset: usize,
) -> Result<bool, Errno> {
    let mut argument = DedupeRange {
        src_offset: range.start as u64,
        src_length: range.len() as u64,
        dest_count: 1,
        reserved1: 0,
        reserved2: 0,
        dest_fd: to.as_raw_fd().into(),
        dest_offset: offset as u64,
        bytes_deduped: 0,
        status: 0,
        reserved: 0,
    };
    let request = FIDEDUPERANGE;
    // SAFETY: The request takes a pointer to a head and as many elements as that says: one.
    let result =
        unsafe { libc::ioctl(from.as_raw_fd(), request, std::ptr::from_mut(&mut argument)) };
    Errno::result(result)?;
    match argument.status {
        0 => Ok(true),
        1 => Ok(false),
        status => Err(Errno::from_raw(-status)),
    }
}

/// `struct xfs_exchange_range`
#[repr(C)]
struct ExchangeRange {
    other_fd: i32,
    pad: u32,
    other_offset: u64,
    offset: u64,
    length: u64,
    flags: u64,
}

const XFS_IOC_EXCHANGE_RANGE: libc::Ioctl =
    nix::request_code_write!(b'X', 129, size_of::<ExchangeRange>());

/// XFS_IOC_EXCHANGE_RANGE: two files exchange the data of a range.
pub fn exchange_range(file: &File, other: &File, range: Range<usize>) -> Result<(), Errno> {
    let argument = ExchangeRange {
        other_fd: other.as_raw_fd(),
        pad: 0,
        other_offset: range.start as u64,
        offset: range.start as u64,
        length: range.len() as u64,
        flags: 0,
    };
    // SAFETY: The request takes a pointer to this structure.
    let result = unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            XFS_IOC_EXCHANGE_RANGE,
            std::ptr::from_ref(&argument),
        )
    };
    Errno::result(result).map(drop)
}

/// An extent: pieces of a file that lie together on the disk.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins in the file.
    pub logical: u64,
    /// Where it lies on the disk.
    pub physical: u64,
    /// Bytes of the file.
    pub length: u64,
    reserved1: [u64; 2],
    flags: u32,
    reserved2: [u32; 3],
}

impl Extent {
    const ENCODED: u32 = 0x8;
    const SHARED: u32 = 0x2000;

    /// What lies on the disk is not the data itself: it is compressed.
    pub fn is_encoded(&self) -> bool {
        self.flags & Self::ENCODED != 0
    }

    /// Another file has it too.
    pub fn is_shared(&self) -> bool {
        self.flags & Self::SHARED != 0
    }
}

/// Extents that can be asked for: more than files here have.
const EXTENTS: usize = 256;

/// `struct fiemap`
#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [Extent; EXTENTS],
}

/// Bytes of `struct fiemap` without what follows it.
const FIEMAP_HEAD: usize = 32;
const FS_IOC_FIEMAP: libc::Ioctl = nix::request_code_readwrite!(b'f', 11, FIEMAP_HEAD);

/// FS_IOC_FIEMAP: the extents of a file, as they are now.
pub fn extents(file: &File) -> Result<Vec<Extent>, Errno> {
    let mut map = Fiemap {
        start: 0,
        length: u64::MAX,
        flags: 0,
        mapped_extents: 0,
        extent_count: EXTENTS as u32,
        reserved: 0,
        extents: [Extent::default(); EXTENTS],
    };
    // SAFETY: The request takes a pointer to a head and as many elements as that says.
    let result = unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            FS_IOC_FIEMAP,
            std::ptr::from_mut(&mut map),
        )
    };
    Errno::result(result)?;
    Ok(map.extents[..map.mapped_extents as usize].to_vec())
}
