// SPDX-License-Identifier: GPL-2.0
//! A file, what must be in it, and how each operation changes both.

use crate::crowd;
use crate::mirror::Mirror;
use crate::step::Look;
use crate::step::Op;
use crate::step::Span;
use crate::step::Step;
use crate::step::MAX;
use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::cgroup::Cgroup;
use devcache_selftests::gpu::Direction;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::gpu::Work;
use devcache_selftests::map::Map;
use devcache_selftests::model::add_u32;
use devcache_selftests::model::Checksum;
use devcache_selftests::mount::Mount;
use devcache_selftests::random::Random;
use devcache_selftests::ring::Ring;
use devcache_selftests::sys;
use devcache_selftests::PAGE;
use nix::errno::Errno;
use nix::fcntl::fallocate;
use nix::fcntl::FallocateFlags;
use nix::sys::mman::MsFlags;
use std::fs::File;
use std::fs::OpenOptions;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;

/// The control group does not limit anything.
const NO_LIMIT: usize = 1 << 40;

/// What a process needs only once: both devices, and a control group.
#[derive(Debug)]
pub(crate) struct Devices {
    gpu: Gpu,
    mirror: Mirror,
    group: Cgroup,
}

impl Devices {
    /// Opens them.
    pub(crate) fn open() -> Result<Self> {
        Ok(Devices {
            gpu: Gpu::open()?,
            mirror: Mirror::open()?,
            group: Cgroup::enter(NO_LIMIT)?,
        })
    }
}

/// The ways to an open file.
struct Open {
    file: File,
    direct: File,
    map: Map,
}

impl Open {
    fn path(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Open {
            direct: sys::open_direct(path)?,
            // Longer than the file, which may grow.
            map: Map::shared(&file, MAX)?,
            file,
        })
    }
}

/// A file under test; it is removed when this is dropped.
pub(crate) struct Exercise<'a> {
    devices: &'a Devices,
    mount: &'a Mount,
    path: PathBuf,
    /// None while the file system is not mounted.
    open: Option<Open>,
    ring: Ring,
    want: Vec<u8>,
}

/// What is written for a seed: something that can be compressed, or not.
fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    match seed % 4 {
        0 => random.bytes(61).into_iter().cycle().take(len).collect(),
        _ => random.bytes(len),
    }
}

/// The pages that bytes are in.
fn pages(bytes: &Range<usize>) -> Range<usize> {
    bytes.start / PAGE..bytes.end.div_ceil(PAGE)
}

/// Compares what was read of a part of the file with what must be there.
fn same(got: &[u8], want: &[u8], from: usize) -> Result<()> {
    ensure!(
        got.len() == want.len(),
        "{} bytes at {from:#x} instead of {}",
        got.len(),
        want.len()
    );
    if got == want {
        return Ok(());
    }
    let wrong = || (0..got.len()).filter(|&at| got[at] != want[at]);
    if let Some(first) = wrong().next() {
        bail!(
            "{} bytes are wrong, the first at {:#x}: {:#04x} instead of {:#04x}",
            wrong().count(),
            from + first,
            got[first],
            want[first]
        );
    }
    Ok(())
}

impl<'a> Exercise<'a> {
    /// Begins with an empty file.
    pub(crate) fn new(devices: &'a Devices, mount: &'a Mount) -> Result<Self> {
        let path = mount.dir.join(format!("gpufsx-{}", std::process::id()));
        File::create(&path)?;
        Ok(Exercise {
            devices,
            mount,
            open: Some(Open::path(&path)?),
            path,
            ring: Ring::new()?,
            want: Vec::new(),
        })
    }

