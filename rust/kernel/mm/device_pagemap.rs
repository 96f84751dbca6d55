// SPDX-License-Identifier: GPL-2.0

//! Device memory that takes part in memory management.
//!
//! The memory of many devices cannot be reached by the CPU. With a `struct page` for each of its
//! pages it can nevertheless hold the pages of programs and files: a page moves there by a
//! [`Migration`], and comes back when the CPU needs it. [`DevicePagemap`] makes such
//! `struct page`s, and gives each page of the device memory a number, its *index*.
//!
//! ```text
//!             claim(index)             Migration                  last reference put
//!   free  -----------------> NewFolio -----------> in use by mm -----------------------+
//!    ^                          | drop                                                 |
//!    +--------------------------+------------------------------------------------------+
//!                                DevicePrivateOps::folio_free(index)
//! ```
//!
//! # Who brings pages back
//!
//! The way back needs one thing from a driver, [`DevicePrivateOps::copy_to_ram`]; everything else is
//! done here and, for pages of files, by the page cache:
//!
//! - when the CPU touches an anonymous page (`migrate_to_ram` of the C interface);
//! - when anything in the kernel wants the content of a page of a file;
//! - when a driver asks for it: [`DevicePagemap::evict`];
//! - when the [`DevicePagemap`] is dropped: then all pages come back.
//!
//! C headers: [`include/linux/memremap.h`](srctree/include/linux/memremap.h),
//! [`include/linux/devcache.h`](srctree/include/linux/devcache.h)

use crate::{
    bindings,
    device::Device,
    error::from_err_ptr,
    mm::{
        folio::Folio,
        free_mem_region::FreeMemRegion,
        migrate_vma::{
            Collected,
            Entry,
            MigratePfn,
            Migration,
            Source, //
        },
        new_folio::NewFolio,
        pagemap_owner::PagemapOwner, //
    },
    page::{
        PAGE_MASK,
        PAGE_SHIFT, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Acquire,
            Atomic,
            Relaxed, //
        }, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
    types::Opaque, //
};
use core::{
    ops::Range,
    ptr::NonNull, //
};

mod callbacks;
mod ops;
#[cfg(CONFIG_RUST_DEVICE_MEMORY_KUNIT_TEST)]
mod tests;

pub use ops::{
    DeviceCopy,
    DevicePrivateOps,
    Returned, //
};

/// How many pages are copied or evicted at once. The arrays are on the stack.
const BATCH: usize = 16;

/// How long to wait for references to go away before looking again.
const RETRY_DELAY: Delta = Delta::from_millis(10);

/// How many rounds to try to copy pages before they are given up.
const COPY_ROUNDS: usize = 10;

/// After how many rounds of waiting to tell that somebody still has pages.
const RETRIES_PER_MESSAGE: usize = 1000;

/// What becomes of anonymous pages that could not be copied.
#[derive(Clone, Copy)]
enum Failed {
    /// They stay in device memory.
    Stay,
    /// Their content is lost.
    GiveUp,
}

