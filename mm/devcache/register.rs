// SPDX-License-Identifier: GPL-2.0

//! Which device memory takes part.
//!
//! The hooks are off until the first driver registers. They stay on after the last has gone:
//! whoever looked up a device folio before it came back has a reference to it, and asks the hooks
//! later what it is. A pagemap that is closed for admission (`PGMAP_DEVCACHE` is clear) may still
//! hold device folios; unregistering returns when it holds none.
//!
//! A destination is allocated and locked before the page cache slot is switched to it, so a
//! migration that runs at the same time is seen: admission allocates, has a full barrier, and tests
//! the flag; unregistering clears the flag, has a full barrier, and tests for allocated folios.
//! Either admission finds the device closed, or the scan finds the folio and waits for its lock,
//! which is held until the migration is over.
//!
//! Where folios of files are is noted for the shrinker, under the lock of the list. It finds a page
//! free under the same lock, so a folio that moves there later is noted again.

use crate::{
    evict,
    held::Held,
    sys::{
        self,
        Pagemap, //
    }, //
};
use core::ops::Range;
use kernel::{
    mm::folio::Folio,
    prelude::*,
    sync::{
        aref::ARef,
        barrier::{
            smp_mb,
            Full, //
        },
        global_lock, //
    }, //
};

global_lock! {
    // SAFETY: `init()` runs before any driver can register.
    unsafe(uninit) static DEVICES: SpinLock<Devices> = Devices::new();
}

/// The registered memory, and how far the shrinker has come in it.
struct Devices {
    ranges: KVec<Memory>,
    /// Index in `ranges` of what is looked at next.
    turn: usize,
    /// The page of that from which on it is looked at.
    passed: usize,
}

/// A range of page frame numbers of a pagemap.
struct Memory {
    pgmap: Pagemap,
    pfns: Range<usize>,
    /// Pages from the start of `pfns`.
    held: Held,
}

impl Devices {
    const fn new() -> Self {
        Self {
            ranges: KVec::new(),
            turn: 0,
            passed: 0,
        }
    }

    /// The next page that may hold a folio, in the order of memory, round and round: what is left
    /// of the range whose turn it is, all others, the end of the list, and that range again.
    fn next_page(&mut self) -> Option<(&mut Memory, usize)> {
        for _ in 0..self.ranges.len() + 2 {
            let memory = self.ranges.get(self.turn);
            if let Some(page) = memory.and_then(|memory| memory.held.next(self.passed)) {
                self.passed = page + 1;
                return self.ranges.get_mut(self.turn).map(|memory| (memory, page));
            }
            self.passed = 0;
            self.turn = memory.map_or(0, |_| self.turn + 1);
        }
        None
    }
}

/// Called once, at boot, before any driver can register.
pub(crate) fn init() {
    // SAFETY: Called once, before the lock is used.
    unsafe { DEVICES.init() };
}

/// Lets file folios move to the memory of `pgmap`. May sleep.
///
/// # Errors
///
/// `EINVAL` if the CPU can address the memory, if its driver has no `copy_to_ram`, or if it is
/// registered already; `ENOMEM`.
pub(crate) fn register(pgmap: &Pagemap) -> Result {
    if !pgmap.is_usable() {
        return Err(EINVAL);
    }
    for pfns in pgmap.pfn_ranges() {
        let remembered = Held::new(pfns.len()).and_then(|held| {
            remember(Memory {
                pgmap: pgmap.clone(),
                pfns,
                held,
            })
        });
        if let Err(err) = remembered {
            forget(pgmap);
            return Err(err);
        }
    }
    sys::hooks_on();
    pgmap.set_open(true);
    Ok(())
}

/// Brings all file folios in the memory of `pgmap` back, and lets no more in. May sleep.
pub(crate) fn unregister(pgmap: &Pagemap) {
    pgmap.set_open(false);
    smp_mb(Full);
    forget(pgmap);
    pgmap.pfn_ranges().for_each(evict::range);
}

