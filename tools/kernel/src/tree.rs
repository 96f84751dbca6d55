// SPDX-License-Identifier: GPL-2.0

//! The source tree that is built: the pristine source, `patches/` and the checkout's own files.
//!
//! `make` decides by time stamps, so a file of the tree is written only when its content changes. What
//! differs from the pristine source is small; it is computed first, completely and elsewhere, so that
//! a patch that does not apply leaves the tree as it was. The file `tree.manifest` says which source the
//! tree was made from and which files differ from it; while the tree is being changed it is away, and
//! a tree without it is compared in full.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, ensure, Context, Result};
use devcache_stage::{Cache, Stage};
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

use crate::source::Source;

/// The checkout's folders that are laid over the kernel's.
const OVERLAY: [&str; 7] = [
    "Documentation",
    "drivers",
    "include",
    "lib",
    "mm",
    "rust",
    "tools/testing",
];

/// A tree that is ready to be built.
pub struct Tree {
    /// Its folder.
    pub dir: PathBuf,
    /// Equal for equal content.
    pub id: String,
    /// Equal for equal options to choose from.
    pub kconfig_id: String,
    /// The files that differ from the source.
    pub changed: Vec<PathBuf>,
}

impl Tree {
    /// The source as it came.
    pub fn pristine(source: &Source) -> Self {
        Self {
            dir: source.dir.clone(),
            id: source.id.clone(),
            kconfig_id: source.id.clone(),
            changed: Vec::new(),
        }
    }

    /// Whether this project is in it.
    pub fn is_patched(&self) -> bool {
        !self.changed.is_empty()
    }
}

/// What a path of the tree holds.
#[derive(PartialEq)]
enum Node {
    File { content: Vec<u8>, executable: bool },
    Link(PathBuf),
}

impl Node {
    /// Reads a file or link; `None` when there is none.
    fn read(path: &Path) -> Result<Option<Self>> {
        let meta = match path.symlink_metadata() {
            Ok(meta) => meta,
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                return Ok(None)
            }
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        if meta.is_symlink() {
            return Ok(Some(Self::Link(fs::read_link(path)?)));
        }
        if meta.is_dir() {
            return Ok(None);
        }
        Ok(Some(Self::File {
            content: fs::read(path).with_context(|| path.display().to_string())?,
            executable: meta.permissions().mode() & 0o100 != 0,
        }))
    }

    fn write(&self, path: &Path) -> Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        remove(path)?;
        match self {
            Self::Link(target) => symlink(target, path)?,
            Self::File {
                content,
                executable,
            } => {
                fs::write(path, content)?;
                let mode = if *executable { 0o755 } else { 0o644 };
                fs::set_permissions(path, Permissions::from_mode(mode))?;
            }
        }
        Ok(())
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.with_context(|| path.display().to_string()),
    }
}

/// Makes `path` hold `wanted`; says whether anything changed.
fn update(path: &Path, wanted: Option<&Node>) -> Result<bool> {
    if Node::read(path)?.as_ref() == wanted {
        return Ok(false);
    }
    match wanted {
        Some(node) => node.write(path)?,
        None => remove(path)?,
    }
    Ok(true)
}

/// The paths that differ from the source: their content, or `None` where there is no file.
type Changes = BTreeMap<PathBuf, Option<Node>>;

/// Brings `tree/` to the source plus the checkout's patches and files.
pub fn assemble(cache: &Cache, source: &Source, checkout: &Path) -> Result<Tree> {
    let mut changes = patched(cache, source, checkout)?;
    for (path, node) in overlay(checkout)? {
        let known =
            changes.contains_key(&path) || source.dir.join(&path).symlink_metadata().is_ok();
        ensure!(
            !known,
            "{} exists in the kernel already: change it by a patch",
            path.display()
        );
        changes.insert(path, Some(node));
    }
    let tree = Tree {
        dir: cache.path("tree"),
        id: identify(source, changes.iter()),
        kconfig_id: identify(source, changes.iter().filter(|(path, _)| is_kconfig(path))),
        changed: changes.keys().cloned().collect(),
    };

    let manifest = cache.path("tree.manifest");
    let last = Manifest::read(&manifest)?;
    if last.as_ref().is_some_and(|last| last.id == tree.id) {
        return Ok(tree);
    }
    let stage = Stage::begin("kernel: patched tree");
    fs::create_dir_all(&tree.dir)?;
    remove(&manifest)?;
    for (path, node) in &changes {
        update(&tree.dir.join(path), node.as_ref())?;
    }
    match last.filter(|last| last.source == source.id) {
        Some(last) => {
            for path in last
                .changed
                .iter()
                .filter(|path| !changes.contains_key(*path))
            {
                update(
                    &tree.dir.join(path),
                    Node::read(&source.dir.join(path))?.as_ref(),
                )?;
            }
        }
        None => update_all(&tree.dir, source, &changes)?,
    }
    let now = Manifest {
        id: tree.id.clone(),
        source: source.id.clone(),
        changed: changes.into_keys().collect(),
    };
    now.write(&manifest)?;
    stage.done();
    Ok(tree)
}

