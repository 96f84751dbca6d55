// SPDX-License-Identifier: GPL-2.0
//! The driver's calls with random arguments, from several threads at once.
//!
//! Fields are drawn from what is valid, nearly valid, and anything, so that calls get past each of the
//! checks now and then. Addresses are those of an arena, or of nothing: the GPU is to write to what it is
//! told, and the test's own memory is not meant.

use crate::case::Case;
use crate::case::Ctx;
use crate::cases::resize::vram_becomes_free;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::ensure;
use anyhow::Result;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::map::Map;
use devcache_selftests::random::Random;
use devcache_selftests::syncobj::Syncobj;
use devcache_selftests::sys::in_child;
use devcache_selftests::uapi;
use devcache_selftests::PAGE;
use nix::errno::Errno;
use nix::sys::mman::ProtFlags;
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

pub(crate) const CASES: &[Case] = &[Case::every("fuzz_ioctl", fuzz).limit(120)];

/// How long the threads make calls.
const TIME: Duration = Duration::from_secs(8);
const THREADS: u64 = 3;
const ARENA_PAGES: usize = 64;
const SYNCOBJS: usize = 70;

/// What the threads share.
struct Target<'a> {
    gpu: &'a Gpu,
    /// Memory with parts that have fewer rights. What a job does beyond the end it would do to whatever
    /// lies there, so there is as much again without any.
    arenas: [Map; 2],
    /// Some that have a fence, and some that have none, but any of them may lose or get one.
    syncobjs: Vec<Syncobj<'a>>,
    /// Their handles, and what is none.
    handles: Vec<u32>,
    /// The last job that was queued.
    job: AtomicU64,
    end: Instant,
}

impl Target<'_> {
    /// A number.
    fn number(&self, random: &mut Random) -> u64 {
        let small = random.below(8) as u64;
        match random.below(6) {
            0 => 0,
            1 => small,
            2 => u64::MAX - small,
            3 => 1 << random.below(64),
            4 => (1 << random.below(64)) - small.min(1),
            _ => random.value(),
        }
    }

    /// An address.
    fn address(&self, random: &mut Random) -> u64 {
        let arena = &self.arenas[random.below(2)];
        let page = arena.page_addr(random.below(ARENA_PAGES)) as u64;
        match random.below(8) {
            0 => self.number(random) | (1 << 63),
            1 => page + random.below(PAGE) as u64,
            2 => page + 4 * random.below(PAGE / 4) as u64,
            3 => 0,
            4 => (1 << 47) - (random.below(4) * PAGE) as u64,
            _ => page,
        }
    }

    /// A length or a count that fits the arena, or does not.
    fn length(&self, random: &mut Random) -> u64 {
        match random.below(4) {
            0 => self.number(random),
            1 => random.below(ARENA_PAGES * PAGE) as u64,
            _ => (random.below(ARENA_PAGES) * PAGE) as u64,
        }
    }

    /// A field that has few values.
    fn code(&self, random: &mut Random) -> u32 {
        match random.below(4) {
            0 => random.value() as u32,
            _ => random.below(8) as u32,
        }
    }

    /// Address and length of a list of handles.
    fn list(&self, random: &mut Random) -> (u64, u32) {
        let count = random.below(self.handles.len());
        match random.below(16) {
            0 => (self.address(random), self.code(random)),
            1 => (self.number(random), self.code(random)),
            2 => (self.handles.as_ptr() as u64, count as u32),
            3..6 => (self.handles.as_ptr() as u64, (count / 4) as u32),
            _ => (0, 0),
        }
    }

    /// Makes one call; how it ended, if it was not nonsense as a whole.
    fn call(&self, random: &mut Random) -> Result<(), Errno> {
        match random.below(6) {
            0 => self.gpu.migrate_raw(&mut uapi::drm_vsvm_migrate {
                start: self.address(random),
                length: self.length(random),
                direction: self.code(random),
                flags: self.code(random) & self.code(random) & self.code(random),
                ..Default::default()
            }),
            1 | 2 => {
                let mut exec = uapi::drm_vsvm_exec {
                    op: self.code(random),
                    type_: self.code(random) & 1,
                    dst: self.address(random),
                    src_a: self.address(random),
                    src_b: self.address(random),
                    count: self.length(random) / 4,
                    scalar: self.code(random),
                    flags: self.code(random) & self.code(random),
                    ..Default::default()
                };
                // The operations have different fields.
                for field in [&mut exec.dst, &mut exec.src_a, &mut exec.src_b] {
                    if random.below(2) == 0 {
                        *field = 0;
                    }
                }
                if random.below(2) == 0 {
                    exec.scalar = 0;
                }
                (exec.wait_syncobjs, exec.wait_count) = self.list(random);
                (exec.signal_syncobjs, exec.signal_count) = self.list(random);
                self.gpu.exec_raw(&mut exec)?;
                self.job.store(exec.job, Ordering::Relaxed);
                Ok(())
            }
            3 => {
                let job = match random.below(3) {
                    0 => self.number(random),
                    _ => self.job.load(Ordering::Relaxed),
                };
                let soon = Duration::from_millis(random.below(3) as u64);
                self.gpu
                    .wait(devcache_selftests::gpu::JobId(job), soon)
                    .map(drop)
            }
            4 => {
                let syncobj = &self.syncobjs[random.below(self.syncobjs.len())];
                syncobj.set(random.below(4) > 0)
            }
            _ => self.anything(random),
        }
    }

    /// A call that may be no call of the driver at all, with garbage for an argument.
    fn anything(&self, random: &mut Random) -> Result<(), Errno> {
        let mut argument = [0_u64; 64];
        argument.fill_with(|| self.number(random));
        let number = 0x40 + random.below(8) as u64;
        let size = match random.below(2) {
            0 => random.below(512) as u64,
            _ => 8 * random.below(16) as u64,
        };
        let direction = random.below(4) as u64;
        let request = (direction << 30) | (size << 16) | (u64::from(b'd') << 8) | number;
        // Nothing is to be waited for without a limit, and the arrays of a job are not to be anywhere.
        if number == 0x43 || number == 0x44 {
            return Ok(());
        }
        // SAFETY: The argument is larger than any size that fits the request.
        let result = unsafe {
            libc::ioctl(
                self.gpu.file().as_raw_fd(),
                request as libc::Ioctl,
                argument.as_mut_ptr(),
            )
        };
        Errno::result(result).map(drop)
    }
}