/// Adds to the registered memory. The list grows outside of its lock, under which reclaim may wait.
fn remember(memory: Memory) -> Result {
    let mut longer = KVec::new();
    loop {
        let len = DEVICES.lock().ranges.len();
        longer.reserve(len + 1, GFP_KERNEL)?;
        let mut devices = DEVICES.lock();
        if devices.ranges.len() >= longer.capacity() {
            continue;
        }
        for old in core::iter::Iterator::chain(devices.ranges.drain_all(), [memory]) {
            longer.push_within_capacity(old).map_err(|_| ENOMEM)?;
        }
        core::mem::swap(&mut devices.ranges, &mut longer);
        drop(devices);
        return Ok(());
    }
}

/// Takes the memory of `pgmap` from the registered memory. May sleep.
fn forget(pgmap: &Pagemap) {
    loop {
        let mut devices = DEVICES.lock();
        let place = (devices.ranges.iter()).position(|memory| memory.pgmap == *pgmap);
        let Some(gone) = place.and_then(|place| devices.ranges.remove(place).ok()) else {
            break;
        };
        // What is large may sleep when it is freed.
        drop(devices);
        drop(gone);
    }
}

/// Notes that a folio of a file is at `pfn`, unless that is not registered any more.
pub(crate) fn note(pfn: usize) {
    let mut devices = DEVICES.lock();
    if let Some(memory) = (devices.ranges.iter_mut()).find(|memory| memory.pfns.contains(&pfn)) {
        memory.held.insert(pfn - memory.pfns.start);
    }
}

/// How many pages may hold folios of files.
pub(crate) fn pages() -> usize {
    let devices = DEVICES.lock();
    (devices.ranges.iter())
        .map(|memory| memory.held.count())
        .sum()
}

/// Looks for the next page in use, at most at `limit` pages. Returns how many it looked at.
///
/// The reference keeps the memory of the folio in existence, registered or not.
pub(crate) fn next_folio(limit: usize) -> (usize, Option<ARef<Folio>>) {
    let mut devices = DEVICES.lock();
    for passed in 0..limit {
        let Some((memory, page)) = devices.next_page() else {
            return (passed, None);
        };
        if let Some(folio) = sys::folio_at(memory.pfns.start + page) {
            return (passed + 1, Some(folio));
        }
        memory.held.remove(page);
    }
    (limit, None)
}

#[cfg(CONFIG_DEVCACHE_KUNIT_TEST)]
#[kunit_tests(devcache_register)]
mod tests {
    use super::*;

    /// A range of 64 pages, in which `pages` are held.
    fn memory(pages: &[usize]) -> Result<Memory> {
        let mut held = Held::new(64)?;
        pages.iter().for_each(|&page| held.insert(page));
        // SAFETY: Nobody uses the pagemap.
        let pgmap = unsafe { Pagemap::from_raw(core::ptr::dangling_mut()) };
        Ok(Memory {
            pgmap: pgmap.ok_or(EINVAL)?,
            pfns: 0..64,
            held,
        })
    }

    #[test]
    fn the_hand_goes_round() -> Result {
        let mut devices = Devices::new();
        for pages in [&[3, 5][..], &[], &[7]] {
            devices.ranges.push(memory(pages)?, GFP_KERNEL)?;
        }
        for expected in [3, 5, 7, 3, 5, 7] {
            assert_eq!(devices.next_page().map(|(_, page)| page), Some(expected));
        }
        Ok(())
    }

    #[test]
    fn the_hand_comes_back_to_where_it_was() -> Result {
        let mut devices = Devices::new();
        devices.ranges.push(memory(&[3])?, GFP_KERNEL)?;
        for _ in 0..3 {
            assert_eq!(devices.next_page().map(|(_, page)| page), Some(3));
        }
        if let Some((memory, page)) = devices.next_page() {
            memory.held.remove(page);
        }
        assert!(devices.next_page().is_none());
        Ok(())
    }
}
