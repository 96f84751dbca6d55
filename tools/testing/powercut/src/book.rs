// SPDX-License-Identifier: GPL-2.0
//! What the host writes down while it listens to the guest.

use crate::ledger::Ledger;
use crate::ledger::Violation;
use crate::message;
use crate::message::Message;
use crate::message::Pages;
use anyhow::Result;
use std::collections::BTreeMap;
use std::fmt;
use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;

/// What has happened on one file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    /// Boots after which its check found nothing and all files were right.
    pub(crate) looks: usize,
    /// Calls of fsync(2) and the like that confirmed something.
    pub(crate) syncs: usize,
    /// Records that they confirmed.
    pub(crate) confirmed: usize,
    /// Records compared after cuts, if ever written.
    pub(crate) compared: usize,
    /// Pages that the GPU had written to in VRAM when such a call was made, and those of them that
    /// were still there.
    pub(crate) written: u64,
    pub(crate) synced: u64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} records confirmed by {} calls; the GPU had written to {} pages in VRAM before, {} \
             were still there; {} records compared",
            self.confirmed, self.syncs, self.written, self.synced, self.compared
        )
    }
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Book {
    ledger: Ledger,
    figures: BTreeMap<String, Figures>,
    /// Pages that have moved in this boot, by the kernel's count.
    moved: Pages,
    /// In the boots before, out and back.
    before: (u64, u64),
    pub(crate) violation: Option<Violation>,
}

impl Book {
    /// What has happened on a file system.
    pub(crate) fn figures(&self, fs: &str) -> Figures {
        self.figures.get(fs).copied().unwrap_or_default()
    }

    /// Records that were confirmed on all of them.
    pub(crate) fn confirmed(&self) -> usize {
        self.figures.values().map(|figures| figures.confirmed).sum()
    }

    /// Pages that went to the device, and came back.
    pub(crate) fn moved(&self) -> (u64, u64) {
        let (out, back) = self.before;
        (out + self.moved.out, back + self.moved.back)
    }

    /// The guest boots.
    pub(crate) fn boot(&mut self) {
        self.ledger.boot();
        self.before = self.moved();
        self.moved = Pages::default();
    }

    /// Listens until the guest is gone, or something is not as it must be. Says when the power may
    /// go: when the guest writes, and something was confirmed on each file system, in this boot or
    /// before.
    pub(crate) fn listen(&mut self, port: UnixStream, ready: Sender<()>) -> Result<()> {
        let mut port = BufReader::new(port);
        let mut writes = false;
        while let Some((message, content)) = message::receive(&mut port)? {
            writes |= message == Message::Ready;
            if let Err(violation) = self.note(message, &content) {
                self.violation = Some(violation);
                break;
            }
            message::answer(port.get_mut());
            if writes && self.figures.values().all(|figures| figures.synced > 0) {
                // Nobody waits for it after the first time.
                let _ = ready.send(());
            }
        }
        Ok(())
    }

    fn note(&mut self, message: Message, content: &[u8]) -> Result<(), Violation> {
        match message {
            Message::Checked { fs, damage } => {
                if let Some(what) = damage {
                    return Err(Violation { fs, what });
                }
            }
            Message::Holds { file, .. } => {
                let compared = self.ledger.judge(&file, content)?;
                self.of(file.fs).compared += compared;
            }
            Message::ThatIsAll { fs } => {
                self.ledger.that_is_all(&fs)?;
                self.of(fs).looks += 1;
            }
            Message::Removing { file } => self.ledger.removing(&file),
            Message::Making { file } => self.ledger.making(file),
            Message::Made { file } => self.ledger.made(&file),
            Message::Ready => {}
            Message::Starting {
                file,
                version,
                records,
            } => self.ledger.starting(&file, version, &records),
            Message::Confirmed { file, pages } => {
                let confirmed = self.ledger.confirm(&file);
                let figures = self.of(file.fs);
                figures.syncs += usize::from(confirmed > 0);
                figures.confirmed += confirmed;
                figures.written += pages.written;
                figures.synced += pages.synced;
                // Of several threads, the last to tell need not have counted last.
                self.moved.out = self.moved.out.max(pages.out);
                self.moved.back = self.moved.back.max(pages.back);
            }
        }
        Ok(())
    }

    fn of(&mut self, fs: String) -> &mut Figures {
        self.figures.entry(fs).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record;
    use crate::record::FileId;
    use crate::record::Version;

    fn file() -> FileId {
        let fs = "ext4".to_owned();
        FileId { fs, number: 0 }
    }

    fn confirmed(book: &mut Book, round: u32, pages: Pages) {
        let version = Version { boot: 1, round };
        let (file, records) = (file(), vec![1, 2]);
        let starting = Message::Starting {
            file,
            version,
            records,
        };
        book.note(starting, b"").unwrap();
        let file = self::file();
        book.note(Message::Confirmed { file, pages }, b"").unwrap();
    }

    #[test]
    fn figures() {
        let mut book = Book::default();
        book.boot();
        book.note(Message::Making { file: file() }, b"").unwrap();
        let pages = |written, synced, out, back| Pages {
            written,
            synced,
            out,
            back,
        };
        confirmed(&mut book, 1, pages(5, 4, 9, 2));
        confirmed(&mut book, 2, pages(1, 1, 8, 3));
        book.boot();
        confirmed(&mut book, 3, pages(0, 0, 1, 0));
        let file = file();
        let len = record::file_len();
        let mut content = vec![0; len];
        for record in [1, 2] {
            let bytes = record::contents(&file, record, Version { boot: 1, round: 3 });
            content[record::place(record).unwrap()].copy_from_slice(&bytes);
        }
        let fs = "ext4".to_owned();
        book.note(
            Message::Holds {
                file: file.clone(),
                len,
            },
            &content,
        )
        .unwrap();
        book.note(Message::ThatIsAll { fs }, b"").unwrap();
        let figures = Figures {
            looks: 1,
            syncs: 3,
            confirmed: 6,
            compared: 2,
            written: 6,
            synced: 5,
        };
        assert_eq!(book.figures("ext4"), figures);
        assert_eq!((book.confirmed(), book.moved()), (6, (10, 3)));

        content[100] ^= 1;
        let wrong = book.note(Message::Holds { file, len }, &content);
        assert_eq!(wrong.unwrap_err().fs, "ext4");
    }

    #[test]
    fn damage_is_a_violation() {
        let (fs, damage) = ("xfs".to_owned(), Some("bad".to_owned()));
        let violation = Violation {
            fs: fs.clone(),
            what: "bad".to_owned(),
        };
        let note = Book::default().note(Message::Checked { fs, damage }, b"");
        assert_eq!(note, Err(violation));
    }
}
