// SPDX-License-Identifier: GPL-2.0

//! Streaming DMA mappings: memory that exists already, lent to a device for a while.
//!
//! C header: [`include/linux/dma-mapping.h`](srctree/include/linux/dma-mapping.h)

use super::{
    DataDirection,
    DmaAddress, //
};
use crate::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    io::PhysAddr,
    mm::folio::Folio,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*, //
};

/// A page of memory that is mapped for DMA; unmapped when the object is dropped.
///
/// The mapping says nothing about the lifetime of the page. Giving the address to a device means
/// to make sure that the device uses it only while the page is what the driver takes it for: while
/// a reference is held, or until an interval notifier says otherwise.
///
/// For devices that are not cache coherent the CPU sees what the device wrote only after the
/// mapping has been dropped.
///
/// # Examples
///
/// ```
/// # use kernel::device::{Bound, Device};
/// use kernel::{
///     dma::{DataDirection, PageMapping},
///     mm::folio::Folio,
/// };
///
/// fn read_by_device(dev: &Device<Bound>, folio: &Folio) -> Result {
///     let mapping = PageMapping::of_folio(dev, folio, DataDirection::ToDevice)?;
///     // Tell the device to read at `mapping.dma_address()`, and wait until it has done so.
///     # let _ = mapping.dma_address();
///     Ok(())
/// }
/// ```
///
/// # Invariants
///
/// `address` is that of a mapping of one page for `dev`, `direction` and `attrs`, which this object
/// owns.
pub struct PageMapping<'a> {
    dev: &'a Device<Bound>,
    address: DmaAddress,
    direction: DataDirection,
    /// `DMA_ATTR_*`.
    attrs: usize,
}

impl<'a> PageMapping<'a> {
    /// Maps the first page of a folio in system memory.
    ///
    /// Context: any. Does not sleep.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: the folio is in device memory.
    /// - `EIO`: the page cannot be mapped, for example because the device cannot reach it or the
    ///   IOMMU has no addresses left.
    pub fn of_folio(
        dev: &'a Device<Bound>,
        folio: &Folio,
        direction: DataDirection,
    ) -> Result<Self> {
        if folio.is_device_private() {
            return Err(EINVAL);
        }
        // SAFETY: The folio is in system memory.
        unsafe { Self::of_pfn(dev, folio.pfn(), direction, 0) }
    }

    /// Maps the page with a given number, with `DMA_ATTR_*` in `attrs`.
    ///
    /// # Errors
    ///
    /// `EIO`: the page cannot be mapped in this way.
    ///
    /// # Safety
    ///
    /// `pfn` must be the number of a page in system memory.
    pub(crate) unsafe fn of_pfn(
        dev: &'a Device<Bound>,
        pfn: usize,
        direction: DataDirection,
        attrs: usize,
    ) -> Result<Self> {
        // CAST: A physical address has at least as many bits as a page frame number.
        let address = (pfn as PhysAddr) << PAGE_SHIFT;
        // SAFETY: `dev` is bound, and `address` is that of a page of system memory.
        let address = unsafe {
            bindings::dma_map_phys(dev.as_raw(), address, PAGE_SIZE, direction.into(), attrs)
        };
        // SAFETY: `dev` is valid, and `address` was returned for it.
        if unsafe { bindings::dma_mapping_error(dev.as_raw(), address) } != 0 {
            return Err(EIO);
        }
        // INVARIANT: The page was just mapped.
        Ok(Self {
            dev,
            address,
            direction,
            attrs,
        })
    }

    /// Returns the address of the page for the device.
    #[inline]
    pub fn dma_address(&self) -> DmaAddress {
        self.address
    }

    /// Returns what the page was mapped for.
    #[inline]
    pub fn direction(&self) -> DataDirection {
        self.direction
    }
}

impl Drop for PageMapping<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants this is our mapping, with these parameters, and `dev` is
        // bound during the lifetime of `self`.
        unsafe {
            bindings::dma_unmap_phys(
                self.dev.as_raw(),
                self.address,
                PAGE_SIZE,
                self.direction.into(),
                self.attrs,
            )
        };
    }
}
