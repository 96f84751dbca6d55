// SPDX-License-Identifier: GPL-2.0

//! Looking at the CPU page tables of a range of addresses on behalf of a device.
//!
//! [`fault`] does what a CPU does when it touches every page of a range, and shows which pages are
//! there. Nothing keeps them there afterwards, so what was seen must be checked and used under the
//! update lock of an interval notifier: the pages are only shown to a function that is called with
//! that lock held.
//!
//! # Writing
//!
//! Asking for write access runs the whole of a CPU write fault: permission, copy-on-write, and for
//! files block allocation, quota and the start of dirty accounting. This is the only way for a
//! device to be allowed to write to a page of a file.
//!
//! A page in the device memory of `owner` is reported as it is, so when it may only be read,
//! [`Page::is_writable`] is false in spite of [`Access::Write`]. Ask again without an owner: the page
//! comes back to system memory and becomes writable there.
//!
//! C header: [`include/linux/hmm.h`](srctree/include/linux/hmm.h)

use crate::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    dma::{
        DataDirection,
        PageMapping, //
    },
    error::to_result,
    mm::{
        folio::Folio,
        interval_notifier::{
            IntervalNotifier,
            Invalidate,
            Sequence,
            Watch, //
        },
        pagemap_owner::PagemapOwner,
        MmWithUser, //
    },
    num::casts,
    page::{
        PAGE_MASK,
        PAGE_SHIFT, //
    },
    prelude::*,
    time::Jiffies, //
};
use core::{
    iter::Enumerate,
    marker::PhantomData,
    ops::Range,
    slice, //
};

/// What the device is about to do with the pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing: report what is there, and cause no faults.
    None,
    /// Read them.
    Read,
    /// Write to them.
    Write,
}

impl Access {
    fn as_raw(self) -> c_ulong {
        match self {
            Self::None => 0,
            Self::Read => bindings::hmm_pfn_flags_HMM_PFN_REQ_FAULT,
            Self::Write => {
                bindings::hmm_pfn_flags_HMM_PFN_REQ_FAULT
                    | bindings::hmm_pfn_flags_HMM_PFN_REQ_WRITE
            }
        }
    }
}

/// What was found at one address; the memory [`fault`] writes to.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pfn(c_ulong);

impl Pfn {
    /// Nothing was found.
    pub const NONE: Self = Self(0);

    fn is_valid(self) -> bool {
        self.0 & bindings::hmm_pfn_flags_HMM_PFN_VALID != 0
    }

    fn is_writable(self) -> bool {
        self.0 & bindings::hmm_pfn_flags_HMM_PFN_WRITE != 0
    }

    fn frame(self) -> usize {
        self.0 & !bindings::hmm_pfn_flags_HMM_PFN_FLAGS
    }
}

/// How often [`fault`] looks again because a page was invalidated before the update lock was taken.
const ROUNDS: usize = 100;

/// What [`fault`] is to do.
pub struct Request<'a> {
    /// The address space, which must be that of the notifier.
    pub mm: &'a MmWithUser,
    /// Page aligned, and within what the notifier watches.
    pub addresses: Range<usize>,
    /// What is about to be done with the pages.
    pub access: Access,
    /// Pages in the device memory of this owner stay where they are; others come back to system
    /// memory.
    pub owner: Option<PagemapOwner>,
    /// How long to try without progress.
    pub timeout: Jiffies,
}

