// SPDX-License-Identifier: GPL-2.0

//! The device's view of system memory.
//!
//! The client (QEMU) announces which DMA addresses lead where: ranges of files, shared with it.
//! With an IOMMU in the guest these are single pages that come and go. A file is mapped once, as a
//! whole; the announced ranges are what accesses are checked against.
//!
//! Every access holds the read lock, and unmapping or turning bus mastering off takes the write
//! lock, so once such a request has been answered nothing reaches that memory any more. The holder
//! of the read lock copies at most [`CHUNK`] bytes, so the answer is never late; `parking_lot`
//! lets a waiting writer go before new readers.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use parking_lot::RwLock;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

/// Largest number of bytes callers may copy in one access.
pub(crate) const CHUNK: u64 = 1 << 20;

/// An access that the bus did not carry out, or only in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BusError;

/// What the client allows the device to do with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Permission {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

/// A range of DMA addresses.
struct Range {
    size: u64,
    permission: Permission,
    memory: Arc<MmapRegion>,
    /// Where in `memory` the range begins. Range and memory were checked against each other.
    offset: u64,
}

impl Range {
    fn slice(&self, offset: u64, length: u64) -> Result<VolatileSlice<'_>, BusError> {
        let offset = usize::try_from(self.offset + offset).map_err(|_| BusError)?;
        let length = usize::try_from(length).map_err(|_| BusError)?;
        self.memory.get_slice(offset, length).map_err(|_| BusError)
    }
}

#[derive(Default)]
struct State {
    master: bool,
    ranges: BTreeMap<u64, Range>,
    /// Mapped files by device and inode number.
    files: HashMap<(u64, u64), Arc<MmapRegion>>,
}

impl State {
    /// Returns the range that contains `address`, and the offset in it.
    fn find(&self, address: u64) -> Option<(&Range, u64)> {
        let (start, range) = self.ranges.range(..=address).next_back()?;
        let offset = address - start;
        (offset < range.size).then_some((range, offset))
    }

    /// Returns the mapping of the whole of `file`, which must have at least `end` bytes.
    fn file(&mut self, file: File, end: u64) -> io::Result<Arc<MmapRegion>> {
        let metadata = file.metadata()?;
        if metadata.len() < end {
            return Err(invalid("the file is shorter than the range"));
        }
        let key = (metadata.dev(), metadata.ino());
        if let Some(memory) = self.files.get(&key) {
            if memory.size() as u64 >= end {
                return Ok(Arc::clone(memory));
            }
        }
        let size = usize::try_from(metadata.len()).map_err(io::Error::other)?;
        let memory = MmapRegion::from_file(FileOffset::new(file, 0), size)
            .map(Arc::new)
            .map_err(io::Error::other)?;
        self.files.insert(key, Arc::clone(&memory));
        Ok(memory)
    }
}

fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

/// The way to system memory.
#[derive(Default)]
pub(crate) struct Bus(RwLock<State>);

impl Bus {
    /// Turns bus mastering on or off.
    pub(crate) fn set_master(&self, on: bool) {
        self.0.write().master = on;
    }

    /// Makes `size` bytes at DMA address `address` lead to `file` at `offset`.
    pub(crate) fn map(
        &self,
        address: u64,
        size: u64,
        permission: Permission,
        file: File,
        offset: u64,
    ) -> io::Result<()> {
        let (Some(last), Some(end)) = (
            size.checked_sub(1).and_then(|n| address.checked_add(n)),
            offset.checked_add(size),
        ) else {
            return Err(invalid("the range is empty or overflows"));
        };
        let mut state = self.0.write();
        if let Some((start, range)) = state.ranges.range(..=last).next_back() {
            if start + (range.size - 1) >= address {
                return Err(invalid("the range overlaps one that is mapped"));
            }
        }
        let memory = state.file(file, end)?;
        state.ranges.insert(
            address,
            Range {
                size,
                permission,
                memory,
                offset,
            },
        );
        Ok(())
    }

