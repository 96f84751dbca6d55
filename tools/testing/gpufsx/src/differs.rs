// SPDX-License-Identifier: GPL-2.0
//! Comparison of what was read with what must be there, and the errnos in errors.

use nix::errno::Errno;
use std::fmt;
use std::io;

/// Something that was read is not what must be there.
#[derive(Debug)]
pub(crate) struct Differs {
    /// What was read; nothing if all that is known is a checksum.
    pub(crate) got: Vec<u8>,
    /// Where, in bytes.
    pub(crate) from: usize,
    /// What was read is right, but not all of it was.
    pub(crate) short: bool,
    text: String,
}

impl fmt::Display for Differs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Differs {}

impl Differs {
    /// A checksum does.
    pub(crate) fn sum(text: String) -> Self {
        Differs {
            got: Vec::new(),
            from: 0,
            short: false,
            text,
        }
    }
}

/// Compares what was read of a part of the file with what must be there.
pub(crate) fn same(got: &[u8], want: &[u8], from: usize) -> Result<(), Differs> {
    if got == want {
        return Ok(());
    }
    let differs = |text| {
        Err(Differs {
            got: got.to_vec(),
            from,
            short: got.len() < want.len() && want.starts_with(got),
            text,
        })
    };
    if got.len() != want.len() {
        let text = format!("{} bytes at {from:#x} instead of {}", got.len(), want.len());
        return differs(text);
    }
    let wrong = || (0..got.len()).filter(|&at| got[at] != want[at]);
    let first = wrong().next().unwrap_or(0);
    differs(format!(
        "{} bytes are wrong, the first at {:#x}: {:#04x} instead of {:#04x}",
        wrong().count(),
        from + first,
        got[first],
        want[first]
    ))
}

/// What the kernel said, if it was the kernel that said no.
pub(crate) fn errno(error: &anyhow::Error) -> Option<Errno> {
    error.chain().find_map(|cause| {
        let by_io = || {
            let error = cause.downcast_ref::<io::Error>()?;
            error.raw_os_error().map(Errno::from_raw)
        };
        cause.downcast_ref::<Errno>().copied().or_else(by_io)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn the_first_difference_is_named() {
        assert!(same(b"abc", b"abc", 0).is_ok());
        assert!(same(b"ab", b"abc", 0).unwrap_err().short);
        assert!(!same(b"aX", b"abc", 0).unwrap_err().short);
        let text = same(b"aXc", b"abc", 16).unwrap_err().to_string();
        assert!(text.contains("0x11"), "{text}");
    }

    #[test]
    fn errnos_are_found() {
        let error = anyhow::Error::from(Errno::ENOSPC).context("a call");
        assert_eq!(errno(&error), Some(Errno::ENOSPC));
        let error: anyhow::Result<()> =
            Err(io::Error::from_raw_os_error(libc::EIO)).context("a read");
        assert_eq!(errno(&error.unwrap_err()), Some(Errno::EIO));
        assert_eq!(errno(&anyhow::anyhow!("EIO")), None);
    }
}
