// SPDX-License-Identifier: GPL-2.0
//! The error of a test that says nothing here.

use anyhow::Result;
use std::fmt;

/// The reason why a test says nothing here; the error that makes it a skip instead of a failure.
#[derive(Debug)]
pub struct Skip(pub String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// Ends a test that says nothing here.
pub fn skip<T>(reason: impl Into<String>) -> Result<T> {
    Err(Skip(reason.into()).into())
}
