// SPDX-License-Identifier: GPL-2.0
//! The GPU as a program sees it: the ioctls of the vsvm driver, safe to call.

use crate::map::Map;
use crate::sys;
use crate::uapi;
use crate::PAGE;
use nix::errno::Errno;
use nix::time::clock_gettime;
use nix::time::ClockId;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

/// Name of the driver and of its module.
pub const DRIVER: &str = "vsvm";

/// Environment variable with the folder in sysfs of the device under test. Without it, it is the first
/// at any moment, which may be another when the driver is unbound from one.
pub const DEVICE: &str = "DEVCACHE_DEVICE";

/// A job that takes longer hangs: the engine itself is much faster than this.
const JOB_TIMEOUT: Duration = Duration::from_secs(120);

/// An open GPU.
#[derive(Debug)]
pub struct Gpu {
    file: File,
}

/// Where pages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Into VRAM.
    ToVram,
    /// Back to system memory.
    ToRam,
}

/// What a migration did, in pages, as the kernel counted it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Migrated {
    /// Moved by this call.
    pub moved: u64,
    /// There before.
    pub present: u64,
    /// Not moved.
    pub skipped: u64,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Zero or a negative errno.
    pub status: i32,
    /// The result of operations that have one.
    pub result: u64,
    /// Where it failed.
    pub fault_addr: u64,
}

/// Names a job that was queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobId(pub u64);

/// Computations on arrays of u32; addresses are those of the process.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// Every element becomes `value`.
    Fill {
        /// The array.
        dst: usize,
        /// Elements.
        count: usize,
        /// What is stored.
        value: u32,
    },
    /// `value` is added to every element in place.
    Add {
        /// The array.
        dst: usize,
        /// Elements.
        count: usize,
        /// What is added.
        value: u32,
    },
    /// Elements are copied.
    Copy {
        /// Destination array.
        dst: usize,
        /// Source array.
        src: usize,
        /// Elements.
        count: usize,
    },
    /// Checksum of the bytes.
    Checksum {
        /// The array.
        src: usize,
        /// Elements.
        count: usize,
    },
    /// Sum of the elements.
    Sum {
        /// The array.
        src: usize,
        /// Elements.
        count: usize,
    },
}

impl Gpu {
    /// Folder in sysfs of the device under test, if the driver is bound to it.
    pub fn sysfs() -> io::Result<PathBuf> {
        Self::node().map(|(_, device)| device)
    }

    /// Nodes in /dev and device folders of all devices that the driver is bound to.
    fn nodes() -> io::Result<Vec<(PathBuf, PathBuf)>> {
        let class = fs::read_dir("/sys/class/drm").map_err(|_| absent())?;
        let mut nodes = Vec::new();

        for entry in class {
            let name = entry?.file_name();
            let device = PathBuf::from("/sys/class/drm").join(&name).join("device");
            let driver = fs::read_link(device.join("driver")).unwrap_or_default();

            if name.to_string_lossy().starts_with("renderD") && driver.ends_with(DRIVER) {
                nodes.push((PathBuf::from("/dev/dri").join(name), device.canonicalize()?));
            }
        }
        nodes.sort_unstable_by(|(_, a), (_, b)| a.cmp(b));
        Ok(nodes)
    }

    /// Node and device folder of the device under test: that of [`DEVICE`], or else the first.
    fn node() -> io::Result<(PathBuf, PathBuf)> {
        let wanted = std::env::var_os(DEVICE);
        let mut nodes = Self::nodes()?.into_iter();
        let node = nodes.find(|(_, device)| match &wanted {
            Some(wanted) => device.as_os_str() == wanted,
            None => true,
        });
        node.ok_or_else(absent)
    }

    fn open_node(node: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(node)?;
        Ok(Gpu { file })
    }

    /// Opens the GPU under test without attaching to it.
    pub fn open_detached() -> io::Result<Self> {
        Self::open_node(Self::node()?.0)
    }

