// SPDX-License-Identifier: GPL-2.0

//! The page table of an address space of the GPU.
//!
//! The table itself is in VRAM, where the driver only writes. What it wrote is kept here in system
//! memory too: which tables there are ([`PageTable`]), and what each leaf table maps ([`Leaf`]).
//!
//! # What is true while the lock of the table is held
//!
//! A page is mapped only if the page table of the process maps it at the same address, with at least
//! the same right. Whatever changes the latter takes the lock and unmaps the page first, see
//! [`super::svm`]. So a page that is mapped already need never be compared with what the process
//! has now: it is the right one, and all that can differ is the permission to write.
//!
//! # Allocation
//!
//! The lock is taken in the middle of memory management, so nothing is allocated while it is held.
//! Tables come from a [`Reserve`] that is filled in advance.

use core::ops::Range;
use kernel::{
    device::{
        Bound,
        Device, //
    },
    dma::{
        DataDirection,
        PageMapping, //
    },
    mm::hmm::SystemPage,
    num::casts,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNodeReservation, //
    },
    sync::Arc, //
};

use crate::{
    hw::{
        self,
        table_index,
        Pte,
        ENTRIES_PER_TABLE,
        LEVELS, //
    },
    mmu::{
        Mmu,
        TablePage, //
    }, //
};

/// Tables between the root and a leaf.
const MIDDLE: usize = casts::u32_as_usize(LEVELS) - 2;

/// Binary logarithm of the number of addresses that one table of `level` translates.
const fn span_shift(level: u32) -> u32 {
    hw::PAGE_SHIFT + ENTRIES_PER_TABLE.ilog2() * (level % LEVELS + 1)
}

/// Addresses that a leaf table translates.
pub(crate) const LEAF_SPAN: u64 = 1 << span_shift(0);

/// Names a table between the root and the leaves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Middle {
    level: u32,
    /// Which one of its level: the virtual address divided by what a table translates.
    number: u64,
}

impl Middle {
    /// Returns the table of `level` that translates `va`.
    const fn of(level: u32, va: u64) -> Self {
        Self {
            level,
            number: va >> span_shift(level),
        }
    }
}

/// What one entry of a leaf table maps.
struct Slot<'bound> {
    pte: Pte,
    /// Keeps a page of system memory mapped for DMA.
    system: Option<PageMapping<'bound>>,
}

/// A leaf table.
struct Leaf<'bound> {
    table: TablePage<'bound>,
    slots: KVVec<Slot<'bound>>,
}

impl<'bound> Leaf<'bound> {
    fn new(mmu: &Arc<Mmu<'bound>>) -> Result<Self> {
        let mut slots = KVVec::with_capacity(ENTRIES_PER_TABLE, GFP_KERNEL)?;
        for _ in 0..ENTRIES_PER_TABLE {
            slots.push(
                Slot {
                    pte: Pte::NONE,
                    system: None,
                },
                GFP_KERNEL,
            )?;
        }
        Ok(Self {
            table: mmu.alloc_table()?,
            slots,
        })
    }
}

/// Returns a leaf entry for the same page that allows writing.
const fn writable(pte: Pte) -> Pte {
    if pte.is_system() {
        Pte::system(pte.address(), true)
    } else {
        Pte::vram(pte.address(), true)
    }
}

/// What is to be mapped at an address.
pub(crate) enum Target<'a> {
    /// The page of VRAM at an offset.
    Vram(u64),
    /// A page of system memory.
    System(SystemPage<'a>),
}

/// Tables that are ready for use: enough to map the pages of one leaf table.
pub(crate) struct Reserve<'bound> {
    middle: [Option<(
        RBTreeNodeReservation<Middle, TablePage<'bound>>,
        TablePage<'bound>,
    )>; MIDDLE],
    leaf: Option<(RBTreeNodeReservation<u64, Leaf<'bound>>, Leaf<'bound>)>,
}

impl<'bound> Reserve<'bound> {
    /// Returns a reserve with nothing in it.
    pub(crate) const fn new() -> Self {
        Self {
            middle: [const { None }; MIDDLE],
            leaf: None,
        }
    }

    /// Allocates what is missing.
    ///
    /// Context: process context, sleeps. The lock of no page table may be held.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if there is no VRAM for page tables left.
    pub(crate) fn fill(&mut self, mmu: &Arc<Mmu<'bound>>) -> Result {
        for middle in self.middle.iter_mut().filter(|middle| middle.is_none()) {
            let node = RBTreeNodeReservation::new(GFP_KERNEL)?;
            *middle = Some((node, mmu.alloc_table()?));
        }
        if self.leaf.is_none() {
            let node = RBTreeNodeReservation::new(GFP_KERNEL)?;
            self.leaf = Some((node, Leaf::new(mmu)?));
        }
        Ok(())
    }
}

