// SPDX-License-Identifier: GPL-2.0
//! Faults, switched on and off: of the GPU by the knobs of its model, of the file system by filling it,
//! of its disk by the device mapper, of the kernel's allocations by its own fault injection. What really
//! happened is counted where it happened.

use crate::exercise::Devices;
use crate::knobs::Knob;
use crate::knobs::Knobs;
use crate::rules::Trouble;
use crate::step::Fault;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::bus;
use devcache_selftests::disk::Disk;
use devcache_selftests::disk::Mode;
use devcache_selftests::failing::Injection;
use devcache_selftests::figures::Figures;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::mount::Mount;
use devcache_selftests::PAGE;
use nix::errno::Errno;
use nix::fcntl::fallocate;
use nix::fcntl::FallocateFlags;
use std::cell::RefCell;
use std::fs;
use std::fs::File;
use std::path::PathBuf;

/// Milliseconds for which the GPU is gone: until it is called back.
const LONG: u32 = 600_000;

const COPIES_FAILED: &str = "copies failed";
const COPIES_POISONED: &str = "copies poisoned";
const ALLOCATIONS_FAILED: &str = "allocations failed";
const WITHOUT_GPU: &str = "times without GPU";
const BAD_DISK: &str = "times a bad disk";

/// What is counted when something goes wrong.
pub(crate) const COUNTED: [&str; 5] = [
    COPIES_FAILED,
    COPIES_POISONED,
    ALLOCATIONS_FAILED,
    WITHOUT_GPU,
    BAD_DISK,
];

/// Bytes of the heap that an operation finds ready, so that it is the kernel that fails and not the
/// program.
const READY: usize = 32 << 20;

/// All faults off when dropped.
pub(crate) struct Faults<'a> {
    devices: &'a Devices,
    figures: &'a RefCell<Figures>,
    /// None while the GPU is replaced.
    knobs: Option<Knobs>,
    /// What the knobs that count down were set to.
    armed: [(Knob, u32, &'static str); 2],
    disk: Option<&'a Disk>,
    /// Takes all space there is.
    filler: PathBuf,
    injection: Injection,
    /// Which allocation of the next operation fails.
    starve: Option<u32>,
    /// What is wrong now.
    pub(crate) trouble: Trouble,
}

/// Makes a file of all free space.
fn fill(filler: &PathBuf) -> Result<()> {
    let file = File::create(filler)?;
    let (mut end, mut more) = (0, 1 << 30);
    while more >= PAGE as i64 {
        match fallocate(&file, FallocateFlags::empty(), end, more) {
            Ok(()) => end += more,
            Err(Errno::ENOSPC) => more /= 2,
            Err(error) => return Err(error).context("fill the file system"),
        }
    }
    Ok(())
}

/// Has the program keep what it frees and take all its memory from there.
fn keep_heap() {
    // SAFETY: Changes how the allocator gets memory from the kernel, nothing else.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, libc::c_int::MAX) };
    // SAFETY: As above.
    unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX) };
}

impl<'a> Faults<'a> {
    /// None yet.
    pub(crate) fn new(
        devices: &'a Devices,
        mount: &Mount,
        disk: Option<&'a Disk>,
        figures: &'a RefCell<Figures>,
    ) -> Result<Self> {
        keep_heap();
        Ok(Faults {
            devices,
            figures,
            knobs: Some(Knobs::new()?),
            armed: [
                (Knob::CopyError, 0, COPIES_FAILED),
                (Knob::Poison, 0, COPIES_POISONED),
            ],
            disk,
            filler: mount.dir.join("filler"),
            injection: Injection::new()?,
            starve: None,
            trouble: Trouble {
                on_disk: mount.on_disk(),
                ..Default::default()
            },
        })
    }

    fn knobs(&self) -> Result<&Knobs> {
        self.knobs.as_ref().context("the GPU could not be replaced")
    }

    /// Counts.
    pub(crate) fn count(&self, number: u64, what: &str) {
        self.figures.borrow_mut().add(number, what);
    }

