// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The hardware interface of the vsvm GPU.
//!
//! This file is the hardware's manual in code. The driver (`mod hw;`) and the device model
//! (`tools/vsvm-gpu`, by `#[path]`) compile the same text, so it uses `core` only, holds no state
//! and cannot panic. Everything is little endian; offsets, addresses and lengths are in bytes
//! unless a comment says otherwise.
//!
//! # The device
//!
//! One PCI function, class 3D controller. BAR 0 holds registers ([`reg`], [`channel`]) and the
//! *instance window*, 64 KiB of VRAM chosen by [`reg::WINDOW`], meant for page tables. No other
//! way leads from the CPU to VRAM.
//!
//! Registers are 32 bits wide; a 64-bit register is two of them, low half first, and may be
//! accessed with one 8-byte access or two 4-byte ones. Reads have no side effects. Narrower reads
//! return the bytes asked for; narrower writes to registers are ignored. The window takes
//! accesses of any width, and an aligned 8-byte one is a single access to VRAM. Registers that do
//! not exist read as zero, window addresses outside VRAM as all ones.
//!
//! # Channels
//!
//! A channel executes descriptors from a ring in guest memory, in order, one at a time. `PUT` and
//! `GET` are free-running 32-bit counters: slot = counter modulo ring size. For the descriptor in
//! slot `n` the device writes [`Done`] to entry `n` of the completion array, the fence word last,
//! then advances `GET`, then raises the channel's MSI-X vector if the descriptor asked for it or
//! failed.
//!
//! A *failed* descriptor reports its [`Status`] and the channel goes on with the next one. A
//! descriptor that makes no sense, or a ring that cannot be used, puts the channel in the *error
//! state*: it raises its vector and stops until the driver writes `ERROR`.
//!
//! Clearing [`channel::CTRL_ENABLE`] abandons the descriptor being executed; once
//! [`channel::STATUS_BUSY`] reads as zero the channel makes no further access to any memory.
//!
//! Channel 0 copies ([`CopyCommand`]). The others compute ([`ComputeCommand`]); each is an engine of
//! its own, and they work at the same time.
//!
//! # Address spaces and faults
//!
//! Compute channels work on virtual addresses, translated by the table whose root each
//! descriptor names ([`Pte`]). Translations are cached, and a cached translation is used as it is
//! until it is invalidated: after any change to a *present* entry, also to grant more, invalidate
//! it. Entries that are not present are never cached. When [`reg::TLB_STATUS_BUSY`] reads as zero
//! after a command, no access by an older translation will happen any more.
//!
//! An access that cannot be translated writes a [`Fault`] to the fault buffer, raises
//! [`VECTOR_FAULT`] and stalls its channel until the driver writes [`reg::FAULT_REPLAY`] (repeat
//! the translation) or [`reg::FAULT_CANCEL`] (fail the descriptor with [`Status::Fault`]). Work
//! done before the fault is never repeated. While the buffer is full the channel waits for room;
//! while it is disabled a fault fails the descriptor at once.
//!
//! # Errors
//!
//! The model can be told to misbehave in ways that hardware does: see `hw/inject.rs`.

#![allow(
    dead_code,
    unused_imports,
    reason = "each of the two users needs its own half"
)]

/// PCI vendor: Red Hat/Qumranet, which owns the experimental range of device ids below.
pub(crate) const PCI_VENDOR: u16 = 0x1af4;
/// PCI device, from the range reserved for experiments.
pub(crate) const PCI_DEVICE: u16 = 0x10f0;
/// PCI class code (base class, subclass, programming interface): 3D controller.
pub(crate) const PCI_CLASS: u32 = 0x03_02_00;

/// Size of BAR 0: registers, then the instance window.
pub(crate) const BAR_SIZE: usize = 0x2_0000;
/// Offset of the instance window in BAR 0.
pub(crate) const WINDOW_OFFSET: usize = 0x1_0000;
/// Size of the instance window, and the unit of [`reg::WINDOW`].
pub(crate) const WINDOW_SIZE: usize = 0x1_0000;

/// Version of this interface, as read from [`reg::VERSION`].
pub(crate) const INTERFACE_VERSION: u32 = 2;
/// Value of [`reg::ID`]: "VSVM". All ones instead means that the device has gone.
pub(crate) const ID_MAGIC: u32 = 0x5653_564d;