/// Compares every file of the tree with the source.
fn update_all(tree: &Path, source: &Source, changes: &Changes) -> Result<()> {
    for path in source
        .files
        .iter()
        .filter(|path| !changes.contains_key(*path))
    {
        update(
            &tree.join(path),
            Node::read(&source.dir.join(path))?.as_ref(),
        )?;
    }
    let wanted: BTreeSet<&Path> = source
        .files
        .iter()
        .chain(changes.keys())
        .map(PathBuf::as_path)
        .collect();
    for entry in WalkDir::new(tree) {
        let entry = entry?;
        if !entry.file_type().is_dir() && !wanted.contains(entry.path().strip_prefix(tree)?) {
            remove(entry.path())?;
        }
    }
    Ok(())
}

/// Applies the patches to copies of the files they touch.
fn patched(cache: &Cache, source: &Source, checkout: &Path) -> Result<Changes> {
    let mut patches: Vec<PathBuf> = WalkDir::new(checkout.join("patches"))
        .max_depth(1)
        .into_iter()
        .filter_map(|entry| entry.ok().map(walkdir::DirEntry::into_path))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "patch")
        })
        .collect();
    patches.sort();

    let scratch = tempfile::tempdir_in(cache.path(""))?;
    let mut touched = BTreeSet::new();
    for patch in &patches {
        for path in touched_by(patch, scratch.path())? {
            if touched.insert(path.clone()) {
                if let Some(node) = Node::read(&source.dir.join(&path))? {
                    node.write(&scratch.path().join(&path))?;
                }
            }
        }
        // A hunk may have moved; its context must be there to the letter.
        let output = Command::new("patch")
            .args([
                "-p1",
                "--fuzz=0",
                "--force",
                "--remove-empty-files",
                "--no-backup-if-mismatch",
            ])
            .arg("--input")
            .arg(patch)
            .current_dir(scratch.path())
            .output()
            .context("cannot run patch")?;
        if !output.status.success() {
            bail!(
                "{}does not apply to this kernel: patches/{}; the tree is left as it was",
                String::from_utf8_lossy(&output.stdout),
                patch.file_name().unwrap_or_default().to_string_lossy()
            );
        }
    }
    let read = |path: PathBuf| Ok((path.clone(), Node::read(&scratch.path().join(path))?));
    touched.into_iter().map(read).collect()
}

/// The files that a patch touches, as git reads it.
fn touched_by(patch: &Path, scratch: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args(["apply", "--numstat", "-z"])
        .arg(patch)
        .current_dir(scratch)
        .output()
        .context("cannot run git")?;
    ensure!(
        output.status.success(),
        "cannot read {}: {}",
        patch.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let text = String::from_utf8(output.stdout)?;
    let paths = text
        .split_terminator('\0')
        .filter_map(|line| line.splitn(3, '\t').nth(2));
    Ok(paths.map(PathBuf::from).collect())
}

/// The checkout's own files.
fn overlay(checkout: &Path) -> Result<BTreeMap<PathBuf, Node>> {
    let mut files = BTreeMap::new();
    for folder in OVERLAY
        .map(|folder| checkout.join(folder))
        .into_iter()
        .filter(|folder| folder.is_dir())
    {
        for entry in WalkDir::new(folder) {
            let entry = entry?;
            let stray = [".orig", ".rej", ".swp", "~"]
                .iter()
                .any(|end| entry.file_name().to_string_lossy().ends_with(end));
            if !stray {
                if let Some(node) = Node::read(entry.path())? {
                    files.insert(entry.path().strip_prefix(checkout)?.to_owned(), node);
                }
            }
        }
    }
    Ok(files)
}

fn is_kconfig(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with("Kconfig"))
}

fn identify<'a>(
    source: &Source,
    changes: impl Iterator<Item = (&'a PathBuf, &'a Option<Node>)>,
) -> String {
    let mut hash = Sha256::new();
    hash.update(&source.id);
    for (path, node) in changes {
        let (kind, content) = match node {
            None => (0, Vec::new()),
            Some(Node::Link(target)) => (1, target.as_os_str().as_encoded_bytes().to_owned()),
            Some(Node::File {
                content,
                executable,
            }) => (2 + u8::from(*executable), content.clone()),
        };
        hash.update(format!("\n{}|{kind}|{}|", path.display(), content.len()));
        hash.update(content);
    }
    format!("{:x}", hash.finalize())
}

/// What is known of the tree as it is.
struct Manifest {
    id: String,
    source: String,
    changed: BTreeSet<PathBuf>,
}