/// Makes the pages of a range accessible to a device, and shows them.
///
/// `pfns` must have as many elements as there are pages. When invalidations of these pages come in
/// between, it starts again, until nothing changed for once, and then returns what `with` returns.
/// That is called with the update lock held: with what the lock protects, and with the pages that are
/// present, which do not change while it runs.
///
/// Context: process context, sleeps. Takes the mmap lock for reading, so the caller must not hold
/// it, nor the update lock.
///
/// # Errors
///
/// - `EINVAL`: the request does not fit the notifier, or `pfns` does not fit the request.
/// - `EFAULT`, except with [`Access::None`]: nothing is mapped at some address, or the process may
///   not access it in any way, or the page cannot be had (for example because of an I/O error).
/// - `EPERM`: [`Access::Write`] to what the process may only read.
/// - `EBUSY`: the timeout, or the pages do not stop to change.
/// - `EINTR`: a fatal signal.
/// - `ENOMEM`: as said.
///
/// # Examples
///
/// Map one page on a device.
///
/// ```
/// use kernel::{
///     mm::{
///         hmm::{self, Access, Location, Pfn, Request},
///         interval_notifier::{IntervalNotifier, Invalidate},
///         pagemap_owner::PagemapOwner,
///         MmWithUser, //
///     },
///     page::PAGE_SIZE,
///     time::msecs_to_jiffies, //
/// };
///
/// fn map<T: Invalidate>(
///     notifier: &IntervalNotifier<T>,
///     mm: &MmWithUser,
///     address: usize,
///     owner: PagemapOwner,
/// ) -> Result {
///     let request = Request {
///         mm,
///         addresses: address..address + PAGE_SIZE,
///         access: Access::Read,
///         owner: Some(owner),
///         timeout: msecs_to_jiffies(1000),
///     };
///     hmm::fault(notifier, request, &mut [Pfn::NONE], |_table, pages| {
///         for page in pages {
///             match page.location() {
///                 Location::Device(_folio) => { /* Map VRAM. */ }
///                 Location::System(_page) => { /* Map system memory. */ }
///             }
///         }
///     })
/// }
/// ```
pub fn fault<T: Invalidate, R>(
    notifier: &IntervalNotifier<T>,
    request: Request<'_>,
    pfns: &mut [Pfn],
    with: impl FnOnce(&mut T, Pages<'_>) -> R,
) -> Result<R> {
    let Range { start, end } = request.addresses;
    if (start | end) & !PAGE_MASK != 0 || end.saturating_sub(start) >> PAGE_SHIFT != pfns.len() {
        return Err(EINVAL);
    }
    // SAFETY: The value stays on the stack, where nobody can forget it.
    let watch = unsafe { Watch::new(notifier, request.mm, start..end) };
    pin_init::stack_try_pin_init!(let watch =? watch);

    for _ in 0..ROUNDS {
        pfns.fill(Pfn::NONE);
        let mut range = bindings::hmm_range {
            notifier: watch.as_raw(),
            start,
            end,
            hmm_pfns: pfns.as_mut_ptr().cast(),
            default_flags: request.access.as_raw(),
            dev_private_owner: request
                .owner
                .map_or(core::ptr::null_mut(), PagemapOwner::as_raw),
            ..pin_init::zeroed()
        };
        // SAFETY: The notifier is inserted and watches the range, its address space has users, the
        // array has an element for each page, and `Pfn` is a transparent `unsigned long`.
        to_result(unsafe {
            bindings::hmm_range_fault_unlocked_timeout(&mut range, request.timeout.max(1))
        })?;
        if let Some(mut protected) = watch.lock(Sequence::from_raw(range.notifier_seq)) {
            // INVARIANT: `lock` has compared the sequence numbers, so the pages are those that are
            // mapped at these addresses, until the lock is released.
            let pages = Pages {
                first: start,
                pfns: pfns.iter().enumerate(),
            };
            return Ok(with(&mut protected, pages));
        }
    }
    Err(EBUSY)
}

/// The pages of a range that are present.
///
/// # Invariants
///
/// The valid elements of `pfns` describe the pages from the address `first` on, which are not freed
/// during `'a`, since that needs an invalidation first.
pub struct Pages<'a> {
    first: usize,
    pfns: Enumerate<slice::Iter<'a, Pfn>>,
}

impl<'a> Iterator for Pages<'a> {
    type Item = Page<'a>;

    fn next(&mut self) -> Option<Page<'a>> {
        let (index, pfn) = self.pfns.find(|(_, pfn)| pfn.is_valid())?;
        // INVARIANT: The entry is valid, so the page frame has a `struct page`. By the type
        // invariants the page is not freed during `'a`.
        Some(Page {
            address: self.first + (index << PAGE_SHIFT),
            writable: pfn.is_writable(),
            pfn: *pfn,
            _stable: PhantomData,
        })
    }
}

/// A page that is present.
///
/// # Invariants
///
/// `pfn` is the number of a page frame that has a `struct page`; the page is not freed during `'a`.
pub struct Page<'a> {
    address: usize,
    writable: bool,
    pfn: Pfn,
    _stable: PhantomData<&'a ()>,
}

