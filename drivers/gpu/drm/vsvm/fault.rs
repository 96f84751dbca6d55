// SPDX-License-Identifier: GPL-2.0

//! Faults of the GPU.
//!
//! When the GPU finds no translation it writes an entry to the fault buffer, raises an interrupt
//! and stalls. The handler is a kernel thread, since resolving a fault sleeps: it may read from
//! disk or wait for the copy engine. It makes the page reachable and lets the GPU try again, or
//! cancels the fault, which fails the job.
//!
//! The interrupt may get lost: those who wait for jobs wake the thread now and then. An entry may be
//! garbage: then the GPU tries again and writes a new one.

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
    }, //
};

use crate::{
    hw::{
        reg,
        Fault,
        RawFault, //
    },
    regs::Regs,
    svm::{
        Scratch,
        SvmTable,
        Units, //
    }, //
};

/// Entries of the fault buffer.
const BUFFER_SIZE: u32 = 64;

/// How many entries in a row may be garbage before the fault is cancelled.
const GARBAGE_MAX: u32 = 8;

/// The handler, registered with its interrupt.
pub(crate) type FaultThread<'bound> = irq::ThreadedRegistration<'bound, FaultHandler<'bound>>;

/// What is used by the handler only.
struct State<'bound> {
    /// Sequence number of the newest entry that was read.
    last: u32,
    /// How many entries before it were garbage, without one in between that was not.
    garbage: u32,
    scratch: Scratch<'bound>,
}

/// The fault buffer and its handler.
#[pin_data(PinnedDrop)]
pub(crate) struct FaultHandler<'bound> {
    regs: Arc<Regs<'bound>>,
    units: Units<'bound>,
    spaces: Arc<SvmTable<'bound>>,
    buffer: Coherent<[RawFault]>,
    /// Taken by the handler thread only, outside of all other locks.
    #[pin]
    state: Mutex<State<'bound>>,
}

impl<'bound> FaultHandler<'bound> {
    /// Enables the fault buffer.
    ///
    /// # Errors
    ///
    /// `EIO` if the device refuses it.
    pub(crate) fn new(
        regs: Arc<Regs<'bound>>,
        units: Units<'bound>,
        spaces: Arc<SvmTable<'bound>>,
    ) -> impl PinInit<Self, Error> + 'bound {
        try_pin_init!(Self {
            buffer: Self::enable(units.dev, &regs)?,
            units,
            spaces,
            regs,
            state <- new_mutex!(
                State {
                    last: 0,
                    garbage: 0,
                    scratch: Scratch::new()?,
                },
                "FaultHandler::state"
            ),
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

    /// Enables the buffer again if the device has been reset, by whoever may do that.
    fn revive(&self, last: &mut u32) {
        if self.regs.read::<{ reg::FAULT_CTRL }>() != 0 {
            return;
        }
        for slot in 0..casts::u32_as_usize(BUFFER_SIZE) {
            let clear = || -> Result {
                io_project!(&self.buffer, [try: slot]).copy_write(RawFault::default());
                Ok(())
            };
            // All slots exist.
            let _ = clear();
        }
        *last = 0;
        // If it fails, faults fail jobs.
        let _ = Self::start(self.units.dev, &self.regs, &self.buffer);
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

    /// Resolves a fault.
    fn resolve(&self, fault: &Fault, scratch: &mut Scratch<'bound>) -> Result {
        let svm = self.spaces.by_root(fault.root).ok_or(ECANCELED)?;
        let job = self.units.compute.faulting(fault.root);
        let result = svm.fault(fault.va, fault.access, job.as_deref(), scratch);
        if let (Err(error), Some(job)) = (result, &job) {
            job.set_fault(error);
        }
        result
    }
}

impl irq::ThreadedHandler for FaultHandler<'_> {
    fn handle_threaded(&self) -> irq::IrqReturn {
        let mut state = self.state.lock();
        let State {
            last,
            garbage,
            scratch,
        } = &mut *state;
        let mut replay = false;
        let before = *last;
        loop {
            let seq = last.wrapping_add(1);
            let Ok(Some(raw)) = self.read(seq) else {
                break;
            };
            *last = seq;
            self.regs.write::<{ reg::FAULT_GET }>(seq);
            self.units.stats.gpu_faults.add(1);

            let resolved = match Fault::decode(&raw) {
                Ok(fault) => {
                    *garbage = 0;
                    self.resolve(&fault, scratch)
                }
                Err(_) => {
                    dev_err!(
                        self.units.dev,
                        "malformed entry {seq} in the fault buffer\n"
                    );
                    *garbage += 1;
                    if *garbage < GARBAGE_MAX {
                        Ok(())
                    } else {
                        Err(EIO)
                    }
                }
            };
            match resolved {
                Ok(()) => replay = true,
                Err(_) => self.regs.write::<{ reg::FAULT_CANCEL }>(seq),
            }
        }
        if *last == before {
            self.revive(last);
        }
        if replay {
            self.regs.write::<{ reg::FAULT_REPLAY }>(1);
        }
        irq::IrqReturn::Handled
    }
}

#[pinned_drop]
impl PinnedDrop for FaultHandler<'_> {
    fn drop(self: Pin<&mut Self>) {
        // Cancels all faults that are waiting. The read makes sure that the device has got it before
        // the buffer is freed.
        self.regs.write::<{ reg::FAULT_CTRL }>(0);
        self.regs.read::<{ reg::FAULT_CTRL }>();
    }
}
