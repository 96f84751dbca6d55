// SPDX-License-Identifier: GPL-2.0

//! The kernel's own tests of mm: do they give the same results with the project as without it?
//!
//! Both kernels have the same configuration but for the project's options, and the same tests run on
//! both: the categories of `tools/testing/selftests/mm/run_vmtests.sh`. A test that fails on both is
//! no concern of ours. Categories with a test that does worse with the project are run again on both,
//! each in a guest of its own: what does not repeat is listed and does not count.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use devcache_stage::Stage;

use crate::compare::{Change, Pair, Results, CATEGORY};
use crate::guest::Run;

/// The categories that run in this machine. Those of a line share a guest: what takes long or may
/// bring the kernel down has one of its own.
const GROUPS: [&[&str]; 9] = [
    &[
        "mmap",
        "mremap",
        "mlock",
        "mkdirty",
        "mdwe",
        "memfd_secret",
        "madv_guard",
        "madv_populate",
        "process_madv",
        "process_mrelease",
        "pagemap",
        "soft_dirty",
        "pfnmap",
        "pkey",
        "rmap",
        "vma_merge",
        "hugevm",
        "compaction",
    ],
    &["gup_test"],
    &["cow"],
    &["hmm"],
    &["ksm", "ksm_numa"],
    &["migration"],
    &["userfaultfd"],
    &["thp"],
    &["hugetlb", "memory-failure"],
];

/// The others, and why they do not.
const NOT_RUN: [(&str, &str); 2] = [
    (
        "page_frag",
        "tests a module that is built apart from the kernel",
    ),
    ("vmalloc", "takes too long without KVM"),
];

/// Limit for one guest, in seconds, unless the user gives one.
const LIMIT: &str = "1800";

/// What the guest is started with: enough processors and nodes for the tests of migration.
const MACHINE: [&str; 8] = [
    "--gpu",
    "0",
    "--cpus",
    "4",
    "--memory",
    "4G",
    "--append",
    "numa=fake=2",
];

#[derive(clap::Args)]
pub struct Args {
    /// Folder with what was built with the project: bzImage and guest.
    #[arg(long)]
    patched: PathBuf,

    /// The same without the project.
    #[arg(long)]
    base: PathBuf,

    /// Folder for the console logs.
    #[arg(long)]
    logs: PathBuf,

    /// The categories, separated by spaces, each in a guest of its own; all that can run by default.
    #[arg(long, env = "TESTS", default_value = "")]
    tests: String,
}

/// Runs all of it; says whether nothing is worse with the project.
///
/// The file `table` gets every test with both results.
pub fn check(args: &Args, table: &Path) -> Result<bool> {
    let chosen: Vec<&str> = args.tests.split_whitespace().collect();
    let groups = if chosen.is_empty() {
        GROUPS.to_vec()
    } else {
        chosen.chunks(1).collect()
    };
    let first = run(args, &groups)?;
    let suspects: BTreeSet<&str> = first
        .changes()
        .filter(Change::is_worse)
        .map(|change| change.category())
        .collect();
    let suspects: Vec<&str> = suspects.into_iter().collect();
    let second = if suspects.is_empty() {
        Pair::default()
    } else {
        println!(
            "worse with the project, so run again: {}",
            suspects.join(" ")
        );
        run(args, &suspects.chunks(1).collect::<Vec<_>>())?
    };

    fs::write(table, first.table().join("\n")).with_context(|| table.display().to_string())?;
    if chosen.is_empty() {
        for (category, why) in NOT_RUN {
            println!("not run: {category}, which {why}");
        }
    }
    let done = first.categories();
    let lost: Vec<&str> = groups.into_iter().flatten().copied().collect();
    let lost: Vec<&str> = lost.into_iter().filter(|it| !done.contains(it)).collect();
    for category in &lost {
        println!("not run: {category}, as neither kernel got there");
    }
    let repeated: BTreeSet<String> = second
        .changes()
        .filter(Change::is_worse)
        .map(|change| change.lasting_name())
        .collect();
    let mut worse = 0;
    for change in first.changes() {
        let kind = match change.is_worse() {
            true if repeated.contains(&change.lasting_name()) => {
                worse += 1;
                "worse, twice"
            }
            true => "worse, not when run again",
            false => "not worse",
        };
        println!("{kind}: {change}");
    }
    println!("{}, {worse} for the worse", first.totals());
    Ok(worse == 0 && lost.is_empty())
}

/// Runs groups of categories on both kernels.
fn run(args: &Args, groups: &[&[&str]]) -> Result<Pair> {
    let mut pair = Pair::default();
    for group in groups {
        let stage = Stage::begin(format!("upstream tests: {}", group.join(" ")));
        let base = run_on(&args.base, "base", args, group)?;
        let patched = run_on(&args.patched, "patched", args, group)?;
        stage.done_with(&format!("without the project: {base}; with it: {patched}"));
        pair.add(base, patched);
    }
    Ok(pair)
}

/// Runs one group on one kernel.
fn run_on(built: &Path, which: &str, args: &Args, group: &[&str]) -> Result<Results> {
    let name = format!("upstream-{which}-{}", group.first().unwrap_or(&""));
    let console = args.logs.join(format!("console-{name}.log"));
    let mut run = Run::on(&built.join("bzImage"), &built.join("guest"), console, LIMIT);
    // Some create files where they are; on a file system with a disk, as most users would.
    let command = format!(
        "cp -r /devcache/mm-tests /mnt/ext4/ && cd /mnt/ext4/mm-tests || exit; \
         for category in {}; do echo; echo \"{CATEGORY}$category\"; \
         bash ./run_vmtests.sh -t $category 2>&1; done",
        group.join(" ")
    );
    run.command.args(MACHINE).args(["--", &command]);
    let (of_run, output) = run.finish()?;
    let mut results = Results::parse(&output);
    for outcome in of_run {
        results.insert(group.first().unwrap_or(&""), &outcome.name, outcome.verdict);
    }
    fs::write(args.logs.join(format!("{name}.log")), output)?;
    Ok(results)
}