/// MSI-X vector raised when an entry was added to the fault buffer.
pub(crate) const VECTOR_FAULT: u32 = 0;
/// MSI-X vector of the copy channel.
pub(crate) const VECTOR_COPY: u32 = 1;
/// MSI-X vector of all compute channels.
pub(crate) const VECTOR_COMPUTE: u32 = 2;
/// Number of MSI-X vectors.
pub(crate) const VECTORS: u32 = 3;

/// The copy channel: physical addresses only, so it never faults.
pub(crate) const CHANNEL_COPY: u32 = 0;
/// The first compute channel.
pub(crate) const CHANNEL_COMPUTE: u32 = 1;
/// Number of compute channels.
pub(crate) const COMPUTE_CHANNELS: u32 = 31;
/// Number of channels.
pub(crate) const CHANNELS: u32 = CHANNEL_COMPUTE + COMPUTE_CHANNELS;

/// Size of a page of VRAM, of a translation and of a page table.
pub(crate) const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// Binary logarithm of [`PAGE_SIZE`].
pub(crate) const PAGE_SHIFT: u32 = 12;

/// Global registers: offsets in BAR 0.
pub(crate) mod reg {
    /// Read only, 32 bits: [`super::ID_MAGIC`].
    pub(crate) const ID: usize = 0x000;
    /// Read only, 32 bits: [`super::INTERFACE_VERSION`].
    pub(crate) const VERSION: usize = 0x004;
    /// Read only, 64 bits: size of VRAM, a multiple of the window size.
    pub(crate) const VRAM_SIZE: usize = 0x008;

    /// Read/write, 32 bits. Writing [`RESET_ALL`] disables all channels and the fault buffer,
    /// clears all errors, empties the TLB and sets all writable registers to zero; VRAM keeps its
    /// contents. Reads as [`RESET_ALL`] until every channel has stopped, then as zero.
    pub(crate) const RESET: usize = 0x010;
    /// See [`RESET`].
    pub(crate) const RESET_ALL: u32 = 1;

    /// Read/write, 32 bits: VRAM offset of the instance window in units of
    /// [`super::WINDOW_SIZE`].
    pub(crate) const WINDOW: usize = 0x018;

    /// Read/write, 64 bits: the address space that [`TLB_COMMAND`] works on, named by the VRAM
    /// offset of its root table.
    pub(crate) const TLB_ROOT: usize = 0x020;
    /// Read/write, 64 bits: first virtual address, page aligned, for [`TLB_INVALIDATE_RANGE`].
    pub(crate) const TLB_START: usize = 0x028;
    /// Read/write, 64 bits: number of pages for [`TLB_INVALIDATE_RANGE`].
    pub(crate) const TLB_PAGES: usize = 0x030;
    /// Write only, 32 bits: starts one of the `TLB_INVALIDATE` commands with the values that the
    /// three registers above have at that moment. Other values are ignored.
    pub(crate) const TLB_COMMAND: usize = 0x038;
    /// Forget every translation of every address space.
    pub(crate) const TLB_INVALIDATE_ALL: u32 = 1;
    /// Forget every translation of the address space [`TLB_ROOT`].
    pub(crate) const TLB_INVALIDATE_ROOT: u32 = 2;
    /// Forget the translations of [`TLB_PAGES`] pages from [`TLB_START`] in [`TLB_ROOT`].
    pub(crate) const TLB_INVALIDATE_RANGE: u32 = 3;
    /// Read only, 32 bits: [`TLB_STATUS_BUSY`] while commands written so far are incomplete.
    pub(crate) const TLB_STATUS: usize = 0x03c;
    /// See [`TLB_STATUS`].
    pub(crate) const TLB_STATUS_BUSY: u32 = 1;

