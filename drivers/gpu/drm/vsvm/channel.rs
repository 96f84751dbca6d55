// SPDX-License-Identifier: GPL-2.0

//! Channels: rings of descriptors that the device executes, and their completions.
//!
//! [`Channel`] is the part that copy and compute channels have in common: it owns the ring,
//! the completion array and the registers of one channel. The driver names descriptors by their
//! *fence*, a number that counts up, is never zero and never used twice. Where the ring is being
//! written is in a [`Cursor`], which the user of the channel keeps under its own lock.
//!
//! Interrupts carry no information, since they may be merged, lost or spurious: whether a
//! descriptor has been executed is only ever read from the completion array. [`Wake`] is how an
//! interrupt makes a task look there.

use kernel::{
    device::{
        Bound,
        Device, //
    },
    dma::Coherent,
    io::{
        io_project,
        io_read,
        poll::read_poll_timeout,
        Io, //
    },
    irq,
    new_condvar,
    new_spinlock_irq,
    num::casts::{
        self,
        arch::IntoSafeCastArch, //
    },
    prelude::*,
    sync::{
        barrier::{
            dma_mb,
            Read, //
        },
        Arc,
        CondVar,
        CondVarTimeoutResult,
        SpinLockIrq, //
    },
    time::{
        Delta,
        Jiffies, //
    }, //
};

use crate::{
    hw::{
        channel as reg,
        ChannelError,
        Descriptor,
        Done,
        RawDone, //
    },
    regs::{
        Regs,
        QUIESCE_TIMEOUT, //
    }, //
};

/// Descriptors that a ring has room for.
pub(crate) const RING_SIZE: u32 = 256;

/// Where a ring is being written.
pub(crate) struct Cursor {
    /// Fence of the first descriptor since the channel was enabled; a multiple of [`RING_SIZE`].
    first: u64,
    /// Fence of the next descriptor.
    next: u64,
}

impl Cursor {
    /// Returns the cursor of a channel that was never used.
    pub(crate) const fn new() -> Self {
        Self { first: 0, next: 1 }
    }

    /// Returns the fence of the next descriptor.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }
}

/// Returns the slot of the ring, and of the completion array, for fence `fence`.
fn slot(fence: u64) -> usize {
    (fence % u64::from(RING_SIZE)).into_safe_cast_arch()
}

/// A channel of the device.
pub(crate) struct Channel<'bound> {
    index: u32,
    dev: &'bound Device<Bound>,
    regs: Arc<Regs<'bound>>,
    ring: Coherent<[Descriptor]>,
    done: Coherent<[RawDone]>,
}

impl<'bound> Channel<'bound> {
    /// Allocates the ring of channel `index`. The channel has yet to be [enabled](Self::enable).
    pub(crate) fn new(
        dev: &'bound Device<Bound>,
        regs: Arc<Regs<'bound>>,
        index: u32,
    ) -> Result<Self> {
        let slots = casts::u32_as_usize(RING_SIZE);
        Ok(Self {
            index,
            dev,
            regs,
            ring: Coherent::zeroed_slice(dev, slots, GFP_KERNEL)?,
            done: Coherent::zeroed_slice(dev, slots, GFP_KERNEL)?,
        })
    }

    /// Returns the number of the channel.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// Returns the offset of a register, given that among the registers of a channel.
    fn at(&self, register: usize) -> usize {
        reg::base(self.index) + register
    }

    /// Enables the channel, which must be disabled and at rest.
    ///
    /// # Errors
    ///
    /// `EIO` if the device refuses the ring.
    pub(crate) fn enable(&self, cursor: &mut Cursor) -> Result {
        // The device begins with slot 0, so fences are left out up to the next one of that slot.
        cursor.first = cursor.next.next_multiple_of(u64::from(RING_SIZE));
        cursor.next = cursor.first;
        self.regs
            .write64(self.at(reg::RING), self.ring.dma_address())?;
        self.regs
            .write64(self.at(reg::DONE), self.done.dma_address())?;
        self.regs.write_at(self.at(reg::SIZE), RING_SIZE)?;
        self.regs.write_at(self.at(reg::CTRL), reg::CTRL_ENABLE)?;
        if self.regs.read_at(self.at(reg::CTRL))? != reg::CTRL_ENABLE {
            dev_err!(self.dev, "channel {} does not start\n", self.index);
            return Err(EIO);
        }
        Ok(())
    }

    /// Abandons what the channel is executing and waits until it accesses memory no more.
    ///
    /// Context: process context, sleeps.
    ///
    /// # Errors
    ///
    /// `ETIMEDOUT` if the channel does not come to rest. A device that has gone is at rest.
    pub(crate) fn disable(&self) -> Result {
        self.regs.write_at(self.at(reg::CTRL), 0)?;
        read_poll_timeout(
            || self.regs.read_at(self.at(reg::STATUS)),
            |&status| status & reg::STATUS_BUSY == 0 || self.regs.is_gone(),
            Delta::from_micros(100),
            QUIESCE_TIMEOUT,
        )
        .map(|_| ())
    }

