// SPDX-License-Identifier: GPL-2.0

//! Moving the pages of a range of addresses to device memory.
//!
//! A migration is a protocol of three steps, and [`Migration`] is the protocol as a type:
//!
//! ```text
//!   Migration::collect()            pages are locked and unmapped: content cannot change
//!        |
//!   Migration<Collected>            the caller claims destinations, copies the content, and
//!        |                          takes back the destination of a page whose copy failed
//!        | migrate()
//!        v
//!   Migration<Moved>                each destination has taken the place of its source,
//!        |                          except where that turned out to be impossible
//!        | drop
//!        v
//!   page tables restored, everything unlocked
//! ```
//!
//! Dropping a migration in any state finishes it: page tables point to the destination of a page
//! that has moved and to the source of any other, all locks are released, and the references to
//! folios that are of no more use are put. So an early return with `?` is right everywhere.
//!
//! From the first step to the last the task is in a NOFS scope: an allocation may not enter a file
//! system, because a file system may be waiting for a page that this migration holds locked.
//!
//! Moving back to system memory needs no code from a driver other than
//! [`DevicePrivateOps::copy_to_ram`]; see [`DevicePagemap`].
//!
//! C header: [`include/linux/migrate.h`](srctree/include/linux/migrate.h)
//!
//! [`DevicePagemap`]: super::device_pagemap::DevicePagemap
//! [`DevicePrivateOps::copy_to_ram`]: super::device_pagemap::DevicePrivateOps::copy_to_ram

use crate::{
    alloc::{
        AllocError,
        Flags, //
    },
    bindings,
    mm::{
        folio::Folio,
        new_folio::NewFolio,
        pagemap_owner::PagemapOwner,
        MmapReadGuard, //
    },
    page::{
        PAGE_MASK,
        PAGE_SHIFT, //
    },
    prelude::*, //
};
use core::{
    marker::PhantomData,
    ops::Range, //
};

mod inner;
mod mpfn;

use inner::Inner;
pub(super) use mpfn::MigratePfn;

/// The memory a migration needs to remember its pages.
///
/// It is allocated before a migration starts, since a migration should not allocate, and can be
/// used for one migration after the other.
pub struct MigrationBuffer {
    src: KVec<MigratePfn>,
    dst: KVec<MigratePfn>,
}

impl MigrationBuffer {
    /// Allocates a buffer for migrations of up to `pages` pages.
    pub fn new(pages: usize, flags: Flags) -> Result<Self, AllocError> {
        Ok(Self {
            src: KVec::from_elem(MigratePfn::NONE, pages, flags)?,
            dst: KVec::from_elem(MigratePfn::NONE, pages, flags)?,
        })
    }

    /// Returns how many pages one migration with this buffer can have.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.src.len()
    }
}

/// State of a [`Migration`]: sources are locked and unmapped, destinations may be assigned.
pub enum Collected {}

/// State of a [`Migration`]: destinations have taken the place of their sources.
pub enum Moved {}

/// What is at an address that can migrate.
pub enum Source<'a> {
    /// Nothing was ever stored there (anonymous memory only): the destination must be filled with
    /// zeroes.
    Zero,
    /// A locked, unmapped folio of one page. Its content cannot change and must be copied.
    Folio(&'a Folio),
}

