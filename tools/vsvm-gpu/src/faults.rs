// SPDX-License-Identifier: GPL-2.0

//! The replayable fault buffer.
//!
//! A channel that cannot translate an address calls [`Faults::stall`]: an entry goes to the ring
//! in guest memory, the driver is interrupted, and the channel's thread sleeps until the driver
//! replays or cancels, or the channel is disabled. Registers and sleepers share one lock.

use parking_lot::{Condvar, Mutex};

use crate::channel::Job;
use crate::gpu::Gpu;
use crate::hw::{
    reg, Access, Fault, FaultReason, CHANNELS, FAULT_ENTRY_SIZE, PAGE_SIZE, RING_MAX, VECTOR_FAULT,
};
use crate::inject::Knob;
use crate::words::Half;

const FAULT_BASE_HIGH: usize = reg::FAULT_BASE + 4;

/// How a fault ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Repeat the translation.
    Replay,
    /// Fail the descriptor.
    Cancel,
    /// The channel was disabled: abandon the descriptor.
    Abandon,
}

/// A channel that is stalled.
#[derive(Clone, Copy)]
struct Stall {
    /// The sequence number of its entry, or `None` while it waits for room.
    seq: Option<u32>,
    verdict: Option<Verdict>,
}

#[derive(Default)]
struct State {
    base: u64,
    size: u32,
    /// Base and size while the buffer is enabled.
    enabled: Option<(u64, u32)>,
    put: u32,
    get: u32,
    stalled: [Option<Stall>; CHANNELS as usize],
}

impl State {
    /// Gives `verdict` to the stalled channels that `which` selects.
    fn decide(&mut self, verdict: Verdict, which: impl Fn(&Stall) -> bool) {
        for stall in self.stalled.iter_mut().flatten() {
            if which(stall) {
                stall.verdict = Some(verdict);
            }
        }
    }

    fn set_enabled(&mut self, on: bool) {
        let fit = self.size.is_power_of_two()
            && self.size <= RING_MAX
            && self.base % FAULT_ENTRY_SIZE == 0;
        if !on {
            self.enabled = None;
            self.decide(Verdict::Cancel, |_| true);
        } else if self.enabled.is_none() && fit {
            self.enabled = Some((self.base, self.size));
            self.put = 0;
            self.get = 0;
        }
    }
}

/// A fault as the channel sees it.
#[derive(Clone, Copy)]
pub(crate) struct Cause {
    pub(crate) root: u64,
    /// The exact virtual address.
    pub(crate) va: u64,
    pub(crate) access: Access,
    pub(crate) reason: FaultReason,
}

/// The fault buffer.
#[derive(Default)]
pub(crate) struct Faults {
    state: Mutex<State>,
    changed: Condvar,
}

impl Faults {
    /// Reports a fault and waits for the driver's verdict.
    pub(crate) fn stall(&self, gpu: &Gpu, job: &Job<'_>, cause: Cause) -> Verdict {
        let Ok(channel) = usize::try_from(job.channel()) else {
            return Verdict::Cancel;
        };
        let mut state = self.state.lock();
        let mut reported = None;
        let verdict = loop {
            // Disabling marks the job first and then takes the lock to wake us.
            if job.check().is_err() {
                break Verdict::Abandon;
            }
            if let Some(verdict) = state.stalled[channel].and_then(|stall| stall.verdict) {
                break verdict;
            }
            let Some((base, size)) = state.enabled else {
                break Verdict::Cancel;
            };
            if reported.is_none() && state.put.wrapping_sub(state.get) < size {
                let seq = state.put.wrapping_add(1);
                let slot = u64::from(state.put & (size - 1));
                let entry = Fault {
                    seq,
                    channel: job.channel(),
                    access: cause.access,
                    reason: cause.reason,
                    root: cause.root,
                    va: cause.va & !(PAGE_SIZE - 1),
                };
                let Some(address) = base.checked_add(slot * FAULT_ENTRY_SIZE) else {
                    break Verdict::Cancel;
                };
                let mut raw = entry.encode();
                if gpu.inject.happens(Knob::CorruptFault) {
                    raw[1..].fill_with(|| gpu.inject.garbage(Knob::CorruptFault));
                }
                if gpu.bus.publish(address, &raw).is_err() {
                    break Verdict::Cancel;
                }
                state.put = seq;
                reported = Some(seq);
                gpu.stats.count_fault();
                gpu.raise(VECTOR_FAULT);
            }
            state.stalled[channel] = Some(Stall {
                seq: reported,
                verdict: None,
            });
            self.changed.wait(&mut state);
        };
        state.stalled[channel] = None;
        verdict
    }

    /// Lets stalled channels find out that their job was abandoned.
    pub(crate) fn wake(&self) {
        let _state = self.state.lock();
        self.changed.notify_all();
    }

    /// Whether `channel` is stalled.
    pub(crate) fn is_stalled(&self, channel: u32) -> bool {
        let state = self.state.lock();
        usize::try_from(channel)
            .ok()
            .and_then(|channel| state.stalled.get(channel))
            .is_some_and(Option::is_some)
    }

    /// Puts the registers into their state after reset.
    pub(crate) fn reset(&self) {
        let mut state = self.state.lock();
        state.set_enabled(false);
        state.base = 0;
        state.size = 0;
        state.put = 0;
        state.get = 0;
        self.changed.notify_all();
    }

    /// Reads a register of the fault unit.
    pub(crate) fn read(&self, offset: usize) -> u32 {
        let state = self.state.lock();
        match offset {
            reg::FAULT_BASE => state.base.low(),
            FAULT_BASE_HIGH => state.base.high(),
            reg::FAULT_SIZE => state.size,
            reg::FAULT_CTRL if state.enabled.is_some() => reg::FAULT_CTRL_ENABLE,
            reg::FAULT_PUT => state.put,
            reg::FAULT_GET => state.get,
            _ => 0,
        }
    }

    /// Writes a register of the fault unit.
    pub(crate) fn write(&self, offset: usize, value: u32) {
        let mut state = self.state.lock();
        match offset {
            reg::FAULT_BASE => state.base.set_low(value),
            FAULT_BASE_HIGH => state.base.set_high(value),
            reg::FAULT_SIZE => state.size = value,
            reg::FAULT_CTRL => state.set_enabled(value & reg::FAULT_CTRL_ENABLE != 0),
            reg::FAULT_GET => state.get = value,
            reg::FAULT_REPLAY => state.decide(Verdict::Replay, |stall| stall.seq == Some(value)),
            reg::FAULT_CANCEL => state.decide(Verdict::Cancel, |stall| stall.seq == Some(value)),
            _ => {}
        }
        self.changed.notify_all();
    }
}
