// SPDX-License-Identifier: GPL-2.0

//! Tests and style checks that need no guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use walkdir::WalkDir;

use crate::ktap::Outcome;
use crate::{libtest, report};

/// What checkpatch says and is not followed.
const CHECKPATCH_IGNORED: [&str; 3] = [
    // Patches are signed off when they are mailed.
    "MISSING_SIGN_OFF",
    // A function that is written in Rust can be exported to modules only from another file, in C.
    "EXPORT_SYMBOL",
    // MAINTAINERS of the kernel is not touched before the project is part of it.
    "FILE_PATH_CHANGES",
];

/// Files that need no licence line: texts about the project, patches (of files that have one) and what
/// tools write.
const WITHOUT_SPDX: [&str; 8] = [
    "md",
    "patch",
    "lock",
    "png",
    "svg",
    "COPYING",
    "MAINTAINERS",
    "spdx-exempt",
];

#[derive(clap::Args)]
pub struct Args {
    /// The checkout.
    #[arg(long)]
    checkout: PathBuf,

    /// The patched kernel tree, for its checkers.
    #[arg(long)]
    tree: PathBuf,

    /// The compilers' warnings about our part of the kernel.
    #[arg(long)]
    warnings: PathBuf,
}

/// Runs all of it.
pub fn check(args: &Args, results: &Path) -> Result<()> {
    let sources = Sources::find(args)?;
    report::group(results, "host", || host_tests(args))?;
    report::group(results, "style", || {
        let mut outcomes = vec![
            sources.rustfmt()?,
            clippy(args)?,
            sources.shellcheck()?,
            sources.spdx()?,
            kernel_warnings(args)?,
        ];
        outcomes.extend(sources.checkpatch()?);
        outcomes.extend(sources.kernel_doc()?);
        Ok(outcomes)
    })
}

/// Runs a checker: it passes when it succeeds.
fn run(name: &str, command: &mut Command) -> Result<Outcome> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    let said = [output.stdout, output.stderr].concat();
    Ok(Outcome::new(
        name,
        output.status.success(),
        &String::from_utf8_lossy(&said),
    ))
}

fn cargo(args: &Args, what: &str) -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(args.checkout.join("tools")).args([
        what,
        "--workspace",
        "--release",
        "--locked",
    ]);
    cargo
}

fn host_tests(args: &Args) -> Result<Vec<Outcome>> {
    let output = cargo(args, "test")
        .arg("--no-fail-fast")
        .output()
        .context("cannot run cargo")?;
    let mut outcomes = libtest::parse(&String::from_utf8_lossy(&output.stdout));
    let failed = outcomes
        .iter()
        .any(|outcome| outcome.verdict == crate::ktap::Verdict::Failed);
    if !output.status.success() && !failed {
        outcomes.push(Outcome::new(
            "cargo test",
            false,
            &String::from_utf8_lossy(&output.stderr),
        ));
    }
    Ok(outcomes)
}

fn clippy(args: &Args) -> Result<Outcome> {
    run(
        "clippy",
        cargo(args, "clippy").args(["--quiet", "--all-targets", "--", "-D", "warnings"]),
    )
}

/// The kernel was compiled with clippy; what it and the C compiler said.
fn kernel_warnings(args: &Args) -> Result<Outcome> {
    let text = fs::read_to_string(&args.warnings)
        .context("the kernel's build left no list of warnings")?;
    Ok(Outcome::new(
        "kernel compiles without warnings",
        text.is_empty(),
        &text,
    ))
}

/// The files of the checkout.
struct Sources<'a> {
    args: &'a Args,
    files: Vec<PathBuf>,
}

impl<'a> Sources<'a> {
    fn find(args: &'a Args) -> Result<Self> {
        let mut files = Vec::new();
        for entry in WalkDir::new(&args.checkout).sort_by_file_name() {
            let entry = entry?;
            if entry.file_type().is_file() {
                files.push(entry.path().strip_prefix(&args.checkout)?.to_owned());
            }
        }
        Ok(Self { args, files })
    }

    /// Files with one of the extensions.
    fn with(&self, extensions: &'static [&str]) -> impl Iterator<Item = &Path> {
        let wanted = |path: &Path| {
            path.extension()
                .is_some_and(|has| extensions.iter().any(|want| has == *want))
        };
        self.files
            .iter()
            .map(PathBuf::as_path)
            .filter(move |path| wanted(path))
    }

    fn rustfmt(&self) -> Result<Outcome> {
        let mut rustfmt = Command::new("rustfmt");
        rustfmt
            .current_dir(&self.args.checkout)
            .args(["--check", "-l"]);
        run("rustfmt", rustfmt.args(self.with(&["rs"])))
    }

    fn shellcheck(&self) -> Result<Outcome> {
        let mut shellcheck = Command::new("shellcheck");
        shellcheck
            .current_dir(&self.args.checkout)
            .arg("--external-sources");
        run(
            "shellcheck",
            shellcheck.args(self.with(&["sh"])).arg(".ci/run"),
        )
    }

    /// Every file says its licence in one of its first lines.
    fn spdx(&self) -> Result<Outcome> {
        let mut without = String::new();
        for file in &self.files {
            let kind = file.extension().or(file.file_name()).unwrap_or_default();
            if WITHOUT_SPDX.iter().any(|exempt| kind == *exempt) {
                continue;
            }
            let content = fs::read(self.args.checkout.join(file))?;
            let text = String::from_utf8_lossy(&content);
            if !text
                .lines()
                .take(3)
                .any(|line| line.contains("SPDX-License-Identifier:"))
            {
                without += &format!("{}: no SPDX line\n", file.display());
            }
        }
        Ok(Outcome::new("licence lines", without.is_empty(), &without))
    }

    /// C and Kconfig files, and the patches; of our own files only those that go into the kernel.
    fn checkpatch(&self) -> Result<Vec<Outcome>> {
        let kconfig = self
            .files
            .iter()
            .map(PathBuf::as_path)
            .filter(|path| path.ends_with("Kconfig"));
        let files = self
            .with(&["c", "h"])
            .chain(kconfig)
            .map(|file| (file, true));
        let patches = self.with(&["patch"]).map(|file| (file, false));
        let check = |(file, whole): (&Path, bool)| {
            let mut checkpatch = Command::new("scripts/checkpatch.pl");
            checkpatch
                .current_dir(&self.args.tree)
                .args(["--quiet", "--show-types", "--terse"]);
            checkpatch.args(["--ignore", &CHECKPATCH_IGNORED.join(",")]);
            if whole {
                checkpatch.arg("--file");
            }
            run(
                &format!("checkpatch {}", file.display()),
                checkpatch.arg(self.args.checkout.join(file)),
            )
        };
        files.chain(patches).map(check).collect()
    }

    fn kernel_doc(&self) -> Result<Vec<Outcome>> {
        let check = |file: &Path| {
            let mut kernel_doc = Command::new("scripts/kernel-doc");
            kernel_doc
                .current_dir(&self.args.tree)
                .args(["-none", "-Werror"]);
            run(
                &format!("kernel-doc {}", file.display()),
                kernel_doc.arg(self.args.checkout.join(file)),
            )
        };
        self.with(&["h"]).map(check).collect()
    }
}
