// SPDX-License-Identifier: GPL-2.0
//! The words of a cell, and what they may be.
//!
//! A word is a stamp: the number of its cell and a version. Version 0 is a word of zeroes, which is what
//! a new file has.

use std::fmt;
use std::ops::RangeInclusive;

/// Bits of a word that are the version; the others are the cell's number and one.
const VERSION_BITS: u32 = 20;

/// The last version there is.
pub(crate) const LAST: u32 = (1 << VERSION_BITS) - 1;

/// The most cells that can be told apart.
pub(crate) const MOST_CELLS: usize = (1 << (u32::BITS - VERSION_BITS)) - 1;

/// The word that a cell is full of at a version.
pub(crate) fn stamp(cell: usize, version: u32) -> u32 {
    debug_assert!(cell < MOST_CELLS && version <= LAST);
    match version {
        0 => 0,
        _ => ((cell as u32 + 1) << VERSION_BITS) | version,
    }
}

/// The version of a word, if it is one of this cell's.
pub(crate) fn version(cell: usize, word: u32) -> Option<u32> {
    let version = word & LAST;
    (word == stamp(cell, version)).then_some(version)
}

/// Whether a word can be a mixture of the bytes of these versions. The kernel copies bytes, so a word
/// that is being written may be read in parts.
fn mixed(cell: usize, word: u32, versions: RangeInclusive<u32>) -> bool {
    word.to_le_bytes().iter().enumerate().all(|(at, byte)| {
        versions
            .clone()
            .any(|version| stamp(cell, version).to_le_bytes()[at] == *byte)
    })
}

/// Whether each of these versions differs from the others in one byte only, so that no word can be a
/// mixture.
pub(crate) fn one_byte(cell: usize, versions: RangeInclusive<u32>) -> bool {
    stamp(cell, *versions.start()) ^ stamp(cell, *versions.end()) <= u32::from(u8::MAX)
}

/// What is wrong with what was read of a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A word is of an older version than what was there before the read began.
    Stale { word: usize, got: u32, oldest: u32 },
    /// The only one who may write finds an older version than the last.
    Lost { got: u32, last: u32 },
    /// Nobody was writing, and not all words are of the last version.
    Torn { word: usize, got: u32, last: u32 },
    /// Nobody ever wrote this there.
    Foreign { word: usize, got: u32, newest: u32 },
    /// No versions that were there give this sum.
    Sum { got: u64, sums: RangeInclusive<u64> },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Stale { word, got, oldest } => write!(
                f,
                "stale read: word {word} is of version {got}, and {oldest} was there before"
            ),
            Fault::Lost { got, last } => {
                write!(f, "lost write: version {got} is there instead of {last}")
            }
            Fault::Torn { word, got, last } => write!(
                f,
                "torn cell: nobody writes, and word {word} is of version {got}, others of {last}"
            ),
            Fault::Foreign { word, got, newest } => write!(
                f,
                "word {word} is {got:#010x}, which nobody wrote; the newest version is {newest}"
            ),
            Fault::Sum { got, sums } => {
                write!(f, "the sum is {got:#x}, and not within {sums:#x?}")
            }
        }
    }
}

/// What a read may give: the versions between the oldest that could still be there when it began, for each
/// word, and the newest that somebody had started to write when it ended.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    pub(crate) cell: usize,
    pub(crate) oldest: Vec<u32>,
    pub(crate) newest: u32,
    /// The reader is who alone may write.
    pub(crate) owner: bool,
}

impl Bounds {
    /// Judges words.
    pub(crate) fn judge(&self, words: &[u32]) -> Result<(), Fault> {
        assert_eq!(words.len(), self.oldest.len());
        let mut old = Vec::new();
        for (at, (&word, &oldest)) in words.iter().zip(&self.oldest).enumerate() {
            match version(self.cell, word) {
                Some(version) if (oldest..=self.newest).contains(&version) => {}
                _ if mixed(self.cell, word, oldest..=self.newest) => {}
                Some(version) if version < oldest => old.push((at, version)),
                _ => {
                    return Err(Fault::Foreign {
                        word: at,
                        got: word,
                        newest: self.newest,
                    })
                }
            }
        }
        let Some(&(word, got)) = old.first() else {
            return Ok(());
        };
        let last = self.newest;
        let nobody_writes = self.oldest.iter().all(|&oldest| oldest == last);
        Err(if nobody_writes && old.len() < words.len() {
            Fault::Torn { word, got, last }
        } else if self.owner {
            Fault::Lost { got, last }
        } else {
            Fault::Stale {
                word,
                got,
                oldest: self.oldest[word],
            }
        })
    }

