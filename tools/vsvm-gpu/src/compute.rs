// SPDX-License-Identifier: GPL-2.0

//! The compute engines: one for each compute channel.
//!
//! A command is cut into pieces that cross no page boundary in any of its arrays. A piece takes the
//! lock of its engine's translation cache, translates all its addresses, reads, computes and writes, and
//! lets the lock go: see `mmu.rs` for what that promises. If an address cannot be translated the
//! piece has done nothing yet, and is repeated as a whole after a replay.

use crate::bus::BusError;
use crate::channel::{Job, Stop, Success};
use crate::faults::{Cause, Verdict};
use crate::gpu::Gpu;
use crate::hw::{
    Access, ComputeCommand, ComputeOp, Descriptor, Element, FaultReason, Status, PAGE_SIZE, VA_END,
};
use crate::mmu::Location;

/// Size of an element.
const ELEMENT: u64 = 4;
const PAGE: usize = PAGE_SIZE as usize;

/// Executes a descriptor of the compute channel.
pub(crate) fn execute(gpu: &Gpu, job: &Job<'_>, raw: &Descriptor) -> Result<Success, Stop> {
    let command = ComputeCommand::decode(raw).map_err(|_| Stop::bad_command())?;
    let arrays = Arrays::new(&command).ok_or_else(Stop::bad_command)?;
    let mut result = Accumulator::new(&command);
    let mut done = 0;
    while done < arrays.length {
        job.check()?;
        let piece = arrays.piece(done);
        match piece.run(gpu, job, &command, &mut result) {
            Ok(()) => done += piece.length,
            Err(Error::Failed { status, va }) => return Err(failed(status, va)),
            Err(Error::Fault(cause)) => match gpu.faults.stall(gpu, job, cause) {
                Verdict::Replay => {}
                Verdict::Cancel => return Err(failed(Status::Fault, cause.va)),
                Verdict::Abandon => return Err(Stop::Abandoned),
            },
        }
    }
    Ok(Success {
        irq: command.irq,
        result: result.bits(),
    })
}

fn failed(status: Status, va: u64) -> Stop {
    Stop::Failed {
        status,
        address: va,
        result: 0,
    }
}

/// Why a piece did not run.
enum Error {
    Fault(Cause),
    Failed { status: Status, va: u64 },
}

/// The virtual addresses of the arrays that a command uses, or of a piece of them, and the length
/// in bytes.
pub(crate) struct Arrays {
    pub(crate) dst: Option<u64>,
    pub(crate) a: Option<u64>,
    pub(crate) b: Option<u64>,
    pub(crate) length: u64,
}

impl Arrays {
    /// Returns the arrays of a command, or `None` if it makes no sense.
    pub(crate) fn new(command: &ComputeCommand) -> Option<Self> {
        let (dst, a, b, scalar) = match command.op {
            ComputeOp::Fill => (true, false, false, true),
            ComputeOp::Add => (true, true, false, true),
            ComputeOp::Saxpy => (true, true, true, true),
            ComputeOp::Copy => (true, true, false, false),
            ComputeOp::Sum | ComputeOp::Checksum => (false, true, false, false),
        };
        let length = command.count.checked_mul(ELEMENT)?;
        let array = |used: bool, va: u64| {
            if !used {
                return (va == 0).then_some(None);
            }
            let fits = va.checked_add(length).is_some_and(|end| end <= VA_END);
            (fits && va % ELEMENT == 0).then_some(Some(va))
        };
        if !scalar && command.scalar != 0 {
            return None;
        }
        Some(Self {
            dst: array(dst, command.dst)?,
            a: array(a, command.a)?,
            b: array(b, command.b)?,
            length,
        })
    }

    /// Returns the piece that begins `done` bytes from the start.
    fn piece(&self, done: u64) -> Self {
        let at = |va: u64| va + done;
        let [dst, a, b] = [self.dst, self.a, self.b].map(|va| va.map(at));
        let room = [dst, a, b]
            .into_iter()
            .flatten()
            .map(|va| PAGE_SIZE - va % PAGE_SIZE)
            .fold(PAGE_SIZE, u64::min);
        Self {
            dst,
            a,
            b,
            length: room.min(self.length - done),
        }
    }

    /// Executes the command on this piece.
    fn run(
        &self,
        gpu: &Gpu,
        job: &Job<'_>,
        command: &ComputeCommand,
        result: &mut Accumulator,
    ) -> Result<(), Error> {
        let mut tlb = job.tlb().lock();
        let mut translate = |va: Option<u64>, access| {
            let translate = |va| {
                let found = tlb.translate(&gpu.vram, command.root, va, access);
                let cause = |reason: FaultReason| Cause {
                    root: command.root,
                    va,
                    access,
                    reason,
                };
                Ok((va, found.map_err(|reason| Error::Fault(cause(reason)))?))
            };
            va.map(translate).transpose()
        };
        // The destination first: where it is also a source, one fault asks for both rights.
        let dst = translate(self.dst, Access::Write)?;
        let a = translate(self.a, Access::Read)?;
        let b = translate(self.b, Access::Read)?;

        let mut buffers = [[0; PAGE]; 2];
        let length = usize::try_from(self.length).unwrap_or(PAGE).min(PAGE);
        let [first, second] = buffers.each_mut().map(|buffer| &mut buffer[..length]);
        for (place, buffer) in [(a, &mut *first), (b, &mut *second)] {
            if let Some((va, location)) = place {
                read(gpu, location, buffer).map_err(|status| Error::Failed { status, va })?;
            }
        }
        compute(command, first, second, result);
        if let Some((va, location)) = dst {
            write(gpu, location, first).map_err(|BusError| Error::Failed {
                status: Status::BusError,
                va,
            })?;
        }
        drop(tlb);
        Ok(())
    }
}

