// SPDX-License-Identifier: GPL-2.0

//! Keeping the page table of a device in step with those of a process.
//!
//! A device that uses the addresses of a process has its own page table, and every change to the
//! page tables of the CPU must be followed there. Two things happen at any time:
//!
//! - memory management *invalidates* a part of the address space: it calls
//!   [`Invalidate::invalidate`], and when that returns, the device must no longer access the pages
//!   that were there;
//! - the driver *maps*: it looks at the CPU page tables, which needs time and sleeps, and copies
//!   what it saw to the device. If an invalidation came in between, what it saw is stale, and it
//!   has to look again.
//!
//! Both write to the device page table under one lock, the *update lock*, and a sequence number
//! tells stale from fresh:
//!
//! ```text
//!     driver                              memory management
//!     seq = read_begin()
//!     look at the CPU page tables         lock; seq changes; unmap from the device; unlock
//!     lock(seq)  ->  fails: look again
//! ```
//!
//! [`IntervalNotifier`] owns the update lock and what it protects, and watches all that the device
//! may ever have mapped. Every look has a notifier and a sequence number of its own, a [`Watch`], for
//! just the addresses that it looks at: a process that changes its mappings elsewhere all the time,
//! as any that allocates does, would otherwise make every look stale. [`hmm::fault`] puts the two
//! together.
//!
//! Why nothing stale gets mapped: an invalidation of addresses that are looked at calls back both
//! notifiers, before it changes the CPU page tables, in no known order. Both callbacks take the
//! update lock and unmap from the device. If the driver takes the lock before that of the [`Watch`]
//! has changed the number, the callback comes after and unmaps what the driver mapped; if after, the
//! driver finds the number changed. An invalidation that had begun when the [`Watch`] was made is
//! waited for by `read_begin()`.
//!
//! C header: [`include/linux/mmu_notifier.h`](srctree/include/linux/mmu_notifier.h)
//!
//! [`hmm::fault`]: super::hmm::fault

use crate::{
    bindings,
    container_of,
    error::to_result,
    mm::{
        pagemap_owner::PagemapOwner,
        Mm,
        MmWithUser, //
    },
    prelude::*,
    sync::{
        Mutex,
        MutexGuard, //
    },
    types::Opaque, //
};
use core::{
    marker::PhantomPinned,
    ops::Range, //
};

/// The page table of a device, or what stands for it.
///
/// It is accessed with the update lock of an [`IntervalNotifier`] held. That lock is taken in the
/// middle of memory management: under locks of file mappings and folios, and from reclaim. So nobody
/// may, while holding it, allocate in a way that reclaims memory, take the mmap lock or a folio lock,
/// or wait for somebody who does.
pub trait Invalidate: Send + Unpin {
    /// Makes the device stop using the pages in a range of addresses.
    ///
    /// When this returns, the device must neither read nor write them by an earlier translation,
    /// including one in a TLB.
    ///
    /// Context: process context, may sleep; the update lock is held.
    fn invalidate(&mut self, invalidation: &Invalidation<'_>);
}

/// Why an address range is invalidated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The range is unmapped or moved elsewhere.
    Unmap,
    /// Page table entries are cleared, for one of many reasons.
    Clear,
    /// The protection of whole VMAs changes.
    ProtectionVma,
    /// The protection of pages changes.
    ProtectionPage,
    /// Pages are write-protected for soft-dirty accounting.
    SoftDirty,
    /// The address space goes away.
    Release,
    /// Pages are migrated; see [`Invalidation::is_by`].
    Migrate,
    /// Pages become exclusive to a device; see [`Invalidation::is_by`].
    Exclusive,
    /// A reason that this list does not have. Treat like [`Event::Clear`].
    Other,
}

impl From<bindings::mmu_notifier_event> for Event {
    fn from(event: bindings::mmu_notifier_event) -> Self {
        match event {
            bindings::mmu_notifier_event_MMU_NOTIFY_UNMAP => Self::Unmap,
            bindings::mmu_notifier_event_MMU_NOTIFY_CLEAR => Self::Clear,
            bindings::mmu_notifier_event_MMU_NOTIFY_PROTECTION_VMA => Self::ProtectionVma,
            bindings::mmu_notifier_event_MMU_NOTIFY_PROTECTION_PAGE => Self::ProtectionPage,
            bindings::mmu_notifier_event_MMU_NOTIFY_SOFT_DIRTY => Self::SoftDirty,
            bindings::mmu_notifier_event_MMU_NOTIFY_RELEASE => Self::Release,
            bindings::mmu_notifier_event_MMU_NOTIFY_MIGRATE => Self::Migrate,
            bindings::mmu_notifier_event_MMU_NOTIFY_EXCLUSIVE => Self::Exclusive,
            _ => Self::Other,
        }
    }
}

