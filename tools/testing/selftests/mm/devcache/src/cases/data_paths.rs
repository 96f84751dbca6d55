// SPDX-License-Identifier: GPL-2.0
//! Moving the contents of device pages elsewhere, without a buffer of the program or with one that is
//! itself on the device.

use crate::case::Case;
use crate::case::Ctx;
use crate::check::same;
use crate::check::same_bytes;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::map::Map;
use devcache_selftests::ring::Ring;
use devcache_selftests::sys;
use devcache_selftests::PAGE;
use nix::fcntl::copy_file_range;
use nix::fcntl::splice;
use nix::fcntl::SpliceFFlags;
use nix::sys::sendfile::sendfile;
use nix::unistd::pipe;
use std::fs;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::thread;

pub(crate) const CASES: &[Case] = &[
    Case::every("splice", splice_to_pipe),
    Case::every("sendfile", sendfile_to_socket),
    Case::every("copy_file_range", copy_range),
    Case::every("io_uring_read", io_uring_read),
    Case::every("io_uring_read_mixed", io_uring_read_mixed),
    Case::every("io_uring_nowait", io_uring_nowait),
    Case::every("io_uring_write", io_uring_write),
    Case::every("io_uring_registered_buffer", io_uring_registered_buffer),
    Case::every("io_uring_direct", io_uring_direct),
    Case::every("write_from_device_pages", write_from_device_pages),
    Case::every("read_into_device_pages", read_into_device_pages),
];

/// splice(2) puts page cache pages into a pipe: they must be in RAM (`filemap_get_pages`, or
/// `shmem_get_folio_gfp`).
fn splice_to_pipe(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 8)?;
    let (reader, writer) = pipe()?;
    let mut offset = 0;
    let mut got = vec![0; 8 * PAGE];

    file.on_device(0..8)?;
    while offset < 8 * PAGE as i64 {
        let from = usize::try_from(offset)?;
        let len = splice(
            &file.file,
            Some(&mut offset),
            &writer,
            None,
            8 * PAGE - from,
            SpliceFFlags::empty(),
        )?;
        File::from(reader.try_clone()?).read_exact(&mut got[from..from + len])?;
    }
    same_bytes("through the pipe", &got, &file.want)
}

/// sendfile(2) to a socket, across RAM and device pages.
fn sendfile_to_socket(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 32)?;
    let (mut receiver, sender) = UnixStream::pair()?;
    file.map.touch_read(3..7);

    let receiver = thread::spawn(move || {
        let mut got = Vec::new();
        receiver.read_to_end(&mut got).map(|_| got)
    });
    file.on_device(7..32)?;
    let mut offset = 0;
    while offset < 32 * PAGE as i64 {
        let left = 32 * PAGE - usize::try_from(offset)?;
        let len = sendfile(&sender, &file.file, Some(&mut offset), left)?;
        anyhow::ensure!(len > 0, "sendfile sent nothing at {offset}");
    }
    drop(sender);
    let got = receiver.join().expect("does not panic")?;
    same_bytes("through the socket", &got, &file.want)
}

/// copy_file_range(2), by whatever way the file system does it, sees what the GPU wrote.
fn copy_range(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 16)?;
    let copy = ctx.file("copy")?;
    let (mut from, mut to) = (0, 0);

    file.on_device(0..16)?;
    while from < 16 * PAGE as i64 {
        let left = 16 * PAGE - usize::try_from(from)?;
        let len = copy_file_range(&file.file, Some(&mut from), &copy, Some(&mut to), left)?;
        anyhow::ensure!(len > 0, "copy_file_range copied nothing at {from}");
    }
    same_bytes("the copy", &fs::read(ctx.path("copy"))?, &file.want)
}

/// A buffered io_uring read tries without waiting first and then waits in a worker.
fn io_uring_read(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 8)?;
    let mut ring = Ring::new().context("io_uring")?;

    file.on_device(0..8)?;
    let got = ring.read(&file.file, 0, 8 * PAGE)?;
    same_bytes("io_uring", &got, &file.want)
}

