// SPDX-License-Identifier: GPL-2.0
//! The tests, grouped by what they do to a file whose pages are on the device.
//!
//! The comment of each says which rule it guards, and in which function of the kernel the rule is kept.

use crate::case::Case;

mod anonymous;
mod bad_disk;
mod bad_input;
mod bad_jobs;
mod clients;
mod clone;
mod counters;
mod data_paths;
mod direct;
mod durability;
mod errors;
mod formats;
mod fuzz;
mod grants;
mod hangs;
mod huge;
mod large;
mod lifecycle;
mod limits;
mod load;
mod locked;
mod mapping;
mod memory;
mod no_memory;
mod other_fs;
mod pins;
mod probes;
mod process;
mod races;
mod read;
mod resize;
mod served;
mod sleep;
mod stress;
mod swap;
mod syncobj;
mod two_gpus;
mod uncached;
mod vanish;
mod write;

/// All tests, in the order in which they are run.
pub(crate) fn all() -> impl Iterator<Item = &'static Case> {
    [
        read::CASES,
        data_paths::CASES,
        write::CASES,
        direct::CASES,
        uncached::CASES,
        pins::CASES,
        resize::CASES,
        clone::CASES,
        mapping::CASES,
        locked::CASES,
        process::CASES,
        probes::CASES,
        served::CASES,
        grants::CASES,
        limits::CASES,
        huge::CASES,
        swap::CASES,
        durability::CASES,
        formats::CASES,
        counters::CASES,
        memory::CASES,
        other_fs::CASES,
        anonymous::CASES,
        bad_input::CASES,
        bad_jobs::CASES,
        clients::CASES,
        syncobj::CASES,
        two_gpus::CASES,
        races::CASES,
        stress::CASES,
        lifecycle::CASES,
        errors::CASES,
        bad_disk::CASES,
        hangs::CASES,
        sleep::CASES,
        vanish::CASES,
        no_memory::CASES,
        fuzz::CASES,
        large::CASES,
        load::CASES,
    ]
    .into_iter()
    .flatten()
}
