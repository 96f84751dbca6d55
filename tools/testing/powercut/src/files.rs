// SPDX-License-Identifier: GPL-2.0
//! The files on one file system: after a power cut, and in the next round.

use crate::message::Message;
use crate::port::Port;
use crate::record;
use crate::record::FileId;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::mount::Mount;
use std::fs;
use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

/// Number of the file that stays from the first boot to the last. The others have the number of the
/// boot in which they were made.
pub(crate) const STAYS: u32 = 0;

/// Where the files are.
pub(crate) fn folder(mount: &Mount) -> PathBuf {
    mount.dir.join("devcache-powercut")
}

/// What the file system's own program finds wrong, which repairs nothing.
fn damage(mount: &Mount) -> Result<Option<String>> {
    let check: &[&str] = match mount.kind.as_str() {
        "ext4" => &["e2fsck", "-f", "-n"],
        "xfs" => &["xfs_repair", "-n"],
        "btrfs" => &["btrfs", "check", "--readonly"],
        other => anyhow::bail!("there is no check for {other}"),
    };
    let output = Command::new(check[0])
        .args(&check[1..])
        .arg(&mount.source)
        .output()
        .with_context(|| format!("run {}", check[0]))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    Ok((!output.status.success()).then_some(said))
}

/// Numbers of the files that are there.
fn numbers(mount: &Mount) -> Result<Vec<u32>> {
    fs::create_dir_all(folder(mount))?;
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder(mount))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        numbers.push(
            name.parse()
                .with_context(|| format!("a file named {name}"))?,
        );
    }
    Ok(numbers)
}

/// Looks at a file system whose log was replayed when it was mounted, and tells the host.
pub(crate) fn look(port: &Port, mount: &Mount) -> Result<()> {
    let fs = mount.kind.clone();
    mount.unmount()?;
    let damage = damage(mount)?;
    port.tell(&Message::Checked {
        fs: fs.clone(),
        damage,
    })?;
    mount.mount()?;
    for number in numbers(mount)? {
        let content = fs::read(path(mount, number))?;
        let file = id(mount, number);
        let len = content.len();
        port.tell_with(&Message::Holds { file, len }, &content)?;
    }
    port.tell(&Message::ThatIsAll { fs })
}

/// Prepares the files for a boot: the one that stays, and a new one without a block on the disk.
/// Others go.
pub(crate) fn prepare(port: &Port, mount: &Mount, boot: u32) -> Result<Vec<(FileId, File)>> {
    let there = numbers(mount)?;
    for &number in there.iter().filter(|&&number| number != STAYS) {
        port.tell(&Message::Removing {
            file: id(mount, number),
        })?;
        fs::remove_file(path(mount, number))?;
    }
    let mut files = Vec::new();
    for number in [STAYS, boot] {
        let file = id(mount, number);
        let open = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path(mount, number));
        // One that stays may be there without its size: it was not confirmed.
        let is_there = there.contains(&STAYS) && number == STAYS;
        if !is_there {
            port.tell(&Message::Making { file: file.clone() })?;
        }
        let open = open?;
        open.set_len(record::file_len() as u64)?;
        open.sync_all()?;
        File::open(folder(mount))?.sync_all()?;
        File::open(&mount.dir)?.sync_all()?;
        port.tell(&Message::Made { file: file.clone() })?;
        files.push((file, open));
    }
    Ok(files)
}

fn path(mount: &Mount, number: u32) -> PathBuf {
    folder(mount).join(number.to_string())
}

fn id(mount: &Mount, number: u32) -> FileId {
    let fs = mount.kind.clone();
    FileId { fs, number }
}
