// SPDX-License-Identifier: GPL-2.0

//! What the kernel complained about.
//!
//! Two witnesses: the text of the console, where every complaint has a headline, and the kernel's taint
//! flags, which are there even when the headline is one that nobody thought of.

use std::fmt::Write;

use anyhow::Result;
use regex::RegexSet;

/// Headlines of complaints.
const COMPLAINTS: &[&str] = &[
    r"\bWARNING: ",
    r"\bBUG: ",
    r"\bkernel BUG at ",
    r"\bBUG\b.*(unable to handle|bad page)",
    r"\bOops\b",
    r"\bKernel panic\b",
    r"general protection fault",
    r"Unable to handle kernel",
    r"\bINFO: (task .* blocked|possible|suspicious|trying to register|lockdep|rcu|inconsistent)",
    r"possible (circular|recursive|irq lock|irq deadlock)",
    r"inconsistent lock state",
    r"suspicious RCU usage",
    r"\bBad (page|rss-counter|swap)",
    r"rcu: .*(stall|detected)",
    r"(soft|hard) ?lockup",
    r"\bKASAN\b: ",
    r"\bKFENCE: ",
    r"\bUBSAN: ",
    r"\bkmemleak: [1-9]",
    r"list_(add|del) corruption",
    r"refcount_t: ",
    r"Object \S+ .*(padding|Redzone) overwritten",
    r"ODEBUG: ",
    r"irq \d+: nobody cared",
    r"scheduling while atomic",
    r"sleeping function called from invalid",
    r"VFS: Busy inodes",
    r"DMA-API: .*(device driver|error)",
    r"DMAR: .*fault",
    r"(EXT4-fs|BTRFS|XFS).*\b(error|corruption|critical|Internal error)\b",
    r"(Buffer )?I/O error",
    r"Out of memory: Killed",
];

/// Lines that look like a complaint and are none.
const HARMLESS: &[&str] = &[
    // KUnit's tests of warnings and the kernel's own startup notes.
    r"lockdep is turned on",
    r"KernelAddressSanitizer initialized",
    // A shutdown that was asked for: how the tests cut the power.
    r"BTRFS critical .*: emergency shutdown$",
    // What btrfs says of writes that come after it, and of those for which the tests leave no memory.
    r"BTRFS error \(device \S+ state E\): ",
    r"BTRFS error .* -12$",
    // The disks that fail when the tests tell them to are the only ones of the device mapper.
    r"\b(EXT4-fs|BTRFS|XFS|JBD2|Buffer I/O error)\b.*\bdm-\d",
];

/// Lines shown from a complaint's headline on.
const SHOWN_AFTER: usize = 40;

/// Lines shown before a complaint's headline.
const SHOWN_BEFORE: usize = 3;

/// How many complaints are shown in full; the first is the one that matters.
const SHOWN_COMPLAINTS: usize = 3;

/// Bits of the kernel's taint mask that say that something went wrong, and their names.
const TAINTS: [(u32, &str); 5] = [
    (4, "machine check"),
    (5, "bad page"),
    (7, "oops"),
    (9, "warning"),
    (14, "lockup"),
];

/// The complaints in the text of a console, each with what is around it; `None` when there are none.
pub fn complaints(console: &str) -> Result<Option<String>> {
    let (bad, harmless) = (RegexSet::new(COMPLAINTS)?, RegexSet::new(HARMLESS)?);
    let lines: Vec<&str> = console.lines().collect();
    let mut report = String::new();
    let mut count = 0;
    let mut next = 0;
    for (number, line) in lines.iter().enumerate() {
        if number < next || !bad.is_match(line) || harmless.is_match(line) {
            continue;
        }
        count += 1;
        next = (number + SHOWN_AFTER).min(lines.len());
        if count <= SHOWN_COMPLAINTS {
            for line in &lines[number.saturating_sub(SHOWN_BEFORE)..next] {
                writeln!(report, "  {line}")?;
            }
            writeln!(report, "  --")?;
        }
    }
    Ok((count > 0).then_some(report))
}

/// What a taint mask says went wrong; `None` when it says nothing of the kind.
pub fn taints(mask: u64) -> Option<String> {
    let names: Vec<&str> = TAINTS
        .iter()
        .filter(|(bit, _)| mask & (1 << bit) != 0)
        .map(|(_, name)| *name)
        .collect();
    (!names.is_empty()).then(|| names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(console: &str) -> bool {
        complaints(console).is_ok_and(|found| found.is_some())
    }

    #[test]
    fn complaints_are_found() {
        for line in [
            "[    1.0] WARNING: CPU: 0 PID: 1 at mm/memory.c:1 f+0x1/0x2",
            "[    1.0] WARNING: possible circular locking dependency detected",
            "[    1.0] BUG: Bad page state in process x  pfn:00001",
            "[    1.0] BUG: KASAN: slab-out-of-bounds in f",
            "[    1.0] kernel BUG at mm/filemap.c:1!",
            "[    1.0] INFO: task x:1 blocked for more than 120 seconds.",
            "[    1.0] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
            "[    1.0] EXT4-fs error (device vda): ext4_lookup:1: x",
            "[    1.0] WARNING: suspicious RCU usage",
        ] {
            assert!(found(line), "{line}");
        }
    }

    #[test]
    fn ordinary_messages_are_not() {
        for line in [
            "[    0.0] Linux version 7.3.4 (devcache@devcache) (Debian clang version 19.1.7)",
            "[    0.0] kasan: KernelAddressSanitizer initialized",
            "[    0.0] Lock dependency validator: Copyright (c) 2006 Red Hat, Inc., Ingo Molnar",
            "[    1.0] EXT4-fs (vda): mounted filesystem with ordered data mode. Quota mode: none.",
            "[    1.0] EXT4-fs (vda): re-mounted r/w. errors=remount-ro",
            "[    1.0] JBD2: I/O error when updating journal superblock for dm-0-8.",
            "[    1.0] XFS (dm-0): log I/O error -5",
            "[    1.0] vsvm 0000:00:05.0: 256 MiB of video memory",
            "[    1.0] FAULT_INJECTION: forcing a failure.",
            "[    1.0] # devcache: pass:12 fail:0 skip:0 total:12",
        ] {
            assert!(!found(line), "{line}");
        }
    }

    #[test]
    fn a_complaint_comes_with_its_trace() -> Result<()> {
        let found = complaints("before\nWARNING: x\ntrace\n")?.unwrap_or_default();
        assert!(found.contains("before") && found.contains("trace"));
        Ok(())
    }

    #[test]
    fn taints_that_tests_and_modules_set_are_no_failure() {
        assert_eq!(taints((1 << 12) | (1 << 18)), None);
        assert_eq!(taints(1 << 9).as_deref(), Some("warning"));
    }
}
