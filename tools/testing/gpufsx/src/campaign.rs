// SPDX-License-Identifier: GPL-2.0
//! Operations while faults come and go.
//!
//! After each operation the kernel is asked how many pages were lost. If it failed, its errno must be
//! one that [`rules`](crate::rules) has for what is wrong; and if it failed or pages were lost, all of
//! the file is read and must be what [`Book`](crate::book::Book) says it may be. A page of tmpfs that
//! was lost must be an error in every way, and is written again. While the disk has errors all of the
//! file is read after each operation, until it cannot be: then the file system is mounted again, with a
//! disk that works. In the end the faults are off, fsync has told what there was to tell, and everything
//! must be exact.

use crate::book::Loss;
use crate::differs::errno;
use crate::differs::Differs;
use crate::exercise::Devices;
use crate::exercise::Exercise;
use crate::faults::Faults;
use crate::rules::Kind;
use crate::rules::Owed;
use crate::step::Fault;
use crate::step::Look;
use crate::step::Op;
use crate::step::Step;
use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Error;
use anyhow::Result;
use devcache_selftests::disk::Disk;
use devcache_selftests::figures::Figures;
use devcache_selftests::gpu::Work;
use devcache_selftests::mount::Mount;
use devcache_selftests::tally::Tally;
use devcache_selftests::PAGE;
use nix::errno::Errno;
use nix::fcntl::fallocate;
use nix::fcntl::FallocateFlags;
use std::cell::RefCell;
use std::io;
use std::os::unix::fs::FileExt;

/// See the file's head.
pub(crate) struct Campaign<'a> {
    exercise: Exercise<'a>,
    faults: Faults<'a>,
    devices: &'a Devices,
}

/// Pages lost since boot.
fn lost() -> Result<u64> {
    Ok(Tally::now()?.lost)
}

/// Something that may fail, and what it is.
#[derive(Clone, Copy)]
enum Attempt<'a> {
    Op(&'a Op),
    Look(Look),
}

impl Attempt<'_> {
    fn kind(self) -> Kind {
        match self {
            Attempt::Op(op) => Kind::of(op),
            Attempt::Look(look) => Kind::of_look(look),
        }
    }

    /// What it does to the file.
    fn op(&self) -> &Op {
        match self {
            Attempt::Op(op) => op,
            Attempt::Look(_) => &Op::Fsync,
        }
    }
}

impl<'a> Campaign<'a> {
    /// Begins with an empty file and no faults.
    pub(crate) fn new(
        devices: &'a Devices,
        mount: &'a Mount,
        disk: Option<&'a Disk>,
        figures: &'a RefCell<Figures>,
    ) -> Result<Self> {
        Ok(Campaign {
            exercise: Exercise::new(devices, mount, true)?,
            faults: Faults::new(devices, mount, disk, figures)?,
            devices,
        })
    }

    /// Does the steps one after the other; fails at the first that ends in a way it must not.
    pub(crate) fn run(&mut self, steps: &[Step]) -> Result<()> {
        for (number, step) in steps.iter().enumerate() {
            self.attempt(Attempt::Op(&step.op))
                .and_then(|()| self.attempt(Attempt::Look(step.look)))
                .with_context(|| format!("step {number}, {step:?}"))?;
        }
        self.end().context("in the end")
    }

    fn end(&mut self) -> Result<()> {
        self.attempt(Attempt::Op(&Op::Fault(Fault::Off)))?;
        self.attempt(Attempt::Op(&Op::Fsync))?;
        let before = lost()?;
        self.exercise.act(&Op::Fsync).context("another fsync")?;
        for look in [Look::Gpu, Look::Map, Look::Read] {
            self.exercise.look(look)?;
        }
        self.attempt(Attempt::Op(&Op::Remount))?;
        self.exercise.look(Look::Read).context("on the disk")?;
        ensure!(lost()? == before, "pages were lost without a fault");
        Ok(())
    }

    /// The disk works again, and what it has is what the file has.
    fn mend_disk(&mut self) -> Result<()> {
        self.faults.mend_disk()?;
        self.exercise.act(&Op::Remount)?;
        self.faults.trouble.mounted();
        Ok(())
    }

