// SPDX-License-Identifier: GPL-2.0

//! Back: from device memory to system memory.
//!
//! [`find`] is what lookups call: it makes sure that the folio at an index is one the CPU can
//! read. [`DeviceFolio`] is one folio, locked, on its way. Locks and races are described in
//! `devcache_main.rs`.

use crate::{
    state::{
        self,
        Event,
        State, //
    },
    stats,
    sys::{
        self,
        Destination, //
    }, //
};
use kernel::{
    mm::{
        folio::{
            Folio,
            LockedFolio, //
        },
        mapping::{
            Entry,
            Mapping, //
        }, //
    },
    prelude::*,
    sync::aref::ARef, //
};

/// Returns the system folio at `index` of `mapping`, after bringing it back if need be; `None` if
/// there is no folio now.
///
/// `folio` is what the caller found at `index`. With `nowait`, the error is `EAGAIN` if that is a
/// device folio. Otherwise this does not fail: a copy that fails leaves no folio, and the error is
/// on record where the file's users will meet it.
///
/// The returned reference keeps the folio from leaving again.
pub(crate) fn find(
    mapping: &Mapping,
    index: usize,
    folio: ARef<Folio>,
    nowait: bool,
) -> Result<Option<ARef<Folio>>> {
    // All folios are about to be dropped; a copy would be wasted.
    if mapping.is_exiting() {
        return Ok(Some(folio));
    }
    if nowait {
        return Err(EAGAIN);
    }
    sys::may_sleep();

    let mut found = folio;
    let mut dst = None;
    loop {
        if !found.is_device_private() {
            return Ok(Some(found));
        }
        // Before the lock: see "Locks".
        let free = dst.take().unwrap_or_else(|| Destination::alloc(mapping));
        match DeviceFolio::lock_in(found, mapping) {
            Some(folio) => {
                if let Some(folio) = folio.back(free) {
                    return Ok(Some(folio));
                }
            }
            None => dst = Some(free),
        }
        match mapping.entry(index) {
            Entry::Folio(folio) => found = folio,
            Entry::Empty | Entry::Value => return Ok(None),
        }
    }
}

/// A device folio in the page cache of a file, locked.
///
/// # Invariants
///
/// The folio is device-private, and its mapping is not empty.
pub(crate) struct DeviceFolio(LockedFolio);

impl DeviceFolio {
    /// Locks a device folio if it still is in `mapping`, or waits for whoever has it locked.
    fn lock_in(folio: ARef<Folio>, mapping: &Mapping) -> Option<Self> {
        let folio = sys::lock_or_wait(folio)?;
        if !core::ptr::eq(folio.mapping()?, mapping) {
            return None;
        }
        // INVARIANT: The caller found it to be a device folio, and it is in `mapping`.
        Some(Self(folio))
    }

    /// Takes a locked folio of device memory if a file has it.
    pub(crate) fn of_file(folio: LockedFolio) -> Option<Self> {
        folio.mapping()?;
        // INVARIANT: Just checked.
        Some(Self(folio))
    }

    /// The allocation flags for a destination.
    pub(crate) fn gfp(&self) -> Option<kernel::bindings::gfp_t> {
        self.0.mapping().map(sys::gfp)
    }

    /// Moves the content to `dst`, which takes this folio's place, and returns it.
    ///
    /// Returns `None` if the content could not be copied. Then the page is gone or poisoned, and
    /// the loss is on record.
    pub(crate) fn back(self, dst: Destination) -> Option<ARef<Folio>> {
        let src = self.0;
        let mapping = src.mapping()?;
        let moving = State::MovingBack {
            dirty: src.is_dirty(),
        };

        sys::unmap(&src);
        let event = match sys::copy_to_ram(&src, &dst) {
            Ok(()) => Event::Copied,
            Err(_) => Event::CopyFailed,
        };

        match state::next(moving, event, sys::backing(mapping))? {
            State::InRam { .. } => {
                let dst = dst.into_folio();
                if sys::replace(mapping, &dst, &src, true).is_err() {
                    // Only a file system that cannot wait for its own private data gets here.
                    // Nothing has changed; the caller looks up again.
                    sys::remap(&src, &src);
                    return None;
                }
                // In this order, remapping builds up the mlock count of the new folio.
                sys::add_to_lru(&dst);
                sys::remap(&src, &dst);
                stats::PAGES_BACK.inc();
                Some(dst.unlock())
            }
            after => {
                // Truncation finds page table entries only once they are device entries again.
                sys::remap(&src, &src);
                stats::PAGES_LOST.inc();
                if after == (State::Gone { lost: true }) {
                    mapping.set_error(EIO);
                }
                if after == State::Poisoned {
                    sys::poison(&src);
                } else {
                    sys::truncate(mapping, &src);
                }
                None
            }
        }
    }
}
