// SPDX-License-Identifier: GPL-2.0

//! What happened, in numbers.
//!
//! Totals of a device since it was probed are in debugfs, and logged when the device is unbound. What was
//! done for a client since it attached is in `/proc/<pid>/fdinfo/<fd>`.

use kernel::{
    debugfs,
    device::{
        Bound,
        Device, //
    },
    fmt,
    num::casts,
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
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

    /// Returns the numbers with their names.
    fn all(&self) -> [(&'static str, u64); 9] {
        let (pages_in, pages_back) = (self.pages_in.get(), self.pages_back.get());
        [
            ("pages-in", pages_in),
            ("pages-back", pages_back),
            ("pages-cleared", self.pages_cleared.get()),
            ("dma-bytes-in", pages_in * hw::PAGE_SIZE),
            ("dma-bytes-back", pages_back * hw::PAGE_SIZE),
            ("pages-evicted", self.pages_evicted.get()),
            ("gpu-faults", self.gpu_faults.get()),
            ("pages-mapped", self.pages_mapped.get()),
            ("jobs", self.jobs.get()),
        ]
    }
}

/// One line.
impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (name, value) in self.all() {
            f.write_fmt(fmt!("{separator}{name} {value}"))?;
            separator = ", ";
        }
        Ok(())
    }
}

/// A line for each number.
fn show_lines(stats: &Arc<Stats>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (name, value) in stats.all() {
        f.write_fmt(fmt!("{name} {value}\n"))?;
    }
    Ok(())
}

/// Shows the totals of a device as long as it is bound, and logs them in the end.
pub(crate) struct Totals<'bound> {
    dev: &'bound Device<Bound>,
    stats: Arc<Stats>,
    _file: Pin<KBox<debugfs::File<Arc<Stats>>>>,
}

impl<'bound> Totals<'bound> {
    /// Creates the file `stats` in a folder of debugfs that is named after the device.
    pub(crate) fn new(dev: &'bound Device<Bound>, stats: Arc<Stats>) -> Result<Self> {
        let name = CString::try_from_fmt(fmt!("vsvm-{}", dev.name()))?;
        let dir = debugfs::Dir::new(&name);
        let file = dir.read_callback_file(c"stats", stats.clone(), &show_lines);
        let file = KBox::pin_init(file, GFP_KERNEL)?;
        Ok(Self {
            dev,
            stats,
            _file: file,
        })
    }
}

impl Drop for Totals<'_> {
    fn drop(&mut self) {
        dev_info!(self.dev, "{}\n", &*self.stats);
    }
}

/// What was done for a client.
#[derive(Default)]
pub(crate) struct ClientStats {
    /// Pages moved to VRAM.
    pub(crate) pages_in: Counter,
    /// Faults of its jobs.
    pub(crate) gpu_faults: Counter,
    /// Pages mapped for its jobs.
    pub(crate) pages_mapped: Counter,
    /// Its jobs that have ended.
    pub(crate) jobs: Counter,
}

impl ClientStats {
    /// Returns the numbers with their names.
    pub(crate) fn all(&self) -> [(&'static str, u64); 4] {
        [
            ("pages-in", self.pages_in.get()),
            ("gpu-faults", self.gpu_faults.get()),
            ("pages-mapped", self.pages_mapped.get()),
            ("jobs", self.jobs.get()),
        ]
    }
}
