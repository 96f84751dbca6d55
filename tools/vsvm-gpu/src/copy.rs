// SPDX-License-Identifier: GPL-2.0

//! The copy engine.

use vm_memory::VolatileSlice;

use crate::bus::{BusError, CHUNK};
use crate::channel::{Job, Stop, Success};
use crate::gpu::Gpu;
use crate::hw::{CopyCommand, CopyOp, Descriptor, Segment, Status, PAGE_SIZE, SEGMENT_SIZE};
use crate::inject::Knob;

/// Why a segment failed.
enum Error {
    Status(Status),
    Abandoned,
}

impl From<BusError> for Error {
    fn from(BusError: BusError) -> Self {
        Self::Status(Status::BusError)
    }
}

impl From<Stop> for Error {
    fn from(_: Stop) -> Self {
        Self::Abandoned
    }
}

/// Executes a descriptor of the copy channel.
pub(crate) fn execute(gpu: &Gpu, job: &Job<'_>, raw: &Descriptor) -> Result<Success, Stop> {
    let command = CopyCommand::decode(raw).map_err(|_| Stop::bad_command())?;
    if command.list % 8 != 0 || (command.op != CopyOp::Fill && command.pattern != 0) {
        return Err(Stop::bad_command());
    }
    for index in 0..u64::from(command.segments) {
        segment(gpu, job, &command, index).map_err(|error| match error {
            Error::Abandoned => Stop::Abandoned,
            Error::Status(status) => Stop::Failed {
                status,
                address: index,
                result: index,
            },
        })?;
    }
    Ok(Success {
        irq: command.irq,
        result: u64::from(command.segments),
    })
}

/// Executes one segment.
fn segment(gpu: &Gpu, job: &Job<'_>, command: &CopyCommand, index: u64) -> Result<(), Error> {
    job.check()?;
    if gpu.inject.happens(Knob::CopyError) {
        return Err(Error::Status(Status::BusError));
    }
    let place = command.list.checked_add(index * SEGMENT_SIZE);
    let raw = gpu.bus.read_words(place.ok_or(BusError)?)?;
    let segment = Segment::decode(&raw).map_err(|_| Error::Status(Status::BadCommand))?;
    let Segment {
        other,
        vram,
        length,
    } = segment;
    let bad_vram = Error::Status(Status::BadVram);
    let memory = Error::Status(Status::Memory);
    let Some(here) = gpu.vram.slice(vram, length) else {
        return Err(bad_vram);
    };
    match command.op {
        CopyOp::ToVram => {
            in_chunks(job, here, other, |address, chunk| {
                gpu.bus.read_to(address, chunk)
            })?;
            gpu.stats.count_read(length);
            let poison = gpu.inject.happens(Knob::Poison);
            gpu.vram.set_poisoned(vram, length, poison);
        }
        CopyOp::FromVram if !gpu.vram.is_readable(vram, length) => return Err(memory),
        CopyOp::FromVram => {
            in_chunks(job, here, other, |address, chunk| {
                gpu.bus.write_from(address, chunk)
            })?;
            gpu.stats.count_written(length);
        }
        CopyOp::VramToVram => {
            let source = gpu.vram.slice(other, length).ok_or(bad_vram)?;
            if vram.abs_diff(other) < length {
                return Err(Error::Status(Status::BadVram));
            }
            if !gpu.vram.is_readable(other, length) {
                return Err(memory);
            }
            in_chunks(job, here, 0, |offset, chunk| {
                let from = usize::try_from(offset).map_err(|_| BusError)?;
                let source = source.subslice(from, chunk.len()).map_err(|_| BusError)?;
                source.copy_to_volatile_slice(chunk);
                Ok(())
            })?;
            gpu.vram.set_poisoned(vram, length, false);
        }
        CopyOp::Fill if other != 0 => return Err(Error::Status(Status::BadCommand)),
        CopyOp::Fill if (vram | length) % 4 != 0 => return Err(bad_vram),
        CopyOp::Fill => {
            let page = command.pattern.to_le_bytes().repeat(PAGE_SIZE as usize / 4);
            in_chunks(job, here, 0, |_, chunk| {
                for at in (0..chunk.len()).step_by(page.len()) {
                    chunk.offset(at).map_err(|_| BusError)?.copy_from(&page);
                }
                Ok(())
            })?;
            gpu.vram.set_poisoned(vram, length, false);
        }
    }
    Ok(())
}

/// Calls `copy` with pieces of `slice` of at most [`CHUNK`] bytes and the addresses, counted from
/// `address`, that go with them.
fn in_chunks(
    job: &Job<'_>,
    slice: VolatileSlice<'_>,
    address: u64,
    copy: impl Fn(u64, VolatileSlice<'_>) -> Result<(), BusError>,
) -> Result<(), Error> {
    let mut rest = slice;
    let mut at = address;
    address.checked_add(slice.len() as u64).ok_or(BusError)?;
    while !rest.is_empty() {
        job.check()?;
        let length = rest.len().min(CHUNK as usize);
        let (chunk, tail) = rest.split_at(length).map_err(|_| BusError)?;
        copy(at, chunk)?;
        rest = tail;
        at += length as u64;
    }
    Ok(())
}
