// SPDX-License-Identifier: GPL-2.0
//! Runs tests, each in a process of its own.
//!
//! A process per test bounds its time, survives its death by a signal (SIGBUS is what a lost page looks
//! like) and starts every test with a fresh address space. The test tells its end by the exit status:
//! 0 passed, 4 skipped, all else failed; what it printed becomes diagnostics. What the kernel logged
//! meanwhile is watched, and a complaint fails the test that was running.

use crate::case::Case;
use crate::case::Ctx;
use crate::case::Scope;
use crate::case::Skip;
use crate::cases;
use crate::rules;
use crate::rules::Broken;
use crate::rules::CONTROLS;
use anyhow::bail;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::child;
use devcache_selftests::child::End;
use devcache_selftests::gpu;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::kmsg;
use devcache_selftests::kmsg::Kmsg;
use devcache_selftests::ktap::Ktap;
use devcache_selftests::ktap::Verdict;
use devcache_selftests::mount::FileSystem;
use devcache_selftests::tally::Tally;
use std::env;
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::process::ExitCode;
use std::time::Duration;
use std::time::Instant;

/// Exit status of a test that says nothing here, as kselftest has it.
const SKIPPED: u8 = 4;

/// Seconds for a test of a broken rule, which may well hang.
const CONTROL_LIMIT: u32 = 20;

/// Lines of the kernel log to show for a test that failed.
const LOG_LINES: usize = 60;

/// A test on a file system.
struct Job {
    name: String,
    case: Case,
    fs: FileSystem,
}

/// The tests chosen by `names`, on all of `file_systems`.
fn jobs(names: &[String], file_systems: &[FileSystem]) -> Vec<Job> {
    let mut jobs = Vec::new();

    for (number, fs) in file_systems.iter().enumerate() {
        for case in cases::all() {
            let here = match case.scope {
                Scope::Every | Scope::Disk => true,
                Scope::Only(kind) => fs.kind == kind,
                Scope::Once => number == 0,
            };
            let name = match case.scope {
                Scope::Once => case.name.to_owned(),
                _ => format!("{}.{}", fs.kind, case.name),
            };
            let named = names.iter().any(|word| name.contains(word.as_str()));
            let chosen = named || names.is_empty() && !case.on_demand;

            if here && chosen {
                jobs.push(Job {
                    name,
                    case: *case,
                    fs: fs.clone(),
                });
            }
        }
    }
    jobs
}

/// Runs all chosen tests and writes the report.
pub(crate) fn run_all(
    names: &[String],
    file_systems: &[FileSystem],
    patience: u32,
    repeat: u32,
) -> Result<ExitCode> {
    let mut jobs = jobs(names, file_systems);
    if jobs.is_empty() {
        bail!("no test has a name that contains {}", names.join(" or "));
    }

    // A file system without a disk has no rows for what happens to disks.
    jobs.retain(|job| {
        job.case.scope != Scope::Disk || job.fs.mount().is_ok_and(|mount| mount.on_disk())
    });

    // One line rather than as many as there are tests.
    choose_gpu()?;
    let mut log = Kmsg::open().context("open /dev/kmsg")?;
    let rows = jobs
        .iter()
        .flat_map(|job| (0..repeat).map(move |_| job))
        .collect::<Vec<_>>();
    let mut report = Ktap::new(io::stdout(), rows.len())?;
    let before = Tally::now()?;

    for job in rows {
        let started = Instant::now();
        let (verdict, text) = run(job, job.case.limit * patience)?;
        let messages = log.new_messages();
        let complaint = messages.iter().any(|message| kmsg::is_complaint(message));
        let verdict = if complaint { Verdict::Fail } else { verdict };

        if verdict == Verdict::Fail {
            report.diagnostic(&text)?;
            report.diagnostic(&messages[..messages.len().min(LOG_LINES)].join("\n"))?;
        }
        report.diagnostic(&format!(
            "{} took {} ms",
            job.name,
            started.elapsed().as_millis()
        ))?;
        report.result(&job.name, &verdict)?;

        if text.contains(STUCK) {
            report.bail_out(&format!("{} does not end", job.name))?;
            break;
        }
    }
    report.diagnostic(&Tally::now()?.since(before).figures().to_string())?;
    Ok(ExitCode::from(report.finish()?.exit_status()))
}

/// Has all tests use the same GPU.
fn choose_gpu() -> Result<()> {
    env::set_var(gpu::DEVICE, Gpu::sysfs()?);
    Ok(())
}

/// Marks the text of a test that cannot even be killed.
const STUCK: &str = "is stuck in the kernel";

