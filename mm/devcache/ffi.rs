// SPDX-License-Identifier: GPL-2.0

//! The entries called from C: by the hooks in mm and the file systems, and by drivers.
//!
//! C prototypes: `include/linux/devcache.h`, which also documents them.

use crate::{
    admit,
    back::{
        self,
        Candidates,
        BATCH, //
    },
    evict,
    register,
    shrink,
    stats,
    sys::{
        Destination,
        Pagemap, //
    }, //
};
use core::{
    mem::{
        replace,
        ManuallyDrop, //
    },
    ptr::{
        null_mut,
        NonNull, //
    }, //
};
use kernel::{
    bindings,
    error::from_result,
    mm::{
        folio::{
            Folio,
            LockedFolio, //
        },
        mapping::Mapping, //
    },
    prelude::*,
    sync::aref::ARef, //
};

/// Borrows a folio that the C caller has locked and will unlock.
///
/// # Safety
///
/// `folio` must be valid, locked and referenced as long as the result is used.
unsafe fn borrow_locked(folio: *mut bindings::folio) -> Option<ManuallyDrop<LockedFolio>> {
    // SAFETY: The caller lends lock and reference; `ManuallyDrop` does not release them.
    NonNull::new(folio).map(|folio| ManuallyDrop::new(unsafe { LockedFolio::from_raw(folio) }))
}

/// # Safety
///
/// `mapping` must be valid; the caller gives up a reference on `folio`, which it found at `index`.
#[export]
unsafe extern "C" fn devcache_back(
    mapping: *mut bindings::address_space,
    index: usize,
    folio: *mut bindings::folio,
    nowait: bool,
) -> *mut bindings::folio {
    let Some(folio) = NonNull::new(folio) else {
        return null_mut();
    };
    // SAFETY: The caller promises that it is valid.
    let mapping = unsafe { Mapping::from_raw(mapping) };
    // SAFETY: The caller gives up a reference.
    let folio: ARef<Folio> = unsafe { ARef::from_raw(folio.cast()) };

    match back::find(mapping, index, folio, nowait) {
        Ok(Some(folio)) => ARef::into_raw(folio).cast().as_ptr(),
        Ok(None) => null_mut(),
        Err(err) => err.to_ptr(),
    }
}

/// A folio of a batch, with the batch's reference.
struct Slot<'a>(&'a mut *mut bindings::folio);

impl Slot<'_> {
    /// The folio.
    fn folio(&self) -> &Folio {
        // SAFETY: The batch has a reference on it, which is only given up with the slot borrowed.
        unsafe { Folio::from_raw(*self.0) }
    }

    /// Puts another folio in its place.
    fn replace(&mut self, by: ARef<Folio>) {
        let old = replace(self.0, ARef::into_raw(by).cast().as_ptr());
        if let Some(old) = NonNull::new(old.cast::<Folio>()) {
            // SAFETY: This was the batch's reference.
            drop(unsafe { ARef::from_raw(old) });
        }
    }
}

/// # Safety
///
/// `mapping` must be valid, and `fbatch` hold references on folios found in it.
#[export]
unsafe extern "C" fn devcache_back_batch(
    mapping: *mut bindings::address_space,
    fbatch: *mut bindings::folio_batch,
) -> bool {
    // SAFETY: The caller promises that it is valid.
    let mapping = unsafe { Mapping::from_raw(mapping) };
    // SAFETY: The caller promises that it is valid, and nobody else uses a batch.
    let fbatch = unsafe { &mut *fbatch };
    let all = fbatch.folios.get_mut(..usize::from(fbatch.nr));

    for folios in all.unwrap_or_default().chunks_mut(BATCH) {
        let mut candidates: Candidates = Default::default();
        for (found, candidate) in folios.iter_mut().zip(&mut candidates) {
            let slot = Slot(found);
            let folio = slot.folio();
            if folio.is_device_private() {
                *candidate = Some((folio.into(), Destination::alloc(mapping)));
            }
        }
        let now = back::together(candidates, Some(mapping));
        for (folio, now) in folios.iter_mut().zip(now) {
            if let Some(now) = now {
                Slot(folio).replace(now);
            }
        }
    }

    // Those that somebody else had locked, one by one.
    let mut kept = 0;
    for i in 0..usize::from(fbatch.nr) {
        let Some(found) = fbatch.folios.get_mut(i) else {
            break;
        };
        let on_device = Slot(found).folio().is_device_private();
        let found = *found;
        let now = if on_device {
            // SAFETY: The index of a device folio does not change while there is a reference.
            let index = unsafe { bindings::devcache_folio_index(found) };
            // SAFETY: The reference of the batch is given up; the slot gets another one below.
            unsafe { devcache_back(mapping.as_raw(), index, found, false) }
        } else {
            found
        };
        if now.is_null() {
            continue;
        }
        if let Some(slot) = fbatch.folios.get_mut(kept) {
            *slot = now;
            kept += 1;
        }
    }
    // CAST: `kept` is at most the old value.
    fbatch.nr = kept as u8;
    kept > 0
}

