// SPDX-License-Identifier: GPL-2.0
//! Controls: for each rule that the kernel can be told to break, a test that fails when it is broken.
//!
//! The switches are `devcache_broken/` in debugfs, there with CONFIG_DEVCACHE_BREAK_RULES. What a
//! broken rule does to the kernel does not end with it: run this in a guest of its own.

use anyhow::Context;
use anyhow::Result;
use std::fs;
use std::path::Path;

/// The folder of the switches.
const SWITCHES: &str = "/sys/kernel/debug/devcache_broken";

/// A rule, and the test that guards it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Control {
    /// Name of the rule's switch.
    pub(crate) rule: &'static str,
    /// Type of the file system to test on.
    pub(crate) fs: &'static str,
    /// Name of the test.
    pub(crate) case: &'static str,
}

/// One for each rule.
pub(crate) const CONTROLS: &[Control] = &[
    control("dirty_shmem", "tmpfs", "admitted_by_another_mapping"),
    control("invalidate", "ext4", "direct_write_against_back"),
    control("any_refs", "ext4", "held_in_a_batch"),
    control("clean_flags", "ext4", "shmem_page_becomes_file_page"),
    control("shrink", "ext4", "limit_drops_clean"),
];

const fn control(rule: &'static str, fs: &'static str, case: &'static str) -> Control {
    Control { rule, fs, case }
}

/// A broken rule. It holds again when this is dropped.
#[derive(Debug)]
pub(crate) struct Broken(&'static str);

impl Broken {
    pub(crate) fn rule(rule: &'static str) -> Result<Self> {
        switch(rule, true).with_context(|| format!("break the rule {rule}"))?;
        Ok(Broken(rule))
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        if let Err(error) = switch(self.0, false) {
            eprintln!("the rule {} stays broken: {error:#}", self.0);
        }
    }
}

/// Makes all rules hold. Where they cannot be broken there is nothing to do.
pub(crate) fn all_hold() {
    for control in CONTROLS {
        let _ = switch(control.rule, false);
    }
}

fn switch(rule: &str, broken: bool) -> Result<()> {
    let path = Path::new(SWITCHES).join(rule);
    fs::write(&path, if broken { "Y" } else { "N" })
        .with_context(|| format!("write to {}", path.display()))
}
