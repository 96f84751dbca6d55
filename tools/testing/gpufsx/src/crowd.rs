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
    let file = File::options().read(true).write(true).open(path)?;
    let map = Map::shared(&file, MAX)?;
    let over = AtomicBool::new(false);
    let begin = Barrier::new(3);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut page = [0; PAGE];
            begin.wait();
            while !over.load(Ordering::Relaxed) {
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
