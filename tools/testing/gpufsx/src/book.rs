// SPDX-License-Identifier: GPL-2.0
//! What a file must have, and what it may have instead.
//!
//! Without faults there is one answer for each byte. Five things widen it:
//!
//! * An operation that failed may have been done in part: each byte that it would have changed is as
//!   before or as after, and the size is between both.
//! * A page that the device lost has what the disk has: each byte is that of one of the versions that
//!   the file had since the disk was last known to have all of it. So many pages may be older as the
//!   kernel says were lost.
//! * What could not be written to a disk with errors is older once it is read again. That may be any
//!   number of pages; and the size, when the file system is mounted again or a truncation failed, after
//!   which btrfs takes the size that the disk has.
//! * A file that had pages lost behind the end it has on the disk has that end when the file system is
//!   mounted again.
//! * Behind its end, the last page of a file on the disk may have what it had before the file became
//!   shorter. btrfs writes zeroes there when the file grows; if they are lost, that is seen again.
//!
//! Once the file has been looked at, what it was seen to have is what it must have.

use crate::effect::effect;
use crate::step::Op;
use anyhow::bail;
use anyhow::ensure;
use anyhow::Result;
use devcache_selftests::PAGE;

/// See the file's head.
#[derive(Debug, Default)]
pub(crate) struct Book {
    now: Vec<u8>,
    /// What the disk may have instead. Kept only where something can be lost.
    older: Vec<Vec<u8>>,
    /// The same behind an end that the file had.
    behind: Vec<Vec<u8>>,
    /// Whether it is kept.
    keeps: bool,
}

/// The byte of a version, which has zeroes behind its end.
fn byte(version: &[u8], at: usize) -> u8 {
    version.get(at).copied().unwrap_or(0)
}

/// The part of a version that a page is, filled up with zeroes.
fn part(version: &[u8], from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|at| byte(version, at)).collect()
}

/// What may have become older.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// This many pages, at most.
    Pages(u64),
    /// Any page, for the disk had errors.
    Unwritten,
    /// All there is to know of the file, for the file system was mounted again after that.
    All,
}

impl Loss {
    /// How many pages it may be.
    fn limit(self) -> u64 {
        match self {
            Loss::Pages(pages) => pages,
            Loss::Unwritten | Loss::All => u64::MAX,
        }
    }
}

impl Book {
    /// Of an empty file. Something will be lost only if `faults`.
    pub(crate) fn new(faults: bool) -> Self {
        Book {
            keeps: faults,
            ..Default::default()
        }
    }

    /// What the file must have.
    pub(crate) fn now(&self) -> &[u8] {
        &self.now
    }

    /// An operation succeeded.
    pub(crate) fn done(&mut self, op: &Op) {
        if let Some(after) = effect(op, &self.now) {
            self.set(after);
        }
    }

    fn set(&mut self, after: Vec<u8>) {
        let before = std::mem::replace(&mut self.now, after);
        if self.keeps {
            if before.len() > self.now.len() {
                self.behind.push(before.clone());
                self.keep_behind();
            }
            self.older.push(before);
        }
    }

    /// Part of what the file must have, with zeroes behind its end.
    pub(crate) fn part(&self, from: usize, len: usize) -> Vec<u8> {
        part(&self.now, from, len)
    }

    /// All that the file may have while `during` is done, if it loses pages.
    fn versions(&self, during: &Op) -> Vec<Vec<u8>> {
        let known = || self.older.iter().chain([&self.now]);
        let met = known().filter_map(|version| effect(during, version));
        let behind = self.behind.iter();
        known().chain(behind).cloned().chain(met).collect()
    }

    /// Whether these bytes may have been read at `from` while pages were lost.
    pub(crate) fn possible(&self, got: &[u8], from: usize, during: &Op) -> bool {
        let versions = self.versions(during);
        let mut numbered = got.iter().zip(from..);
        numbered.all(|(got, at)| versions.iter().any(|version| byte(version, at) == *got))
    }

    /// The disk has all that the file has.
    pub(crate) fn confirmed(&mut self) {
        self.older.clear();
        self.keep_behind();
    }

    /// Of what was behind an end, remembers what still is, in the last page of the file.
    fn keep_behind(&mut self) {
        let end = self.now.len();
        let page = end.next_multiple_of(PAGE);
        self.behind.retain(|version| version.len() > end);
        for version in &mut self.behind {
            version.truncate(page);
            version[..end].copy_from_slice(&self.now);
        }
        self.behind.dedup();
    }

