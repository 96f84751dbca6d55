// SPDX-License-Identifier: GPL-2.0

//! Ranges of addresses that a program hands to the driver.
//!
//! Everything here is arithmetic on numbers from user space: it must survive any bytes.

use core::ops::Range;
use kernel::prelude::*;

use crate::{
    hw,
    page_table::LEAF_SPAN, //
};

/// Checks a range that is to be migrated and returns its addresses.
///
/// # Errors
///
/// `EINVAL` if it is empty, misaligned or overflows, `ENOMEM` if the GPU cannot reach all of it,
/// which is more than a program can map.
pub(crate) fn pages(start: u64, length: u64) -> Result<Range<usize>> {
    let end = start.checked_add(length).ok_or(EINVAL)?;
    if length == 0 || (start | length) % hw::PAGE_SIZE != 0 {
        return Err(EINVAL);
    }
    if end > hw::VA_END {
        return Err(ENOMEM);
    }
    Ok(usize::try_from(start)?..usize::try_from(end)?)
}

/// Returns the pages around `va` that are worth making reachable when the access to `va` faulted
/// and `array` contains it: the part of `array` that lies in the same leaf page table.
pub(crate) fn around(va: u64, array: &Range<u64>) -> Range<u64> {
    let base = va - va % LEAF_SPAN;
    let start = array.start.max(base);
    let end = array.end.min(base + LEAF_SPAN);
    start - start % hw::PAGE_SIZE..end.next_multiple_of(hw::PAGE_SIZE)
}

#[cfg(CONFIG_DRM_VSVM_KUNIT_TEST)]
#[kunit_tests(drm_vsvm_range)]
mod tests {
    use super::*;

    #[test]
    fn pages_accepts_aligned_ranges() {
        assert!(pages(0x1000, 0x2000).is_ok_and(|range| range == (0x1000..0x3000)));
        assert!(pages(hw::VA_END - 0x1000, 0x1000).is_ok());
    }

    #[test]
    fn pages_refuses_nonsense() {
        assert!(pages(0x1000, 0) == Err(EINVAL));
        assert!(pages(0x1001, 0x1000) == Err(EINVAL));
        assert!(pages(0x1000, 0xfff) == Err(EINVAL));
        assert!(pages(u64::MAX - 0xfff, 0x1000) == Err(EINVAL));
        assert!(pages(hw::VA_END, 0x1000) == Err(ENOMEM));
    }

    #[test]
    fn around_stays_in_array_and_table() {
        assert_eq!(
            around(0x20_3000, &(0x20_1004..0x20_5008)),
            0x20_1000..0x20_6000
        );
        assert_eq!(
            around(0x20_3000, &(0x1000..0x80_0000)),
            0x20_0000..0x40_0000
        );
        assert_eq!(
            around(0x20_3000, &(0x20_3ffc..0x20_4000)),
            0x20_3000..0x20_4000
        );
    }
}
