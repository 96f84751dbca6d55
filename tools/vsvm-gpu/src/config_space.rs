// SPDX-License-Identifier: GPL-2.0

//! PCI configuration space: a PCI Express endpoint with MSI-X and function-level reset.
//!
//! Plain bytes with a mask of those bits that software may write. Who writes asks afterwards what
//! the bits say now; only a function-level reset is an event.

use crate::hw;
use crate::inject;

/// Size of the configuration space of a PCI Express function.
pub(crate) const SIZE: usize = 4096;
/// The BAR of the MSI-X structures, and its size.
pub(crate) const MSIX_BAR: u32 = 2;
pub(crate) const MSIX_BAR_SIZE: u32 = 4096;
/// Offset of the pending bit array in its BAR; the vector table is at 0.
pub(crate) const MSIX_PBA: u32 = 0x800;

const COMMAND: usize = 0x04;
const COMMAND_MASTER: u16 = 1 << 2;
const BAR_0: usize = 0x10;
const BAR_2: usize = 0x18;
const EXPRESS: usize = 0x40;
const DEVICE_CONTROL: usize = EXPRESS + 8;
const DEVICE_CONTROL_FLR: u16 = 1 << 15;
const MSIX: usize = 0x80;
const MSIX_CONTROL: usize = MSIX + 2;
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_MASK_ALL: u16 = 1 << 14;

/// Returns where an access begins; one that begins anywhere beyond the end does so at the end.
fn start(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(SIZE).min(SIZE)
}

/// The configuration space.
pub(crate) struct ConfigSpace {
    bytes: Vec<u8>,
    writable: Vec<u8>,
}

impl ConfigSpace {
    /// Returns the space as after a reset.
    pub(crate) fn new() -> Self {
        let mut space = Self {
            bytes: vec![0; SIZE],
            writable: vec![0; SIZE],
        };
        let class = hw::PCI_CLASS.to_le_bytes();
        space.set(0x00, hw::PCI_VENDOR.to_le_bytes());
        space.set(0x02, hw::PCI_DEVICE.to_le_bytes());
        // Memory space, bus master, parity and SERR reporting, INTx disable; capability list.
        space.allow(COMMAND, 0x0546_u16.to_le_bytes());
        space.set(0x06, 0x0010_u16.to_le_bytes());
        space.set(0x09, [class[0], class[1], class[2]]);
        space.allow(0x0c, [0xff]);
        space.allow(BAR_0, (!(hw::BAR_SIZE as u32 - 1)).to_le_bytes());
        space.allow(BAR_2, (!(MSIX_BAR_SIZE - 1)).to_le_bytes());
        space.set(0x2c, hw::PCI_VENDOR.to_le_bytes());
        space.set(0x2e, hw::PCI_DEVICE.to_le_bytes());
        space.set(0x34, [EXPRESS as u8]);
        space.allow(0x3c, [0xff]);

        // Express: version 2 endpoint; role-based errors, function-level reset; a 2.5 GT/s link of
        // width one.
        space.set(EXPRESS, [0x10, MSIX as u8]);
        space.set(EXPRESS + 2, 0x0002_u16.to_le_bytes());
        space.set(EXPRESS + 4, 0x1000_8000_u32.to_le_bytes());
        space.set(DEVICE_CONTROL, 0x2810_u16.to_le_bytes());
        space.allow(DEVICE_CONTROL, 0x7fff_u16.to_le_bytes());
        space.set(EXPRESS + 0x0c, 0x0000_0011_u32.to_le_bytes());
        space.allow(EXPRESS + 0x10, 0x00c8_u16.to_le_bytes());
        space.set(EXPRESS + 0x12, 0x0011_u16.to_le_bytes());

        space.set(MSIX, [0x11, inject::CAPABILITY as u8]);
        // The field holds the number of vectors less one.
        space.set(MSIX_CONTROL, (hw::VECTORS as u16 - 1).to_le_bytes());
        space.allow(MSIX_CONTROL, (MSIX_ENABLE | MSIX_MASK_ALL).to_le_bytes());
        space.set(MSIX + 4, MSIX_BAR.to_le_bytes());
        space.set(MSIX + 8, (MSIX_PBA | MSIX_BAR).to_le_bytes());

        // Vendor-specific: its registers are elsewhere.
        let length = inject::CAPABILITY_SIZE as u8;
        space.set(inject::CAPABILITY, [0x09, 0, length]);
        space
    }

