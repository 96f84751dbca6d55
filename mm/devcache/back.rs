// SPDX-License-Identifier: GPL-2.0

//! Back: from device memory to system memory.
//!
//! [`find`] is what lookups call: it makes sure that the folio at an index is one the CPU can
//! read. [`together`] is for those who want many. A folio on its way is first a [`DeviceFolio`],
//! locked, then [`Moving`], unmapped too. Locks and races are described in `devcache_main.rs`.

use crate::{
    state::{
        self,
        Event,
        State, //
    },
    stats,
    sys::{
        self,
        Copies,
        Destination, //
    }, //
};
use core::ptr;
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

/// How many folios come back together: one call of the driver copies them all.
pub(crate) const BATCH: usize = 16;

/// Folios to bring back, each with the destination allocated for it.
pub(crate) type Candidates = [Option<(ARef<Folio>, Destination)>; BATCH];

/// Brings back together those of the candidates that can be locked at once: with a folio locked,
/// another is not waited for. Returns the system folio for each that came back.
///
/// With a `mapping`, candidates that have left it are passed over.
pub(crate) fn together(
    candidates: Candidates,
    mapping: Option<&Mapping>,
) -> [Option<ARef<Folio>>; BATCH] {
    let moving = candidates.map(|candidate| {
        let (folio, dst) = candidate?;
        Some(DeviceFolio::try_lock(&folio, mapping)?.unmap(dst))
    });
    let mut copies = Copies::new();
    for moving in moving.iter().flatten() {
        copies.add(&moving.src, &moving.dst);
    }
    let mut results = copies.run();
    moving.map(|moving| moving?.finish(results.next()?))
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
        Self::of_file(sys::lock_or_wait(folio)?, Some(mapping))
    }

    /// Locks a folio of device memory, unless somebody else has it locked or no file has it.
    /// With a `mapping`, it must be in that.
    pub(crate) fn try_lock(folio: &Folio, mapping: Option<&Mapping>) -> Option<Self> {
        Self::of_file(folio.try_lock()?, mapping)
    }

    /// Takes a locked folio of device memory if a file has it. With a `mapping`, it must be in that.
    pub(crate) fn of_file(folio: LockedFolio, mapping: Option<&Mapping>) -> Option<Self> {
        let its = folio.mapping()?;
        if !folio.is_device_private() || mapping.is_some_and(|mapping| !ptr::eq(its, mapping)) {
            return None;
        }
        // INVARIANT: Just checked.
        Some(Self(folio))
    }

    /// The allocation flags for a destination.
    pub(crate) fn gfp(&self) -> Option<kernel::bindings::gfp_t> {
        self.0.mapping().map(sys::gfp)
    }

    /// Is the content newer than the backing store?
    pub(crate) fn is_dirty(&self) -> bool {
        self.0.is_dirty()
    }

    /// Is the folio charged to `memcg`? If that is null, memory is not charged to anybody.
    pub(crate) fn is_charged_to(&self, memcg: *mut kernel::bindings::mem_cgroup) -> bool {
        sys::is_charged_to(&self.0, memcg)
    }

    /// Drops the folio from its file, without a copy, if what is on disk is as good.
    pub(crate) fn reclaim(&self) -> bool {
        let state = State::OnDevice {
            dirty: self.0.is_dirty(),
        };
        self.0.mapping().is_some_and(|mapping| {
            state::next(state, Event::Reclaim, sys::backing(mapping)).is_some()
                && sys::drop_clean(mapping, &self.0)
        })
    }

    /// Moves the content to `dst`, which takes this folio's place, and returns it.
    ///
    /// Returns `None` if the content could not be copied. Then the page is gone or poisoned, and
    /// the loss is on record.
    pub(crate) fn back(self, dst: Destination) -> Option<ARef<Folio>> {
        let moving = self.unmap(dst);
        let mut copies = Copies::new();
        copies.add(&moving.src, &moving.dst);
        let copied = copies.run().next()?;
        moving.finish(copied)
    }

    fn unmap(self, dst: Destination) -> Moving {
        sys::unmap(&self.0);
        // INVARIANT: It is locked, so no page table entry can be added.
        Moving { src: self.0, dst }
    }
}

/// A device folio in the page cache of a file, and where its content goes.
///
/// # Invariants
///
/// `src` is device-private, its mapping is not empty, and no page table maps it.
struct Moving {
    src: LockedFolio,
    dst: Destination,
}

impl Moving {
    /// Does what the result of the copy calls for: see [`DeviceFolio::back`].
    fn finish(self, copied: Result) -> Option<ARef<Folio>> {
        let Self { src, dst } = self;
        let mapping = src.mapping()?;
        let moving = State::MovingBack {
            dirty: src.is_dirty(),
        };
        let event = match copied {
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
                    sys::drop_lost(mapping, &src);
                }
                None
            }
        }
    }
}
