// SPDX-License-Identifier: GPL-2.0

//! Configures and compiles a tree.
//!
//! The build folder's file `devcache.stamp` names the inputs that it was completed from: with equal
//! inputs there is nothing to do, not even to ask `make`.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::SystemTime;

use anyhow::{Context, Result};
use devcache_stage::{Cache, Log, Stage};
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

use crate::config::{self, Flavour};
use crate::tree::Tree;

/// Lines shown of a compiler's warning.
const SHOWN_OF_WARNING: usize = 8;

/// A build folder with a finished kernel.
pub struct Built {
    dir: PathBuf,
}

impl Built {
    /// Copies the kernel to `out/bzImage` and what the guest needs, `lib/modules` and `bin`, to
    /// `out/guest`.
    pub fn copy_to(&self, out: &Path) -> Result<()> {
        copy(
            &self.dir.join("arch/x86/boot/bzImage"),
            &out.join("bzImage"),
        )?;
        copy(&self.dir.join("warnings"), &out.join("warnings"))?;
        let guest = self.dir.join("guest");
        for entry in WalkDir::new(&guest) {
            let entry = entry?;
            if entry.file_type().is_file() {
                let name = entry.path().strip_prefix(&guest)?;
                copy(entry.path(), &out.join("guest").join(name))?;
            }
        }
        Ok(())
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(from, to)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// One kernel being built.
struct Build<'a> {
    tree: &'a Tree,
    dir: PathBuf,
    flavour: Flavour,
    flags: &'static [&'static str],
    log: Log,
}

/// Builds the kernel unless it is built already.
pub fn build(cache: &Cache, tree: &Tree, checkout: &Path, flavour: Flavour) -> Result<Built> {
    let base = if tree.is_patched() { "" } else { "-base" };
    let name = format!("{}{base}", flavour.name());
    let dir = cache.path(format!("build-{name}"));
    let fragments = flavour.fragments(checkout, tree.is_patched());
    let flags = flags(flavour, tree);
    let inputs = digest(&tree.id, &fragments, flags)?;
    let stamp = dir.join("devcache.stamp");
    if read_if_there(&stamp)?.as_ref() == Some(&inputs) {
        println!("kernel: up to date ({name})");
        return Ok(Built { dir });
    }

    fs::create_dir_all(&dir)?;
    let log = cache.log(&format!("kernel-{name}"))?;
    let build = Build {
        tree,
        dir,
        flavour,
        flags,
        log,
    };
    match fs::remove_file(&stamp) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let configured = build.dir.join("devcache.configured");
    let wanted = digest(&tree.kconfig_id, &fragments, flags)?;
    if read_if_there(&configured)?.as_ref() != Some(&wanted) {
        let stage = Stage::begin(format!("kernel: configure ({name})"));
        build.configure(&fragments)?;
        fs::write(configured, wanted)?;
        stage.done();
    }
    let stage = Stage::begin(format!("kernel: build ({name})"));
    build.compile()?;
    stage.done();
    let said = fs::read_to_string(build.log.path())?;
    let warnings = warnings(&said, &tree.changed);
    let text: String = warnings.iter().flat_map(|(_, text)| [text, "\n"]).collect();
    fs::write(build.dir.join("warnings"), &text)?;
    if warnings.is_empty() {
        fs::write(&stamp, inputs)?;
    } else {
        // Compiled again next time, or the warning would be forgotten.
        for (path, _) in warnings {
            File::options()
                .append(true)
                .open(tree.dir.join(path))?
                .set_modified(SystemTime::now())?;
        }
        eprint!("{text}");
    }
    Ok(Built { dir: build.dir })
}

/// Compiles the kernel's own tests of mm and puts what they need to run into `out`.
///
/// They are those of the tree that `built` was built from.
pub fn mm_tests(cache: &Cache, tree: &Tree, built: &Built, out: &Path) -> Result<()> {
    let stage = Stage::begin("kernel: tests of mm");
    let log = cache.log("mm-tests")?;
    let output = built.dir.join("selftests/mm");
    fs::create_dir_all(&output)?;
    log.run(Command::new("make").current_dir(&tree.dir).args([
        "LLVM=1",
        &format!("O={}", built.dir.display()),
        "headers",
    ]))?;
    log.run(
        Command::new("make")
            .current_dir(tree.dir.join("tools/testing/selftests/mm"))
            .args(["LLVM=1", "install"])
            .arg(format!("OUTPUT={}", output.display()))
            .arg(format!("INSTALL_PATH={}", out.display()))
            .arg(format!(
                "KHDR_INCLUDES=-isystem {}",
                built.dir.join("usr/include").display()
            )),
    )?;
    stage.done();
    Ok(())
}

