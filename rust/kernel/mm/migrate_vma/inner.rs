// SPDX-License-Identifier: GPL-2.0

//! The calls into C of a migration, and its end.
//!
//! There are two families of C functions: `migrate_vma_*` for a range of addresses and
//! `migrate_device_*` for a range of page frames. [`Inner`] hides the difference, and its [`Drop`]
//! is the one place in which migrations end.

use super::MigratePfn;
use crate::{
    bindings,
    error::to_result,
    mm::{
        nofs::NofsScope,
        pagemap_owner::PagemapOwner,
        virt::VmaRef, //
    },
    page::PAGE_SIZE,
    prelude::*, //
};
use core::ops::Range;

/// Which functions the migration uses.
enum Kind {
    /// `migrate_vma_*`, with their argument.
    Vma(bindings::migrate_vma),
    /// `migrate_device_*`.
    Pfns,
}

/// A migration without its state.
///
/// # Invariants
///
/// - Sources that are valid are locked, unmapped, and referenced on behalf of this migration.
/// - Destinations that are valid came from `NewFolio::into_raw`. Before `migrated` is set they
///   belong to this object.
/// - For [`Kind::Vma`], the argument was set up by `migrate_vma_setup()` with the two arrays, and
///   the mmap lock is held for `'a`.
pub(super) struct Inner<'a> {
    kind: Kind,
    src: &'a mut [MigratePfn],
    dst: &'a mut [MigratePfn],
    migrated: bool,
    _nofs: NofsScope,
}

impl<'a> Inner<'a> {
    /// Returns the flags of `struct migrate_vma` for a direction.
    const fn flags(direction: bindings::migrate_vma_direction) -> c_ulong {
        // CAST: The flags are small positive numbers, `u32` fits into `c_ulong`.
        direction as c_ulong
    }

    /// Collects the pages of a range of addresses.
    ///
    /// The arrays must have as many entries as the range has pages; else `EINVAL`. The mmap lock
    /// that `vma` proves must be held until the result is dropped.
    pub(super) fn collect_vma(
        vma: &'a VmaRef,
        addresses: Range<usize>,
        owner: PagemapOwner,
        src: &'a mut [MigratePfn],
        dst: &'a mut [MigratePfn],
    ) -> Result<Self> {
        let args = bindings::migrate_vma {
            vma: vma.as_ptr(),
            start: addresses.start,
            end: addresses.end,
            pgmap_owner: owner.as_raw(),
            flags: Self::flags(bindings::migrate_vma_direction_MIGRATE_VMA_SELECT_SYSTEM),
            ..pin_init::zeroed()
        };
        // SAFETY: `vma` is valid and locked for `'a`; there is no fault page.
        unsafe { Self::setup(args, src, dst) }
    }

    /// Collects the page of a CPU fault on device memory.
    ///
    /// # Safety
    ///
    /// As for [`super::Migration::collect_fault`].
    pub(super) unsafe fn collect_fault(
        vmf: *const bindings::vm_fault,
        owner: PagemapOwner,
        src: &'a mut [MigratePfn; 1],
        dst: &'a mut [MigratePfn; 1],
    ) -> Result<Self> {
        // SAFETY: The caller promises that `vmf` is valid.
        let vmf = unsafe { &*vmf };
        let address = vmf.__bindgen_anon_1.address;
        let args = bindings::migrate_vma {
            vma: vmf.__bindgen_anon_1.vma,
            start: address,
            end: address.checked_add(PAGE_SIZE).ok_or(EINVAL)?,
            pgmap_owner: owner.as_raw(),
            flags: Self::flags(bindings::migrate_vma_direction_MIGRATE_VMA_SELECT_DEVICE_PRIVATE),
            fault_page: vmf.page,
            ..pin_init::zeroed()
        };
        // SAFETY: In `migrate_to_ram` the mmap lock is held and `vmf.page` is a locked, referenced
        // device page.
        unsafe { Self::setup(args, src, dst) }
    }