/// Breaks one rule after the other: each time the test that guards it must fail, or the kernel
/// complain.
pub(crate) fn run_controls(patience: u32) -> Result<ExitCode> {
    choose_gpu()?;
    let mut log = Kmsg::open().context("open /dev/kmsg")?;
    let mut report = Ktap::new(io::stdout(), CONTROLS.len())?;

    for control in CONTROLS {
        let job = Job {
            name: format!("broken.{}", control.rule),
            case: *case_named(control.case)?,
            fs: control.fs.parse().map_err(anyhow::Error::msg)?,
        };
        let broken = Broken::rule(control.rule)?;
        let (verdict, text) = run(&job, CONTROL_LIMIT * patience)?;
        drop(broken);
        let messages = log.new_messages();
        let complaint = messages.into_iter().find(|line| kmsg::is_complaint(line));
        let failure = (verdict == Verdict::Fail).then_some(text);
        let found = failure.or(complaint);
        report.diagnostic(&match &found {
            Some(how) => format!("{} finds it: {}", control.case, how.trim_end()),
            None => format!("{} passes all the same", control.case),
        })?;
        let verdict = if found.is_some() {
            Verdict::Pass
        } else {
            Verdict::Fail
        };
        report.result(&job.name, &verdict)?;
    }
    Ok(ExitCode::from(report.finish()?.exit_status()))
}

/// The test with this name.
fn case_named(name: &str) -> Result<&'static Case> {
    cases::all()
        .find(|case| case.name == name)
        .with_context(|| format!("there is no test {name}"))
}

/// Runs one test in a process of its own; returns how it ended and what it said.
fn run(job: &Job, limit: u32) -> Result<(Verdict, String)> {
    let mut command = Command::new(env::current_exe()?);
    command
        .args(["--here", job.case.name, "--fs", &job.fs.to_string()])
        .env("RUST_BACKTRACE", "0");
    let limit = Duration::from_secs(u64::from(limit));
    let (pid, end, mut text) = child::run(&mut command, limit, || {
        // The test may hang because it could not end a freeze, and then nothing else would go on
        // either, or because a rule is broken.
        if let Ok(mount) = job.fs.mount() {
            let _ = mount.thaw();
        }
        rules::all_hold();
    })?;

    let verdict = match end {
        End::Exited(status) if status.success() => Verdict::Pass,
        End::Exited(status) if status.code() == Some(i32::from(SKIPPED)) => {
            Verdict::Skip(text.trim_end().to_owned())
        }
        End::Exited(status) => {
            if let Some(signal) = status.signal() {
                text.push_str(&format!("killed by signal {signal}\n"));
            }
            Verdict::Fail
        }
        End::TooLate(stack) => {
            text.push_str(&format!(
                "not done after {} s; it was in\n{stack}",
                limit.as_secs()
            ));
            Verdict::Fail
        }
        End::Stuck => {
            text.push_str(&format!("the process {STUCK}\n"));
            Verdict::Fail
        }
    };
    if !matches!(verdict, Verdict::Pass) && !text.contains(STUCK) {
        // A test that was killed could not clean up.
        let _ = fs::remove_dir_all(job.fs.dir.join(format!("devcache-{pid}")));
    }
    Ok((verdict, text))
}

/// Runs one test in this process.
pub(crate) fn run_here(name: &str, fs: &FileSystem) -> Result<ExitCode> {
    let case = case_named(name)?;
    let result = Ctx::new(fs).and_then(|ctx| (case.run)(&ctx));

    match result {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => match error.downcast_ref::<Skip>() {
            Some(reason) => {
                println!("{reason}");
                Ok(ExitCode::from(SKIPPED))
            }
            None => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_systems() -> [FileSystem; 2] {
        ["tmpfs", "ext4"].map(|kind| kind.parse().unwrap())
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = cases::all().map(|case| case.name).collect();
        let before = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), before);
    }

    #[test]
    fn controls_are_tests() {
        for control in CONTROLS {
            assert!(case_named(control.case).is_ok(), "{}", control.case);
        }
    }

    #[test]
    fn choice() {
        let all = jobs(&[], &file_systems());
        let rows = |case: &Case| match case.scope {
            _ if case.on_demand => 0,
            Scope::Every | Scope::Disk => 2,
            Scope::Only("tmpfs" | "ext4") | Scope::Once => 1,
            Scope::Only(_) => 0,
        };
        assert_eq!(all.len(), cases::all().map(rows).sum::<usize>());

        let some = jobs(&["ext4.pread".to_owned()], &file_systems());
        assert!(!some.is_empty());
        assert!(some.iter().all(|job| job.fs.kind == "ext4"));
        assert!(jobs(&["no such test".to_owned()], &file_systems()).is_empty());
    }
}