    /// Judges the sum of all words.
    pub(crate) fn judge_sum(&self, got: u64) -> Result<(), Fault> {
        let word = |version| u64::from(stamp(self.cell, version));
        let least = self.oldest.iter().map(|&version| word(version)).sum();
        let sums = least..=word(self.newest) * self.oldest.len() as u64;
        match sums.contains(&got) {
            true => Ok(()),
            false => Err(Fault::Sum { got, sums }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(oldest: u32, newest: u32, owner: bool) -> Bounds {
        Bounds {
            cell: 6,
            oldest: vec![oldest; 4],
            newest,
            owner,
        }
    }

    fn words(versions: [u32; 4]) -> [u32; 4] {
        versions.map(|version| stamp(6, version))
    }

    #[test]
    fn words_tell_cell_and_version() {
        assert_eq!(version(6, stamp(6, 77)), Some(77));
        assert_eq!(version(6, stamp(6, LAST)), Some(LAST));
        assert_eq!(version(6, 0), Some(0));
        assert_eq!(version(5, stamp(6, 77)), None);
        assert_eq!(version(5, 77), None);
    }

    #[test]
    fn what_is_between_is_right() {
        let bounds = bounds(3, 5, false);
        assert_eq!(bounds.judge(&words([3, 4, 5, 3])), Ok(()));
        assert_eq!(
            bounds.judge(&words([3, 4, 6, 3])),
            Err(Fault::Foreign {
                word: 2,
                got: stamp(6, 6),
                newest: 5
            })
        );
    }

    #[test]
    fn an_old_word_is_stale_for_a_reader() {
        let stale = Err(Fault::Stale {
            word: 1,
            got: 2,
            oldest: 3,
        });
        assert_eq!(bounds(3, 5, false).judge(&words([3, 2, 5, 2])), stale);
        let stale = Err(Fault::Stale {
            word: 0,
            got: 2,
            oldest: 3,
        });
        assert_eq!(bounds(3, 3, false).judge(&words([2, 2, 2, 2])), stale);
    }

    #[test]
    fn an_old_cell_is_lost_for_its_owner() {
        let lost = Err(Fault::Lost { got: 2, last: 3 });
        assert_eq!(bounds(3, 3, true).judge(&words([2, 2, 2, 2])), lost);
    }

    #[test]
    fn words_disagree_while_nobody_writes() {
        let torn = Err(Fault::Torn {
            word: 3,
            got: 2,
            last: 3,
        });
        for owner in [true, false] {
            assert_eq!(bounds(3, 3, owner).judge(&words([3, 3, 3, 2])), torn);
        }
    }

    #[test]
    fn words_of_others_are_seen() {
        let mut words = words([3, 3, 3, 3]);
        words[2] = stamp(7, 3);
        assert!(matches!(
            bounds(3, 4, false).judge(&words),
            Err(Fault::Foreign { word: 2, .. })
        ));
        words[2] = 0;
        assert!(bounds(3, 4, false).judge(&words).is_err());
    }

    #[test]
    fn bytes_may_mix_only_while_more_than_one_changes() {
        let low = |version: u32| version & 0xff;
        let half = stamp(6, 0x100) | low(0xff);
        let mut words = words([0xff, 0x100, 0x100, 0xff]);
        words[1] = half;
        assert_eq!(bounds(0xff, 0x100, false).judge(&words), Ok(()));
        assert!(bounds(0x100, 0x100, false).judge(&words).is_err());
        assert!(!one_byte(6, 0xff..=0x100));
        assert!(!one_byte(6, 0..=1));
        assert!(one_byte(6, 1..=0xff));
    }

    #[test]
    fn sums() {
        let sum = |versions| words(versions).into_iter().map(u64::from).sum();
        let bounds = bounds(3, 5, false);
        assert_eq!(bounds.judge_sum(sum([3, 5, 5, 4])), Ok(()));
        assert_eq!(bounds.judge_sum(sum([3, 3, 3, 3])), Ok(()));
        assert!(bounds.judge_sum(sum([3, 3, 3, 2])).is_err());
        assert!(bounds.judge_sum(sum([5, 5, 5, 6])).is_err());
    }
}
