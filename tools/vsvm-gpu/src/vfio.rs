// SPDX-License-Identifier: GPL-2.0

//! The GPU as a vfio-user device: what the client asks, translated.
//!
//! No request waits for the GPU's work, and no write is answered with an error: a posted write has
//! nobody to report to.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use vfio_bindings::bindings::vfio::{
    vfio_region_info, VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_MASKABLE, VFIO_IRQ_SET_ACTION_MASK,
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_BAR2_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX,
    VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, ServerBackend, ServerRegion};

use crate::bus::Permission;
use crate::config_space::{self, ConfigSpace};
use crate::device::Device;
use crate::gpu::Counts;
use crate::hw;
use crate::inject::{Knob, Setting};

/// Returns the interrupts to announce to clients: MSI-X, and the report of bus errors that QEMU
/// warns about when it is missing, although there are none to report.
pub(crate) fn irqs() -> Vec<IrqInfo> {
    let info = |index| {
        let (flags, count) = match index {
            VFIO_PCI_MSIX_IRQ_INDEX => (VFIO_IRQ_INFO_MASKABLE, hw::VECTORS),
            VFIO_PCI_ERR_IRQ_INDEX => (0, 1),
            _ => (0, 0),
        };
        IrqInfo {
            index,
            flags: VFIO_IRQ_INFO_EVENTFD | flags,
            count,
        }
    };
    (0..VFIO_PCI_NUM_IRQS).map(info).collect()
}

/// Returns the regions to announce to clients. None can be mapped: a mappable one would turn write
/// posting off in QEMU.
pub(crate) fn regions() -> Vec<ServerRegion> {
    (0..VFIO_PCI_NUM_REGIONS)
        .map(|index| ServerRegion {
            region_info: vfio_region_info {
                argsz: size_of::<vfio_region_info>() as u32,
                index,
                flags: VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE,
                size: match index {
                    VFIO_PCI_BAR0_REGION_INDEX => hw::BAR_SIZE as u64,
                    VFIO_PCI_BAR2_REGION_INDEX => config_space::MSIX_BAR_SIZE.into(),
                    VFIO_PCI_CONFIG_REGION_INDEX => config_space::SIZE as u64,
                    _ => 0,
                },
                ..Default::default()
            },
            sparse_areas: Vec::new(),
            mmap_fd: None,
        })
        .collect()
}

/// The GPU as one client sees it.
pub(crate) struct Function {
    device: Device,
    config: ConfigSpace,
    /// Until when the device has gone from the bus.
    gone: Option<Instant>,
}

impl Function {
    /// Powers on a GPU with `vram_size` bytes of VRAM.
    pub(crate) fn new(vram_size: u64, settings: &[Setting]) -> anyhow::Result<Self> {
        Ok(Self {
            device: Device::new(vram_size, settings)?,
            config: ConfigSpace::new(),
            gone: None,
        })
    }

    /// Returns the counters.
    pub(crate) fn counts(&self) -> Counts {
        self.device.counts()
    }

    /// Lets the device act on what config space says now.
    fn configure(&self) {
        let gpu = self.device.gpu();
        let master = self.config.is_master();
        gpu.bus.set_master(master);
        gpu.irq.configure(
            self.config.msix_enabled(),
            self.config.msix_all_masked(),
            master,
        );
    }

    /// Resets the function. VRAM keeps its contents.
    fn reset_function(&mut self) {
        self.config = ConfigSpace::new();
        self.configure();
        self.device.reset();
        self.device.gpu().irq.forget();
    }

    /// Returns whether the device does not answer. If its time is over it comes back.
    fn is_gone(&mut self) -> bool {
        self.gone = self.gone.filter(|end| Instant::now() < *end);
        self.gone.is_some()
    }

    /// Turns a knob, and makes the device vanish or come back if it is that one.
    fn turn(&mut self, knob: Knob, value: u32) {
        self.device.gpu().inject.set(knob, value);
        if knob != Knob::Gone {
            return;
        }
        self.gone = None;
        if value != 0 {
            self.gone = Some(Instant::now() + Duration::from_millis(value.into()));
            // Neither channels nor interrupts work in this state, nor does bus mastering.
            self.reset_function();
            self.device.gpu().vram.lose();
        }
    }
}

