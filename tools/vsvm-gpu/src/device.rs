// SPDX-License-Identifier: GPL-2.0

//! BAR 0 and power: the side of the GPU that the server loop owns.
//!
//! Every access is answered at once: what takes time runs on the channels' threads. The longest
//! wait is for the lock of a translation cache, held for one page's work at a time.

use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::gpu::{Counts, Gpu};
use crate::hw::{self, channel, reg};
use crate::inject::Setting;
use crate::mmu::Invalidation;
use crate::words::Half;
use crate::{compute, copy};

const REGISTERS: Range<usize> = 0..hw::WINDOW_OFFSET;
const WINDOW: Range<usize> = hw::WINDOW_OFFSET..hw::WINDOW_OFFSET + hw::WINDOW_SIZE;
const FAULT_UNIT: Range<usize> = reg::FAULT_BASE..reg::STAT_DMA_READ;

const VRAM_SIZE_HIGH: usize = reg::VRAM_SIZE + 4;
const TLB_ROOT_HIGH: usize = reg::TLB_ROOT + 4;
const TLB_START_HIGH: usize = reg::TLB_START + 4;
const TLB_PAGES_HIGH: usize = reg::TLB_PAGES + 4;
const STAT_DMA_READ_HIGH: usize = reg::STAT_DMA_READ + 4;
const STAT_DMA_WRITE_HIGH: usize = reg::STAT_DMA_WRITE + 4;
const STAT_FAULTS_HIGH: usize = reg::STAT_FAULTS + 4;
const STAT_COMMANDS_HIGH: usize = reg::STAT_COMMANDS + 4;

/// The GPU, powered on while this exists.
pub(crate) struct Device {
    gpu: Arc<Gpu>,
    threads: Vec<JoinHandle<()>>,
    window: u32,
    invalidation: Invalidation,
    resetting: bool,
}

impl Device {
    /// Powers on a GPU with `vram_size` bytes of VRAM.
    pub(crate) fn new(vram_size: u64, settings: &[Setting]) -> anyhow::Result<Self> {
        let mut device = Self {
            gpu: Arc::new(Gpu::new(vram_size, settings)?),
            threads: Vec::new(),
            window: 0,
            invalidation: Invalidation::default(),
            resetting: false,
        };
        for index in 0..hw::CHANNELS {
            let gpu = Arc::clone(&device.gpu);
            let execute = match index {
                hw::CHANNEL_COPY => copy::execute,
                _ => compute::execute,
            };
            let thread = std::thread::Builder::new()
                .name(format!("channel {index}"))
                .spawn(move || gpu.channels[index as usize].run(&gpu, execute))?;
            device.threads.push(thread);
        }
        Ok(device)
    }

    /// Returns the parts that are not reached through BAR 0.
    pub(crate) fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Returns the counters.
    pub(crate) fn counts(&self) -> Counts {
        self.gpu.stats.get()
    }

    /// Does what [`reg::RESET_ALL`] does.
    pub(crate) fn reset(&mut self) {
        for channel in &self.gpu.channels {
            channel.reset(&self.gpu);
            channel.tlb.lock().clear();
        }
        self.gpu.faults.reset();
        self.window = 0;
        self.invalidation = Invalidation::default();
        self.resetting = true;
    }

    fn is_resetting(&mut self) -> bool {
        self.resetting =
            self.resetting && self.gpu.channels.iter().any(|channel| channel.is_busy());
        self.resetting
    }

