// SPDX-License-Identifier: GPL-2.0
//! Others who use the file while something is done to it: they change nothing, so what must be in it
//! afterwards is the same. Pages are read in, move, come back and are written to the disk in the middle of
//! the operation.

use crate::step::Op;
use crate::step::MAX;
use anyhow::Result;
use devcache_selftests::gpu::Direction;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::map::Map;
use devcache_selftests::PAGE;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::Barrier;
use std::thread;

/// Whether an operation can be done while others have the file open: not if the file system is unmounted,
/// nor in a child of a process with threads. The device of hmm_dmirror gives up when pages change under
/// its hands.
fn may_be_met(op: &Op) -> bool {
    !matches!(
        op,
        Op::Remount
            | Op::ForkWrite { .. }
            | Op::PrivateFork { .. }
            | Op::MirrorSend(_)
            | Op::MirrorRecall(_)
            | Op::MirrorRead(_)
            | Op::MirrorWrite { .. }
    )
}

/// The last of the pages that an operation drops in the middle of the file, if it is one of these. Where
/// the kernel got a page at the end of a range it does not look at the range again: what came back in place
/// of it meanwhile must not be missed.
fn last_dropped(op: &Op, pages: &Range<usize>) -> Option<usize> {
    let (Op::Punch(span) | Op::Zero(span)) = op else {
        return None;
    };
    let range = span.within(MAX, 1);
    let last = (range.end / PAGE).checked_sub(1)?;
    (range.start <= last * PAGE && pages.contains(&last)).then_some(last)
}

/// Does `work`, which is that of `op`, while others read the `len` bytes of a file, move its pages and
/// sync it.
pub(crate) fn meet<R>(
    gpu: &Gpu,
    path: &Path,
    len: usize,
    op: &Op,
    work: impl FnOnce() -> Result<R>,
) -> Result<R> {
    let pages = 0..len.div_ceil(PAGE);
    if pages.is_empty() || !may_be_met(op) {
        return work();
    }
    let busy = last_dropped(op, &pages).map_or(pages.clone(), |last| last..last + 1);
    let file = File::options().read(true).write(true).open(path)?;
    let map = Map::shared(&file, MAX)?;
    let over = AtomicBool::new(false);
    let begin = Barrier::new(3);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut page = [0; PAGE];
            begin.wait();
            // The busy ones have more turns than all.
            for pages in [&busy, &busy, &busy, &pages].into_iter().cycle() {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                for at in pages.clone().step_by(3) {
                    // Nobody knows whether it is still there.
                    let _ = file.read_at(&mut page, (at * PAGE) as u64);
                }
                let _ = gpu.migrate(&map, pages.clone(), Direction::ToVram);
            }
        });
        scope.spawn(|| {
            begin.wait();
            while !over.load(Ordering::Relaxed) {
                let _ = file.sync_data();
            }
        });
        begin.wait();
        let result = work();
        over.store(true, Ordering::Relaxed);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::Span;

    #[test]
    fn a_whole_page_is_dropped_last() {
        let last = |op: Op| last_dropped(&op, &(0..4));
        let span = |at, len| Span::new(at, len - 1);
        assert_eq!(last(Op::Punch(span(5, 3 * PAGE))), Some(2));
        assert_eq!(last(Op::Zero(span(PAGE, PAGE))), Some(1));
        assert_eq!(last(Op::Punch(span(5, PAGE))), None);
        assert_eq!(last(Op::Punch(span(0, 9))), None);
        assert_eq!(last(Op::Punch(span(PAGE, 4 * PAGE))), None);
        assert_eq!(last(Op::Read(span(PAGE, PAGE))), None);
    }
}
