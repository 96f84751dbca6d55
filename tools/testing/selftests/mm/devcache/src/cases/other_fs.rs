// SPDX-License-Identifier: GPL-2.0
//! File systems and files that do not take part: no page moves, and everything goes on as before. And
//! one that has no pages of its own, and so takes part with those of others.

use crate::case::skip;
use crate::case::Case;
use crate::case::Ctx;
use crate::check::refused;
use crate::check::same;
use crate::check::same_bytes;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::gpu::Direction;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::map::Map;
use devcache_selftests::mount::Mount;
use devcache_selftests::scratch::output;
use devcache_selftests::scratch::Scratch;
use devcache_selftests::stats::Counters;
use devcache_selftests::PAGE;
use nix::errno::Errno;
use nix::sys::memfd::memfd_create;
use nix::sys::memfd::MFdFlags;
use nix::sys::mman::MapFlags;
use nix::sys::mman::ProtFlags;
use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt;

pub(crate) const CASES: &[Case] = &[
    Case::once("stays_on_hugetlbfs", hugetlbfs),
    Case::once("stays_on_9p", program_itself),
    Case::once("stays_on_ramfs", ramfs),
    Case::only("ext4", "stays_with_data_journal", data_journal),
    Case::only("ext4", "becomes_journalled", becomes_journalled),
    Case::only("xfs", "stays_with_large_blocks", large_blocks),
    Case::disk("stays_in_swap_file", swap_file),
    Case::every("moves_on_overlayfs", overlayfs),
];

/// No page of the mapping moves.
fn stays(gpu: &Gpu, map: &Map) -> Result<()> {
    map.touch_read(0..map.pages());
    match gpu.migrate(map, 0..map.pages(), Direction::ToVram) {
        Err(Errno::EOPNOTSUPP) => Ok(()),
        counts => {
            let counts = counts?;
            same("pages that moved", counts.moved, 0)?;
            same("pages skipped", counts.skipped, map.pages() as u64)
        }
    }
}

/// No page of a new file moves, and the GPU works on it where it is.
fn works_where_it_is(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::in_ram(ctx, 4)?;
    file.map.touch_write(0..4)?;
    stays(ctx.gpu()?, &file.map)?;
    file.gpu_sees(0..4)?;
    file.gpu_add(0..4, 1)?;
    file.file.sync_all()?;
    file.is_right()
}

/// Pages in the pool of huge pages, given back when dropped.
struct HugePages(String);

const HUGE_POOL: &str = "/proc/sys/vm/nr_hugepages";

impl HugePages {
    fn reserve() -> Result<Self> {
        let before = fs::read_to_string(HUGE_POOL).context("no huge pages")?;
        fs::write(HUGE_POOL, "2")?;
        Ok(HugePages(before))
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = fs::write(HUGE_POOL, self.0.trim());
    }
}

/// hugetlbfs never moves.
fn hugetlbfs(ctx: &Ctx) -> Result<()> {
    const HUGE: usize = 2 << 20;
    let Ok(_pool) = HugePages::reserve() else {
        return skip("this kernel has no hugetlbfs");
    };
    let file = File::from(memfd_create("huge", MFdFlags::MFD_HUGETLB)?);
    file.set_len(HUGE as u64)?;
    let Ok(map) = Map::shared(&file, HUGE) else {
        return skip("no huge page is free");
    };
    map.write(0, &[5; PAGE]);

    let result = ctx.gpu()?.migrate(&map, 0..HUGE / PAGE, Direction::ToVram);
    refused("hugetlbfs", result, Errno::EOPNOTSUPP)?;
    same_bytes("huge page", &map.read(0..PAGE), &[5; PAGE])
}

/// The file system that this program is on, which is the host's.
fn program_itself(ctx: &Ctx) -> Result<()> {
    let path = std::env::current_exe()?;
    let kind = Mount::of(&path)?.kind;
    if ["tmpfs", "ext4", "xfs", "btrfs"].contains(&kind.as_str()) {
        return skip(format!("this program is on {kind}, which takes part"));
    }
    let file = File::open(&path)?;
    let map = Map::of_file(&file, 16 * PAGE, ProtFlags::PROT_READ, MapFlags::MAP_SHARED)?;

    stays(ctx.gpu()?, &map)?;
    same_bytes("mapping", &map.read_all(), &fs::read(&path)?[..16 * PAGE])
}