/// A migration in progress.
///
/// It borrows the guard of the mmap lock, which therefore is held until the migration is over. See
/// the [module documentation](self) for the protocol.
///
/// # Examples
///
/// Move what can be moved of one range, page by page of a device's memory.
///
/// ```
/// # use core::ops::Range;
/// # use kernel::mm::{
/// #     device_pagemap::{DevicePagemap, DevicePrivateOps},
/// #     folio::Folio,
/// #     migrate_vma::{Migration, MigrationBuffer, Source},
/// #     new_folio::NewFolio,
/// #     MmWithUser,
/// # };
/// # fn free_index() -> Result<usize> { Err(ENOSPC) }
/// # fn copy(_src: &Folio, _dst: &Folio) -> Result { Ok(()) }
/// # fn zero(_dst: &Folio) -> Result { Ok(()) }
/// fn to_device<T: DevicePrivateOps>(
///     pagemap: &DevicePagemap<T>,
///     mm: &MmWithUser,
///     range: Range<usize>,
///     buffer: &mut MigrationBuffer,
/// ) -> Result<usize> {
///     let mmap = mm.mmap_read_lock();
///     let mut migration = Migration::collect(&mmap, range, pagemap.owner(), buffer)?;
///
///     for mut entry in migration.entries() {
///         // An entry without a destination stays where it is.
///         let Ok(dst) = free_index().and_then(|index| pagemap.claim(index)) else {
///             break;
///         };
///         let copied = match entry.source() {
///             Source::Folio(src) => copy(src, &dst),
///             Source::Zero => zero(&dst),
///         };
///         if copied.is_ok() {
///             entry.set_destination(dst);
///         }
///     }
///
///     Ok(migration.migrate().moved())
/// }
/// ```
pub struct Migration<'a, S> {
    inner: Inner<'a>,
    _state: PhantomData<S>,
}

impl<'a> Migration<'a, Collected> {
    /// Starts a migration of system memory to device memory.
    ///
    /// `addresses` must be page aligned, lie in one VMA, and have no more pages than `buffer` has
    /// room for. Pages in it that cannot migrate now (not present, locked by others, pinned, of a
    /// file system that does not take part, in device memory already) are left out; the result may
    /// be empty.
    ///
    /// Interval notifiers are told with [`Event::Migrate`] and `owner`.
    ///
    /// Context: process context, may sleep. The caller must hold no lock that its interval
    /// notifiers take.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: the addresses are not as required above, or the VMA is not
    ///   [migratable](super::virt::VmaRef::is_migratable).
    ///
    /// [`Event::Migrate`]: super::interval_notifier::Event::Migrate
    pub fn collect(
        mmap: &'a MmapReadGuard<'_>,
        addresses: Range<usize>,
        owner: PagemapOwner,
        buffer: &'a mut MigrationBuffer,
    ) -> Result<Self> {
        let Range { start, end } = addresses;
        if start >= end || (start | end) & !PAGE_MASK != 0 {
            return Err(EINVAL);
        }
        let pages = (end - start) >> PAGE_SHIFT;
        let src = buffer.src.get_mut(..pages).ok_or(EINVAL)?;
        let dst = buffer.dst.get_mut(..pages).ok_or(EINVAL)?;
        let vma = mmap.vma_lookup(start).ok_or(EINVAL)?;

        Ok(Self::new(Inner::collect_vma(
            vma, addresses, owner, src, dst,
        )?))
    }

    /// Starts a migration of the anonymous page at which a CPU fault came to device memory.
    ///
    /// # Safety
    ///
    /// `vmf` must be the argument of a running `dev_pagemap_ops::migrate_to_ram` callback, the
    /// pagemap of which has the owner `owner`, and stay so for `'a`.
    pub(super) unsafe fn collect_fault(
        vmf: *const bindings::vm_fault,
        owner: PagemapOwner,
        arrays: &'a mut [[MigratePfn; 1]; 2],
    ) -> Result<Self> {
        let [src, dst] = arrays;
        // SAFETY: The requirements of this function are those of `collect_fault`.
        Ok(Self::new(unsafe {
            Inner::collect_fault(vmf, owner, src, dst)
        }?))
    }

    /// Starts a migration of all anonymous folios in a range of device memory, wherever they are
    /// mapped.
    ///
    /// # Safety
    ///
    /// `first_pfn` and the page frames after it, as many as `pages`, must belong to one
    /// live device-private pagemap, and stay so for `'a`.
    pub(super) unsafe fn collect_pfns<const N: usize>(
        first_pfn: usize,
        pages: usize,
        arrays: &'a mut [[MigratePfn; N]; 2],
    ) -> Self {
        let [src, dst] = arrays;
        let pages = pages.min(N);
        // SAFETY: The requirements of this function are those of `collect_pfns`.
        Self::new(unsafe { Inner::collect_pfns(first_pfn, &mut src[..pages], &mut dst[..pages]) })
    }