    /// Runs `migrate_vma_setup()`.
    ///
    /// # Safety
    ///
    /// For `'a`, `args.vma` must be a valid area with its mmap lock held for reading, and
    /// `args.fault_page` null, or a locked and referenced device-private page.
    unsafe fn setup(
        mut args: bindings::migrate_vma,
        src: &'a mut [MigratePfn],
        dst: &'a mut [MigratePfn],
    ) -> Result<Self> {
        let pages = args.end.saturating_sub(args.start) / PAGE_SIZE;
        if src.len() != pages || dst.len() != pages {
            return Err(EINVAL);
        }
        args.src = src.as_mut_ptr().cast();
        args.dst = dst.as_mut_ptr().cast();

        let nofs = NofsScope::enter();
        // SAFETY: The arrays have as many entries as the range has pages, and `MigratePfn` is a
        // transparent `unsigned long`. The caller vouches for the rest.
        to_result(unsafe { bindings::migrate_vma_setup(&mut args) })?;

        // INVARIANT: `migrate_vma_setup()` locked, unmapped and referenced the sources. It sets
        // all destinations it visited to zero; an unvisited rest has no source.
        let visited = args.npages.min(pages);
        for rest in &mut dst[visited..] {
            *rest = MigratePfn::NONE;
        }
        Ok(Self {
            kind: Kind::Vma(args),
            src,
            dst,
            migrated: false,
            _nofs: nofs,
        })
    }

    /// Collects the folios in a range of page frames.
    ///
    /// The arrays must be of the same length.
    ///
    /// # Safety
    ///
    /// `first_pfn` and the page frames after it, as many as the arrays have elements, must belong to
    /// one live device-private pagemap for `'a`.
    pub(super) unsafe fn collect_pfns(
        first_pfn: usize,
        src: &'a mut [MigratePfn],
        dst: &'a mut [MigratePfn],
    ) -> Self {
        let pages = src.len().min(dst.len());
        dst.fill(MigratePfn::NONE);

        let nofs = NofsScope::enter();
        // SAFETY: The caller promises that the page frames exist, and `src` has an element for each.
        // The function always succeeds.
        unsafe { bindings::migrate_device_range(src.as_mut_ptr().cast(), first_pfn, pages) };

        // INVARIANT: `migrate_device_range()` locked, unmapped and referenced the sources. There
        // are no destinations.
        Self {
            kind: Kind::Pfns,
            src,
            dst,
            migrated: false,
            _nofs: nofs,
        }
    }

    /// Returns the sources and the destinations.
    #[inline]
    pub(super) fn arrays(&mut self) -> (&[MigratePfn], &mut [MigratePfn]) {
        (self.src, self.dst)
    }

    /// Puts destinations in the place of their sources.
    pub(super) fn migrate(&mut self) {
        self.migrated = true;
        match &mut self.kind {
            // SAFETY: By the type invariants the argument was set up, and the destinations are
            // locked new folios.
            Kind::Vma(args) => unsafe { bindings::migrate_vma_pages(args) },
            // SAFETY: By the type invariants both arrays are as the function wants them.
            Kind::Pfns => unsafe {
                bindings::migrate_device_pages(
                    self.src.as_mut_ptr().cast(),
                    self.dst.as_mut_ptr().cast(),
                    self.src.len(),
                )
            },
        }
    }
}

impl Drop for Inner<'_> {
    fn drop(&mut self) {
        if !self.migrated {
            // The finalize functions take every destination for one that has moved.
            for dst in self.dst.iter_mut() {
                let dst = core::mem::replace(dst, MigratePfn::NONE);
                // SAFETY: By the type invariants the destinations belong to this object, and the
                // entry no longer has this one.
                drop(unsafe { dst.into_new_folio() });
            }
        }
        match &mut self.kind {
            // SAFETY: By the type invariants the argument was set up. This is the only call, and
            // nobody uses the folios afterwards.
            Kind::Vma(args) => unsafe { bindings::migrate_vma_finalize(args) },
            // SAFETY: By the type invariants both arrays are as the function wants them. This is
            // the only call, and nobody uses the folios afterwards.
            Kind::Pfns => unsafe {
                bindings::migrate_device_finalize(
                    self.src.as_mut_ptr().cast(),
                    self.dst.as_mut_ptr().cast(),
                    self.src.len(),
                )
            },
        }
    }
}
