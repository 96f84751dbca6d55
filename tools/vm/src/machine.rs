// SPDX-License-Identifier: GPL-2.0

//! The virtual machine as a command line of QEMU.

use std::path::Path;
use std::process::Command;

use crate::disks::Disks;
use crate::{Accel, Args};

/// Ports of the virtio serial device; the guest's `vport0p1` and so on.
///
/// Each is an inherited socket with the number in `FIRST_FD` plus its index.
pub const PORTS: [&str; 3] = ["out", "err", "ctl"];

/// The first inherited file descriptor.
pub const FIRST_FD: i32 = 10;

/// The root file system: the sysroot as `enter.sh` mounts it, without the mounts on top of it.
const ROOT: &str = "/devcache/root";

/// How the guest mounts what never changes while it runs.
const READ_ONLY: &str = "trans=virtio,version=9p2000.L,msize=262144,cache=loose";

/// Property of a virtio device that keeps its state while the machine sleeps.
const AWAKE: &str = "x-pcie-pm-no-soft-reset=on";

/// QEMU with everything the run needs, not started yet.
pub fn command<'a>(
    args: &Args,
    disks: &Disks,
    console: &Path,
    gpus: impl Iterator<Item = &'a Path>,
) -> Command {
    let mut qemu = Command::new("qemu-system-x86_64");
    let mut add = |option: &str, value: String| {
        qemu.arg(format!("-{option}")).arg(value);
    };
    let (accel, cpu) = match args.accel {
        Accel::Tcg => ("tcg,thread=multi", "max"),
        Accel::Kvm => ("kvm", "host"),
    };
    add("accel", accel.to_owned());
    add("cpu", cpu.to_owned());
    add("smp", args.cpus.to_string());
    add("m", args.memory.clone());
    // The GPU model maps the guest's memory, so it has to be a shared file.
    add(
        "object",
        format!(
            "memory-backend-memfd,id=memory,share=on,size={}",
            args.memory
        ),
    );
    add("machine", "q35,memory-backend=memory".to_owned());
    if args.iommu == 1 {
        // Before all devices that are behind it.
        let iommu = "intel-iommu,intremap=on,caching-mode=on";
        add("device", iommu.to_owned());
    }

    add(
        "chardev",
        format!("file,id=console,path={}", console.display()),
    );
    add("serial", "chardev:console".to_owned());
    add("device", "virtio-serial-pci".to_owned());
    for ((fd, port), number) in (FIRST_FD..).zip(PORTS).zip(1..) {
        add("chardev", format!("socket,id={port},fd={fd}"));
        add(
            "device",
            format!("virtserialport,chardev={port},name={port},nr={number}"),
        );
    }
    if args.command.is_none() {
        add("chardev", "stdio,id=tty,signal=off".to_owned());
        add("device", "virtconsole,chardev=tty,nr=4".to_owned());
    }

    let mut chassis = 1;
    // The guest's driver of such folders does not set them up again when the machine has slept. Behind
    // ports they say that they do not need that.
    let mut folder = |tag: &str, path: &Path, readonly: &str| {
        let path = path.display();
        add(
            "fsdev",
            format!(
                "local,id={tag},path={path},security_model=passthrough,multidevs=remap{readonly}"
            ),
        );
        add(
            "device",
            format!("pcie-root-port,id=port-{tag},chassis={chassis}"),
        );
        add(
            "device",
            format!("virtio-9p-pci,fsdev={tag},mount_tag={tag},bus=port-{tag},{AWAKE}"),
        );
        chassis += 1;
    };
    folder("root", Path::new(ROOT), ",readonly=on");
    folder("guest", &args.guest, ",readonly=on");
    if let Some(share) = &args.share {
        folder("share", share, "");
    }
    for (number, disk) in disks.paths().enumerate() {
        add(
            "drive",
            format!(
                "if=none,id=disk{number},format=raw,cache=unsafe,discard=unmap,file={}",
                disk.display()
            ),
        );
        add("device", format!("virtio-blk-pci,drive=disk{number}"));
    }
    for socket in gpus {
        // A reply that is later than the limit would end the link for good.
        let socket = format!(r#"{{"type":"unix","path":"{}"}}"#, socket.display());
        add(
            "device",
            format!(r#"{{"driver":"vfio-user-pci","socket":{socket},"x-msg-timeout":60000}}"#),
        );
    }

    add("kernel", args.kernel.display().to_string());
    add("append", kernel_command_line(args));
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
    ]);
    qemu
}

fn kernel_command_line(args: &Args) -> String {
    // An oops ends the run at once; KUnit runs when it is asked for. On a busy host the test of the
    // timer fails now and then. The first process mounts the folder that holds the real one: a shell
    // does for that.
    let more = &args.append;
    let iommu = match args.iommu {
        0 => "",
        _ => "intel_iommu=on iommu.strict=1",
    };
    format!(
        "console=ttyS0 ignore_loglevel oops=panic panic=-1 no_timer_check kunit.enable=0 {iommu} {more} \
         root=root rootfstype=9p rootflags={READ_ONLY} ro init=/bin/sh -- \
         -c \"/usr/bin/mount -t 9p -o {READ_ONLY} guest /devcache && exec /devcache/init\""
    )
}
