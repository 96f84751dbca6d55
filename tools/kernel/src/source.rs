// SPDX-License-Identifier: GPL-2.0

//! The pristine kernel source: Debian's package, or what the user names.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, ensure, Context, Result};
use devcache_stage::{Cache, Stage};
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

/// The package of the base kernel.
const PACKAGE: &str = "linux-source-7.3";

/// Where Debian keeps new kernels, for the sysroot's release and after.
const SUITES: [&str; 6] = [
    "trixie-backports",
    "forky",
    "forky-backports",
    "sid",
    "experimental",
    "trixie",
];

/// A kernel source as it came.
pub struct Source {
    /// Its folder.
    pub dir: PathBuf,
    /// Its files, links and their modes, relative to `dir`.
    pub files: Vec<PathBuf>,
    /// Equal for equal content; a hash, or the name of something that does not change.
    pub id: String,
}

impl Source {
    /// Every file of a folder that was unpacked by this program and so never changes.
    fn unpacked(dir: PathBuf) -> Result<Self> {
        let id = dir
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let files = walk(&dir)?;
        Ok(Self { dir, files, id })
    }
}

/// All files and links below a folder, sorted; `.git` is left out.
fn walk(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = WalkDir::new(dir).sort_by_file_name().into_iter();
    let mut files = Vec::new();
    for entry in entries.filter_entry(|entry| entry.file_name() != ".git") {
        let entry = entry?;
        if !entry.file_type().is_dir() {
            files.push(entry.path().strip_prefix(dir)?.to_owned());
        }
    }
    Ok(files)
}

/// The newest base kernel of the mirror; one fetched earlier is used as it is.
pub fn debian(cache: &Cache, mirror: Option<&str>) -> Result<Source> {
    let sources = cache.path("src");
    fs::create_dir_all(&sources)?;
    if let Some(dir) = newest_unpacked(&sources)? {
        return Source::unpacked(dir);
    }

    let mirror = match mirror {
        Some(mirror) => mirror.to_owned(),
        None => sysroot_mirror()?,
    };
    let apt = Apt::new(cache, &mirror)?;
    let log = cache.log("kernel-source")?;

    let stage = Stage::begin(format!("kernel: look for {PACKAGE}"));
    // Not every suite exists on every mirror, so that the update as a whole may fail.
    let update = log.run(apt.command("apt-get").arg("update"));
    let version = apt.newest()?.ok_or_else(|| {
        let reason = update
            .err()
            .map_or(String::new(), |error| format!("{error:#}\n"));
        anyhow::anyhow!(
            "{reason}no package {PACKAGE} on {mirror} in any of the suites {}; \
             name another mirror with MIRROR=<url> or a kernel source with KSRC=<path>",
            SUITES.join(", ")
        )
    })?;
    stage.done();

    let stage = Stage::begin(format!("kernel: fetch {PACKAGE} {version}"));
    let scratch = tempfile::tempdir_in(&sources)?;
    let package = format!("{PACKAGE}={version}");
    log.run(
        apt.command("apt-get")
            .args(["download", &package])
            .current_dir(scratch.path()),
    )?;
    stage.done();

    let stage = Stage::begin("kernel: unpack");
    let unpacked = scratch.path().join("linux");
    fs::create_dir(&unpacked)?;
    let script = "set -o pipefail; dpkg-deb --fsys-tarfile ./*.deb | \
                  tar -xO ./usr/src/$0.tar.xz | tar -xJ --strip-components=1 -C linux";
    log.run(
        Command::new("bash")
            .args(["-c", script, PACKAGE])
            .current_dir(scratch.path()),
    )?;
    let dir = sources.join(format!("{PACKAGE}_{version}"));
    fs::rename(&unpacked, &dir)?;
    stage.done();
    Source::unpacked(dir)
}

/// A package unpacked earlier.
fn newest_unpacked(sources: &Path) -> Result<Option<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(sources)? {
        let entry = entry?;
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with(&format!("{PACKAGE}_"))
        {
            found.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    Ok(found.into_iter().max().map(|(_, path)| path))
}

/// The mirror that the sysroot was made from.
fn sysroot_mirror() -> Result<String> {
    let list = fs::read_to_string("/etc/apt/sources.list")
        .context("cannot read the sysroot's apt sources")?;
    let mut lines = list.lines().map(str::split_whitespace);
    lines
        .find_map(|mut words| {
            (words.next() == Some("deb"))
                .then(|| words.next())
                .flatten()
        })
        .map(str::to_owned)
        .context("the sysroot's apt sources name no mirror; name one with MIRROR=<url>")
}

/// An apt with indices of its own, so that the sysroot stays as it was made.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn new(cache: &Cache, mirror: &str) -> Result<Self> {
        let dir = cache.path("apt");
        fs::create_dir_all(dir.join("lists/partial"))?;
        let list = SUITES
            .map(|suite| {
                format!(
                    "deb {mirror} {suite} main
"
                )
            })
            .concat();
        fs::write(dir.join("sources.list"), list)?;
        let dir = dir.display();
        let options = vec![
            format!("Dir::State::lists={dir}/lists"),
            format!("Dir::Cache={dir}"),
            format!("Dir::Etc::sourcelist={dir}/sources.list"),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "APT::Update::Error-Mode=any".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
        ];
        Ok(Self { options })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(self.options.iter().flat_map(|option| ["-o", option]));
        command
    }

    /// The newest version of the package; a release goes before a release candidate.
    fn newest(&self) -> Result<Option<String>> {
        let output = self
            .command("apt-cache")
            .args(["madison", PACKAGE])
            .output()?;
        Ok(newest(&String::from_utf8_lossy(&output.stdout)))
    }
}