    /// Opens another GPU and attaches this process's address space; none if there is one only.
    pub fn open_other() -> io::Result<Option<Self>> {
        let (first, _) = Self::node()?;
        let mut nodes = Self::nodes()?.into_iter();
        let Some((node, _)) = nodes.find(|(node, _)| *node != first) else {
            return Ok(None);
        };
        let gpu = Self::open_node(node)?;
        gpu.attach()?;
        Ok(Some(gpu))
    }

    /// Opens the GPU under test and attaches this process's address space.
    pub fn open() -> io::Result<Self> {
        let gpu = Self::open_detached()?;
        gpu.attach()?;
        Ok(gpu)
    }

    /// Opens a GPU for the thread with this number: that under test, or another, in turn.
    pub fn open_in_turn(number: usize) -> io::Result<Self> {
        let other = match number % 2 {
            0 => None,
            _ => Self::open_other()?,
        };
        match other {
            Some(gpu) => Ok(gpu),
            None => Self::open(),
        }
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Makes a call of the driver, or of all DRM drivers.
    pub(crate) fn ioctl<T>(&self, request: u32, argument: &mut T) -> Result<(), Errno> {
        sys::ioctl(&self.file, request, argument)
    }

    /// DRM_IOCTL_VSVM_GET_PARAM
    pub fn param(&self, param: u32) -> Result<u64, Errno> {
        let mut argument = uapi::drm_vsvm_get_param {
            param,
            ..Default::default()
        };
        self.ioctl(uapi::DRM_IOCTL_VSVM_GET_PARAM, &mut argument)?;
        Ok(argument.value)
    }

    /// Bytes of VRAM that are free.
    pub fn vram_free(&self) -> Result<u64, Errno> {
        self.param(uapi::DRM_VSVM_PARAM_VRAM_FREE)
    }

    /// Bytes of VRAM for pages.
    pub fn vram_total(&self) -> Result<u64, Errno> {
        self.param(uapi::DRM_VSVM_PARAM_VRAM_TOTAL)
    }

    /// DRM_IOCTL_VSVM_SVM_ATTACH; returns the end of the addresses the GPU can reach.
    pub fn attach(&self) -> Result<u64, Errno> {
        let mut argument = uapi::drm_vsvm_svm_attach::default();
        self.ioctl(uapi::DRM_IOCTL_VSVM_SVM_ATTACH, &mut argument)?;
        Ok(argument.va_end)
    }

    /// DRM_IOCTL_VSVM_MIGRATE with an argument of the caller's making.
    pub fn migrate_raw(&self, argument: &mut uapi::drm_vsvm_migrate) -> Result<(), Errno> {
        self.ioctl(uapi::DRM_IOCTL_VSVM_MIGRATE, argument)
    }

    /// Moves the pages of an address range.
    pub fn migrate_range(
        &self,
        start: usize,
        length: usize,
        direction: Direction,
    ) -> Result<Migrated, Errno> {
        let mut argument = uapi::drm_vsvm_migrate {
            start: start as u64,
            length: length as u64,
            direction: match direction {
                Direction::ToVram => uapi::DRM_VSVM_TO_VRAM,
                Direction::ToRam => uapi::DRM_VSVM_TO_RAM,
            },
            ..Default::default()
        };
        self.migrate_raw(&mut argument)?;
        Ok(Migrated {
            moved: argument.moved,
            present: argument.present,
            skipped: argument.skipped,
        })
    }

    /// Moves pages of a mapping.
    pub fn migrate(
        &self,
        map: &Map,
        pages: Range<usize>,
        direction: Direction,
    ) -> Result<Migrated, Errno> {
        self.migrate_range(map.page_addr(pages.start), pages.len() * PAGE, direction)
    }

    /// DRM_IOCTL_VSVM_EXEC with an argument of the caller's making.
    pub fn exec_raw(&self, argument: &mut uapi::drm_vsvm_exec) -> Result<(), Errno> {
        self.ioctl(uapi::DRM_IOCTL_VSVM_EXEC, argument)
    }

    /// Queues a computation.
    pub fn submit(&self, work: Work) -> Result<JobId, Errno> {
        self.submit_with(work, &[], &[])
    }

    /// Queues a computation with the handles of syncobjs that it waits for, and of those it
    /// signals.
    pub fn submit_with(&self, work: Work, waits: &[u32], signals: &[u32]) -> Result<JobId, Errno> {
        let mut argument = work.argument();
        argument.list_syncobjs(waits, signals);
        self.exec_raw(&mut argument)?;
        Ok(JobId(argument.job))
    }

    /// Waits for a job; ETIME when it has not ended after `timeout`.
    pub fn wait(&self, job: JobId, timeout: Duration) -> Result<Ended, Errno> {
        let end = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?) + timeout;
        let mut argument = uapi::drm_vsvm_wait {
            job: job.0,
            timeout_ns: i64::try_from(end.as_nanos()).unwrap_or(i64::MAX),
            ..Default::default()
        };

        loop {
            match self.ioctl(uapi::DRM_IOCTL_VSVM_WAIT, &mut argument) {
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    return Ok(Ended {
                        status: argument.status,
                        result: argument.result,
                        fault_addr: argument.fault_addr,
                    })
                }
            }
        }
    }

    /// Queues a computation and waits until it has ended, well or not.
    pub fn run(&self, work: Work) -> Result<Ended, Errno> {
        let job = self.submit(work)?;
        self.wait(job, JOB_TIMEOUT)
    }

    /// Computes; a job that failed is an error. Returns the result.
    pub fn compute(&self, work: Work) -> io::Result<u64> {
        self.run(work)?.result()
    }

    /// The same, and pages move to VRAM as the job gets to them.
    pub fn compute_in_vram(&self, work: Work) -> io::Result<u64> {
        let mut argument = work.argument();
        argument.flags = uapi::DRM_VSVM_EXEC_TO_VRAM;
        self.exec_raw(&mut argument)?;
        self.wait(JobId(argument.job), JOB_TIMEOUT)?.result()
    }
}