/// What is invalidated.
pub struct Invalidation<'a>(&'a bindings::mmu_notifier_range);

impl Invalidation<'_> {
    /// Returns the addresses. They may reach beyond those of the notifier on both sides.
    #[inline]
    pub fn addresses(&self) -> Range<usize> {
        self.0.start..self.0.end
    }

    /// Returns why.
    #[inline]
    pub fn event(&self) -> Event {
        self.0.event.into()
    }

    /// Returns whether a migration on behalf of `owner` is the cause.
    ///
    /// Pages of files also become stale for other reasons while such a migration runs, so a driver
    /// that has them mapped must not take this for a reason to do nothing.
    pub fn is_by(&self, owner: PagemapOwner) -> bool {
        matches!(self.event(), Event::Migrate | Event::Exclusive) && self.0.owner == owner.as_raw()
    }
}

/// A sequence number: stands for a moment at which the CPU page tables were looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence(c_ulong);

impl Sequence {
    /// Wraps a number that C code returned.
    #[inline]
    pub(super) fn from_raw(seq: c_ulong) -> Self {
        Self(seq)
    }
}

/// Watches a range of addresses of a process.
///
/// # Dropping
///
/// The destructor may sleep: it waits for running calls of [`Invalidate::invalidate`], so it must
/// not be run by that function, or while a lock is held that that function takes.
///
/// # Examples
///
/// ```
/// use kernel::{
///     mm::{
///         interval_notifier::{IntervalNotifier, Invalidate, Invalidation},
///         MmWithUser, //
///     },
///     new_mutex, //
/// };
///
/// /// The page table of a device.
/// struct PageTable {/* ... */}
///
/// impl Invalidate for PageTable {
///     fn invalidate(&mut self, invalidation: &Invalidation<'_>) {
///         // Clear the entries of `invalidation.addresses()`, then flush the TLB.
///     }
/// }
///
/// fn watch(mm: &MmWithUser) -> Result<Pin<KBox<IntervalNotifier<PageTable>>>> {
///     // SAFETY: The box is dropped, never forgotten.
///     let init = unsafe { IntervalNotifier::new(mm, 0..1 << 47, new_mutex!(PageTable {})) };
///     KBox::pin_init(init, GFP_KERNEL)
/// }
/// ```
///
/// # Invariants
///
/// `notifier` is inserted into the address space it points to.
#[pin_data(PinnedDrop)]
pub struct IntervalNotifier<T: Invalidate> {
    #[pin]
    protected: Mutex<T>,
    #[pin]
    notifier: Opaque<bindings::mmu_interval_notifier>,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: A notifier may be used and removed by any thread, and `T` is `Send`.
unsafe impl<T: Invalidate> Send for IntervalNotifier<T> {}
// SAFETY: All methods can be called in parallel, and a `Mutex<T>` is `Sync` if `T` is `Send`.
unsafe impl<T: Invalidate> Sync for IntervalNotifier<T> {}

impl<T: Invalidate> IntervalNotifier<T> {
    /// The operations C code calls.
    const OPS: bindings::mmu_interval_notifier_ops = bindings::mmu_interval_notifier_ops {
        invalidate: Some(Self::invalidate_callback),
        ..pin_init::zeroed()
    };

