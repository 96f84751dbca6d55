// SPDX-License-Identifier: GPL-2.0
//! The device of lib/test_hmm.c, which is no hardware but has device memory and page tables of its own.

use crate::map::Map;
use crate::sys;
use crate::PAGE;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use nix::errno::Errno;
use std::fs::File;
use std::fs::OpenOptions;
use std::ops::Range;

/// The first of its devices with private memory.
const NODE: &str = "/dev/hmm_dmirror0";

/// `struct hmm_dmirror_cmd` of lib/test_hmm_uapi.h
#[repr(C)]
#[derive(Default)]
struct Command {
    addr: u64,
    ptr: u64,
    npages: u64,
    cpages: u64,
    faults: u64,
}

const READ: libc::Ioctl = nix::request_code_readwrite!(b'H', 0, size_of::<Command>());
const WRITE: libc::Ioctl = nix::request_code_readwrite!(b'H', 1, size_of::<Command>());
const TO_DEVICE: libc::Ioctl = nix::request_code_readwrite!(b'H', 2, size_of::<Command>());
const TO_SYSTEM: libc::Ioctl = nix::request_code_readwrite!(b'H', 3, size_of::<Command>());

/// The device, with the address space of this process.
#[derive(Debug)]
pub struct Mirror(File);

impl Mirror {
    /// Opens it; every open file is a device of its own.
    pub fn open() -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(NODE);
        Ok(Mirror(file.with_context(|| format!("open {NODE}"))?))
    }

    /// Does something with pages of a mapping, if there are any. `buffer` has room for them.
    fn perform(
        &self,
        request: libc::Ioctl,
        map: &Map,
        pages: &Range<usize>,
        buffer: &mut [u8],
    ) -> Result<(), Errno> {
        assert!(buffer.len() >= pages.len() * PAGE);
        if pages.is_empty() {
            return Ok(());
        }
        let mut command = Command {
            addr: map.page_addr(pages.start) as u64,
            ptr: buffer.as_mut_ptr() as u64,
            npages: pages.len() as u64,
            ..Default::default()
        };
        sys::ioctl(&self.0, request, &mut command)
    }

    /// Moves pages to the device, as far as they can be moved.
    pub fn send(&self, map: &Map, pages: Range<usize>) -> Result<()> {
        let mut buffer = vec![0; pages.len() * PAGE];
        match self.perform(TO_DEVICE, map, &pages, &mut buffer) {
            // None of them could be moved.
            Err(Errno::ENOENT) => Ok(()),
            result => result.context("hmm_dmirror migrates to the device"),
        }
    }

    /// Moves pages back from it.
    pub fn recall(&self, map: &Map, pages: Range<usize>) -> Result<()> {
        self.perform(TO_SYSTEM, map, &pages, &mut vec![0; pages.len() * PAGE])
            .context("hmm_dmirror migrates to the system")
    }

    /// What the device reads there.
    pub fn read(&self, map: &Map, pages: Range<usize>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; pages.len() * PAGE];
        self.perform(READ, map, &pages, &mut bytes)
            .context("hmm_dmirror reads")?;
        Ok(bytes)
    }

    /// Has the device write whole pages.
    pub fn write(&self, map: &Map, pages: Range<usize>, bytes: &mut [u8]) -> Result<()> {
        ensure!(
            bytes.len() == pages.len() * PAGE,
            "these are no whole pages"
        );
        self.perform(WRITE, map, &pages, bytes)
            .context("hmm_dmirror writes")
    }
}
