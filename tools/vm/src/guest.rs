// SPDX-License-Identifier: GPL-2.0

//! One run of a machine from start to end.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use devcache_stage::Log;

use crate::machine::{Drive, Machine};
use crate::{console, machine};

const INIT: &str = include_str!("guest-init.sh");

/// How long the GPU model may take until it listens.
const GPU_START: Duration = Duration::from_secs(10);

/// How long the guest may take to power off after its command has ended.
const POWER_OFF: Duration = Duration::from_secs(30);

/// How often the state of things is looked at.
const TICK: Duration = Duration::from_millis(20);

/// A child process that does not outlive its owner.
struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        // Fails when it has ended already, which is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn prepare_guest_folder(machine: &Machine, command: Option<&str>) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;

    let init = machine.guest.join("init");
    fs::write(&init, INIT).with_context(|| format!("cannot write {}", init.display()))?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    let flags = [
        ("cmd", command),
        ("gpu", (machine.gpu != 0).then_some("")),
        ("share", machine.share.as_ref().map(|_| "")),
    ];
    for (name, content) in flags {
        if let Some(content) = content {
            fs::write(machine.guest.join(name), content)?;
        }
    }
    Ok(())
}

/// Starts a GPU model and waits until it listens: QEMU connects once.
fn start_gpu(machine: &Machine, number: u8, log: &Log) -> Result<(Owned, PathBuf)> {
    let name = format!("vsvm-gpu-{}-{number}.sock", std::process::id());
    let socket = std::env::temp_dir().join(name);
    let output = File::options().append(true).open(log.path())?;
    let model = Command::new("vsvm-gpu")
        .arg("--socket")
        .arg(&socket)
        .args(machine.gpu_args.split_whitespace())
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .context("cannot start the GPU model vsvm-gpu")?;
    let mut model = Owned(model);
    let start = Instant::now();
    while !socket.exists() {
        let ended = model.0.try_wait()?;
        if ended.is_some() || start.elapsed() > GPU_START {
            bail!(
                "the GPU model did not start:\n{}",
                fs::read_to_string(log.path())?.trim_end()
            );
        }
        thread::sleep(TICK);
    }
    Ok((model, socket))
}

/// What the guest's first process reported: lines of a word and a number.
#[derive(Default)]
struct Report(String);

impl Report {
    fn number(&self, word: &str) -> Option<u64> {
        let mut pairs = self.0.lines().filter_map(|line| line.split_once(' '));
        pairs.find(|(name, _)| *name == word)?.1.parse().ok()
    }
}

/// How a run ended.
pub struct Ended {
    report: Report,
    /// What went wrong, if the guest did not get to report an exit status.
    trouble: Option<String>,
}

impl Ended {
    /// Decides by what the guest reported and by its console how the run went. Complaints of a kernel that
    /// is `broken` on purpose do not count.
    pub fn judge(self, console: &str, log: &Path, broken: bool) -> Result<u8> {
        let log = log.display();
        if let Some(found) = console::complaints(console)?.filter(|_| !broken) {
            bail!("the kernel complained:\n{found}the whole console: {log}");
        }
        if let Some(trouble) = self.trouble {
            let lines: Vec<&str> = console.lines().collect();
            let tail = lines[lines.len().saturating_sub(20)..].join("\n  ");
            bail!("{trouble}; the end of its console:\n  {tail}\nthe whole console: {log}");
        }
        let tainted = self.report.number("tainted").filter(|_| !broken);
        if let Some(taints) = tainted.and_then(console::taints) {
            bail!("the kernel is tainted ({taints}); its console: {log}");
        }
        let status = self.report.number("status");
        status
            .and_then(|status| status.try_into().ok())
            .context("the guest reported no exit status")
    }
}

/// What a machine is to do in one run.
pub struct Session<'a> {
    /// The command, for the guest's shell; without one, the user gets a shell.
    pub command: Option<&'a str>,
    /// The disks, in the order of the guest's names `vda`, `vdb`, ...
    pub drives: Vec<Drive>,
    /// What the guest has at [`machine::OWN_PORT_PATH`].
    pub port: Option<OwnedFd>,
    /// The file for what the kernel says.
    pub console: &'a Path,
}

/// A running guest. When it is dropped it ends at once, as by a power cut.
pub struct Guest {
    qemu: Owned,
    _gpus: Vec<Owned>,
    output: Vec<JoinHandle<io::Result<()>>>,
    report: JoinHandle<io::Result<String>>,
    reported: Arc<AtomicBool>,
    log: PathBuf,
}