impl Ended {
    /// The result of a job that ended well.
    fn result(self) -> io::Result<u64> {
        if self.status == 0 {
            return Ok(self.result);
        }
        Err(io::Error::other(format!(
            "the GPU job failed: {} at address {:#x}",
            Errno::from_raw(-self.status),
            self.fault_addr
        )))
    }
}

impl uapi::drm_vsvm_exec {
    /// Sets the lists of handles. They must be there when the call is made.
    pub fn list_syncobjs(&mut self, waits: &[u32], signals: &[u32]) {
        let list = |handles: &[u32]| match handles.len() {
            0 => (0, 0),
            count => (handles.as_ptr() as u64, count as u32),
        };
        (self.wait_syncobjs, self.wait_count) = list(waits);
        (self.signal_syncobjs, self.signal_count) = list(signals);
    }
}

/// The error of a machine without the GPU.
fn absent() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        format!("no GPU with the driver {DRIVER} is present"),
    )
}

impl Work {
    /// Adds to all elements of a mapping.
    pub fn add(map: &Map, value: u32) -> Self {
        Work::Add {
            dst: map.addr(),
            count: map.len() / 4,
            value,
        }
    }

    /// The uAPI's form.
    pub fn argument(self) -> uapi::drm_vsvm_exec {
        let (op, dst, src_a, count, scalar) = match self {
            Work::Fill { dst, count, value } => (uapi::DRM_VSVM_OP_FILL, dst, 0, count, value),
            Work::Add { dst, count, value } => (uapi::DRM_VSVM_OP_ADD, dst, dst, count, value),
            Work::Copy { dst, src, count } => (uapi::DRM_VSVM_OP_COPY, dst, src, count, 0),
            Work::Checksum { src, count } => (uapi::DRM_VSVM_OP_CHECKSUM, 0, src, count, 0),
            Work::Sum { src, count } => (uapi::DRM_VSVM_OP_SUM, 0, src, count, 0),
        };
        uapi::drm_vsvm_exec {
            op,
            type_: uapi::DRM_VSVM_TYPE_U32,
            dst: dst as u64,
            src_a: src_a as u64,
            count: count as u64,
            scalar,
            ..Default::default()
        }
    }
}
