// SPDX-License-Identifier: GPL-2.0

//! Device memory: VRAM that holds pages of programs and files.
//!
//! Pages go there by [`DeviceMemory::take_in`]. They come back by themselves when somebody needs
//! them, for which this file only has the copy function; see [`kernel::mm::device_pagemap`]. When
//! VRAM is full, [`DeviceMemory::make_room`] sends some back.

use core::ops::Range;
use kernel::{
    device::{
        Bound,
        Device, //
    },
    mm::{
        device_pagemap::{
            DeviceCopy,
            DevicePagemap,
            DevicePrivateOps, //
        },
        folio::Folio,
        migrate_vma::{
            Entry,
            Migration,
            MigrationBuffer,
            Source, //
        },
        new_folio::NewFolio,
        MmapReadGuard, //
    },
    new_spinlock_irq,
    num::casts::{
        self,
        arch::IntoSafeCastArch, //
    },
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        Arc,
        SpinLockIrq, //
    }, //
};

use crate::{
    copy::{
        CopyEngine,
        Piece,
        BATCH, //
    },
    hw::{
        self,
        CopyOp, //
    },
    stats::Stats,
    vram::{
        Layout,
        PagePool,
        Usage, //
    }, //
};

// A page of VRAM holds a page of memory, no less.
static_assert!(hw::PAGE_SIZE == casts::usize_as_u64(PAGE_SIZE));

/// What the memory management of the kernel calls.
#[pin_data]
pub(crate) struct Vram<'bound> {
    copy: Arc<CopyEngine<'bound>>,
    usage: Usage,
    /// Pages are freed in any context.
    #[pin]
    pool: SpinLockIrq<PagePool>,
}

impl DevicePrivateOps for Vram<'_> {
    fn folio_free(&self, index: usize) {
        self.pool.lock().free(index);
    }

    fn copy_to_ram(&self, copies: &mut [DeviceCopy]) {
        for batch in copies.chunks_mut(BATCH) {
            let mut failed = Failed::none();
            let pieces = batch.iter().enumerate();
            self.copy
                .run(CopyOp::FromVram, pieces.map(Leaving), |id| failed.add(id));
            for (id, copy) in batch.iter_mut().enumerate() {
                copy.set_result(if failed.contains(id) {
                    Err(EIO)
                } else {
                    Ok(())
                });
            }
        }
    }
}

/// The part of VRAM that holds pages of programs and files.
pub(crate) struct DeviceMemory<'bound> {
    stats: Arc<Stats>,
    pagemap: Pin<KBox<DevicePagemap<Vram<'bound>>>>,
}

impl<'bound> DeviceMemory<'bound> {
    /// Makes VRAM part of memory management.
    ///
    /// Dropping it brings all pages back; see [`DevicePagemap`].
    pub(crate) fn new(
        dev: &'bound Device<Bound>,
        copy: Arc<CopyEngine<'bound>>,
        layout: Layout,
        stats: Arc<Stats>,
    ) -> Result<Arc<Self>> {
        let pages = (layout.tables / hw::PAGE_SIZE).into_safe_cast_arch();
        let pool = PagePool::new(pages)?;
        let usage = Usage::new(pages)?;
        let ops = pin_init!(Vram {
            copy,
            usage,
            pool <- new_spinlock_irq!(pool, "Vram::pool"),
        });
        // SAFETY: The pagemap is owned by `Self`, of which only `driver::Gpu` and what it owns hold
        // references, and they never forget them.
        let init = unsafe {
            DevicePagemap::new(dev, c"vsvm-vram", layout.tables.into_safe_cast_arch(), ops)
        };
        let pagemap = KBox::pin_init(init, GFP_KERNEL)?;
        Ok(Arc::new(Self { stats, pagemap }, GFP_KERNEL)?)
    }

