// SPDX-License-Identifier: GPL-2.0

//! The copy engine: the kernel's own channel between system memory and VRAM.
//!
//! Everything that moves pages goes through here: migrations, the way back when the CPU needs a
//! page, clearing page tables. It belongs to no process, works on physical addresses, and cannot
//! fault.
//!
//! # A leaf
//!
//! File systems, truncation and reclaim wait for copies while they hold locks of their own. So
//! nothing in here may wait for them in turn: all memory is allocated in advance (but what an
//! IOMMU or a bounce buffer takes, which is there at once or not), no lock is held that anything
//! of memory management is called with, signals are ignored, and the device has
//! [`TIMEOUT`] to answer. Then the channel is restarted and gets a second chance, for nothing is
//! lost yet; after that the copy is reported as failed. Only while somebody resets the function do
//! copies wait longer: until that is over.
//!
//! # Locks
//!
//! `CopyEngine::state` is held from the first descriptor of a copy to its last completion; the only
//! lock taken inside is that of [`Wake`].

use kernel::{
    device::{
        Bound,
        Device, //
    },
    dma::{
        Coherent,
        DataDirection,
        PageMapping, //
    },
    io::{
        io_project,
        Io, //
    },
    mm::folio::Folio,
    new_condvar,
    new_mutex,
    num::casts,
    prelude::*,
    processor::cpu_relax,
    sync::{
        Arc,
        CondVar,
        Mutex, //
    },
    time::{
        msecs_to_jiffies,
        Delta,
        Instant,
        Monotonic,
        Msecs, //
    }, //
};

use crate::{
    channel::{
        Channel,
        Cursor,
        HasWake,
        Wake, //
    },
    hw::{
        self,
        CopyCommand,
        CopyOp,
        Done,
        RawSegment,
        Segment, //
    },
    regs::Regs,
    stats::Stats, //
};

/// Pages that one descriptor copies at most.
pub(crate) const BATCH: usize = 512;

/// How long the device may take for one descriptor.
const TIMEOUT: Msecs = 5_000;

/// How long to look for the end of a descriptor before going to sleep. The way back of one page, which
/// a CPU waits for, takes less time than to sleep and be woken.
const SPIN: Delta = Delta::from_micros(100);

/// How often to look whether a descriptor is done, in case its interrupt got lost.
const LOOK_AGAIN: Msecs = 100;

/// One page to be copied.
pub(crate) trait Piece {
    /// Returns the number by which the caller knows the page.
    fn id(&self) -> usize;

    /// Returns the page in system memory; `None` for a page of VRAM to be filled with zeroes.
    fn system(&self) -> Option<&Folio>;

    /// Returns the offset of the page in VRAM.
    fn vram(&self) -> u64;
}

/// What is guarded by the lock of the engine.
struct State<'bound> {
    cursor: Cursor,
    /// Mappings of the pages in the scatter list.
    mapped: KVec<PageMapping<'bound>>,
    /// Numbers of the pages in the scatter list.
    ids: KVec<usize>,
    /// The channel could not be stopped after a timeout, so it must not be used any more.
    dead: bool,
    /// The device is being reset, or sleeps.
    paused: bool,
}

/// The copy engine.
#[pin_data]
pub(crate) struct CopyEngine<'bound> {
    dev: &'bound Device<Bound>,
    stats: Arc<Stats>,
    channel: Channel<'bound>,
    list: Coherent<[RawSegment]>,
    #[pin]
    state: Mutex<State<'bound>>,
    /// Tells of the end of a pause.
    #[pin]
    resumed: CondVar,
    #[pin]
    wake: Wake,
}

impl HasWake for CopyEngine<'_> {
    fn wake(&self) -> &Wake {
        &self.wake
    }
}