    /// Starts to watch a range of addresses.
    ///
    /// From now on, until it is dropped, the object holds a reference to the `mm_struct`, but does
    /// not keep the address space alive: when the process exits, everything is invalidated, with
    /// [`Event::Release`].
    ///
    /// Context: process context, takes the mmap lock for writing.
    ///
    /// # Errors
    ///
    /// - `EOVERFLOW`: the range is empty.
    /// - `ENOMEM`, `EINTR`: as said.
    ///
    /// # Safety
    ///
    /// Callers must not `mem::forget()` the returned [`IntervalNotifier`] or otherwise prevent its
    /// [`Drop`] implementation from running, since `T` may contain borrowed references.
    pub unsafe fn new<'a, E>(
        mm: &'a MmWithUser,
        addresses: Range<usize>,
        protected: impl PinInit<Mutex<T>, E> + 'a,
    ) -> impl PinInit<Self, Error> + 'a
    where
        T: 'a,
        E: 'a,
        Error: From<E>,
    {
        // INVARIANT: On success, the notifier is inserted.
        try_pin_init!(Self {
            protected <- protected,
            notifier <- Opaque::try_ffi_init(move |slot| {
                // SAFETY: `mm` has users, `slot` is pinned, and is removed before its memory is used
                // otherwise. The callback can be called already, since `protected` is initialised.
                to_result(unsafe {
                    bindings::mmu_interval_notifier_insert(
                        slot,
                        mm.as_raw(),
                        addresses.start,
                        addresses.end.saturating_sub(addresses.start),
                        &Self::OPS,
                    )
                })
            }),
            _pin: PhantomPinned,
        }? Error)
    }

    /// Returns the update lock, for changes that do not depend on what was seen elsewhere.
    #[inline]
    pub fn update_lock(&self) -> &Mutex<T> {
        &self.protected
    }

    /// Returns the address space.
    #[inline]
    pub fn mm(&self) -> &Mm {
        // SAFETY: By the type invariants the notifier is inserted; it has a reference to `mm`.
        unsafe { Mm::from_raw((*self.notifier.get()).mm) }
    }

    /// Returns whether all of a range of addresses is watched. An empty range is not.
    fn watches(&self, addresses: Range<usize>) -> bool {
        // SAFETY: By the type invariants the notifier is inserted. The bounds never change.
        let tree = unsafe { &raw const (*self.notifier.get()).interval_tree };
        // SAFETY: As above.
        let (start, last) = unsafe { ((*tree).start, (*tree).last) };
        addresses.start < addresses.end && start <= addresses.start && addresses.end - 1 <= last
    }

    /// # Safety
    ///
    /// May only be called as `mmu_interval_notifier_ops::invalidate` of a notifier with
    /// [`Self::OPS`].
    unsafe extern "C" fn invalidate_callback(
        notifier: *mut bindings::mmu_interval_notifier,
        range: *const bindings::mmu_notifier_range,
        seq: c_ulong,
    ) -> bool {
        // SAFETY: A notifier with these operations is part of a `Self`, which is not freed before
        // the notifier is removed. That waits for this callback.
        let this = unsafe { &*container_of!(Opaque::cast_from(notifier), Self, notifier) };
        // SAFETY: The arguments are those of the callback, and this is the lock for `notifier`.
        unsafe { invalidate(&this.protected, notifier, range, seq) }
    }
}

#[pinned_drop]
impl<T: Invalidate> PinnedDrop for IntervalNotifier<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariants the notifier is inserted.
        unsafe { bindings::mmu_interval_notifier_remove(self.notifier.get()) };
    }
}

/// Watches addresses for as long as their CPU page tables are looked at and copied to the device.
///
/// Its destructor sleeps, as that of [`IntervalNotifier`] does.
///
/// # Invariants
///
/// - `notifier` is inserted into the address space of `whole`.
/// - Its sequence number is written with the update lock of `whole` held only.
#[pin_data(PinnedDrop)]
pub(super) struct Watch<'a, T: Invalidate> {
    whole: &'a IntervalNotifier<T>,
    #[pin]
    notifier: Opaque<bindings::mmu_interval_notifier>,
    #[pin]
    _pin: PhantomPinned,
}

impl<'a, T: Invalidate> Watch<'a, T> {
    /// The operations C code calls.
    const OPS: bindings::mmu_interval_notifier_ops = bindings::mmu_interval_notifier_ops {
        invalidate: Some(Self::invalidate_callback),
        ..pin_init::zeroed()
    };

