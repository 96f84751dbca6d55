// SPDX-License-Identifier: GPL-2.0
//! File systems made or mounted in other ways than the one under test: each changes what happens to a
//! page on its way to the disk.

use crate::case::Case;
use crate::case::Ctx;
use crate::check::same_bytes;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::ensure;
use anyhow::Result;
use devcache_selftests::extent;
use devcache_selftests::gpu::Work;
use devcache_selftests::scratch::output;
use devcache_selftests::scratch::Scratch;
use devcache_selftests::PAGE;
use std::fs;

pub(crate) const CASES: &[Case] = &[
    Case::only("ext4", "blocks_of_1k", |_| {
        survives("ext4", &["-b", "1024"], "rw")
    }),
    Case::only("ext4", "nodelalloc", |_| {
        survives("ext4", &[], "nodelalloc")
    }),
    Case::only("ext4", "bigalloc", |_| {
        survives("ext4", &["-O", "bigalloc"], "rw")
    }),
    Case::only("xfs", "blocks_smaller_than_pages", |_| {
        survives("xfs", &["-b", "size=1024"], "rw")
    }),
    Case::only("btrfs", "nodatacow", |_| {
        survives("btrfs", &[], "nodatacow")
    }),
    Case::only("btrfs", "compress_lzo", |_| {
        survives("btrfs", &[], "compress-force=lzo")
    }),
    Case::only("btrfs", "compress", compress),
    Case::only("btrfs", "compress_one_file", compress_one_file),
    Case::only("btrfs", "defragment", defragment),
    Case::only("btrfs", "snapshot", snapshot),
];

const PAGES: usize = 64;

/// MiB of a disk that every kind of file system can be made on.
const SIZE: u64 = 320;

/// What the GPU wrote, and what was cut out of it meanwhile, is on the disk after a power cut.
fn survives(kind: &'static str, format: &[&str], options: &str) -> Result<()> {
    let scratch = Scratch::on_disk(kind, SIZE, format, options)?;
    let ctx = Ctx::new(&scratch.file_system())?;
    let mut file = Resident::dirty(&ctx, PAGES)?;

    file.on_device(0..PAGES)?;
    file.pwrite(3 * PAGE + 1500, &[0x77; 2000])?;
    file.file.set_len((50 * PAGE + 700) as u64)?;
    file.file.set_len((PAGES * PAGE) as u64)?;
    file.want[50 * PAGE + 700..].fill(0);
    file.send(0..PAGES - 1, Touch::Write)?;
    file.gpu_add(0..PAGES, 3)?;
    file.is_right()?;
    file.send(0..PAGES - 1, Touch::Write)?;
    file.file.sync_all()?;
    let (path, want) = file.close();
    ctx.mount.power_cut()?;
    same_bytes("the disk", &fs::read(path)?, &want)
}

/// Fills a file by the GPU with what is easy to compress; after a sync it is compressed, as it would be
/// had it been in RAM (`filemap_get_folios_contig`).
fn compresses(ctx: &Ctx, mut file: Resident<'_>) -> Result<()> {
    ctx.gpu()?.compute(Work::Fill {
        dst: file.map.addr(),
        count: PAGES * PAGE / 4,
        value: 0x6161_6161,
    })?;
    file.want.fill(0x61);
    file.send(0..PAGES, Touch::Write)?;
    file.file.sync_all()?;

    let extents = extent::extents(&file.file)?;
    ensure!(
        !extents.is_empty() && extents.iter().all(extent::Extent::is_encoded),
        "not compressed: {extents:x?}"
    );
    let (path, want) = file.close();
    ctx.mount.power_cut()?;
    same_bytes("the disk", &fs::read(path)?, &want)
}

/// Compression for all files, by a mount option.
fn compress(_: &Ctx) -> Result<()> {
    let scratch = Scratch::on_disk("btrfs", SIZE, &[], "compress=zstd")?;
    let ctx = Ctx::new(&scratch.file_system())?;
    let file = Resident::dirty(&ctx, PAGES)?;
    compresses(&ctx, file)
}

/// Compression for one, by an attribute.
fn compress_one_file(ctx: &Ctx) -> Result<()> {
    let file = Resident::in_ram(ctx, PAGES)?;
    output("chattr", &["+c", &file.path.display().to_string()])?;
    file.send(0..PAGES, Touch::Write)?;
    compresses(ctx, file)
}

/// Defragmenting reads device pages and writes them to another place.
fn defragment(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, PAGES)?;
    let path = file.path.display().to_string();

    file.on_device(0..PAGES)?;
    output("btrfs", &["filesystem", "defragment", "-czstd", &path])?;
    file.is_right()?;
    file.send(0..PAGES, Touch::Read)?;
    output("btrfs", &["filesystem", "defragment", &path])?;
    file.file.sync_all()?;
    let (path, want) = file.close();
    ctx.mount.power_cut()?;
    same_bytes("the disk", &fs::read(path)?, &want)
}

/// A snapshot has what the GPU wrote before it, and nothing of what it writes later.
fn snapshot(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, PAGES)?;
    let want = file.want.clone();
    let place = ctx.path("snapshot");
    let [root, target] = [&ctx.mount.dir, &place].map(|path| path.display().to_string());

    file.on_device(0..PAGES)?;
    output("btrfs", &["subvolume", "snapshot", &root, &target])?;
    file.gpu_add(0..PAGES, 1)?;
    let inside = file.path.strip_prefix(&ctx.mount.dir)?;
    let got = fs::read(place.join(inside))?;
    output("btrfs", &["subvolume", "delete", &target])?;
    same_bytes("the snapshot", &got, &want)?;
    file.is_right()
}
