// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Page tables of the vsvm GPU.
//!
//! [`LEVELS`] levels of tables, each one page of VRAM with [`ENTRIES_PER_TABLE`] entries of 8
//! bytes, translate virtual addresses below [`VA_END`]. Level 0 is the leaf level: its entries map
//! one page each, of VRAM or of system memory. Entries of the other levels point to the next table
//! in VRAM. An address space is named by the VRAM offset of its root table.

use super::{
    PAGE_SHIFT,
    PAGE_SIZE, //
};

/// Levels of page tables; the root is level `LEVELS - 1`.
pub(crate) const LEVELS: u32 = 4;
/// Entries of 8 bytes in a page table.
pub(crate) const ENTRIES_PER_TABLE: usize = 1 << INDEX_BITS;
/// First virtual address that cannot be translated.
pub(crate) const VA_END: u64 = 1 << (PAGE_SHIFT + LEVELS * INDEX_BITS);

/// Bits of a virtual address that select an entry of one table.
const INDEX_BITS: u32 = 9;

/// Returns the index of the entry for virtual address `va` in its table of `level`.
///
/// The result is below [`ENTRIES_PER_TABLE`] for any argument; `va` must be below [`VA_END`] and
/// `level` below [`LEVELS`] for it to mean something.
pub(crate) const fn table_index(va: u64, level: u32) -> usize {
    let shift = PAGE_SHIFT + INDEX_BITS * (level % LEVELS);
    // CAST: `ENTRIES_PER_TABLE` is small, and so is a value masked by it.
    (va >> shift) as usize & (ENTRIES_PER_TABLE - 1)
}

/// An entry of a page table of any level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pte(u64);

impl Pte {
    const PRESENT: u64 = 1 << 0;
    const WRITE: u64 = 1 << 1;
    const SYSTEM: u64 = 1 << 2;
    const ADDRESS: u64 = ((1 << 52) - 1) & !(PAGE_SIZE - 1);

    /// The entry that maps nothing.
    pub(crate) const NONE: Self = Self(0);

    /// Returns a leaf entry for the page at VRAM offset `offset`, which is rounded down to a page.
    pub(crate) const fn vram(offset: u64, write: bool) -> Self {
        Self::leaf(offset, write)
    }

    /// Returns a leaf entry for the page of system memory at DMA address `address`, which is
    /// rounded down to a page.
    pub(crate) const fn system(address: u64, write: bool) -> Self {
        Self(Self::leaf(address, write).0 | Self::SYSTEM)
    }

    /// Returns an entry for the next table, at VRAM offset `offset`, which is rounded down to a
    /// page.
    pub(crate) const fn table(offset: u64) -> Self {
        Self::leaf(offset, false)
    }

    const fn leaf(address: u64, write: bool) -> Self {
        let write = if write { Self::WRITE } else { 0 };
        Self((address & Self::ADDRESS) | write | Self::PRESENT)
    }

    /// Returns the entry as read from a table.
    pub(crate) const fn from_raw(raw: u64) -> Self {
        Self(u64::from_le(raw))
    }

    /// Returns the entry as it is to be written to a table.
    pub(crate) const fn into_raw(self) -> u64 {
        self.0.to_le()
    }

    /// Whether the entry maps anything. If not, the device looks at no other bit.
    pub(crate) const fn is_present(self) -> bool {
        self.0 & Self::PRESENT != 0
    }

    /// Whether a leaf entry allows writing. It always allows reading.
    pub(crate) const fn is_writable(self) -> bool {
        self.0 & Self::WRITE != 0
    }

    /// Whether a leaf entry maps system memory rather than VRAM.
    pub(crate) const fn is_system(self) -> bool {
        self.0 & Self::SYSTEM != 0
    }

    /// Returns the VRAM offset or DMA address, page aligned.
    pub(crate) const fn address(self) -> u64 {
        self.0 & Self::ADDRESS
    }

    /// Whether a present entry has only bits set that mean something at `level`.
    pub(crate) const fn is_well_formed(self, level: u32) -> bool {
        let allowed = if level == 0 {
            Self::PRESENT | Self::WRITE | Self::SYSTEM | Self::ADDRESS
        } else {
            Self::PRESENT | Self::ADDRESS
        };
        self.0 & !allowed == 0
    }
}
