// SPDX-License-Identifier: GPL-2.0
//! What the demonstration prints: one line per step with the time it took, and the kernel's numbers.

use anyhow::Result;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::stats::Counters;
use std::time::Instant;

/// Prints lines, and knows what the kernel had counted at the beginning.
pub(crate) struct Report<'a> {
    gpu: &'a Gpu,
    core: Counters,
    driver: Counters,
    step: Instant,
}

impl<'a> Report<'a> {
    /// Begins.
    pub(crate) fn new(gpu: &'a Gpu, title: &str) -> Result<Self> {
        println!("{title}");
        Ok(Report {
            gpu,
            core: Counters::core()?,
            driver: Counters::gpu(gpu)?,
            step: Instant::now(),
        })
    }

    /// Says what was done since the last line.
    pub(crate) fn step(&mut self, text: &str) {
        println!("  {:6.2} s  {text}", self.step.elapsed().as_secs_f64());
        self.step = Instant::now();
    }

    /// Pages that have come back from the device since the beginning, by the core's count.
    pub(crate) fn pages_back(&self) -> Result<u64> {
        Ok(Counters::core()?.get("pages_back")? - self.core.get("pages_back")?)
    }

    /// Says what the kernel has counted since the beginning.
    pub(crate) fn numbers(&self) -> Result<()> {
        let driver = Counters::gpu(self.gpu)?;
        let core = Counters::core()?;
        let core = |name| anyhow::Ok(core.get(name)? - self.core.get(name)?);
        let driver = |name| anyhow::Ok(driver.get(name)? - self.driver.get(name)?);

        println!(
            "  the page cache counted: {} pages to the device, {} pages back, {} lost",
            core("pages_out")?,
            core("pages_back")?,
            core("pages_lost")?
        );
        println!(
            "  the driver counted: {} pages in and {} back, {} MiB in and {} MiB back by DMA, \
             {} GPU faults, {} pages mapped, {} jobs",
            driver("pages-in")?,
            driver("pages-back")?,
            driver("dma-bytes-in")? >> 20,
            driver("dma-bytes-back")? >> 20,
            driver("gpu-faults")?,
            driver("pages-mapped")?,
            driver("jobs")?
        );
        Ok(())
    }
}