    /// Reads BAR 0, any number of bytes from any offset.
    pub(crate) fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let mut at = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut rest = data;
        while !rest.is_empty() {
            let mut word = [0xff; 8];
            // An access never reaches over the end of its word.
            let (skip, end) = if WINDOW.contains(&at) {
                match self.window_width(at, rest.len()) {
                    8 => put(&mut word, self.window_load::<u64>(at).map(u64::to_ne_bytes)),
                    4 => put(&mut word, self.window_load::<u32>(at).map(u32::to_ne_bytes)),
                    _ => put(&mut word, self.window_load::<u8>(at).map(u8::to_ne_bytes)),
                }
            } else if REGISTERS.contains(&at) {
                let value = self.read_register(at & !3).to_le_bytes();
                let (_, end) = put(&mut word, Some(value));
                (at % 4, end)
            } else {
                return;
            };
            let length = (end - skip).min(rest.len());
            let (head, tail) = rest.split_at_mut(length);
            head.copy_from_slice(&word[skip..skip + length]);
            rest = tail;
            at += length;
        }
    }

    /// Writes BAR 0, any number of bytes at any offset.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        let mut at = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut rest = data;
        while !rest.is_empty() {
            let length = if WINDOW.contains(&at) {
                let width = self.window_width(at, rest.len());
                match *rest {
                    [a, b, c, d, e, f, g, h, ..] if width == 8 => {
                        let word = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
                        self.gpu.vram.store(self.window_offset(at), word);
                    }
                    [a, b, c, d, ..] if width == 4 => {
                        let word = u32::from_ne_bytes([a, b, c, d]);
                        self.gpu.vram.store(self.window_offset(at), word);
                    }
                    [byte, ..] => self.gpu.vram.store(self.window_offset(at), byte),
                    [] => {}
                }
                width
            } else if REGISTERS.contains(&at) {
                match *rest {
                    [a, b, c, d, ..] if at % 4 == 0 => {
                        self.write_register(at, u32::from_le_bytes([a, b, c, d]));
                        4
                    }
                    _ => (4 - at % 4).min(rest.len()),
                }
            } else {
                return;
            };
            rest = rest.get(length..).unwrap_or_default();
            at += length;
        }
    }

    /// Returns the width of the next access to the window, given what is left of the request.
    fn window_width(&self, at: usize, left: usize) -> usize {
        match left {
            8.. if at % 8 == 0 => 8,
            4.. if at % 4 == 0 => 4,
            _ => 1,
        }
    }

    /// Returns the offset in VRAM that a place in the window shows.
    fn window_offset(&self, at: usize) -> u64 {
        u64::from(self.window) * hw::WINDOW_SIZE as u64 + (at - WINDOW.start) as u64
    }

    fn window_load<T: vm_memory::AtomicAccess>(&self, at: usize) -> Option<T> {
        self.gpu.vram.load(self.window_offset(at))
    }

    fn read_register(&mut self, offset: usize) -> u32 {
        let counts = self.gpu.stats.get();
        match offset {
            reg::ID => hw::ID_MAGIC,
            reg::VERSION => hw::INTERFACE_VERSION,
            reg::VRAM_SIZE => self.gpu.vram_size().low(),
            VRAM_SIZE_HIGH => self.gpu.vram_size().high(),
            reg::RESET if self.is_resetting() => reg::RESET_ALL,
            reg::WINDOW => self.window,
            reg::TLB_ROOT => self.invalidation.root.low(),
            TLB_ROOT_HIGH => self.invalidation.root.high(),
            reg::TLB_START => self.invalidation.start.low(),
            TLB_START_HIGH => self.invalidation.start.high(),
            reg::TLB_PAGES => self.invalidation.pages.low(),
            TLB_PAGES_HIGH => self.invalidation.pages.high(),
            reg::STAT_DMA_READ => counts.read.low(),
            STAT_DMA_READ_HIGH => counts.read.high(),
            reg::STAT_DMA_WRITE => counts.written.low(),
            STAT_DMA_WRITE_HIGH => counts.written.high(),
            reg::STAT_FAULTS => counts.faults.low(),
            STAT_FAULTS_HIGH => counts.faults.high(),
            reg::STAT_COMMANDS => counts.commands.low(),
            STAT_COMMANDS_HIGH => counts.commands.high(),
            _ if FAULT_UNIT.contains(&offset) => self.gpu.faults.read(offset),
            _ => match self.channel_at(offset) {
                Some((index, offset)) => self.gpu.channels[index].read(&self.gpu, offset),
                None => 0,
            },
        }
    }

    fn write_register(&mut self, offset: usize, value: u32) {
        match offset {
            reg::RESET if value & reg::RESET_ALL != 0 => self.reset(),
            reg::WINDOW => self.window = value,
            reg::TLB_ROOT => self.invalidation.root.set_low(value),
            TLB_ROOT_HIGH => self.invalidation.root.set_high(value),
            reg::TLB_START => self.invalidation.start.set_low(value),
            TLB_START_HIGH => self.invalidation.start.set_high(value),
            reg::TLB_PAGES => self.invalidation.pages.set_low(value),
            TLB_PAGES_HIGH => self.invalidation.pages.set_high(value),
            // Done when the write is, so `TLB_STATUS` never reads as busy.
            reg::TLB_COMMAND => {
                for channel in &self.gpu.channels {
                    self.invalidation.run(value, &mut channel.tlb.lock());
                }
            }
            _ if FAULT_UNIT.contains(&offset) => self.gpu.faults.write(offset, value),
            _ => {
                if let Some((index, offset)) = self.channel_at(offset) {
                    self.gpu.channels[index].write(&self.gpu, offset, value);
                }
            }
        }
    }

    /// Returns which channel's register is at `offset`, and the offset among that channel's.
    fn channel_at(&self, offset: usize) -> Option<(usize, usize)> {
        let offset = offset.checked_sub(channel::base(0))?;
        let index = offset / channel::STRIDE;
        (index < self.gpu.channels.len()).then_some((index, offset % channel::STRIDE))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        for channel in &self.gpu.channels {
            channel.power_off(&self.gpu);
        }
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// Puts the bytes of a value that was found at the start of `word`; returns where they are.
fn put<const N: usize>(word: &mut [u8; 8], value: Option<[u8; N]>) -> (usize, usize) {
    if let Some(value) = value {
        word[..N].copy_from_slice(&value);
    }
    (0, N)
}