/// The version to take from the lines `package | version | where`, newest first.
fn newest(madison: &str) -> Option<String> {
    let versions = || {
        madison
            .lines()
            .filter_map(|line| line.split('|').nth(1))
            .map(str::trim)
    };
    let release = versions().find(|version| !version.contains("~rc"));
    release.or_else(|| versions().next()).map(str::to_owned)
}

/// The source that the user names: a tarball, or a folder, of which git's notion of its files is used
/// when it is a git tree.
pub fn given(cache: &Cache, path: &Path, shown: &Path) -> Result<Source> {
    let meta =
        fs::metadata(path).with_context(|| format!("KSRC: cannot read {}", shown.display()))?;
    let source = if meta.is_dir() {
        given_dir(path)?
    } else {
        given_tarball(cache, path, shown, &meta)?
    };
    ensure!(
        source.dir.join("Kbuild").is_file() && source.dir.join("mm/memory.c").is_file(),
        "KSRC: {} is not a Linux source tree",
        shown.display()
    );
    Ok(source)
}

fn given_dir(dir: &Path) -> Result<Source> {
    let files = if dir.join(".git").exists() {
        // The tree may belong to a user other than root.
        let output = Command::new("git")
            .args(["-c", "safe.directory=*", "-C"])
            .arg(dir)
            .args([
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ])
            .output()?;
        if !output.status.success() {
            bail!(
                "KSRC: git cannot list its files: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        let names = String::from_utf8(output.stdout).context("KSRC: a file name is not UTF-8")?;
        let mut files: Vec<PathBuf> = names.split_terminator('\0').map(PathBuf::from).collect();
        // Deleted in the working tree and still in the index.
        files.retain(|file| dir.join(file).symlink_metadata().is_ok());
        files
    } else {
        walk(dir)?
    };
    let mut hash = Sha256::new();
    for file in &files {
        let meta = dir.join(file).symlink_metadata()?;
        hash.update(format!(
            "{}|{}|{}|{}\n",
            file.display(),
            meta.len(),
            meta.mtime(),
            meta.mtime_nsec()
        ));
    }
    Ok(Source {
        dir: dir.to_owned(),
        files,
        id: format!("{:x}", hash.finalize()),
    })
}

fn given_tarball(cache: &Cache, path: &Path, shown: &Path, meta: &fs::Metadata) -> Result<Source> {
    let key = format!(
        "{}|{}|{}|{}",
        shown.display(),
        meta.len(),
        meta.mtime(),
        meta.mtime_nsec()
    );
    let sources = cache.path("src");
    let dir = sources.join(format!("ksrc-{:.16}", format!("{:x}", Sha256::digest(key))));
    if !dir.exists() {
        fs::create_dir_all(&sources)?;
        let stage = Stage::begin(format!("kernel: unpack {}", shown.display()));
        let scratch = tempfile::tempdir_in(&sources)?;
        let unpacked = scratch.path().join("linux");
        fs::create_dir(&unpacked)?;
        let mut tar = Command::new("tar");
        tar.arg("-xf")
            .arg(path)
            .arg("--strip-components=1")
            .arg("-C")
            .arg(&unpacked);
        cache.log("kernel-source")?.run(&mut tar)?;
        fs::rename(&unpacked, &dir)?;
        stage.done();
    }
    Source::unpacked(dir)
}

#[cfg(test)]
mod tests {
    use super::newest;

    #[test]
    fn a_release_goes_before_a_newer_candidate() {
        let found = " linux-source-7.3 | 7.3.5~rc1-1 | m sid\n linux-source-7.3 | 7.3.4-1~bpo13+1 | m bpo\n";
        assert_eq!(newest(found).as_deref(), Some("7.3.4-1~bpo13+1"));
    }

    #[test]
    fn a_candidate_is_better_than_nothing() {
        assert_eq!(
            newest("linux-source-7.3 | 7.3~rc5-1~exp1 | m").as_deref(),
            Some("7.3~rc5-1~exp1")
        );
        assert_eq!(newest(""), None);
    }
}
