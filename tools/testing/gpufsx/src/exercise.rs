// SPDX-License-Identifier: GPL-2.0
//! A file, what must be in it, and how each operation changes both.

use crate::access::Access;
use crate::book::Book;
use crate::crowd;
use crate::differs::same;
use crate::differs::Differs;
use crate::effect::bytes;
use crate::effect::effect;
use crate::effect::parts;
use crate::step::Look;
use crate::step::Op;
use crate::step::Span;
use crate::step::Step;
use crate::step::MAX;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::cgroup::Cgroup;
use devcache_selftests::gpu::Direction;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::gpu::Work;
use devcache_selftests::map::Map;
use devcache_selftests::mirror::Mirror;
use devcache_selftests::model::add_u32;
use devcache_selftests::model::Checksum;
use devcache_selftests::mount::Mount;
use devcache_selftests::random::Random;
use devcache_selftests::ring::Ring;
use devcache_selftests::sys;
use devcache_selftests::PAGE;
use nix::errno::Errno;
use nix::fcntl::fallocate;
use nix::fcntl::posix_fadvise;
use nix::fcntl::FallocateFlags;
use nix::fcntl::PosixFadviseAdvice;
use nix::sys::mman::MapFlags;
use nix::sys::mman::MsFlags;
use nix::sys::mman::ProtFlags;
use std::cell::RefCell;
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
    /// In a cell, for it may go and come again.
    pub(crate) gpu: RefCell<Gpu>,
    mirror: Mirror,
    group: Cgroup,
}

impl Devices {
    /// Opens them.
    pub(crate) fn open() -> Result<Self> {
        Ok(Devices {
            gpu: RefCell::new(Gpu::open()?),
            mirror: Mirror::open()?,
            group: Cgroup::enter(NO_LIMIT)?,
        })
    }
}

/// The ways to an open file.
pub(crate) struct Open {
    pub(crate) file: File,
    direct: File,
    pub(crate) map: Map,
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
    pub(crate) access: Access,
    pub(crate) book: Book,
}

/// The pages that bytes are in.
fn pages(bytes: &Range<usize>) -> Range<usize> {
    bytes.start / PAGE..bytes.end.div_ceil(PAGE)
}