    fn set<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        self.bytes[at..at + N].copy_from_slice(&bytes);
    }

    fn allow<const N: usize>(&mut self, at: usize, bits: [u8; N]) {
        self.writable[at..at + N].copy_from_slice(&bits);
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    /// Reads any number of bytes; those beyond the end are ones.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (start(offset)..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(0xff);
        }
    }

    /// Writes any number of bytes, and tells whether that asks for a function-level reset.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> bool {
        let mut reset = false;
        for (at, value) in (start(offset)..).zip(data) {
            let place = self.bytes.get_mut(at).zip(self.writable.get(at));
            let Some((byte, mask)) = place else {
                break;
            };
            *byte = (*byte & !mask) | (value & mask);
            reset |= at == DEVICE_CONTROL + 1 && value & (DEVICE_CONTROL_FLR >> 8) as u8 != 0;
        }
        reset
    }

    /// Whether the function may access memory and send messages.
    pub(crate) fn is_master(&self) -> bool {
        self.word(COMMAND) & COMMAND_MASTER != 0
    }

    /// Whether MSI-X is enabled.
    pub(crate) fn msix_enabled(&self) -> bool {
        self.word(MSIX_CONTROL) & MSIX_ENABLE != 0
    }

    /// Whether all MSI-X vectors are masked at once.
    pub(crate) fn msix_all_masked(&self) -> bool {
        self.word(MSIX_CONTROL) & MSIX_MASK_ALL != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<const N: usize>(space: &ConfigSpace, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        space.read(offset, &mut data);
        data
    }

    #[test]
    fn identity() {
        let space = ConfigSpace::new();
        assert_eq!(read(&space, 0), [0xf4, 0x1a, 0xf0, 0x10]);
        assert_eq!(read(&space, 9), [0x00, 0x02, 0x03]);
    }

    #[test]
    fn bars_tell_their_size() {
        let mut space = ConfigSpace::new();
        for (bar, size) in [(0, 0x20000), (1, 0), (2, 0x1000), (3, 0), (4, 0), (5, 0)] {
            space.write(0x10 + bar * 4, &[0xff; 4]);
            let mask = u32::from_le_bytes(read(&space, 0x10 + bar * 4));
            assert_eq!(mask.wrapping_neg(), size, "BAR {bar}");
        }
    }

    #[test]
    fn capabilities_are_linked() {
        let space = ConfigSpace::new();
        let mut found = Vec::new();
        let [mut at] = read(&space, 0x34);
        while at != 0 {
            let [id, next] = read(&space, u64::from(at));
            found.push(id);
            at = next;
        }
        assert_eq!(found, [0x10, 0x11, 0x09]);
        let [control, _] = read(&space, 0x82);
        assert_eq!(u32::from(control) + 1, hw::VECTORS);
    }

    #[test]
    fn only_writable_bits_change() {
        let mut space = ConfigSpace::new();
        assert!(!space.write(0, &[0xff; 0x40]));
        assert_eq!(read(&space, 0), [0xf4, 0x1a, 0xf0, 0x10]);
        assert!(space.is_master());
        space.write(0x04, &[0, 0]);
        assert!(!space.is_master());
        assert!(!space.write(SIZE as u64 - 1, &[0xff; 8]));
        assert_eq!(read(&space, SIZE as u64 - 1), [0x00, 0xff]);
        assert_eq!(read(&space, u64::MAX), [0xff]);
    }

    #[test]
    fn reset_bit_is_an_event_and_reads_as_zero() {
        let mut space = ConfigSpace::new();
        assert!(!space.write(0x48, &[0x10, 0x28]));
        assert!(space.write(0x48, &[0x10, 0xa8]));
        assert!(space.write(0x49, &[0x80]));
        assert_eq!(read::<1>(&space, 0x49)[0] & 0x80, 0);
    }

    #[test]
    fn msix_control() {
        let mut space = ConfigSpace::new();
        assert!(!space.msix_enabled() && !space.msix_all_masked());
        space.write(0x82, &[0xff, 0xff]);
        assert!(space.msix_enabled() && space.msix_all_masked());
        space.write(0x83, &[0x80]);
        assert!(space.msix_enabled() && !space.msix_all_masked());
    }
}
