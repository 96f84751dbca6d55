// SPDX-License-Identifier: GPL-2.0

//! What the tests drive the device with: a stand-in for driver, guest memory and interrupts.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use crate::bus::Permission;
use crate::device::Device;
use crate::hw::{
    self, channel, reg, table_index, Descriptor, Done, Fault, Pte, Unknown, DESCRIPTOR_SIZE,
    DONE_SIZE, FAULT_ENTRY_SIZE, LEVELS, PAGE_SIZE, VECTORS,
};

/// Size of VRAM.
pub(crate) const VRAM: u64 = 4 << 20;
/// Guest memory: first DMA address, and size.
pub(crate) const RAM: u64 = 0x1000_0000;
pub(crate) const RAM_SIZE: u64 = 4 << 20;

const RING: u64 = RAM;
const DONE: u64 = RAM + 0x1_0000;
const FAULTS: u64 = RAM + 0x1_8000;
/// Slots per ring; the rings of the channels follow each other.
pub(crate) const SLOTS: u32 = 16;
/// Entries of the fault buffer.
pub(crate) const FAULT_SLOTS: u32 = 4;
/// First guest memory that tests may use for data.
pub(crate) const DATA: u64 = RAM + 0x10_0000;
/// The root page table; the other tables follow it.
pub(crate) const ROOT: u64 = 0x1_0000;
/// First VRAM that tests may use for data.
pub(crate) const VDATA: u64 = 0x10_0000;

const PATIENCE: Duration = Duration::from_secs(20);

/// The receiving end of an interrupt.
pub(crate) struct Events(UnixStream);

impl Events {
    /// Returns what the device is to write to, and where that arrives.
    pub(crate) fn new() -> (File, Self) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        (File::from(OwnedFd::from(theirs)), Self(ours))
    }

    /// Returns how many events arrived since the last call.
    pub(crate) fn take(&mut self) -> usize {
        self.0.set_nonblocking(true).unwrap();
        let mut count = 0;
        loop {
            match self.0.read(&mut [0; 8]) {
                Ok(8) => count += 1,
                Ok(_) => return count,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    return count;
                }
            }
        }
    }

    /// Waits for one event.
    pub(crate) fn wait(&mut self) {
        self.0.set_nonblocking(false).unwrap();
        self.0.read_exact(&mut [0; 8]).expect("an interrupt");
    }
}

/// A device with its channels and fault buffer enabled.
pub(crate) struct Rig {
    pub(crate) device: Device,
    pub(crate) events: Vec<Events>,
    ram: MmapRegion,
    file: File,
    tables: u64,
    put: [u32; hw::CHANNELS as usize],
}

