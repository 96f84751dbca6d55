// SPDX-License-Identifier: GPL-2.0
//! What the tests and the demonstration of devcache share.
//!
//! A program under test does four things: it opens the GPU ([`gpu::Gpu`]), prepares a file on one
//! of the file systems ([`mount::Mount`]), maps it ([`map::Map`]) and then looks at what the kernel
//! says happened ([`pagemap`], [`stats`]). Results are printed in KTAP ([`ktap`]).
//!
//! The layer is thin on purpose: one method per system call, errors as the kernel gave them.

pub mod bus;
pub mod cgroup;
pub mod child;
pub mod disk;
pub mod extent;
pub mod failing;
pub mod figures;
pub mod gpu;
pub mod gup;
pub mod kmsg;
pub mod ktap;
pub mod map;
pub mod mirror;
pub mod model;
pub mod mount;
pub mod pagemap;
pub mod perf;
pub mod random;
pub mod ring;
pub mod scratch;
pub mod skip;
pub mod stats;
pub mod swap;
pub mod syncobj;
pub mod sys;
pub mod tally;
pub mod uapi;
pub mod uffd;

/// Bytes of a page on the machines this runs on: 4 KiB, as the GPU's.
pub const PAGE: usize = 4096;