    /// Returns the pagemap.
    pub(crate) fn pagemap(&self) -> &DevicePagemap<Vram<'bound>> {
        &self.pagemap
    }

    /// Returns the size in bytes.
    pub(crate) fn size(&self) -> u64 {
        casts::usize_as_u64(self.pagemap.pages()) * hw::PAGE_SIZE
    }

    /// Returns how many bytes are free.
    pub(crate) fn available(&self) -> u64 {
        let pages = self.pagemap.ops().pool.lock().available();
        casts::usize_as_u64(pages) * hw::PAGE_SIZE
    }

    /// Returns the VRAM offset of a folio, if it is in this memory.
    pub(crate) fn offset_of(&self, folio: &Folio) -> Option<u64> {
        self.pagemap.index_of(folio).map(offset)
    }

    /// Takes note that the GPU uses a folio of this memory.
    pub(crate) fn mark_used(&self, folio: &Folio) {
        if let Some(index) = self.pagemap.index_of(folio) {
            self.pagemap.ops().usage.mark(index);
        }
    }

    /// Makes sure that so many pages are free, by sending those back that were not used for longest.
    /// Pages that cannot be moved now stay, so there may be less room in the end.
    ///
    /// Context: process context, sleeps, with no locks held.
    pub(crate) fn make_room(&self, pages: usize) {
        let Vram { usage, pool, .. } = self.pagemap.ops();
        for _ in 0..usage.chunks() {
            let before = pool.lock().available();
            if before >= pages {
                break;
            }
            // What stays is no error.
            let _ = self.pagemap.evict(usage.take_oldest());
            let now = pool.lock().available();
            self.stats.pages_evicted.add(now.saturating_sub(before));
        }
    }

    /// Sends all pages back, and returns whether none has stayed.
    ///
    /// Context: process context, sleeps, with no locks held.
    pub(crate) fn evict_all(&self) -> bool {
        self.make_room(self.pagemap.pages());
        self.available() == self.size()
    }

    /// Sends the pages with some indices back, wherever they are mapped. Pages that cannot be moved
    /// now stay.
    ///
    /// Context: process context, sleeps, with no locks held.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, or `EIO` if pages that are not of files could not be copied.
    pub(crate) fn send_back(&self, indices: &[usize]) -> Result {
        let mut result = Ok(());
        // Pages that went there together are next to each other.
        for run in indices.chunk_by(|a, b| a + 1 == *b) {
            if let [first, ..] = run {
                let returned = self.pagemap.evict(*first..first + run.len());
                result = result.and(returned.result);
            }
        }
        result
    }

    /// Takes a free page.
    fn claim(&self) -> Result<NewFolio> {
        let ops = self.pagemap.ops();
        let index = ops.pool.lock().alloc().ok_or(ENOSPC)?;
        ops.usage.mark(index);
        self.pagemap
            .claim(index)
            .inspect_err(|_| ops.pool.lock().free(index))
    }

    /// Moves what can be moved of a range of addresses, which lie in one VMA, to this memory.
    ///
    /// Returns how many pages have moved. Those for which there is no room stay where they are.
    ///
    /// # Errors
    ///
    /// Those of [`Migration::collect`].
    pub(crate) fn take_in(
        &self,
        mmap: &MmapReadGuard<'_>,
        addresses: Range<usize>,
        buffer: &mut MigrationBuffer,
    ) -> Result<usize> {
        let mut migration = Migration::collect(mmap, addresses, self.pagemap.owner(), buffer)?;

        for mut entry in migration.entries() {
            let Ok(page) = self.claim() else {
                break;
            };
            entry.set_destination(page);
        }

        let mut failed = Failed::none();
        let copy = &self.pagemap.ops().copy;
        for (op, is_zero) in [(CopyOp::ToVram, false), (CopyOp::Fill, true)] {
            let pieces = migration
                .entries()
                .filter(|entry| matches!(entry.source(), Source::Zero) == is_zero)
                .filter_map(|entry| {
                    Some(Arriving {
                        vram: self.offset_of(entry.destination()?)?,
                        entry,
                    })
                });
            copy.run(op, pieces, |id| failed.add(id));
        }
        if !failed.is_none() {
            for mut entry in migration.entries() {
                if failed.contains(entry.index()) {
                    entry.take_destination();
                }
            }
        }
        Ok(migration.migrate().moved())
    }
}

/// Returns the VRAM offset of the page with an index.
fn offset(index: usize) -> u64 {
    casts::usize_as_u64(index) * hw::PAGE_SIZE
}

/// A page on its way to VRAM.
struct Arriving<'a> {
    entry: Entry<'a>,
    vram: u64,
}

impl Piece for Arriving<'_> {
    fn id(&self) -> usize {
        self.entry.index()
    }

    fn system(&self) -> Option<&Folio> {
        match self.entry.source() {
            Source::Folio(folio) => Some(folio),
            Source::Zero => None,
        }
    }

    fn vram(&self) -> u64 {
        self.vram
    }
}

/// A page on its way back, with its number in the batch.
struct Leaving<'a>((usize, &'a DeviceCopy));

impl Piece for Leaving<'_> {
    fn id(&self) -> usize {
        self.0 .0
    }

    fn system(&self) -> Option<&Folio> {
        Some(self.0 .1.destination())
    }

    fn vram(&self) -> u64 {
        offset(self.0 .1.index())
    }
}

/// Which pages of a batch could not be copied.
struct Failed([u64; BATCH / 64]);

impl Failed {
    fn none() -> Self {
        Self([0; BATCH / 64])
    }

    fn is_none(&self) -> bool {
        self.0.iter().all(|&word| word == 0)
    }

    fn add(&mut self, id: usize) {
        if let Some(word) = self.0.get_mut(id / 64) {
            *word |= 1 << (id % 64);
        }
    }

    fn contains(&self, id: usize) -> bool {
        self.0
            .get(id / 64)
            .is_some_and(|word| word & 1 << (id % 64) != 0)
    }
}
