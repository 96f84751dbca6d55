// SPDX-License-Identifier: GPL-2.0
//! Numbers the kernel counts: devcache's own, and those of the whole system.

use crate::gpu::Gpu;
use anyhow::Context;
use anyhow::Result;
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::path::PathBuf;

/// Counters by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<String, u64>);

/// Statistics of the core.
const CORE: &str = "/sys/kernel/debug/devcache/stats";

/// What the kernel tells about an open GPU.
fn fdinfo(gpu: &Gpu) -> PathBuf {
    format!("/proc/self/fdinfo/{}", gpu.file().as_raw_fd()).into()
}

impl Counters {
    /// Reads lines "name value" or "name: value unit"; other lines are left out.
    fn parse(text: &str) -> Self {
        Counters(text.lines().filter_map(Self::line).collect())
    }

    fn line(line: &str) -> Option<(String, u64)> {
        let mut words = line.split_whitespace();
        let name = words.next()?.trim_end_matches(':').to_owned();
        Some((name, words.next()?.parse().ok()?))
    }

    fn from_file(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Ok(Self::parse(&text))
    }

    /// What the devcache core has counted since boot.
    pub fn core() -> Result<Self> {
        Self::from_file(Path::new(CORE))
    }

    /// What the driver has counted for all who use the GPU since it was bound.
    pub fn gpu(gpu: &Gpu) -> Result<Self> {
        let info = fs::read_to_string(fdinfo(gpu))?;
        let device = info
            .lines()
            .find_map(|line| line.strip_prefix("drm-pdev:"))
            .context("no device is named in fdinfo")?;
        let folder = format!("/sys/kernel/debug/vsvm-{}", device.trim());
        Self::from_file(&Path::new(&folder).join("stats"))
    }

    /// What the driver has counted for this open GPU since it was attached.
    pub fn client(gpu: &Gpu) -> Result<Self> {
        Self::from_file(&fdinfo(gpu))
    }

    /// /proc/vmstat: numbers of pages of the whole system, with what processors have not yet added
    /// to them.
    pub fn vmstat() -> Result<Self> {
        fs::write("/proc/sys/vm/stat_refresh", "1").context("write stat_refresh")?;
        Self::from_file(Path::new("/proc/vmstat"))
    }

    /// /proc/meminfo: numbers of KiB of the whole system.
    pub fn meminfo() -> Result<Self> {
        Self::from_file(Path::new("/proc/meminfo"))
    }

    /// /proc/self/status: numbers of KiB of this process, among others.
    pub fn status() -> Result<Self> {
        Self::from_file(Path::new("/proc/self/status"))
    }

    /// One counter.
    pub fn get(&self, name: &str) -> Result<u64> {
        self.0
            .get(name)
            .copied()
            .with_context(|| format!("the kernel has no counter named {name}"))
    }

    /// All counters.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let counters = Counters::parse("nr_mlock 7\nVmRSS:\t  12 kB\ntext only\n\nx -3\n");
        assert_eq!(counters.get("nr_mlock").unwrap(), 7);
        assert_eq!(counters.get("VmRSS").unwrap(), 12);
        assert!(counters.get("text").is_err());
        assert_eq!(counters.iter().count(), 2);
    }
}