/// Device-private memory.
///
/// # Dropping
///
/// The destructor sleeps. It stops pages of files from coming to the device, brings every page
/// back, and waits until the last reference to a page is gone. So
///
/// - the device must still be able to copy;
/// - the caller must hold no reference to a page, in particular no [`NewFolio`], and no lock that
///   [`DevicePrivateOps`] or an interval notifier takes;
/// - an anonymous page that cannot be copied, also not after some time, is lost: the program gets a
///   signal when it accesses it.
///
/// # Examples
///
/// ```
/// # use kernel::{device::Device, mm::device_pagemap::{DeviceCopy, DevicePagemap, DevicePrivateOps}};
/// struct Vram {/* the free pages, the copy engine */}
///
/// impl DevicePrivateOps for Vram {
///     fn folio_free(&self, index: usize) {
///         // Put `index` back to the free pages.
///     }
///
///     fn copy_to_ram(&self, copies: &mut [DeviceCopy]) {
///         for copy in copies {
///             // Copy, with the engine, from `copy.index()` to `copy.destination()`.
///             copy.set_result(Ok(()));
///         }
///     }
/// }
///
/// fn probe(dev: &Device, size: usize) -> Result<Pin<KBox<DevicePagemap<Vram>>>> {
///     // SAFETY: The box is dropped when the driver unbinds, never forgotten.
///     let init = unsafe { DevicePagemap::new(dev, c"example-vram", size, Ok::<_, Error>(Vram {})) };
///     KBox::pin_init(init, GFP_KERNEL)
/// }
/// ```
///
/// # Invariants
///
/// - `pgmap` is mapped by `memremap_pages()`, is `MEMORY_DEVICE_PRIVATE`, has the range of
///   `region`, which contains all pages that have an index, and its operations are those of
///   `Self::OPS`.
/// - `claimed[i]` is set from the moment page `i` is claimed until its last reference has gone.
#[pin_data(PinnedDrop)]
pub struct DevicePagemap<T: DevicePrivateOps> {
    #[pin]
    ops: T,
    dev: ARef<Device>,
    claimed: KVVec<Atomic<bool>>,
    in_use: Atomic<usize>,
    region: FreeMemRegion,
    #[pin]
    pgmap: Opaque<bindings::dev_pagemap>,
}

// SAFETY: `dev_pagemap` may be used and unmapped from any thread; the other fields are `Send`.
unsafe impl<T: DevicePrivateOps> Send for DevicePagemap<T> {}
// SAFETY: All methods can be called in parallel; the other fields are `Sync`.
unsafe impl<T: DevicePrivateOps> Sync for DevicePagemap<T> {}