/// The same across RAM and device pages.
fn io_uring_read_mixed(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 8)?;
    let mut ring = Ring::new().context("io_uring")?;
    file.map.touch_read(0..1);
    file.map.touch_read(4..6);

    file.on_device(1..4)?;
    let mut got = Vec::new();
    while got.len() < 8 * PAGE {
        let piece = ring.read(&file.file, got.len(), 8 * PAGE - got.len())?;
        anyhow::ensure!(!piece.is_empty(), "io_uring read nothing at {}", got.len());
        got.extend(piece);
    }
    same_bytes("io_uring", &got, &file.want)
}

/// A request that must not wait does not wait for the device: EAGAIN, and the page stays there.
fn io_uring_nowait(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 2)?;
    let mut ring = Ring::new().context("io_uring")?;

    file.on_device(0..2)?;
    match ring.read_nowait(&file.file, 0, PAGE) {
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
        // tmpfs does not know such requests.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        other => anyhow::bail!("read without waiting: {other:?}"),
    }
    file.on_device(0..2)?;
    file.file_is_right()
}

/// Requests whose buffer is registered, from and to device pages of the file.
fn io_uring_registered_buffer(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 8)?;
    let mut ring = Ring::new().context("io_uring")?;
    let buffer = Map::anonymous(4 * PAGE)?;
    ring.register(&buffer)?;

    file.on_device(0..8)?;
    let len = ring.read_registered(&file.file, &buffer, 2 * PAGE, 4 * PAGE)?;
    same_bytes(
        "buffer",
        &buffer.read(0..len),
        &file.want[2 * PAGE..][..len],
    )?;
    buffer.write(0, &[0x1d; 4 * PAGE]);
    file.send(0..8, Touch::Write)?;
    let len = ring.write_registered(&file.file, &buffer, PAGE + 100, 4 * PAGE)?;
    file.want[PAGE + 100..][..len].fill(0x1d);
    file.gpu_sees(0..8)?;
    file.is_right()
}

/// Direct requests on the same file, by a ring.
fn io_uring_direct(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 8)?;
    let direct = sys::open_direct(&file.path)?;
    let mut ring = Ring::new().context("io_uring")?;
    let buffer = Map::anonymous(4 * PAGE)?;
    ring.register(&buffer)?;

    file.on_device(0..8)?;
    let len = ring.read_registered(&direct, &buffer, 2 * PAGE, 4 * PAGE)?;
    same("bytes", len, 4 * PAGE)?;
    same_bytes("buffer", &buffer.read_all(), &file.want[2 * PAGE..6 * PAGE])?;
    buffer.write(0, &[0x2e; 4 * PAGE]);
    file.send(0..8, Touch::Write)?;
    let len = ring.write_registered(&direct, &buffer, 4 * PAGE, 4 * PAGE)?;
    same("bytes", len, 4 * PAGE)?;
    file.want[4 * PAGE..].fill(0x2e);
    file.is_right()
}

/// A buffered io_uring write into parts of device pages keeps the rest of them.
fn io_uring_write(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 4)?;
    let mut ring = Ring::new().context("io_uring")?;
    let at = PAGE + 123;

    file.on_device(0..4)?;
    same("bytes", ring.write(&file.file, at, &[0xee; 5000])?, 5000)?;
    file.want[at..at + 5000].fill(0xee);
    file.is_right()
}

/// write(2) whose source is on the device: the copy from it, with faults off, comes out short; then the
/// page is faulted in, comes back, and the write goes on.
fn write_from_device_pages(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 4)?;
    let other = ctx.file("other")?;

    file.on_device(0..4)?;
    let len = sys::write_from(&other, 0, &file.map, 0..4 * PAGE)?;
    same("bytes", len, 4 * PAGE)?;
    same_bytes("other file", &fs::read(ctx.path("other"))?, &file.want)
}

/// read(2) whose destination is on the device stores into the file, and the GPU sees it.
fn read_into_device_pages(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 4)?;
    let other = ctx.file("other")?;
    let text = vec![0x5a; 2 * PAGE];
    other.write_all_at(&text, 0)?;

    file.on_device(0..4)?;
    let len = sys::read_into(&other, 0, &file.map, 1000..1000 + text.len())?;
    same("bytes", len, text.len())?;
    file.want[1000..1000 + text.len()].copy_from_slice(&text);
    file.send(0..4, Touch::Write)?;
    file.gpu_sees(0..4)?;
    file.is_right()
}