    /// Returns what can migrate, in ascending order of addresses.
    pub fn entries(&mut self) -> impl Iterator<Item = Entry<'_>> + '_ {
        let (src, dst) = self.inner.arrays();

        src.iter()
            .zip(dst)
            .enumerate()
            .filter(|(_, (src, _))| src.is_migrating())
            .map(|(index, (src, dst))| Entry {
                index,
                src: *src,
                dst,
            })
    }

    /// Puts every destination in the place of its source.
    ///
    /// The content of all destinations must be complete, since pages become visible from here on.
    pub fn migrate(mut self) -> Migration<'a, Moved> {
        self.inner.migrate();
        Migration {
            inner: self.inner,
            _state: PhantomData,
        }
    }
}

impl<'a, S> Migration<'a, S> {
    fn new(inner: Inner<'a>) -> Self {
        Self {
            inner,
            _state: PhantomData,
        }
    }
}

impl Migration<'_, Moved> {
    /// Finishes the migration, and returns how many pages have moved.
    pub fn moved(mut self) -> usize {
        self.indices().count()
    }

    /// Returns which pages have moved, as indices from the first address of the migration.
    pub fn indices(&mut self) -> impl Iterator<Item = usize> + '_ {
        let (src, dst) = self.inner.arrays();

        src.iter()
            .zip(dst)
            .enumerate()
            .filter(|(_, (src, dst))| src.is_migrating() && dst.is_valid())
            .map(|(index, _)| index)
    }
}

/// One page of a [`Migration`] that can move.
///
/// # Invariants
///
/// - `src` is marked as migrating; if it is valid, it names a folio that the migration has locked
///   and unmapped, and holds a reference to.
/// - `dst`, if valid, names a folio that came from `NewFolio::into_raw`.
pub struct Entry<'a> {
    index: usize,
    src: MigratePfn,
    dst: &'a mut MigratePfn,
}

impl Entry<'_> {
    /// Returns the number of the page, counted from the first address of the migration.
    #[inline]
    pub fn index(&self) -> usize {
        self.index
    }

    /// Returns what is to be moved.
    pub fn source(&self) -> Source<'_> {
        match self.src.folio() {
            // SAFETY: By the type invariants the migration holds a reference to the folio, and
            // `self` borrows the migration.
            Some(folio) => Source::Folio(unsafe { Folio::from_raw(folio.as_ptr()) }),
            None => Source::Zero,
        }
    }

    /// Returns whether the source is a folio.
    #[inline]
    pub(super) fn has_folio(&self) -> bool {
        self.src.is_valid()
    }

    /// Returns whether a CPU page table allowed writing when the migration began.
    ///
    /// For a page of a file this is the only proof that a device may write to it without asking.
    #[inline]
    pub fn is_writable(&self) -> bool {
        self.src.is_writable()
    }

    /// Says where the page is to go.
    ///
    /// A destination assigned before is given up.
    pub fn set_destination(&mut self, folio: NewFolio) {
        self.take_destination();
        // INVARIANT: The page frame is that of a folio from `NewFolio::into_raw`.
        *self.dst = MigratePfn::for_folio(folio);
    }

    /// Returns where the page is to go, if it was assigned a destination.
    pub fn destination(&self) -> Option<&Folio> {
        let folio = self.dst.folio()?;
        // SAFETY: By the type invariants the migration owns the folio, and `self` borrows the
        // migration.
        Some(unsafe { Folio::from_raw(folio.as_ptr()) })
    }

    /// Gives up what is at the source, because it cannot be copied and never will be. Programs that
    /// access it get a signal.
    ///
    /// The source must be an anonymous folio in device memory.
    pub(super) fn give_up(&mut self) {
        self.take_destination();
        if let Some(folio) = self.src.folio() {
            // SAFETY: By the type invariants the folio is locked and unmapped, and it does not move.
            unsafe { bindings::migrate_device_lost(folio.as_ptr()) };
        }
    }

    /// Takes the destination back, for example because the copy failed.
    ///
    /// The page stays where it is.
    pub fn take_destination(&mut self) -> Option<NewFolio> {
        // SAFETY: By the type invariants the page frame, if valid, is that of a folio from
        // `NewFolio::into_raw`, and nobody else takes it, since it is removed from the entry.
        unsafe { core::mem::replace(self.dst, MigratePfn::NONE).into_new_folio() }
    }
}
