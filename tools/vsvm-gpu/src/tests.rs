// SPDX-License-Identifier: GPL-2.0

//! Tests of the whole device, driven through its registers as by a driver, without QEMU.

mod client;
mod compute;
mod copy;
mod faults;
mod inject;
mod layout;
mod registers;
mod requests;
mod rings;
