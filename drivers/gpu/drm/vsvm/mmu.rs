// SPDX-License-Identifier: GPL-2.0

//! The GPU's MMU: the instance window, the TLB, and the VRAM of page tables.
//!
//! # Locks
//!
//! `Mmu::unit` guards the registers; it is a spinlock since page tables are changed and the TLB is
//! invalidated in the middle of memory management. `Mmu::tables` guards the list of free tables.
//! Neither is taken inside the other.
//!
//! # Resets
//!
//! While the function is reset or sleeps, writes to it get lost, and memory management does not
//! wait for it. That is safe for as long as the engines are stopped: nobody looks at page tables or
//! has translations in the TLB. So nothing is written then, rather than something of it, and before
//! the engines are started the tables of all address spaces are made anew, see [`super::power`].

use kernel::{
    device::{
        Bound,
        Device, //
    },
    io::poll::read_poll_timeout_atomic,
    new_spinlock,
    num::casts::{
        self,
        arch::IntoSafeCastArch, //
    },
    prelude::*,
    sync::{
        Arc,
        SpinLock, //
    },
    time::Delta, //
};

use core::ops::Range;

use crate::{
    copy::{
        CopyEngine,
        Piece, //
    },
    hw::{
        self,
        reg,
        CopyOp,
        Pte, //
    },
    regs::Regs,
    vram::{
        Layout,
        PagePool, //
    }, //
};

/// How often to ask whether the TLB is done. One read takes more than 10 microseconds.
const TLB_RETRIES: usize = 100_000;

/// What is guarded by the lock of the registers.
struct Unit {
    /// The engines are stopped, and the device may not listen.
    paused: bool,
}

/// The MMU.
#[pin_data]
pub(crate) struct Mmu<'bound> {
    dev: &'bound Device<Bound>,
    regs: Arc<Regs<'bound>>,
    copy: Arc<CopyEngine<'bound>>,
    layout: Layout,
    #[pin]
    unit: SpinLock<Unit>,
    #[pin]
    tables: SpinLock<PagePool>,
}

impl<'bound> Mmu<'bound> {
    /// Sets up the MMU of a device that has just been reset.
    pub(crate) fn new(
        dev: &'bound Device<Bound>,
        regs: Arc<Regs<'bound>>,
        copy: Arc<CopyEngine<'bound>>,
        layout: Layout,
    ) -> Result<Arc<Self>> {
        let tables = (layout.end - layout.tables) / hw::PAGE_SIZE;
        let tables = PagePool::new(tables.into_safe_cast_arch())?;
        Arc::pin_init(
            pin_init!(Self {
                dev,
                regs,
                copy,
                layout,
                unit <- new_spinlock!(Unit { paused: false }, "Mmu::unit"),
                tables <- new_spinlock!(tables, "Mmu::tables"),
            }),
            GFP_KERNEL,
        )
    }

    /// Leaves the device alone until [`Self::resume`] is called. The engines must be stopped.
    pub(crate) fn pause(&self) {
        self.unit.lock().paused = true;
    }

    /// Works again, after the device has been reset. Page tables that were changed since
    /// [`Self::pause`] must be made anew before the engines are started.
    pub(crate) fn resume(&self) {
        self.unit.lock().paused = false;
    }

    /// Writes entries `first..` of the table at VRAM offset `table`; `None` leaves one as it is.
    pub(crate) fn write(
        &self,
        table: u64,
        first: usize,
        entries: impl Iterator<Item = Option<Pte>>,
    ) {
        let unit = self.unit.lock();
        if unit.paused {
            return;
        }
        let window = casts::usize_as_u64(hw::WINDOW_SIZE);
        // CAST: VRAM is far smaller than `WINDOW_SIZE << 32`.
        let number = (table / window) as u32;
        // Each time, for the device may have been reset.
        self.regs.write::<{ reg::WINDOW }>(number);
        let base: usize = (table % window).into_safe_cast_arch();
        for (index, pte) in entries.enumerate() {
            let Some(pte) = pte else {
                continue;
            };
            let offset = hw::WINDOW_OFFSET + base + (first + index) * size_of::<u64>();
            if self.regs.write64(offset, pte.into_raw()).is_err() {
                dev_err!(self.dev, "no page table entry at {offset:#x}\n");
            }
        }
    }

    /// Makes the GPU forget translations of the address space `root`, and waits until no access
    /// by one of them can happen any more.
    ///
    /// Context: any, but takes tens of microseconds.
    pub(crate) fn invalidate(&self, root: u64, addresses: &Range<u64>) {
        let unit = self.unit.lock();
        if unit.paused {
            return;
        }
        let pages = (addresses.end - addresses.start) / hw::PAGE_SIZE;
        let written = self
            .regs
            .write64(reg::TLB_ROOT, root)
            .and_then(|()| self.regs.write64(reg::TLB_START, addresses.start))
            .and_then(|()| self.regs.write64(reg::TLB_PAGES, pages));
        self.regs
            .write::<{ reg::TLB_COMMAND }>(reg::TLB_INVALIDATE_RANGE);

        let idle = read_poll_timeout_atomic(
            || Ok(self.regs.read::<{ reg::TLB_STATUS }>()),
            |&status| status & reg::TLB_STATUS_BUSY == 0 || self.regs.is_gone(),
            Delta::ZERO,
            TLB_RETRIES,
        );
        if written.is_err() || idle.is_err() {
            dev_err!(self.dev, "the TLB does not invalidate\n");
        }
    }

    /// Allocates an empty page table.
    ///
    /// Context: process context, sleeps.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if there is no VRAM for it, `EIO` if it could not be cleared.
    pub(crate) fn alloc_table(self: &Arc<Self>) -> Result<TablePage<'bound>> {
        let index = self.tables.lock().alloc().ok_or(ENOSPC)?;
        let table = TablePage {
            mmu: self.clone(),
            index,
        };

        let mut cleared = Ok(());
        self.copy.run(
            CopyOp::Fill,
            core::iter::once(Blank(table.offset())),
            |_| cleared = Err(EIO),
        );
        cleared.map(|()| table)
    }
}

/// A page of VRAM to be cleared.
struct Blank(u64);

impl Piece for Blank {
    fn id(&self) -> usize {
        0
    }

    fn system(&self) -> Option<&kernel::mm::folio::Folio> {
        None
    }

    fn vram(&self) -> u64 {
        self.0
    }
}

/// A page of VRAM that is used as a page table.
///
/// It may be dropped only when no entry of another table points to it and the GPU has no
/// translation that came through it.
pub(crate) struct TablePage<'bound> {
    mmu: Arc<Mmu<'bound>>,
    index: usize,
}

impl TablePage<'_> {
    /// Returns its VRAM offset.
    pub(crate) fn offset(&self) -> u64 {
        self.mmu.layout.tables + casts::usize_as_u64(self.index) * hw::PAGE_SIZE
    }
}

impl Drop for TablePage<'_> {
    fn drop(&mut self) {
        self.mmu.tables.lock().free(self.index);
    }
}
