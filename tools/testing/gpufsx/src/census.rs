// SPDX-License-Identifier: GPL-2.0
//! What the kernel counts: when a file is gone, so are its pages from all counters.
//!
//! A page that comes to a file with something left of its last use is counted as what it is not, and
//! its data are right. So the one counter is looked at that has only few users: memory that processes
//! share, to which tmpfs belongs. The kernel does not show numbers below zero, so some such memory is
//! kept for the counter to lose.

use anyhow::ensure;
use anyhow::Result;
use devcache_selftests::map::Map;
use devcache_selftests::stats::Counters;
use devcache_selftests::PAGE;

/// Pages to keep.
const KEPT: usize = 256;

/// Pages that others may take or give back meanwhile.
const OTHERS: u64 = 16;

/// How much was counted while there was no file.
#[derive(Debug)]
pub(crate) struct Census {
    _kept: Map,
    shared: u64,
}

fn shared() -> Result<u64> {
    Counters::vmstat()?.get("nr_shmem")
}

impl Census {
    /// Before the first file.
    pub(crate) fn take() -> Result<Self> {
        let kept = Map::shared_memory(KEPT * PAGE)?;
        kept.lock(0..KEPT)?;
        Ok(Census {
            _kept: kept,
            shared: shared()?,
        })
    }

    /// After a file is gone.
    pub(crate) fn check(&self) -> Result<()> {
        let now = shared()?;
        ensure!(
            now.abs_diff(self.shared) <= OTHERS,
            "the file is gone, and nr_shmem is {now} instead of {}",
            self.shared
        );
        Ok(())
    }
}
