// SPDX-License-Identifier: GPL-2.0
//! Two GPUs: pages go from one to the other through RAM, and each notices that they are the other's
//! (`hmm_range_fault`, `migrate_vma_collect`: the owner of the pagemap).

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
use devcache_selftests::gpu::Gpu;
use devcache_selftests::gpu::Work;
use devcache_selftests::map::Map;
use devcache_selftests::model::add_u32;
use devcache_selftests::PAGE;
use std::time::Duration;

pub(crate) const CASES: &[Case] = &[
    Case::every("two_gpus_file", file),
    Case::once("two_gpus_anonymous", anonymous),
    Case::every("two_gpus_at_once", at_once),
];

const PAGES: usize = 32;

/// A GPU besides the one under test.
fn other() -> Result<Gpu> {
    match Gpu::open_other()? {
        Some(gpu) => Ok(gpu),
        None => skip("there is one GPU only: GPU=2"),
    }
}

/// A job that adds to the elements of all pages.
fn add(map: &Map, value: u32) -> Work {
    Work::Add {
        dst: map.addr(),
        count: map.len() / 4,
        value,
    }
}

/// VRAM in use, in pages.
fn used(gpu: &Gpu) -> Result<u64> {
    Ok((gpu.vram_total()? - gpu.vram_free()?) / PAGE as u64)
}

/// Pages of a file are where they were sent last, with what both GPUs and the CPU have written.
fn file(ctx: &Ctx) -> Result<()> {
    let other = other()?;
    let mut file = Resident::dirty(ctx, PAGES)?;
    let (here, there) = (ctx.gpu()?, &other);

    for round in 0..4 {
        // It computes on the other's pages where it can reach them: in RAM.
        there.compute(add(&file.map, 1))?;
        file.off_device(0..PAGES)?;
        send(there, &file.map, 0..PAGES, Touch::Write)?;
        file.on_device(0..PAGES)?;
        there.compute(add(&file.map, 2))?;
        file.on_device(0..PAGES)?;
        add_u32(&mut file.want, 3);

        let before = used(here)?;
        send(here, &file.map, 0..PAGES, Touch::Read)?;
        same("pages that came", used(here)? - before, PAGES as u64)?;
        if round % 2 == 1 {
            file.is_right()?;
            file.file.sync_all()?;
            send(here, &file.map, 0..PAGES, Touch::Write)?;
        }
    }
    file.is_right()
}

/// The same for memory of a program.
fn anonymous(ctx: &Ctx) -> Result<()> {
    let other = other()?;
    let map = Map::anonymous(PAGES * PAGE)?;
    let mut want = vec![5; PAGES * PAGE];
    map.write(0, &want);

    for _ in 0..4 {
        for gpu in [ctx.gpu()?, &other] {
            send(gpu, &map, 0..PAGES, Touch::Read)?;
            gpu.compute(add(&map, 7))?;
            add_u32(&mut want, 7);
        }
    }
    same_bytes("memory", &map.read_all(), &want)
}

/// Both compute on one file at the same time, each on its half, and fault for it in turn.
fn at_once(ctx: &Ctx) -> Result<()> {
    const ROUNDS: u32 = 20;
    let other = other()?;
    let mut file = Resident::dirty(ctx, PAGES)?;
    let half = |number: usize| Work::Add {
        dst: file.map.page_addr(number * PAGES / 2),
        count: PAGES * PAGE / 8,
        value: 1,
    };

    for round in 0..ROUNDS as usize {
        // Who has which half changes, and so do the pages.
        let mut jobs = Vec::new();
        for (number, gpu) in [ctx.gpu()?, &other].into_iter().enumerate() {
            let part = (number + round) % 2;
            let pages = part * PAGES / 2..(part + 1) * PAGES / 2;
            gpu.migrate(&file.map, pages, Direction::ToVram)?;
            jobs.push((gpu, gpu.submit(half(part))?));
        }
        for (gpu, job) in jobs {
            let ended = gpu.wait(job, Duration::from_secs(20))?;
            same("status", ended.status, 0)?;
        }
    }
    add_u32(&mut file.want, ROUNDS);
    file.is_right()
}