/// Reads part of a page.
fn read(gpu: &Gpu, location: Location, buffer: &mut [u8]) -> Result<(), Status> {
    match location {
        Location::Vram(offset) => {
            let slice = gpu.vram.slice(offset, buffer.len() as u64);
            slice.ok_or(Status::BadVram)?.copy_to(buffer);
            if !gpu.vram.is_readable(offset, buffer.len() as u64) {
                return Err(Status::Memory);
            }
        }
        Location::System(address) => {
            let read = gpu.bus.read(address, buffer);
            read.map_err(|BusError| Status::BusError)?;
            gpu.stats.count_read(buffer.len() as u64);
        }
    }
    Ok(())
}

/// Writes part of a page.
fn write(gpu: &Gpu, location: Location, buffer: &[u8]) -> Result<(), BusError> {
    match location {
        Location::Vram(offset) => {
            let slice = gpu.vram.slice(offset, buffer.len() as u64);
            slice.ok_or(BusError)?.copy_from(buffer);
            gpu.vram.set_poisoned(offset, buffer.len() as u64, false);
        }
        Location::System(address) => {
            gpu.bus.write(address, buffer)?;
            gpu.stats.count_written(buffer.len() as u64);
        }
    }
    Ok(())
}

/// The result so far of a command that has one.
enum Accumulator {
    None,
    Sum(u64),
    FloatSum(f64),
    Checksum(u64),
}

impl Accumulator {
    fn new(command: &ComputeCommand) -> Self {
        match (command.op, command.element) {
            (ComputeOp::Sum, Element::U32) => Self::Sum(0),
            (ComputeOp::Sum, Element::F32) => Self::FloatSum(0.0),
            // The offset basis of 64-bit FNV-1a.
            (ComputeOp::Checksum, _) => Self::Checksum(0xcbf2_9ce4_8422_2325),
            _ => Self::None,
        }
    }

    fn bits(&self) -> u64 {
        match *self {
            Self::None => 0,
            Self::Sum(sum) => sum,
            Self::FloatSum(sum) => sum.to_bits(),
            Self::Checksum(hash) => hash,
        }
    }

    /// Takes in the bytes of the next elements.
    fn take(&mut self, bytes: &[u8]) {
        match self {
            Self::None => {}
            Self::Sum(sum) => {
                *sum = words(bytes).fold(*sum, |sum, word| sum.wrapping_add(u64::from(word)));
            }
            Self::FloatSum(sum) => {
                *sum = words(bytes).fold(*sum, |sum, word| sum + f64::from(f32::from_bits(word)));
            }
            Self::Checksum(hash) => {
                *hash = bytes.iter().fold(*hash, |hash, byte| {
                    (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
                });
            }
        }
    }
}

/// Returns the elements in `bytes`.
fn words(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes.chunks_exact(4).map(|chunk| {
        let mut word = [0; 4];
        word.copy_from_slice(chunk);
        u32::from_le_bytes(word)
    })
}

/// Computes one piece from `a` and `b`; what is to be written replaces `a`.
fn compute(command: &ComputeCommand, a: &mut [u8], b: &[u8], result: &mut Accumulator) {
    let scalar = command.scalar;
    let float = f32::from_bits;
    match (command.op, command.element) {
        (ComputeOp::Fill, _) => update(a, b, |_, _| scalar),
        (ComputeOp::Add, Element::U32) => update(a, b, |a, _| a.wrapping_add(scalar)),
        (ComputeOp::Add, Element::F32) => {
            update(a, b, |a, _| (float(a) + float(scalar)).to_bits());
        }
        (ComputeOp::Saxpy, Element::U32) => {
            update(a, b, |a, b| scalar.wrapping_mul(a).wrapping_add(b));
        }
        (ComputeOp::Saxpy, Element::F32) => {
            update(a, b, |a, b| (float(scalar) * float(a) + float(b)).to_bits())
        }
        (ComputeOp::Copy, _) => {}
        (ComputeOp::Sum | ComputeOp::Checksum, _) => result.take(a),
    }
}

/// Replaces each element of `a` by `f` of it and its partner in `b`.
fn update(a: &mut [u8], b: &[u8], f: impl Fn(u32, u32) -> u32) {
    for (a, b) in a.chunks_exact_mut(4).zip(words(b)) {
        let mut word = [0; 4];
        word.copy_from_slice(a);
        a.copy_from_slice(&f(u32::from_le_bytes(word), b).to_le_bytes());
    }
}
