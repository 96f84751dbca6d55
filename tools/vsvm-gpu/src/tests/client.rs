// SPDX-License-Identifier: GPL-2.0

//! The vfio-user side, seen from a client as QEMU is one, over a real socket.

use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_PCI_BAR0_REGION_INDEX as BAR,
    VFIO_PCI_BAR2_REGION_INDEX as MSIX_BAR, VFIO_PCI_CONFIG_REGION_INDEX as CONFIG,
    VFIO_PCI_MSIX_IRQ_INDEX as MSIX,
};
use vfio_user::{Client, Server};

use crate::hw::*;
use crate::inject::Knob;
use crate::rig::{until, Events};
use crate::vfio::{self, Function};

const RAM: u64 = 0x8000_0000;
const DONE: u64 = RAM + 0x1000;
const COPY: u64 = channel::base(CHANNEL_COPY) as u64;

struct Link {
    client: Client,
    server: JoinHandle<()>,
    ram: std::fs::File,
    _folder: tempfile::TempDir,
}

impl Link {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gpu");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(|| {
            let irqs = vfio::irqs();
            let server = Server::from_owned_fd(listener.into(), true, irqs, vfio::regions());
            server
                .run(&mut Function::new(1 << 20, &[]).unwrap())
                .unwrap();
        });
        let mut client = Client::new(&path).unwrap();
        let ram = tempfile::tempfile().unwrap();
        ram.set_len(0x10000).unwrap();
        client.dma_map(0, RAM, 0x10000, ram.as_raw_fd()).unwrap();
        Self {
            client,
            server,
            ram,
            _folder: folder,
        }
    }

    fn read<const N: usize>(&mut self, region: u32, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.client.region_read(region, offset, &mut data).unwrap();
        data
    }

    fn write<const N: usize>(&mut self, region: u32, offset: u64, data: [u8; N]) {
        self.client.region_write(region, offset, &data).unwrap();
    }

    fn reg32(&mut self, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(BAR, offset))
    }

    fn set_reg32(&mut self, offset: u64, value: u32) {
        self.write(BAR, offset, value.to_le_bytes());
    }

    /// Turns bus mastering on or off, and MSI-X with it.
    fn set_master(&mut self, on: bool) {
        self.write(CONFIG, 0x04, [if on { 0x06 } else { 0x02 }, 0]);
        self.write(CONFIG, 0x83, [if on { 0x80 } else { 0 }]);
    }

    /// Enables the copy channel.
    fn enable(&mut self) {
        self.write(BAR, COPY + channel::RING as u64, RAM.to_le_bytes());
        self.write(BAR, COPY + channel::DONE as u64, DONE.to_le_bytes());
        self.set_reg32(COPY + channel::SIZE as u64, 4);
        self.set_reg32(COPY + channel::CTRL as u64, channel::CTRL_ENABLE);
    }

    /// Submits the first descriptor: a fence with an interrupt.
    fn submit(&mut self) {
        let command = CopyCommand {
            op: CopyOp::ToVram,
            irq: true,
            fence: 42,
            list: 0,
            segments: 0,
            pattern: 0,
        };
        let bytes = command.encode().map(u64::to_ne_bytes).concat();
        self.ram.write_all_at(&bytes, 0).unwrap();
        self.set_reg32(COPY + channel::PUT as u64, 1);
    }

    fn fence(&self) -> u64 {
        let mut bytes = [0; 8];
        self.ram.read_exact_at(&mut bytes, DONE - RAM).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn error(&mut self) -> u32 {
        self.reg32(COPY + channel::ERROR as u64)
    }

    fn close(self) {
        self.client.shutdown().unwrap();
        self.server.join().unwrap();
    }
}

#[test]
fn regions_and_interrupts_are_announced() {
    let mut link = Link::new();
    assert_eq!(link.client.region(BAR).unwrap().size, BAR_SIZE as u64);
    assert_eq!(link.client.region(MSIX_BAR).unwrap().size, 0x1000);
    assert_eq!(link.client.region(CONFIG).unwrap().size, 0x1000);
    assert_eq!(link.client.get_irq_info(MSIX).unwrap().count, VECTORS);
    assert_eq!(link.client.get_irq_info(0).unwrap().count, 0);
    assert_eq!(link.read(CONFIG, 0), [0xf4, 0x1a, 0xf0, 0x10]);
    assert_eq!(link.reg32(reg::ID as u64), ID_MAGIC);
    assert_eq!(link.read(3, 0), [0xff; 4]);
    link.close();
}

