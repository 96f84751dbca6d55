// SPDX-License-Identifier: GPL-2.0
//! What a test is, and what it is given.

use anyhow::Context;
use anyhow::Result;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::mount::FileSystem;
use devcache_selftests::mount::Mount;
pub(crate) use devcache_selftests::skip::skip;
pub(crate) use devcache_selftests::skip::Skip;
use std::cell::OnceCell;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::path::PathBuf;

/// A test.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    /// Its name, unique.
    pub(crate) name: &'static str,
    /// Where it can run.
    pub(crate) scope: Scope,
    /// Seconds after which it hangs.
    pub(crate) limit: u32,
    /// It runs only if it is named.
    pub(crate) on_demand: bool,
    /// Shows what it is to show, or says why it did not.
    pub(crate) run: fn(&Ctx) -> Result<()>,
}

/// On which file systems a test says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// On every one.
    Every,
    /// On those on a disk.
    Disk,
    /// On those of one type.
    Only(&'static str),
    /// Files do not matter: it runs once.
    Once,
}

/// Seconds a test may take unless it says otherwise.
const LIMIT: u32 = 60;

impl Case {
    /// A test that runs on every file system.
    pub(crate) const fn every(name: &'static str, run: fn(&Ctx) -> Result<()>) -> Self {
        Self::new(name, Scope::Every, run)
    }

    /// A test that runs on file systems on a disk.
    pub(crate) const fn disk(name: &'static str, run: fn(&Ctx) -> Result<()>) -> Self {
        Self::new(name, Scope::Disk, run)
    }

    /// A test that runs on file systems of one type.
    pub(crate) const fn only(
        kind: &'static str,
        name: &'static str,
        run: fn(&Ctx) -> Result<()>,
    ) -> Self {
        Self::new(name, Scope::Only(kind), run)
    }

    /// A test that runs once.
    pub(crate) const fn once(name: &'static str, run: fn(&Ctx) -> Result<()>) -> Self {
        Self::new(name, Scope::Once, run)
    }

    const fn new(name: &'static str, scope: Scope, run: fn(&Ctx) -> Result<()>) -> Self {
        Case {
            name,
            scope,
            limit: LIMIT,
            on_demand: false,
            run,
        }
    }

    /// The same test, but run only if it is named.
    pub(crate) const fn on_demand(self) -> Self {
        Case {
            on_demand: true,
            ..self
        }
    }

    /// The same test with another time limit.
    pub(crate) const fn limit(self, seconds: u32) -> Self {
        Case {
            limit: seconds,
            ..self
        }
    }
}

/// What a test is given.
#[derive(Debug)]
pub(crate) struct Ctx {
    /// See [`Ctx::gpu`].
    gpu: OnceCell<Gpu>,
    /// The file system under test.
    pub(crate) mount: Mount,
    /// An empty folder on it, removed afterwards.
    pub(crate) dir: PathBuf,
}

impl Ctx {
    /// Makes everything ready.
    pub(crate) fn new(fs: &FileSystem) -> Result<Self> {
        let mount = fs.mount()?;
        let dir = fs.dir.join(format!("devcache-{}", std::process::id()));
        fs::create_dir(&dir)?;

        Ok(Ctx {
            gpu: OnceCell::new(),
            mount,
            dir,
        })
    }

    /// The GPU, attached to this process. It is opened at the first call, so that a forked child
    /// has one of its own if its parent had none, and a driver is not in use before.
    pub(crate) fn gpu(&self) -> Result<&Gpu> {
        if self.gpu.get().is_none() {
            let gpu = Gpu::open().context("open the GPU")?;
            assert!(self.gpu.set(gpu).is_ok());
        }
        self.gpu.get().context("was just opened")
    }

    /// Path of a file in the test's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Makes an empty file in the test's folder, open for reading and writing.
    pub(crate) fn file(&self, name: &str) -> Result<File> {
        Ok(OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(self.path(name))?)
    }
}

impl Drop for Ctx {
    fn drop(&mut self) {
        // The test may have left the file system unmounted; then there is nothing to remove.
        let _ = fs::remove_dir_all(&self.dir);
    }
}
