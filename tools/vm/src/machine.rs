// SPDX-License-Identifier: GPL-2.0

//! The virtual machine as a command line of QEMU.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use clap::ValueEnum;
use command_fds::{CommandFdExt, FdMapping};

use crate::guest::Session;

/// What a machine has in all its runs.
#[derive(clap::Args)]
pub struct Machine {
    /// The kernel.
    #[arg(long)]
    kernel: PathBuf,

    /// The folder that the guest sees at /devcache, with bin/ and lib/modules/; files are added to it.
    #[arg(long)]
    pub(crate) guest: PathBuf,

    /// A folder that the guest sees at /host.
    #[arg(long, env = "SHARE")]
    pub(crate) share: Option<PathBuf>,

    /// Memory of the guest.
    #[arg(long, env = "MEM", default_value = "2G")]
    memory: String,

    /// Processors of the guest.
    #[arg(long, default_value_t = 2)]
    cpus: u8,

    /// How the guest's processors are run.
    #[arg(long, env = "ACCEL", value_enum, default_value_t = Accel::Tcg)]
    accel: Accel,

    /// Number of GPUs.
    #[arg(long, env = "GPU", default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=4))]
    pub(crate) gpu: u8,

    /// Whether the GPUs reach memory through an IOMMU only, which forgets at once what is unmapped.
    #[arg(long, env = "IOMMU", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=1))]
    iommu: u8,

    /// Options for the model of each GPU.
    #[arg(long, env = "GPU_ARGS", default_value = "", allow_hyphen_values = true)]
    pub(crate) gpu_args: String,

    /// More of the kernel's command line.
    #[arg(long, default_value = "")]
    append: String,
}

/// How the guest's processors are run.
#[derive(Clone, Copy, ValueEnum)]
enum Accel {
    /// By translation: slow and works everywhere.
    Tcg,
    /// By the host's processor. That /dev/kvm can be opened does not say that a guest will run.
    Kvm,
}

/// What is behind a disk of the guest.
pub enum Drive {
    /// A file that is of no use after the run, so flushes are not passed on.
    File(PathBuf),
    /// A server that speaks the protocol of network block devices on this socket.
    Server(OwnedFd),
}

/// Ports of the virtio serial device; the guest's `vport0p1` and so on. The fourth is the terminal of
/// an interactive run.
pub const PORTS: [&str; 3] = ["out", "err", "ctl"];

/// The port of the virtio serial device that [`Session::port`] is connected to.
const OWN_PORT: usize = 5;

/// The guest's name of it.
pub const OWN_PORT_PATH: &str = "/dev/vport0p5";

/// The first inherited file descriptor.
const FIRST_FD: i32 = 10;

/// Sockets that QEMU inherits.
#[derive(Default)]
struct Inherited(Vec<FdMapping>);

impl Inherited {
    /// Adds one; gives the number that QEMU has for it.
    fn add(&mut self, socket: OwnedFd) -> Result<i32> {
        let child_fd = FIRST_FD + i32::try_from(self.0.len())?;
        self.0.push(FdMapping {
            parent_fd: socket,
            child_fd,
        });
        Ok(child_fd)
    }
}

/// The root file system: the sysroot as `enter.sh` mounts it, without the mounts on top of it.
const ROOT: &str = "/devcache/root";

/// How the guest mounts what never changes while it runs.
const READ_ONLY: &str = "trans=virtio,version=9p2000.L,msize=262144,cache=loose";

/// Property of a virtio device that keeps its state while the machine sleeps.
const AWAKE: &str = "x-pcie-pm-no-soft-reset=on";

/// QEMU with everything the run needs, not started yet.
///
/// `ports` are for [`PORTS`].
pub fn command<'a>(
    machine: &Machine,
    session: Session<'_>,
    ports: Vec<OwnedFd>,
    gpus: impl Iterator<Item = &'a Path>,
) -> Result<Command> {
    let mut inherited = Inherited::default();
    let mut qemu = Command::new("qemu-system-x86_64");
    let mut add = |option: &str, value: String| {
        qemu.arg(format!("-{option}")).arg(value);
    };
    // A kernel that believes in fast string instructions copies a byte at a time where they are emulated.
    let (accel, cpu) = match machine.accel {
        Accel::Tcg => ("tcg,thread=multi", "max,-erms,-fsrm"),
        Accel::Kvm => ("kvm", "host"),
    };
    add("accel", accel.to_owned());
    add("cpu", cpu.to_owned());
    add("smp", machine.cpus.to_string());
    add("m", machine.memory.clone());
    // The GPU model maps the guest's memory, so it has to be a shared file.
    add(
        "object",
        format!(
            "memory-backend-memfd,id=memory,share=on,size={}",
            machine.memory
        ),
    );
    add("machine", "q35,memory-backend=memory".to_owned());
    if machine.iommu == 1 {
        // Before all devices that are behind it.
        let iommu = "intel-iommu,intremap=on,caching-mode=on";
        add("device", iommu.to_owned());
    }

    add(
        "chardev",
        format!("file,id=console,path={}", session.console.display()),
    );
    add("serial", "chardev:console".to_owned());
    add("device", "virtio-serial-pci".to_owned());
    let own = session.port.map(|socket| ("own", OWN_PORT, socket));
    let ports = PORTS.into_iter().zip(ports).zip(1..);
    let ports = ports.map(|((port, socket), number)| (port, number, socket));
    for (port, number, socket) in ports.chain(own) {
        let fd = inherited.add(socket)?;
        add("chardev", format!("socket,id={port},fd={fd}"));
        add(
            "device",
            format!("virtserialport,chardev={port},name={port},nr={number}"),
        );
    }
    if session.command.is_none() {
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
    folder("guest", &machine.guest, ",readonly=on");
    if let Some(share) = &machine.share {
        folder("share", share, "");
    }
    for (number, drive) in session.drives.into_iter().enumerate() {
        let backend = match drive {
            Drive::File(path) => {
                let path = path.display();
                format!("format=raw,cache=unsafe,discard=unmap,file={path}")
            }
            Drive::Server(socket) => {
                let fd = inherited.add(socket)?;
                format!("format=raw,cache=writeback,file.driver=nbd,file.server.type=fd,file.server.str={fd}")
            }
        };
        add("drive", format!("if=none,id=disk{number},{backend}"));
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

    add("kernel", machine.kernel.display().to_string());
    add("append", kernel_command_line(machine));
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
    ]);
    qemu.fd_mappings(inherited.0)?;
    Ok(qemu)
}

fn kernel_command_line(machine: &Machine) -> String {
    // An oops ends the run at once; KUnit runs when it is asked for. On a busy host the test of the
    // timer fails now and then. The first process mounts the folder that holds the real one: a shell
    // does for that.
    let more = &machine.append;
    // QEMU drops its translation of code when a processor writes to that page, but cannot see what a GPU
    // writes. So a page is cleared when it is allocated: a GPU may fill it next, and then it may be run.
    let accel = match machine.accel {
        Accel::Tcg => "init_on_alloc=1",
        Accel::Kvm => "",
    };
    let iommu = match machine.iommu {
        0 => "",
        _ => "intel_iommu=on iommu.strict=1",
    };
    format!(
        "console=ttyS0 ignore_loglevel oops=panic panic=-1 no_timer_check kunit.enable=0 {accel} {iommu} \
         {more} \
         root=root rootfstype=9p rootflags={READ_ONLY} ro init=/bin/sh -- \
         -c \"/usr/bin/mount -t 9p -o {READ_ONLY} guest /devcache && exec /devcache/init\""
    )
}