impl<'bound> CopyEngine<'bound> {
    /// Sets up the channel.
    pub(crate) fn new(
        dev: &'bound Device<Bound>,
        regs: Arc<Regs<'bound>>,
        stats: Arc<Stats>,
    ) -> Result<Arc<Self>> {
        let channel = Channel::new(dev, regs, hw::CHANNEL_COPY)?;
        let mut cursor = Cursor::new();
        channel.enable(&mut cursor)?;
        let state = State {
            cursor,
            mapped: KVec::with_capacity(BATCH, GFP_KERNEL)?,
            ids: KVec::with_capacity(BATCH, GFP_KERNEL)?,
            dead: false,
            paused: false,
        };
        Arc::pin_init(
            try_pin_init!(Self {
                dev,
                stats,
                channel,
                list: Coherent::zeroed_slice(dev, BATCH, GFP_KERNEL)?,
                state <- new_mutex!(state, "CopyEngine::state"),
                resumed <- new_condvar!("CopyEngine::resumed"),
                wake <- Wake::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// Executes `op` on pages, and calls `failed` with the number of each page that failed.
    ///
    /// A failure of one page does not keep the others from being copied. What the destination of a
    /// failed page contains is undefined.
    ///
    /// Context: process context, sleeps; see the head of the file.
    pub(crate) fn run(
        &self,
        op: CopyOp,
        pieces: impl Iterator<Item = impl Piece>,
        mut failed: impl FnMut(usize),
    ) {
        let mut state = self.state.lock();
        while state.paused {
            self.resumed.wait(&mut state);
        }
        for piece in pieces {
            if state.ids.len() == BATCH {
                self.flush(&mut state, op, &mut failed);
            }
            if self.add(&mut state, op, &piece).is_err() {
                failed(piece.id());
            }
        }
        self.flush(&mut state, op, &mut failed);
    }

    /// Adds a page to the scatter list, which must have room for it.
    fn add(&self, state: &mut State<'bound>, op: CopyOp, piece: &impl Piece) -> Result {
        let mapping = match piece.system() {
            None => None,
            Some(folio) => {
                let direction = match op {
                    CopyOp::FromVram => DataDirection::FromDevice,
                    _ => DataDirection::ToDevice,
                };
                Some(PageMapping::of_folio(self.dev, folio, direction)?)
            }
        };
        let segment = Segment {
            other: mapping.as_ref().map_or(0, PageMapping::dma_address),
            vram: piece.vram(),
            length: hw::PAGE_SIZE,
        };
        let index = state.ids.len();
        io_project!(&self.list, [try: index]).copy_write(segment.encode());

        if let Some(mapping) = mapping {
            let pushed = state.mapped.push_within_capacity(mapping);
            pushed.map_err(|_| EINVAL)?;
        }
        let pushed = state.ids.push_within_capacity(piece.id());
        pushed.map_err(|_| EINVAL)
    }

    /// Lets the device execute the scatter list, then empties it.
    ///
    /// The device stops at the first entry that fails; it is reported and the rest is tried again.
    fn flush(&self, state: &mut State<'bound>, op: CopyOp, failed: &mut impl FnMut(usize)) {
        let count = state.ids.len();
        let mut next = 0;
        while next < count {
            let done = self
                .submit(state, op, next, count - next)
                .or_else(|_| self.submit(state, op, next, count - next));
            let Ok(done) = done else {
                // The channel does not work: it will not for the rest either.
                state.ids.iter().skip(next).for_each(|&id| failed(id));
                break;
            };
            let good = casts::arch::u64_as_usize(done.result).min(count - next);
            self.stats.copied(op, good);
            next += good;
            if let Some(&id) = state.ids.get(next) {
                failed(id);
                next += 1;
            }
        }
        state.ids.clear();
        state.mapped.clear();
    }

    /// Lets the device execute entries of the scatter list and waits until it has done so.
    fn submit(
        &self,
        state: &mut State<'bound>,
        op: CopyOp,
        first: usize,
        count: usize,
    ) -> Result<Done> {
        if state.dead {
            return Err(EIO);
        }
        let list = self.list.dma_address() + casts::usize_as_u64(first) * hw::SEGMENT_SIZE;
        let segments = u32::try_from(count)?;
        let fence = self.channel.post(&mut state.cursor, |fence| {
            CopyCommand {
                op,
                irq: true,
                fence,
                list,
                segments,
                pattern: 0,
            }
            .encode()
        })?;

        let start = Instant::<Monotonic>::now();
        while !self.channel.is_done(fence) && start.elapsed() < SPIN {
            cpu_relax();
        }
        let mut left = msecs_to_jiffies(TIMEOUT);
        while left != 0 {
            let turn = left.min(msecs_to_jiffies(LOOK_AGAIN));
            let rest = self.wake.wait(turn, || self.channel.is_done(fence));
            if rest != 0 || self.channel.check().is_err() {
                break;
            }
            left -= turn;
        }
        match self.channel.completion(fence) {
            Some(done) => done,
            None => {
                self.restart(state);
                Err(EIO)
            }
        }
    }

    /// Waits for the copy under way, and keeps others waiting until [`Self::resume`] is called.
    pub(crate) fn pause(&self) {
        self.state.lock().paused = true;
    }

    /// Starts the engine after the device has been reset, and lets copies go on.
    pub(crate) fn resume(&self) {
        let mut state = self.state.lock();
        state.dead = self.channel.enable(&mut state.cursor).is_err();
        state.paused = false;
        drop(state);
        self.resumed.notify_all();
    }

    /// Makes a channel that hangs usable again.
    fn restart(&self, state: &mut State<'bound>) {
        dev_err!(self.dev, "copy engine does not answer, restarting it\n");
        let restarted = self
            .channel
            .disable()
            .and_then(|()| self.channel.enable(&mut state.cursor));
        if restarted.is_err() {
            dev_err!(self.dev, "copy engine cannot be restarted\n");
            state.dead = true;
        }
    }
}
