// SPDX-License-Identifier: GPL-2.0
//! What an operation that succeeds makes of a file: pure, so that it can be asked of any contents the
//! file may have.

use crate::step::Op;
use crate::step::MAX;
use devcache_selftests::model::add_u32;
use devcache_selftests::random::Random;
use devcache_selftests::PAGE;

/// What is written for a seed: something that can be compressed, or not.
pub(crate) fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    match seed % 4 {
        0 => random.bytes(61).into_iter().cycle().take(len).collect(),
        _ => random.bytes(len),
    }
}

/// Contents with other bytes from `at` on; longer, if need be.
fn with(contents: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut after = contents.to_vec();
    let end = at + bytes.len();
    if after.len() < end {
        after.resize(end, 0);
    }
    after[at..end].copy_from_slice(bytes);
    after
}

/// The parts that a GPU's copy is from and to: of one length, and apart, since what a copy to itself
/// gives depends on its order.
pub(crate) fn parts(op: &Op, size: usize) -> Option<(usize, usize, usize)> {
    let Op::GpuCopy { from, to } = op else {
        return None;
    };
    let (from, to) = (from.within(size, 4), to.within(size, 4));
    let len = from.len().min(to.len());
    let apart = from.start + len <= to.start || to.start + len <= from.start;
    (apart && len != 0).then_some((from.start, to.start, len))
}

/// What the file has after `op`; none if that is what it had before.
pub(crate) fn effect(op: &Op, contents: &[u8]) -> Option<Vec<u8>> {
    let size = contents.len();
    let after = match *op {
        Op::Write { span, seed } => {
            let range = span.within(MAX, 1);
            with(contents, range.start, &bytes(seed, range.len()))
        }
        Op::DirectWrite { span, seed } => {
            let range = span.within(MAX, PAGE);
            with(contents, range.start, &bytes(seed, range.len()))
        }
        Op::MapWrite { span, seed } | Op::ForkWrite { span, seed } => {
            let range = span.within(size, 1);
            with(contents, range.start, &bytes(seed, range.len()))
        }
        Op::MirrorWrite { span, seed } => {
            let range = span.within(size, PAGE);
            with(contents, range.start, &bytes(seed, range.len()))
        }
        Op::Truncate(len) => {
            let mut after = contents.to_vec();
            after.resize(len, 0);
            after
        }
        Op::Punch(span) => {
            let range = span.within(MAX, 1);
            let end = range.end.min(size);
            let mut after = contents.to_vec();
            after[range.start.min(end)..end].fill(0);
            after
        }
        Op::Zero(span) => {
            let range = span.within(MAX, 1);
            with(contents, range.start, &vec![0; range.len()])
        }
        Op::Collapse(span) => {
            let range = span.within(size, PAGE);
            // It may not reach the end of the file.
            if range.is_empty() || range.end >= size {
                return None;
            }
            [&contents[..range.start], &contents[range.end..]].concat()
        }
        Op::Insert(span) => {
            let range = span.within(size, PAGE);
            if range.is_empty() || size + range.len() > MAX {
                return None;
            }
            let (before, behind) = contents.split_at(range.start);
            [before, &vec![0; range.len()], behind].concat()
        }
        Op::GpuFill { span, value } => {
            let range = span.within(size, 4);
            let bytes = value.to_le_bytes().repeat(range.len() / 4);
            with(contents, range.start, &bytes)
        }
        Op::GpuAdd { span, value } => {
            let mut after = contents.to_vec();
            add_u32(&mut after[span.within(size, 4)], value);
            after
        }
        Op::GpuCopy { .. } => {
            let (from, to, len) = parts(op, size)?;
            let mut after = contents.to_vec();
            after.copy_within(from..from + len, to);
            after
        }
        _ => return None,
    };
    Some(after)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::Span;

    #[test]
    fn what_is_written() {
        let span = Span::new(2, 1);
        let seed = 5;
        let after = effect(&Op::Write { span, seed }, b"abc").unwrap();
        assert_eq!(after, [b"ab", &bytes(5, 2)[..]].concat());
        let after = effect(&Op::MapWrite { span, seed }, b"abc").unwrap();
        assert_eq!(after, [b"ab", &bytes(5, 1)[..]].concat());
        assert_eq!(effect(&Op::Read(span), b"abc"), None);
    }

    #[test]
    fn sizes() {
        assert_eq!(effect(&Op::Truncate(4), b"ab").unwrap(), b"ab\0\0");
        assert_eq!(
            effect(&Op::Punch(Span::new(1, 9)), b"abcd").unwrap(),
            b"a\0\0\0"
        );
        let mut pages = vec![1; PAGE];
        pages.extend(vec![2; 2 * PAGE]);
        let first = Span::new(0, 0);
        let collapsed = effect(&Op::Collapse(first), &pages).unwrap();
        assert_eq!(collapsed, vec![2; 2 * PAGE]);
        let inserted = effect(&Op::Insert(first), &collapsed).unwrap();
        assert_eq!(inserted, [vec![0; PAGE], vec![2; 2 * PAGE]].concat());
        // All of the file.
        assert_eq!(effect(&Op::Collapse(first), &pages[..PAGE]), None);
    }

    #[test]
    fn copies_do_not_overlap() {
        let (from, to) = (Span::new(0, 7), Span::new(8, 7));
        let after = effect(&Op::GpuCopy { from, to }, b"abcdefgh12345678").unwrap();
        assert_eq!(after, b"abcdefghabcdefgh");
        let to = Span::new(4, 7);
        assert_eq!(effect(&Op::GpuCopy { from, to }, b"abcdefgh12345678"), None);
    }
}
