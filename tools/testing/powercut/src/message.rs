// SPDX-License-Identifier: GPL-2.0
//! What the guest tells the host, and how.
//!
//! A message is a line of JSON; what a file holds follows its line as it is. The host answers each
//! message with one byte once it has taken note of it, and the guest waits for that. So when the
//! power goes the host knows of all that had been started, and at most one message of each writer
//! is lost.

use crate::record::FileId;
use crate::record::Version;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use serde::Deserialize;
use serde::Serialize;
use std::io;
use std::io::BufRead;
use std::io::Read;
use std::io::Write;

/// A step of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Message {
    /// The file system's own check was done; it found this.
    Checked {
        fs: String,
        damage: Option<String>,
    },
    /// This many bytes are what a file holds.
    Holds {
        file: FileId,
        len: usize,
    },
    /// There are no files but those whose content was told.
    ThatIsAll {
        fs: String,
    },
    /// A file is about to go.
    Removing {
        file: FileId,
    },
    /// A file is about to be made, or was, and its name and size were confirmed by fsync(2).
    Making {
        file: FileId,
    },
    Made {
        file: FileId,
    },
    /// All is ready for writing.
    Ready,
    /// Records are about to get a version.
    Starting {
        file: FileId,
        version: Version,
        records: Vec<usize>,
    },
    /// All of a file that was started was confirmed.
    Confirmed {
        file: FileId,
        pages: Pages,
    },
}

/// Where the pages of a file were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pages {
    /// In VRAM when a job of the GPU had written to them, all of its pages.
    pub(crate) written: u64,
    /// In VRAM when the call that confirmed began, and dirty.
    pub(crate) synced: u64,
    /// That have gone to the device since boot, and come back, by the kernel's count for everybody.
    pub(crate) out: u64,
    pub(crate) back: u64,
}

const NOTED: u8 = b'+';

/// Sends a message and waits until it was noted.
pub(crate) fn send(mut port: impl Read + Write, message: &Message, content: &[u8]) -> Result<()> {
    let mut bytes = serde_json::to_vec(message)?;
    bytes.push(b'\n');
    bytes.extend_from_slice(content);
    port.write_all(&bytes)?;
    let mut answer = [0];
    port.read_exact(&mut answer)?;
    ensure!(answer[0] == NOTED, "the host's answer is {answer:?}");
    Ok(())
}

/// Receives a message with what follows it; none when the guest is gone, even in the middle of one.
pub(crate) fn receive(mut port: impl BufRead) -> Result<Option<(Message, Vec<u8>)>> {
    let mut line = Vec::new();
    unless_reset(port.read_until(b'\n', &mut line))?;
    if !line.ends_with(b"\n") {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&line);
    let message = serde_json::from_str(&text).with_context(|| format!("no message: {text}"))?;
    let len = match message {
        Message::Holds { len, .. } => len,
        _ => 0,
    };
    let mut content = Vec::new();
    unless_reset(port.take(len as u64).read_to_end(&mut content))?;
    Ok((content.len() == len).then_some((message, content)))
}

/// That the other end is gone, and had not read all it was sent, is an end like any other.
fn unless_reset(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(0),
        result => result,
    }
}

/// Answers that a message was noted. That nobody is there any more does not matter.
pub(crate) fn answer(mut port: impl Write) {
    let _ = port.write_all(&[NOTED]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;
    use std::os::unix::net::UnixStream;
    use std::thread;

    fn holds(len: usize) -> Message {
        let fs = "xfs".to_owned();
        Message::Holds {
            file: FileId { fs, number: 3 },
            len,
        }
    }

    #[test]
    fn there_and_back() {
        let (guest, host) = UnixStream::pair().unwrap();
        let sender = thread::spawn(move || {
            send(&guest, &holds(5), b"a\nb\nc").unwrap();
            send(&guest, &Message::Ready, b"").unwrap();
        });
        let mut port = BufReader::new(host);
        let first = receive(&mut port).unwrap();
        assert_eq!(first, Some((holds(5), b"a\nb\nc".to_vec())));
        answer(port.get_mut());
        let second = receive(&mut port).unwrap();
        assert_eq!(second, Some((Message::Ready, Vec::new())));
        answer(port.get_mut());
        sender.join().unwrap();
        assert_eq!(receive(&mut port).unwrap(), None);
    }

    #[test]
    fn killed_before_the_answer() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        guest.write_all(b"\"Ready\"\n{").unwrap();
        let mut port = BufReader::new(host);
        assert!(receive(&mut port).unwrap().is_some());
        answer(port.get_mut());
        drop(guest);
        assert_eq!(receive(&mut port).unwrap(), None);
    }

    #[test]
    fn cut_short() {
        let mut bytes = serde_json::to_vec(&holds(5)).unwrap();
        assert_eq!(receive(bytes.as_slice()).unwrap(), None);
        bytes.extend_from_slice(b"\nabcd");
        assert_eq!(receive(bytes.as_slice()).unwrap(), None);
        bytes.push(b'e');
        assert!(receive(bytes.as_slice()).unwrap().is_some());
        assert!(receive(b"rubbish\n".as_slice()).is_err());
    }
}
