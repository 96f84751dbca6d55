// SPDX-License-Identifier: GPL-2.0
//! The guest's side: looks at what the last power cut has left, and then writes until the next.

use crate::files;
use crate::message::Message;
use crate::port::Port;
use crate::writer::Writer;
use anyhow::Context;
use anyhow::Result;
use clap::Args;
use devcache_selftests::mount::FileSystem;
use devcache_selftests::mount::Mount;
use std::thread;

/// Look at the files after a power cut, tell the host what is there, and write until the next.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// File system to work on, as TYPE or TYPE=FOLDER; the folder is /mnt/TYPE if not given.
    #[arg(
        long = "fs",
        value_name = "TYPE[=FOLDER]",
        value_delimiter = ',',
        required = true
    )]
    file_systems: Vec<FileSystem>,

    /// Which boot this is, from 1 on.
    #[arg(long)]
    boot: u32,

    /// What all choices follow from.
    #[arg(long)]
    seed: u64,

    /// Only look.
    #[arg(long)]
    look: bool,
}

/// Does something for each file system at the same time.
fn on_each<T: Send>(items: Vec<T>, work: impl Fn(T) -> Result<()> + Sync) -> Result<()> {
    let work = &work;
    thread::scope(|scope| {
        let start = |item| scope.spawn(move || work(item));
        let threads: Vec<_> = items.into_iter().map(start).collect();
        let mut results = threads.into_iter().map(|thread| thread.join());
        results.try_for_each(|result| result.ok().context("a thread panicked")?)
    })
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let port = Port::open()?;
    let mounts = options.file_systems.iter().map(FileSystem::mount);
    let mounts = mounts.collect::<Result<Vec<Mount>>>()?;
    on_each(mounts.iter().collect(), |mount| files::look(&port, mount))?;
    if options.look {
        return Ok(());
    }
    let writers = mounts
        .iter()
        .map(|mount| Writer::new(&port, mount, options.boot, options.seed));
    let writers = writers.collect::<Result<Vec<_>>>()?;
    port.tell(&Message::Ready)?;
    on_each(writers, Writer::write_for_ever)
}
