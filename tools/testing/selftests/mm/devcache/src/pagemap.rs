// SPDX-License-Identifier: GPL-2.0
//! Where the pages of a mapping are, without disturbing them.
//!
//! /proc/self/pagemap shows a page table entry that is not present but names a page as "swapped".
//! For a file mapping that is only ever device memory, or for a moment a migration: pages of files,
//! tmpfs included, leave no entry behind when they are swapped out.

use crate::map::Map;
use crate::PAGE;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// What the page table says of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nothing: a fault will ask the file.
    None,
    /// A present page: in system memory.
    Ram,
    /// A page the CPU cannot reach: in device memory.
    Device,
}

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;

impl Place {
    fn from_entry(entry: u64) -> Self {
        match (entry & PRESENT != 0, entry & SWAPPED != 0) {
            (true, _) => Place::Ram,
            (false, true) => Place::Device,
            (false, false) => Place::None,
        }
    }
}

/// The places of `pages` of a mapping.
pub fn places(map: &Map, pages: Range<usize>) -> io::Result<Vec<Place>> {
    let mut bytes = vec![0; pages.len() * 8];
    let first = map.page_addr(pages.start) / PAGE;

    File::open("/proc/self/pagemap")?.read_exact_at(&mut bytes, first as u64 * 8)?;
    Ok(bytes
        .chunks_exact(8)
        .map(|entry| Place::from_entry(u64::from_ne_bytes(entry.try_into().expect("8 bytes"))))
        .collect())
}

/// Page numbers in `pages` that are not at `place`, for messages.
pub fn elsewhere(map: &Map, pages: Range<usize>, place: Place) -> io::Result<Vec<usize>> {
    let found = places(map, pages.clone())?;
    Ok(pages
        .zip(found)
        .filter_map(|(page, at)| (at != place).then_some(page))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries() {
        assert_eq!(Place::from_entry(0), Place::None);
        assert_eq!(Place::from_entry(PRESENT | 5), Place::Ram);
        assert_eq!(Place::from_entry(SWAPPED | 5), Place::Device);
    }

    #[test]
    fn own_memory() {
        let map = Map::anonymous(2 * PAGE).unwrap();
        map.touch_write(1..2).unwrap();
        assert_eq!(places(&map, 0..2).unwrap(), [Place::None, Place::Ram]);
        assert_eq!(elsewhere(&map, 0..2, Place::Ram).unwrap(), [0]);
    }
}
