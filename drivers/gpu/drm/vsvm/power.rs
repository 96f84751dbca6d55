// SPDX-License-Identifier: GPL-2.0

//! Resets of the function, and sleep.
//!
//! Somebody may reset the function while the GPU works: VRAM keeps its contents, but all else begins
//! anew. So the engines are stopped before and started afterwards. Jobs that have not begun wait, one
//! that was being executed fails; copies are not disturbed. For a while the device does not listen,
//! and memory management goes on: pages are unmapped and freed. So the page tables are not what
//! they should be, and all begin empty before an engine uses them again.
//!
//! Before the machine goes to sleep, when no program runs any more, the GPU finishes what it has to do,
//! and all pages come back, for VRAM may lose its contents. If either is not possible, the machine does
//! not go to sleep.
//!
//! # Locks
//!
//! Those of the address spaces, of the copy engine and of the fault handler are taken one after the
//! other, none inside another.

use kernel::{
    prelude::*,
    time::Delta, //
};

use crate::driver::Gpu;

/// How long jobs may keep the machine from going to sleep.
const DRAIN_TIMEOUT: Delta = Delta::from_secs(10);

/// How often to try to send pages back, some of which may be in use for a moment.
const ATTEMPTS: usize = 10;

/// Stops everything.
pub(crate) fn stop(gpu: &Gpu<'_>) {
    gpu.spaces.pause();
    gpu.units.copy.pause();
    // Also those engines that did not stop by themselves. If one still works, what is unmapped must
    // be unmapped from it for as long as it listens.
    if gpu.units.regs.reset().is_ok() {
        gpu.units.mmu.pause();
    }
}

/// Undoes [`stop`], and [`suspend`].
///
/// # Errors
///
/// `ENODEV` or `ETIMEDOUT` if the device does not come back; then jobs and copies fail.
pub(crate) fn start(gpu: &Gpu<'_>) -> Result {
    let reset = gpu.units.regs.reset();
    gpu.units.mmu.resume();
    gpu.units.copy.resume();
    // VRAM that was kept has good tables for faults that are being served.
    let _ = gpu.spaces.forget();
    gpu.faults.handler().restart();
    gpu.spaces.resume();
    reset.inspect_err(|_| dev_err!(gpu.units.dev, "the device does not come back\n"))
}

/// Finishes all jobs, brings all pages back and stops everything. Page tables but the roots, which
/// [`start`] clears, are given back too: VRAM may contain anything afterwards.
///
/// # Errors
///
/// `EBUSY` if a job does not end, a fault is being served, or a page does not move.
pub(crate) fn suspend(gpu: &Gpu<'_>) -> Result {
    let spaces = gpu.spaces.all()?;
    let poke = || gpu.faults.wake_thread();
    if !spaces
        .iter()
        .all(|svm| svm.channel.drain(DRAIN_TIMEOUT, poke))
    {
        dev_err!(gpu.units.dev, "a job does not end\n");
        return Err(EBUSY);
    }
    if !gpu.spaces.forget() {
        dev_err!(gpu.units.dev, "a fault is being served\n");
        return Err(EBUSY);
    }
    if !(0..ATTEMPTS).any(|_| gpu.units.memory.evict_all()) {
        dev_err!(gpu.units.dev, "pages do not leave VRAM\n");
        return Err(EBUSY);
    }
    stop(gpu);
    Ok(())
}
