// SPDX-License-Identifier: GPL-2.0

//! Bringing back whatever files have in a range of device memory.

use crate::{
    back::{
        self,
        Candidates,
        DeviceFolio,
        BATCH, //
    },
    sys::{
        self,
        Destination, //
    }, //
};
use core::ops::Range;
use kernel::{
    mm::folio::{
        Folio,
        LockedFolio, //
    },
    sync::aref::ARef, //
};

/// Brings back all file folios in a range of page frame numbers of device memory. May sleep.
///
/// Folios that arrive meanwhile may be missed.
pub(crate) fn range(pfns: Range<usize>) {
    for first in pfns.clone().step_by(BATCH) {
        let pfns = first..pfns.end.min(first + BATCH);
        let mut candidates: Candidates = Default::default();
        for (pfn, candidate) in pfns.clone().zip(&mut candidates) {
            *candidate = sys::folio_at(pfn).and_then(|folio| {
                let dst = destination(folio.try_lock()?)?;
                Some((folio, dst))
            });
        }
        back::together(candidates, None);
        // Those that somebody had locked; they have not come far, or are coming back.
        for folio in pfns.filter_map(sys::folio_at) {
            one(&folio);
        }
    }
}

/// Allocates a destination for a folio if a file has it.
///
/// What to allocate depends on the mapping, which only the lock keeps; and under the lock nothing
/// may be allocated. So the caller has to lock the folio again.
fn destination(folio: LockedFolio) -> Option<Destination> {
    let gfp = DeviceFolio::of_file(folio, None)?.gfp()?;
    Some(Destination::alloc_gfp(gfp))
}

/// Brings one folio back if a file has it.
fn one(folio: &ARef<Folio>) {
    while let Some(dst) = destination(folio.lock()) {
        let Some(folio) = DeviceFolio::of_file(folio.lock(), None) else {
            return;
        };
        folio.back(dst);
    }
}