    /// Read/write, 64 bits: DMA address of the fault buffer, an array of encoded
    /// [`super::Fault`]s, aligned to the size of one. Latched when the buffer is enabled.
    pub(crate) const FAULT_BASE: usize = 0x040;
    /// Read/write, 32 bits: entries in the fault buffer, a power of two up to
    /// [`super::RING_MAX`]. Latched when the buffer is enabled.
    pub(crate) const FAULT_SIZE: usize = 0x048;
    /// Read/write, 32 bits: [`FAULT_CTRL_ENABLE`]. Enabling sets [`FAULT_PUT`] and [`FAULT_GET`]
    /// to zero, and has no effect (reads back as zero) if base or size are unfit. Disabling
    /// cancels all faults that are waiting.
    pub(crate) const FAULT_CTRL: usize = 0x04c;
    /// See [`FAULT_CTRL`].
    pub(crate) const FAULT_CTRL_ENABLE: u32 = 1;
    /// Read only, 32 bits: sequence number of the newest entry, zero if there was none.
    pub(crate) const FAULT_PUT: usize = 0x050;
    /// Read/write, 32 bits: sequence number of the newest entry that the driver has read and the
    /// device may overwrite.
    pub(crate) const FAULT_GET: usize = 0x054;
    /// Write only, 32 bits: sequence number of a fault; the channel stalled on exactly this one
    /// repeats its translation, and adds a new entry if that fails again. Ignored when there is
    /// none, as after a replay.
    pub(crate) const FAULT_REPLAY: usize = 0x058;
    /// Write only, 32 bits: sequence number of a fault; the channel stalled on exactly this one
    /// fails its descriptor. Ignored when there is none.
    pub(crate) const FAULT_CANCEL: usize = 0x05c;

    /// Read only, 64 bits: bytes of data (not rings and lists) read from guest memory.
    pub(crate) const STAT_DMA_READ: usize = 0x080;
    /// Read only, 64 bits: bytes of data (not completions and faults) written to guest memory.
    pub(crate) const STAT_DMA_WRITE: usize = 0x088;
    /// Read only, 64 bits: entries written to the fault buffer.
    pub(crate) const STAT_FAULTS: usize = 0x090;
    /// Read only, 64 bits: descriptors completed, with whatever status.
    pub(crate) const STAT_COMMANDS: usize = 0x098;
}

/// Channel registers: offsets relative to [`channel::base`].
pub(crate) mod channel {
    /// Read/write, 64 bits: DMA address of the descriptor ring, aligned to
    /// [`super::DESCRIPTOR_SIZE`]. Latched when the channel is enabled.
    pub(crate) const RING: usize = 0x00;
    /// Read/write, 64 bits: DMA address of the completion array, one encoded [`super::Done`] per
    /// slot of the ring, aligned to [`super::DONE_SIZE`]. Latched when the channel is enabled.
    pub(crate) const DONE: usize = 0x08;
    /// Read/write, 32 bits: slots in the ring, a power of two up to [`super::RING_MAX`]. Latched
    /// when the channel is enabled.
    pub(crate) const SIZE: usize = 0x10;
    /// Read/write, 32 bits: [`CTRL_ENABLE`]. Enabling sets [`PUT`], [`GET`] and [`ERROR`] to
    /// zero; wait for [`STATUS_BUSY`] to clear before enabling again.
    pub(crate) const CTRL: usize = 0x14;
    /// See [`CTRL`].
    pub(crate) const CTRL_ENABLE: u32 = 1;
    /// Read/write, 32 bits: doorbell, the number of descriptors written so far. Ignored while the
    /// channel is disabled.
    pub(crate) const PUT: usize = 0x18;
    /// Read only, 32 bits: number of descriptors completed so far.
    pub(crate) const GET: usize = 0x1c;
    /// Read only, 32 bits: the `STATUS` bits.
    pub(crate) const STATUS: usize = 0x20;
    /// A descriptor is being executed, or abandoned.
    pub(crate) const STATUS_BUSY: u32 = 1 << 0;
    /// The channel is in the error state.
    pub(crate) const STATUS_ERROR: u32 = 1 << 1;
    /// The channel is stalled on a fault.
    pub(crate) const STATUS_STALLED: u32 = 1 << 2;
    /// Read/write, 32 bits: the [`super::ChannelError`]. Any write clears it, and the channel
    /// continues at [`GET`].
    pub(crate) const ERROR: usize = 0x24;

    /// Offset in BAR 0 of the registers of channel 0.
    const FIRST: usize = 0x1000;
    /// Distance between the registers of one channel and the next.
    pub(crate) const STRIDE: usize = 0x100;

    /// Returns the offset in BAR 0 of the registers of channel `index`.
    pub(crate) const fn base(index: u32) -> usize {
        // CAST: A `u32` fits in the `usize` of every machine that has this device.
        FIRST + STRIDE * index as usize
    }
}

#[path = "hw/layout.rs"]
mod layout;
#[path = "hw/page_table.rs"]
mod page_table;

