// SPDX-License-Identifier: GPL-2.0

//! Which device memory takes part.
//!
//! The hooks are off until the first driver registers and again after the last has gone. A pagemap
//! that is closed for admission (`PGMAP_DEVCACHE` is clear) may still hold device folios;
//! unregistering returns when it holds none.
//!
//! A destination is allocated and locked before the page cache slot is switched to it, so a
//! migration that runs at the same time is seen: admission allocates, has a full barrier, and tests
//! the flag; unregistering clears the flag, has a full barrier, and tests for allocated folios.
//! Either admission finds the device closed, or the scan finds the folio and waits for its lock,
//! which is held until the migration is over.

use crate::{
    back::DeviceFolio,
    sys::{
        self,
        Destination,
        Pagemap, //
    }, //
};
use kernel::{
    mm::folio::Folio,
    prelude::*,
    sync::{
        aref::ARef,
        barrier::{
            smp_mb,
            Full, //
        }, //
    }, //
};

/// Lets file folios move to the memory of `pgmap`. May sleep.
///
/// # Errors
///
/// `EINVAL` if the CPU can address the memory, if its driver has no `copy_to_ram`, or if it is
/// registered already.
pub(crate) fn register(pgmap: &Pagemap) -> Result {
    if !pgmap.is_usable() {
        return Err(EINVAL);
    }
    sys::hooks_on();
    pgmap.set_open(true);
    Ok(())
}

/// Brings all file folios in the memory of `pgmap` back, and lets no more in. May sleep.
pub(crate) fn unregister(pgmap: &Pagemap) {
    pgmap.set_open(false);
    smp_mb(Full);
    for pfn in pgmap.pfn_ranges().flatten() {
        if let Some(folio) = sys::folio_at(pfn) {
            bring_back(&folio);
        }
    }
    sys::hooks_off();
}

/// Brings one folio back if a file has it.
fn bring_back(folio: &ARef<Folio>) {
    loop {
        // What to allocate depends on the mapping, which only the lock keeps; and under the lock
        // nothing may be allocated.
        let Some(gfp) = DeviceFolio::of_file(folio.lock()).and_then(|folio| folio.gfp()) else {
            return;
        };
        let dst = Destination::alloc_gfp(gfp);
        let Some(folio) = DeviceFolio::of_file(folio.lock()) else {
            return;
        };
        folio.back(dst);
    }
}
