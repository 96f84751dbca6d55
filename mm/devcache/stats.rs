// SPDX-License-Identifier: GPL-2.0

//! Counters, shown in `devcache/stats` of debugfs.

use crate::state::Refusal;
use kernel::{
    debugfs::{
        Dir,
        File, //
    },
    fmt,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// A number of events since boot.
pub(crate) struct Counter(Atomic<u64>);

impl Counter {
    const fn new() -> Self {
        Self(Atomic::new(0))
    }

    pub(crate) fn inc(&self) {
        self.0.add(1, Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Folios that moved to a device.
pub(crate) static PAGES_OUT: Counter = Counter::new();
/// Folios that came back.
pub(crate) static PAGES_BACK: Counter = Counter::new();
/// Clean folios on a device that were dropped because memory was short.
pub(crate) static PAGES_DROPPED: Counter = Counter::new();
/// Folios whose content a device could not return.
pub(crate) static PAGES_LOST: Counter = Counter::new();
/// Folios that a driver asked for and did not get, by the reason.
static REFUSED: [(Refusal, &str, Counter); 12] = [
    (Refusal::NotOptedIn, "not_opted_in", Counter::new()),
    (Refusal::Exiting, "exiting", Counter::new()),
    (Refusal::Swapfile, "swapfile", Counter::new()),
    (Refusal::KernelFile, "kernel_file", Counter::new()),
    (Refusal::StraddlesEof, "straddles_eof", Counter::new()),
    (Refusal::NotUptodate, "not_uptodate", Counter::new()),
    (Refusal::Writeback, "writeback", Counter::new()),
    (Refusal::Private2, "private_2", Counter::new()),
    (Refusal::HwPoison, "hwpoison", Counter::new()),
    (Refusal::Dropbehind, "dropbehind", Counter::new()),
    (Refusal::Pinned, "pinned", Counter::new()),
    (Refusal::Large, "large", Counter::new()),
];

/// Counts a refused admission.
pub(crate) fn refused(why: Refusal) {
    for (refusal, _, counter) in &REFUSED {
        if *refusal == why {
            counter.inc();
        }
    }
}

fn show(_: &(), f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "pages_out {}", PAGES_OUT.get())?;
    writeln!(f, "pages_back {}", PAGES_BACK.get())?;
    writeln!(f, "pages_dropped {}", PAGES_DROPPED.get())?;
    writeln!(f, "pages_lost {}", PAGES_LOST.get())?;
    for (_, name, counter) in &REFUSED {
        writeln!(f, "refused_{name} {}", counter.get())?;
    }
    Ok(())
}

/// Creates the debugfs file. Called once, at boot; the core is built in, so the file stays.
pub(crate) fn init() -> Result {
    let dir = Dir::new(c"devcache");
    let file: Pin<KBox<File<()>>> =
        KBox::pin_init(dir.read_callback_file(c"stats", (), &show), GFP_KERNEL)?;
    core::mem::forget(file);
    core::mem::forget(dir);
    Ok(())
}