/// The page table of an address space.
pub(crate) struct PageTable<'bound> {
    dev: &'bound Device<Bound>,
    mmu: Arc<Mmu<'bound>>,
    root: TablePage<'bound>,
    middle: RBTree<Middle, TablePage<'bound>>,
    /// Leaf tables by virtual address divided by [`LEAF_SPAN`].
    leaves: RBTree<u64, Leaf<'bound>>,
    closed: bool,
}

impl<'bound> PageTable<'bound> {
    /// Creates a page table that maps nothing.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if there is no VRAM for page tables left.
    pub(crate) fn new(dev: &'bound Device<Bound>, mmu: Arc<Mmu<'bound>>) -> Result<Self> {
        Ok(Self {
            dev,
            root: mmu.alloc_table()?,
            mmu,
            middle: RBTree::new(),
            leaves: RBTree::new(),
            closed: false,
        })
    }

    /// Returns the VRAM offset of the root, by which the GPU knows the address space.
    pub(crate) fn root(&self) -> u64 {
        self.root.offset()
    }

    /// Makes sure that there is a leaf table for `va`.
    fn grow(&mut self, va: u64, reserve: &mut Reserve<'bound>) -> Result {
        let key = va / LEAF_SPAN;
        if self.leaves.get(&key).is_some() {
            return Ok(());
        }

        let mut parent = self.root.offset();
        for level in (1..LEVELS - 1).rev() {
            let key = Middle::of(level, va);
            parent = match self.middle.get(&key) {
                Some(table) => table.offset(),
                None => {
                    let spare = reserve.middle.iter_mut().find_map(Option::take);
                    let (node, table) = spare.ok_or(ENOMEM)?;
                    let offset = table.offset();
                    self.link(parent, table_index(va, level + 1), offset);
                    self.middle.insert(node.into_node(key, table));
                    offset
                }
            };
        }
        let (node, leaf) = reserve.leaf.take().ok_or(ENOMEM)?;
        self.link(parent, table_index(va, 1), leaf.table.offset());
        self.leaves.insert(node.into_node(key, leaf));
        Ok(())
    }

    /// Lets an entry of `parent` point to a table. It was not present, so the GPU has not cached it.
    fn link(&self, parent: u64, index: usize, table: u64) {
        let pte = core::iter::once(Some(Pte::table(table)));
        self.mmu.write(parent, index, pte);
    }

    /// Maps pages, all of which lie in the same [`LEAF_SPAN`] as `va`, and returns how many.
    ///
    /// Each is given as its address, where it is, and whether the GPU may write to it. One that is
    /// mapped already at most gains the right to write.
    ///
    /// # Errors
    ///
    /// - `ENOMEM`: `reserve` is not full.
    /// - `ESRCH`: the address space is closed.
    /// - `EIO`: a page of system memory could not be mapped for DMA; the pages before it are mapped.
    pub(crate) fn map<'a>(
        &mut self,
        va: u64,
        pages: impl Iterator<Item = (u64, Target<'a>, bool)>,
        reserve: &mut Reserve<'bound>,
    ) -> Result<usize> {
        if self.closed {
            return Err(ESRCH);
        }
        self.grow(va, reserve)?;
        let leaf = self.leaves.get_mut(&(va / LEAF_SPAN)).ok_or(ENOMEM)?;

        let mut dirty = Dirty::new();
        let mut result = Ok(());
        for (address, target, write) in pages {
            let index = table_index(address, 0);
            let Some(slot) = leaf.slots.get_mut(index) else {
                continue;
            };
            if slot.pte.is_present() {
                if write && !slot.pte.is_writable() {
                    slot.pte = writable(slot.pte);
                    dirty.add(index, true);
                }
                continue;
            }
            slot.pte = match target {
                Target::Vram(offset) => Pte::vram(offset, write),
                Target::System(page) => {
                    match page.dma_map(self.dev, DataDirection::Bidirectional) {
                        Ok(mapping) => {
                            let pte = Pte::system(mapping.dma_address(), write);
                            slot.system = Some(mapping);
                            pte
                        }
                        Err(error) => {
                            result = Err(error);
                            break;
                        }
                    }
                }
            };
            dirty.add(index, false);
        }

        self.mmu.write(
            leaf.table.offset(),
            0,
            leaf.slots
                .iter()
                .enumerate()
                .map(|(index, slot)| dirty.contains(index).then_some(slot.pte)),
        );
        if dirty.was_present {
            let base = va - va % LEAF_SPAN;
            self.mmu
                .invalidate(self.root.offset(), &(base..base + LEAF_SPAN));
        }
        result.map(|()| dirty.count)
    }

