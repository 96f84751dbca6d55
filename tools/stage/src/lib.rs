// SPDX-License-Identifier: GPL-2.0

//! One progress line per stage, and commands whose output goes to a log.
//!
//! On a terminal a stage is a spinner with the elapsed time; elsewhere it is a plain line that begins
//! when the stage does and gets its time when the stage ends. The work's own output goes to a file in
//! the cache folder's `log`, of which the end is shown, with the path, when the stage fails.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

/// How many of a log's last lines an error shows.
const SHOWN_LINES: usize = 20;

/// A stage that is under way.
///
/// Dropping it before [`Stage::done`] says that the stage failed.
pub struct Stage {
    name: String,
    start: Instant,
    spinner: Option<ProgressBar>,
    done: bool,
}

impl Stage {
    /// Starts the stage and its line.
    pub fn begin(name: impl Into<String>) -> Self {
        let name = name.into();
        let spinner = io::stdout().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {msg} ... {elapsed}");
            let bar = ProgressBar::new_spinner().with_message(name.clone());
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        if spinner.is_none() {
            print!("{name} ... ");
            // A lost progress line is no reason to stop.
            let _ = io::stdout().flush();
        }
        Self {
            name,
            start: Instant::now(),
            spinner,
            done: false,
        }
    }

    /// Ends the line with the time taken.
    pub fn done(self) {
        self.done_with("");
    }

    /// Ends the line with a result and the time taken.
    pub fn done_with(mut self, result: &str) {
        self.done = true;
        let seconds = self.start.elapsed().as_secs();
        let gap = if result.is_empty() { "" } else { "  " };
        self.finish(&format!(
            "{result}{gap}{}m{:02}s",
            seconds / 60,
            seconds % 60
        ));
    }

    fn finish(&mut self, end: &str) {
        match self.spinner.take() {
            Some(bar) => {
                bar.finish_and_clear();
                println!("{} ... {end}", self.name);
            }
            None => println!("{end}"),
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.done {
            self.finish("failed");
        }
    }
}

/// The cache folder and what the user calls it: inside the sysroot it is mounted elsewhere.
pub struct Cache {
    dir: PathBuf,
    shown: PathBuf,
}

impl Cache {
    /// The cache folder that `tools/sysroot/enter.sh` has mounted.
    pub fn from_env() -> Result<Self> {
        let dir = env::var_os("DEVCACHE_CACHE")
            .context("DEVCACHE_CACHE is not set: start this by tools/sysroot/enter.sh")?;
        let shown = env::var_os("DEVCACHE_CACHE_SHOWN").unwrap_or_else(|| dir.clone());
        Ok(Self {
            dir: dir.into(),
            shown: shown.into(),
        })
    }

    /// A cache folder that the user knows by the same name.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        Self {
            shown: dir.clone(),
            dir,
        }
    }

    /// A path in the cache folder.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    /// The same path as the user sees it.
    pub fn shown(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(&self.dir) {
            Ok(rest) => self.shown.join(rest),
            Err(_) => path.to_owned(),
        }
    }

    /// A new, empty log.
    pub fn log(&self, name: &str) -> Result<Log> {
        let dir = self.path("log");
        fs::create_dir_all(&dir)?;
        let path = dir.join(format!("{name}.log"));
        File::create(&path)
            .with_context(|| format!("cannot write {}", self.shown(&path).display()))?;
        Ok(Log {
            shown: self.shown(&path),
            path,
        })
    }
}

/// A log that commands append to.
pub struct Log {
    path: PathBuf,
    shown: PathBuf,
}

impl Log {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs a command with its output in this log.
    ///
    /// # Errors
    ///
    /// The command cannot be started or fails; the error shows the end of the log and where it is.
    pub fn run(&self, command: &mut Command) -> Result<()> {
        let mut file = OpenOptions::new().append(true).open(&self.path)?;
        writeln!(file, "+ {command:?}")?;
        let status = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .status()
            .with_context(|| format!("cannot run {}", name(command)))?;
        if status.success() {
            return Ok(());
        }
        bail!(
            "{}\n{} failed ({status}); full log: {}",
            self.tail()?,
            name(command),
            self.shown.display()
        )
    }

    fn tail(&self) -> Result<String> {
        let bytes = fs::read(&self.path)?;
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        // A parallel build goes on after the first error, which is then far from the end.
        let errors = lines
            .iter()
            .filter(|line| line.contains("error:") || line.contains("error["));
        let end = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
        let shown: Vec<&str> = errors
            .take(SHOWN_LINES)
            .filter(|line| !end.contains(line))
            .copied()
            .collect();
        Ok([shown.as_slice(), end].concat().join("\n"))
    }
}

fn name(command: &Command) -> String {
    let name = Path::new(command.get_program());
    name.file_name()
        .unwrap_or(OsStr::new("?"))
        .to_string_lossy()
        .into_owned()
}
