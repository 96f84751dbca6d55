// SPDX-License-Identifier: GPL-2.0
//! Swap space.

use crate::scratch::output;
use crate::PAGE;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use std::fs::File;
use std::io::Read;

/// The disk that no file system is on.
const DEVICE: &str = "/dev/vdd";

/// What the first page of swap space ends with.
const MAGIC: &[u8] = b"SWAPSPACE2";

/// Swap space, in use until dropped.
#[derive(Debug)]
pub struct Swap(());

impl Swap {
    /// Makes some on a disk that has nothing else.
    pub fn on() -> Result<Self> {
        let mut head = [0; 1 << 17];
        File::open(DEVICE)
            .and_then(|mut disk| disk.read_exact(&mut head))
            .with_context(|| format!("read {DEVICE}"))?;
        let is_swap = head[..PAGE].ends_with(MAGIC);
        ensure!(
            is_swap || head.iter().all(|&byte| byte == 0),
            "{DEVICE} has something on it"
        );
        output("mkswap", &[DEVICE])?;
        output("swapon", &[DEVICE])?;
        Ok(Swap(()))
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let _ = output("swapoff", &[DEVICE]);
    }
}
