// SPDX-License-Identifier: GPL-2.0
//! The programs that run under a storm, and how they are made to work and to look at their data.
//!
//! Each is a script in `programs/` that gets a word and the number of a round. In the word `work` it has
//! the program change its files in the current folder, and in `check` it has the program, or one that is
//! as good a judge, say whether all is there and right; it fails if not. What is to be there it keeps in the folder
//! `$SAFE`, which no storm touches.

/// A program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    /// What runs the script.
    pub(crate) interpreter: &'static str,
    pub(crate) script: &'static str,
    /// The file system of the short run; none if the program is too slow for that.
    pub(crate) short: Option<&'static str>,
    /// It says nothing on tmpfs.
    pub(crate) disk_only: bool,
}

const fn shell(name: &'static str, script: &'static str) -> Program {
    Program {
        name,
        interpreter: "sh",
        script,
        short: None,
        disk_only: false,
    }
}

const fn python(name: &'static str, script: &'static str) -> Program {
    Program {
        interpreter: "python3",
        ..shell(name, script)
    }
}

impl Program {
    /// The same, and it is in the short run, on this file system.
    const fn short(self, fs: &'static str) -> Self {
        Program {
            short: Some(fs),
            ..self
        }
    }

    const fn disk_only(self) -> Self {
        Program {
            disk_only: true,
            ..self
        }
    }

    /// Whether it runs on this type of file system.
    pub(crate) fn runs_on(&self, kind: &str, short: bool) -> bool {
        match short {
            true => self.short == Some(kind),
            false => !(self.disk_only && kind == "tmpfs"),
        }
    }
}

/// All of them.
pub(crate) const PROGRAMS: &[Program] = &[
    python("sqlite", include_str!("../programs/sqlite.py")).short("btrfs"),
    python("lmdb", include_str!("../programs/lmdb.py")).short("tmpfs"),
    python("numpy", include_str!("../programs/numpy.py")),
    python("safetensors", include_str!("../programs/safetensors.py")),
    shell("fio", include_str!("../programs/fio.sh")),
    shell("git", include_str!("../programs/git.sh")),
    shell("compiler", include_str!("../programs/compiler.sh")),
    shell("rsync", include_str!("../programs/rsync.sh")).short("xfs"),
    shell("dd_direct", include_str!("../programs/dd_direct.sh"))
        .short("ext4")
        .disk_only(),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choice() {
        for program in PROGRAMS {
            assert_eq!(program.runs_on("tmpfs", false), !program.disk_only);
            assert!(program.runs_on("ext4", false));
            let short = ["tmpfs", "ext4", "xfs", "btrfs"];
            let short = short.iter().filter(|kind| program.runs_on(kind, true));
            assert_eq!(short.count(), usize::from(program.short.is_some()));
        }
    }

    #[test]
    fn scripts_know_both_words() {
        for program in PROGRAMS {
            for word in ["work", "check", "SAFE"] {
                assert!(program.script.contains(word), "{} {word}", program.name);
            }
        }
    }
}
