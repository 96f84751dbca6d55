// SPDX-License-Identifier: GPL-2.0

//! Address translation: the page table walk and the translation cache (TLB).
//!
//! The cache is honest about being stale: a translation in it is used, with the permission it had,
//! until the driver invalidates it, so a forgotten invalidation shows as wrong data or as a fault
//! that never ends. It is direct mapped and big enough that entries live long.
//!
//! Each compute channel has a cache of its own, behind a lock that it holds from the translation to
//! the end of the access that uses it, a page at most. So when an invalidation got the locks of all
//! channels, one after the other, and dropped an entry, no access that used the entry is still under
//! way. (`parking_lot` gives the lock to a waiter when its holder keeps coming back.)

use crate::hw::{
    reg, table_index, Access, FaultReason, Pte, LEVELS, PAGE_SHIFT, PAGE_SIZE, VA_END,
};
use crate::vram::Vram;

/// Number of translations the cache can hold.
const ENTRIES: usize = 4096;

/// Where a virtual address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Location {
    /// An offset in VRAM, whose page is inside VRAM.
    Vram(u64),
    /// A DMA address.
    System(u64),
}

/// A cached translation.
#[derive(Clone, Copy)]
struct Entry {
    root: u64,
    page: u64,
    pte: Pte,
}

/// A translation cache.
pub(crate) struct Tlb(Vec<Option<Entry>>);

impl Tlb {
    /// Returns an empty cache.
    pub(crate) fn new() -> Self {
        Self(vec![None; ENTRIES])
    }

    /// Returns the place for the translation of a page.
    fn slot(&mut self, root: u64, page: u64) -> Option<&mut Option<Entry>> {
        let index = usize::try_from((page ^ (root >> PAGE_SHIFT)) % ENTRIES as u64).ok()?;
        self.0.get_mut(index)
    }

    /// Returns where `va` leads in the address space `root` for an access of kind `access`.
    pub(crate) fn translate(
        &mut self,
        vram: &Vram,
        root: u64,
        va: u64,
        access: Access,
    ) -> Result<Location, FaultReason> {
        let page = va >> PAGE_SHIFT;
        let slot = self.slot(root, page).ok_or(FaultReason::Malformed)?;
        let pte = match slot {
            Some(entry) if entry.root == root && entry.page == page => entry.pte,
            _ => {
                let pte = walk(vram, root, va)?;
                *slot = Some(Entry { root, page, pte });
                pte
            }
        };
        if access == Access::Write && !pte.is_writable() {
            return Err(FaultReason::ReadOnly);
        }
        let address = pte.address() + va % PAGE_SIZE;
        Ok(if pte.is_system() {
            Location::System(address)
        } else {
            Location::Vram(address)
        })
    }

    /// Drops every translation for which `stale(root, page number)` holds.
    fn drop_if(&mut self, stale: impl Fn(u64, u64) -> bool) {
        for slot in &mut self.0 {
            if slot.is_some_and(|entry| stale(entry.root, entry.page)) {
                *slot = None;
            }
        }
    }

    /// Drops the translations of `pages` pages from `first` in the address space `root`.
    fn drop_range(&mut self, root: u64, first: u64, pages: u64) {
        if pages >= ENTRIES as u64 {
            return self
                .drop_if(|other, page| other == root && page >= first && page - first < pages);
        }
        for page in first..first + pages {
            if let Some(slot) = self.slot(root, page) {
                slot.take_if(|entry| entry.root == root && entry.page == page);
            }
        }
    }

    /// Drops every translation.
    pub(crate) fn clear(&mut self) {
        self.drop_if(|_, _| true);
    }
}

/// The registers of invalidation.
#[derive(Default)]
pub(crate) struct Invalidation {
    pub(crate) root: u64,
    pub(crate) start: u64,
    pub(crate) pages: u64,
}

impl Invalidation {
    /// Carries out `command`, a value of [`reg::TLB_COMMAND`].
    pub(crate) fn run(&self, command: u32, tlb: &mut Tlb) {
        let first = self.start >> PAGE_SHIFT;
        match command {
            reg::TLB_INVALIDATE_ALL => tlb.clear(),
            reg::TLB_INVALIDATE_ROOT => tlb.drop_if(|root, _| root == self.root),
            reg::TLB_INVALIDATE_RANGE => tlb.drop_range(self.root, first, self.pages),
            _ => {}
        }
    }
}

