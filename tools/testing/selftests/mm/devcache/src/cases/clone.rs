// SPDX-License-Identifier: GPL-2.0
//! Files that share or exchange their data on the disk, one of which is on the device. What is shared is
//! what the GPU wrote before; what it writes afterwards belongs to its file alone.

use crate::case::skip;
use crate::case::Case;
use crate::case::Ctx;
use crate::cases::errors::loses;
use crate::check::same;
use crate::check::same_bytes;
use crate::knobs::Knob;
use crate::knobs::Knobs;
use crate::knobs::ALWAYS;
use crate::resident::send;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::ensure;
use anyhow::Result;
use devcache_selftests::extent;
use devcache_selftests::map::Map;
use devcache_selftests::random::Random;
use devcache_selftests::scratch::Scratch;
use devcache_selftests::sys;
use devcache_selftests::PAGE;
use nix::errno::Errno;
use std::fs;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

pub(crate) const CASES: &[Case] = &[
    Case::disk("reflink", reflink),
    Case::disk("reflink_part", reflink_part),
    Case::disk("reflink_onto", reflink_onto),
    Case::disk("gpu_write_to_shared", gpu_write_to_shared),
    Case::disk("dedupe", dedupe),
    Case::disk("extents", extents),
    Case::only("xfs", "exchange_range", exchange_range),
    Case::only(
        "btrfs",
        "reflink_inline_onto_lost",
        reflink_inline_onto_lost,
    ),
];

const PAGES: usize = 16;

/// Shares data, where the file system can.
fn share(from: &File, range: Range<usize>, to: &File, offset: usize) -> Result<()> {
    match extent::clone_range(from, range, to, offset) {
        Err(Errno::EOPNOTSUPP) => skip("files on this file system do not share data"),
        other => Ok(other?),
    }
}

/// A clone has what the GPU wrote, and keeps it when the GPU goes on.
fn reflink(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, PAGES)?;
    let copy = ctx.file("copy")?;

    file.on_device(0..PAGES)?;
    share(&file.file, 0..PAGES * PAGE, &copy, 0)?;
    let want = file.want.clone();
    file.gpu_add(0..PAGES, 5)?;
    file.send(0..PAGES, Touch::Write)?;
    file.gpu_add(0..PAGES, 6)?;
    same_bytes("the clone", &fs::read(ctx.path("copy"))?, &want)?;
    file.is_right()
}

/// A clone of a part, in the middle of another file.
fn reflink_part(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, PAGES)?;
    let copy = ctx.file("copy")?;
    let mut want = vec![7; PAGES * PAGE];
    copy.write_all_at(&want, 0)?;

    file.on_device(0..PAGES)?;
    share(&file.file, 4 * PAGE..8 * PAGE, &copy, 10 * PAGE)?;
    want[10 * PAGE..14 * PAGE].copy_from_slice(&file.want[4 * PAGE..8 * PAGE]);
    same_bytes("the clone", &fs::read(ctx.path("copy"))?, &want)?;
    file.is_right()
}

/// What is replaced is on the device: it is dropped, and the GPU sees the new contents.
fn reflink_onto(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, PAGES)?;
    let source = ctx.file("source")?;
    source.write_all_at(&[0x42; 4 * PAGE], 0)?;

    file.on_device(0..PAGES)?;
    share(&source, 0..4 * PAGE, &file.file, 2 * PAGE)?;
    file.want[2 * PAGE..6 * PAGE].fill(0x42);
    file.gpu_sees(0..PAGES)?;
    file.is_right()
}

/// Pages of a clone, clean and read from shared blocks, become dirty by the way of a write fault, which
/// gives the file blocks of its own: nothing of it is in the other file, nor after a power cut.
fn gpu_write_to_shared(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::in_ram(ctx, PAGES)?;
    let before = file.want.clone();
    let copy = ctx.file("copy")?;
    share(&file.file, 0..PAGES * PAGE, &copy, 0)?;
    file.file.sync_all()?;
    copy.sync_all()?;

    file.send(0..PAGES, Touch::Read)?;
    file.gpu_add(0..PAGES, 8)?;
    file.send(0..PAGES, Touch::Write)?;
    file.file.sync_all()?;
    drop(copy);
    let (path, want) = file.close();
    ctx.mount.power_cut()?;
    same_bytes("the file", &fs::read(path)?, &want)?;
    same_bytes("the clone", &fs::read(ctx.path("copy"))?, &before)
}

