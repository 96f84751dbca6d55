// SPDX-License-Identifier: GPL-2.0
//! The driver goes away while pages of files are on the device, and comes again.

use crate::case::skip;
use crate::case::Case;
use crate::case::Ctx;
use crate::check::refused;
use crate::check::same;
use crate::check::same_bytes;
use crate::resident::send;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::bus;
use devcache_selftests::gpu::Direction;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::gpu::Work;
use devcache_selftests::gpu::DRIVER;
use devcache_selftests::map::Map;
use devcache_selftests::model::add_u32;
use devcache_selftests::pagemap;
use devcache_selftests::pagemap::Place;
use devcache_selftests::sys::in_child;
use devcache_selftests::PAGE;
use nix::errno::Errno;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

pub(crate) const CASES: &[Case] = &[
    Case::every("module_reload", module_reload).limit(120),
    Case::every("unbind", unbind).limit(120),
    Case::every("unbind_while_mapped", unbind_while_mapped).limit(120),
    Case::once("unbind_anonymous", unbind_anonymous).limit(120),
];

/// Waits until the driver has a device again.
pub(crate) fn wait_for_gpu() -> Result<()> {
    for _ in 0..250 {
        if Gpu::open_detached().is_ok() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Gpu::open_detached()
        .map(drop)
        .context("after the driver came again")
}

/// Runs modprobe.
pub(crate) fn modprobe(arguments: &[&str]) -> Result<()> {
    let output = Command::new("modprobe")
        .args(arguments)
        .output()
        .context("run modprobe")?;
    ensure!(
        output.status.success(),
        "modprobe {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(())
}

/// The module is out; it is loaded again when this is dropped, for the tests that follow.
struct Unloaded;

impl Unloaded {
    fn now() -> Result<Self> {
        let guard = Unloaded;
        modprobe(&["-r", DRIVER])?;
        Ok(guard)
    }
}

impl Drop for Unloaded {
    fn drop(&mut self) {
        if let Err(error) = modprobe(&[DRIVER]) {
            eprintln!("{error:#}");
        }
    }
}

/// The device is unbound; it is bound again when this is dropped.
pub(crate) struct Unbound {
    driver: PathBuf,
    device: String,
}

impl Unbound {
    pub(crate) fn now() -> Result<Self> {
        let sysfs = Gpu::sysfs()?;
        let device = sysfs.file_name().context("a device has a name")?;
        Ok(Unbound {
            driver: bus::unbind(&sysfs)?,
            device: device.to_string_lossy().into_owned(),
        })
    }
}

impl Drop for Unbound {
    fn drop(&mut self) {
        if let Err(error) = fs::write(self.driver.join("bind"), &self.device) {
            eprintln!("bind {}: {error}", self.device);
        }
    }
}

/// Lets a child with a GPU of its own move and change a file that this process has mapped.
fn changed_by_child(ctx: &Ctx, pages: usize) -> Result<Resident<'_>> {
    let mut file = Resident::in_ram(ctx, pages)?;
    file.map.touch_write(0..pages)?;

    in_child(|| {
        file.send(0..pages, Touch::Write)?;
        ctx.gpu()?.compute(Work::Add {
            dst: file.map.addr(),
            count: pages * PAGE / 4,
            value: 3,
        })?;
        file.send(0..pages, Touch::Write)
    })?;
    add_u32(&mut file.want, 3);
    same(
        "pages not on the device",
        pagemap::elsewhere(&file.map, 0..pages, Place::Device)?,
        vec![],
    )?;
    Ok(file)
}

/// Everything works as before.
fn works_again(ctx: &Ctx, file: &mut Resident<'_>) -> Result<()> {
    wait_for_gpu()?;
    let pages = file.pages();
    in_child(|| {
        file.send(0..pages, Touch::Write)?;
        ctx.gpu()?.compute(Work::Add {
            dst: file.map.addr(),
            count: pages * PAGE / 4,
            value: 4,
        })?;
        Ok(())
    })?;
    add_u32(&mut file.want, 4);
    file.is_right()
}

/// Unloading the module brings every page back, with what the GPU wrote.
fn module_reload(ctx: &Ctx) -> Result<()> {
    if !Path::new("/sys/module")
        .join(DRIVER)
        .join("refcnt")
        .exists()
    {
        return skip("the driver is not a module");
    }
    let mut file = changed_by_child(ctx, 64)?;

    let unloaded = Unloaded::now()?;
    file.off_device(0..64)?;
    file.is_right()?;
    drop(unloaded);
    works_again(ctx, &mut file)
}

/// Unbinding brings every page back, of mapped files and of files nobody has open.
fn unbind(ctx: &Ctx) -> Result<()> {
    let file = changed_by_child(ctx, 64)?;
    fs::rename(&file.path, ctx.path("closed"))?;
    let (_, closed) = file.close();
    let mut file = changed_by_child(ctx, 64)?;

    let unbound = Unbound::now()?;
    file.off_device(0..64)?;
    file.is_right()?;
    same_bytes("closed file", &fs::read(ctx.path("closed"))?, &closed)?;
    ensure!(Gpu::open_detached().is_err(), "the GPU is still there");
    drop(unbound);
    works_again(ctx, &mut file)
}

/// Unbinding while a program has the GPU open and its memory on it: the program's calls say that the
/// device is gone, its memory is all there.
fn unbind_while_mapped(ctx: &Ctx) -> Result<()> {
    let file = Resident::dirty(ctx, 64)?;
    let gpu = ctx.gpu()?;
    let sum = Work::Sum {
        src: file.map.addr(),
        count: 4,
    };

    file.on_device(0..64)?;
    let unbound = Unbound::now()?;
    file.off_device(0..64)?;
    file.is_right()?;
    refused("submit", gpu.submit(sum), Errno::ENODEV)?;
    refused(
        "migrate",
        gpu.migrate(&file.map, 0..4, Direction::ToVram),
        Errno::ENODEV,
    )?;
    drop(unbound);
    wait_for_gpu()?;
    refused("the old file", gpu.submit(sum), Errno::ENODEV)?;

    let gpu = Gpu::open()?;
    send(&gpu, &file.map, 0..64, Touch::Write)?;
    gpu.compute(sum)?;
    file.is_right()
}

/// Anonymous memory comes back too.
fn unbind_anonymous(ctx: &Ctx) -> Result<()> {
    let map = Map::anonymous(64 * PAGE)?;
    map.write(0, &[9; 64 * PAGE]);
    send(ctx.gpu()?, &map, 0..64, Touch::Write)?;

    let unbound = Unbound::now()?;
    same_bytes("memory", &map.read_all(), &[9; 64 * PAGE])?;
    drop(unbound);
    wait_for_gpu()
}