impl ServerBackend for Function {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        match region {
            _ if self.is_gone() => data.fill(0xff),
            VFIO_PCI_BAR0_REGION_INDEX => self.device.read(offset, data),
            VFIO_PCI_BAR2_REGION_INDEX => {
                // The vector table is the client's.
                let mut bar = [0; config_space::MSIX_BAR_SIZE as usize];
                let pending = self.device.gpu().irq.pending().to_le_bytes();
                let pba = config_space::MSIX_PBA as usize;
                bar[pba..pba + pending.len()].copy_from_slice(&pending);
                let from = usize::try_from(offset).ok().and_then(|at| bar.get(at..));
                data.fill(0xff);
                for (byte, value) in data.iter_mut().zip(from.unwrap_or_default()) {
                    *byte = *value;
                }
            }
            VFIO_PCI_CONFIG_REGION_INDEX => {
                self.config.read(offset, data);
                let knob = usize::try_from(offset).ok().and_then(Knob::at);
                if let (Some(knob), [a, b, c, d]) = (knob, data) {
                    let value = self.device.gpu().inject.get(knob).to_le_bytes();
                    [*a, *b, *c, *d] = value;
                }
            }
            _ => data.fill(0xff),
        }
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        if region == VFIO_PCI_CONFIG_REGION_INDEX {
            let knob = usize::try_from(offset).ok().and_then(Knob::at);
            if let (Some(knob), [a, b, c, d]) = (knob, data) {
                self.turn(knob, u32::from_le_bytes([*a, *b, *c, *d]));
                return Ok(());
            }
        }
        match region {
            _ if self.is_gone() => {}
            VFIO_PCI_BAR0_REGION_INDEX => self.device.write(offset, data),
            VFIO_PCI_CONFIG_REGION_INDEX => {
                if self.config.write(offset, data) {
                    self.reset_function();
                } else {
                    self.configure();
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        file: Option<File>,
    ) -> io::Result<()> {
        // Memory without a descriptor, as a ROM, is no target for DMA.
        let Some(file) = file else {
            return Ok(());
        };
        let permission = Permission {
            read: flags.contains(DmaMapFlags::READ),
            write: flags.contains(DmaMapFlags::WRITE),
        };
        let bus = &self.device.gpu().bus;
        bus.map(address, size, permission, file, offset)
            .inspect_err(|error| {
                eprintln!("vsvm-gpu: cannot map {size:#x} bytes at {address:#x} for DMA: {error}");
            })
    }

    fn dma_unmap(&mut self, flags: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        let bus = &self.device.gpu().bus;
        if flags.contains(DmaUnmapFlags::UNMAP_ALL) {
            bus.unmap_all();
            return Ok(());
        }
        bus.unmap(address, size).inspect_err(|error| {
            eprintln!("vsvm-gpu: cannot unmap {size:#x} bytes at {address:#x}: {error}");
        })
    }

    fn reset(&mut self) -> io::Result<()> {
        self.reset_function();
        Ok(())
    }

    fn set_irqs(
        &mut self,
        index: u32,
        flags: u32,
        start: u32,
        count: u32,
        events: Vec<File>,
    ) -> io::Result<()> {
        if index != VFIO_PCI_MSIX_IRQ_INDEX {
            return Ok(());
        }
        let irq = &self.device.gpu().irq;
        if flags & VFIO_IRQ_SET_ACTION_MASK != 0 {
            irq.mask(start, count, true)
        } else if flags & VFIO_IRQ_SET_ACTION_UNMASK != 0 {
            irq.mask(start, count, false)
        } else if flags & VFIO_IRQ_SET_ACTION_TRIGGER == 0 {
            Err(io::ErrorKind::InvalidInput.into())
        } else if count == 0 {
            irq.disconnect_all();
            Ok(())
        } else if flags & VFIO_IRQ_SET_DATA_EVENTFD == 0 {
            irq.trigger(start, count)
        } else if events.is_empty() {
            irq.disconnect(start, count)
        } else {
            irq.connect(start, events)
        }
    }
}