impl Guest {
    /// Starts a machine. What the command prints appears as this process's own output.
    pub fn start(machine: &Machine, session: Session<'_>, log: &Log) -> Result<Self> {
        prepare_guest_folder(machine, session.command)?;
        let gpus = (0..machine.gpu).map(|number| start_gpu(machine, number, log));
        let (gpus, gpu_sockets): (Vec<_>, Vec<_>) =
            gpus.collect::<Result<Vec<_>>>()?.into_iter().unzip();

        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        for _ in machine::PORTS {
            let (host, guest) = UnixStream::pair()?;
            ours.push(host);
            theirs.push(OwnedFd::from(guest));
        }
        let interactive = session.command.is_none();
        let sockets = gpu_sockets.iter().map(PathBuf::as_path);
        let mut qemu = machine::command(machine, session, theirs, sockets)?;
        let output = File::options().append(true).open(log.path())?;
        qemu.stdin(if interactive {
            Stdio::inherit()
        } else {
            Stdio::null()
        });
        qemu.stdout(if interactive {
            Stdio::inherit()
        } else {
            output.try_clone()?.into()
        });
        let child = qemu.stderr(output).spawn().context("cannot start QEMU")?;
        let child = Owned(child);
        // The command holds our copies of QEMU's ends; with them open the threads would never end.
        drop(qemu);

        let mut ours = ours.into_iter();
        let (Some(out), Some(err), Some(ctl)) = (ours.next(), ours.next(), ours.next()) else {
            bail!("the machine has fewer ports than the guest uses");
        };
        let reported = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&reported);
        Ok(Self {
            qemu: child,
            _gpus: gpus,
            output: vec![
                thread::spawn(move || pass(out, io::stdout())),
                thread::spawn(move || pass(err, io::stderr())),
            ],
            report: thread::spawn(move || listen(ctl, &flag)),
            reported,
            log: log.path().to_owned(),
        })
    }

    /// Waits for the end of the guest, or makes it.
    pub fn wait(mut self, limit: Option<Duration>, interrupted: &AtomicBool) -> Result<Ended> {
        let start = Instant::now();
        let mut since_report = None;
        let (status, trouble) = loop {
            if let Some(status) = self.qemu.0.try_wait()? {
                break (Some(status), None);
            }
            if interrupted.load(Ordering::Relaxed) {
                break (None, Some("interrupted".to_owned()));
            }
            if self.reported.load(Ordering::Relaxed) {
                let since = *since_report.get_or_insert_with(Instant::now);
                if since.elapsed() > POWER_OFF {
                    break (None, Some("the guest did not power off".to_owned()));
                }
            } else if limit.is_some_and(|limit| start.elapsed() > limit) {
                let seconds = start.elapsed().as_secs();
                break (
                    None,
                    Some(format!(
                        "the guest was not done after {seconds} s (TIMEOUT)"
                    )),
                );
            }
            thread::sleep(TICK);
        };
        drop(self.qemu);
        for thread in self.output {
            thread
                .join()
                .ok()
                .context("a thread panicked")?
                .context("cannot pass on the guest's output")?;
        }
        let report = Report(self.report.join().ok().context("a thread panicked")??);
        let died = report.number("status").is_none() && trouble.is_none();
        let trouble = if died {
            Some(why(status, &self.log)?)
        } else {
            trouble
        };
        Ok(Ended { report, trouble })
    }
}

/// Why QEMU ended before the guest was done.
fn why(status: Option<ExitStatus>, log: &Path) -> Result<String> {
    ensure!(
        status.is_some_and(|status| status.success()),
        "QEMU failed:\n{}",
        fs::read_to_string(log)?.trim_end()
    );
    Ok("the guest went down before its command was done".to_owned())
}

/// Copies what the guest writes as it comes.
fn pass(mut from: UnixStream, mut to: impl Write) -> io::Result<()> {
    let mut buffer = [0; 65536];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..count])?;
        to.flush()?;
    }
}

/// Collects the guest's report and notes when it is complete.
fn listen(mut from: UnixStream, complete: &AtomicBool) -> io::Result<String> {
    let mut report = String::new();
    let mut buffer = [0; 256];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(report);
        }
        report.push_str(&String::from_utf8_lossy(&buffer[..count]));
        if report.lines().any(|line| line.starts_with("status ")) {
            complete.store(true, Ordering::Relaxed);
        }
    }
}
