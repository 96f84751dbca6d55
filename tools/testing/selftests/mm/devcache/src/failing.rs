// SPDX-License-Identifier: GPL-2.0
//! Allocations of the kernel that fail on demand.

use crate::skip::skip;
use anyhow::Context;
use anyhow::Result;
use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Writes an attribute of one of the kernel's places of fault injection.
pub fn set(folder: &str, attribute: &str, value: impl ToString) -> Result<()> {
    let path = Path::new("/sys/kernel/debug").join(folder).join(attribute);
    fs::write(&path, value.to_string()).with_context(|| format!("set {}", path.display()))
}

/// Has allocations of every kind take part in the fault injection.
pub fn switch_on() -> Result<()> {
    if !Path::new("/sys/kernel/debug/failslab").exists() {
        return skip("the kernel has no fault injection");
    }
    for folder in ["failslab", "fail_page_alloc"] {
        set(folder, "verbose", 0)?;
        set(folder, "ignore-gfp-wait", "N")?;
    }
    set("fail_page_alloc", "ignore-gfp-highmem", "N")?;
    set("fail_page_alloc", "min-order", 0)
}

/// The fault injection of the kernel for the allocations of this thread: it counts them down and fails
/// the one at zero (`fail-nth`).
#[derive(Debug)]
pub struct Injection {
    fail_nth: &'static Path,
}

impl Injection {
    /// Makes it ready.
    pub fn new() -> Result<Self> {
        switch_on()?;
        Ok(Injection {
            fail_nth: Path::new("/proc/thread-self/fail-nth"),
        })
    }

    /// Does something with its `nth` allocation failing. Returns what came of it, and whether there
    /// were that many.
    pub fn with<T>(&self, nth: u32, work: impl FnOnce() -> T) -> Result<(T, bool)> {
        // Opened in advance: nothing in between may allocate that is not meant.
        let file = File::options().read(true).write(true).open(self.fail_nth)?;
        file.write_at(nth.to_string().as_bytes(), 0)?;
        let result = work();
        let mut left = [0; 16];
        let len = file.read_at(&mut left, 0)?;
        let failed = left[..len].trim_ascii() == b"0";
        file.write_at(b"0", 0)?;
        Ok((result, failed))
    }
}
