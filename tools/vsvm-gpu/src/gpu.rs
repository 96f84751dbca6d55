// SPDX-License-Identifier: GPL-2.0

//! The parts of the GPU that its threads share.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::bus::Bus;
use crate::channel::Channel;
use crate::faults::Faults;
use crate::hw::{CHANNELS, VECTORS};
use crate::inject::{Inject, Knob, Setting};
use crate::msix::Msix;
use crate::vram::Vram;

/// The GPU without the registers that only the server loop needs.
///
/// Lock order: a channel's state or its translation cache, then the fault unit, then the bus or
/// the interrupts.
pub(crate) struct Gpu {
    pub(crate) vram: Vram,
    pub(crate) bus: Bus,
    pub(crate) irq: Msix,
    pub(crate) faults: Faults,
    pub(crate) channels: Box<[Channel]>,
    pub(crate) stats: Stats,
    pub(crate) inject: Inject,
}

impl Gpu {
    /// Returns a GPU with `vram_size` bytes of VRAM.
    pub(crate) fn new(vram_size: u64, settings: &[Setting]) -> anyhow::Result<Self> {
        Ok(Self {
            vram: Vram::new(vram_size)?,
            bus: Bus::default(),
            irq: Msix::new(),
            faults: Faults::default(),
            channels: (0..CHANNELS).map(Channel::new).collect(),
            stats: Stats::default(),
            inject: Inject::new(settings),
        })
    }

    /// Returns the size of VRAM, or what is to be taken for it.
    pub(crate) fn vram_size(&self) -> u64 {
        match self.inject.get(Knob::Vram) {
            0 => self.vram.size(),
            mib => self.vram.size().min(u64::from(mib) << 20),
        }
    }

    /// Raises a vector.
    pub(crate) fn raise(&self, vector: u32) {
        if !self.inject.happens(Knob::LostIrq) {
            self.irq.raise(vector);
        }
        if self.inject.happens(Knob::SpuriousIrq) {
            (0..VECTORS).for_each(|vector| self.irq.raise(vector));
        }
    }
}

/// Counters, from the start of the model.
#[derive(Default)]
pub(crate) struct Stats {
    read: AtomicU64,
    written: AtomicU64,
    faults: AtomicU64,
    commands: AtomicU64,
}

/// Values of the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Bytes of data read from guest memory.
    pub(crate) read: u64,
    /// Bytes of data written to guest memory.
    pub(crate) written: u64,
    /// Faults reported.
    pub(crate) faults: u64,
    /// Descriptors completed.
    pub(crate) commands: u64,
}

impl Stats {
    /// Counts bytes of data read from guest memory.
    pub(crate) fn count_read(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes of data written to guest memory.
    pub(crate) fn count_written(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts a fault.
    pub(crate) fn count_fault(&self) {
        self.faults.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a completed descriptor.
    pub(crate) fn count_command(&self) {
        self.commands.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the counters.
    pub(crate) fn get(&self) -> Counts {
        Counts {
            read: self.read.load(Ordering::Relaxed),
            written: self.written.load(Ordering::Relaxed),
            faults: self.faults.load(Ordering::Relaxed),
            commands: self.commands.load(Ordering::Relaxed),
        }
    }
}
