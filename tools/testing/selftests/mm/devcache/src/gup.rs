// SPDX-License-Identifier: GPL-2.0
//! The kernel's own test device for get_user_pages() (CONFIG_GUP_TEST).

use crate::map::Map;
use crate::sys;
use crate::PAGE;
use std::fs::File;
use std::io;
use std::ops::Range;

/// Where the device is.
const DEVICE: &str = "/sys/kernel/debug/gup_test";

/// `struct gup_test` of mm/gup_test.h.
#[repr(C)]
#[derive(Debug, Default)]
struct GupTest {
    get_usec: u64,
    put_usec: u64,
    addr: u64,
    size: u64,
    pages_per_call: u32,
    gup_flags: u32,
    test_flags: u32,
    which_pages: [u32; 8],
}

/// GUP_BASIC_TEST: get pages and put them again.
const BASIC_TEST: libc::Ioctl = nix::request_code_readwrite!(b'g', 4, size_of::<GupTest>());

/// FOLL_NOWAIT: a fault that would have to wait fails.
const NOWAIT: u32 = 1 << 4;

/// Gets references to pages of a mapping one by one, and puts them. Returns how many it got before the
/// first that could not be had.
///
/// # Errors
///
/// `NotFound` if the kernel has no such device.
pub fn get_pages(map: &Map, pages: Range<usize>, nowait: bool) -> io::Result<usize> {
    let device = File::open(DEVICE)?;
    let mut test = GupTest {
        addr: map.page_addr(pages.start) as u64,
        size: (pages.len() * PAGE) as u64,
        pages_per_call: 1,
        gup_flags: if nowait { NOWAIT } else { 0 },
        ..GupTest::default()
    };
    sys::ioctl(&device, BASIC_TEST, &mut test)?;
    Ok(usize::try_from(test.size).expect("not more than was asked for") / PAGE)
}
