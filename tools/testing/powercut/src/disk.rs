// SPDX-License-Identifier: GPL-2.0
//! A disk with a write cache that loses its power.
//!
//! What was written since the last flush is in the cache, from where a disk may write it out in any
//! order and at any time. So when the power goes, each block of each write since then is either on
//! the disk or lost. A block is 4 KiB, which most disks write as a whole.

use devcache_selftests::random::Random;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes that are written as a whole, where they are aligned.
const BLOCK: usize = 4096;

/// The most a block's chance to be kept can be: all.
const ALL: usize = 4;

/// A write that was not flushed.
#[derive(Debug)]
struct Write {
    offset: usize,
    bytes: Vec<u8>,
}

/// The disk.
#[derive(Debug)]
pub(crate) struct Disk {
    file: File,
    len: usize,
    cache: Vec<Write>,
}

/// What a power cut did to the cache, in blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) kept: usize,
    pub(crate) lost: usize,
}

impl Disk {
    /// A disk whose contents are in a file.
    pub(crate) fn new(file: File) -> io::Result<Self> {
        let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        Ok(Disk {
            file,
            len,
            cache: Vec::new(),
        })
    }

    /// Bytes it has.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Reads, from the cache what is there.
    pub(crate) fn read(&self, offset: usize, len: usize) -> io::Result<Vec<u8>> {
        self.check(offset, len)?;
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset as u64)?;
        for write in &self.cache {
            let start = write.offset.max(offset);
            let end = (write.offset + write.bytes.len()).min(offset + len);
            if start < end {
                bytes[start - offset..end - offset]
                    .copy_from_slice(&write.bytes[start - write.offset..end - write.offset]);
            }
        }
        Ok(bytes)
    }

    /// Writes to the cache.
    pub(crate) fn write(&mut self, offset: usize, bytes: Vec<u8>) -> io::Result<()> {
        self.check(offset, bytes.len())?;
        self.cache.push(Write { offset, bytes });
        Ok(())
    }

    /// Writes all that is in the cache to the disk.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        for write in self.cache.drain(..) {
            self.file.write_all_at(&write.bytes, write.offset as u64)?;
        }
        Ok(())
    }

    /// The power goes. The chance of a block to be kept is one for all, and chosen before.
    pub(crate) fn power_cut(&mut self, random: &mut Random) -> io::Result<Cut> {
        let chance = random.below(ALL + 1);
        let mut cut = Cut::default();
        for write in self.cache.drain(..) {
            let mut start = 0;
            while start < write.bytes.len() {
                let offset = write.offset + start;
                let len = (BLOCK - offset % BLOCK).min(write.bytes.len() - start);
                if random.below(ALL) < chance {
                    let block = &write.bytes[start..start + len];
                    self.file.write_all_at(block, offset as u64)?;
                    cut.kept += 1;
                } else {
                    cut.lost += 1;
                }
                start += len;
            }
        }
        Ok(cut)
    }

    fn check(&self, offset: usize, len: usize) -> io::Result<()> {
        let end = offset.checked_add(len);
        if end.is_some_and(|end| end <= self.len) {
            return Ok(());
        }
        Err(io::Error::from(io::ErrorKind::InvalidInput))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const LEN: usize = 8 * BLOCK;

    #[derive(Clone, Debug)]
    enum Step {
        Write {
            sector: usize,
            sectors: usize,
            value: u8,
        },
        Flush,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..60_usize, 1..24_usize, 1..=255_u8).prop_map(|(sector, sectors, value)| {
                let sectors = sectors.min(64 - sector);
                Step::Write { sector, sectors, value }
            }),
            1 => Just(Step::Flush),
        ]
    }

    fn disk() -> Disk {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LEN as u64).unwrap();
        Disk::new(file).unwrap()
    }

    proptest! {
        #[test]
        fn cut_keeps_what_was_flushed(steps in vec(step(), 0..40), seed: u64) {
            let mut disk = disk();
            // What each byte was when flushed, and what it has been since; the last is what it is.
            let mut values: Vec<Vec<u8>> = vec![vec![0]; LEN];
            for step in steps {
                match step {
                    Step::Write { sector, sectors, value } => {
                        let (offset, len) = (sector * 512, sectors * 512);
                        disk.write(offset, vec![value; len]).unwrap();
                        values[offset..offset + len].iter_mut().for_each(|was| was.push(value));
                    }
                    Step::Flush => {
                        disk.flush().unwrap();
                        values.iter_mut().for_each(|was| *was = vec![*was.last().unwrap()]);
                    }
                }
                let now: Vec<u8> = values.iter().map(|was| *was.last().unwrap()).collect();
                prop_assert_eq!(disk.read(0, LEN).unwrap(), now.clone());
                prop_assert_eq!(&disk.read(700, 9000).unwrap(), &now[700..9700]);
            }
            disk.power_cut(&mut Random::new(seed)).unwrap();
            let after = disk.read(0, LEN).unwrap();
            prop_assert!(after.iter().zip(&values).all(|(byte, was)| was.contains(byte)));
        }
    }

    #[test]
    fn cuts_lose_all_some_or_nothing() {
        let cuts: Vec<Cut> = (0..40)
            .map(|seed| {
                let mut disk = disk();
                disk.write(512, vec![1; LEN - 512]).unwrap();
                disk.power_cut(&mut Random::new(seed)).unwrap()
            })
            .collect();
        assert!(cuts.iter().all(|cut| cut.kept + cut.lost == 8));
        assert!(cuts.iter().any(|cut| cut.kept == 0));
        assert!(cuts.iter().any(|cut| cut.lost == 0));
        assert!(cuts.iter().any(|cut| cut.kept > 0 && cut.lost > 0));
    }

    #[test]
    fn nothing_outside() {
        let mut disk = disk();
        assert!(disk.read(LEN - 1, 2).is_err());
        assert!(disk.write(LEN, vec![0]).is_err());
        assert!(disk.read(usize::MAX, 2).is_err());
        assert_eq!(disk.len(), LEN);
    }
}
