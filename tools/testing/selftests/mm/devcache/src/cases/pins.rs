// SPDX-License-Identifier: GPL-2.0
//! Pages that somebody holds are not moved; when they are let go, they are.

use crate::case::skip;
use crate::case::Case;
use crate::case::Ctx;
use crate::check::same;
use crate::check::same_bytes;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::Result;
use devcache_selftests::gpu::Direction;
use devcache_selftests::gup;
use devcache_selftests::map::Map;
use devcache_selftests::random::Random;
use devcache_selftests::ring::Ring;
use devcache_selftests::sys;
use devcache_selftests::PAGE;
use nix::fcntl::splice;
use nix::fcntl::SpliceFFlags;
use nix::unistd::pipe;
use std::fs::File;
use std::io::ErrorKind;
use std::io::Read;
use std::os::unix::fs::FileExt;

pub(crate) const CASES: &[Case] = &[
    Case::every("pinned_by_io_uring", pinned_by_io_uring),
    Case::every("pin_brings_back", pin_brings_back),
    Case::every("fault_nowait", fault_nowait),
    Case::every("held_by_vmsplice", held_by_vmsplice),
    Case::every("held_by_splice", held_by_splice),
    Case::once("anonymous_pinned_by_io_uring", anonymous_pinned),
];

/// None of the pages moves, and the contents stay reachable for everybody.
fn does_not_move(ctx: &Ctx, map: &Map) -> Result<()> {
    let counts = ctx.gpu()?.migrate(map, 0..map.pages(), Direction::ToVram)?;
    same("pages that moved", counts.moved, 0)?;
    same("pages that are there", counts.present, 0)?;
    same("pages skipped", counts.skipped, map.pages() as u64)
}

/// Registers a file mapping, where the file system allows long pins.
fn register(ring: &mut Ring, map: &Map) -> Result<()> {
    match ring.register(map) {
        Err(error)
            if [Some(libc::EFAULT), Some(libc::EOPNOTSUPP)].contains(&error.raw_os_error()) =>
        {
            skip("this file system does not allow pages to be pinned for long")
        }
        other => Ok(other?),
    }
}

/// Registered buffers are pinned: a page in RAM stays there (`migrate_vma_check_page`), what the ring
/// reads into it is in the file, and the GPU works on it where it is.
fn pinned_by_io_uring(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::in_ram(ctx, 4)?;
    let mut ring = Ring::new()?;
    let text = Random::new(96).bytes(PAGE);
    let other = ctx.file("other")?;
    other.write_all_at(&text, 0)?;
    file.map.touch_write(0..4)?;
    register(&mut ring, &file.map)?;

    does_not_move(ctx, &file.map)?;
    same(
        "bytes",
        ring.read_registered(&other, &file.map, 0, PAGE)?,
        PAGE,
    )?;
    file.want[..PAGE].copy_from_slice(&text);
    file.gpu_add(0..4, 9)?;
    file.is_right()?;
    ring.unregister()?;
    drop(ring);
    file.send(0..4, Touch::Write)?;
    file.gpu_sees(0..4)
}

/// Pinning device pages brings them back first; the pin is then on the pages that everybody sees.
fn pin_brings_back(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 4)?;
    let mut ring = Ring::new()?;
    let text = Random::new(95).bytes(PAGE);
    let other = ctx.file("other")?;
    other.write_all_at(&text, 0)?;

    file.on_device(0..4)?;
    register(&mut ring, &file.map)?;
    file.off_device(0..4)?;
    does_not_move(ctx, &file.map)?;
    same(
        "bytes",
        ring.read_registered(&other, &file.map, 0, PAGE)?,
        PAGE,
    )?;
    file.want[..PAGE].copy_from_slice(&text);
    file.is_right()
}

/// vmsplice(2) holds references to the pages of the mapping.
fn held_by_vmsplice(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 4)?;
    let (reader, writer) = pipe()?;

    file.on_device(0..4)?;
    same(
        "bytes",
        sys::vmsplice(&File::from(writer), &file.map)?,
        4 * PAGE,
    )?;
    does_not_move(ctx, &file.map)?;

    let mut got = vec![0; 4 * PAGE];
    File::from(reader).read_exact(&mut got)?;
    same_bytes("through the pipe", &got, &file.want)?;
    file.send(0..4, Touch::Write)?;
    file.is_right()
}

/// splice(2) from the file holds references to page cache pages that no page table shows.
fn held_by_splice(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 4)?;
    let (reader, writer) = pipe()?;
    let mut offset = 0;

    file.on_device(0..4)?;
    while offset < 4 * PAGE as i64 {
        let left = 4 * PAGE - usize::try_from(offset)?;
        splice(
            &file.file,
            Some(&mut offset),
            &writer,
            None,
            left,
            SpliceFFlags::empty(),
        )?;
    }
    file.map.touch_write(0..4)?;
    does_not_move(ctx, &file.map)?;

    let mut got = vec![0; 4 * PAGE];
    File::from(reader).read_exact(&mut got)?;
    same_bytes("through the pipe", &got, &file.want)?;
    file.send(0..4, Touch::Write)?;
    file.is_right()
}

/// The same as for files holds for anonymous memory.
fn anonymous_pinned(ctx: &Ctx) -> Result<()> {
    let map = Map::anonymous(4 * PAGE)?;
    let mut ring = Ring::new()?;
    map.touch_write(0..4)?;
    ring.register(&map)?;
    does_not_move(ctx, &map)?;
    ring.unregister()?;
    drop(ring);
    crate::resident::send(ctx.gpu()?, &map, 0..4, Touch::Write)
}

/// A fault that must not wait, as KVM makes for asynchronous page faults, leaves pages where they are,
/// whether the page table has an entry for them or not; the next one that may wait gets them.
fn fault_nowait(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 8)?;
    let other = Map::shared(&file.file, 8 * PAGE)?;
    let get = |map: &Map, nowait| match gup::get_pages(map, 0..8, nowait) {
        Err(error) if error.kind() == ErrorKind::NotFound => skip("no CONFIG_GUP_TEST"),
        other => Ok(other?),
    };

    for map in [&file.map, &other] {
        file.send(0..8, Touch::Read)?;
        same("pages without waiting", get(map, true)?, 0)?;
        file.on_device(0..8)?;
        same("pages", get(map, false)?, 8)?;
        same("pages without waiting, then", get(map, true)?, 8)?;
    }
    file.is_right()
}
