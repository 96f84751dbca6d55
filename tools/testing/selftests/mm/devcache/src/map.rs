// SPDX-License-Identifier: GPL-2.0
//! A memory mapping whose contents others change: the GPU, other mappings, the kernel.
//!
//! No reference to the memory is ever made. Bytes are copied in and out, or accessed as atomics.

use crate::PAGE;
use nix::errno::Errno;
use nix::sys::memfd::memfd_create;
use nix::sys::memfd::MFdFlags;
use nix::sys::mman::MRemapFlags;
use nix::sys::mman::MapFlags;
use nix::sys::mman::MmapAdvise;
use nix::sys::mman::MsFlags;
use nix::sys::mman::ProtFlags;
use nix::unistd::ftruncate;
use std::fs::File;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

/// A mapping, unmapped when dropped.
///
/// # Invariants
///
/// `start` to `start + len` is one mapping of this process that nobody else unmaps.
#[derive(Debug)]
pub struct Map {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: A mapping belongs to the process; every access goes through copies or atomics.
unsafe impl Send for Map {}

// SAFETY: As above; races of copies are between bytes whose values the tests do not rely on.
unsafe impl Sync for Map {}

/// Reading and writing.
pub const READ_WRITE: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);

impl Map {
    /// Maps `len` bytes of `file` from offset 0.
    pub fn of_file(
        file: &File,
        len: usize,
        prot: ProtFlags,
        flags: MapFlags,
    ) -> Result<Self, Errno> {
        let size = NonZeroUsize::new(len).ok_or(Errno::EINVAL)?;
        // SAFETY: The kernel chooses a place that is free.
        let start = unsafe { nix::sys::mman::mmap(None, size, prot, flags, file.as_fd(), 0) }?;
        // INVARIANT: This is a new mapping of `len` bytes.
        Ok(Map {
            start: start.cast(),
            len,
        })
    }

    /// Maps a file MAP_SHARED for reading and writing.
    pub fn shared(file: &File, len: usize) -> Result<Self, Errno> {
        Self::of_file(file, len, READ_WRITE, MapFlags::MAP_SHARED)
    }

    /// Maps a file MAP_PRIVATE for reading and writing.
    pub fn private(file: &File, len: usize) -> Result<Self, Errno> {
        Self::of_file(file, len, READ_WRITE, MapFlags::MAP_PRIVATE)
    }

    /// Maps shared memory that no file system has a name for.
    pub fn shared_memory(len: usize) -> Result<Self, Errno> {
        let memory = memfd_create("devcache", MFdFlags::empty())?;
        ftruncate(&memory, i64::try_from(len).map_err(|_| Errno::EFBIG)?)?;
        Self::shared(&File::from(memory), len)
    }

    /// Maps private anonymous memory.
    pub fn anonymous(len: usize) -> Result<Self, Errno> {
        let size = NonZeroUsize::new(len).ok_or(Errno::EINVAL)?;
        // SAFETY: The kernel chooses a place that is free.
        let start = unsafe {
            nix::sys::mman::mmap_anonymous(None, size, READ_WRITE, MapFlags::MAP_PRIVATE)
        }?;
        // INVARIANT: This is a new mapping of `len` bytes.
        Ok(Map {
            start: start.cast(),
            len,
        })
    }

    /// The first address.
    pub fn addr(&self) -> usize {
        self.start.as_ptr() as usize
    }

    /// The address of page number `page`.
    pub fn page_addr(&self, page: usize) -> usize {
        self.addr() + page * PAGE
    }

