// SPDX-License-Identifier: GPL-2.0
//! The kernel log, to blame a complaint on the test that caused it.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::os::unix::fs::OpenOptionsExt;

/// Writes a line to the log: what was going on can be seen there after the kernel died of it.
pub fn note(line: &str) -> io::Result<()> {
    fs::write("/dev/kmsg", line)
}

/// A reader that starts at the end of the log.
pub struct Kmsg {
    file: File,
}

/// What a complaint of the kernel contains. The list is that of bugs, not of every warning level
/// message: tests cause errors on purpose.
const COMPLAINTS: [&str; 14] = [
    "WARNING:",
    "BUG:",
    "BUG at",
    "Oops",
    "KASAN",
    "UBSAN",
    "INFO: task",
    "INFO: possible",
    "INFO: rcu",
    "DEADLOCK",
    "Bad rss-counter",
    "Bad page",
    "general protection fault",
    "Call Trace",
];

impl Kmsg {
    /// Opens the log; only what is logged from now on will be seen.
    pub fn open() -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")?;
        file.seek(SeekFrom::End(0))?;
        Ok(Kmsg { file })
    }

    /// The messages since the last call.
    pub fn new_messages(&mut self) -> Vec<String> {
        let mut messages = Vec::new();
        let mut record = [0; 8192];

        loop {
            match self.file.read(&mut record) {
                Ok(0) => return messages,
                Ok(len) => {
                    messages.extend(message(&record[..len]));
                }
                // The oldest records were overwritten before they were read; go on with the next.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(_) => return messages,
            }
        }
    }
}

/// The text of a record "level,sequence,time,flags;text\n".
fn message(record: &[u8]) -> Option<String> {
    let record = String::from_utf8_lossy(record);
    let (_, text) = record.split_once(';')?;
    Some(text.lines().next()?.to_owned())
}

/// Whether a message says that the kernel found itself to be wrong.
pub fn is_complaint(message: &str) -> bool {
    COMPLAINTS.iter().any(|pattern| message.contains(pattern))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_record() {
        let record = b"6,339,5140900,-;EXT4-fs (vdb): mounted\n SUBSYSTEM=x\n";
        assert_eq!(message(record).unwrap(), "EXT4-fs (vdb): mounted");
        assert_eq!(message(b"garbage"), None);
    }

    #[test]
    fn complaints() {
        assert!(is_complaint("WARNING: mm/rmap.c:1072 at folio_referenced"));
        assert!(is_complaint("BUG: Bad page state in process x"));
        assert!(is_complaint(
            "WARNING: possible circular locking dependency"
        ));
        assert!(!is_complaint("EXT4-fs (vdb): shut down requested (2)"));
        assert!(!is_complaint("vsvm 0000:01:00.0: page table full"));
    }
}
