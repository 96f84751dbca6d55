// SPDX-License-Identifier: GPL-2.0

//! Admission: from system memory to device memory.
//!
//! It has two halves, both called by `migrate_vma_*()`. When a folio is collected, [`admit`]
//! decides, under the folio lock and a page table lock, and marks the folio dirty if the device
//! will be able to write. When the driver has provided a destination, [`move_out`] switches the
//! page cache slot. The folio stays locked from before the first to after the copy is complete.

use crate::{
    register,
    state,
    stats,
    sys, //
};
use core::ops::Range;
use kernel::{
    bindings,
    mm::{
        folio::LockedFolio,
        mapping::{
            Entry,
            Mapping, //
        }, //
    },
    prelude::*,
    sync::barrier::{
        smp_mb,
        Full, //
    }, //
};

/// Could folios of this file be admitted? Asked before a large folio is split.
pub(crate) fn may_admit(mapping: &Mapping) -> bool {
    mapping.accepts_device_folios() && !mapping.is_exiting()
}

/// Makes a range of pages ready to move: splits large folios, as far as that is possible, and puts
/// folios that are on their way to the LRU there. May sleep.
///
/// # Errors
///
/// `EOPNOTSUPP` if the file's folios never move, `EINTR` if the task is being killed.
pub(crate) fn prepare(mapping: &Mapping, indexes: Range<usize>) -> Result {
    if !may_admit(mapping) {
        return Err(EOPNOTSUPP);
    }
    // A page in the LRU batch of another CPU has one more reference, and so looks used.
    sys::drain_lru();
    let mut index = indexes.start;
    while index < indexes.end {
        if sys::killed() {
            return Err(EINTR);
        }
        index = match mapping.entry(index) {
            Entry::Folio(folio) if sys::is_large(&folio) => {
                let end = sys::end_index(&folio);
                // A folio that cannot be split now is one that is refused later, and counted.
                let _ = sys::split(mapping, &folio);
                end.max(index + 1)
            }
            _ => index + 1,
        };
    }
    Ok(())
}

/// Decides whether a folio may leave system memory, found through a page table entry that lets the
/// CPU write or not. Context: atomic, under the page table lock.
pub(crate) fn admit(folio: &LockedFolio, pte_writable: bool) -> bool {
    let Some(mapping) = folio.mapping() else {
        return false;
    };
    match state::admission(&sys::facts(folio, mapping, pte_writable)) {
        Ok(terms) => {
            let broken = sys::is_broken(bindings::devcache_rule_DEVCACHE_RULE_DIRTY_SHMEM);
            if terms.mark_dirty && !folio.is_dirty() && (pte_writable || !broken) {
                sys::mark_dirty(folio);
            }
            true
        }
        Err(refusal) => {
            stats::refused(refusal);
            false
        }
    }
}

/// Puts the device folio `dst` in the page cache in place of `src`, whose content the driver has
/// copied or is copying to it.
///
/// # Errors
///
/// `EOPNOTSUPP` if the destination is not memory that the CPU cannot address, `EBUSY` if its driver
/// has not registered, `EAGAIN` if `src` is in use.
pub(crate) fn move_out(dst: &LockedFolio, src: &LockedFolio) -> Result {
    let mapping = src.mapping().ok_or(EBUSY)?;

    if !dst.is_device_private() {
        return Err(EOPNOTSUPP);
    }
    // Pairs with the barrier in `register::unregister()`: either that finds `dst` allocated and
    // waits for its lock, or this finds the device closed.
    smp_mb(Full);
    if !sys::device_open(dst) {
        return Err(EBUSY);
    }
    sys::replace(mapping, dst, src, false)?;
    // In this order: a shrinker that has nothing to look at is not called again until a charge is
    // noted.
    register::note(sys::pfn(dst));
    sys::note_charge(dst, sys::node(src));
    stats::PAGES_OUT.inc();
    Ok(())
}
