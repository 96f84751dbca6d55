// SPDX-License-Identifier: GPL-2.0
//! What the host knows of the files, and so what they may hold after a power cut.
//!
//! For each file there are the bytes that were confirmed, and the versions of records that have
//! been started since. After a cut each byte must be either confirmed or of a version started
//! since: which of these is nobody's promise. Then what was found is what the next cut may not take
//! away, as the guest has unmounted the file system in between.

use crate::record;
use crate::record::FileId;
use crate::record::Version;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

/// A file is not what it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    /// Which, or at least on which file system.
    pub(crate) fs: String,
    pub(crate) what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.fs, self.what)
    }
}

/// One file.
#[derive(Debug)]
struct Known {
    /// That it is there, with its size, was confirmed.
    made: bool,
    /// It was looked at after the last cut.
    seen: bool,
    /// The bytes that were confirmed.
    confirmed: Vec<u8>,
    /// Records started since, and their versions, in order.
    started: Vec<(usize, Version)>,
    /// All that ever were, to name what is found.
    history: Vec<(usize, Version)>,
}

/// All files.
#[derive(Debug, Default)]
pub(crate) struct Ledger(BTreeMap<FileId, Known>);

impl Ledger {
    /// The guest boots: what is there has to be looked at.
    pub(crate) fn boot(&mut self) {
        for known in self.0.values_mut() {
            known.seen = false;
        }
    }

    /// A file is about to be made, of zeroes.
    pub(crate) fn making(&mut self, file: FileId) {
        let known = Known {
            made: false,
            seen: true,
            confirmed: vec![0; record::file_len()],
            started: Vec::new(),
            history: Vec::new(),
        };
        self.0.insert(file, known);
    }

    /// It was made.
    pub(crate) fn made(&mut self, file: &FileId) {
        if let Some(known) = self.0.get_mut(file) {
            known.made = true;
        }
    }

    /// A file is about to go: it may hold anything, or be there no more.
    pub(crate) fn removing(&mut self, file: &FileId) {
        self.0.remove(file);
    }

    /// Records are about to get a version.
    pub(crate) fn starting(&mut self, file: &FileId, version: Version, records: &[usize]) {
        if let Some(known) = self.0.get_mut(file) {
            let records = records.iter().map(|&record| (record, version));
            known.started.extend(records.clone());
            known.history.extend(records);
        }
    }

    /// All of a file that was started was confirmed. Gives how many records that were.
    pub(crate) fn confirm(&mut self, file: &FileId) -> usize {
        let Some(known) = self.0.get_mut(file) else {
            return 0;
        };
        let count = known.started.len();
        for (record, version) in known.started.drain(..) {
            if let Some(place) = record::place(record) {
                known.confirmed[place].copy_from_slice(&record::contents(file, record, version));
            }
        }
        count
    }

    /// Compares what a file holds after a cut. Gives how many of its records were ever written.
    pub(crate) fn judge(&mut self, file: &FileId, found: &[u8]) -> Result<usize, Violation> {
        // One that was to go, and is there all the same, says nothing.
        let Some(known) = self.0.get_mut(file) else {
            return Ok(0);
        };
        let len = known.confirmed.len();
        let right = found.len() == len || !known.made && found.len() < len;
        let size = || violation(file, format!("has {} bytes and not {len}", found.len()));
        right.then_some(()).ok_or_else(size)?;
        known.seen = true;

        let mut all = found.to_vec();
        all.resize(len, 0);
        for (record, place) in record::places().enumerate() {
            known.judge_record(file, record, &place, &all[place.clone()])?;
        }
        let end = record::places().fold(0, |_, place| place.end);
        if all[end..].iter().any(|&byte| byte != 0) {
            return Err(violation(file, "has something behind its end".to_owned()));
        }
        known.confirmed = all;
        known.started.clear();
        let written: std::collections::BTreeSet<usize> =
            known.history.iter().map(|(record, _)| *record).collect();
        Ok(written.len())
    }

    /// All files of a file system have been looked at.
    pub(crate) fn that_is_all(&mut self, fs: &str) -> Result<(), Violation> {
        let missing = |file: &FileId, known: &Known| file.fs == fs && known.made && !known.seen;
        if let Some((file, _)) = self.0.iter().find(|(file, known)| missing(file, known)) {
            return Err(violation(file, "is not there".to_owned()));
        }
        self.0.retain(|file, known| file.fs != fs || known.seen);
        Ok(())
    }
}

impl Known {
    /// Each byte of a record must be confirmed, or of a version started since.
    fn judge_record(
        &self,
        file: &FileId,
        record: usize,
        place: &Range<usize>,
        found: &[u8],
    ) -> Result<(), Violation> {
        let started = self.started.iter().filter(|(other, _)| *other == record);
        let mut may_be: Vec<Vec<u8>> = started
            .clone()
            .map(|(_, version)| record::contents(file, record, *version))
            .collect();
        may_be.push(self.confirmed[place.clone()].to_vec());
        let wrong = |&at: &usize| may_be.iter().all(|bytes| bytes[at] != found[at]);
        let mut places = (0..found.len()).filter(wrong);
        let Some(first) = places.next() else {
            return Ok(());
        };
        let started: Vec<String> = started.map(|(_, version)| version.to_string()).collect();
        let confirmed = self.name(file, record, &self.confirmed[place.clone()], first);
        Err(violation(
            file,
            format!(
                "record {record}: {} of {} bytes, the first at {first}, are of {}; confirmed was \
                 {}; started since: {}",
                places.count() + 1,
                found.len(),
                self.name(file, record, found, first),
                confirmed,
                if started.is_empty() {
                    "none".to_owned()
                } else {
                    started.join(", ")
                },
            ),
        ))
    }