/// Where a page is.
pub enum Location<'a> {
    /// In system memory.
    System(SystemPage<'a>),
    /// In the device memory of the owner that was given to [`fault`].
    Device(&'a Folio),
}

impl<'a> Page<'a> {
    /// Returns the address at which the page is mapped.
    #[inline]
    pub fn address(&self) -> usize {
        self.address
    }

    /// Returns whether the device may write to the page.
    #[inline]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Returns where the page is.
    pub fn location(&self) -> Location<'a> {
        // SAFETY: By the type invariants there is a `struct page` for the page frame.
        let page = unsafe { bindings::hmm_pfn_to_page(self.pfn.0) };
        // SAFETY: As above.
        let folio = unsafe { bindings::page_folio(page) };
        // SAFETY: By the type invariants the page, so its folio, is not freed during `'a`.
        let folio = unsafe { Folio::from_raw::<'a>(folio) };
        if folio.is_device_private() {
            Location::Device(folio)
        } else {
            // INVARIANT: The page is not device-private; the rest are the type invariants of `self`.
            Location::System(SystemPage {
                pfn: self.pfn.frame(),
                _stable: PhantomData,
            })
        }
    }
}

/// A page in system memory, which may be part of a larger folio.
///
/// # Invariants
///
/// `pfn` is the number of a page frame of system memory that is not freed during `'a`.
pub struct SystemPage<'a> {
    pfn: usize,
    _stable: PhantomData<&'a ()>,
}

impl SystemPage<'_> {
    /// Maps the page for DMA.
    ///
    /// The mapping may live longer than the page. The device must stop using it when the page is
    /// invalidated; the mapping itself may be dropped at any time after.
    ///
    /// # Errors
    ///
    /// `EIO`: the page cannot be mapped, or not be shared: the device needs a copy of it (a bounce
    /// buffer), or is not coherent with the caches of the CPU.
    pub fn dma_map<'d>(
        &self,
        dev: &'d Device<Bound>,
        direction: DataDirection,
    ) -> Result<PageMapping<'d>> {
        let attrs = casts::u32_as_usize(bindings::DMA_ATTR_REQUIRE_COHERENT);
        // SAFETY: By the type invariants the page is one of system memory.
        unsafe { PageMapping::of_pfn(dev, self.pfn, direction, attrs) }
    }

    /// Marks the page as written to.
    ///
    /// A device that is given the right to write leaves no trace of it in the page tables of the
    /// CPU, so this must be done before. Once is enough: whoever cleans a page write-protects or
    /// unmaps it first, which takes the right away from the device too.
    pub fn mark_dirty(&self) {
        // SAFETY: By the type invariants there is a `struct page` for the page frame.
        let page = unsafe { bindings::pfn_to_page(self.pfn) };
        // SAFETY: As above.
        let folio = unsafe { bindings::page_folio(page) };
        // SAFETY: By the type invariants the page is not freed. It is in the page table of the
        // process and stays there, so a file it belongs to keeps it.
        unsafe { bindings::folio_mark_dirty(folio) };
    }
}

#[cfg(CONFIG_RUST_DEVICE_MEMORY_KUNIT_TEST)]
#[kunit_tests(rust_hmm)]
mod tests {
    use super::*;

    #[test]
    fn nothing_was_found_at_an_empty_entry() {
        assert!(!Pfn::NONE.is_valid());
        assert!(!Pfn::NONE.is_writable());
    }

    #[test]
    fn entry_is_taken_apart() {
        let readable = Pfn(0x1234 | bindings::hmm_pfn_flags_HMM_PFN_VALID);
        assert!(readable.is_valid());
        assert!(!readable.is_writable());
        assert_eq!(readable.frame(), 0x1234);

        // The order of the mapping is above the page frame number and no part of it.
        let huge = Pfn(readable.0
            | bindings::hmm_pfn_flags_HMM_PFN_WRITE
            | 9 << bindings::hmm_pfn_flags_HMM_PFN_ORDER_SHIFT);
        assert!(huge.is_writable());
        assert_eq!(huge.frame(), 0x1234);
    }

    #[test]
    fn write_access_includes_read_access() {
        assert_eq!(Access::None.as_raw(), 0);
        assert_eq!(
            Access::Write.as_raw() & Access::Read.as_raw(),
            Access::Read.as_raw()
        );
        assert!(Access::Write.as_raw() != Access::Read.as_raw());
    }
}