    fn attempt(&mut self, attempt: Attempt<'_>) -> Result<()> {
        let bad_disk = self.faults.trouble.bad_disk;
        if let (Attempt::Op(Op::Fault(Fault::Disk { .. })), false) = (attempt, bad_disk) {
            // What the disk has from then on is known.
            self.attempt(Attempt::Op(&Op::Remount))?;
        }
        let before = lost()?;
        let kind = attempt.kind();
        let result = match attempt {
            Attempt::Op(Op::Remount) if bad_disk => self.mend_disk().map(|()| true),
            Attempt::Op(Op::Fault(Fault::Disk { .. })) if bad_disk => Ok(false),
            Attempt::Op(Op::Fault(fault)) => {
                if bad_disk && matches!(fault, Fault::Off) {
                    self.mend_disk()?;
                }
                self.faults.turn(*fault).map(|()| true)
            }
            Attempt::Op(op) if kind.may_starve(self.faults.trouble.on_disk) => {
                self.faults.with(|| self.exercise.act(op))?
            }
            Attempt::Op(op) => self.exercise.act(op),
            Attempt::Look(look) => self.exercise.look(look).map(|()| true),
        };
        let lost = lost()? - before;
        self.faults.trouble.lost = lost != 0;
        let failed = result.is_err();
        let excused = match result {
            Ok(done) => {
                self.succeeded(attempt, done)?;
                None
            }
            Err(error) => self.failed(attempt, error)?,
        };
        let off = matches!(attempt, Attempt::Op(Op::Fault(Fault::Off)));
        let mut anew = matches!(attempt, Attempt::Op(Op::Remount)) || (bad_disk && off);
        if failed || lost != 0 || bad_disk || off {
            let loss = match (bad_disk, anew) {
                (false, _) => Loss::Pages(self.older(lost)),
                (true, false) => Loss::Unwritten,
                (true, true) => Loss::All,
            };
            anew |= self.settle(attempt, failed, excused, loss)?;
        }
        // What reached the disk by then is all of it.
        let trouble = &self.faults.trouble;
        let synced = matches!(attempt, Attempt::Op(Op::Fsync | Op::Msync));
        if anew || (synced && !failed && !trouble.lost && !trouble.told) {
            self.exercise.book.confirmed();
        }
        self.faults.trouble.starved = false;
        Ok(())
    }

    /// Takes note of what succeeded, unless it should not have.
    fn succeeded(&mut self, attempt: Attempt<'_>, done: bool) -> Result<()> {
        let trouble = &mut self.faults.trouble;
        let kind = attempt.kind();
        ensure!(
            !trouble.must_fail(kind),
            "this does not tell that a page was lost"
        );
        if kind == Kind::Sync {
            trouble.owed = Owed::Nothing;
        }
        if matches!(attempt, Attempt::Op(Op::Remount)) {
            if trouble.cut {
                let size = self.exercise.open()?.file.metadata()?.len();
                self.exercise.book.cut(usize::try_from(size)?);
            }
            trouble.mounted();
        }
        match attempt {
            Attempt::Op(op) if done => self.exercise.book.done(op),
            Attempt::Op(_) => {}
            Attempt::Look(Look::Size) => {}
            Attempt::Look(_) => self.compared(self.exercise.book.now().len()),
        }
        Ok(())
    }

    /// Of so many pages that were lost, those that may be older: what tmpfs lost is an error.
    fn older(&self, lost: u64) -> u64 {
        match self.faults.trouble.on_disk {
            true => lost,
            false => 0,
        }
    }

    /// Judges an error. Gives it back if it is only right if something is older now.
    fn failed(&mut self, attempt: Attempt<'_>, error: Error) -> Result<Option<Error>> {
        let trouble = &mut self.faults.trouble;
        let kind = attempt.kind();
        if let Some(differs) = error
            .chain()
            .find_map(|cause| cause.downcast_ref::<Differs>())
        {
            // A call may stop before the page that fails.
            let stops = trouble.starved || (trouble.lost && !trouble.on_disk);
            let short = differs.short;
            if short && stops {
                return Ok(None);
            }
            // That may be what the disk has; then it is looked at more closely.
            let book = &self.exercise.book;
            let may_be_older = trouble.bad_disk || (trouble.lost && trouble.on_disk);
            if may_be_older && book.possible(&differs.got, differs.from, attempt.op()) {
                // What stopped at an error of the disk was right as far as it came; and what could not
                // be written to it is still in the page cache, but not for direct reads.
                let direct = trouble.bad_disk && matches!(attempt, Attempt::Op(Op::DirectRead(_)));
                return Ok(Some(error).filter(|_| !short && !direct));
            }
            return Err(error);
        }
        let Some(errno) = errno(&error) else {
            return Err(error);
        };
        let allowed = trouble.errnos(kind);
        if !allowed.contains(&errno) {
            return Err(error.context(format!("{errno:?} is none of {allowed:?}")));
        }
        if kind == Kind::Sync {
            trouble.owed = Owed::Nothing;
            trouble.told = trouble.bad_disk;
        }
        if matches!(kind, Kind::Flush { .. }) && errno == Errno::EIO {
            trouble.flagged = false;
        }
        self.faults.count(1, &format!("times {errno:?}"));
        Ok(None)
    }

