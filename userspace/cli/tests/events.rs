// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam events` and `vmbeam status --watch` with a real daemon.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../daemon/tests/common/mod.rs"]
mod common;
mod schema;

use common::{lock, World};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

fn world() -> World {
    let mut w = World::new();
    lock(&w.hosts["B"]).guests.clear();
    w.agents(&["A", "B"]);
    w.start();
    w.wait_agent("A", None);
    w.wait_agent("B", None);
    w
}

fn command(w: &World, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmbeam"));
    command.arg("--socket").arg(w.control()).args(args);
    command
}

fn vmbeam(w: &World, args: &[&str]) {
    let out = command(w, args).output().unwrap();
    assert!(out.status.success(), "{out:?}");
}

/// A program that runs, and what it prints.
struct Running {
    child: Child,
    lines: Option<BufReader<ChildStdout>>,
}

impl Running {
    fn new(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = child.stdout.take().map(BufReader::new);
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.as_mut().unwrap().read_line(&mut line).unwrap();
        line
    }

    /// All up to a line with this.
    fn until(&mut self, words: &str) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            let line = self.line();
            assert_ne!(line, "", "no {words} in {all:?}");
            all.push(line.trim_end().to_owned());
            if line.contains(words) {
                return all;
            }
        }
    }

    fn interrupt(&self) {
        let pid = Pid::from_raw(self.child.id() as i32);
        kill(pid, Signal::SIGINT).unwrap();
    }

    /// It ends soon, and well.
    #[track_caller]
    fn ends(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const MOVE: [&str; 6] = ["migrate", "guest", "--from", "A", "--to", "B"];
const WATCH: [&str; 4] = ["status", "--watch", "--device", "/nonexistent"];

#[test]
fn each_event_is_a_line_for_programs() {
    let mut w = world();
    let mut events = Running::new(command(&w, &["events", "--json"]));
    events.until("following");
    vmbeam(&w, &MOVE);
    vmbeam(&w, &["maintenance", "A", "on"]);
    let all: Vec<serde_json::Value> = events
        .until("maintenance_begins")
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    all.iter().for_each(|e| schema::assert_fits("events", e));
    let of = |kind: &str| all.iter().find(|e| e["event"] == kind).unwrap();
    assert_eq!(of("job_begins")["kind"], "migrate");
    assert_eq!(of("job_begins")["from"]["guest"], "guest");
    assert_eq!(of("job_ends")["outcome"], "done");
    assert!(all.iter().any(|e| e["text"] == "swapping"), "{all:?}");
    assert_eq!(of("maintenance_begins")["host_vm"], "A");
    // A daemon that is started again is waited for.
    w.stop();
    w.start();
    events.until("following");
    vmbeam(&w, &["maintenance", "A", "off"]);
    events.until("maintenance_ends");
    events.interrupt();
    events.ends();
}

#[test]
fn each_event_is_a_line_for_people() {
    let w = world();
    let mut events = Running::new(command(&w, &["events"]));
    events.until("following vmbeamd");
    vmbeam(&w, &MOVE);
    let all = events.until("ends, done: migrated: ");
    let has = |words: &str| all.iter().any(|line| line.ends_with(words));
    assert!(has("job 1: begins: migrate A/guest -> B/guest"), "{all:?}");
    assert!(has("job 1: swapping"), "{all:?}");
    events.interrupt();
    events.ends();
}

#[test]
fn it_ends_when_nobody_reads_although_nothing_happens() {
    let w = world();
    for args in [&["events"][..], &["events", "--json"], &WATCH] {
        let mut events = Running::new(command(&w, args));
        events.line();
        events.lines = None;
        events.ends();
    }
}

#[test]
fn without_a_terminal_changes_are_lines() {
    let w = world();
    let mut status = Running::new(command(&w, &WATCH));
    assert_eq!(status.line(), "No jobs since vmbeamd was started.\n");
    vmbeam(&w, &MOVE);
    let all = status.until("ends, done");
    assert!(all.iter().all(|line| !line.contains('\u{1b}')), "{all:?}");
    assert!(
        all.iter().any(|line| line.contains("begins: migrate")),
        "{all:?}"
    );
    status.interrupt();
    status.ends();
}

#[test]
fn on_a_terminal_the_picture_is_drawn_anew() {
    let w = world();
    let vmbeam_bin = env!("CARGO_BIN_EXE_vmbeam");
    let shown = format!(
        "exec {vmbeam_bin} --socket {} {}",
        w.control().display(),
        WATCH.join(" ")
    );
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &shown, "/dev/null"]);
    // Its end would be Ctrl-D.
    script.stdin(Stdio::piped());
    let mut status = Running::new(script);
    status.until("No jobs since");
    vmbeam(&w, &MOVE);
    let all = status.until("migrated: ");
    let clears = all
        .iter()
        .filter(|l| l.contains("\u{1b}[H\u{1b}[2J"))
        .count();
    assert!(clears > 0, "{all:?}");
    // Ctrl-C, as it is typed.
    let mut stdin = status.child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, b"\x03").unwrap();
    status.ends();
}

#[test]
fn it_says_when_there_is_no_daemon() {
    let w = World::new();
    for args in [&["events"][..], &WATCH] {
        let out = command(&w, args).output().unwrap();
        assert_eq!(out.status.code(), Some(1));
        let stderr = String::from_utf8(out.stderr).unwrap();
        assert!(stderr.contains("cannot reach vmbeamd"), "{stderr}");
    }
    let both = command(&w, &["status", "--watch", "--json"]).output();
    assert_eq!(both.unwrap().status.code(), Some(2));
}
