// SPDX-License-Identifier: GPL-2.0

//! Halves of 64-bit registers.

/// Access to the halves of a word.
pub(crate) trait Half {
    /// Returns bits 0 to 31.
    fn low(self) -> u32;
    /// Returns bits 32 to 63.
    fn high(self) -> u32;
    /// Replaces bits 0 to 31.
    fn set_low(&mut self, value: u32);
    /// Replaces bits 32 to 63.
    fn set_high(&mut self, value: u32);
}

const LOW: u64 = 0xffff_ffff;

impl Half for u64 {
    fn low(self) -> u32 {
        // CAST: Truncation is the purpose.
        self as u32
    }

    fn high(self) -> u32 {
        (self >> 32).low()
    }

    fn set_low(&mut self, value: u32) {
        *self = (*self & !LOW) | u64::from(value);
    }

    fn set_high(&mut self, value: u32) {
        *self = (*self & LOW) | (u64::from(value) << 32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_independent() {
        let mut word = 0x0123_4567_89ab_cdef_u64;
        assert_eq!((word.low(), word.high()), (0x89ab_cdef, 0x0123_4567));
        word.set_low(1);
        word.set_high(2);
        assert_eq!(word, 0x2_0000_0001);
    }
}
