// SPDX-License-Identifier: GPL-2.0
//! Pages that somebody holds are not moved; when they are let go, they are.

use crate::case::skip;
use crate::case::Case;
use crate::case::Ctx;
use crate::check::same;
use crate::check::same_bytes;
use crate::resident::send;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::Result;
use devcache_selftests::gpu::Direction;
use devcache_selftests::gpu::Work;
use devcache_selftests::gup;
use devcache_selftests::map::Map;
use devcache_selftests::random::Random;
use devcache_selftests::ring::Ring;
use devcache_selftests::scratch::output;
use devcache_selftests::sys;
use devcache_selftests::PAGE;
use nix::errno::Errno;
use nix::fcntl::fcntl;
use nix::fcntl::splice;
use nix::fcntl::FcntlArg;
use nix::fcntl::SealFlag;
use nix::fcntl::SpliceFFlags;
use nix::sys::memfd::memfd_create;
use nix::sys::memfd::MFdFlags;
use nix::unistd::pipe;
use std::fs::File;
use std::io::ErrorKind;
use std::io::Read;
use std::mem;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

pub(crate) const CASES: &[Case] = &[
    Case::every("pinned_by_io_uring", pinned_by_io_uring),
    Case::every("pin_brings_back", pin_brings_back),
    Case::every("fault_nowait", fault_nowait),
    Case::every("pinned_by_direct_io", pinned_by_direct_io),
    Case::every("held_by_vmsplice", held_by_vmsplice),
    Case::every("held_by_splice", held_by_splice),
    Case::once("pinned_by_dma_buf", pinned_by_dma_buf),
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

/// A disk so slow that a request can be looked at while it is in flight; gone when dropped.
struct SlowDisk(File);

impl SlowDisk {
    fn new() -> Result<Self> {
        let options = [
            "null_blk",
            "nr_devices=1",
            "gb=1",
            "irqmode=2",
            "completion_nsec=500000000",
        ];
        output("modprobe", &options)?;
        Ok(SlowDisk(sys::open_direct(Path::new("/dev/nullb0"))?))
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        // The module can be removed when the disk is closed.
        if let Ok(other) = File::open("/dev/null") {
            drop(mem::replace(&mut self.0, other));
        }
        let _ = output("rmmod", &["null_blk"]);
    }
}

/// A direct read into pages of the file, and a direct write from them, pin them until it is done: device
/// pages come back for it, and no page moves meanwhile.
fn pinned_by_direct_io(ctx: &Ctx) -> Result<()> {
    let disk = SlowDisk::new()?;
    let mut file = Resident::dirty(ctx, 4)?;

    for round in 1..=2 {
        file.on_device(0..4)?;
        thread::scope(|scope| {
            let transfer = scope.spawn(|| match round {
                1 => sys::write_from(&disk.0, 0, &file.map, 0..4 * PAGE),
                _ => sys::read_into(&disk.0, 0, &file.map, 0..4 * PAGE),
            });
            thread::sleep(Duration::from_millis(200));
            file.off_device(0..4)?;
            does_not_move(ctx, &file.map)?;
            same("bytes", transfer.join().expect("does not panic")?, 4 * PAGE)
        })?;
        // This disk forgets: what is read from it is not told.
        if round == 2 {
            file.want = file.map.read_all();
        }
        file.send(0..4, Touch::Write)?;
        file.gpu_add(0..4, 1)?;
        file.send(0..4, Touch::Write)?;
    }
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

/// `struct udmabuf_create`
#[repr(C)]
struct DmaBuf {
    memfd: u32,
    flags: u32,
    offset: u64,
    size: u64,
}

const UDMABUF_CREATE: libc::Ioctl = nix::request_code_write!(b'u', 0x42, size_of::<DmaBuf>());

/// A DMA buffer made of a memfd pins pages without looking at a mapping (`filemap_get_folios_contig`):
/// it gets what the GPU wrote, and no page moves until it is gone.
fn pinned_by_dma_buf(ctx: &Ctx) -> Result<()> {
    let Ok(maker) = File::options().read(true).write(true).open("/dev/udmabuf") else {
        return skip("this kernel makes no DMA buffers of memory");
    };
    let file = File::from(memfd_create("pages", MFdFlags::MFD_ALLOW_SEALING)?);
    file.set_len(4 * PAGE as u64)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK))?;
    let map = Map::shared(&file, 4 * PAGE)?;
    send_and_fill(ctx, &map)?;

    let argument = DmaBuf {
        memfd: u32::try_from(file.as_raw_fd())?,
        flags: 0,
        offset: 0,
        size: 4 * PAGE as u64,
    };
    // SAFETY: The request takes a pointer to this structure.
    let fd = unsafe {
        libc::ioctl(
            maker.as_raw_fd(),
            UDMABUF_CREATE,
            std::ptr::from_ref(&argument),
        )
    };
    let fd = Errno::result(fd)?;
    // SAFETY: The descriptor is new.
    let buffer = unsafe { File::from_raw_fd(fd) };
    let seen = Map::shared(&buffer, 4 * PAGE)?;

    same_bytes("DMA buffer", &seen.read_all(), &[0x66; 4 * PAGE])?;
    map.touch_write(0..4)?;
    does_not_move(ctx, &map)?;
    seen.write(PAGE, b"by the buffer");
    same_bytes("mapping", &map.read(PAGE..PAGE + 13), b"by the buffer")?;
    drop(seen);
    drop(buffer);
    send(ctx.gpu()?, &map, 0..4, Touch::Write)
}

/// Fills a mapping by the GPU, on the device.
fn send_and_fill(ctx: &Ctx, map: &Map) -> Result<()> {
    send(ctx.gpu()?, map, 0..map.pages(), Touch::Write)?;
    ctx.gpu()?.compute(Work::Fill {
        dst: map.addr(),
        count: map.len() / 4,
        value: 0x6666_6666,
    })?;
    Ok(())
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
    send(ctx.gpu()?, &map, 0..4, Touch::Write)
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
