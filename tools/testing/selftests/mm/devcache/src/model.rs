// SPDX-License-Identifier: GPL-2.0
//! What the GPU computes, on the CPU: to know what has to come out.

/// The checksum of `DRM_VSVM_OP_CHECKSUM`, running: FNV-1a, 64 bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum(u64);

const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

impl Default for Checksum {
    fn default() -> Self {
        Checksum(OFFSET)
    }
}

impl Checksum {
    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(PRIME);
        }
    }

    /// The checksum of everything taken in so far.
    pub fn value(self) -> u64 {
        self.0
    }

    /// The checksum of `bytes`.
    pub fn of(bytes: &[u8]) -> u64 {
        let mut sum = Checksum::default();
        sum.update(bytes);
        sum.value()
    }
}

/// Adds `value` to every element of `bytes`, as `DRM_VSVM_OP_ADD` does with u32.
pub fn add_u32(bytes: &mut [u8], value: u32) {
    for element in bytes.chunks_exact_mut(4) {
        let sum = u32::from_le_bytes(element.try_into().expect("4 bytes")).wrapping_add(value);
        element.copy_from_slice(&sum.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn add() {
        let mut bytes = [0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0];
        add_u32(&mut bytes, 2);
        assert_eq!(bytes, [1, 0, 0, 0, 3, 0, 0, 0]);
    }

    #[test]
    fn known_values() {
        // From the FNV authors' test vectors.
        assert_eq!(Checksum::of(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(Checksum::of(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(Checksum::of(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn pieces_make_the_whole() {
        let mut sum = Checksum::default();
        sum.update(b"foo");
        sum.update(b"bar");
        assert_eq!(sum.value(), Checksum::of(b"foobar"));
    }
}