    /// Removes every range that lies inside the `size` bytes at `address`. One that lies there
    /// only in part is an error, and then nothing is removed.
    pub(crate) fn unmap(&self, address: u64, size: u64) -> io::Result<()> {
        let Some(last) = size.checked_sub(1).and_then(|n| address.checked_add(n)) else {
            return Err(invalid("the range is empty or overflows"));
        };
        let mut state = self.0.write();
        let before = state.ranges.range(..address).next_back();
        let newest = state.ranges.range(address..=last).next_back();
        if before.is_some_and(|(start, range)| start + (range.size - 1) >= address)
            || newest.is_some_and(|(start, range)| start + (range.size - 1) > last)
        {
            return Err(invalid("the range would cut another in two"));
        }
        state
            .ranges
            .retain(|start, _| !(address..=last).contains(start));
        Ok(())
    }

    /// Removes all ranges.
    pub(crate) fn unmap_all(&self) {
        self.0.write().ranges.clear();
    }

    /// Calls `visit` with each contiguous piece of the range and its offset in it.
    fn access(
        &self,
        address: u64,
        length: u64,
        allowed: impl Fn(Permission) -> bool,
        mut visit: impl FnMut(VolatileSlice<'_>, u64) -> Result<(), BusError>,
    ) -> Result<(), BusError> {
        let state = self.0.read();
        if !state.master {
            return Err(BusError);
        }
        let mut done = 0;
        while done < length {
            let at = address.checked_add(done).ok_or(BusError)?;
            let (range, offset) = state.find(at).ok_or(BusError)?;
            if !allowed(range.permission) {
                return Err(BusError);
            }
            let piece = (length - done).min(range.size - offset);
            visit(range.slice(offset, piece)?, done)?;
            done += piece;
        }
        Ok(())
    }

    /// Copies from system memory at `address` to all of `target`.
    pub(crate) fn read_to(&self, address: u64, target: VolatileSlice<'_>) -> Result<(), BusError> {
        self.access(
            address,
            target.len() as u64,
            |permission| permission.read,
            |piece, done| {
                let target = usize::try_from(done)
                    .ok()
                    .and_then(|n| target.offset(n).ok());
                piece.copy_to_volatile_slice(target.ok_or(BusError)?);
                Ok(())
            },
        )
    }

    /// Copies all of `source` to system memory at `address`.
    pub(crate) fn write_from(
        &self,
        address: u64,
        source: VolatileSlice<'_>,
    ) -> Result<(), BusError> {
        self.access(
            address,
            source.len() as u64,
            |permission| permission.write,
            |piece, done| {
                let source = usize::try_from(done)
                    .ok()
                    .and_then(|n| source.offset(n).ok());
                source.ok_or(BusError)?.copy_to_volatile_slice(piece);
                Ok(())
            },
        )
    }

    /// Reads bytes from system memory.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) -> Result<(), BusError> {
        self.read_to(address, VolatileSlice::from(data))
    }

    /// Writes bytes to system memory.
    pub(crate) fn write(&self, address: u64, data: &[u8]) -> Result<(), BusError> {
        self.access(
            address,
            data.len() as u64,
            |permission| permission.write,
            |piece, done| {
                let source = usize::try_from(done).ok().and_then(|n| data.get(n..));
                piece.copy_from(source.ok_or(BusError)?);
                Ok(())
            },
        )
    }

    /// Reads `N` words as they lie in memory.
    pub(crate) fn read_words<const N: usize>(&self, address: u64) -> Result<[u64; N], BusError> {
        let mut words = [0; N];
        for (index, word) in (0_u64..).zip(&mut words) {
            let mut bytes = [0; 8];
            let at = address.checked_add(index * 8).ok_or(BusError)?;
            self.read(at, &mut bytes)?;
            *word = u64::from_ne_bytes(bytes);
        }
        Ok(words)
    }

