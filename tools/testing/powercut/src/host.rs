// SPDX-License-Identifier: GPL-2.0
//! The host's side: boots the guest, takes its power away, and boots it again with the same disks.

use crate::book::Book;
use crate::disk::Cut;
use crate::disk::Disk;
use crate::nbd;
use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use clap::Args;
use devcache_selftests::figures::Figures;
use devcache_selftests::ktap::Ktap;
use devcache_selftests::ktap::Verdict;
use devcache_selftests::random::Random;
use devcache_stage::Cache;
use devcache_stage::Log;
use devcache_vm::console;
use devcache_vm::disks::Disks;
use devcache_vm::guest::Guest;
use devcache_vm::guest::Session;
use devcache_vm::machine::Drive;
use devcache_vm::machine::Machine;
use std::fs;
use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;
use std::time::Instant;

/// Cut the power of a virtual machine that writes files by a GPU, again and again.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    machine: Machine,

    /// How often.
    #[arg(long, env = "CUTS", value_name = "N", default_value_t = 100)]
    cuts: u32,

    /// What the moments, and what is lost then, follow from.
    #[arg(long, env = "SEED", value_name = "N")]
    seed: Option<u64>,
}

/// The file systems, as the guest has mounted them.
const FILE_SYSTEMS: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// Limit for a boot until the power may go, or the guest is done.
const LIMIT: Duration = Duration::from_secs(600);

/// The longest time from then on until the power goes, in milliseconds.
const WRITING: usize = 3000;

/// How often a wait looks whether it was interrupted.
const TICK: Duration = Duration::from_millis(20);

/// Everything that stays from boot to boot.
struct Campaign<'a> {
    options: &'a Options,
    log: Log,
    interrupted: &'a AtomicBool,
    disks: Vec<Disk>,
    console: PathBuf,
    book: Book,
    random: Random,
}

/// The end of a boot.
enum End {
    /// The power went after this time of writing.
    Cut(Duration),
    /// The guest had only looked, and powered off.
    Off,
    /// Something was found that may not be.
    Violation,
}

impl Campaign<'_> {
    /// Boots the guest, and takes its power away at some moment if it is to write.
    fn boot(&mut self, number: u32, seed: u64, write: bool) -> Result<End> {
        let moment = Duration::from_millis(self.random.below(WRITING + 1) as u64);
        let look = if write { "" } else { " --look" };
        let command = format!(
            "devcache-powercut write --fs {} --boot {number} --seed {seed}{look}",
            FILE_SYSTEMS.join(",")
        );
        let (port, guest_port) = UnixStream::pair()?;
        let mut ours = Vec::new();
        let mut drives = Vec::new();
        for _ in &self.disks {
            let (server, client) = UnixStream::pair()?;
            ours.push(server);
            drives.push(Drive::Server(client.into()));
        }
        let session = Session {
            command: Some(&command),
            drives,
            port: Some(guest_port.into()),
            console: &self.console,
        };
        self.book.boot();
        let (disks, book, log) = (&mut self.disks, &mut self.book, &self.log);
        let (machine, interrupted) = (&self.options.machine, self.interrupted);
        let (ended, cut) = thread::scope(|scope| {
            let servers: Vec<_> = disks
                .iter_mut()
                .zip(ours)
                .map(|(disk, socket)| scope.spawn(move || nbd::serve(socket, disk)))
                .collect();
            let guest = Guest::start(machine, session, log)?;
            let (sender, ready) = mpsc::channel();
            let listener = scope.spawn(move || book.listen(port, sender));
            let (ended, cut) = if write {
                let waited = wait_for(&ready, interrupted)?;
                if waited {
                    thread::sleep(moment);
                }
                let still_writing = waited && !listener.is_finished();
                drop(guest);
                (None, still_writing)
            } else {
                (Some(guest.wait(Some(LIMIT), interrupted)?), false)
            };
            for server in servers {
                server.join().ok().context("a thread panicked")??;
            }
            listener.join().ok().context("a thread panicked")??;
            anyhow::Ok((ended, cut))
        })?;
        let text = String::from_utf8_lossy(&fs::read(&self.console)?).into_owned();
        if self.book.violation.is_some() {
            return Ok(End::Violation);
        }
        if let Some(ended) = ended {
            let status = ended.judge(&text, &self.console, false)?;
            ensure!(status == 0, "the guest's program ended with {status}");
            return Ok(End::Off);
        }
        if let Some(found) = console::complaints(&text)? {
            bail!("the kernel complained:\n{found}");
        }
        ensure!(cut, "the guest went down by itself");
        Ok(End::Cut(moment))
    }

    /// All boots.
    fn run(&mut self, seed: u64, report: &mut Ktap<io::Stdout>) -> Result<()> {
        let cuts = self.options.cuts;
        for number in 1..=cuts + 1 {
            let begin = Instant::now();
            let before = self.book.confirmed();
            let End::Cut(moment) = self.boot(number, seed, number <= cuts)? else {
                return Ok(());
            };
            let mut sum = Cut::default();
            for disk in &mut self.disks {
                let cut = disk.power_cut(&mut self.random)?;
                sum.kept += cut.kept;
                sum.lost += cut.lost;
            }
            report.diagnostic(&format!(
                "cut {number} of {cuts} after {} ms of writing: {} records confirmed; the disks \
                 lost {} of {} blocks in their caches; {} s",
                moment.as_millis(),
                self.book.confirmed() - before,
                sum.lost,
                sum.kept + sum.lost,
                begin.elapsed().as_secs()
            ))?;
        }
        Ok(())
    }
}