impl Manifest {
    fn read(path: &Path) -> Result<Option<Self>> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let mut lines = text.lines().map(str::to_owned);
        Ok(lines.next().zip(lines.next()).map(|(id, source)| Self {
            id,
            source,
            changed: lines.map(PathBuf::from).collect(),
        }))
    }

    fn write(&self, path: &Path) -> Result<()> {
        let mut text = format!(
            "{}
{}
",
            self.id, self.source
        );
        for path in &self.changed {
            writeln!(text, "{}", path.display())?;
        }
        let new = path.with_extension("new");
        fs::write(&new, text)?;
        Ok(fs::rename(new, path)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(path: &Path, content: &str) -> Result<()> {
        let content = content.as_bytes().to_owned();
        Node::File {
            content,
            executable: false,
        }
        .write(path)
    }

    /// A source of two files, a checkout with one patch and one file of its own.
    fn fixture(root: &Path) -> Result<(Cache, Source, PathBuf)> {
        let dir = root.join("source");
        put(&dir.join("mm/a.c"), "one\ntwo\nthree\n")?;
        put(&dir.join("mm/b.c"), "other\n")?;
        let checkout = root.join("checkout");
        put(
            &checkout.join("patches/0001-a.patch"),
            "--- a/mm/a.c\n+++ b/mm/a.c\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n",
        )?;
        put(&checkout.join("mm/devcache/new.c"), "new\n")?;
        let cache = Cache::new(root.join("cache"));
        fs::create_dir_all(cache.path(""))?;
        let files = vec!["mm/a.c".into(), "mm/b.c".into()];
        Ok((
            cache,
            Source {
                dir,
                files,
                id: "1".to_owned(),
            },
            checkout,
        ))
    }

    fn content(tree: &Tree, path: &str) -> String {
        fs::read_to_string(tree.dir.join(path)).unwrap_or_default()
    }

    #[test]
    fn unchanged_files_keep_their_time() -> Result<()> {
        let root = tempfile::tempdir()?;
        let (cache, source, checkout) = fixture(root.path())?;
        let tree = assemble(&cache, &source, &checkout)?;
        assert_eq!(content(&tree, "mm/a.c"), "one\n2\nthree\n");
        let before = tree.dir.join("mm/a.c").metadata()?.modified()?;

        put(&checkout.join("mm/devcache/new.c"), "newer\n")?;
        let tree = assemble(&cache, &source, &checkout)?;
        assert_eq!(content(&tree, "mm/devcache/new.c"), "newer\n");
        assert_eq!(tree.dir.join("mm/a.c").metadata()?.modified()?, before);
        Ok(())
    }

    #[test]
    fn what_vanishes_from_the_checkout_vanishes_from_the_tree() -> Result<()> {
        let root = tempfile::tempdir()?;
        let (cache, source, checkout) = fixture(root.path())?;
        assemble(&cache, &source, &checkout)?;
        fs::remove_file(checkout.join("patches/0001-a.patch"))?;
        fs::remove_file(checkout.join("mm/devcache/new.c"))?;
        let tree = assemble(&cache, &source, &checkout)?;
        assert_eq!(content(&tree, "mm/a.c"), "one\ntwo\nthree\n");
        assert!(!tree.dir.join("mm/devcache/new.c").exists());
        Ok(())
    }

    #[test]
    fn a_new_source_replaces_the_old_one() -> Result<()> {
        let root = tempfile::tempdir()?;
        let (cache, mut source, checkout) = fixture(root.path())?;
        assemble(&cache, &source, &checkout)?;
        fs::remove_file(source.dir.join("mm/b.c"))?;
        put(&source.dir.join("mm/a.c"), "zero\none\ntwo\nthree\n")?;
        source.files.pop();
        source.id = "2".to_owned();
        let tree = assemble(&cache, &source, &checkout)?;
        assert_eq!(content(&tree, "mm/a.c"), "zero\none\n2\nthree\n");
        assert!(!tree.dir.join("mm/b.c").exists());
        assert!(tree.dir.join("mm/devcache/new.c").exists());
        Ok(())
    }

    #[test]
    fn a_patch_that_does_not_apply_changes_nothing() -> Result<()> {
        let root = tempfile::tempdir()?;
        let (cache, mut source, checkout) = fixture(root.path())?;
        let tree = assemble(&cache, &source, &checkout)?;
        put(&source.dir.join("mm/a.c"), "quite\ndifferent\n")?;
        source.id = "2".to_owned();
        let error = assemble(&cache, &source, &checkout)
            .err()
            .context("it applied")?;
        assert!(error.to_string().contains("patches/0001-a.patch"));
        assert_eq!(content(&tree, "mm/a.c"), "one\n2\nthree\n");
        Ok(())
    }

    #[test]
    fn a_copy_of_a_kernel_file_is_refused() -> Result<()> {
        let root = tempfile::tempdir()?;
        let (cache, source, checkout) = fixture(root.path())?;
        put(&checkout.join("mm/b.c"), "mine\n")?;
        let error = assemble(&cache, &source, &checkout)
            .err()
            .context("it was taken")?;
        assert!(error.to_string().contains("mm/b.c exists"));
        Ok(())
    }
}
