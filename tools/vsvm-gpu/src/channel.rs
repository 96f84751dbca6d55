// SPDX-License-Identifier: GPL-2.0

//! Channels: descriptor rings and the threads that execute them.
//!
//! The server loop changes a channel's registers and wakes its thread; it never waits for it. The
//! thread takes one descriptor at a time as a [`Job`] and asks the job at every step of bounded
//! length whether it has been abandoned meanwhile. `busy` covers a job from before its first
//! access to memory until after its last, which is what [`channel::STATUS_BUSY`] promises.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::gpu::Gpu;
use crate::hw::{
    channel, descriptor_fence, ChannelError, Descriptor, Done, Status, CHANNEL_COPY,
    DESCRIPTOR_SIZE, DONE_SIZE, RING_MAX, VECTOR_COMPUTE, VECTOR_COPY,
};
use crate::inject::Knob;
use crate::mmu::Tlb;
use crate::words::Half;

const RING_HIGH: usize = channel::RING + 4;
const DONE_HIGH: usize = channel::DONE + 4;

/// A descriptor that was executed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Success {
    /// Whether the descriptor asked for an interrupt.
    pub(crate) irq: bool,
    /// See [`Done::result`].
    pub(crate) result: u64,
}

/// A descriptor that was not executed, or only in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The channel was disabled. Nobody wants to know.
    Abandoned,
    /// It failed.
    Failed {
        /// Why.
        status: Status,
        /// See [`Done::address`].
        address: u64,
        /// See [`Done::result`].
        result: u64,
    },
}

impl Stop {
    /// Returns the failure of a descriptor that makes no sense.
    pub(crate) fn bad_command() -> Self {
        Self::Failed {
            status: Status::BadCommand,
            address: 0,
            result: 0,
        }
    }
}

/// What executes the descriptors of a channel.
pub(crate) type Execute = fn(&Gpu, &Job<'_>, &Descriptor) -> Result<Success, Stop>;

/// Where the ring is.
#[derive(Clone, Copy, Default)]
struct Setup {
    ring: u64,
    done: u64,
    size: u32,
}

impl Setup {
    fn is_fit(&self) -> bool {
        let entries = u64::from(self.size);
        self.size.is_power_of_two()
            && self.size <= RING_MAX
            && self.ring % DESCRIPTOR_SIZE == 0
            && self.done % DONE_SIZE == 0
            && self.ring.checked_add(entries * DESCRIPTOR_SIZE).is_some()
            && self.done.checked_add(entries * DONE_SIZE).is_some()
    }
}

struct State {
    registers: Setup,
    /// The setup while the channel is enabled.
    enabled: Option<Setup>,
    put: u32,
    get: u32,
    error: ChannelError,
    busy: bool,
    power_off: bool,
}

/// A channel.
pub(crate) struct Channel {
    index: u32,
    state: Mutex<State>,
    wake: Condvar,
    /// The translations of this channel's engine.
    pub(crate) tlb: Mutex<Tlb>,
    /// Counts how often the channel was disabled; a job of an older epoch is abandoned.
    epoch: AtomicU64,
}

/// A descriptor being executed.
pub(crate) struct Job<'a> {
    channel: &'a Channel,
    epoch: u64,
    setup: Setup,
    get: u32,
}

impl Job<'_> {
    /// Returns the index of the channel.
    pub(crate) fn channel(&self) -> u32 {
        self.channel.index
    }

    /// Returns the translations of the channel's engine.
    pub(crate) fn tlb(&self) -> &Mutex<Tlb> {
        &self.channel.tlb
    }

    /// Fails if the job has been abandoned.
    pub(crate) fn check(&self) -> Result<(), Stop> {
        if self.channel.epoch.load(Ordering::Acquire) == self.epoch {
            Ok(())
        } else {
            Err(Stop::Abandoned)
        }
    }
}

impl Channel {
    /// Returns a disabled channel.
    pub(crate) fn new(index: u32) -> Self {
        Self {
            index,
            state: Mutex::new(State {
                registers: Setup::default(),
                enabled: None,
                put: 0,
                get: 0,
                error: ChannelError::None,
                busy: false,
                power_off: false,
            }),
            wake: Condvar::new(),
            tlb: Mutex::new(Tlb::new()),
            epoch: AtomicU64::new(0),
        }
    }

    /// Returns the MSI-X vector of the channel.
    fn vector(&self) -> u32 {
        match self.index {
            CHANNEL_COPY => VECTOR_COPY,
            _ => VECTOR_COMPUTE,
        }
    }

    /// Executes descriptors until power is switched off.
    pub(crate) fn run(&self, gpu: &Gpu, execute: Execute) {
        while let Some(job) = self.next_job() {
            self.execute(gpu, &job, execute);
        }
    }