pub(crate) use layout::{
    descriptor_fence,
    ComputeCommand,
    CopyCommand,
    Descriptor,
    Done,
    Fault,
    RawDone,
    RawFault,
    RawSegment,
    Segment,
    DESCRIPTOR_SIZE,
    DONE_SIZE,
    FAULT_ENTRY_SIZE,
    SEGMENT_SIZE, //
};
pub(crate) use page_table::{
    table_index,
    Pte,
    ENTRIES_PER_TABLE,
    LEVELS,
    VA_END, //
};

/// Largest size of a descriptor ring and of the fault buffer, in entries.
pub(crate) const RING_MAX: u32 = 1 << 16;
/// A number that means nothing to this interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unknown(pub(crate) u32);

/// Defines an enum of hardware codes with conversions from and to `u32`.
macro_rules! codes {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $value:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name {
            $($(#[$vmeta])* $variant,)+
        }

        impl $name {
            /// Returns the code as the hardware sees it.
            pub(crate) const fn code(self) -> u32 {
                match self {
                    $(Self::$variant => $value,)+
                }
            }
        }

        impl TryFrom<u32> for $name {
            type Error = Unknown;

            fn try_from(code: u32) -> Result<Self, Unknown> {
                match code {
                    $($value => Ok(Self::$variant),)+
                    _ => Err(Unknown(code)),
                }
            }
        }
    };
}

codes! {
    /// What a copy command does with each of its segments, in order.
    CopyOp {
        /// Copies from system memory to VRAM.
        ToVram = 1,
        /// Copies from VRAM to system memory.
        FromVram = 2,
        /// Copies from one place in VRAM to another; the two must not overlap.
        VramToVram = 3,
        /// Fills VRAM with a 32-bit pattern; offset and length must be multiples of 4.
        Fill = 4,
    }
}

codes! {
    /// What a compute command does with its arrays of 4-byte elements.
    ///
    /// `u32` arithmetic wraps. `f32` arithmetic is IEEE 754, rounded after each operation.
    ComputeOp {
        /// `dst[i] = scalar`.
        Fill = 1,
        /// `dst[i] = a[i] + scalar`.
        Add = 2,
        /// `dst[i] = scalar * a[i] + b[i]`.
        Saxpy = 3,
        /// `dst[i] = a[i]`.
        Copy = 4,
        /// Result: the sum of all `a[i]` from first to last, as wrapping `u64` for `u32`
        /// elements and as the bits of an `f64` for `f32` elements.
        Sum = 5,
        /// Result: 64-bit FNV-1a over the bytes of `a`, whatever the element type.
        Checksum = 6,
    }
}

codes! {
    /// Type of the elements of a compute command.
    Element {
        /// Unsigned 32-bit integers.
        U32 = 0,
        /// IEEE 754 single precision.
        F32 = 1,
    }
}

codes! {
    /// How a descriptor ended.
    Status {
        /// All of it was done.
        Ok = 0,
        /// The descriptor makes no sense: unknown code, reserved bits, misaligned or overflowing
        /// addresses. The channel is in the error state [`ChannelError::BadCommand`].
        BadCommand = 1,
        /// A VRAM range is not inside VRAM, is misaligned, or overlaps another.
        BadVram = 2,
        /// System memory could not be reached: not mapped for DMA, or bus mastering is off.
        BusError = 3,
        /// A fault was cancelled, or could not be reported.
        Fault = 4,
        /// VRAM has lost what was stored there.
        Memory = 5,
    }
}

codes! {
    /// Why a channel is in the error state.
    ChannelError {
        /// It is not.
        None = 0,
        /// A descriptor made no sense; it has been completed with [`Status::BadCommand`].
        BadCommand = 1,
        /// `PUT` was set more than the ring size ahead of `GET`; the value was dropped.
        BadPut = 2,
        /// Ring or completion array are misaligned, or the size is not a power of two in range.
        /// The channel stays disabled.
        BadSetup = 3,
        /// A descriptor could not be read; clearing the error reads it again.
        RingRead = 4,
        /// A completion could not be written. The descriptor was executed and counts as completed.
        DoneWrite = 5,
    }
}

codes! {
    /// What kind of access faulted.
    Access {
        /// A read.
        Read = 1,
        /// A write.
        Write = 2,
    }
}

codes! {
    /// Why an access faulted.
    FaultReason {
        /// An entry on the way is not present.
        NotPresent = 1,
        /// The access is a write and the entry, or its cached copy, forbids it.
        ReadOnly = 2,
        /// A table entry has reserved bits set or points outside of VRAM, or the root is unfit.
        Malformed = 3,
    }
}