    /// Writes a descriptor, made by `encode` for the fence it is given, and tells the device.
    ///
    /// The caller makes sure that the slot is free: that no more than [`RING_SIZE`] descriptors
    /// have been posted whose completion it has not seen.
    pub(crate) fn post(
        &self,
        cursor: &mut Cursor,
        encode: impl FnOnce(u64) -> Descriptor,
    ) -> Result<u64> {
        let fence = cursor.next;
        let slot = slot(fence);
        io_project!(&self.ring, [try: slot]).copy_write(encode(fence));
        cursor.next += 1;

        // CAST: `PUT` counts modulo 2^32.
        let put = (cursor.next - cursor.first) as u32;
        // The descriptor is visible to the device before the doorbell: writes of registers are
        // ordered after writes to coherent memory.
        self.regs.write_at(self.at(reg::PUT), put)?;
        Ok(fence)
    }

    /// Returns whether the descriptor with the given fence has been executed.
    pub(crate) fn is_done(&self, fence: u64) -> bool {
        self.read_fence(slot(fence)).is_ok_and(|done| done >= fence)
    }

    /// Returns the completion of a descriptor once it has been executed.
    ///
    /// # Errors
    ///
    /// `EIO` if the completion makes no sense.
    pub(crate) fn completion(&self, fence: u64) -> Option<Result<Done>> {
        let slot = slot(fence);
        if self.read_fence(slot) != Ok(fence) {
            return None;
        }
        // The device writes the fence last, so read it first.
        dma_mb(Read);
        let done = self
            .read_done(slot)
            .and_then(|raw| Done::decode(&raw).map_err(|_| EIO));
        Some(done)
    }

    fn read_fence(&self, slot: usize) -> Result<u64> {
        let fence: u64 = io_read!(&self.done, [try: slot][build: 0]);
        Ok(u64::from_le(fence))
    }

    fn read_done(&self, slot: usize) -> Result<RawDone> {
        Ok(io_project!(&self.done, [try: slot]).copy_read())
    }

    /// Returns whether the channel waits for the driver to serve a fault.
    pub(crate) fn is_stalled(&self) -> bool {
        let status = self.regs.read_at(self.at(reg::STATUS));
        status.is_ok_and(|status| status & reg::STATUS_STALLED != 0)
    }

    /// Looks whether the channel is well. If it has stopped in the error state, lets it go on.
    ///
    /// # Errors
    ///
    /// `ENODEV` if the device has gone, `EIO` if it has been reset, by whoever may do that.
    pub(crate) fn check(&self) -> Result {
        let error = self.regs.read_at(self.at(reg::ERROR))?;
        if error == ChannelError::None.code() {
            return match self.regs.read_at(self.at(reg::CTRL))? {
                reg::CTRL_ENABLE => Ok(()),
                _ => Err(EIO),
            };
        }
        if self.regs.is_gone() {
            return Err(ENODEV);
        }
        dev_err!(
            self.dev,
            "channel {} stopped with error {error}\n",
            self.index
        );
        self.regs.write_at(self.at(reg::ERROR), 0)
    }
}

impl Drop for Channel<'_> {
    fn drop(&mut self) {
        // The rings are freed next, so the device must have forgotten them.
        if self.disable().is_err() {
            dev_err!(self.dev, "channel {} does not stop\n", self.index);
        }
    }
}

/// Wakes tasks that wait for something in memory which an interrupt announces.
#[pin_data]
pub(crate) struct Wake {
    /// Makes looking at memory and going to sleep atomic.
    #[pin]
    lock: SpinLockIrq<()>,
    #[pin]
    waiters: CondVar,
}

impl Wake {
    /// Returns an initialiser.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            lock <- new_spinlock_irq!((), "Wake::lock"),
            waiters <- new_condvar!("Wake::waiters"),
        })
    }

    /// Makes all waiting tasks check their condition.
    pub(crate) fn wake(&self) {
        let _guard = self.lock.lock();
        self.waiters.notify_all();
    }

    /// Waits until `ready` returns true, at most for `timeout`, and whatever signals arrive.
    ///
    /// Returns the time left, zero if the condition did not come true.
    ///
    /// `ready` must not sleep.
    pub(crate) fn wait(&self, timeout: Jiffies, mut ready: impl FnMut() -> bool) -> Jiffies {
        let mut left = timeout.max(1);
        let mut guard = self.lock.lock();
        while !ready() {
            if left == 0 {
                return 0;
            }
            left = self.waiters.wait_timeout(&mut guard, left);
        }
        left.max(1)
    }

    /// As [`Self::wait`], but ends when a signal arrives.
    ///
    /// # Errors
    ///
    /// `ERESTARTSYS` if a signal arrived.
    pub(crate) fn wait_interruptible(
        &self,
        timeout: Jiffies,
        mut ready: impl FnMut() -> bool,
    ) -> Result<Jiffies> {
        let mut left = timeout.max(1);
        let mut guard = self.lock.lock();
        while !ready() {
            if left == 0 {
                return Ok(0);
            }
            left = match self.waiters.wait_interruptible_timeout(&mut guard, left) {
                CondVarTimeoutResult::Woken { jiffies } => jiffies,
                CondVarTimeoutResult::Timeout => 0,
                CondVarTimeoutResult::Signal { .. } => return Err(ERESTARTSYS),
            };
        }
        Ok(left.max(1))
    }
}

/// A unit whose interrupt does nothing but wake those who wait for it.
pub(crate) trait HasWake: Send + Sync {
    /// Returns what the interrupt wakes.
    fn wake(&self) -> &Wake;
}

/// The interrupt handler of a unit.
pub(crate) struct WakeHandler<T>(pub(crate) Arc<T>);

impl<T: HasWake> irq::Handler for WakeHandler<T> {
    fn handle(&self) -> irq::IrqReturn {
        self.0.wake().wake();
        irq::IrqReturn::Handled
    }
}