/// Waits until the power may go; says whether that moment came.
fn wait_for(ready: &Receiver<()>, interrupted: &AtomicBool) -> Result<bool> {
    let begin = Instant::now();
    while begin.elapsed() < LIMIT {
        if interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        match ready.recv_timeout(TICK) {
            Ok(()) => return Ok(true),
            Err(RecvTimeoutError::Disconnected) => return Ok(false),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
    bail!(
        "the guest did not write, or confirm, within {} s",
        LIMIT.as_secs()
    )
}

/// Does it all; gives the exit status.
pub(crate) fn run(options: &Options) -> Result<u8> {
    let cache = Cache::from_env()?;
    let log = cache.log("power-cuts")?;
    let interrupted = devcache_vm::interruption()?;
    let disks = Disks::create(&cache, &log)?;
    let open = |path| -> Result<Disk> {
        let file = File::options().read(true).write(true).open(path)?;
        Ok(Disk::new(file)?)
    };
    let seed = match options.seed {
        Some(seed) => seed,
        None => Random::unpredictable()?.value() >> 32,
    };
    let mut campaign = Campaign {
        options,
        log,
        interrupted: &interrupted,
        disks: disks.paths().map(open).collect::<Result<_>>()?,
        console: cache.path("log/console-power-cuts.log"),
        book: Book::default(),
        random: Random::new(seed),
    };
    let mut report = Ktap::new(io::stdout(), FILE_SYSTEMS.len())?;
    report.diagnostic(&format!("{} cuts, seed {seed}", options.cuts))?;
    let result = campaign.run(seed, &mut report);
    let book = &campaign.book;
    let stopped = interrupted.load(Ordering::Relaxed);
    if !stopped && (result.is_err() || book.violation.is_some()) {
        let kept = disks.keep();
        report.diagnostic(&format!(
            "disks: {}, console: {}",
            cache.shown(&kept).display(),
            cache.shown(&campaign.console).display()
        ))?;
    }
    let (out, back) = book.moved();
    let mut sum = Figures::default()
        .with(out, "pages to a device")
        .with(back, "pages back");
    for fs in FILE_SYSTEMS {
        let figures = book.figures(fs);
        let survived = figures.looks.saturating_sub(1);
        let cuts = options.cuts;
        report.diagnostic(&format!(
            "{fs}: {survived} of {cuts} cuts survived; {figures}"
        ))?;
        sum.add(survived as u64, &format!("cuts survived by {fs}"));
        sum.add(figures.compared as u64, "records compared after cuts");
    }
    report.diagnostic(&sum.to_string())?;
    if let Err(error) = result {
        let text = format!("{error:#}");
        report.bail_out(text.lines().next().unwrap_or_default())?;
        return Err(error);
    }
    for fs in FILE_SYSTEMS {
        let verdict = verdict(book, fs, &mut report)?;
        report.result(&format!("power_cuts.{fs}"), &verdict)?;
    }
    Ok(report.finish()?.exit_status())
}

/// What is to be said of a file system.
fn verdict(book: &Book, fs: &str, report: &mut Ktap<io::Stdout>) -> Result<Verdict> {
    let figures = book.figures(fs);
    Ok(match &book.violation {
        Some(violation) if violation.fs == fs => {
            report.diagnostic(&violation.what)?;
            Verdict::Fail
        }
        Some(_) => Verdict::Skip("ended early".to_owned()),
        None if figures.confirmed == 0 || figures.synced == 0 || figures.compared == 0 => {
            report.diagnostic("something never happened: this tested nothing")?;
            Verdict::Fail
        }
        None => Verdict::Pass,
    })
}
