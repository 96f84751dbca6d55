// SPDX-License-Identifier: GPL-2.0

//! What happened, in numbers.
//!
//! Totals of a device since it was probed. They are shown to each client in
//! `/proc/<pid>/fdinfo/<fd>`, and logged when the device is unbound.

use kernel::{
    fmt,
    num::casts,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

use crate::hw::{
    self,
    CopyOp, //
};

/// Totals of a device.
#[derive(Default)]
pub(crate) struct Stats {
    /// Pages copied to VRAM.
    pages_in: Counter,
    /// Pages copied back to system memory.
    pages_back: Counter,
    /// Pages of VRAM filled with zeroes: page tables, and memory that nothing was stored in.
    pages_cleared: Counter,
    /// Pages sent back to make room.
    pub(crate) pages_evicted: Counter,
    /// Faults of the GPU that were serviced.
    pub(crate) gpu_faults: Counter,
    /// Pages mapped for the GPU.
    pub(crate) pages_mapped: Counter,
    /// Jobs that have ended.
    pub(crate) jobs: Counter,
}

/// A number that only grows.
pub(crate) struct Counter(Atomic<u64>);

impl Default for Counter {
    fn default() -> Self {
        Self(Atomic::new(0))
    }
}

impl Counter {
    /// Counts `n` more.
    pub(crate) fn add(&self, n: usize) {
        self.0.add(casts::usize_as_u64(n), Relaxed);
    }

    /// Returns the number.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Stats {
    /// Counts pages that the copy engine is done with.
    pub(crate) fn copied(&self, op: CopyOp, pages: usize) {
        match op {
            CopyOp::ToVram => self.pages_in.add(pages),
            CopyOp::FromVram => self.pages_back.add(pages),
            CopyOp::Fill | CopyOp::VramToVram => self.pages_cleared.add(pages),
        }
    }

    /// Calls `show` with the name and the value of each number.
    pub(crate) fn each(&self, mut show: impl FnMut(&str, u64)) {
        let (pages_in, pages_back) = (self.pages_in.get(), self.pages_back.get());
        show("pages-in", pages_in);
        show("pages-back", pages_back);
        show("pages-cleared", self.pages_cleared.get());
        show("dma-bytes-in", pages_in * hw::PAGE_SIZE);
        show("dma-bytes-back", pages_back * hw::PAGE_SIZE);
        show("pages-evicted", self.pages_evicted.get());
        show("gpu-faults", self.gpu_faults.get());
        show("pages-mapped", self.pages_mapped.get());
        show("jobs", self.jobs.get());
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut result = Ok(());
        let mut separator = "";
        self.each(|name, value| {
            if result.is_ok() {
                result = f.write_fmt(fmt!("{separator}{name} {value}"));
            }
            separator = ", ";
        });
        result
    }
}