    /// Unmaps all pages in a range of addresses.
    ///
    /// When this returns the GPU does not access them any more.
    pub(crate) fn unmap(&mut self, addresses: Range<u64>) {
        let end = addresses.end.min(hw::VA_END);
        if addresses.start >= end {
            return;
        }
        let start = addresses.start - addresses.start % hw::PAGE_SIZE;

        if self.for_each_leaf(start..end, |mmu, leaf, indices| {
            let mut any = false;
            let entries = leaf
                .slots
                .iter()
                .take(indices.end)
                .skip(indices.start)
                .map(|slot| {
                    any |= slot.pte.is_present();
                    slot.pte.is_present().then_some(Pte::NONE)
                });
            mmu.write(leaf.table.offset(), indices.start, entries);
            any
        }) {
            self.mmu.invalidate(self.root.offset(), &(start..end));
        }

        // Only now is it safe to take the pages of system memory away from the device.
        self.for_each_leaf(start..end, |_, leaf, indices| {
            let slots = leaf.slots.iter_mut();
            for slot in slots.take(indices.end).skip(indices.start) {
                slot.pte = Pte::NONE;
                slot.system = None;
            }
            false
        });
    }

    /// Calls `visit` with each leaf table for addresses in a range and the indices of their
    /// entries, and returns whether any call returned true.
    fn for_each_leaf(
        &mut self,
        addresses: Range<u64>,
        mut visit: impl FnMut(&Mmu<'bound>, &mut Leaf<'bound>, Range<usize>) -> bool,
    ) -> bool {
        let mut any = false;
        let mut cursor = self
            .leaves
            .cursor_lower_bound_mut(&(addresses.start / LEAF_SPAN));
        while let Some(mut leaf) = cursor {
            let (&key, value) = leaf.current_mut();
            let base = key * LEAF_SPAN;
            if base >= addresses.end {
                break;
            }
            let first = addresses.start.max(base);
            let last = addresses.end.min(base + LEAF_SPAN) - 1;
            any |= visit(
                &self.mmu,
                value,
                table_index(first, 0)..table_index(last, 0) + 1,
            );
            cursor = leaf.move_next();
        }
        any
    }

    /// Unmaps everything and gives back the VRAM of all tables but the root.
    pub(crate) fn clear(&mut self) {
        self.unmap(0..hw::VA_END);
        let entries = core::iter::repeat_n(Some(Pte::NONE), ENTRIES_PER_TABLE);
        self.mmu.write(self.root.offset(), 0, entries);
        self.mmu.invalidate(self.root.offset(), &(0..hw::VA_END));
        self.leaves = RBTree::new();
        self.middle = RBTree::new();
    }

    /// Unmaps everything for good.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.unmap(0..hw::VA_END);
    }
}

/// Which entries of a leaf table have to be written.
struct Dirty {
    bits: [u64; ENTRIES_PER_TABLE / 64],
    count: usize,
    /// Whether an entry among them was present before.
    was_present: bool,
}

impl Dirty {
    fn new() -> Self {
        Self {
            bits: [0; ENTRIES_PER_TABLE / 64],
            count: 0,
            was_present: false,
        }
    }

    fn add(&mut self, index: usize, was_present: bool) {
        if let Some(word) = self.bits.get_mut(index / 64) {
            *word |= 1 << (index % 64);
        }
        self.count += 1;
        self.was_present |= was_present;
    }

    fn contains(&self, index: usize) -> bool {
        self.bits
            .get(index / 64)
            .is_some_and(|word| word & 1 << (index % 64) != 0)
    }
}

#[cfg(CONFIG_DRM_VSVM_KUNIT_TEST)]
#[kunit_tests(drm_vsvm_page_table)]
mod tests {
    use super::*;

    #[test]
    fn spans_cover_the_address_space() {
        assert_eq!(LEAF_SPAN, 2 << 20);
        assert_eq!(span_shift(1), 30);
        assert_eq!(1 << span_shift(LEVELS - 1), hw::VA_END);
    }

    #[test]
    fn indices_and_names_of_tables_agree() {
        let va = 0x7f12_3456_7000;
        assert_eq!(table_index(va, 0), 0x167);
        assert_eq!(table_index(va + hw::PAGE_SIZE, 0), 0x168);
        assert!(Middle::of(1, va) == Middle::of(1, va & !0x3fff_ffff));
        assert!(Middle::of(1, va) < Middle::of(1, va + (1 << 30)));
        assert!(Middle::of(1, va) < Middle::of(2, 0));
    }

    #[test]
    fn dirty_remembers_entries() {
        let mut dirty = Dirty::new();
        dirty.add(0, false);
        dirty.add(511, true);
        assert!(dirty.contains(0) && dirty.contains(511));
        assert!(!dirty.contains(1) && !dirty.contains(510));
        assert_eq!(dirty.count, 2);
        assert!(dirty.was_present);
    }
}
