// SPDX-License-Identifier: GPL-2.0
//! Where the records of a file are, and what they contain.
//!
//! All of a record's bytes follow from where it is and from its version, so each byte is a checksum
//! of the others: what was never written is told from what was.

use devcache_selftests::random::Random;
use devcache_selftests::PAGE;
use serde::Deserialize;
use serde::Serialize;
use std::fmt;
use std::ops::Range;

/// Bytes of the records, in turn, one behind the other: several to a page, across pages, and of
/// pages. The GPU copies elements of four bytes.
const LENGTHS: [usize; 8] = [64, 1500, 4096, 256, 2800, 12288, 700, 6000];

/// Records of a file.
pub(crate) const COUNT: usize = 64;

/// A file, by its file system and a number there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct FileId {
    pub(crate) fs: String,
    pub(crate) number: u32,
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.fs, self.number)
    }
}

/// A version of records: they only grow, also from one boot of the guest to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Version {
    pub(crate) boot: u32,
    pub(crate) round: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.boot, self.round)
    }
}

/// The places of a file's records.
pub(crate) fn places() -> impl Iterator<Item = Range<usize>> {
    let lengths = LENGTHS.into_iter().cycle().take(COUNT);
    lengths.scan(0, |end, len| {
        let start = *end;
        *end += len;
        Some(start..*end)
    })
}

/// The place of one of them.
pub(crate) fn place(record: usize) -> Option<Range<usize>> {
    places().nth(record)
}

/// Bytes of a file: whole pages. What lies behind the last record stays zero.
pub(crate) fn file_len() -> usize {
    places().fold(0, |_, place| place.end.next_multiple_of(PAGE))
}

/// The bytes of a version of a record.
pub(crate) fn contents(file: &FileId, record: usize, version: Version) -> Vec<u8> {
    let numbers = [file.number, version.boot, version.round].map(u64::from);
    let name = file.fs.bytes().map(u64::from);
    let parts = name.chain(numbers).chain([record as u64]);
    let key = parts.fold(0, |key, part| Random::new(key ^ part).value());
    let len = place(record).map_or(0, |place| place.len());
    Random::new(key).bytes(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_apart_and_aligned() {
        let places: Vec<_> = places().collect();
        assert_eq!(places.len(), COUNT);
        assert!(places.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert!(places
            .iter()
            .all(|place| place.start % 4 == 0 && place.len() % 4 == 0));
        assert_eq!(place(1), Some(64..1564));
        assert_eq!(place(COUNT), None);
        assert_eq!(file_len() % PAGE, 0);
        assert!(places
            .iter()
            .any(|place| place.len() < PAGE && place.start / PAGE != place.end / PAGE));
    }

    #[test]
    fn contents_differ_in_everything() {
        let file = |fs: &str, number| FileId {
            fs: fs.to_owned(),
            number,
        };
        let version = |boot, round| Version { boot, round };
        let all = [
            contents(&file("ext4", 0), 1, version(1, 1)),
            contents(&file("xfs", 0), 1, version(1, 1)),
            contents(&file("ext4", 1), 1, version(1, 1)),
            contents(&file("ext4", 0), 9, version(1, 1)),
            contents(&file("ext4", 0), 1, version(2, 1)),
            contents(&file("ext4", 0), 1, version(1, 2)),
        ];
        for (number, one) in all.iter().enumerate() {
            assert_eq!(one.len(), 1500);
            assert!(all[..number].iter().all(|other| other != one));
        }
    }
}