/// A file system in memory that says nothing of devices.
fn ramfs(_: &Ctx) -> Result<()> {
    let scratch = Scratch::in_memory("ramfs", "rw")?;
    works_where_it_is(&Ctx::new(&scratch.file_system())?)
}

/// With its data in the journal, ext4 reads buffers without looking for pages (`ext4_set_aops`).
fn data_journal(_: &Ctx) -> Result<()> {
    let scratch = Scratch::on_disk("ext4", 64, &[], "data=journal")?;
    let ctx = Ctx::new(&scratch.file_system())?;
    works_where_it_is(&ctx)?;

    empty_journal(&ctx)?;
    let file = File::open(ctx.path("resident"))?;
    let map = Map::of_file(&file, 4 * PAGE, ProtFlags::PROT_READ, MapFlags::MAP_SHARED)?;
    stays(ctx.gpu()?, &map)
}

/// Makes the journal let go of all buffers: it holds them until they are where they belong on the disk.
fn empty_journal(ctx: &Ctx) -> Result<()> {
    ctx.mount.freeze()?;
    Ok(ctx.mount.thaw()?)
}

/// A file that gets to be such a one while its pages are on the device: they come back and stay. (ext4
/// takes no notice of the attribute where it delays allocation.)
fn becomes_journalled(_: &Ctx) -> Result<()> {
    let scratch = Scratch::on_disk("ext4", 64, &[], "nodelalloc")?;
    let ctx = Ctx::new(&scratch.file_system())?;
    let mut file = Resident::dirty(&ctx, 4)?;
    let path = file.path.display().to_string();

    file.on_device(0..4)?;
    output("chattr", &["+j", &path])?;
    file.is_right()?;
    file.map.touch_write(0..4)?;
    stays(ctx.gpu()?, &file.map)?;
    file.gpu_add(0..4, 1)?;
    empty_journal(&ctx)?;
    stays(ctx.gpu()?, &file.map)?;
    output("chattr", &["-j", &path])?;
    file.send(0..4, Touch::Write)?;
    file.gpu_add(0..4, 1)?;
    file.is_right()
}

/// With blocks larger than a page, XFS needs folios of at least that size.
fn large_blocks(_: &Ctx) -> Result<()> {
    let scratch = Scratch::on_disk("xfs", 320, &["-b", "size=8192"], "rw")?;
    works_where_it_is(&Ctx::new(&scratch.file_system())?)
}

/// Swap space in a file, in use until dropped.
struct SwapFile(String);

impl Drop for SwapFile {
    fn drop(&mut self) {
        let _ = output("swapoff", &[&self.0]);
    }
}

/// A file that becomes swap space while its pages are on the device: its header is read from there, and
/// from then on no page moves.
fn swap_file(ctx: &Ctx) -> Result<()> {
    const PAGES: usize = 64;
    let file = ctx.file("swap")?;
    let path = ctx.path("swap").display().to_string();
    if ctx.mount.kind == "btrfs" {
        output("chattr", &["+C", &path])?;
    }
    output("chmod", &["600", &path])?;
    file.write_all_at(&[0; PAGES * PAGE], 0)?;
    file.sync_all()?;
    output("mkswap", &[&path])?;
    let map = Map::shared(&file, PAGES * PAGE)?;
    crate::resident::send(ctx.gpu()?, &map, 0..PAGES, Touch::Write)?;

    output("swapon", &[&path])?;
    let _swap = SwapFile(path);
    let before = Counters::core()?.get("refused_swapfile")?;
    stays(ctx.gpu()?, &map)?;
    let count = Counters::core()?.get("refused_swapfile")? - before;
    // The driver may have asked more than once.
    ensure!(
        count >= PAGES as u64,
        "{count} pages of {PAGES} were refused as those of swap space"
    );
    Ok(())
}

/// overlayfs maps the file below it, which is on a file system that takes part.
fn overlayfs(ctx: &Ctx) -> Result<()> {
    let dirs = ["lower", "upper", "work"].map(|name| ctx.path(name));
    for dir in &dirs {
        fs::create_dir(dir)?;
    }
    let [lower, upper, work] = dirs.map(|dir| dir.display().to_string());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let scratch = Scratch::in_memory("overlay", &options)?;
    let ctx = Ctx::new(&scratch.file_system())?;
    let mut file = Resident::dirty(&ctx, 8)?;

    file.on_device(0..8)?;
    file.file.sync_all()?;
    file.gpu_add(0..8, 1)?;
    file.is_right()
}
