// SPDX-License-Identifier: GPL-2.0
//! The guest's end of the channel to the host, for all its threads.

use crate::message;
use crate::message::Message;
use anyhow::Context;
use anyhow::Result;
use devcache_vm::machine::OWN_PORT_PATH;
use std::fs::File;
use std::sync::Mutex;
use std::sync::PoisonError;

/// The open port.
#[derive(Debug)]
pub(crate) struct Port(Mutex<File>);

impl Port {
    pub(crate) fn open() -> Result<Self> {
        let file = File::options().read(true).write(true).open(OWN_PORT_PATH);
        let file = file.with_context(|| format!("open {OWN_PORT_PATH}"))?;
        Ok(Port(Mutex::new(file)))
    }

    /// Tells the host; it has taken note when this is done.
    pub(crate) fn tell(&self, message: &Message) -> Result<()> {
        self.tell_with(message, &[])
    }

    /// The same with what a file holds.
    pub(crate) fn tell_with(&self, message: &Message, content: &[u8]) -> Result<()> {
        let file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        message::send(&*file, message, content)
    }
}
