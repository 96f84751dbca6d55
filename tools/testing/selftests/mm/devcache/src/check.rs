// SPDX-License-Identifier: GPL-2.0
//! Comparisons whose failure says what differs and where.

use anyhow::bail;
use anyhow::ensure;
use anyhow::Result;
use devcache_selftests::PAGE;
use std::fmt::Debug;

/// Fails unless `got` is `want`; the message names the first difference.
pub(crate) fn same_bytes(what: &str, got: &[u8], want: &[u8]) -> Result<()> {
    ensure!(
        got.len() == want.len(),
        "{what}: got {} bytes, want {}",
        got.len(),
        want.len()
    );
    let Some(at) = got.iter().zip(want).position(|(got, want)| got != want) else {
        return Ok(());
    };
    let wrong = got
        .iter()
        .zip(want)
        .filter(|(got, want)| got != want)
        .count();
    bail!(
        "{what}: byte {at} (page {}, offset {}) is {:#04x}, want {:#04x}; {wrong} bytes differ",
        at / PAGE,
        at % PAGE,
        got[at],
        want[at]
    )
}

/// Fails unless `got` is `want`.
pub(crate) fn same<T: PartialEq + Debug>(what: &str, got: T, want: T) -> Result<()> {
    ensure!(got == want, "{what}: got {got:?}, want {want:?}");
    Ok(())
}

/// Fails unless `result` is this error.
pub(crate) fn refused<T: Debug, E: PartialEq + Debug>(
    what: &str,
    result: Result<T, E>,
    want: E,
) -> Result<()> {
    match result {
        Err(error) if error == want => Ok(()),
        other => bail!("{what}: got {other:?}, want {want:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn difference_is_named() {
        let want = vec![1; 2 * PAGE];
        let mut got = want.clone();
        assert!(same_bytes("x", &got, &want).is_ok());
        got[PAGE + 3] = 0x20;
        assert_eq!(
            same_bytes("read", &got, &want).unwrap_err().to_string(),
            "read: byte 4099 (page 1, offset 3) is 0x20, want 0x01; 1 bytes differ"
        );
        assert!(same_bytes("x", &got[1..], &want).is_err());
    }

    #[test]
    fn errors() {
        assert!(refused::<(), _>("x", Err(5), 5).is_ok());
        assert!(refused::<(), _>("x", Err(4), 5).is_err());
        assert!(refused("x", Ok(()), 5).is_err());
    }
}