    fn compared(&self, bytes: usize) {
        self.faults.count(bytes as u64, "bytes compared");
    }

    /// Looks at all of the file after something failed or was lost. Says whether the file system had to
    /// be mounted again for that. What is `excused` was read as older than it should be, so something is.
    fn settle(
        &mut self,
        attempt: Attempt<'_>,
        failed: bool,
        excused: Option<Error>,
        mut loss: Loss,
    ) -> Result<bool> {
        let start = lost()?;
        let mut seen = self.observe();
        let unreadable = |error: &Error| {
            loss == Loss::Unwritten
                && errno(error)
                    .is_some_and(|it| self.faults.trouble.errnos(Kind::Read).contains(&it))
        };
        let anew = seen.as_ref().is_err_and(unreadable);
        if anew {
            self.mend_disk()?;
            loss = Loss::All;
            seen = self.observe();
        }
        let got = seen?;
        let later = lost()? - start;
        if let Loss::Pages(pages) = &mut loss {
            *pages += self.older(later);
        }
        self.compared(got.len());
        let op = attempt.op();
        let book = &mut self.exercise.book;
        let older = book.seen(got, failed.then_some(op), op, loss)?;
        if let Some(error) = excused.filter(|_| older == 0 && loss != Loss::All) {
            return Err(error.context("nothing is older when it is read again"));
        }

        let told = failed && attempt.kind() == Kind::Sync;
        let bad_copies = self.faults.spoils_copies()?;
        let trouble = &mut self.faults.trouble;
        trouble.bad_copies = bad_copies;
        let lost = trouble.lost || later != 0;
        trouble.cut |= lost;
        trouble.flagged |= lost;
        if loss == Loss::All || trouble.told {
            trouble.owed = Owed::Nothing;
        } else if lost || (loss == Loss::Unwritten && older != 0) {
            // What was lost before fsync said so has been told.
            let all_told = told && later == 0;
            trouble.owed = match (older, all_told) {
                (_, true) => Owed::Nothing,
                (1.., false) if !told => Owed::Error,
                _ if trouble.owed == Owed::Nothing => Owed::Perhaps,
                _ => trouble.owed,
            };
        }
        Ok(anew)
    }

    /// What the file has. Pages of tmpfs that are errors are written again.
    fn observe(&self) -> Result<Vec<u8>> {
        let open = self.exercise.open()?;
        let size = usize::try_from(open.file.metadata()?.len())?;
        let mut got = Vec::with_capacity(size);
        for from in (0..size).step_by(PAGE) {
            let mut bytes = vec![0; PAGE.min(size - from)];
            match open.file.read_exact_at(&mut bytes, from as u64) {
                Ok(()) => {}
                Err(error)
                    if error.raw_os_error() == Some(libc::EIO) && !self.faults.trouble.on_disk =>
                {
                    bytes = self.rewrite(from, bytes.len())?;
                }
                Err(error) => return Err(error).context("look at the file"),
            }
            got.extend(bytes);
        }
        Ok(got)
    }

    /// A page cannot be read: neither can it in any other way, until it is punched out. Gives it the
    /// bytes that it must have.
    fn rewrite(&self, from: usize, len: usize) -> Result<Vec<u8>> {
        let open = self.exercise.open()?;
        let load = self.exercise.access.load(&open.map, from..from + 1);
        ensure!(
            load == Err(Errno::EFAULT),
            "a load of a lost page: {load:?}"
        );
        let part = open.file.write_at(b"x", from as u64);
        let said = part.as_ref().err().and_then(io::Error::raw_os_error);
        ensure!(said == Some(libc::EIO), "a write to a lost page: {part:?}");
        if !self.faults.trouble.gone {
            let sum = Work::Sum {
                src: open.map.addr() + from,
                count: 1,
            };
            let ended = self.devices.gpu.borrow().run(sum)?;
            ensure!(ended.status != 0, "the GPU can read a lost page");
        }

        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&open.file, flags, from as i64, PAGE as i64).context("punch out a lost page")?;
        let bytes = self.exercise.book.part(from, len);
        open.file
            .write_all_at(&bytes, from as u64)
            .context("write a lost page again")?;
        let mut again = vec![0; len];
        open.file.read_exact_at(&mut again, from as u64)?;
        if again != bytes {
            bail!("a page that was written again is wrong");
        }
        Ok(bytes)
    }
}
