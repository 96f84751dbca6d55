// SPDX-License-Identifier: GPL-2.0
//! Several processes, private copies, and access to the memory of others.

use crate::case::Case;
use crate::case::Ctx;
use crate::check::refused;
use crate::check::same;
use crate::check::same_bytes;
use crate::resident::send;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::Result;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::gpu::Work;
use devcache_selftests::map::Map;
use devcache_selftests::model::add_u32;
use devcache_selftests::pagemap;
use devcache_selftests::pagemap::Place;
use devcache_selftests::sys;
use devcache_selftests::sys::in_child;
use devcache_selftests::PAGE;
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::uio::process_vm_readv;
use nix::sys::uio::process_vm_writev;
use nix::sys::uio::RemoteIoVec;
use nix::sys::wait::waitpid;
use nix::unistd::getpid;
use std::fs::File;
use std::io::IoSlice;
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

pub(crate) const CASES: &[Case] = &[
    Case::every("fork_shared", fork_shared),
    Case::every("fork_writes", fork_writes),
    Case::every("two_processes", two_processes),
    Case::every("private_read", private_read),
    Case::every("private_write", private_write),
    Case::every("private_fork", private_fork),
    Case::every("private_gpu_write", private_gpu_write),
    Case::every("process_vm_readv", process_vm_read),
    Case::every("process_vm_writev", process_vm_write),
    Case::every("proc_mem", proc_mem),
    Case::every("ptrace_peek_and_poke", ptrace_peek_and_poke),
    Case::every("futex_value", futex_value),
    Case::every("futex_wake", futex_wake),
    Case::every("exit_while_resident", exit_while_resident),
];

/// A child of fork(2) sees what the GPU wrote.
fn fork_shared(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 8)?;

    file.on_device(0..8)?;
    in_child(|| file.map_is_right())?;
    file.is_right()
}

/// What the child writes, parent and GPU see.
fn fork_writes(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 8)?;

    file.on_device(0..8)?;
    in_child(|| {
        file.map.write(3 * PAGE + 5, b"by the child");
        Ok(())
    })?;
    file.want[3 * PAGE + 5..][..12].copy_from_slice(b"by the child");
    file.gpu_sees(0..8)?;
    file.is_right()
}

/// Two processes compute on one file, each with a GPU address space of its own.
fn two_processes(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 8)?;

    file.on_device(0..8)?;
    in_child(|| {
        let gpu = Gpu::open()?;
        let map = Map::shared(
            &File::options().read(true).write(true).open(&file.path)?,
            8 * PAGE,
        )?;
        send(&gpu, &map, 0..8, Touch::Write)?;
        gpu.compute(Work::Add {
            dst: map.addr(),
            count: 8 * PAGE / 4,
            value: 11,
        })?;
        Ok(())
    })?;
    add_u32(&mut file.want, 11);
    file.gpu_add(0..8, 13)?;
    file.is_right()
}

/// A private mapping reads what the GPU wrote into the file.
fn private_read(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 8)?;
    let private = Map::private(&file.file, 8 * PAGE)?;

    file.on_device(0..8)?;
    same_bytes("private mapping", &private.read_all(), &file.want)
}

/// A store into a private mapping copies from what the GPU wrote and leaves the file alone
/// (`do_cow_fault`).
fn private_write(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 4)?;
    let private = Map::private(&file.file, 4 * PAGE)?;

    file.on_device(0..4)?;
    private.write(PAGE + 7, b"private");
    let mut want = file.want.clone();
    want[PAGE + 7..][..7].copy_from_slice(b"private");
    file.gpu_add(2..4, 1)?;
    add_u32(&mut want[2 * PAGE..], 1);
    same_bytes("private mapping", &private.read_all(), &want)?;
    file.is_right()
}

/// Device entries of a file in a private mapping survive fork(2) (`copy_nonpresent_pte`) and exit
/// (`zap_nonpresent_ptes`), with the counts of pages of the process right.
fn private_fork(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::in_ram(ctx, 8)?;
    let private = Map::private(&file.file, 8 * PAGE)?;
    private.touch_write(0..1)?;
    private.touch_read(1..8);
    let own = private.read(0..PAGE);

    file.send(1..8, Touch::Write)?;
    file.gpu_add(1..8, 21)?;
    file.send(1..8, Touch::Write)?;
    private.touch_read(0..1);
    same(
        "pages of the private mapping not on the device",
        pagemap::elsewhere(&private, 0..8, Place::Device)?,
        vec![0],
    )?;

    let want = [own.as_slice(), &file.want[PAGE..]].concat();
    in_child(|| {
        private.write(2 * PAGE, b"x");
        let mut want = want.clone();
        want[2 * PAGE] = b'x';
        same_bytes("private mapping of the child", &private.read_all(), &want)
    })?;
    in_child(|| Ok(()))?;
    same_bytes("private mapping", &private.read_all(), &want)?;
    file.is_right()
}

