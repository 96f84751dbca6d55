// SPDX-License-Identifier: GPL-2.0
//! A thread that owns nothing, and moves pages under everybody else: nothing it does changes the file.

use crate::arena::Arena;
use crate::log::About;
use crate::log::Event;
use crate::log::Log;
use crate::region::Hand;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::gpu::Direction;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::map::READ_WRITE;
use devcache_selftests::sys;
use devcache_selftests::PAGE;
use nix::fcntl::posix_fadvise;
use nix::fcntl::PosixFadviseAdvice;
use nix::sys::mman::MmapAdvise;
use nix::sys::mman::MsFlags;
use nix::sys::mman::ProtFlags;
use std::ops::Range;
use std::thread;
use std::time::Duration;

/// The most pages it moves at a time.
const PAGES: usize = 16;

/// The longest it rests, in microseconds.
const REST: usize = 1000;

/// What it does.
#[derive(Clone, Copy, Debug)]
enum Move {
    ToVram,
    ToRam,
    Fadvise,
    Unmap,
    Forbid,
    Allow,
    Fsync,
    Fdatasync,
    Msync,
    SyncRange,
    DropCaches,
}

/// What it chooses from: some of it often.
const MOVES: &[Move] = &[
    Move::ToVram,
    Move::ToVram,
    Move::ToVram,
    Move::ToVram,
    Move::ToVram,
    Move::ToVram,
    Move::ToVram,
    Move::ToVram,
    Move::ToRam,
    Move::ToRam,
    Move::Fadvise,
    Move::Fadvise,
    Move::Unmap,
    Move::Unmap,
    Move::Forbid,
    Move::Allow,
    Move::Fsync,
    Move::Fdatasync,
    Move::Msync,
    Move::SyncRange,
    Move::DropCaches,
];

impl Move {
    /// Its name in reports.
    fn name(self) -> &'static str {
        match self {
            Move::ToVram => "moves to VRAM",
            Move::ToRam => "moves to RAM",
            Move::Fadvise => "drops clean",
            Move::Unmap => "unmaps",
            Move::Forbid => "forbids stores elsewhere to",
            Move::Allow => "allows stores elsewhere to",
            Move::Fsync => "fsyncs",
            Move::Fdatasync => "fdatasyncs",
            Move::Msync => "msyncs",
            Move::SyncRange => "writes back",
            Move::DropCaches => "drops all that is clean,",
        }
    }

    /// Does it to these pages, or to all.
    fn perform(
        self,
        arena: &Arena<'_>,
        gpu: &Gpu,
        hand: &mut Hand,
        pages: Range<usize>,
    ) -> Result<()> {
        let region = arena.region;
        match self {
            Move::ToVram => {
                let map = region.readable(hand);
                if hand.random.below(2) == 0 {
                    map.touch_read(pages.clone());
                }
                gpu.migrate(map, pages, Direction::ToVram)?;
            }
            Move::ToRam => {
                gpu.migrate(region.readable(hand), pages, Direction::ToRam)?;
            }
            Move::Fadvise => posix_fadvise(
                &region.file,
                i64::try_from(pages.start * PAGE)?,
                i64::try_from(pages.len() * PAGE)?,
                PosixFadviseAdvice::POSIX_FADV_DONTNEED,
            )?,
            Move::Unmap => region
                .readable(hand)
                .advise(pages, MmapAdvise::MADV_DONTNEED)?,
            Move::Forbid => region.elsewhere.protect(pages, ProtFlags::PROT_READ)?,
            Move::Allow => region.elsewhere.protect(pages, READ_WRITE)?,
            Move::Fsync => region.file.sync_all()?,
            Move::Fdatasync => region.file.sync_data()?,
            Move::Msync => region.map.sync(MsFlags::MS_SYNC)?,
            Move::SyncRange => {
                sys::sync_range(&region.file, pages.start * PAGE..pages.end * PAGE)?;
            }
            Move::DropCaches => sys::drop_caches()?,
        }
        Ok(())
    }
}

/// Moves pages with this GPU until everybody stops.
pub(crate) fn run(arena: &Arena<'_>, gpu: &Gpu, mut hand: Hand, who: String) -> Log {
    let mut log = Log::new(who.clone());
    let all = arena.layout.pages();
    arena.repeat(|| {
        let first = arena.pick(&mut hand.random).pages().start;
        let pages = first..(first + 1 + hand.random.below(PAGES)).min(all);
        let what = hand.pick(MOVES);
        let begin = arena.clock.tick();
        let result = what.perform(arena, gpu, &mut hand, pages.clone());
        log.add(Event {
            begin,
            end: arena.clock.tick(),
            what: what.name(),
            about: About::Pages(match what {
                Move::Fsync | Move::Fdatasync | Move::Msync | Move::DropCaches => 0..all,
                _ => pages,
            }),
        });
        thread::sleep(Duration::from_micros(hand.random.below(REST) as u64));
        result.with_context(|| format!("{who} {}", what.name()))
    });
    log
}
