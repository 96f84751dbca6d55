// SPDX-License-Identifier: GPL-2.0
//! A program under test: run with a time limit, stopped with all that it started.

use anyhow::Result;
use nix::sys::signal::kill;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::fs;
use std::fs::File;
use std::io;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::thread;
use std::time::Duration;
use std::time::Instant;

/// Time a killed process has to go away before it counts as stuck in the kernel.
const GRACE: Duration = Duration::from_secs(10);

/// How a program ended.
#[derive(Debug)]
pub enum End {
    /// By itself.
    Exited(ExitStatus),
    /// It was killed; these were the kernel stacks of all its processes.
    TooLate(String),
    /// Killing it did not help.
    Stuck,
}

/// Runs a program; gives its end and what it printed, errors too. What keeps it from going away when it is
/// killed after `limit` is undone by `let_go`.
pub fn run(
    command: &mut Command,
    limit: Duration,
    let_go: impl FnOnce(),
) -> Result<(u32, End, String)> {
    let (reader, writer) = nix::unistd::pipe()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()?;
    // The command keeps its ends of the pipe open otherwise.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let listener = thread::spawn(move || io::read_to_string(File::from(reader)));
    let end = wait(&mut child, limit, let_go)?;

    // A process that the program left behind holds the pipe open; do not wait for it.
    let deadline = Instant::now() + Duration::from_secs(1);
    while !listener.is_finished() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    let text = if listener.is_finished() {
        listener.join().expect("does not panic")?
    } else {
        "a process is left behind".to_owned()
    };
    Ok((child.id(), end, text))
}

/// Waits until `child` ends, or `limit` is over.
fn wait(child: &mut Child, limit: Duration, let_go: impl FnOnce()) -> Result<End> {
    if let Some(status) = wait_until(child, Instant::now() + limit)? {
        return Ok(End::Exited(status));
    }
    let mut processes = descendants(child.id())?;
    processes.insert(0, child.id());
    let stacks = processes.iter().map(|pid| kernel_stacks(*pid)).collect();
    for pid in processes {
        // Fails when it has ended meanwhile, which is as good.
        let _ = kill(Pid::from_raw(pid.try_into()?), Signal::SIGKILL);
    }
    let_go();
    match wait_until(child, Instant::now() + GRACE)? {
        Some(_) => Ok(End::TooLate(stacks)),
        None => Ok(End::Stuck),
    }
}

/// Waits until `child` ends; None if that takes too long.
fn wait_until(child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    loop {
        let status = child.try_wait()?;
        if status.is_some() || Instant::now() >= deadline {
            return Ok(status);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Where the threads of a process are in the kernel, as far as the kernel tells.
fn kernel_stacks(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    let stacks: Vec<_> = tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("stack")).ok())
        .collect();
    format!("{pid} {name}{}", stacks.join("--\n"))
}

/// The processes that a process has started, and that these have started, and so on.
pub fn descendants(pid: u32) -> io::Result<Vec<u32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        // A process that has ended meanwhile has no line.
        let stat = fs::read_to_string(entry?.path().join("stat")).unwrap_or_default();
        parents.extend(parent(&stat));
    }
    Ok(below(pid, &parents))
}

/// Process and parent in a line of /proc/PID/stat: "pid (name, which may contain anything) state ppid ...".
fn parent(stat: &str) -> Option<(u32, u32)> {
    let (pid, _) = stat.split_once(' ')?;
    let (_, rest) = stat.rsplit_once(") ")?;
    Some((pid.parse().ok()?, rest.split(' ').nth(1)?.parse().ok()?))
}

/// All that descend from `pid`, given pairs of process and parent.
fn below(pid: u32, parents: &[(u32, u32)]) -> Vec<u32> {
    let mut found = Vec::new();
    let mut next = vec![pid];
    while let Some(parent) = next.pop() {
        let children = parents.iter().filter(|(_, of)| *of == parent);
        let children: Vec<u32> = children.map(|(child, _)| *child).collect();
        next.extend(&children);
        found.extend(children);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(text: &str, limit: Duration) -> (End, String) {
        let mut command = Command::new("sh");
        let (_, end, text) = run(command.args(["-c", text]), limit, || {}).unwrap();
        (end, text)
    }

    #[test]
    fn output_and_status() {
        let (end, text) = shell("echo a; echo b >&2; exit 3", Duration::from_secs(60));
        assert!(matches!(end, End::Exited(status) if status.code() == Some(3)));
        assert_eq!(text, "a\nb\n");
    }

    #[test]
    fn late_processes_are_killed() {
        let (end, text) = shell("sleep 60; echo late", Duration::from_millis(50));
        assert!(matches!(end, End::TooLate(_)));
        assert_eq!(text, "");
    }

    #[test]
    fn lines_of_stat() {
        assert_eq!(parent("7 (a) b) S 3 7 7 0"), Some((7, 3)));
        assert_eq!(parent(""), None);
    }

    #[test]
    fn families() {
        let parents = [(1, 0), (2, 1), (3, 2), (4, 1), (5, 9)];
        let mut found = below(1, &parents);
        found.sort_unstable();
        assert_eq!(found, [2, 3, 4]);
        assert_eq!(below(5, &parents), []);
    }
}
