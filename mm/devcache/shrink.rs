// SPDX-License-Identifier: GPL-2.0

//! Giving pages back when memory is short.
//!
//! A page on a device uses no system memory, but it stays charged to its memcg, which must not run
//! into its limit over pages that reclaim cannot see: device folios are on no LRU. They also pin
//! their inode. So a shrinker looks at them, one after the other like the hand of a clock, for the
//! kernel does not know what a device used last. What it looks at is
//!
//! * dropped if the disk has the same content: the memcg is relieved at once;
//! * else brought back, as far as memory is free, to where reclaim sees it.
//!
//! The shrinker works for one memcg at a time. It is called for those that ever had a page on a
//! device, and for all that contain them.
//!
//! Context is reclaim: folio locks are tried only, and no allocation reclaims or takes reserves.
//! Buffers of a folio that comes back are waited for, as whoever has them locked does not reclaim.

use crate::{
    back::DeviceFolio,
    register,
    stats,
    sys::{
        self,
        Destination, //
    }, //
};
use kernel::{
    bindings,
    mm::folio::Folio,
    sync::aref::ARef, //
};

/// How many pages there are to look at: a few more than are in use.
pub(crate) fn count() -> usize {
    if sys::is_broken(bindings::devcache_rule_DEVCACHE_RULE_SHRINK) {
        return 0;
    }
    register::pages()
}

/// Looks at up to `nr` pages of device memory for those charged to `memcg`, which is null if memory
/// is not charged. Returns how many were freed; looks at fewer only if there are no more.
pub(crate) fn scan(nr: usize, memcg: *mut bindings::mem_cgroup) -> usize {
    let mut freed = 0;
    let mut rest = nr.min(register::pages());
    while rest != 0 {
        let (passed, found) = register::next_folio(rest);
        rest -= passed;
        let Some(folio) = found else { break };
        if reclaim(folio, memcg) {
            freed += 1;
        }
    }
    freed
}

/// Takes a page from the device, if that is possible without waiting for anybody. Returns whether
/// it was freed.
fn reclaim(found: ARef<Folio>, memcg: *mut bindings::mem_cgroup) -> bool {
    let Some(folio) = DeviceFolio::try_lock(&found, None).filter(|f| f.is_charged_to(memcg)) else {
        return false;
    };
    // The lock has a reference of its own, and a folio with more is not dropped.
    drop(found);
    if folio.reclaim() {
        stats::PAGES_DROPPED.inc();
        return true;
    }
    if folio.is_dirty() {
        // Under the folio lock, as this allocation does not wait for reclaim.
        if let Some(dst) = folio.gfp().and_then(Destination::try_alloc_gfp) {
            folio.back(dst);
        }
    }
    false
}
