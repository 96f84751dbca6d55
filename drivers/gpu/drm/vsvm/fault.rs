// SPDX-License-Identifier: GPL-2.0

//! Faults of the GPU.
//!
//! When an engine finds no translation it writes an entry to the fault buffer, raises an interrupt
//! and stalls. The interrupt's thread only reads the entries and hands each to its address space, which
//! serves it in a work queue; see [`super::svm`].
//!
//! The interrupt may get lost: those who wait for jobs wake the thread now and then. An entry may be
//! garbage: then the engine tries again and writes a new one.

use kernel::{
    device::{
        Bound,
        Device, //
    },
    dma::Coherent,
    io::{
        io_project,
        io_read,
        Io, //
    },
    irq,
    new_mutex,
    num::casts,
    prelude::*,
    sync::{
        barrier::{
            dma_mb,
            Read, //
        },
        Arc,
        Mutex, //
    },
    workqueue::ScopedQueue, //
};

use crate::{
    hw::{
        reg,
        Fault,
        RawFault, //
    },
    regs::Regs,
    spaces::SvmTable,
    svm::Units, //
};

/// Entries of the fault buffer.
const BUFFER_SIZE: u32 = 64;

/// How many entries in a row may be garbage before the fault is cancelled.
const GARBAGE_MAX: u32 = 8;

/// The handler, registered with its interrupt.
pub(crate) type FaultThread<'bound> = irq::ThreadedRegistration<'bound, FaultHandler<'bound>>;

/// What is used by the handler only.
struct State {
    /// Sequence number of the newest entry that was read.
    last: u32,
    /// How many entries before it were garbage, without one in between that was not.
    garbage: u32,
}

/// The fault buffer and its handler.
#[pin_data(PinnedDrop)]
pub(crate) struct FaultHandler<'bound> {
    /// Where faults are served. Dropped first, since the work uses the rest.
    queue: ScopedQueue<'bound>,
    units: Units<'bound>,
    spaces: Arc<SvmTable<'bound>>,
    buffer: Coherent<[RawFault]>,
    /// Taken outside of all other locks but those of [`super::power`].
    #[pin]
    state: Mutex<State>,
}

impl<'bound> FaultHandler<'bound> {
    /// Enables the fault buffer.
    ///
    /// # Errors
    ///
    /// `EIO` if the device refuses it.
    ///
    /// # Safety
    ///
    /// The destructor must run before the device is unbound.
    pub(crate) unsafe fn new(
        units: Units<'bound>,
        spaces: Arc<SvmTable<'bound>>,
    ) -> impl PinInit<Self, Error> + 'bound {
        try_pin_init!(Self {
            // SAFETY: The destructor of the handler, and with it that of the queue, runs in time, as
            // the caller makes sure.
            queue: unsafe { ScopedQueue::new(c"vsvm-fault")? },
            buffer: Self::enable(units.dev, &units.regs)?,
            units,
            spaces,
            state <- new_mutex!(State { last: 0, garbage: 0 }, "FaultHandler::state"),
        })
    }

    fn enable(dev: &Device<Bound>, regs: &Regs<'_>) -> Result<Coherent<[RawFault]>> {
        let buffer = Coherent::zeroed_slice(dev, casts::u32_as_usize(BUFFER_SIZE), GFP_KERNEL)?;
        Self::start(dev, regs, &buffer)?;
        Ok(buffer)
    }

    /// Lets the device write to a buffer that contains no entries.
    fn start(dev: &Device<Bound>, regs: &Regs<'_>, buffer: &Coherent<[RawFault]>) -> Result {
        regs.write64(reg::FAULT_BASE, buffer.dma_address())?;
        regs.write::<{ reg::FAULT_SIZE }>(BUFFER_SIZE);
        regs.write::<{ reg::FAULT_CTRL }>(reg::FAULT_CTRL_ENABLE);
        if regs.read::<{ reg::FAULT_CTRL }>() != reg::FAULT_CTRL_ENABLE {
            dev_err!(dev, "the fault buffer does not start\n");
            return Err(EIO);
        }
        Ok(())
    }

    /// Enables the buffer again after the device has been reset. If that fails, faults fail jobs.
    pub(crate) fn restart(&self) {
        let mut state = self.state.lock();
        for slot in 0..casts::u32_as_usize(BUFFER_SIZE) {
            let clear = || -> Result {
                io_project!(&self.buffer, [try: slot]).copy_write(RawFault::default());
                Ok(())
            };
            // All slots exist.
            let _ = clear();
        }
        state.last = 0;
        let _ = Self::start(self.units.dev, &self.units.regs, &self.buffer);
    }

    /// Returns the entry with sequence number `seq`, if the device has written it.
    fn read(&self, seq: u32) -> Result<Option<RawFault>> {
        let slot = casts::u32_as_usize(seq.wrapping_sub(1) % BUFFER_SIZE);
        let head: u64 = io_read!(&self.buffer, [try: slot][build: 0]);
        // CAST: The low half is the sequence number.
        if u64::from_le(head) as u32 != seq {
            return Ok(None);
        }
        // The device writes this word last, so read it first.
        dma_mb(Read);
        Ok(Some(io_project!(&self.buffer, [try: slot]).copy_read()))
    }

    /// Finds somebody to serve the fault with sequence number `seq`.
    fn dispatch(&self, seq: u32, raw: &RawFault, garbage: &mut u32) {
        let regs = &self.units.regs;
        let Ok(fault) = Fault::decode(raw) else {
            dev_err!(
                self.units.dev,
                "malformed entry {seq} in the fault buffer\n"
            );
            *garbage += 1;
            return if *garbage < GARBAGE_MAX {
                regs.write::<{ reg::FAULT_REPLAY }>(seq)
            } else {
                regs.write::<{ reg::FAULT_CANCEL }>(seq)
            };
        };
        *garbage = 0;
        match self.spaces.by_root(fault.root) {
            Some(svm) => svm.has_faulted(fault, &self.queue),
            // It is being destroyed.
            None => regs.write::<{ reg::FAULT_CANCEL }>(seq),
        }
    }
}

impl irq::ThreadedHandler for FaultHandler<'_> {
    fn handle_threaded(&self) -> irq::IrqReturn {
        let mut state = self.state.lock();
        let State { last, garbage } = &mut *state;
        loop {
            let seq = last.wrapping_add(1);
            let Ok(Some(raw)) = self.read(seq) else {
                break;
            };
            *last = seq;
            self.units.regs.write::<{ reg::FAULT_GET }>(seq);
            self.units.stats.gpu_faults.add(1);
            self.dispatch(seq, &raw, garbage);
        }
        irq::IrqReturn::Handled
    }
}

#[pinned_drop]
impl PinnedDrop for FaultHandler<'_> {
    fn drop(self: Pin<&mut Self>) {
        // Cancels all faults that are waiting. The read makes sure that the device has got it before
        // the buffer is freed.
        self.units.regs.write::<{ reg::FAULT_CTRL }>(0);
        self.units.regs.read::<{ reg::FAULT_CTRL }>();
    }
}
