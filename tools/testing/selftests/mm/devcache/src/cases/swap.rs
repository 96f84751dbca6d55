// SPDX-License-Identifier: GPL-2.0
//! Files on tmpfs between three places: system memory, swap and the device.

use crate::case::skip;
use crate::case::Case;
use crate::case::Ctx;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::ensure;
use anyhow::Result;
use devcache_selftests::cgroup::Cgroup;
use devcache_selftests::gpu::Work;
use devcache_selftests::map::Map;
use devcache_selftests::mirror::Mirror;
use devcache_selftests::stats::Counters;
use devcache_selftests::swap::Swap;
use devcache_selftests::sys;
use devcache_selftests::PAGE;
use std::ops::Range;
use std::thread;
use std::time::Duration;

pub(crate) const CASES: &[Case] = &[
    Case::only("tmpfs", "swap_out_after_return", swap_out_after_return),
    Case::only("tmpfs", "swapped_pages_move", swapped_pages_move),
    Case::only("tmpfs", "device_writes_to_read_pages", device_writes),
    Case::only("tmpfs", "swap_in_truncate", swap_in_truncate),
    Case::only("tmpfs", "swap_under_pressure", swap_under_pressure).limit(120),
];

/// Pages that were written to swap since boot.
fn swapped_out() -> Result<u64> {
    Counters::vmstat()?.get("pswpout")
}

/// Sends pages in system memory to swap.
fn page_out(map: &Map, pages: Range<usize>) -> Result<()> {
    let before = swapped_out()?;
    let want = pages.len() as u64;
    let mut count = 0;
    for _ in 0..20 {
        sys::empty_lru_batches()?;
        map.advise_raw(pages.clone(), libc::MADV_PAGEOUT)?;
        count = swapped_out()? - before;
        if count >= want {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    ensure!(count >= want, "{count} pages of {want} were swapped out");
    Ok(())
}

/// What the GPU wrote is what is swapped out later, and in.
fn swap_out_after_return(ctx: &Ctx) -> Result<()> {
    let _swap = Swap::on()?;
    let file = Resident::dirty(ctx, 32)?;

    file.on_device(0..32)?;
    file.map_is_right()?;
    page_out(&file.map, 0..32)?;
    file.is_right()
}

/// Pages that were only read are mapped writable and clean. What a device writes to them where they are
/// is swapped out later, and in: by the GPU, and by the device of `lib/test_hmm.c`.
fn device_writes(ctx: &Ctx) -> Result<()> {
    const PAGES: usize = 16;
    let Ok(mirror) = Mirror::open() else {
        return skip("there is no device of lib/test_hmm.c");
    };
    let _swap = Swap::on()?;
    let file = ctx.file("clean")?;
    file.set_len((2 * PAGES * PAGE) as u64)?;
    let map = Map::shared(&file, 2 * PAGES * PAGE)?;
    map.touch_read(0..2 * PAGES);

    mirror.write(&map, 0..PAGES, &mut [3; PAGES * PAGE])?;
    ctx.gpu()?.compute(Work::Fill {
        dst: map.page_addr(PAGES),
        count: PAGES * PAGE / 4,
        value: 0x0303_0303,
    })?;
    page_out(&map, 0..2 * PAGES)?;
    let wrong = map.read_all().iter().position(|&byte| byte != 3);
    ensure!(wrong.is_none(), "the byte at {wrong:#x?} is wrong");
    Ok(())
}

/// Pages in swap are read in when they are touched, move, and nothing of them is left in swap to come
/// back in place of what the GPU wrote.
fn swapped_pages_move(ctx: &Ctx) -> Result<()> {
    let _swap = Swap::on()?;
    let mut file = Resident::in_ram(ctx, 32)?;
    file.map.touch_write(0..32)?;
    page_out(&file.map, 0..32)?;

    file.send(0..32, Touch::Write)?;
    file.gpu_add(0..32, 9)?;
    file.on_device(0..32)?;
    file.is_right()?;
    page_out(&file.map, 0..32)?;
    file.gpu_add(0..32, 9)?;
    file.is_right()
}

/// A file whose pages are in all three places is cut.
fn swap_in_truncate(ctx: &Ctx) -> Result<()> {
    let _swap = Swap::on()?;
    let mut file = Resident::dirty(ctx, 32)?;
    file.map.touch_read(8..24);
    page_out(&file.map, 16..24)?;

    file.on_device(0..8)?;
    let end = 4 * PAGE + 100;
    file.file.set_len(end as u64)?;
    file.file.set_len(32 * PAGE as u64)?;
    file.want[end..].fill(0);
    file.is_right()
}

/// More than the memory that its user may have, part after part on the device: what is not there is
/// pushed out to swap, and all of it is right.
fn swap_under_pressure(ctx: &Ctx) -> Result<()> {
    const PARTS: usize = 8;
    const PAGES: usize = 512;
    let _swap = Swap::on()?;
    // What the file must contain is in memory a second time.
    let _group = Cgroup::enter(PARTS * PAGES * PAGE * 3 / 2)?;
    let before = swapped_out()?;
    let mut file = Resident::in_ram(ctx, PARTS * PAGES)?;

    for part in 0..PARTS {
        let pages = part * PAGES..(part + 1) * PAGES;
        file.send(pages.clone(), Touch::Write)?;
        file.gpu_add(pages.clone(), 1)?;
        file.map.touch_read(pages);
    }
    ensure!(swapped_out()? > before, "nothing was swapped out");
    file.is_right()
}