/// A GPU store into a private mapping copies too: the file does not change.
fn private_gpu_write(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 4)?;
    let private = Map::private(&file.file, 4 * PAGE)?;
    let mut want = file.want.clone();

    file.on_device(0..4)?;
    ctx.gpu()?.compute(Work::Add {
        dst: private.addr(),
        count: 4 * PAGE / 4,
        value: 31,
    })?;
    add_u32(&mut want, 31);
    same_bytes("private mapping", &private.read_all(), &want)?;
    file.is_right()
}

/// process_vm_readv(2) gets at device pages by pinning them.
fn process_vm_read(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 4)?;
    let mut got = vec![0; 4 * PAGE];
    let remote = RemoteIoVec {
        base: file.map.addr(),
        len: 4 * PAGE,
    };

    file.on_device(0..4)?;
    let len = process_vm_readv(getpid(), &mut [IoSliceMut::new(&mut got)], &[remote])?;
    same("bytes", len, 4 * PAGE)?;
    same_bytes("process_vm_readv", &got, &file.want)
}

/// process_vm_writev(2) into device pages.
fn process_vm_write(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 4)?;
    let text = [0x3c; 5000];
    let remote = RemoteIoVec {
        base: file.map.addr() + 999,
        len: 5000,
    };

    file.on_device(0..4)?;
    same(
        "bytes",
        process_vm_writev(getpid(), &[IoSlice::new(&text)], &[remote])?,
        5000,
    )?;
    file.want[999..5999].copy_from_slice(&text);
    file.gpu_sees(0..4)?;
    file.is_right()
}

/// /proc/PID/mem, which ptrace(2) shares its way with.
fn proc_mem(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 4)?;
    let mem = File::options()
        .read(true)
        .write(true)
        .open("/proc/self/mem")?;
    let mut got = vec![0; 4 * PAGE];

    file.on_device(0..4)?;
    mem.read_exact_at(&mut got, file.map.addr() as u64)?;
    same_bytes("/proc/self/mem", &got, &file.want)?;
    file.send(0..4, Touch::Write)?;
    mem.write_all_at(b"poked", file.map.page_addr(2) as u64)?;
    file.want[2 * PAGE..][..5].copy_from_slice(b"poked");
    file.gpu_sees(0..4)?;
    file.is_right()
}

/// A debugger reads and writes device pages of the process it traces.
fn ptrace_peek_and_poke(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::dirty(ctx, 4)?;
    let traced = getpid();
    let place = |page| file.map.page_addr(page) as ptrace::AddressType;
    let want = i64::from_ne_bytes(file.want[..8].try_into()?);

    file.on_device(0..4)?;
    in_child(|| {
        ptrace::attach(traced)?;
        waitpid(traced, None)?;
        let got = ptrace::read(traced, place(0));
        let written = ptrace::write(traced, place(2), 0x5151_5151_5151_5151);
        ptrace::detach(traced, None)?;
        written?;
        same("word", got?, want)
    })?;
    file.on_device(1..2)?;
    file.want[2 * PAGE..][..8].fill(0x51);
    file.gpu_sees(0..4)?;
    file.is_right()
}

/// A futex in a device page has the value the GPU wrote.
fn futex_value(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 1)?;
    let soon = Duration::from_millis(20);
    ctx.gpu()?.compute(Work::Fill {
        dst: file.map.addr(),
        count: 4,
        value: 7,
    })?;

    file.send(0..1, Touch::Write)?;
    refused(
        "wait for another value",
        sys::futex_wait(file.map.cell(0), 6, soon),
        Errno::EAGAIN,
    )?;
    file.send(0..1, Touch::Write)?;
    refused(
        "wait for this value",
        sys::futex_wait(file.map.cell(0), 7, soon),
        Errno::ETIMEDOUT,
    )
}

/// A waiter is found by its futex although the page moved since, and through another mapping.
fn futex_wake(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 1)?;
    let other = Map::shared(&file.file, PAGE)?;
    file.map.cell(0).store(1, Ordering::Relaxed);

    thread::scope(|scope| {
        let waiter = scope.spawn(|| sys::futex_wait(file.map.cell(0), 1, Duration::from_secs(20)));
        thread::sleep(Duration::from_millis(200));
        file.send(0..1, Touch::Write)?;
        for _ in 0..100 {
            if sys::futex_wake(other.cell(0))? == 1 {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        same(
            "the waiter's end",
            waiter.join().expect("does not panic"),
            Ok(()),
        )
    })
}

/// A process that ends leaves its device pages in the page cache for others.
fn exit_while_resident(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::in_ram(ctx, 8)?;

    in_child(|| {
        file.send(0..8, Touch::Write)?;
        ctx.gpu()?.compute(Work::Add {
            dst: file.map.addr(),
            count: 8 * PAGE / 4,
            value: 41,
        })?;
        file.send(0..8, Touch::Write)
    })?;
    add_u32(&mut file.want, 41);
    file.is_right()
}