    /// Starts to watch a range of the addresses that `whole` watches.
    ///
    /// Context: process context, may sleep; the caller must not hold the mmap lock.
    ///
    /// # Errors
    ///
    /// `EINVAL`: the range is empty, or `whole` does not watch all of it.
    ///
    /// # Safety
    ///
    /// Callers must not `mem::forget()` the returned [`Watch`] or otherwise prevent its [`Drop`]
    /// implementation from running, since it borrows `whole`.
    pub(super) unsafe fn new(
        whole: &'a IntervalNotifier<T>,
        mm: &'a MmWithUser,
        addresses: Range<usize>,
    ) -> impl PinInit<Self, Error> + 'a {
        // INVARIANT: On success, the notifier is inserted. Its sequence number is written by
        // `invalidate_callback` only.
        try_pin_init!(Self {
            whole,
            notifier <- Opaque::try_ffi_init(move |slot| {
                if !core::ptr::eq(mm.as_raw(), whole.mm().as_raw())
                    || !whole.watches(addresses.clone())
                {
                    return Err(EINVAL);
                }
                // SAFETY: `mm` has users, `slot` is pinned, and is removed before its memory is used
                // otherwise. The callback can be called already, since `whole` is initialised.
                to_result(unsafe {
                    bindings::mmu_interval_notifier_insert(
                        slot,
                        mm.as_raw(),
                        addresses.start,
                        addresses.end - addresses.start,
                        &Self::OPS,
                    )
                })
            }),
            _pin: PhantomPinned,
        }? Error)
    }

    /// Begins to look at the CPU page tables.
    ///
    /// Waits until invalidations that are running are over. Context: process context, may sleep;
    /// the caller must not hold the update lock.
    #[cfg(CONFIG_RUST_DEVICE_MEMORY_KUNIT_TEST)]
    pub(super) fn read_begin(&self) -> Sequence {
        // SAFETY: By the type invariants the notifier is inserted.
        Sequence(unsafe { bindings::mmu_interval_read_begin(self.notifier.get()) })
    }

    /// Takes the update lock, if nothing was invalidated since `seq` was returned.
    ///
    /// While the lock is held, no invalidation completes, so what was seen in the CPU page tables
    /// after `seq` was returned stays true. Otherwise the result is [`None`], and the caller must
    /// begin anew. The guard must be dropped before the [`Watch`] is.
    pub(super) fn lock(&self, seq: Sequence) -> Option<MutexGuard<'_, T>> {
        let guard = self.whole.protected.lock();
        // SAFETY: By the type invariants the notifier is inserted. The lock under which the number
        // is written is held.
        let stale = unsafe { bindings::mmu_interval_read_retry(self.notifier.get(), seq.0) };
        (!stale).then_some(guard)
    }

    /// Returns the C notifier.
    pub(super) fn as_raw(&self) -> *mut bindings::mmu_interval_notifier {
        self.notifier.get()
    }

    /// # Safety
    ///
    /// May only be called as `mmu_interval_notifier_ops::invalidate` of a notifier with
    /// [`Self::OPS`].
    unsafe extern "C" fn invalidate_callback(
        notifier: *mut bindings::mmu_interval_notifier,
        range: *const bindings::mmu_notifier_range,
        seq: c_ulong,
    ) -> bool {
        // SAFETY: A notifier with these operations is part of a `Self`, which is not freed before
        // the notifier is removed. That waits for this callback.
        let this = unsafe { &*container_of!(Opaque::cast_from(notifier), Self, notifier) };
        // SAFETY: The arguments are those of the callback, and this is the lock for `notifier`.
        unsafe { invalidate(&this.whole.protected, notifier, range, seq) }
    }
}

#[pinned_drop]
impl<T: Invalidate> PinnedDrop for Watch<'_, T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariants the notifier is inserted.
        unsafe { bindings::mmu_interval_notifier_remove(self.notifier.get()) };
    }
}

/// Does what an invalidation asks for, or returns `false` if that must not wait.
///
/// # Safety
///
/// `notifier`, `range` and `seq` must be those of an invalidation that is going on, and `protected`
/// the update lock for `notifier`.
unsafe fn invalidate<T: Invalidate>(
    protected: &Mutex<T>,
    notifier: *mut bindings::mmu_interval_notifier,
    range: *const bindings::mmu_notifier_range,
    seq: c_ulong,
) -> bool {
    // SAFETY: By the safety requirements the range is valid.
    let range = unsafe { &*range };

    // The OOM killer cannot wait, but a device can only be made to stop by waiting. It will try
    // another way.
    //
    // SAFETY: `range` is valid.
    if !unsafe { bindings::mmu_notifier_range_blockable(range) } {
        return false;
    }

    let mut protected = protected.lock();
    // SAFETY: By the safety requirements `notifier` is valid, and its update lock is held.
    unsafe { bindings::mmu_interval_set_seq(notifier, seq) };
    protected.invalidate(&Invalidation(range));
    true
}