/// The warnings in a log that are about files of ours, each with its file.
fn warnings<'a>(log: &'a str, ours: &'a [PathBuf]) -> Vec<(&'a Path, &'a str)> {
    let mut starts = vec![0];
    starts.extend(log.match_indices('\n').map(|(at, _)| at + 1));
    let mut found = Vec::new();
    for (number, start) in starts.iter().enumerate() {
        // The file is named in the same line or, by rustc, in one of the next.
        let rest = &log[*start..];
        if !rest
            .lines()
            .next()
            .is_some_and(|line| line.contains("warning"))
        {
            continue;
        }
        let end = starts
            .get(number + SHOWN_OF_WARNING)
            .map_or(log.len(), |end| end - 1);
        let text = &log[*start..end];
        let named = |path: &&PathBuf| {
            text.lines()
                .take(3)
                .any(|line| line.contains(&*path.to_string_lossy()))
        };
        if let Some(path) = ours.iter().find(named) {
            found.push((path.as_path(), text));
        }
    }
    found
}

/// What is given to `make`, beyond what no result depends on.
fn flags(flavour: Flavour, tree: &Tree) -> &'static [&'static str] {
    if flavour.is_checked() && tree.is_patched() {
        // Clippy compiles the Rust code. Warnings are no errors: the base kernel has some.
        &["CLIPPY=1"]
    } else {
        &[]
    }
}

/// A hash of what decides a result: something of the tree, the fragments, the flags and the
/// compilers.
fn digest(of_tree: &str, fragments: &[PathBuf], flags: &[&str]) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(of_tree);
    hash.update(flags.join(" "));
    for fragment in fragments {
        hash.update(fs::read(fragment).with_context(|| fragment.display().to_string())?);
    }
    for compiler in ["clang", "rustc"] {
        hash.update(Command::new(compiler).arg("--version").output()?.stdout);
    }
    Ok(format!("{:x}\n", hash.finalize()))
}

fn read_if_there(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        other => Ok(Some(other?)),
    }
}

impl Build<'_> {
    fn make(&self) -> Command {
        let mut make = Command::new("make");
        make.current_dir(&self.tree.dir)
            .args(["LLVM=1", "CC=ccache clang"])
            .arg(format!("O={}", self.dir.display()))
            .arg(format!(
                "-j{}",
                thread::available_parallelism().map_or(1, usize::from)
            ))
            // Nothing of this machine or moment goes into the kernel, so that ccache hits.
            .args(["KBUILD_BUILD_USER=devcache", "KBUILD_BUILD_HOST=devcache"]);
        make.args(self.flags);
        make
    }

    /// Writes `.config` when the result differs from what is there.
    fn configure(&self, fragments: &[PathBuf]) -> Result<()> {
        let new = self.dir.join("config.new");
        let with_new = |target: &str| {
            let mut make = self.make();
            make.env("KCONFIG_CONFIG", &new).arg(target);
            make
        };
        self.log.run(&mut with_new("tinyconfig"))?;
        let mut merge = Command::new("scripts/kconfig/merge_config.sh");
        merge
            .current_dir(&self.tree.dir)
            .env("KCONFIG_CONFIG", &new)
            .arg("-m")
            .arg(&new)
            .args(fragments);
        self.log.run(&mut merge)?;
        self.log.run(&mut with_new("olddefconfig"))?;
        config::verify(&new, fragments)?;

        let current = self.dir.join(".config");
        if read_if_there(&current)? != read_if_there(&new)? {
            fs::rename(&new, &current)?;
        }
        // Says what is missing, which a kernel without Rust would not.
        self.log.run(self.make().arg("rustavailable"))
    }

    fn compile(&self) -> Result<()> {
        self.log.run(self.make().args(["bzImage", "modules"]))?;
        let guest = self.dir.join("guest");
        match fs::remove_dir_all(&guest) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let path = format!("INSTALL_MOD_PATH={}", guest.display());
        self.log.run(
            self.make()
                .args([&path, "INSTALL_MOD_STRIP=1", "modules_install"]),
        )?;
        if self.flavour.is_checked() && self.tree.is_patched() {
            self.compile_hmm_tests(&guest.join("bin"))?;
        }
        Ok(())
    }

    /// The kernel's own tests of device memory, which go through lib/test_hmm.c.
    fn compile_hmm_tests(&self, bin: &Path) -> Result<()> {
        let output = self.dir.join("selftests");
        fs::create_dir_all(&output)?;
        let program = output.join("hmm-tests");
        let mut make = Command::new("make");
        make.current_dir(self.tree.dir.join("tools/testing/selftests/mm"))
            .arg("LLVM=1")
            .arg(format!("OUTPUT={}", output.display()))
            .arg(&program);
        self.log.run(&mut make)?;
        copy(&program, &bin.join("hmm-tests"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_about_our_files_are_found() {
        let log = "  CC mm/a.o\n/x/tree/mm/a.c:1:2: warning: unused\n  CLIPPY\nwarning: unsafe block\n  \
                   --> /x/tree/mm/devcache/b.rs:1:1\nwarning: theirs\n --> /x/tree/rust/kernel/cpufreq.rs:1\n";
        let ours = [PathBuf::from("mm/a.c"), PathBuf::from("mm/devcache/b.rs")];
        let found: Vec<&Path> = warnings(log, &ours)
            .into_iter()
            .map(|(path, _)| path)
            .collect();
        assert_eq!(found, [Path::new("mm/a.c"), Path::new("mm/devcache/b.rs")]);
    }
}