/// Makes random calls until the time is over; how many ended well, and how many did not.
fn run(target: &Target<'_>, seed: u64) -> (u64, u64) {
    let mut random = Random::new(seed);
    let (mut well, mut not) = (0, 0);
    while Instant::now() < target.end {
        match target.call(&mut random) {
            Ok(()) => well += 1,
            Err(_) => not += 1,
        }
    }
    (well, not)
}

/// See the head of the file.
fn fuzz(ctx: &Ctx) -> Result<()> {
    let free = ctx.gpu()?.vram_free()?;
    let file = Resident::dirty(ctx, 16)?;
    let arena = ctx.file("arena")?;
    arena.set_len((2 * ARENA_PAGES * PAGE) as u64)?;
    let seed = u64::from(std::process::id());
    println!("seed {seed}");

    in_child(|| {
        let gpu = Gpu::open()?;
        let arenas = [
            Map::anonymous(2 * ARENA_PAGES * PAGE)?,
            Map::shared(&arena, 2 * ARENA_PAGES * PAGE)?,
        ];
        for arena in &arenas {
            arena.protect(ARENA_PAGES..2 * ARENA_PAGES, ProtFlags::PROT_NONE)?;
        }
        arenas[0].protect(5..7, ProtFlags::PROT_NONE)?;
        arenas[1].protect(9..12, ProtFlags::PROT_READ)?;
        let syncobjs = (0..SYNCOBJS).map(|n| Syncobj::new(&gpu, n % 8 > 0));
        let syncobjs = syncobjs.collect::<Result<Vec<_>, _>>()?;
        let mut handles: Vec<_> = syncobjs.iter().map(Syncobj::handle).collect();
        handles.extend([0, u32::MAX]);
        let target = Target {
            gpu: &gpu,
            arenas,
            syncobjs,
            handles,
            job: AtomicU64::new(0),
            end: Instant::now() + TIME,
        };
        let (mut well, mut not) = (0, 0);
        thread::scope(|scope| {
            let target = &target;
            let threads: Vec<_> = (0..THREADS)
                .map(|thread| scope.spawn(move || run(target, seed + thread)))
                .collect();
            for thread in threads {
                let counts = thread.join().expect("does not panic");
                well += counts.0;
                not += counts.1;
            }
        });
        println!("{well} calls ended well, {not} did not");
        ensure!(well > 100 && not > 100, "the calls are not random enough");
        Ok(())
    })?;

    // Neither the GPU nor others have suffered.
    file.is_right()?;
    file.send(0..16, Touch::Write)?;
    file.gpu_sees(0..16)?;
    let (path, _) = file.close();
    std::fs::remove_file(path)?;
    drop(arena);
    std::fs::remove_file(ctx.path("arena"))?;
    vram_becomes_free(ctx, free)
}