    /// Writes words as they lie in memory: the first one last, with one store that no reader can
    /// see before the others.
    pub(crate) fn publish<const N: usize>(
        &self,
        address: u64,
        words: &[u64; N],
    ) -> Result<(), BusError> {
        for (index, word) in (0_u64..).zip(words).skip(1) {
            let at = address.checked_add(index * 8).ok_or(BusError)?;
            self.write(at, &word.to_ne_bytes())?;
        }
        self.access(
            address,
            8,
            |permission| permission.write,
            |piece, _| {
                piece
                    .store(words[0], 0, Ordering::Release)
                    .map_err(|_| BusError)
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Permission = Permission {
        read: true,
        write: true,
    };

    fn file(size: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        file
    }

    fn bus() -> Bus {
        let bus = Bus::default();
        bus.set_master(true);
        bus
    }

    #[test]
    fn only_mapped_ranges_are_reached() {
        let bus = bus();
        bus.map(0x10000, 0x2000, BOTH, file(0x4000), 0x1000)
            .unwrap();
        assert_eq!(bus.write(0x10000, &[1; 0x2000]), Ok(()));
        assert_eq!(bus.write(0xffff, &[1; 2]), Err(BusError));
        assert_eq!(bus.write(0x11fff, &[1; 2]), Err(BusError));
        assert_eq!(bus.read(u64::MAX, &mut [0; 2]), Err(BusError));
        bus.unmap(0x10000, 0x2000).unwrap();
        assert_eq!(bus.read(0x10000, &mut [0; 1]), Err(BusError));
    }

    #[test]
    fn adjacent_ranges_act_as_one() {
        let bus = bus();
        let shared = file(0x3000);
        // In reverse order in the file, as with an IOMMU.
        bus.map(0x1000, 0x1000, BOTH, shared.try_clone().unwrap(), 0x2000)
            .unwrap();
        bus.map(0x2000, 0x1000, BOTH, shared.try_clone().unwrap(), 0x0)
            .unwrap();
        let data: Vec<u8> = (0..=255).cycle().take(0x1800).collect();
        bus.write(0x1400, &data).unwrap();
        let mut back = vec![0; 0x1800];
        bus.read(0x1400, &mut back).unwrap();
        assert_eq!(back, data);
        let mut start = [0; 16];
        std::os::unix::fs::FileExt::read_exact_at(&shared, &mut start, 0).unwrap();
        assert_eq!(start, data[0xc00..0xc10]);
    }

    #[test]
    fn bus_mastering_and_permissions_gate() {
        let bus = bus();
        let read_only = Permission {
            read: true,
            write: false,
        };
        bus.map(0x1000, 0x1000, read_only, file(0x1000), 0).unwrap();
        assert_eq!(bus.read(0x1000, &mut [0; 8]), Ok(()));
        assert_eq!(bus.write(0x1000, &[0; 8]), Err(BusError));
        assert_eq!(bus.publish(0x1000, &[0; 1]), Err(BusError));
        bus.set_master(false);
        assert_eq!(bus.read(0x1000, &mut [0; 8]), Err(BusError));
    }

    #[test]
    fn bad_maps_are_refused() {
        let bus = bus();
        assert!(bus.map(0x1000, 0, BOTH, file(0x1000), 0).is_err());
        assert!(bus.map(0x1000, 0x2000, BOTH, file(0x1000), 0).is_err());
        assert!(bus.map(u64::MAX, 2, BOTH, file(0x1000), 0).is_err());
        bus.map(0x1000, 0x2000, BOTH, file(0x2000), 0).unwrap();
        assert!(bus.map(0x0, 0x1001, BOTH, file(0x2000), 0).is_err());
        assert!(bus.map(0x2fff, 1, BOTH, file(0x2000), 0).is_err());
        assert!(bus.unmap(0x1000, 0x1000).is_err());
        assert!(bus.unmap(0x2000, 0x1000).is_err());
        assert!(bus.unmap(0x0, 0x4000).is_ok());
        assert_eq!(bus.read(0x1000, &mut [0; 1]), Err(BusError));
    }

    #[test]
    fn words_are_published() {
        let bus = bus();
        bus.map(0x1000, 0x1000, BOTH, file(0x1000), 0).unwrap();
        bus.publish(0x1020, &[1, 2, 3, 4]).unwrap();
        assert_eq!(bus.read_words(0x1020), Ok([1, 2, 3, 4]));
    }
}