    /// Sets a knob that counts down, after what it counted before is taken note of.
    fn arm(&mut self, which: usize, times: u32) -> Result<()> {
        let (knob, before, what) = self.armed[which];
        let left = self.knobs()?.get(knob)?;
        self.count(u64::from(before - left), what);
        self.armed[which].1 = times;
        self.knobs()?.set(knob, times)
    }

    /// Whether copies will fail or be poisoned.
    pub(crate) fn spoils_copies(&self) -> Result<bool> {
        let set = |knob| anyhow::Ok(self.knobs()?.get(knob)? != 0);
        Ok(!self.trouble.gone && (set(Knob::CopyError)? || set(Knob::Poison)?))
    }

    /// Switches one on, or all off.
    pub(crate) fn turn(&mut self, fault: Fault) -> Result<()> {
        match fault {
            // A GPU that is gone does neither.
            Fault::CopyError(_) | Fault::Poison(_) | Fault::Vanish if self.trouble.gone => {}
            Fault::CopyError(times) => {
                self.arm(0, times)?;
                self.trouble.bad_copies = true;
            }
            Fault::Poison(times) => {
                self.arm(1, times)?;
                self.trouble.bad_copies = true;
            }
            Fault::Vanish => {
                // The knobs cannot be read any more.
                self.arm(0, 0)?;
                self.arm(1, 0)?;
                self.knobs()?.set(Knob::Gone, LONG)?;
                self.trouble.gone = true;
                self.count(1, WITHOUT_GPU);
            }
            // Without its disk a file system cannot be filled.
            Fault::Fill if self.trouble.bad_disk => {}
            Fault::Fill => {
                fill(&self.filler)?;
                self.trouble.full = true;
            }
            Fault::Disk { reads } => {
                let mode = match reads {
                    true => Mode::Fails,
                    false => Mode::FailsToWrite,
                };
                if let Some(disk) = self.disk {
                    disk.set(mode)?;
                    self.trouble.bad_disk = true;
                    self.count(1, BAD_DISK);
                }
            }
            Fault::Starve(nth) => self.starve = Some(nth),
            Fault::Off => self.off()?,
        }
        Ok(())
    }

    /// The disk works again. What the file system made of it lasts until that is mounted again.
    pub(crate) fn mend_disk(&self) -> Result<()> {
        self.disk.map_or(Ok(()), |disk| disk.set(Mode::Works))
    }

    fn off(&mut self) -> Result<()> {
        self.starve = None;
        if self.trouble.full {
            fs::remove_file(&self.filler)?;
            self.trouble.full = false;
        }
        if !self.trouble.gone {
            self.arm(0, 0)?;
            self.arm(1, 0)?;
        } else {
            let knobs = self.knobs.take().context("the GPU could not be replaced")?;
            let device = knobs.device.clone();
            bus::unbind(&device)?;
            knobs.set(Knob::Gone, 0)?;
            bus::remove(&device)?;
            // The function they belong to exists no more.
            std::mem::forget(knobs);
            bus::rescan(&device)?;
            self.knobs = Some(Knobs::new()?);
            *self.devices.gpu.borrow_mut() = Gpu::open()?;
            self.trouble.gone = false;
        }
        Ok(())
    }

    /// Does something, with one of the kernel's allocations failing if it is time for that.
    pub(crate) fn with<T>(&mut self, work: impl FnOnce() -> T) -> Result<T> {
        self.trouble.starved = false;
        let Some(nth) = self.starve.take() else {
            return Ok(work());
        };
        drop(vec![1_u8; READY]);
        let (result, failed) = self.injection.with(nth, work)?;
        self.trouble.starved = failed;
        self.count(u64::from(failed), ALLOCATIONS_FAILED);
        Ok(result)
    }
}

impl Drop for Faults<'_> {
    fn drop(&mut self) {
        let mended = match self.trouble.bad_disk {
            true => {
                // What fills it cannot be removed, and goes with the file system.
                self.trouble.full = false;
                self.mend_disk()
            }
            false => Ok(()),
        };
        if let Err(error) = mended.and_then(|()| self.off()) {
            eprintln!("gpufsx: {error:#}");
        }
    }
}
