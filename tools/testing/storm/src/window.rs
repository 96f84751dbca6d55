// SPDX-License-Identifier: GPL-2.0
//! Which pages of a part of a file are to be moved.
//!
//! A storm is to take pages away from the programs that use the file, and these are to bring them back. So
//! it brings nothing back itself: a page that its own page table shows on the device is left alone. And it
//! fills no holes and reads nothing from the disk that nobody else has read.

use devcache_selftests::pagemap::Place;
use std::ops::Range;

/// The most pages that are looked at and moved at a time: as many as the driver moves at once.
pub(crate) const PAGES: usize = 512;

/// The part of a file of `pages` pages with this number, when its parts are taken in turn for ever.
pub(crate) fn part(number: usize, pages: usize) -> Range<usize> {
    let start = number % pages.div_ceil(PAGES).max(1) * PAGES;
    start..(start + PAGES).min(pages)
}

/// Pages to be mapped first, as they are in the page cache but not in the page table.
pub(crate) fn to_map(first: usize, places: &[Place], in_core: &[bool]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let missing = places.iter().zip(in_core);
    for (page, _) in missing
        .enumerate()
        .filter(|(_, (place, in_core))| **place == Place::None && **in_core)
    {
        let page = first + page;
        match runs.last_mut() {
            Some(run) if run.end == page => run.end += 1,
            _ => runs.push(page..page + 1),
        }
    }
    runs
}

/// Whether there is anything to move, once these are mapped.
pub(crate) fn any_to_move(places: &[Place], to_map: &[Range<usize>]) -> bool {
    !to_map.is_empty() || places.contains(&Place::Ram)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_take_turns() {
        assert_eq!(part(0, 3), 0..3);
        assert_eq!(part(7, 3), 0..3);
        let pages = 2 * PAGES + 1;
        assert_eq!(part(0, pages), 0..PAGES);
        assert_eq!(part(2, pages), 2 * PAGES..pages);
        assert_eq!(part(3, pages), 0..PAGES);
    }

    #[test]
    fn what_is_cached_is_mapped() {
        use Place::{Device, None, Ram};
        let places = [None, None, Ram, Device, None, None];
        let in_core = [true, true, true, true, false, true];
        let runs = to_map(10, &places, &in_core);
        assert_eq!(runs, [10..12, 15..16]);
        assert!(any_to_move(&places, &runs));
    }

    #[test]
    fn what_is_on_the_device_is_left_alone() {
        use Place::{Device, None};
        let places = [None, Device];
        let runs = to_map(0, &places, &[false, true]);
        assert_eq!(runs, []);
        assert!(!any_to_move(&places, &runs));
    }
}