/// Walks the page table at `root` down to the leaf entry for `va`.
fn walk(vram: &Vram, root: u64, va: u64) -> Result<Pte, FaultReason> {
    if root % PAGE_SIZE != 0 || va >= VA_END {
        return Err(FaultReason::Malformed);
    }
    let mut table = root;
    let mut pte = Pte::NONE;
    for level in (0..LEVELS).rev() {
        let offset = table + table_index(va, level) as u64 * 8;
        pte = vram
            .load(offset)
            .map(Pte::from_raw)
            .ok_or(FaultReason::Malformed)?;
        if !pte.is_present() {
            return Err(FaultReason::NotPresent);
        }
        if !pte.is_well_formed(level) {
            return Err(FaultReason::Malformed);
        }
        table = pte.address();
    }
    if !pte.is_system() && vram.slice(pte.address(), PAGE_SIZE).is_none() {
        return Err(FaultReason::Malformed);
    }
    Ok(pte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROOT: u64 = 0x1000;
    const VA: u64 = 0x7f12_3456_7000;

    /// Writes the tables that lead from `ROOT` to `VA`, and `pte` as its leaf.
    fn map(vram: &Vram, pte: Pte) {
        for level in (1..LEVELS).rev() {
            let table = ROOT + u64::from(LEVELS - 1 - level) * PAGE_SIZE;
            let entry = Pte::table(table + PAGE_SIZE).into_raw();
            vram.store(table + table_index(VA, level) as u64 * 8, entry);
        }
        vram.store(leaf(), pte.into_raw());
    }

    fn leaf() -> u64 {
        ROOT + u64::from(LEVELS - 1) * PAGE_SIZE + table_index(VA, 0) as u64 * 8
    }

    fn vram() -> Vram {
        Vram::new(1 << 20).unwrap()
    }

    #[test]
    fn walks_to_both_apertures() {
        let vram = vram();
        map(&vram, Pte::vram(0x8000, true));
        assert_eq!(
            Tlb::new().translate(&vram, ROOT, VA + 12, Access::Write),
            Ok(Location::Vram(0x800c))
        );
        map(&vram, Pte::system(0xf_ffff_f000, false));
        assert_eq!(
            Tlb::new().translate(&vram, ROOT, VA + 0xfff, Access::Read),
            Ok(Location::System(0xf_ffff_ffff))
        );
        assert_eq!(
            Tlb::new().translate(&vram, ROOT, VA, Access::Write),
            Err(FaultReason::ReadOnly)
        );
    }

    #[test]
    fn absent_at_any_level_is_not_present() {
        for level in 0..LEVELS {
            let vram = vram();
            map(&vram, Pte::vram(0x8000, true));
            let table = ROOT + u64::from(LEVELS - 1 - level) * PAGE_SIZE;
            vram.store(table + table_index(VA, level) as u64 * 8, 0_u64);
            assert_eq!(
                Tlb::new().translate(&vram, ROOT, VA, Access::Read),
                Err(FaultReason::NotPresent)
            );
        }
    }

    #[test]
    fn nonsense_is_malformed() {
        let read = |vram: &Vram, root, va| Tlb::new().translate(vram, root, va, Access::Read);
        let malformed = Err(FaultReason::Malformed);
        let vram = vram();
        // A leaf beyond VRAM, reserved bits in a leaf, a table in system memory, a table beyond.
        map(&vram, Pte::vram(1 << 20, true));
        assert_eq!(read(&vram, ROOT, VA), malformed);
        map(&vram, Pte::vram(0x8000, true));
        vram.store(leaf(), Pte::vram(0x8000, true).into_raw() | (1 << 60));
        assert_eq!(read(&vram, ROOT, VA), malformed);
        let top = ROOT + table_index(VA, LEVELS - 1) as u64 * 8;
        vram.store(top, Pte::system(0x2000, false).into_raw());
        assert_eq!(read(&vram, ROOT, VA), malformed);
        vram.store(top, Pte::table(1 << 30).into_raw());
        assert_eq!(read(&vram, ROOT, VA), malformed);
        // Roots and addresses.
        assert_eq!(read(&vram, ROOT + 8, VA), malformed);
        assert_eq!(read(&vram, 1 << 40, VA), malformed);
        assert_eq!(read(&vram, ROOT, VA_END), malformed);
    }

    #[test]
    fn stale_until_invalidated() {
        let vram = vram();
        let mut tlb = Tlb::new();
        let read = |tlb: &mut Tlb| tlb.translate(&vram, ROOT, VA, Access::Read);
        let invalidation = |start, pages| Invalidation {
            root: ROOT,
            start,
            pages,
        };
        let commands = [
            (reg::TLB_INVALIDATE_ALL, invalidation(0, 0)),
            (reg::TLB_INVALIDATE_ROOT, invalidation(0, 0)),
            (reg::TLB_INVALIDATE_RANGE, invalidation(VA, 1)),
            (reg::TLB_INVALIDATE_RANGE, invalidation(0, u64::MAX)),
            (reg::TLB_INVALIDATE_RANGE, invalidation(VA - 0x3000, 4)),
        ];
        for (command, registers) in commands {
            map(&vram, Pte::vram(0x8000, true));
            assert_eq!(read(&mut tlb), Ok(Location::Vram(0x8000)));
            vram.store(leaf(), 0_u64);
            assert_eq!(read(&mut tlb), Ok(Location::Vram(0x8000)));
            registers.run(command, &mut tlb);
            assert_eq!(read(&mut tlb), Err(FaultReason::NotPresent));
        }
    }

    #[test]
    fn invalidation_hits_only_what_it_names() {
        let vram = vram();
        let mut tlb = Tlb::new();
        map(&vram, Pte::vram(0x8000, false));
        let before = tlb.translate(&vram, ROOT, VA, Access::Read);
        vram.store(leaf(), Pte::vram(0x9000, true).into_raw());
        for (command, root, start, pages) in [
            (reg::TLB_INVALIDATE_ROOT, ROOT + PAGE_SIZE, 0, 0),
            (reg::TLB_INVALIDATE_RANGE, ROOT + PAGE_SIZE, VA, 1),
            (reg::TLB_INVALIDATE_RANGE, ROOT, VA, 0),
            (reg::TLB_INVALIDATE_RANGE, ROOT, VA + PAGE_SIZE, 9),
            (reg::TLB_INVALIDATE_RANGE, ROOT, VA - PAGE_SIZE, 1),
            (99, ROOT, VA, 1),
        ] {
            let registers = Invalidation { root, start, pages };
            registers.run(command, &mut tlb);
            assert_eq!(tlb.translate(&vram, ROOT, VA, Access::Read), before);
            // Permission is as stale as the address.
            assert_eq!(
                tlb.translate(&vram, ROOT, VA, Access::Write),
                Err(FaultReason::ReadOnly)
            );
        }
    }

    #[test]
    fn what_is_absent_is_not_cached() {
        let vram = vram();
        let mut tlb = Tlb::new();
        assert!(tlb.translate(&vram, ROOT, VA, Access::Read).is_err());
        map(&vram, Pte::vram(0x8000, false));
        assert!(tlb.translate(&vram, ROOT, VA, Access::Read).is_ok());
    }

    proptest! {
        /// Whatever is in the tables, the walk ends with an answer inside VRAM or a fault.
        #[test]
        fn survives_any_table(
            words in prop::collection::vec((0_u64..512, 0_u64..64, any::<u64>()), 0..64),
            va in any::<u64>(),
            root in any::<u64>(),
        ) {
            let vram = Vram::new(1 << 18).unwrap();
            for (index, page, word) in words {
                vram.store(page * PAGE_SIZE + index * 8, (word & 0x3_ffff) | 1);
            }
            for root in [root, (root % (1 << 18)) & !0xfff] {
                let found = Tlb::new().translate(&vram, root, va, Access::Read);
                if let Ok(Location::Vram(offset)) = found {
                    prop_assert!(offset < vram.size());
                }
            }
        }
    }
}