impl<'a> Exercise<'a> {
    /// Begins with an empty file. Something will go wrong only if `faults`. What tmpfs loses is an error,
    /// not older.
    pub(crate) fn new(devices: &'a Devices, mount: &'a Mount, faults: bool) -> Result<Self> {
        let path = mount.dir.join(format!("gpufsx-{}", std::process::id()));
        File::create(&path)?;
        Ok(Exercise {
            devices,
            mount,
            open: Some(Open::path(&path)?),
            path,
            ring: Ring::new()?,
            access: Access::new(faults)?,
            book: Book::new(faults && mount.on_disk()),
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

    /// The file, open.
    pub(crate) fn open(&self) -> Result<&Open> {
        self.open.as_ref().context("the file is not open")
    }

    /// The part of the file that a span is.
    fn within(&self, span: Span, unit: usize) -> Range<usize> {
        span.within(self.book.now().len(), unit)
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
        if !step.crowd {
            return self.perform(&step.op);
        }
        let (devices, path, len) = (self.devices, self.path.clone(), self.book.now().len());
        crowd::meet(&devices.gpu.borrow(), &path, len, &step.op, || {
            self.perform(&step.op)
        })
    }

    /// Does it, which must succeed.
    fn perform(&mut self, op: &Op) -> Result<()> {
        if self.act(op)? {
            self.book.done(op);
        }
        Ok(())
    }

    /// Does it, and compares what was read. Says whether the file system knows how.
    pub(crate) fn act(&mut self, op: &Op) -> Result<bool> {
        let open = self.open()?;
        let gpu = self.devices.gpu.borrow();
        let mirror = &self.devices.mirror;
        let access = &self.access;
        let want = self.book.now();
        match *op {
            Op::Write { span, seed } => {
                let range = span.within(MAX, 1);
                let bytes = bytes(seed, range.len());
                open.file.write_all_at(&bytes, range.start as u64)?;
            }
            Op::DirectWrite { span, seed } => {
                let range = span.within(MAX, PAGE);
                let bytes = bytes(seed, range.len());
                let buffer = Map::anonymous(range.len())?;
                buffer.write(0, &bytes);
                let mut done = 0;
                while done < range.len() {
                    let rest = done..range.len();
                    let at = range.start + done;
                    let len = sys::write_from(&open.direct, at, &buffer, rest)?;
                    ensure!(len != 0, "nothing was written");
                    done += len;
                }
            }
            Op::MapWrite { span, seed } => {
                let range = self.within(span, 1);
                let bytes = bytes(seed, range.len());
                access.store(&open.map, range.start, &bytes)?;
            }
            Op::ForkWrite { span, seed } => {
                let range = self.within(span, 1);
                let bytes = bytes(seed, range.len());
                sys::in_child(|| {
                    same(
                        &access.load(&open.map, range.clone())?,
                        &want[range.clone()],
                        range.start,
                    )?;
                    access.store(&open.map, range.start, &bytes)?;
                    Ok(())
                })?;
            }
            Op::PrivateWrite {
                span,
                seed,
                gpu: by_gpu,
            } => {
                let range = self.within(span, 4);
                let private = Map::private(&open.file, MAX)?;
                same(
                    &access.load(&private, range.clone())?,
                    &want[range.clone()],
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
                    access.store(&private, range.start, &bytes)?;
                }
                same(&access.load(&private, range.clone())?, &bytes, range.start)?;
            }
            Op::PrivateFork { span, seed, value } => {
                let range = self.within(span, 4);
                let private = Map::private(&open.file, MAX)?;
                let stored = bytes(seed, range.len());
                let mut added = stored.clone();
                add_u32(&mut added, value);
                let all = pages(&(0..want.len()));
                access.touch(&private, all.clone())?;
                access.store(&private, range.start, &stored)?;
                let holds = |want: &[u8]| -> Result<()> {
                    let got = access.load(&private, range.clone())?;
                    Ok(same(&got, want, range.start)?)
                };
                let send = || -> Result<()> {
                    if !all.is_empty() {
                        gpu.migrate(&private, all.clone(), Direction::ToVram)?;
                    }
                    Ok(())
                };
                send()?;
                let parent = || {
                    send()?;
                    self.compute(Work::Add {
                        dst: private.addr() + range.start,
                        count: range.len() / 4,
                        value,
                    })?;
                    holds(&added)
                };
                sys::beside_child(parent, || holds(&stored))?;
            }
            Op::Read(span) => {
                let range = self.within(span, 1);
                let mut got = vec![0; range.len()];
                open.file.read_exact_at(&mut got, range.start as u64)?;
                same(&got, &want[range.clone()], range.start)?;
            }
            Op::DirectRead(span) => {
                let range = self.within(span, PAGE);
                if !range.is_empty() {
                    let buffer = Map::anonymous(range.len())?;
                    let len = sys::read_into(&open.direct, range.start, &buffer, 0..range.len())?;
                    same(&buffer.read(0..len), &want[range.clone()], range.start)?;
                }
            }
            Op::MapRead(span) => {
                let range = self.within(span, 1);
                same(
                    &access.load(&open.map, range.clone())?,
                    &want[range.clone()],
                    range.start,
                )?;
            }
            Op::RingRead(span) => {
                let range = self.within(span, 1);
                let file = open.file.try_clone()?;
                let got = self.ring.read(&file, range.start, range.len())?;
                same(&got, &want[range.clone()], range.start)?;
            }
            Op::Truncate(len) => open.file.set_len(len as u64)?,
            Op::Punch(span) => {
                let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE;
                let flags = flags | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                return self.allocate(flags, &span.within(MAX, 1));
            }
            Op::Zero(span) => {
                let range = span.within(MAX, 1);
                return self.allocate(FallocateFlags::FALLOC_FL_ZERO_RANGE, &range);
            }
            Op::Preallocate(span) => {
                let range = span.within(MAX, 1);
                return self.allocate(FallocateFlags::FALLOC_FL_KEEP_SIZE, &range);
            }
            Op::Compress(on) => match sys::set_compressed(&open.file, on) {
                // Few file systems can.
                Err(Errno::EOPNOTSUPP) => {}
                result => result?,
            },
            Op::Collapse(span) | Op::Insert(span) => {
                let flags = match op {
                    Op::Collapse(_) => FallocateFlags::FALLOC_FL_COLLAPSE_RANGE,
                    _ => FallocateFlags::FALLOC_FL_INSERT_RANGE,
                };
                let possible = effect(op, want).is_some();
                return Ok(possible && self.allocate(flags, &self.within(span, PAGE))?);
            }
            Op::Fsync => open.file.sync_all()?,
            Op::Msync => open.map.sync(MsFlags::MS_SYNC)?,
            Op::DropCaches => sys::drop_caches()?,
            Op::Shrink => sys::shrink()?,
            Op::Forget(span) => {
                let range = self.within(span, 1);
                let (from, len) = (i64::try_from(range.start)?, i64::try_from(range.len())?);
                let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
                posix_fadvise(&open.file, from, len, advice)?;
            }
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
                        access.touch(&open.map, pages.clone())?;
                    }
                    gpu.migrate(&open.map, pages, Direction::ToVram)?;
                }
            }
            Op::SendReadOnly(span) => {
                let pages = pages(&self.within(span, 1));
                if !pages.is_empty() {
                    let flags = MapFlags::MAP_SHARED;
                    let other = Map::of_file(&open.file, MAX, ProtFlags::PROT_READ, flags)?;
                    access.touch(&open.map, pages.clone())?;
                    access.touch(&other, pages.clone())?;
                    gpu.migrate(&other, pages, Direction::ToVram)?;
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
            }
            Op::GpuAdd { span, value } => {
                let range = self.within(span, 4);
                self.compute(Work::Add {
                    dst: open.map.addr() + range.start,
                    count: range.len() / 4,
                    value,
                })?;
            }
            Op::GpuCopy { .. } => {
                if let Some((from, to, len)) = parts(op, want.len()) {
                    self.compute(Work::Copy {
                        dst: open.map.addr() + to,
                        src: open.map.addr() + from,
                        count: len / 4,
                    })?;
                }
            }
            Op::GpuRead(span) => self.checksum(&self.within(span, 4))?,
            Op::MirrorSend(span) => {
                let pages = pages(&self.within(span, 1));
                access.touch(&open.map, pages.clone())?;
                mirror.send(&open.map, pages)?;
            }
            Op::MirrorRecall(span) => mirror.recall(&open.map, pages(&self.within(span, 1)))?,
            Op::MirrorRead(span) => {
                let range = self.within(span, PAGE);
                let got = mirror.read(&open.map, pages(&range))?;
                same(&got, &want[range.clone()], range.start)?;
            }
            Op::MirrorWrite { span, seed } => {
                let range = self.within(span, PAGE);
                let mut bytes = bytes(seed, range.len());
                mirror.write(&open.map, pages(&range), &mut bytes)?;
            }
            Op::Fault(_) => anyhow::bail!("this is for --faults"),
        }
        Ok(true)
    }

    /// Has the GPU compute, if there is something to compute on.
    fn compute(&self, work: Work) -> Result<u64> {
        if work.argument().count == 0 {
            return Ok(0);
        }
        let ended = self.devices.gpu.borrow().run(work)?;
        match ended.status {
            0 => Ok(ended.result),
            status => Err(Errno::from_raw(-status))
                .with_context(|| format!("a GPU job at address {:#x}", ended.fault_addr)),
        }
    }

    /// Has the GPU read a part of the file.
    fn checksum(&self, range: &Range<usize>) -> Result<()> {
        let sum = self.compute(Work::Checksum {
            src: self.open()?.map.addr() + range.start,
            count: range.len() / 4,
        })?;
        let want = &self.book.now()[range.clone()];
        if range.is_empty() || sum == Checksum::of(want) {
            return Ok(());
        }
        let got = self.access.load(&self.open()?.map, range.clone())?;
        let cpu = match same(&got, want, range.start) {
            Ok(()) => "the CPU sees what must be there".to_owned(),
            Err(error) => format!("by the CPU {error}"),
        };
        let text = format!("the GPU's checksum of {range:#x?} is wrong, and {cpu}");
        Err(Differs::sum(text).into())
    }

    /// Looks at all of the file.
    pub(crate) fn look(&self, look: Look) -> Result<()> {
        let open = self.open()?;
        let want = self.book.now();
        let size = open.file.metadata()?.len();
        ensure!(
            size == want.len() as u64,
            "the file has {size} bytes instead of {}",
            want.len()
        );
        match look {
            Look::Size => Ok(()),
            Look::Gpu => self.checksum(&(0..want.len() / 4 * 4)),
            Look::Read => {
                let mut got = vec![0; want.len()];
                open.file
                    .read_exact_at(&mut got, 0)
                    .map_err(anyhow::Error::from)
                    .and_then(|()| Ok(same(&got, want, 0)?))
            }
            Look::Map => (self.access.load(&open.map, 0..want.len()))
                .map_err(anyhow::Error::from)
                .and_then(|got| Ok(same(&got, want, 0)?)),
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