    /// What a record holds from some byte on.
    fn name(&self, file: &FileId, record: usize, bytes: &[u8], from: usize) -> String {
        /// Bytes that tell one version from another.
        const ENOUGH: usize = 8;
        let end = (from + ENOUGH).min(bytes.len());
        let bytes = &bytes[from..end];
        if bytes.iter().all(|&byte| byte == 0) {
            return "none, all zero".to_owned();
        }
        let versions = self.history.iter().filter(|(other, _)| *other == record);
        let same = |version| record::contents(file, record, version)[from..end] == *bytes;
        match versions.rev().find(|(_, version)| same(*version)) {
            Some((_, version)) => format!("version {version}"),
            None => format!("no version, {bytes:02x?}"),
        }
    }
}

fn violation(file: &FileId, what: String) -> Violation {
    Violation {
        fs: file.fs.clone(),
        what: format!("file {} {what}", file.number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: usize = 1;

    fn file() -> FileId {
        let fs = "btrfs".to_owned();
        FileId { fs, number: 7 }
    }

    fn version(round: u32) -> Version {
        Version { boot: 1, round }
    }

    fn bytes(round: u32) -> Vec<u8> {
        record::contents(&file(), RECORD, version(round))
    }

    /// A file with `RECORD` confirmed in version 2, and 3 started.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.making(file());
        ledger.made(&file());
        ledger.starting(&file(), version(1), &[RECORD]);
        ledger.starting(&file(), version(2), &[RECORD]);
        assert_eq!(ledger.confirm(&file()), 2);
        ledger.starting(&file(), version(3), &[RECORD]);
        ledger
    }

    /// What the file holds with these bytes in the record.
    fn image(record: &[u8]) -> Vec<u8> {
        let mut image = vec![0; record::file_len()];
        let start = record::place(RECORD).unwrap().start;
        image[start..][..record.len()].copy_from_slice(record);
        image
    }

    fn complaint(found: &[u8]) -> String {
        ledger().judge(&file(), found).unwrap_err().to_string()
    }

    #[test]
    fn confirmed_or_started() {
        for right in [
            bytes(2),
            bytes(3),
            [&bytes(3)[..700], &bytes(2)[700..]].concat(),
        ] {
            assert_eq!(ledger().judge(&file(), &image(&right)), Ok(1));
        }
    }

    #[test]
    fn lost_and_never_written() {
        assert!(
            complaint(&image(&bytes(1))).contains("are of version 1.1; confirmed was version 1.2")
        );
        let torn = [&bytes(2)[..512], &bytes(1)[512..]].concat();
        let lost = complaint(&image(&torn));
        assert!(
            lost.contains("first at 51") && lost.contains("are of version 1.1"),
            "{lost}"
        );
        assert!(complaint(&image(&[])).contains("none, all zero"));
        let mut flipped = image(&bytes(2));
        flipped[record::place(RECORD).unwrap().end - 1] ^= 4;
        assert!(
            complaint(&flipped).contains("1 of 1500 bytes, the first at 1499, are of no version")
        );
        let mut elsewhere = image(&bytes(2));
        elsewhere[record::place(5).unwrap().start] = 1;
        assert!(complaint(&elsewhere).contains("record 5"));
        let mut behind = image(&bytes(2));
        behind[record::file_len() - 1] = 1;
        assert!(complaint(&behind).contains("behind its end"));
    }

    #[test]
    fn found_stays() {
        let mut ledger = ledger();
        let torn = image(&[&bytes(3)[..700], &bytes(2)[700..]].concat());
        ledger.judge(&file(), &torn).unwrap();
        assert_eq!(ledger.judge(&file(), &torn), Ok(1));
        assert!(ledger.judge(&file(), &image(&bytes(3))).is_err());
    }

    #[test]
    fn size_and_presence() {
        assert!(complaint(&image(&bytes(2))[1..]).contains("bytes and not"));
        let mut ledger = ledger();
        ledger.boot();
        assert!(ledger
            .that_is_all("btrfs")
            .unwrap_err()
            .what
            .contains("not there"));
        assert_eq!(ledger.that_is_all("xfs"), Ok(()));
        ledger.removing(&file());
        assert_eq!(ledger.that_is_all("btrfs"), Ok(()));
        assert_eq!(ledger.judge(&file(), b"anything"), Ok(0));

        ledger.making(file());
        assert_eq!(ledger.judge(&file(), b""), Ok(0));
        ledger.boot();
        assert_eq!(ledger.that_is_all("btrfs"), Ok(()));
    }
}
