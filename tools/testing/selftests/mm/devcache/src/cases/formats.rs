// SPDX-License-Identifier: GPL-2.0
//! File systems made or mounted in other ways than the one under test: each changes what happens to a
//! page on its way to the disk.

use crate::case::Case;
use crate::case::Ctx;
use crate::check::same_bytes;
use crate::resident::send;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::ensure;
use anyhow::Result;
use devcache_selftests::extent;
use devcache_selftests::gpu::Work;
use devcache_selftests::map::Map;
use devcache_selftests::model::Checksum;
use devcache_selftests::pagemap;
use devcache_selftests::pagemap::Place;
use devcache_selftests::scratch::output;
use devcache_selftests::scratch::Scratch;
use devcache_selftests::stats::Counters;
use devcache_selftests::sys;
use devcache_selftests::PAGE;
use nix::sys::mman::MapFlags;
use nix::sys::mman::ProtFlags;
use std::fs;
use std::fs::File;
use std::path::Path;

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
    Case::only("btrfs", "send", send_stream),
    Case::only("ext4", "verity_ext4", |_| {
        verity("ext4", &["-O", "verity", "-b", "4096"])
    }),
    Case::only("btrfs", "verity_btrfs", |_| verity("btrfs", &[])),
];

const PAGES: usize = 64;

/// MiB of a disk that every kind of file system can be made on.
pub(crate) const SIZE: u64 = 320;

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

/// A mapping of a file that cannot be written, with all its pages on the device.
fn read_only(ctx: &Ctx, path: &Path) -> Result<Map> {
    let (prot, flags) = (ProtFlags::PROT_READ, MapFlags::MAP_SHARED);
    let map = Map::of_file(&File::open(path)?, PAGES * PAGE, prot, flags)?;
    send(ctx.gpu()?, &map, 0..PAGES, Touch::Read)?;
    Ok(map)
}

/// A snapshot whose pages are on the device is sent as a stream (`put_file_data`), and received.
fn send_stream(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, PAGES)?;
    let [target, stream, received] =
        ["snapshot", "stream", "received"].map(|name| ctx.path(name).display().to_string());
    let root = ctx.mount.dir.display().to_string();
    let inside = file.path.strip_prefix(&root)?;
    fs::create_dir(&received)?;

    file.on_device(0..PAGES)?;
    output("btrfs", &["subvolume", "snapshot", "-r", &root, &target])?;
    let map = read_only(ctx, &Path::new(&target).join(inside))?;
    output("btrfs", &["send", "-f", &stream, &target])?;
    let places = pagemap::places(&map, 0..PAGES)?;
    drop(map);
    output("btrfs", &["subvolume", "delete", &target])?;
    ensure!(
        !places.contains(&Place::Device),
        "the stream was made without a look at the device"
    );
    output("btrfs", &["receive", "-f", &stream, &received])?;
    let copy = Path::new(&received).join("snapshot");
    let got = fs::read(copy.join(inside))?;
    output(
        "btrfs",
        &["subvolume", "delete", &copy.display().to_string()],
    )?;
    same_bytes("what was received", &got, &file.want)
}

/// What fs-verity protects is what the GPU wrote: reads from the disk are found to agree with it. The
/// file cannot be changed any more, but its pages can be on the device.
fn verity(kind: &'static str, format: &[&str]) -> Result<()> {
    let scratch = Scratch::on_disk(kind, SIZE, format, "rw")?;
    let ctx = Ctx::new(&scratch.file_system())?;
    let file = Resident::dirty(&ctx, PAGES)?;
    file.on_device(0..PAGES)?;
    // Only who is the last to be able to write may enable it.
    let (path, want) = file.close();
    let before = Counters::core()?.get("pages_back")?;
    sys::enable_verity(&File::open(&path)?)?;
    let back = Counters::core()?.get("pages_back")? - before;
    ensure!(
        back >= PAGES as u64,
        "{back} of {PAGES} pages came back to be protected"
    );

    for _ in 0..2 {
        let map = read_only(&ctx, &path)?;
        let got = ctx.gpu()?.compute(Work::Checksum {
            src: map.addr(),
            count: PAGES * PAGE / 4,
        })?;
        ensure!(
            got == Checksum::of(&want),
            "the GPU's checksum of the protected file is {got:#x}"
        );
        same_bytes("the file", &fs::read(&path)?, &want)?;
        drop(map);
        ctx.mount.remount()?;
    }
    same_bytes("the disk", &fs::read(&path)?, &want)
}