/// # Safety
///
/// `folio` must be a file's folio, mapped by a page table whose lock the caller holds.
#[export]
unsafe extern "C" fn devcache_may_admit(folio: *mut bindings::folio) -> bool {
    // SAFETY: The caller promises that it is valid.
    let mapping = unsafe { bindings::folio_mapping(folio) };
    if mapping.is_null() {
        return false;
    }
    // SAFETY: The page table entry keeps the folio in its mapping.
    admit::may_admit(unsafe { Mapping::from_raw(mapping) })
}

/// # Safety
///
/// `folio` must be locked by the caller.
#[export]
unsafe extern "C" fn devcache_admit(folio: *mut bindings::folio, write: bool) -> bool {
    // SAFETY: The caller has it locked.
    unsafe { borrow_locked(folio) }.is_some_and(|folio| admit::admit(&folio, write))
}

/// # Safety
///
/// Both folios must be locked by the caller, and `src` be admitted and unmapped.
#[export]
unsafe extern "C" fn devcache_move_out(
    dst: *mut bindings::folio,
    src: *mut bindings::folio,
) -> c_int {
    from_result(|| {
        // SAFETY: The caller has it locked.
        let dst = unsafe { borrow_locked(dst) }.ok_or(EINVAL)?;
        // SAFETY: The caller has it locked.
        let src = unsafe { borrow_locked(src) }.ok_or(EINVAL)?;
        admit::move_out(&dst, &src)?;
        Ok(0)
    })
}

/// # Safety
///
/// `mapping` must be valid.
#[export]
unsafe extern "C" fn devcache_prepare(
    mapping: *mut bindings::address_space,
    first: usize,
    end: usize,
) -> c_int {
    from_result(|| {
        // SAFETY: The caller promises that it is valid.
        admit::prepare(unsafe { Mapping::from_raw(mapping) }, first..end)?;
        Ok(0)
    })
}

/// # Safety
///
/// `pgmap` must be mapped by `memremap_pages()`.
#[export]
unsafe extern "C" fn devcache_register(pgmap: *mut bindings::dev_pagemap) -> c_int {
    from_result(|| {
        // SAFETY: The caller promises that it is mapped.
        let pgmap = unsafe { Pagemap::from_raw(pgmap) }.ok_or(EINVAL)?;
        register::register(&pgmap)?;
        Ok(0)
    })
}

/// # Safety
///
/// `pgmap` must be mapped by `memremap_pages()`, and have been registered.
#[export]
unsafe extern "C" fn devcache_unregister(pgmap: *mut bindings::dev_pagemap) {
    // SAFETY: The caller promises that it is mapped.
    if let Some(pgmap) = unsafe { Pagemap::from_raw(pgmap) } {
        register::unregister(&pgmap);
    }
}

/// # Safety
///
/// The page frame numbers must be those of device-private memory that stays mapped.
#[export]
unsafe extern "C" fn devcache_evict(first: usize, nr: usize) {
    evict::range(first..first.saturating_add(nr));
}

/// # Safety
///
/// Called by the shrinker.
#[export]
unsafe extern "C" fn devcache_shrink_count() -> usize {
    shrink::count()
}

/// # Safety
///
/// `sc` must be valid. Called by the shrinker.
#[export]
unsafe extern "C" fn devcache_shrink_scan(sc: *const bindings::shrink_control) -> usize {
    // SAFETY: The shrinker lends it.
    let sc = unsafe { &*sc };
    shrink::scan(sc.nr_to_scan, sc.memcg)
}

/// # Safety
///
/// Called once, at boot, before any driver can register.
#[export]
unsafe extern "C" fn devcache_init() -> c_int {
    from_result(|| {
        register::init();
        stats::init()?;
        Ok(0)
    })
}