    /// The file system was mounted again, and the file has this size. It may end earlier if there were
    /// only zeroes.
    pub(crate) fn cut(&mut self, size: usize) {
        let zeroes = |part: &[u8]| part.iter().all(|byte| *byte == 0);
        if self.now.get(size..).is_some_and(zeroes) {
            self.now.truncate(size);
        }
    }

    /// Judges what the file was seen to have after `failed` failed and `loss` happened, and takes it
    /// over. Says how many pages are older. What `during` did may have met pages that were older
    /// already.
    pub(crate) fn seen(
        &mut self,
        got: Vec<u8>,
        failed: Option<&Op>,
        during: &Op,
        loss: Loss,
    ) -> Result<u64> {
        let after = failed.and_then(|op| effect(op, &self.now));
        let after = after.as_deref().unwrap_or(&self.now);
        let versions = match loss {
            Loss::Pages(0) => vec![],
            _ => self.versions(during),
        };
        let mut sizes = self.now.len().min(after.len())..=self.now.len().max(after.len());
        let untruncated = loss == Loss::Unwritten && matches!(failed, Some(Op::Truncate(_)));
        if loss == Loss::All || untruncated {
            let ends = versions.iter().filter(|it| !self.behind.contains(it));
            for size in ends.map(Vec::len) {
                sizes = size.min(*sizes.start())..=size.max(*sizes.end());
            }
        }
        ensure!(
            sizes.contains(&got.len()),
            "the file has {} bytes; {sizes:?} may be",
            got.len()
        );
        let mut older = 0;
        for (page, bytes) in got.chunks(PAGE).enumerate() {
            let from = page * PAGE;
            if bytes == part(&self.now, from, bytes.len()) {
                continue;
            }
            let mut numbered = bytes.iter().copied().zip(from..);
            if numbered
                .clone()
                .all(|(got, at)| got == byte(&self.now, at) || got == byte(after, at))
            {
                continue;
            }
            let wrong = numbered.find(|&(got, at)| versions.iter().all(|v| byte(v, at) != got));
            if let Some((got, at)) = wrong {
                bail!(
                    "{got:#04x} at {at:#x} instead of {:#04x}; what may be older: {loss:?}",
                    byte(&self.now, at)
                );
            }
            older += 1;
            ensure!(
                older <= loss.limit(),
                "page {page} is the {older}th that is older, which is too many: {loss:?}"
            );
        }
        let after = after.to_vec();
        self.set(got);
        if self.keeps && failed.is_some() {
            self.older.push(after);
        }
        Ok(older)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::Span;

    fn write(at: usize, seed: u64) -> Op {
        Op::Write {
            span: Span::new(at, PAGE - 1),
            seed,
        }
    }

    /// Two pages on the disk, written with the seeds 1 and 2, and then the second with 3.
    fn book() -> (Book, Vec<u8>) {
        let mut book = Book::new(true);
        book.done(&write(0, 1));
        book.done(&write(PAGE, 2));
        let disk = book.now().to_vec();
        book.confirmed();
        book.done(&write(PAGE, 3));
        (book, disk)
    }

    const NOTHING: Op = Op::Fsync;

    #[test]
    fn nothing_else_without_faults() {
        let (mut book, disk) = book();
        let now = book.now().to_vec();
        assert_eq!(book.seen(now, None, &NOTHING, Loss::Pages(0)).unwrap(), 0);
        assert!(book.seen(disk, None, &NOTHING, Loss::Pages(0)).is_err());
    }

    #[test]
    fn lost_pages_are_those_of_the_disk() {
        let (mut book, disk) = book();
        assert_eq!(
            book.seen(disk.clone(), None, &NOTHING, Loss::Pages(1))
                .unwrap(),
            1
        );
        assert_eq!(book.now(), disk);

        let (mut book, _) = self::book();
        let zeroes = vec![0; 2 * PAGE];
        assert!(book.seen(zeroes, None, &NOTHING, Loss::Pages(2)).is_err());

        // What the disk had before it was known to have something else.
        let (mut book, disk) = self::book();
        book.confirmed();
        assert!(book.seen(disk, None, &NOTHING, Loss::Pages(2)).is_err());
    }

    #[test]
    fn one_page_cannot_take_two_with_it() {
        let (mut book, disk) = book();
        book.done(&write(0, 4));
        assert!(book.seen(disk, None, &NOTHING, Loss::Pages(1)).is_err());
    }

    #[test]
    fn what_a_bad_disk_did_not_take_is_older() {
        let (mut book, disk) = book();
        book.done(&write(0, 4));
        book.done(&write(2 * PAGE, 5));
        let mut mixed = book.now().to_vec();
        mixed[..2 * PAGE].copy_from_slice(&disk);
        let loss = Loss::Unwritten;
        assert_eq!(book.seen(mixed, None, &NOTHING, loss).unwrap(), 2);
        assert!(book.seen(disk.clone(), None, &NOTHING, loss).is_err());
        assert_eq!(book.seen(disk, None, &NOTHING, Loss::All).unwrap(), 0);
    }

    #[test]
    fn a_failed_truncation_may_take_the_size_of_the_disk() {
        let (mut book, disk) = book();
        book.done(&write(2 * PAGE, 5));
        let op = Op::Truncate(2 * PAGE + 7);
        let loss = Loss::Unwritten;
        assert!(book.seen(disk.clone(), None, &op, loss).is_err());
        assert!(book
            .seen(disk[..PAGE].to_vec(), Some(&op), &op, loss)
            .is_err());
        assert_eq!(book.seen(disk, Some(&op), &op, loss).unwrap(), 1);
    }

    #[test]
    fn no_bad_disk_makes_something_up() {
        let (mut book, mut disk) = book();
        disk[5] ^= 1;
        assert!(book.seen(disk, None, &NOTHING, Loss::All).is_err());
    }

    #[test]
    fn what_was_behind_the_end_may_come_back() {
        let (mut book, _) = book();
        let was = book.now().to_vec();
        let end = PAGE + 100;
        book.done(&Op::Truncate(end));
        book.confirmed();
        book.done(&Op::Truncate(3 * PAGE));
        let mut got = book.now().to_vec();
        got[end..2 * PAGE - 1].copy_from_slice(&was[end..2 * PAGE - 1]);
        let (lost, none) = (Loss::Pages(1), Loss::Pages(0));
        assert!(book.seen(got.clone(), None, &NOTHING, none).is_err());
        assert_eq!(book.seen(got.clone(), None, &NOTHING, lost).unwrap(), 1);

        let (mut book, _) = self::book();
        book.done(&Op::Truncate(end));
        book.done(&Op::Truncate(3 * PAGE));
        book.confirmed();
        assert!(book.seen(got, None, &NOTHING, lost).is_err());
    }

    #[test]
    fn only_zeroes_are_cut() {
        let (mut book, _) = book();
        let now = book.now().to_vec();
        book.cut(PAGE);
        assert_eq!(book.now(), now);
        book.done(&Op::Truncate(3 * PAGE));
        book.cut(2 * PAGE + 1);
        assert_eq!(book.now().len(), 2 * PAGE + 1);
        book.cut(3 * PAGE);
        assert_eq!(book.now().len(), 2 * PAGE + 1);
    }

    #[test]
    fn a_failed_write_may_be_there_in_part() {
        let (mut book, _) = book();
        let op = write(2 * PAGE, 5);
        let after = effect(&op, book.now()).unwrap();
        let half = after[..2 * PAGE + 100].to_vec();
        assert_eq!(book.seen(half, Some(&op), &op, Loss::Pages(0)).unwrap(), 0);
        assert!(book.seen(after, None, &op, Loss::Pages(0)).is_err());
    }

    #[test]
    fn a_failed_write_changes_nothing_else() {
        let (mut book, _) = book();
        let op = write(PAGE, 5);
        let mut after = effect(&op, book.now()).unwrap();
        after[7] ^= 1;
        assert!(book.seen(after, Some(&op), &op, Loss::Pages(0)).is_err());
    }

    #[test]
    fn the_gpu_adds_to_what_the_disk_had() {
        let (mut book, disk) = book();
        let op = Op::GpuAdd {
            span: Span::new(PAGE, PAGE - 1),
            value: 9,
        };
        let added = effect(&op, &disk).unwrap();
        book.done(&op);
        assert!(book
            .seen(added.clone(), None, &NOTHING, Loss::Pages(1))
            .is_err());
        assert_eq!(book.seen(added, None, &op, Loss::Pages(1)).unwrap(), 1);
    }
}
