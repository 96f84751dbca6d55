// SPDX-License-Identifier: GPL-2.0
//! Contents for test files: a seeded generator, so that a failure can be repeated.

/// SplitMix64: tiny, fast on an emulated CPU, and no value repeats within a file.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator whose whole sequence follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// A generator with a seed nobody knows beforehand.
    pub fn unpredictable() -> std::io::Result<Self> {
        let mut seed = [0; 8];
        std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut seed)?;
        Ok(Random(u64::from_le_bytes(seed)))
    }

    /// The next value.
    pub fn value(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A value below `end`, which must not be zero.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.value() % end as u64).expect("below a usize")
    }

    /// `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.value().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_same_bytes() {
        assert_eq!(Random::new(7).bytes(100), Random::new(7).bytes(100));
        assert_ne!(Random::new(7).bytes(100), Random::new(8).bytes(100));
    }

    #[test]
    fn length_and_range() {
        let mut random = Random::new(1);
        assert_eq!(random.bytes(13).len(), 13);
        assert!((0..1000).all(|_| random.below(10) < 10));
    }
}
