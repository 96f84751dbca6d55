// SPDX-License-Identifier: GPL-2.0
//! The files that a process maps, as /proc/PID/maps names them.

use crate::found::Found;
use crate::found::Identity;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// What a line "start-end rights offset major:minor inode path" says of a file.
fn line(line: &str) -> Option<(Identity, &str)> {
    let mut words = line.split(' ');
    let range = words.next()?;
    let (major, minor) = words.nth(2)?.split_once(':')?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    let id = Identity {
        device: libc::makedev(number(major)?, number(minor)?),
        inode: words.next()?.parse().ok()?,
    };
    (id.inode != 0).then_some((id, range))
}

/// The files in a text of such lines, each once, by the range of a mapping.
fn parse(text: &str) -> BTreeMap<Identity, &str> {
    text.lines().filter_map(line).collect()
}

/// The files that a process maps; none when it has ended. Those that have no name any more are among them.
pub(crate) fn of_process(pid: u32) -> Vec<Found> {
    let folder = format!("/proc/{pid}");
    let folder = Path::new(&folder);
    let text = fs::read_to_string(folder.join("maps")).unwrap_or_default();
    let files = parse(&text).into_values();
    files
        .filter_map(|range| Found::look(&folder.join("map_files").join(range)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0c0a00000-55d0c0a02000 r--p 00000000 fd:01 271 /usr/bin/a
55d0c0a02000-55d0c0a04000 r-xp 00002000 fd:01 271 /usr/bin/a
7f0000000000-7f0000001000 rw-s 00000000 00:1a 9 /mnt/b c (deleted)
7f0000002000-7f0000003000 rw-p 00000000 00:00 0 
7ffc00000000-7ffc00001000 rw-p 00000000 00:00 0 [stack]
garbage
";

    #[test]
    fn each_file_once() {
        let found: Vec<_> = parse(MAPS).into_iter().collect();
        let id = |major, minor, inode| Identity {
            device: libc::makedev(major, minor),
            inode,
        };
        assert_eq!(
            found,
            [
                (id(0, 0x1a, 9), "7f0000000000-7f0000001000"),
                (id(0xfd, 1, 271), "55d0c0a02000-55d0c0a04000"),
            ]
        );
    }

    #[test]
    fn own_program() {
        let found = of_process(std::process::id());
        let program = std::env::current_exe().unwrap();
        let program = Found::look(&program).unwrap();
        assert!(found.iter().any(|file| file.id == program.id));
        assert!(of_process(u32::MAX).is_empty());
    }
}
