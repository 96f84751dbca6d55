// SPDX-License-Identifier: GPL-2.0

//! Calls into mm that the kernel crate does not offer, because no driver should make them.

use crate::{
    back::BATCH,
    state::{
        Backing,
        Facts,
        Refusal, //
    }, //
};
use core::{
    ops::Range,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    error::to_result,
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

/// A system folio allocated to receive the content of a device folio: locked, empty, and known to
/// nobody else. Dropping it frees it.
pub(crate) struct Destination(LockedFolio);

impl Destination {
    /// Allocates a folio that may stand in `mapping`. Never fails; may sleep and reclaim memory,
    /// but not through file systems.
    pub(crate) fn alloc(mapping: &Mapping) -> Self {
        Self::alloc_gfp(gfp(mapping))
    }

    /// Allocates a folio with the flags that [`gfp`] returned.
    pub(crate) fn alloc_gfp(gfp: bindings::gfp_t) -> Self {
        loop {
            // SAFETY: May be called in any context that may sleep.
            if let Some(free) = Self::new(unsafe { bindings::devcache_alloc(gfp) }) {
                return free;
            }
        }
    }

    /// Allocates a folio with the flags that [`gfp`] returned, from what is free and not reserved.
    pub(crate) fn try_alloc_gfp(gfp: bindings::gfp_t) -> Option<Self> {
        // SAFETY: May be called in any context.
        Self::new(unsafe { bindings::devcache_try_alloc(gfp) })
    }

    fn new(folio: *mut bindings::folio) -> Option<Self> {
        let folio = NonNull::new(folio)?;
        // SAFETY: The folio was just allocated, and the reference is ours.
        let folio: ARef<Folio> = unsafe { ARef::from_raw(folio.cast()) };
        // Nobody else knows the folio, so this does not wait.
        Some(Self(folio.lock()))
    }

    pub(crate) fn folio(&self) -> &LockedFolio {
        &self.0
    }

    pub(crate) fn into_folio(self) -> LockedFolio {
        self.0
    }
}

/// The allocation flags for [`Destination::alloc_gfp`].
pub(crate) fn gfp(mapping: &Mapping) -> bindings::gfp_t {
    // SAFETY: `mapping` is valid.
    unsafe { bindings::devcache_mapping_gfp(mapping.as_raw()) }
}

/// Locks `folio`, or waits until it is unlocked and returns `None`. Waiting is without a
/// reference, so the caller must look up again.
pub(crate) fn lock_or_wait(folio: ARef<Folio>) -> Option<LockedFolio> {
    if let Some(locked) = folio.try_lock() {
        return Some(locked);
    }
    let folio = ARef::into_raw(folio);
    // CAST: `TASK_UNINTERRUPTIBLE` is a small constant.
    let state = bindings::TASK_UNINTERRUPTIBLE as c_int;
    // SAFETY: This consumes the reference, which `into_raw` gave up. An uninterruptible wait does
    // not fail.
    unsafe { bindings::folio_put_wait_locked(folio.cast().as_ptr(), state) };
    None
}

/// Collects what admission needs to know.
pub(crate) fn facts(folio: &LockedFolio, mapping: &Mapping, pte_writable: bool) -> Facts {
    let mut f = bindings::devcache_facts::default();
    // SAFETY: The folio and its mapping are valid, `f` is writable.
    unsafe { bindings::devcache_facts(folio.as_raw(), mapping.as_raw(), &mut f) };
    Facts {
        against: [
            (!f.opted_in, Refusal::NotOptedIn),
            (f.exiting, Refusal::Exiting),
            (f.swapfile, Refusal::Swapfile),
            (f.kernel_file, Refusal::KernelFile),
            (f.straddles_eof, Refusal::StraddlesEof),
            (!f.uptodate, Refusal::NotUptodate),
            (f.writeback, Refusal::Writeback),
            (f.private_2, Refusal::Private2),
            (f.hwpoison, Refusal::HwPoison),
            (f.dropbehind, Refusal::Dropbehind),
            (f.pinned, Refusal::Pinned),
            (f.large, Refusal::Large),
        ],
        pte_writable,
        backing: backing(mapping),
    }
}

/// What is left of a page of this file when its folio is lost.
pub(crate) fn backing(mapping: &Mapping) -> Backing {
    // SAFETY: `mapping` is valid.
    if unsafe { bindings::devcache_is_shmem(mapping.as_raw()) } {
        Backing::None
    } else {
        Backing::Store
    }
}

/// Marks a locked folio dirty in the way of its file system. Context: atomic.
pub(crate) fn mark_dirty(folio: &LockedFolio) {
    // SAFETY: The folio is locked, so it stays in its mapping.
    unsafe { bindings::folio_mark_dirty(folio.as_raw()) };
}

/// Replaces every page table entry of the folio by a migration entry, at which CPU accesses wait.
/// May sleep.
pub(crate) fn unmap(folio: &LockedFolio) {
    // SAFETY: The folio is locked.
    unsafe { bindings::devcache_unmap(folio.as_raw()) };
}

/// Turns the migration entries for `old` into entries for `new`, which may be `old` itself.
pub(crate) fn remap(old: &LockedFolio, new: &LockedFolio) {
    // SAFETY: Both folios are locked.
    unsafe { bindings::remove_migration_ptes(old.as_raw(), new.as_raw(), 0) };
}

/// Puts `dst` in the place of `src`: page cache slot, flags, private data, memcg charge. `src`
/// belongs to no mapping afterwards. Without `wait`, a busy buffer is an error (`EAGAIN`).
pub(crate) fn replace(
    mapping: &Mapping,
    dst: &LockedFolio,
    src: &LockedFolio,
    wait: bool,
) -> Result {
    // SAFETY: Both folios are locked, and `src` is in `mapping`.
    to_result(unsafe {
        bindings::devcache_replace(mapping.as_raw(), dst.as_raw(), src.as_raw(), wait)
    })
}

/// Has the driver of the memory that `folio` is in registered, and not begun to unregister?
pub(crate) fn device_open(folio: &LockedFolio) -> bool {
    // SAFETY: Device memory has a pagemap as long as there is a reference on a folio in it.
    unsafe { bindings::devcache_folio_open(folio.as_raw()) }
}

/// Copies that a driver is to make, at most [`BATCH`] of them.
pub(crate) struct Copies {
    copies: [bindings::devcache_copy; BATCH],
    nr: usize,
}

impl Copies {
    pub(crate) fn new() -> Self {
        Self {
            copies: [bindings::devcache_copy::default(); BATCH],
            nr: 0,
        }
    }

    /// Adds the copy of a locked and unmapped device folio to `dst`.
    pub(crate) fn add(&mut self, src: &LockedFolio, dst: &Destination) {
        if let Some(copy) = self.copies.get_mut(self.nr) {
            *copy = bindings::devcache_copy {
                dst: dst.folio().as_raw(),
                src: src.as_raw(),
                // What a driver that forgets to answer has said.
                error: EIO.to_errno(),
            };
            self.nr += 1;
        }
    }

    /// Has the drivers copy, and returns the results in the order of the additions.
    pub(crate) fn run(mut self) -> impl Iterator<Item = Result> {
        let device = |copy: &bindings::devcache_copy| {
            // SAFETY: `add()` got valid folios, which the caller still has locked.
            unsafe { bindings::devcache_folio_pgmap(copy.src) }
        };
        let copies = self.copies.get_mut(..self.nr).unwrap_or_default();
        for copies in copies.chunk_by_mut(|a, b| device(a) == device(b)) {
            // CAST: At most `BATCH`.
            let nr = copies.len() as c_uint;
            // SAFETY: The sources are in the memory of one registered driver, which has the
            // callback; all folios are locked, and nobody else can reach their content.
            unsafe { bindings::devcache_copy_to_ram(copies.as_mut_ptr(), nr) };
        }
        let nr = self.nr;
        (self.copies.into_iter().take(nr)).map(|copy| to_result(copy.error))
    }
}

/// Gives a new page cache folio to reclaim.
pub(crate) fn add_to_lru(folio: &Folio) {
    // SAFETY: The folio is in a page cache and not on a list yet.
    unsafe { bindings::folio_add_lru(folio.as_raw()) };
}

/// Drops a folio from the page cache, whose content is lost.
pub(crate) fn drop_lost(mapping: &Mapping, folio: &LockedFolio) {
    // SAFETY: The folio is locked, and in `mapping`.
    unsafe { bindings::devcache_drop_lost(mapping.as_raw(), folio.as_raw()) };
}

/// Drops a clean device folio from the page cache unless it is in use; its content is on disk.
pub(crate) fn drop_clean(mapping: &Mapping, folio: &LockedFolio) -> bool {
    // SAFETY: The folio is locked, and in `mapping`.
    unsafe { bindings::devcache_drop_clean(mapping.as_raw(), folio.as_raw()) }
}

/// Puts an error entry in the place of a folio of shmem.
pub(crate) fn poison(folio: &LockedFolio) {
    // SAFETY: The folio is locked and in a shmem mapping.
    unsafe { bindings::devcache_poison(folio.as_raw()) };
}

/// The page index after the last of a folio in a page cache.
pub(crate) fn end_index(folio: &Folio) -> usize {
    // SAFETY: The folio is valid.
    unsafe { bindings::devcache_folio_end(folio.as_raw()) }
}

/// Does the folio have more than one page?
pub(crate) fn is_large(folio: &Folio) -> bool {
    // SAFETY: The folio is valid.
    unsafe { bindings::devcache_folio_large(folio.as_raw()) }
}

/// Writes a folio to disk if it is dirty, and splits it into pages. May sleep.
pub(crate) fn split(mapping: &Mapping, folio: &Folio) -> Result {
    // SAFETY: The folio is valid, and was found in `mapping`; whether it still is gets tested
    // under its lock.
    to_result(unsafe { bindings::devcache_split(mapping.as_raw(), folio.as_raw()) })
}

/// Puts all folios in per-CPU batches on the LRU. May sleep.
pub(crate) fn drain_lru() {
    // SAFETY: Called from process context.
    unsafe { bindings::lru_add_drain_all() };
}

/// Lets others run; is the task being killed?
pub(crate) fn killed() -> bool {
    // SAFETY: Called from process context.
    unsafe { bindings::devcache_killed() }
}

/// The page frame number of a folio's first page.
pub(crate) fn pfn(folio: &Folio) -> usize {
    // SAFETY: The folio is valid.
    unsafe { bindings::devcache_folio_pfn(folio.as_raw()) }
}

/// Takes a reference on the folio at `pfn` unless it is free.
pub(crate) fn folio_at(pfn: usize) -> Option<ARef<Folio>> {
    // SAFETY: `pfn` is in the range of a live pagemap, so it has a `struct page`.
    let folio = unsafe { bindings::devcache_pfn_folio(pfn) };
    // SAFETY: The reference is ours.
    NonNull::new(folio).map(|folio| unsafe { ARef::from_raw(folio.cast()) })
}

/// Annotates a place that may sleep, even when this call does not.
pub(crate) fn may_sleep() {
    // SAFETY: Always safe to call; complains in atomic context.
    unsafe { bindings::devcache_may_sleep() };
}

/// Is the folio charged to `memcg`? If that is null, memory is not charged to anybody.
pub(crate) fn is_charged_to(folio: &LockedFolio, memcg: *mut bindings::mem_cgroup) -> bool {
    // SAFETY: The lock keeps the charge where it is.
    unsafe { bindings::devcache_charged_to(folio.as_raw(), memcg) }
}

/// Tells the shrinker that the memcg of `folio` has something on a device. `nid` is a node whose
/// shortage the shrinker is to hear of.
pub(crate) fn note_charge(folio: &LockedFolio, nid: c_int) {
    // SAFETY: The lock keeps the charge where it is.
    unsafe { bindings::devcache_note_charge(folio.as_raw(), nid) };
}

/// The node that a folio is on.
pub(crate) fn node(folio: &Folio) -> c_int {
    // SAFETY: The folio is valid.
    unsafe { bindings::devcache_folio_nid(folio.as_raw()) }
}

/// A rule that a test can have broken.
pub(crate) use bindings::devcache_rule as Rule;

/// Does a test want this rule to be broken?
pub(crate) fn is_broken(rule: Rule) -> bool {
    // SAFETY: Always safe to call.
    unsafe { bindings::devcache_is_broken(rule) }
}

/// Device memory of one driver.
///
/// # Invariants
///
/// The pagemap is mapped by `memremap_pages()`.
#[derive(Clone, PartialEq)]
pub(crate) struct Pagemap(NonNull<bindings::dev_pagemap>);

// SAFETY: A pagemap belongs to no task.
unsafe impl Send for Pagemap {}

impl Pagemap {
    /// # Safety
    ///
    /// `pgmap` must be mapped by `memremap_pages()` as long as the result is used.
    pub(crate) unsafe fn from_raw(pgmap: *mut bindings::dev_pagemap) -> Option<Self> {
        // INVARIANT: The caller promises it.
        NonNull::new(pgmap).map(Self)
    }

    /// Is this memory of the right kind, with a driver that has the callback, and not registered?
    pub(crate) fn is_usable(&self) -> bool {
        // SAFETY: Valid by the type invariant.
        unsafe { bindings::devcache_pgmap_usable(self.0.as_ptr()) }
    }

    /// Allows or forbids admission.
    pub(crate) fn set_open(&self, open: bool) {
        // SAFETY: Valid by the type invariant.
        unsafe { bindings::devcache_pgmap_set_open(self.0.as_ptr(), open) };
    }

    /// The page frame numbers of the memory, range by range.
    pub(crate) fn pfn_ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        (0..).map_while(|i| {
            let mut pfns = 0..0;
            // SAFETY: Valid by the type invariant, and both results are writable.
            unsafe {
                bindings::devcache_pgmap_pfns(self.0.as_ptr(), i, &mut pfns.start, &mut pfns.end)
            }
            .then_some(pfns)
        })
    }
}

/// Turns the hooks on.
pub(crate) fn hooks_on() {
    // SAFETY: Called from process context.
    unsafe { bindings::devcache_hooks_on() };
}