    /// Bytes mapped.
    #[expect(
        clippy::len_without_is_empty,
        reason = "the kernel refuses empty mappings"
    )]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Pages mapped.
    pub fn pages(&self) -> usize {
        self.len.div_ceil(PAGE)
    }

    /// A pointer to `len` bytes at `offset`, which must lie inside.
    fn at(&self, offset: usize, len: usize) -> NonNull<u8> {
        let end = offset.checked_add(len).expect("no overflow");
        assert!(
            end <= self.len,
            "{offset}+{len} is outside a mapping of {}",
            self.len
        );
        // SAFETY: Just checked that the place is inside the mapping.
        unsafe { self.start.add(offset) }
    }

    /// Reads through the mapping: faults like any load.
    pub fn read(&self, range: Range<usize>) -> Vec<u8> {
        let mut bytes = vec![0; range.len()];
        let from = self.at(range.start, range.len()).as_ptr();
        // SAFETY: Both places are `range.len()` bytes long and distinct.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), range.len()) };
        bytes
    }

    /// Reads everything.
    pub fn read_all(&self) -> Vec<u8> {
        self.read(0..self.len)
    }

    /// Writes through the mapping: faults like any store.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.at(offset, bytes.len()).as_ptr();
        // SAFETY: Both places are `bytes.len()` bytes long and distinct.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// The 32-bit cell at `offset`, which must be a multiple of four.
    pub fn cell(&self, offset: usize) -> &AtomicU32 {
        assert!(offset % 4 == 0);
        let cell = self.at(offset, 4).cast().as_ptr();
        // SAFETY: The place is inside the mapping, which lives as long as `self`, and aligned;
        // everybody else in this process uses it as an atomic or copies it.
        unsafe { AtomicU32::from_ptr(cell) }
    }

    /// Makes sure that `pages` have been read through the mapping.
    pub fn touch_read(&self, pages: Range<usize>) {
        for page in pages {
            let byte = self.at(page * PAGE, 1).as_ptr();
            // SAFETY: The place is inside the mapping.
            unsafe { byte.read_volatile() };
        }
    }

    /// Makes sure that `pages` can be written through the mapping, without changing them: as if each
    /// had been written to, as far as the kernel is concerned.
    pub fn touch_write(&self, pages: Range<usize>) -> Result<(), Errno> {
        self.advise_raw(pages, libc::MADV_POPULATE_WRITE)
    }

    /// madvise(2) on pages.
    pub fn advise(&self, pages: Range<usize>, advice: MmapAdvise) -> Result<(), Errno> {
        let start = self.at(pages.start * PAGE, pages.len() * PAGE).cast();
        // SAFETY: Nobody holds references into the mapping, so that its contents may change.
        unsafe { nix::sys::mman::madvise(start, pages.len() * PAGE, advice) }
    }

    /// madvise(2) on pages with an advice that nix has no name for.
    pub fn advise_raw(&self, pages: Range<usize>, advice: i32) -> Result<(), Errno> {
        let start = self.at(pages.start * PAGE, pages.len() * PAGE).as_ptr();
        // SAFETY: Nobody holds references into the mapping, so that its contents may change.
        let result = unsafe { libc::madvise(start.cast(), pages.len() * PAGE, advice) };
        Errno::result(result).map(drop)
    }

    /// mprotect(2) on pages.
    pub fn protect(&self, pages: Range<usize>, prot: ProtFlags) -> Result<(), Errno> {
        let start = self.at(pages.start * PAGE, pages.len() * PAGE).cast();
        // SAFETY: Nobody holds references into the mapping.
        unsafe { nix::sys::mman::mprotect(start, pages.len() * PAGE, prot) }
    }

    /// mlock(2) on pages.
    pub fn lock(&self, pages: Range<usize>) -> Result<(), Errno> {
        let start = self.at(pages.start * PAGE, pages.len() * PAGE).cast();
        // SAFETY: The range is inside the mapping; its contents do not change.
        unsafe { nix::sys::mman::mlock(start, pages.len() * PAGE) }
    }

    /// mlock2(2) with MLOCK_ONFAULT on pages.
    pub fn lock_on_fault(&self, pages: Range<usize>) -> Result<(), Errno> {
        let start = self.at(pages.start * PAGE, pages.len() * PAGE).as_ptr();
        // SAFETY: The range is inside the mapping; its contents do not change.
        let result = unsafe {
            libc::mlock2(
                start.cast_const().cast(),
                pages.len() * PAGE,
                libc::MLOCK_ONFAULT,
            )
        };
        Errno::result(result).map(drop)
    }

    /// munlock(2) on pages.
    pub fn unlock(&self, pages: Range<usize>) -> Result<(), Errno> {
        let start = self.at(pages.start * PAGE, pages.len() * PAGE).cast();
        // SAFETY: The range is inside the mapping; its contents do not change.
        unsafe { nix::sys::mman::munlock(start, pages.len() * PAGE) }
    }

    /// msync(2) of everything.
    pub fn sync(&self, flags: MsFlags) -> Result<(), Errno> {
        // SAFETY: The range is the mapping; its contents do not change.
        unsafe { nix::sys::mman::msync(self.start.cast(), self.len, flags) }
    }

    /// Moves the mapping to another address with mremap(2).
    pub fn moved(self) -> Result<Self, Errno> {
        let place = Map::anonymous(self.len)?;
        self.moved_to(place)
    }

    /// Puts the mapping in the place of another of the same size.
    pub fn moved_to(self, place: Map) -> Result<Self, Errno> {
        let len = self.len;
        assert_eq!(len, place.len);
        let flags = MRemapFlags::MREMAP_MAYMOVE | MRemapFlags::MREMAP_FIXED;
        let target = Some(place.start.cast());
        // SAFETY: The target is a mapping of the same size that nobody uses.
        let start = unsafe { nix::sys::mman::mremap(self.start.cast(), len, len, flags, target) }?;
        // The old place is unmapped now and the target's mapping was replaced.
        std::mem::forget(self);
        std::mem::forget(place);
        // INVARIANT: The kernel put the mapping here.
        Ok(Map {
            start: start.cast(),
            len,
        })
    }

    /// mincore(2): one value per page.
    pub fn in_core(&self, pages: Range<usize>) -> Result<Vec<bool>, Errno> {
        let mut map = vec![0_u8; pages.len()];
        let start = self.at(pages.start * PAGE, pages.len() * PAGE).as_ptr();
        // SAFETY: `map` has one byte per page.
        let result = unsafe { libc::mincore(start.cast(), pages.len() * PAGE, map.as_mut_ptr()) };
        Errno::result(result)?;
        Ok(map.into_iter().map(|byte| byte & 1 != 0).collect())
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: By the type invariant this is a mapping of ours; nobody can use it any more.
        let result = unsafe { nix::sys::mman::munmap(self.start.cast(), self.len) };
        debug_assert!(result.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn write_and_read() {
        let map = Map::anonymous(2 * PAGE).unwrap();
        map.write(PAGE - 2, b"abcd");
        map.touch_write(0..2).unwrap();
        assert_eq!(map.read(PAGE - 2..PAGE + 2), b"abcd");
        assert_eq!(
            map.cell(PAGE).load(Ordering::Relaxed),
            u32::from_le_bytes(*b"cd\0\0")
        );
    }

    #[test]
    fn move_keeps_contents() {
        let map = Map::anonymous(PAGE).unwrap();
        map.write(0, b"x");
        let before = map.addr();
        let map = map.moved().unwrap();
        assert_ne!(map.addr(), before);
        assert_eq!(map.read(0..1), b"x");
    }

    #[test]
    #[should_panic(expected = "outside a mapping")]
    fn no_access_outside() {
        Map::anonymous(PAGE).unwrap().write(PAGE, b"x");
    }
}
