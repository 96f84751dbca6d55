// SPDX-License-Identifier: GPL-2.0

//! Access to the registers and the instance window.
//!
//! [`Regs`] owns the mapping of BAR 0. It is shared by the parts of the driver, each of which owns
//! the registers of one unit and knows the lock that guards them.

use kernel::{
    device::Bound,
    io::{
        poll::read_poll_timeout,
        Io, //
    },
    pci,
    prelude::*,
    time::Delta, //
};

use crate::hw::{
    self,
    reg, //
};

/// How long the device may take to come to rest after a reset or after a channel was disabled.
pub(crate) const QUIESCE_TIMEOUT: Delta = Delta::from_millis(2000);

/// What a register reads as when the device has gone.
const GONE: u32 = u32::MAX;

/// The mapping of BAR 0.
pub(crate) struct Regs<'bound> {
    bar: pci::Bar<'bound, { hw::BAR_SIZE }>,
}

impl<'bound> Regs<'bound> {
    /// Maps the registers and finds out whether a device that we know answers.
    ///
    /// # Errors
    ///
    /// `ENODEV`, with a message, if not.
    pub(crate) fn new(pdev: &'bound pci::Device<Bound>) -> Result<Self> {
        let dev = pdev.as_ref();
        let regs = Self {
            bar: pdev.iomap_region_sized::<{ hw::BAR_SIZE }>(0, c"vsvm/bar0")?,
        };

        let (id, version) = (regs.read::<{ reg::ID }>(), regs.read::<{ reg::VERSION }>());
        if id == GONE {
            dev_err!(
                dev,
                "the device does not answer: registers read as all ones\n"
            );
            return Err(ENODEV);
        }
        if id != hw::ID_MAGIC || version != hw::INTERFACE_VERSION {
            dev_err!(
                dev,
                "unknown device {:#010x} or hardware interface {}, not {}\n",
                id,
                version,
                hw::INTERFACE_VERSION
            );
            return Err(ENODEV);
        }
        Ok(regs)
    }

    /// Reads the 32-bit register at `OFFSET`.
    #[inline(always)]
    pub(crate) fn read<const OFFSET: usize>(&self) -> u32 {
        self.bar.read32(OFFSET)
    }

    /// Writes the 32-bit register at `OFFSET`.
    #[inline(always)]
    pub(crate) fn write<const OFFSET: usize>(&self, value: u32) {
        self.bar.write32(value, OFFSET)
    }

    /// Reads the 32-bit register at `offset`.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there is no such offset; so for the other functions that take one.
    pub(crate) fn read_at(&self, offset: usize) -> Result<u32> {
        self.bar.try_read32(offset)
    }

    /// Writes the 32-bit register at `offset`.
    pub(crate) fn write_at(&self, offset: usize, value: u32) -> Result {
        self.bar.try_write32(value, offset)
    }

    /// Reads the 64-bit register at `offset`.
    pub(crate) fn read64(&self, offset: usize) -> Result<u64> {
        self.bar.try_read64(offset)
    }

    /// Writes the 64-bit register or window entry at `offset`.
    pub(crate) fn write64(&self, offset: usize, value: u64) -> Result {
        self.bar.try_write64(value, offset)
    }

    /// Returns whether the device has gone from the bus.
    pub(crate) fn is_gone(&self) -> bool {
        self.read::<{ reg::ID }>() == GONE
    }

    /// Returns the size of VRAM in bytes.
    pub(crate) fn vram_size(&self) -> Result<u64> {
        self.read64(reg::VRAM_SIZE)
    }

    /// Stops all units and waits until the device accesses memory no more. VRAM keeps its contents.
    ///
    /// Context: process context, sleeps.
    ///
    /// # Errors
    ///
    /// `ETIMEDOUT` if the device does not come to rest; `ENODEV` if it has gone.
    pub(crate) fn reset(&self) -> Result {
        self.write::<{ reg::RESET }>(reg::RESET_ALL);
        read_poll_timeout(
            || Ok(self.read::<{ reg::RESET }>()),
            |&value| value == 0 || value == GONE,
            Delta::from_millis(1),
            QUIESCE_TIMEOUT,
        )
        .and_then(|value| if value == GONE { Err(ENODEV) } else { Ok(()) })
    }
}