#[test]
fn a_command_with_its_interrupt() {
    let mut link = Link::new();
    let (file, mut events) = Events::new();
    let connect = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD;
    let fds = [file.as_raw_fd()];
    link.client
        .set_irqs(MSIX, connect, VECTOR_COPY, 1, &fds)
        .unwrap();
    link.set_master(true);
    let mask = VFIO_IRQ_SET_ACTION_MASK | VFIO_IRQ_SET_DATA_NONE;
    link.client
        .set_irqs(MSIX, mask, VECTOR_COPY, 1, &[])
        .unwrap();
    link.enable();
    link.submit();
    until(|| link.fence() == 42);
    until(|| link.read(MSIX_BAR, 0x800) == [1 << VECTOR_COPY]);
    assert_eq!(events.take(), 0);
    let unmask = VFIO_IRQ_SET_ACTION_UNMASK | VFIO_IRQ_SET_DATA_NONE;
    link.client
        .set_irqs(MSIX, unmask, VECTOR_COPY, 1, &[])
        .unwrap();
    events.wait();
    assert_eq!(link.read(MSIX_BAR, 0x800), [0]);
    link.close();
}

#[test]
fn no_dma_without_bus_mastering_or_after_unmapping() {
    let mut link = Link::new();
    link.enable();
    link.submit();
    until(|| link.error() == ChannelError::RingRead.code());
    link.set_master(true);
    link.client.dma_unmap(RAM, 0x10000).unwrap();
    link.set_reg32(COPY + channel::ERROR as u64, 0);
    until(|| link.error() == ChannelError::RingRead.code());
    let fd = link.ram.as_raw_fd();
    link.client.dma_map(0, RAM, 0x10000, fd).unwrap();
    link.set_reg32(COPY + channel::ERROR as u64, 0);
    until(|| link.fence() == 42);
    link.set_master(false);
    link.set_reg32(COPY + channel::PUT as u64, 2);
    until(|| link.error() == ChannelError::RingRead.code());
    link.close();
}

#[test]
fn both_resets_reset_config_space_and_device_but_not_vram() {
    let mut link = Link::new();
    for reset in 0..2 {
        link.set_master(true);
        link.enable();
        link.write(BAR, WINDOW_OFFSET as u64, [7; 8]);
        link.set_reg32(reg::WINDOW as u64, 1);
        match reset {
            0 => link.client.reset().unwrap(),
            _ => link.write(CONFIG, 0x48, [0x10, 0xa8]),
        }
        assert_eq!(link.read(CONFIG, 0x04), [0, 0]);
        assert_eq!(link.read(CONFIG, 0x48), [0x10, 0x28]);
        assert_eq!(link.reg32(COPY + channel::CTRL as u64), 0);
        assert_eq!(link.reg32(reg::WINDOW as u64), 0);
        assert_eq!(link.read(BAR, WINDOW_OFFSET as u64), [7; 8]);
    }
    link.close();
}

#[test]
fn a_device_that_has_gone_comes_back_empty() {
    let mut link = Link::new();
    let gone = Knob::Gone.offset() as u64;
    link.set_master(true);
    link.enable();
    link.write(BAR, WINDOW_OFFSET as u64, [7; 8]);
    link.write(CONFIG, gone, u32::MAX.to_le_bytes());
    link.submit();
    assert_eq!(link.reg32(reg::ID as u64), u32::MAX);
    assert_eq!(link.read(CONFIG, 0), [0xff; 4]);
    assert_eq!(link.read(CONFIG, gone), [0xff; 4]);
    assert_eq!(link.read(MSIX_BAR, 0x800), [0xff]);
    link.set_master(true);
    assert_eq!(link.fence(), 0);

    link.write(CONFIG, gone, [0; 4]);
    assert_eq!(link.reg32(reg::ID as u64), ID_MAGIC);
    assert_eq!(link.read(CONFIG, 0x04), [0, 0]);
    assert_ne!(link.read(BAR, WINDOW_OFFSET as u64), [7; 8]);
    assert_eq!(link.fence(), 0);
    link.set_master(true);
    link.enable();
    link.submit();
    until(|| link.fence() == 42);

    link.write(CONFIG, gone, 500_u32.to_le_bytes());
    assert_eq!(link.reg32(reg::ID as u64), u32::MAX);
    until(|| link.reg32(reg::ID as u64) == ID_MAGIC);
    link.close();
}

#[test]
fn knobs_are_turned_in_config_space() {
    let mut link = Link::new();
    let knob = Knob::CopyError.offset() as u64;
    assert_eq!(link.read(CONFIG, knob), [0; 4]);
    link.write(CONFIG, knob, [3, 2, 1, 0]);
    assert_eq!(link.read(CONFIG, knob), [3, 2, 1, 0]);
    link.close();
}
