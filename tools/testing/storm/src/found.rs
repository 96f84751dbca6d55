// SPDX-License-Identifier: GPL-2.0
//! Which files there are: those that somebody named, below folders, or mapped by processes.

use crate::maps;
use devcache_selftests::child;
use devcache_selftests::PAGE;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

/// Tells files apart, whatever their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Identity {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// A regular file that is not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) id: Identity,
    /// What to open.
    pub(crate) path: PathBuf,
    /// Pages that it has now.
    pub(crate) pages: usize,
}

impl Found {
    /// Looks at what is there. It may be gone by now.
    pub(crate) fn look(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        let pages = usize::try_from(metadata.len()).ok()?.div_ceil(PAGE);
        (metadata.is_file() && pages != 0).then(|| Found {
            id: Identity {
                device: metadata.dev(),
                inode: metadata.ino(),
            },
            path: path.to_owned(),
            pages,
        })
    }
}

/// Where to look for files.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    /// Files, and folders with all that is below them.
    pub(crate) paths: Vec<PathBuf>,
    /// Processes.
    pub(crate) pids: Vec<u32>,
    /// A process that counts with all that descend from it.
    pub(crate) family: Option<u32>,
}

/// All files below a folder, or the one file that the path names.
fn below(path: &Path, files: &mut Vec<Found>) {
    // Links are not followed: what they name is elsewhere, and there may be circles.
    let is_dir = path.symlink_metadata().is_ok_and(|data| data.is_dir());
    if !is_dir {
        files.extend(Found::look(path));
        return;
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| !kind.is_symlink()) {
            below(&entry.path(), files);
        }
    }
}

impl Places {
    /// The files that are there now, each once.
    pub(crate) fn files(&self) -> BTreeMap<Identity, Found> {
        let mut files = Vec::new();
        for path in &self.paths {
            below(path, &mut files);
        }
        let mut pids = self.pids.clone();
        if let Some(pid) = self.family {
            pids.push(pid);
            pids.extend(child::descendants(pid).unwrap_or_default());
        }
        for pid in pids {
            files.extend(maps::of_process(pid));
        }
        files.into_iter().map(|file| (file.id, file)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn folders_and_links() {
        let dir = std::env::temp_dir().join(format!("devcache-storm-test-{}", std::process::id()));
        fs::create_dir_all(dir.join("a/b")).unwrap();
        fs::write(dir.join("a/b/one"), [1; PAGE + 1]).unwrap();
        fs::write(dir.join("a/empty"), []).unwrap();
        fs::hard_link(dir.join("a/b/one"), dir.join("again")).unwrap();
        symlink("..", dir.join("a/up")).unwrap();
        let places = Places {
            paths: vec![dir.clone(), dir.join("a/b/one"), dir.join("none")],
            ..Default::default()
        };
        let files: Vec<_> = places.files().into_values().collect();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(files.len(), 1);
        assert_eq!(files[0].pages, 2);
    }
}
