// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Misbehaviour on demand: what the model of the vsvm GPU does and no hardware offers.
//!
//! For tests of error paths. The driver does not know of it: this file is compiled by the model and
//! by the tests, which reach the registers through a vendor-specific capability in configuration
//! space ([`CAPABILITY`]), whoever owns the device at that time, and also while it is gone.
//!
//! Each register is 32 bits wide and belongs to one [`Knob`]. Most knobs make something *happen*:
//! a value of `n` makes it happen the next `n` times, and counts down; a value of [`RANDOM`]` | n`
//! makes it happen once in `n` times, by chance; zero is never. The chances follow from
//! [`Knob::Seed`]: the same decisions come in the same order.

/// Offset in configuration space of the vendor-specific capability.
pub(crate) const CAPABILITY: usize = 0xa0;
/// Offset in configuration space of the register of the first knob; the others follow.
const FIRST: usize = CAPABILITY + 4;
/// Size of the capability in bytes.
pub(crate) const CAPABILITY_SIZE: usize = FIRST + 4 * KNOBS - CAPABILITY;
/// In a value: by chance, once in so many times as the rest of the value says.
pub(crate) const RANDOM: u32 = 1 << 31;
/// Number of knobs.
pub(crate) const KNOBS: usize = Knob::ALL.len();

/// What can be made to go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Knob {
    /// Not an event: the seed of all chances. Setting it begins each sequence anew.
    Seed,
    /// A segment of the copy channel fails with [`Status::BusError`](super::Status::BusError).
    CopyError,
    /// A segment copied to VRAM is stored in a way that it cannot be read again: accesses fail with
    /// [`Status::Memory`](super::Status::Memory) until the page has been written as a whole.
    Poison,
    /// An interrupt is not sent.
    LostIrq,
    /// With an interrupt, those of all other vectors are sent too.
    SpuriousIrq,
    /// An entry of the fault buffer is garbage, except for its sequence number.
    CorruptFault,
    /// A descriptor of the copy channel is never completed: the channel hangs until it is disabled.
    HangCopy,
    /// The same for the compute channel.
    HangCompute,
    /// Not an event: microseconds that every descriptor takes in addition.
    Latency,
    /// Not an event: setting it to other than zero makes the device vanish from the bus. All reads
    /// give all ones, writes have no effect, DMA and interrupts stop, and what was in VRAM is lost.
    /// After so many milliseconds, or when zero is written, the device is there as after power-on.
    Gone,
    /// Not an event: MiB of VRAM that the device says it has, if that is less than it has; zero is
    /// all. Drivers find out when they are bound.
    Vram,
}

impl Knob {
    /// All knobs in the order of their registers.
    pub(crate) const ALL: [Self; 11] = [
        Self::Seed,
        Self::CopyError,
        Self::Poison,
        Self::LostIrq,
        Self::SpuriousIrq,
        Self::CorruptFault,
        Self::HangCopy,
        Self::HangCompute,
        Self::Latency,
        Self::Gone,
        Self::Vram,
    ];

    /// Returns the offset of the knob's register in configuration space.
    pub(crate) const fn offset(self) -> usize {
        // CAST: The discriminant counts from zero in the order of `ALL`.
        FIRST + 4 * (self as usize)
    }

    /// Returns the knob whose register is at an offset in configuration space.
    pub(crate) fn at(offset: usize) -> Option<Self> {
        Self::ALL.into_iter().find(|knob| knob.offset() == offset)
    }

    /// Returns the name for command lines.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Seed => "seed",
            Self::CopyError => "copy-error",
            Self::Poison => "poison",
            Self::LostIrq => "lost-irq",
            Self::SpuriousIrq => "spurious-irq",
            Self::CorruptFault => "corrupt-fault",
            Self::HangCopy => "hang-copy",
            Self::HangCompute => "hang-compute",
            Self::Latency => "latency",
            Self::Gone => "gone",
            Self::Vram => "vram",
        }
    }
}
