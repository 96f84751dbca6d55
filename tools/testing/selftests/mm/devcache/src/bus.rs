// SPDX-License-Identifier: GPL-2.0
//! A GPU that leaves the bus and comes again.

use crate::gpu::Gpu;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;
use std::time::Instant;

/// How long the bus may take to find a device.
const PATIENCE: Duration = Duration::from_secs(20);

/// Takes the device, a folder in sysfs, from its driver. Returns the folder of that.
pub fn unbind(device: &Path) -> Result<PathBuf> {
    let name = device.file_name().context("a device has a name")?;
    let driver = fs::canonicalize(device.join("driver"))?;
    fs::write(driver.join("unbind"), name.as_encoded_bytes()).context("unbind")?;
    Ok(driver)
}

/// Takes it from the bus.
pub fn remove(device: &Path) -> Result<()> {
    fs::write(device.join("remove"), "1").context("remove the function")
}

/// Has the bus look for devices until this one is there and can be opened.
pub fn rescan(device: &Path) -> Result<()> {
    let there = || Gpu::sysfs().is_ok_and(|found| found == device) && Gpu::open_detached().is_ok();
    let end = Instant::now() + PATIENCE;
    while !there() {
        ensure!(Instant::now() < end, "{} is gone", device.display());
        fs::write("/sys/bus/pci/rescan", "1").context("rescan the bus")?;
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