    /// Does the steps one after the other; fails at the first after which the file is not what it must
    /// be. What the disk has is looked at in the end.
    pub(crate) fn run(&mut self, steps: &[Step]) -> Result<()> {
        for (number, step) in steps.iter().enumerate() {
            self.step(step)
                .and_then(|()| self.look(step.look))
                .with_context(|| format!("step {number}, {step:?}"))?;
        }
        self.look(Look::Read).context("in the end")?;
        self.perform(&Op::Remount)
            .and_then(|()| self.look(Look::Read))
            .context("on the disk")
    }

    fn open(&self) -> Result<&Open> {
        self.open.as_ref().context("the file is not open")
    }

    /// Takes note of bytes that the file has now.
    fn put(&mut self, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        if self.want.len() < end {
            self.want.resize(end, 0);
        }
        self.want[at..end].copy_from_slice(bytes);
    }

    /// The part of the file that a span is.
    fn within(&self, span: Span, unit: usize) -> Range<usize> {
        span.within(self.want.len(), unit)
    }

    /// fallocate(2); says whether the file system knows this kind.
    fn allocate(&self, flags: FallocateFlags, range: &Range<usize>) -> Result<bool> {
        let (start, len) = (i64::try_from(range.start)?, i64::try_from(range.len())?);
        match fallocate(&self.open()?.file, flags, start, len) {
            Ok(()) => Ok(true),
            Err(Errno::EOPNOTSUPP) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Does the operation of a step, alone or not.
    fn step(&mut self, step: &Step) -> Result<()> {
        let (devices, path, len) = (self.devices, self.path.clone(), self.want.len());
        match step.crowd {
            false => self.perform(&step.op),
            true => crowd::meet(&devices.gpu, &path, len, &step.op, || {
                self.perform(&step.op)
            }),
        }
    }

    fn perform(&mut self, op: &Op) -> Result<()> {
        let open = self.open()?;
        let gpu = &self.devices.gpu;
        let mirror = &self.devices.mirror;
        match *op {
            Op::Write { span, seed } => {
                let range = span.within(MAX, 1);
                let bytes = bytes(seed, range.len());
                open.file.write_all_at(&bytes, range.start as u64)?;
                self.put(range.start, &bytes);
            }
            Op::DirectWrite { span, seed } => {
                let range = span.within(MAX, PAGE);
                let bytes = bytes(seed, range.len());
                let buffer = Map::anonymous(range.len())?;
                buffer.write(0, &bytes);
                let len = sys::write_from(&open.direct, range.start, &buffer, 0..range.len())?;
                ensure!(
                    len == range.len(),
                    "only {len} bytes of {} were written",
                    range.len()
                );
                self.put(range.start, &bytes);
            }
            Op::MapWrite { span, seed } => {
                let range = self.within(span, 1);
                let bytes = bytes(seed, range.len());
                open.map.write(range.start, &bytes);
                self.put(range.start, &bytes);
            }
            Op::ForkWrite { span, seed } => {
                let range = self.within(span, 1);
                let bytes = bytes(seed, range.len());
                sys::in_child(|| {
                    same(
                        &open.map.read(range.clone()),
                        &self.want[range.clone()],
                        range.start,
                    )?;
                    open.map.write(range.start, &bytes);
                    Ok(())
                })?;
                self.put(range.start, &bytes);
            }
            Op::PrivateWrite {
                span,
                seed,
                gpu: by_gpu,
            } => {
                let range = self.within(span, 4);
                let private = Map::private(&open.file, MAX)?;
                same(
                    &private.read(range.clone()),
                    &self.want[range.clone()],
                    range.start,
                )?;
                let value = Random::new(seed).value().to_le_bytes();
                let bytes = [value[0]; 4].repeat(range.len() / 4);
                if by_gpu {
                    self.compute(Work::Fill {
                        dst: private.addr() + range.start,
                        count: range.len() / 4,
                        value: u32::from_le_bytes([value[0]; 4]),
                    })?;
                } else {
                    private.write(range.start, &bytes);
                }
                same(&private.read(range.clone()), &bytes, range.start)?;
            }
            Op::Read(span) => {
                let range = self.within(span, 1);
                let mut got = vec![0; range.len()];
                open.file.read_exact_at(&mut got, range.start as u64)?;
                same(&got, &self.want[range.clone()], range.start)?;
            }
            Op::DirectRead(span) => {
                let range = self.within(span, PAGE);
                if !range.is_empty() {
                    let buffer = Map::anonymous(range.len())?;
                    sys::read_into(&open.direct, range.start, &buffer, 0..range.len())?;
                    same(&buffer.read_all(), &self.want[range.clone()], range.start)?;
                }
            }
            Op::MapRead(span) => {
                let range = self.within(span, 1);
                same(
                    &open.map.read(range.clone()),
                    &self.want[range.clone()],
                    range.start,
                )?;
            }
            Op::RingRead(span) => {
                let range = self.within(span, 1);
                let file = open.file.try_clone()?;
                let got = self.ring.read(&file, range.start, range.len())?;
                same(&got, &self.want[range.clone()], range.start)?;
            }
            Op::Truncate(len) => {
                open.file.set_len(len as u64)?;
                self.want.resize(len, 0);
            }
            Op::Punch(span) => {
                let range = span.within(MAX, 1);
                let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE;
                if self.allocate(flags | FallocateFlags::FALLOC_FL_KEEP_SIZE, &range)? {
                    let end = range.end.min(self.want.len());
                    self.want[range.start.min(end)..end].fill(0);
                }
            }
            Op::Zero(span) => {
                let range = span.within(MAX, 1);
                if self.allocate(FallocateFlags::FALLOC_FL_ZERO_RANGE, &range)? {
                    self.put(range.start, &vec![0; range.len()]);
                }
            }
            Op::Preallocate(span) => {
                let range = span.within(MAX, 1);
                self.allocate(FallocateFlags::FALLOC_FL_KEEP_SIZE, &range)?;
            }
            Op::Compress(on) => match sys::set_compressed(&open.file, on) {
                // Few file systems can.
                Err(Errno::EOPNOTSUPP) => {}
                result => result?,
            },
            Op::Collapse(span) => {
                let range = self.within(span, PAGE);
                // It may not reach the end of the file.
                let possible = !range.is_empty() && range.end < self.want.len();
                if possible && self.allocate(FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, &range)? {
                    self.want.drain(range);
                }
            }
            Op::Insert(span) => {
                let range = self.within(span, PAGE);
                let possible = !range.is_empty() && self.want.len() + range.len() <= MAX;
                if possible && self.allocate(FallocateFlags::FALLOC_FL_INSERT_RANGE, &range)? {
                    let hole = std::iter::repeat_n(0, range.len());
                    self.want.splice(range.start..range.start, hole);
                }
            }
            Op::Fsync => open.file.sync_all()?,
            Op::Msync => open.map.sync(MsFlags::MS_SYNC)?,
            Op::DropCaches => sys::drop_caches()?,
            Op::Reclaim(span) => self.devices.group.reclaim(span.within(MAX, PAGE).len())?,
            Op::PageOut(span) => {
                let pages = pages(&self.within(span, 1));
                if !pages.is_empty() {
                    open.map.advise_raw(pages, libc::MADV_PAGEOUT)?;
                }
            }
            Op::Remount => {
                if self.mount.on_disk() {
                    self.open = None;
                    self.mount.remount()?;
                    self.open = Some(Open::path(&self.path)?);
                }
            }
            Op::Send { span, write } => {
                let pages = pages(&self.within(span, 1));
                if !pages.is_empty() {
                    if write {
                        open.map.touch_write(pages.clone())?;
                    } else {
                        open.map.touch_read(pages.clone());
                    }
                    gpu.migrate(&open.map, pages, Direction::ToVram)?;
                }
            }
            Op::Recall(span) => {
                let pages = pages(&self.within(span, 1));
                if !pages.is_empty() {
                    gpu.migrate(&open.map, pages, Direction::ToRam)?;
                }
            }
            Op::GpuFill { span, value } => {
                let range = self.within(span, 4);
                self.compute(Work::Fill {
                    dst: open.map.addr() + range.start,
                    count: range.len() / 4,
                    value,
                })?;
                let bytes = value.to_le_bytes().repeat(range.len() / 4);
                self.put(range.start, &bytes);
            }
            Op::GpuAdd { span, value } => {
                let range = self.within(span, 4);
                self.compute(Work::Add {
                    dst: open.map.addr() + range.start,
                    count: range.len() / 4,
                    value,
                })?;
                add_u32(&mut self.want[range], value);
            }
            Op::GpuCopy { from, to } => {
                let (from, to) = (self.within(from, 4), self.within(to, 4));
                let len = from.len().min(to.len());
                let (from, to) = (from.start..from.start + len, to.start..to.start + len);
                // What a copy to itself gives depends on its order.
                if from.end <= to.start || to.end <= from.start {
                    self.compute(Work::Copy {
                        dst: open.map.addr() + to.start,
                        src: open.map.addr() + from.start,
                        count: len / 4,
                    })?;
                    self.want.copy_within(from, to.start);
                }
            }
            Op::GpuRead(span) => self.checksum(&self.within(span, 4))?,
            Op::MirrorSend(span) => {
                let pages = pages(&self.within(span, 1));
                open.map.touch_read(pages.clone());
                mirror.send(&open.map, pages)?;
            }
            Op::MirrorRecall(span) => mirror.recall(&open.map, pages(&self.within(span, 1)))?,
            Op::MirrorRead(span) => {
                let range = self.within(span, PAGE);
                let got = mirror.read(&open.map, pages(&range))?;
                same(&got, &self.want[range.clone()], range.start)?;
            }
            Op::MirrorWrite { span, seed } => {
                let range = self.within(span, PAGE);
                let mut bytes = bytes(seed, range.len());
                mirror.write(&open.map, pages(&range), &mut bytes)?;
                self.put(range.start, &bytes);
            }
        }
        Ok(())
    }

    /// Has the GPU compute, if there is something to compute on.
    fn compute(&self, work: Work) -> Result<u64> {
        match work.argument().count {
            0 => Ok(0),
            _ => Ok(self.devices.gpu.compute(work)?),
        }
    }

    /// Has the GPU read a part of the file.
    fn checksum(&self, range: &Range<usize>) -> Result<()> {
        let sum = self.compute(Work::Checksum {
            src: self.open()?.map.addr() + range.start,
            count: range.len() / 4,
        })?;
        let want = &self.want[range.clone()];
        if range.is_empty() || sum == Checksum::of(want) {
            return Ok(());
        }
        let cpu = match same(&self.open()?.map.read(range.clone()), want, range.start) {
            Ok(()) => "the CPU sees what must be there".to_owned(),
            Err(error) => format!("by the CPU {error}"),
        };
        bail!("the GPU's checksum of {range:#x?} is wrong, and {cpu}")
    }

    fn look(&mut self, look: Look) -> Result<()> {
        let open = self.open()?;
        let len = self.want.len();
        let size = open.file.metadata()?.len();
        ensure!(
            size == len as u64,
            "the file has {size} bytes instead of {len}"
        );
        match look {
            Look::Size => Ok(()),
            Look::Gpu => self.checksum(&(0..len / 4 * 4)),
            Look::Read => {
                let mut got = vec![0; len];
                open.file.read_exact_at(&mut got, 0)?;
                same(&got, &self.want, 0)
            }
            Look::Map => same(&open.map.read(0..len), &self.want, 0),
        }
        .with_context(|| format!("looked at by {look:?}"))
    }
}

impl Drop for Exercise<'_> {
    fn drop(&mut self) {
        // The next one begins with a new file all the same.
        let _ = std::fs::remove_file(&self.path);
    }
}
