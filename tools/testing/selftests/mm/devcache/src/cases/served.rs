// SPDX-License-Identifier: GPL-2.0
//! Mappings whose faults the program serves itself, with userfaultfd(2): on device pages they come as on
//! others, and serving one gives what the GPU wrote.

use crate::case::Case;
use crate::case::Ctx;
use crate::check::same;
use crate::check::same_bytes;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::gpu::Work;
use devcache_selftests::map::Map;
use devcache_selftests::model::add_u32;
use devcache_selftests::uffd::Event;
use devcache_selftests::uffd::Mode;
use devcache_selftests::uffd::Uffd;
use devcache_selftests::PAGE;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;

pub(crate) const CASES: &[Case] = &[
    Case::only("tmpfs", "uffd_minor", minor),
    Case::only("tmpfs", "uffd_minor_gpu", minor_gpu),
    Case::only("tmpfs", "uffd_write_protect", write_protect),
    Case::only("tmpfs", "uffd_write_protect_gpu", write_protect_gpu),
    Case::only("tmpfs", "uffd_protected_then_sent", protected_then_sent),
];

const PAGES: usize = 8;

/// Runs `work` while another thread serves faults; gives those it served.
fn serving(
    uffd: &Uffd,
    serve: impl Fn(&Event) -> Result<()> + Sync,
    work: impl FnOnce() -> Result<()>,
) -> Result<Vec<Event>> {
    let done = AtomicBool::new(false);

    thread::scope(|scope| {
        let server = scope.spawn(|| {
            let mut served = Vec::new();
            while !done.load(Ordering::Relaxed) {
                if let Some(event) = uffd.next()? {
                    serve(&event).with_context(|| format!("serve {event:x?}"))?;
                    served.push(event);
                }
            }
            anyhow::Ok(served)
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        let served = server.join().expect("does not panic")?;
        result.map(|()| served)
    })
}

/// The pages of a mapping that were served, each once, and for this reason.
fn served_once(events: &[Event], map: &Map, mode: Mode) -> Result<()> {
    let mut addresses: Vec<usize> = events.iter().map(|event| event.address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let want: Vec<usize> = (0..PAGES).map(|page| map.page_addr(page)).collect();
    same(
        "addresses of faults",
        addresses
            .iter()
            .map(|address| address / PAGE * PAGE)
            .collect::<Vec<_>>(),
        want,
    )?;
    ensure!(
        events.iter().all(|event| event.mode == mode),
        "other faults than {mode:?}: {events:x?}"
    );
    Ok(())
}

/// A minor fault finds the device page in the page cache, and continuing it maps the page in RAM
/// (`shmem_get_folio_gfp`).
fn minor(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, PAGES)?;
    let served = Map::shared(&file.file, PAGES * PAGE)?;
    let uffd = Uffd::new(&served, Mode::Minor)?;

    file.on_device(0..PAGES)?;
    let events = serving(
        &uffd,
        |event| Ok(uffd.resume(event.address)?),
        || same_bytes("mapping", &served.read_all(), &file.want),
    )?;
    served_once(&events, &served, Mode::Minor)?;
    file.off_device(0..PAGES)?;
    file.is_right()
}

/// The same when it is the GPU that faults.
fn minor_gpu(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, PAGES)?;
    let served = Map::shared(&file.file, PAGES * PAGE)?;
    let uffd = Uffd::new(&served, Mode::Minor)?;

    file.on_device(0..PAGES)?;
    let events = serving(
        &uffd,
        |event| Ok(uffd.resume(event.address)?),
        || {
            ctx.gpu()?.compute(Work::Add {
                dst: served.addr(),
                count: PAGES * PAGE / 4,
                value: 3,
            })?;
            Ok(())
        },
    )?;
    add_u32(&mut file.want, 3);
    served_once(&events, &served, Mode::Minor)?;
    file.is_right()
}

/// Serves a fault of a protected page: lifts the protection.
fn let_through(uffd: &Uffd, map: &Map, event: &Event) -> Result<()> {
    let page = (event.address - map.addr()) / PAGE;
    Ok(uffd.protect(map, page..page + 1, false)?)
}

/// Stores to every page of a file, all of them protected: each store is told, and is in the file then.
fn store_everywhere(file: &mut Resident, uffd: &Uffd) -> Result<()> {
    const TEXT: &[u8] = b"stored";
    let map = &file.map;
    let events = serving(
        uffd,
        |event| let_through(uffd, map, event),
        || {
            for page in 0..PAGES {
                map.write(page * PAGE, TEXT);
            }
            Ok(())
        },
    )?;
    for page in file.want.chunks_mut(PAGE) {
        page[..TEXT.len()].copy_from_slice(TEXT);
    }
    served_once(&events, &file.map, Mode::WriteProtect)?;
    file.is_right()
}

/// Protecting pages that are on the device: the protection comes back with them (`try_to_migrate_one`,
/// `remove_migration_pte`), so that the first store is told.
fn write_protect(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, PAGES)?;
    let uffd = Uffd::new(&file.map, Mode::WriteProtect)?;

    file.on_device(0..PAGES)?;
    uffd.protect(&file.map, 0..PAGES, true)?;
    file.on_device(0..PAGES)?;
    file.file_is_right()?;
    store_everywhere(&mut file, &uffd)
}

/// A GPU's store to a protected page waits until it is let through, although the GPU could write there
/// a moment ago.
fn write_protect_gpu(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, PAGES)?;
    let uffd = Uffd::new(&file.map, Mode::WriteProtect)?;
    file.gpu_add(0..PAGES, 1)?;

    file.on_device(0..PAGES)?;
    uffd.protect(&file.map, 0..PAGES, true)?;
    let events = serving(
        &uffd,
        |event| let_through(&uffd, &file.map, event),
        || {
            ctx.gpu()?.compute(Work::Add {
                dst: file.map.addr(),
                count: PAGES * PAGE / 4,
                value: 5,
            })?;
            Ok(())
        },
    )?;
    add_u32(&mut file.want, 5);
    served_once(&events, &file.map, Mode::WriteProtect)?;
    file.is_right()
}

/// A protected page that moves to the device is still protected when it is back.
fn protected_then_sent(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::in_ram(ctx, PAGES)?;
    let uffd = Uffd::new(&file.map, Mode::WriteProtect)?;
    file.map.touch_write(0..PAGES)?;
    uffd.protect(&file.map, 0..PAGES, true)?;

    file.send(0..PAGES, Touch::Read)?;
    file.gpu_sees(0..PAGES)?;
    store_everywhere(&mut file, &uffd)
}