/// Deduplication compares what the GPU wrote, not what the disk had.
fn dedupe(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, PAGES)?;
    let other = ctx.file("other")?;
    other.write_all_at(&file.want, 0)?;
    let share = |offset| match extent::dedupe_range(&file.file, 0..4 * PAGE, &other, offset) {
        Err(Errno::EOPNOTSUPP | Errno::ENOTTY) => skip("this file system does not deduplicate"),
        result => Ok(result?),
    };

    file.on_device(0..PAGES)?;
    same("the same", share(0)?, true)?;
    same("not the same", share(4 * PAGE)?, false)?;
    file.is_right()?;
    same_bytes("other file", &fs::read(ctx.path("other"))?, &file.want)
}

/// Writeback of device pages lays a file out as it does from system memory, not page by page.
fn extents(ctx: &Ctx) -> Result<()> {
    const LARGE: usize = 128;
    let file = Resident::dirty(ctx, LARGE)?;

    file.on_device(0..LARGE)?;
    file.file.sync_all()?;
    let found = extent::extents(&file.file)?;
    println!("{} extents", found.len());
    ensure!(
        found.len() <= 8,
        "{LARGE} pages were written as {} extents",
        found.len()
    );
    file.is_right()
}

/// Two files whose pages are on the device exchange a range: each has what the GPU wrote to the other,
/// and what it writes next is where the data has gone.
fn exchange_range(_: &Ctx) -> Result<()> {
    let scratch = Scratch::on_disk("xfs", 320, &["-i", "exchange=1"], "rw")?;
    let ctx = Ctx::new(&scratch.file_system())?;
    let mut file = Resident::dirty(&ctx, PAGES)?;
    let other = ctx.file("other")?;
    let mut want = Random::new(44).bytes(PAGES * PAGE);
    other.write_all_at(&want, 0)?;
    let map = Map::shared(&other, PAGES * PAGE)?;
    send(ctx.gpu()?, &map, 0..PAGES, Touch::Write)?;
    let range = 2 * PAGE..9 * PAGE;

    file.on_device(0..PAGES)?;
    extent::exchange_range(&file.file, &other, range.clone())?;
    file.want[range.clone()].swap_with_slice(&mut want[range]);
    file.gpu_sees(0..PAGES)?;
    file.send(0..PAGES, Touch::Write)?;
    file.gpu_add(0..PAGES, 9)?;
    file.send(0..PAGES, Touch::Write)?;
    same_bytes("the other mapping", &map.read_all(), &want)?;
    file.file.sync_all()?;
    other.sync_all()?;
    drop((map, other));
    let (path, first) = file.close();
    ctx.mount.power_cut()?;
    same_bytes("the file", &fs::read(path)?, &first)?;
    same_bytes("the other", &fs::read(ctx.path("other"))?, &want)
}

/// A file of a page that is easy to compress, which btrfs keeps in its metadata, is cloned onto a clean
/// page that cannot be copied back: btrfs looks it up with that part of the file locked.
fn reflink_inline_onto_lost(ctx: &Ctx) -> Result<()> {
    let source = ctx.file("source")?;
    sys::set_compressed(&source, true)?;
    source.write_all_at(&[0x42; PAGE], 0)?;
    source.sync_all()?;
    let mut file = Resident::clean(ctx, PAGES)?;

    let knobs = Knobs::new()?;
    knobs.set(Knob::CopyError, ALWAYS)?;
    loses(1, || share(&source, 0..PAGE, &file.file, 4 * PAGE))?;
    knobs.set(Knob::CopyError, 0)?;
    file.want[4 * PAGE..5 * PAGE].fill(0x42);
    file.is_right()
}
