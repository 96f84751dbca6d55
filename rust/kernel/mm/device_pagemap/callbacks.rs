// SPDX-License-Identifier: GPL-2.0

//! What C code calls for the pages in device memory.

use super::{
    DeviceCopy,
    DevicePagemap,
    DevicePrivateOps,
    Failed, //
};
use crate::{
    bindings,
    container_of,
    mm::{
        folio::Folio,
        migrate_vma::{
            MigratePfn,
            Migration, //
        }, //
    },
    prelude::*,
    sync::atomic::{
        Relaxed,
        Release, //
    },
    types::Opaque, //
};
use core::slice;

impl<T: DevicePrivateOps> DevicePagemap<T> {
    /// The operations C code calls.
    pub(super) const OPS: bindings::dev_pagemap_ops = bindings::dev_pagemap_ops {
        folio_free: Some(Self::folio_free_callback),
        migrate_to_ram: Some(Self::migrate_to_ram_callback),
        copy_to_ram: Some(Self::copy_to_ram_callback),
        ..pin_init::zeroed()
    };

    /// Returns the object a C pagemap is part of.
    ///
    /// # Safety
    ///
    /// `pgmap` must point to the field of a `Self` that is valid for `'a`.
    unsafe fn from_pgmap<'a>(pgmap: *mut bindings::dev_pagemap) -> &'a Self {
        // SAFETY: By the requirement of this function.
        unsafe { &*container_of!(Opaque::cast_from(pgmap), Self, pgmap) }
    }

    /// # Safety
    ///
    /// May only be called as `dev_pagemap_ops::folio_free` of a pagemap with [`Self::OPS`].
    unsafe extern "C" fn folio_free_callback(folio: *mut bindings::folio) {
        // SAFETY: The callback gets a folio that is valid, and device-private.
        let folio = unsafe { Folio::from_raw(folio) };
        // SAFETY: As above. A folio starts with its `struct page`.
        let pgmap = unsafe { bindings::page_pgmap(folio.as_raw().cast()) };
        // SAFETY: A pagemap with these operations is part of a `Self`, which lives until all its
        // folios are free.
        let this = unsafe { Self::from_pgmap(pgmap) };

        if let Some(index) = this.index_of(folio) {
            if let Some(claimed) = this.claimed.get(index) {
                claimed.store(false, Release);
            }
            this.ops.folio_free(index);
        }
        this.in_use.fetch_sub(1, Relaxed);
    }

    /// # Safety
    ///
    /// May only be called as `dev_pagemap_ops::migrate_to_ram` of a pagemap with [`Self::OPS`].
    unsafe extern "C" fn migrate_to_ram_callback(
        vmf: *mut bindings::vm_fault,
    ) -> bindings::vm_fault_t {
        // SAFETY: The callback gets a valid `vmf`, the page of which is device-private.
        let pgmap = unsafe { bindings::page_pgmap((*vmf).page) };
        // SAFETY: A pagemap with these operations is part of a `Self`, which lives until all its
        // pages are free; the caller holds a reference to this one.
        let this = unsafe { Self::from_pgmap(pgmap) };

        // SAFETY: `vmf` is the argument of this callback.
        match unsafe { this.cpu_fault(vmf) } {
            // If the page did not move, somebody else uses it at the moment: the CPU tries again.
            Ok(()) => 0,
            Err(ENOMEM) => bindings::vm_fault_reason_VM_FAULT_OOM,
            Err(_) => bindings::vm_fault_reason_VM_FAULT_SIGBUS,
        }
    }

    /// Brings back the anonymous page that the CPU touches.
    ///
    /// # Safety
    ///
    /// `vmf` must be the argument of a running `dev_pagemap_ops::migrate_to_ram` of this pagemap.
    unsafe fn cpu_fault(&self, vmf: *const bindings::vm_fault) -> Result {
        let mut arrays = [[MigratePfn::NONE]; 2];
        // SAFETY: By the requirement of this function.
        let migration = unsafe { Migration::collect_fault(vmf, self.owner(), &mut arrays) }?;
        self.return_to_ram(migration, Failed::Stay).result
    }

    /// # Safety
    ///
    /// May only be called as `dev_pagemap_ops::copy_to_ram` of a pagemap with [`Self::OPS`].
    unsafe extern "C" fn copy_to_ram_callback(
        pgmap: *mut bindings::dev_pagemap,
        copies: *mut bindings::devcache_copy,
        nr: c_uint,
    ) {
        // SAFETY: A pagemap with these operations is part of a `Self`, which lives until all its
        // pages are free; the caller holds references to some.
        let this = unsafe { Self::from_pgmap(pgmap) };
        // CAST: `c_uint` fits into `usize` on all architectures.
        let len = nr as usize;
        // INVARIANT: The caller of the callback has both folios of each element locked.
        //
        // SAFETY: The callback gets an array of `nr` elements for its exclusive use, and
        // `DeviceCopy` is transparent.
        let copies = unsafe { slice::from_raw_parts_mut(copies.cast::<DeviceCopy>(), len) };

        this.ops.copy_to_ram(copies);
    }
}
