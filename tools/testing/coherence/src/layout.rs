// SPDX-License-Identifier: GPL-2.0
//! Where the cells are.

use crate::stamp::stamp;
use devcache_selftests::PAGE;
use std::ops::Range;

/// Words of the cells that share pages, in turn. They lie one behind the other, so that some reach
/// into the next page.
const WORDS: [usize; 6] = [1, 5, 16, 61, 200, 700];

/// Of so many cells, one has its pages for itself.
const WHOLE_AMONG: usize = 8;

/// Pages of these, in turn.
const PAGES: [usize; 3] = [1, 4, 16];

/// Bytes of a word: the GPU's element.
pub(crate) const WORD: usize = 4;

/// Part of the file that has one owner at a time.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    pub(crate) number: usize,
    /// Its bytes in the file.
    pub(crate) bytes: Range<usize>,
    /// It shares its pages with no other cell, so it can also be written directly.
    pub(crate) whole: bool,
}

impl Cell {
    /// Words it has.
    pub(crate) fn words(&self) -> usize {
        self.bytes.len() / WORD
    }

    /// Pages that it has bytes in.
    pub(crate) fn pages(&self) -> Range<usize> {
        self.bytes.start / PAGE..self.bytes.end.div_ceil(PAGE)
    }
}

/// All cells. What lies between them stays zero.
#[derive(Debug)]
pub(crate) struct Layout(Vec<Cell>);

impl Layout {
    /// Places so many cells.
    pub(crate) fn new(count: usize) -> Self {
        let packed = count - count / WHOLE_AMONG;
        let mut cells = Vec::with_capacity(count);
        let mut end: usize = 0;
        for number in 0..count {
            let whole = number >= packed;
            let (start, len) = match whole {
                false => (end, WORDS[number % WORDS.len()] * WORD),
                true => {
                    let pages = PAGES[(number - packed) % PAGES.len()];
                    (end.next_multiple_of(PAGE), pages * PAGE)
                }
            };
            end = start + len;
            cells.push(Cell {
                number,
                bytes: start..end,
                whole,
            });
        }
        Layout(cells)
    }

    /// The cells in the order of the file.
    pub(crate) fn cells(&self) -> &[Cell] {
        &self.0
    }

    /// Pages of the file.
    pub(crate) fn pages(&self) -> usize {
        self.0.last().map_or(0, |cell| cell.pages().end)
    }

    /// What the file has when each cell has this version.
    pub(crate) fn image(&self, version: impl Fn(&Cell) -> u32) -> Vec<u8> {
        let mut image = vec![0; self.pages() * PAGE];
        for cell in &self.0 {
            let word = stamp(cell.number, version(cell)).to_le_bytes();
            image[cell.bytes.clone()].copy_from_slice(&word.repeat(cell.words()));
        }
        image
    }

    /// The cell that a byte of the file belongs to.
    pub(crate) fn at(&self, byte: usize) -> Option<&Cell> {
        self.0.iter().find(|cell| cell.bytes.contains(&byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_apart() {
        let layout = Layout::new(56);
        for pair in layout.cells().windows(2) {
            assert!(pair[0].bytes.end <= pair[1].bytes.start);
        }
        let whole = layout.cells().iter().filter(|cell| cell.whole);
        for cell in whole.clone() {
            assert_eq!(
                cell.bytes,
                cell.pages().start * PAGE..cell.pages().end * PAGE
            );
        }
        assert_eq!(whole.count(), 7);
        let packed = layout.cells().iter().filter(|cell| !cell.whole);
        let across = packed.filter(|cell| cell.pages().len() > 1);
        assert!(across.count() > 3, "some reach into the next page");
    }

    #[test]
    fn image_and_place() {
        let layout = Layout::new(16);
        let image = layout.image(|cell| cell.number as u32);
        assert_eq!(image.len(), layout.pages() * PAGE);
        let cell = &layout.cells()[3];
        assert_eq!(
            image[cell.bytes.start..][..WORD],
            stamp(cell.number, 3).to_le_bytes()
        );
        assert_eq!(layout.at(cell.bytes.end - 1).unwrap().number, 3);
        assert_eq!(layout.at(cell.bytes.end).unwrap().number, 4);
        assert!(layout.at(image.len()).is_none());
    }
}