impl<T: DevicePrivateOps> DevicePagemap<T> {
    /// Makes `size` bytes of device memory part of memory management.
    ///
    /// `name` is listed in `/proc/iomem`. Pages of files may come to the device as soon as this
    /// function has returned; nothing comes by itself.
    ///
    /// Context: process context, may sleep.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: `size` is zero or not a multiple of the page size.
    /// - `ENOMEM`: no memory for the `struct page`s.
    /// - `ERANGE`: no free range of physical addresses is left.
    ///
    /// # Safety
    ///
    /// Callers must not `mem::forget()` the returned [`DevicePagemap`] or otherwise prevent its
    /// [`Drop`] implementation from running, since `T` may contain borrowed references.
    pub unsafe fn new<'a, E>(
        dev: &'a Device,
        name: &'static CStr,
        size: usize,
        ops: impl PinInit<T, E> + 'a,
    ) -> impl PinInit<Self, Error> + 'a
    where
        T: 'a,
        E: 'a,
        Error: From<E>,
    {
        // INVARIANT: `map()` establishes the type invariant on `pgmap`; no page is claimed yet.
        try_pin_init!(Self {
            claimed: Self::unclaimed(size)?,
            in_use: Atomic::new(0),
            dev: dev.into(),
            ops <- ops,
            region: FreeMemRegion::request(size, name)?,
            pgmap <- Opaque::try_ffi_init(|slot| {
                // SAFETY: `slot` is where `pgmap` of a pinned `Self` is to be.
                unsafe { Self::map(slot, dev, region) }
            }),
        }? Error)
    }

    /// Makes the list of claimed pages for `size` bytes of memory: none.
    fn unclaimed(size: usize) -> Result<KVVec<Atomic<bool>>> {
        if size == 0 || size & !PAGE_MASK != 0 {
            return Err(EINVAL);
        }
        let pages = size >> PAGE_SHIFT;
        let mut claimed = KVVec::with_capacity(pages, GFP_KERNEL)?;
        for _ in 0..pages {
            claimed.push(Atomic::new(false), GFP_KERNEL)?;
        }
        Ok(claimed)
    }

    /// Maps a pagemap and registers it with the page cache.
    ///
    /// # Safety
    ///
    /// `slot` must point to the memory of the field `pgmap` of a `Self` that is being initialised in
    /// its final place. If the function succeeds, `memunmap_pages()` must be called on it before the
    /// memory is used otherwise.
    unsafe fn map(
        slot: *mut bindings::dev_pagemap,
        dev: &Device,
        region: &FreeMemRegion,
    ) -> Result {
        let mut pgmap = bindings::dev_pagemap {
            type_: bindings::memory_type_MEMORY_DEVICE_PRIVATE,
            ops: &Self::OPS,
            owner: slot.cast(),
            nr_range: 1,
            ..Default::default()
        };
        // SAFETY: The union is all zero, which is a valid `range`.
        unsafe { *pgmap.__bindgen_anon_1.range.as_mut() = region.range() };

        // SAFETY: By the requirements of this function `slot` can be written to.
        unsafe { slot.write(pgmap) };

        // SAFETY: `dev` is a valid device.
        let node = unsafe { bindings::dev_to_node(dev.as_raw()) };
        // SAFETY: `slot` is filled in as for device-private memory, and stays where it is.
        from_err_ptr(unsafe { bindings::memremap_pages(slot, node) })?;

        #[cfg(CONFIG_DEVCACHE)]
        // SAFETY: `slot` is a mapped pagemap with the operation `copy_to_ram`.
        if let Err(error) = crate::error::to_result(unsafe { bindings::devcache_register(slot) }) {
            // SAFETY: The pagemap was mapped just now, and no page of it was ever in use.
            unsafe { bindings::memunmap_pages(slot) };
            return Err(error);
        }
        Ok(())
    }

    /// Returns the object that implements the operations.
    #[inline]
    pub fn ops(&self) -> &T {
        &self.ops
    }

    /// Returns the number of pages.
    #[inline]
    pub fn pages(&self) -> usize {
        self.claimed.len()
    }

    /// Returns how many pages are not free.
    #[inline]
    pub fn pages_in_use(&self) -> usize {
        self.in_use.load(Relaxed)
    }

    /// Returns who migrations and interval notifiers take the pages of this memory to belong to.
    #[inline]
    pub fn owner(&self) -> PagemapOwner {
        PagemapOwner::from_address(NonNull::from(&self.pgmap))
    }

    /// Returns the index of a folio, if it is in this memory.
    pub fn index_of(&self, folio: &Folio) -> Option<usize> {
        let index = folio.pfn().checked_sub(self.first_pfn())?;
        (index < self.pages()).then_some(index)
    }

    /// Makes a free page a folio that can be the destination of a migration.
    ///
    /// The page stays claimed until the folio is dropped or, if it was given to a migration, until
    /// its last user has gone; [`DevicePrivateOps::folio_free`] tells. Its content is whatever the
    /// device memory contains.
    ///
    /// Context: any but NMI.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: there is no page with this index.
    /// - `EBUSY`: the page is not free.
    pub fn claim(&self, index: usize) -> Result<NewFolio> {
        let claimed = self.claimed.get(index).ok_or(EINVAL)?;
        // The acquire pairs with the release in `folio_free_callback`.
        if claimed.xchg(true, Acquire) {
            return Err(EBUSY);
        }
        self.in_use.add(1, Relaxed);

        // SAFETY: By the type invariants the page frame is mapped by the pagemap.
        let page = unsafe { bindings::pfn_to_page(self.first_pfn() + index) };
        // A device-private page has no compound head before it is initialised: it is a folio.
        let folio: *mut bindings::folio = page.cast();
        // SAFETY: The page is of this pagemap, and it is free: it was not claimed.
        unsafe { bindings::zone_device_folio_init(folio, self.pgmap.get(), 0) };
        // SAFETY: `pfn_to_page` does not return null for a page frame that is mapped.
        let folio = unsafe { NonNull::new_unchecked(folio) };
        // SAFETY: `zone_device_folio_init()` locked the folio and set its reference count to one;
        // both are ours.
        Ok(unsafe { NewFolio::from_raw(folio) })
    }

    /// Brings the pages in a range of indices back to system memory, whomever they belong to.
    ///
    /// Indices that do not exist and pages that are free are ignored. The result counts anonymous
    /// pages only; those of files come back or are lost, which is the business of their users.
    ///
    /// Context: process context, may sleep. The caller must hold no lock that its interval
    /// notifiers or [`DevicePrivateOps::copy_to_ram`] take.
    pub fn evict(&self, indices: Range<usize>) -> Returned {
        #[cfg(CONFIG_DEVCACHE)]
        {
            let end = indices.end.min(self.pages());
            let start = indices.start.min(end);
            // SAFETY: By the type invariants the page frames are mapped by the pagemap.
            unsafe { bindings::devcache_evict(self.first_pfn() + start, end - start) };
        }
        self.return_indices(indices, Failed::Stay)
    }

    fn return_indices(&self, indices: Range<usize>, failed: Failed) -> Returned {
        let end = indices.end.min(self.pages());
        let mut returned = Returned {
            pages: 0,
            result: Ok(()),
        };

        let mut first = indices.start;
        while first < end {
            let pages = (end - first).min(BATCH);
            let mut arrays = [[MigratePfn::NONE; BATCH]; 2];
            // SAFETY: By the type invariants the page frames are mapped by the pagemap.
            let migration =
                unsafe { Migration::collect_pfns(self.first_pfn() + first, pages, &mut arrays) };
            let batch = self.return_to_ram(migration, failed);
            returned.pages += batch.pages;
            returned.result = returned.result.and(batch.result);
            first += pages;
        }
        returned
    }

    /// Completes a migration from this memory to system memory.
    fn return_to_ram(&self, mut migration: Migration<'_, Collected>, failed: Failed) -> Returned {
        let mut result = Ok(());

        let mut entries = migration.entries();
        loop {
            let mut batch = [const { None }; BATCH];
            let mut copies = [const { DeviceCopy::NONE }; BATCH];
            let mut len = 0;

            for (slot, copy) in batch.iter_mut().zip(&mut copies) {
                let Some(mut entry) = entries.find(Entry::has_folio) else {
                    break;
                };
                let Ok(dst) = NewFolio::alloc() else {
                    result = result.and(Err(ENOMEM));
                    break;
                };
                if let Source::Folio(src) = entry.source() {
                    *copy = DeviceCopy::new(src, &dst);
                }
                entry.set_destination(dst);
                *slot = Some(entry);
                len += 1;
            }
            if len == 0 {
                break;
            }

            self.ops.copy_to_ram(&mut copies[..len]);

            for (entry, copy) in batch.iter_mut().flatten().zip(&copies) {
                if copy.result().is_err() {
                    result = result.and(copy.result());
                    match failed {
                        Failed::Stay => drop(entry.take_destination()),
                        Failed::GiveUp => entry.give_up(),
                    }
                }
            }
        }
        drop(entries);

        Returned {
            pages: migration.migrate().moved(),
            result,
        }
    }

    /// Returns the page frame number of the page with index 0.
    #[inline]
    fn first_pfn(&self) -> usize {
        self.region.first_pfn()
    }
}

#[pinned_drop]
impl<T: DevicePrivateOps> PinnedDrop for DevicePagemap<T> {
    fn drop(self: Pin<&mut Self>) {
        let this = self.as_ref().get_ref();

        #[cfg(CONFIG_DEVCACHE)]
        // SAFETY: By the type invariants the pagemap was registered, and is mapped.
        unsafe {
            bindings::devcache_unregister(this.pgmap.get())
        };

        let mut round = 0;
        while this.pages_in_use() > 0 {
            let failed = match round {
                0..COPY_ROUNDS => Failed::Stay,
                _ => Failed::GiveUp,
            };
            let returned = this.return_indices(0..this.pages(), failed);
            if this.pages_in_use() == 0 {
                break;
            }
            if round % RETRIES_PER_MESSAGE == RETRIES_PER_MESSAGE - 1 {
                dev_warn!(
                    this.dev,
                    "waiting for {} pages of device memory in use ({:?})\n",
                    this.pages_in_use(),
                    returned.result
                );
            }
            round += 1;
            fsleep(RETRY_DELAY);
        }

        // SAFETY: By the type invariants the pagemap is mapped. Callbacks may run until this
        // returns, and none after.
        unsafe { bindings::memunmap_pages(this.pgmap.get()) };
    }
}