impl Rig {
    pub(crate) fn new() -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(RAM_SIZE).unwrap();
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let mut rig = Self {
            device: Device::new(VRAM, &[]).unwrap(),
            events: Vec::new(),
            ram: MmapRegion::from_file(offset, RAM_SIZE as usize).unwrap(),
            file,
            tables: ROOT + PAGE_SIZE,
            put: [0; hw::CHANNELS as usize],
        };
        let gpu = rig.device.gpu();
        gpu.bus.set_master(true);
        gpu.irq.configure(true, false, true);
        let (files, events) = (0..VECTORS).map(|_| Events::new()).unzip();
        gpu.irq.connect(0, files).unwrap();
        rig.events = events;
        rig.map_ram(RAM, RAM_SIZE);
        for index in 0..hw::CHANNELS {
            rig.enable(index);
        }
        rig.write64(reg::FAULT_BASE, FAULTS);
        rig.write32(reg::FAULT_SIZE, FAULT_SLOTS);
        rig.write32(reg::FAULT_CTRL, reg::FAULT_CTRL_ENABLE);
        rig
    }

    /// Makes part of guest memory reachable for DMA.
    pub(crate) fn map_ram(&self, address: u64, size: u64) {
        let both = Permission {
            read: true,
            write: true,
        };
        let file = self.file.try_clone().unwrap();
        let bus = &self.device.gpu().bus;
        bus.map(address, size, both, file, address - RAM).unwrap();
    }

    /// Sets a channel up and enables it.
    pub(crate) fn enable(&mut self, index: u32) {
        let base = channel::base(index);
        let slots = u64::from(index * SLOTS);
        self.write64(base + channel::RING, RING + slots * DESCRIPTOR_SIZE);
        self.write64(base + channel::DONE, DONE + slots * DONE_SIZE);
        self.write32(base + channel::SIZE, SLOTS);
        self.write32(base + channel::CTRL, channel::CTRL_ENABLE);
        self.put[index as usize] = 0;
    }

    pub(crate) fn read32(&mut self, offset: usize) -> u32 {
        let mut data = [0; 4];
        self.device.read(offset as u64, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn read64(&mut self, offset: usize) -> u64 {
        let mut data = [0; 8];
        self.device.read(offset as u64, &mut data);
        u64::from_le_bytes(data)
    }

    pub(crate) fn write32(&mut self, offset: usize, value: u32) {
        self.device.write(offset as u64, &value.to_le_bytes());
    }

    pub(crate) fn write64(&mut self, offset: usize, value: u64) {
        self.device.write(offset as u64, &value.to_le_bytes());
    }

    /// Writes guest memory as the CPU does.
    pub(crate) fn put(&self, address: u64, data: &[u8]) {
        let offset = (address - RAM) as usize;
        self.ram
            .get_slice(offset, data.len())
            .unwrap()
            .copy_from(data);
    }

    /// Reads guest memory as the CPU does.
    pub(crate) fn get(&self, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        let offset = (address - RAM) as usize;
        self.ram
            .get_slice(offset, length)
            .unwrap()
            .copy_to(&mut data);
        data
    }

    fn get_words<const N: usize>(&self, address: u64) -> [u64; N] {
        let bytes = self.get(address, N * 8);
        std::array::from_fn(|n| u64::from_ne_bytes(bytes[n * 8..n * 8 + 8].try_into().unwrap()))
    }

    pub(crate) fn put_words(&self, address: u64, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.put(address, &bytes);
    }

    /// Writes VRAM behind the device's back.
    pub(crate) fn put_vram(&self, offset: u64, data: &[u8]) {
        let vram = &self.device.gpu().vram;
        vram.slice(offset, data.len() as u64)
            .unwrap()
            .copy_from(data);
    }

    /// Reads VRAM behind the device's back.
    pub(crate) fn get_vram(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        let vram = &self.device.gpu().vram;
        vram.slice(offset, length as u64)
            .unwrap()
            .copy_to(&mut data);
        data
    }

    /// Writes a word of VRAM through the instance window.
    pub(crate) fn put_window(&mut self, offset: u64, word: u64) {
        let window = hw::WINDOW_SIZE as u64;
        self.write32(reg::WINDOW, (offset / window) as u32);
        self.write64(hw::WINDOW_OFFSET + (offset % window) as usize, word);
    }

    /// Sets the leaf entry for `va`, with the tables on the way there.
    pub(crate) fn set_pte(&mut self, va: u64, pte: Pte) {
        let mut table = ROOT;
        for level in (1..LEVELS).rev() {
            let place = table + table_index(va, level) as u64 * 8;
            let entry = Pte::from_raw(self.device.gpu().vram.load(place).unwrap());
            table = if entry.is_present() {
                entry.address()
            } else {
                let next = self.tables;
                self.tables += PAGE_SIZE;
                assert!(self.tables <= VDATA);
                self.put_window(place, Pte::table(next).into_raw());
                next
            };
        }
        self.put_window(table + table_index(va, 0) as u64 * 8, pte.into_raw());
    }

    /// Invalidates every translation.
    pub(crate) fn invalidate(&mut self) {
        self.write32(reg::TLB_COMMAND, reg::TLB_INVALIDATE_ALL);
        assert_eq!(self.read32(reg::TLB_STATUS), 0);
    }

    /// Adds a descriptor to a channel's ring and rings the doorbell; returns its number.
    pub(crate) fn submit(&mut self, index: u32, descriptor: &Descriptor) -> u32 {
        let number = self.put[index as usize];
        let slot = u64::from(index * SLOTS + number % SLOTS);
        self.put_words(DONE + slot * DONE_SIZE, &[0; 4]);
        self.put_words(RING + slot * DESCRIPTOR_SIZE, descriptor);
        self.put[index as usize] = number.wrapping_add(1);
        let put = self.put[index as usize];
        self.write32(channel::base(index) + channel::PUT, put);
        number
    }

    /// Returns the completion of a descriptor if it is there.
    pub(crate) fn poll(&self, index: u32, number: u32) -> Option<Done> {
        let slot = u64::from(index * SLOTS + number % SLOTS);
        let [fence] = self.get_words(DONE + slot * DONE_SIZE);
        let words = self.get_words(DONE + slot * DONE_SIZE);
        (fence != 0).then(|| Done::decode(&words).unwrap())
    }

    /// Waits for the completion of a descriptor.
    pub(crate) fn wait(&self, index: u32, number: u32) -> Done {
        let mut found = None;
        until(|| {
            found = self.poll(index, number);
            found.is_some()
        });
        found.unwrap()
    }

    /// Submits a descriptor and waits for its completion.
    pub(crate) fn run(&mut self, index: u32, descriptor: &Descriptor) -> Done {
        let number = self.submit(index, descriptor);
        self.wait(index, number)
    }

    /// Waits for the fault with sequence number `seq`.
    pub(crate) fn wait_fault(&self, seq: u32) -> Fault {
        self.fault_entry(seq).unwrap()
    }

    /// As [`Rig::wait_fault`], for an entry that may be garbage.
    pub(crate) fn fault_entry(&self, seq: u32) -> Result<Fault, Unknown> {
        let slot = u64::from((seq - 1) % FAULT_SLOTS);
        let read = || self.get_words(FAULTS + slot * FAULT_ENTRY_SIZE);
        until(|| read()[0] & 0xffff_ffff == u64::from(seq));
        Fault::decode(&read())
    }

    /// Waits until a channel's status is `status`.
    pub(crate) fn wait_status(&mut self, index: u32, status: u32) {
        until(|| self.read32(channel::base(index) + channel::STATUS) == status);
    }

    pub(crate) fn error(&mut self, index: u32) -> u32 {
        self.read32(channel::base(index) + channel::ERROR)
    }
}

/// Waits until `condition` holds.
pub(crate) fn until(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain");
        std::thread::yield_now();
    }
}
