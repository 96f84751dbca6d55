// SPDX-License-Identifier: GPL-2.0

//! Walking the virtual memory areas of a range of addresses.
//!
//! A driver that is given a range by a program must look at all of it before it acts: parts may be
//! unmapped, or be of a kind that it cannot handle. [`MmapReadGuard::spans`] cuts a range into
//! [`Span`]s, each of which is either mapped by one VMA or not mapped at all.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use crate::{
    bindings,
    fs::File,
    mm::{
        virt::{
            flags,
            VmaRef, //
        },
        MmapReadGuard, //
    },
    page::PAGE_SIZE,
    sync::aref::ARef, //
};
use core::ops::Range;

/// A part of a range of addresses that is all alike.
pub enum Span<'a> {
    /// The addresses belong to one VMA.
    Mapped {
        /// The area.
        vma: &'a VmaRef,
        /// The addresses of the range that lie in the area.
        addresses: Range<usize>,
    },
    /// No VMA contains the addresses.
    Unmapped {
        /// The addresses.
        addresses: Range<usize>,
    },
}

/// The iterator returned by [`MmapReadGuard::spans`].
pub struct Spans<'a> {
    mmap: &'a MmapReadGuard<'a>,
    rest: Range<usize>,
}

impl MmapReadGuard<'_> {
    /// Returns the first VMA that ends above `address`.
    ///
    /// Unlike [`vma_lookup`], it need not contain the address.
    ///
    /// [`vma_lookup`]: MmapReadGuard::vma_lookup
    #[inline]
    pub fn find_vma(&self, address: usize) -> Option<&VmaRef> {
        // SAFETY: By the type invariants we hold the mmap read lock, as `find_vma` requires. Any
        // value is okay for `address`.
        let vma = unsafe { bindings::find_vma(self.mm.as_raw(), address) };
        if vma.is_null() {
            return None;
        }
        // SAFETY: `vma` is not null, so it is a valid area, which stays so while the mmap lock is
        // held. The returned reference borrows the guard.
        Some(unsafe { VmaRef::from_raw(vma) })
    }

    /// Cuts a range of addresses into mapped and unmapped parts, in ascending order.
    ///
    /// The parts cover the whole range. A range that is empty or ends before it starts has none.
    ///
    /// # Examples
    ///
    /// Refuse a range with a hole, as `madvise()` does.
    ///
    /// ```
    /// use core::ops::Range;
    /// use kernel::mm::{vma_walk::Span, MmapReadGuard};
    ///
    /// fn check(mmap: &MmapReadGuard<'_>, range: Range<usize>) -> Result {
    ///     for span in mmap.spans(range) {
    ///         match span {
    ///             Span::Unmapped { .. } => return Err(ENOMEM),
    ///             Span::Mapped { vma, .. } if !vma.is_migratable() => return Err(EOPNOTSUPP),
    ///             Span::Mapped { .. } => (),
    ///         }
    ///     }
    ///     Ok(())
    /// }
    /// ```
    #[inline]
    pub fn spans(&self, addresses: Range<usize>) -> Spans<'_> {
        Spans {
            mmap: self,
            rest: addresses,
        }
    }
}

impl<'a> Iterator for Spans<'a> {
    type Item = Span<'a>;

    fn next(&mut self) -> Option<Span<'a>> {
        let Range { start, end } = self.rest.clone();
        if start >= end {
            return None;
        }

        let vma = match self.mmap.find_vma(start) {
            Some(vma) if vma.start() < end => vma,
            _ => {
                self.rest.start = end;
                return Some(Span::Unmapped {
                    addresses: start..end,
                });
            }
        };
        if vma.start() > start {
            self.rest.start = vma.start();
            return Some(Span::Unmapped {
                addresses: start..vma.start(),
            });
        }

        let last = vma.end().min(end);
        self.rest.start = last;
        Some(Span::Mapped {
            vma,
            addresses: start..last,
        })
    }
}

impl VmaRef {
    /// Returns whether pages of this area can move to device memory at all.
    ///
    /// They cannot for hugetlbfs, DAX, and what drivers or the kernel map by themselves
    /// (`VM_SPECIAL`). [`Migration::collect`] refuses such areas.
    ///
    /// [`Migration::collect`]: super::migrate_vma::Migration::collect
    pub fn is_migratable(&self) -> bool {
        const SPECIAL: super::virt::vm_flags_t =
            flags::IO | flags::PFNMAP | flags::MIXEDMAP | flags::DONTEXPAND;

        // SAFETY: By the type invariants the area is valid and its lock is held for reading, so
        // its file cannot change.
        let dax = unsafe { bindings::vma_is_dax(self.as_ptr()) };

        !dax && self.flags() & (SPECIAL | flags::HUGETLB) == 0
    }

    /// Returns the file that this area maps, and which of its pages `addresses` of the area are.
    ///
    /// Returns `None` for memory without a file, and for addresses outside of the area.
    pub fn file_pages(&self, addresses: &Range<usize>) -> Option<(ARef<File>, Range<usize>)> {
        if addresses.start < self.start() || addresses.end > self.end() {
            return None;
        }
        // SAFETY: By the type invariants the area is valid and its lock is held for reading, so
        // its file and offset cannot change.
        let (file, offset) = unsafe { ((*self.as_ptr()).vm_file, (*self.as_ptr()).vm_pgoff) };
        if file.is_null() {
            return None;
        }
        // SAFETY: The area has a reference on its file while its lock is held. So `fdget_pos()`,
        // which comes to the file by another one, finds more than one and takes `f_pos_lock`.
        let file: &File = unsafe { File::from_raw_file(file) };
        let first = offset + (addresses.start - self.start()) / PAGE_SIZE;
        Some((file.into(), first..first + addresses.len() / PAGE_SIZE))
    }

    /// Returns whether this area is anonymous memory: without a file behind it.
    #[inline]
    pub fn is_anonymous(&self) -> bool {
        // SAFETY: By the type invariants the area is valid and its lock is held for reading.
        unsafe { bindings::vma_is_anonymous(self.as_ptr()) }
    }
}