    /// Waits for a descriptor.
    fn next_job(&self) -> Option<Job<'_>> {
        let mut state = self.state.lock();
        loop {
            if state.power_off {
                return None;
            }
            match state.enabled {
                Some(setup) if state.error == ChannelError::None && state.get != state.put => {
                    state.busy = true;
                    return Some(Job {
                        channel: self,
                        // Changes only under the lock.
                        epoch: self.epoch.load(Ordering::Relaxed),
                        setup,
                        get: state.get,
                    });
                }
                _ => self.wake.wait(&mut state),
            }
        }
    }

    /// Lets time pass, as long as the job is not abandoned; without a limit if it hangs.
    fn misbehave(&self, gpu: &Gpu, job: &Job<'_>) {
        let hang = match self.index {
            CHANNEL_COPY => Knob::HangCopy,
            _ => Knob::HangCompute,
        };
        let latency = Duration::from_micros(gpu.inject.get(Knob::Latency).into());
        let end = (!gpu.inject.happens(hang)).then(|| Instant::now() + latency);
        let mut state = self.state.lock();
        // Abandoning a job changes the epoch under the lock, and wakes us.
        while job.check().is_ok() {
            match end {
                Some(end) if Instant::now() >= end => return,
                Some(end) => {
                    self.wake.wait_until(&mut state, end);
                }
                None => self.wake.wait(&mut state),
            }
        }
    }

    fn execute(&self, gpu: &Gpu, job: &Job<'_>, execute: Execute) {
        self.misbehave(gpu, job);
        let slot = u64::from(job.get & (job.setup.size - 1));
        let Ok(raw) = gpu.bus.read_words(job.setup.ring + slot * DESCRIPTOR_SIZE) else {
            return self.finish(gpu, job, false, ChannelError::RingRead, true);
        };
        let (irq, status, address, result) = match execute(gpu, job, &raw) {
            Ok(Success { irq, result }) => (irq, Status::Ok, 0, result),
            Err(Stop::Failed {
                status,
                address,
                result,
            }) => (true, status, address, result),
            Err(Stop::Abandoned) => {
                return self.finish(gpu, job, false, ChannelError::None, false);
            }
        };
        let done = Done {
            fence: descriptor_fence(&raw),
            status,
            address,
            result,
        };
        let place = job.setup.done + slot * DONE_SIZE;
        let error = match gpu.bus.publish(place, &done.encode()) {
            Err(_) => ChannelError::DoneWrite,
            Ok(()) if status == Status::BadCommand => ChannelError::BadCommand,
            Ok(()) => ChannelError::None,
        };
        gpu.stats.count_command();
        self.finish(gpu, job, true, error, irq || error != ChannelError::None);
    }

    /// Ends a job, unless it was abandoned with the given results.
    fn finish(&self, gpu: &Gpu, job: &Job<'_>, advance: bool, error: ChannelError, irq: bool) {
        let mut state = self.state.lock();
        state.busy = false;
        if job.check().is_err() {
            return;
        }
        if advance {
            state.get = state.get.wrapping_add(1);
        }
        if error != ChannelError::None {
            state.error = error;
        }
        drop(state);
        if irq {
            gpu.raise(self.vector());
        }
    }

    /// Whether a job is being executed or abandoned.
    pub(crate) fn is_busy(&self) -> bool {
        self.state.lock().busy
    }

    fn disable(&self, state: &mut State) {
        state.enabled = None;
        self.epoch.fetch_add(1, Ordering::Release);
    }

    /// Disables the channel and puts its registers into their state after reset.
    pub(crate) fn reset(&self, gpu: &Gpu) {
        let mut state = self.state.lock();
        self.disable(&mut state);
        state.registers = Setup::default();
        state.put = 0;
        state.get = 0;
        state.error = ChannelError::None;
        gpu.faults.wake();
        self.wake.notify_all();
    }

    /// Makes [`Channel::run`] return.
    pub(crate) fn power_off(&self, gpu: &Gpu) {
        self.reset(gpu);
        self.state.lock().power_off = true;
        self.wake.notify_all();
    }

    /// Reads a register of the channel.
    pub(crate) fn read(&self, gpu: &Gpu, offset: usize) -> u32 {
        let state = self.state.lock();
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        match offset {
            channel::RING => state.registers.ring.low(),
            RING_HIGH => state.registers.ring.high(),
            channel::DONE => state.registers.done.low(),
            DONE_HIGH => state.registers.done.high(),
            channel::SIZE => state.registers.size,
            channel::CTRL => flag(state.enabled.is_some(), channel::CTRL_ENABLE),
            channel::PUT => state.put,
            channel::GET => state.get,
            channel::STATUS => {
                flag(state.busy, channel::STATUS_BUSY)
                    | flag(state.error != ChannelError::None, channel::STATUS_ERROR)
                    | flag(gpu.faults.is_stalled(self.index), channel::STATUS_STALLED)
            }
            channel::ERROR => state.error.code(),
            _ => 0,
        }
    }

    /// Writes a register of the channel.
    pub(crate) fn write(&self, gpu: &Gpu, offset: usize, value: u32) {
        let mut state = self.state.lock();
        let before = state.error;
        match offset {
            channel::RING => state.registers.ring.set_low(value),
            RING_HIGH => state.registers.ring.set_high(value),
            channel::DONE => state.registers.done.set_low(value),
            DONE_HIGH => state.registers.done.set_high(value),
            channel::SIZE => state.registers.size = value,
            channel::CTRL if value & channel::CTRL_ENABLE == 0 => {
                self.disable(&mut state);
                gpu.faults.wake();
            }
            channel::CTRL if state.enabled.is_none() => {
                state.put = 0;
                state.get = 0;
                if state.registers.is_fit() {
                    state.error = ChannelError::None;
                    state.enabled = Some(state.registers);
                } else {
                    state.error = ChannelError::BadSetup;
                }
            }
            channel::PUT => match state.enabled {
                Some(setup) if value.wrapping_sub(state.get) <= setup.size => state.put = value,
                Some(_) => state.error = ChannelError::BadPut,
                None => {}
            },
            channel::ERROR => state.error = ChannelError::None,
            _ => {}
        }
        let failed = state.error != before && state.error != ChannelError::None;
        drop(state);
        self.wake.notify_all();
        if failed {
            gpu.raise(self.vector());
        }
    }
}
