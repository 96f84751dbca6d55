// SPDX-License-Identifier: GPL-2.0
//! Loads from a mapping and stores to it.
//!
//! Where a page may be lost, a load may end the process by SIGBUS. There the kernel is made to load and
//! store instead, by copies between the mapping and a pipe: it takes the same page faults, and where a
//! program would get the signal its call says EFAULT.

use devcache_selftests::map::Map;
use devcache_selftests::PAGE;
use nix::errno::Errno;
use nix::unistd::pipe;
use nix::unistd::read;
use nix::unistd::write;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;

/// Who loads and stores.
pub(crate) enum Access {
    /// This program.
    Program,
    /// The kernel, through a pipe that is empty in between.
    Kernel {
        /// The pipe's end to read from.
        out: OwnedFd,
        /// The other.
        into: OwnedFd,
    },
}

/// The parts of a range that lie in one page each.
fn by_page(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let pages = range.start / PAGE..range.end.div_ceil(PAGE);
    pages
        .map(move |page| (page * PAGE).max(range.start)..((page + 1) * PAGE).min(range.end))
        .filter(|part| !part.is_empty())
}

impl Access {
    /// By the kernel if something will be lost.
    pub(crate) fn new(faults: bool) -> Result<Self, Errno> {
        if !faults {
            return Ok(Access::Program);
        }
        let (out, into) = pipe()?;
        Ok(Access::Kernel { out, into })
    }

    /// What is at `range` of the mapping.
    pub(crate) fn load(&self, map: &Map, range: Range<usize>) -> Result<Vec<u8>, Errno> {
        let Access::Kernel { out, into } = self else {
            return Ok(map.read(range));
        };
        let mut bytes = vec![0; range.len()];
        for part in by_page(range.clone()) {
            assert!(part.end <= map.len());
            let from = (map.addr() + part.start) as *const libc::c_void;
            // SAFETY: The kernel reads memory that is inside the mapping.
            let len = unsafe { libc::write(into.as_raw_fd(), from, part.len()) };
            Errno::result(len)?;
            let place = part.start - range.start;
            read(out, &mut bytes[place..place + part.len()])?;
        }
        Ok(bytes)
    }

    /// Stores `bytes` from `at` on.
    pub(crate) fn store(&self, map: &Map, at: usize, bytes: &[u8]) -> Result<(), Errno> {
        let Access::Kernel { out, into } = self else {
            map.write(at, bytes);
            return Ok(());
        };
        for part in by_page(at..at + bytes.len()) {
            assert!(part.end <= map.len());
            let place = part.start - at;
            write(into, &bytes[place..place + part.len()])?;
            let to = (map.addr() + part.start) as *mut libc::c_void;
            // SAFETY: The kernel writes memory that is inside the mapping, which nobody has
            // references to.
            let len = unsafe { libc::read(out.as_raw_fd(), to, part.len()) };
            if let Err(error) = Errno::result(len) {
                read(out, &mut vec![0; part.len()])?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Loads something from each page.
    pub(crate) fn touch(&self, map: &Map, mut pages: Range<usize>) -> Result<(), Errno> {
        pages.try_for_each(|page| self.load(map, page * PAGE..page * PAGE + 1).map(drop))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::memfd_create;
    use nix::sys::memfd::MFdFlags;
    use std::fs::File;

    #[test]
    fn parts_of_pages() {
        let parts: Vec<_> = by_page(4000..2 * PAGE + 1).collect();
        assert_eq!(parts, [4000..PAGE, PAGE..2 * PAGE, 2 * PAGE..2 * PAGE + 1]);
        assert_eq!(by_page(7..7).count(), 0);
    }

    #[test]
    fn the_kernel_loads_and_stores() {
        let access = Access::new(true).unwrap();
        let map = Map::anonymous(2 * PAGE).unwrap();
        access.store(&map, PAGE - 2, b"abcd").unwrap();
        assert_eq!(map.read(PAGE - 2..PAGE + 2), b"abcd");
        assert_eq!(access.load(&map, PAGE - 3..PAGE + 1).unwrap(), b"\0abc");
    }

    #[test]
    fn instead_of_a_signal() {
        let access = Access::new(true).unwrap();
        let file = File::from(memfd_create("empty", MFdFlags::empty()).unwrap());
        let map = Map::shared(&file, PAGE).unwrap();
        assert_eq!(access.load(&map, 0..4), Err(Errno::EFAULT));
        assert_eq!(access.store(&map, 0, b"abcd"), Err(Errno::EFAULT));
        file.set_len(4).unwrap();
        access.store(&map, 0, b"abcd").unwrap();
        assert_eq!(access.load(&map, 0..4).unwrap(), b"abcd");
    }
}
