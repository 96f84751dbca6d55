// SPDX-License-Identifier: GPL-2.0
//! Misbehaviour of the GPU model on demand.
//!
//! The knobs are registers in the model's PCI configuration space, described in
//! `drivers/gpu/drm/vsvm/hw/inject.rs`.

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::skip::skip;
use std::fs::File;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

#[allow(dead_code, reason = "the model needs all of it")]
#[path = "../../../../../../drivers/gpu/drm/vsvm/hw/inject.rs"]
mod registers;

pub(crate) use registers::Knob;

/// Value of a knob: every time.
pub(crate) const ALWAYS: u32 = registers::RANDOM | 1;

/// Value of a knob: by chance, once in `n` times.
pub(crate) const fn one_in(n: u32) -> u32 {
    registers::RANDOM | n
}

/// The knobs of the GPU. They are turned back when this is dropped.
#[derive(Debug)]
pub(crate) struct Knobs {
    config: File,
    /// Folder of the device in sysfs.
    pub(crate) device: PathBuf,
}

impl Knobs {
    /// The knobs of the GPU under test, all turned back: a test that was killed may have left some on.
    pub(crate) fn new() -> Result<Self> {
        let device = Gpu::sysfs()?;
        let path = device.join("config");
        let config = OpenOptions::new().read(true).write(true).open(&path);
        let config = config.with_context(|| format!("open {}", path.display()))?;
        let mut id = [0];
        config.read_exact_at(&mut id, registers::CAPABILITY as u64)?;
        if id != [0x09] {
            return skip("the GPU cannot be told to misbehave");
        }
        let knobs = Knobs { config, device };
        knobs.reset()?;
        Ok(knobs)
    }

    /// Turns a knob.
    pub(crate) fn set(&self, knob: Knob, value: u32) -> Result<()> {
        let written = self
            .config
            .write_at(&value.to_le_bytes(), knob.offset() as u64)
            .with_context(|| format!("turn the knob {}", knob.name()))?;
        ensure!(written == 4, "the knob {} is not there", knob.name());
        Ok(())
    }

    /// The value of a knob: how often it will still happen.
    pub(crate) fn get(&self, knob: Knob) -> Result<u32> {
        let mut value = [0; 4];
        self.config
            .read_exact_at(&mut value, knob.offset() as u64)?;
        Ok(u32::from_le_bytes(value))
    }

    /// What a knob was set to happen must have happened.
    pub(crate) fn is_used_up(&self, knob: Knob) -> Result<()> {
        let left = self.get(knob)?;
        ensure!(left == 0, "{} did not happen: {left} left", knob.name());
        Ok(())
    }

    /// Waits until what a knob was set to happen has happened.
    pub(crate) fn wait_for(&self, knob: Knob) -> Result<()> {
        for _ in 0..1000 {
            if self.get(knob)? == 0 {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.is_used_up(knob)
    }

    /// Turns all knobs back.
    pub(crate) fn reset(&self) -> Result<()> {
        Knob::ALL.into_iter().try_for_each(|knob| self.set(knob, 0))
    }
}

impl Drop for Knobs {
    fn drop(&mut self) {
        if let Err(error) = self.reset() {
            eprintln!("{error:#}");
        }
    }
}
