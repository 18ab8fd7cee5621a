// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam evacuate` with a real daemon and real agents, whose toolstacks only play
//! with memory.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../daemon/tests/common/mod.rs"]
mod common;
mod schema;

use common::{lock, Trouble, World};
use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};
use vmbeam_control_protocol::GuestState;

/// Three guests in A, none in B.
fn world() -> World {
    let mut w = World::new();
    lock(&w.hosts["B"]).guests.clear();
    lock(&w.hosts["A"]).add_guest(2, "second", 64);
    lock(&w.hosts["A"]).add_guest(3, "third", 64);
    w.agents(&["A", "B"]);
    w.start();
    for name in ["A", "B"] {
        w.wait_agent(name, None);
    }
    w
}

fn command(w: &World, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmbeam"));
    command.arg("--socket").arg(w.control()).args(args);
    command
}

fn vmbeam(w: &World, args: &[&str]) -> (i32, String, String) {
    result(command(w, args).output().unwrap())
}

fn result(out: Output) -> (i32, String, String) {
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    (
        out.status.code().unwrap(),
        text(out.stdout),
        text(out.stderr),
    )
}

/// What a command printed that moves guests.
#[track_caller]
fn json(text: &str) -> serde_json::Value {
    let report: serde_json::Value = serde_json::from_str(text).unwrap();
    // A migration says which guest, and has no list of them.
    let command = match &report {
        report if report.is_array() => "status",
        report if report.get("guest").is_some() => "migrate",
        _ => "evacuate",
    };
    schema::assert_fits(command, &report);
    report
}

/// Name and outcome of each guest.
fn outcomes(report: &serde_json::Value) -> Vec<(String, String)> {
    let text = |v: &serde_json::Value| v.as_str().unwrap().to_owned();
    let guests = report["guests"].as_array().unwrap();
    guests
        .iter()
        .map(|g| (text(&g["guest"]), text(&g["outcome"])))
        .collect()
}

fn running(w: &World, host_vm: &str) -> Vec<String> {
    lock(&w.hosts[host_vm]).running()
}

const ALL: [&str; 3] = ["guest", "second", "third"];
const EVACUATE: [&str; 5] = ["evacuate", "A", "--to", "B", "--json"];

#[track_caller]
fn wait_for(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn all_guests_move_one_after_the_other() {
    let w = world();
    let mut args = EVACUATE.to_vec();
    args.push("--dry-run");
    let (code, stdout, _) = vmbeam(&w, &args);
    assert_eq!(code, 0);
    // Each with what the toolstack needs for it.
    assert_eq!(json(&stdout)["needed_mib"], 6 + 2 + 2);
    assert_eq!(running(&w, "A"), ALL);

    args[5] = "--parallel=4";
    let (code, stdout, stderr) = vmbeam(&w, &args);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("one at a time, not 4"), "{stderr}");
    let report = json(&stdout);
    let expected = ALL.map(|name| (name.into(), "moved".into()));
    assert_eq!(outcomes(&report), expected);
    assert_eq!(
        (&report["parallel"], &report["interrupted"]),
        (&1.into(), &false.into())
    );
    // All of it: pages that are page tables or rings in the copy are known before.
    assert_eq!(report["guests"][1]["migration"]["pages_swapped"], 64);
    assert_eq!(running(&w, "B"), ALL);
    assert!(running(&w, "A").is_empty());

    // Nothing is left: that is done as well.
    let (code, stdout, _) = vmbeam(&w, &["evacuate", "A", "--to", "B"]);
    assert_eq!(code, 0);
    assert!(stdout.contains("0 of 0 guests moved"), "{stdout}");
}

#[test]
fn all_that_is_in_the_way_is_named_before_anything_moves() {
    let w = world();
    let before = w.memory();
    lock(&w.hosts["A"]).guests.get_mut(&2).unwrap().paused = true;
    lock(&w.hosts["B"]).add_guest(9, "third", 8);
    lock(&w.hosts["B"]).free_mib = 7;
    for option in ["--dry-run", "--stop-on-error"] {
        let (code, stdout, _) = vmbeam(&w, &["evacuate", "A", "--to", "B", option]);
        assert_eq!(code, 3);
        for words in [
            "7 MiB of free memory",
            "second does not run",
            "guest named third",
        ] {
            assert!(stdout.contains(words), "{stdout}");
        }
        assert_eq!(w.memory(), before);
    }
    // What can move does if that is asked for, and that is not all.
    let mut args = EVACUATE.to_vec();
    args.push("--keep-going");
    let (code, stdout, stderr) = vmbeam(&w, &args);
    assert_eq!(code, 5, "{stderr}");
    assert!(stderr.contains("the same command goes on"), "{stderr}");
    let expected = [
        ("guest", "moved"),
        ("second", "refused"),
        ("third", "refused"),
    ];
    assert_eq!(
        outcomes(&json(&stdout)),
        expected.map(|(g, o)| (g.into(), o.into()))
    );
    // They are still in the way when it is run again.
    assert_eq!(vmbeam(&w, &EVACUATE).0, 3);
    lock(&w.hosts["A"]).guests.get_mut(&2).unwrap().paused = false;
    lock(&w.hosts["B"]).guests.remove(&9);
    assert_eq!(vmbeam(&w, &EVACUATE).0, 0);
    assert_eq!(running(&w, "B"), ALL);
}

#[test]
fn the_first_move_that_fails_stops_it_unless_told_otherwise() {
    for (option, moved, code) in [("--stop-on-error", 0, 4), ("--keep-going", 0, 4)] {
        let w = world();
        lock(&w.hosts["B"]).trouble = Trouble::RestoreFails;
        let mut args = EVACUATE.to_vec();
        args.push(option);
        let (got, stdout, stderr) = vmbeam(&w, &args);
        assert_eq!(got, code, "{stderr}");
        let put_back = if option == "--keep-going" { 3 } else { 1 };
        let all = outcomes(&json(&stdout));
        let count = |o: &str| all.iter().filter(|g| g.1 == o).count();
        assert_eq!(
            (count("moved"), count("put_back")),
            (moved, put_back),
            "{all:?}"
        );
        assert_eq!(running(&w, "A"), ALL);
        lock(&w.hosts["B"]).trouble = Trouble::None;
        assert_eq!(vmbeam(&w, &EVACUATE).0, 0);
        assert_eq!(running(&w, "B"), ALL);
    }
}

/// A command that is going on, and what it says.
struct Going {
    child: Child,
    said: Lines<BufReader<ChildStderr>>,
}

impl Going {
    fn start(w: &World, args: &[&str]) -> Self {
        let vmbeam = command(w, args);
        // Whoever runs the tests may ignore them, as shells and nohup let their jobs do.
        let mut command = Command::new("env");
        command
            .arg("--default-signal=INT,HUP")
            .arg(vmbeam.get_program());
        command.args(vmbeam.get_args()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, said }
    }

    /// Until it says this.
    fn until(&mut self, words: &str) {
        let line = self.said.find(|l| l.as_ref().unwrap().contains(words));
        assert!(line.is_some(), "it did not say {words:?}");
    }

    fn interrupt(&self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    }

    /// Its end: the exit status, and its report.
    fn end(self) -> (i32, serde_json::Value) {
        let rest: Vec<_> = self.said.map(Result::unwrap).collect();
        let out = self.child.wait_with_output().unwrap();
        let (code, stdout, _) = result(out);
        assert!(!stdout.is_empty(), "{rest:?}");
        (code, json(&stdout))
    }
}

#[test]
fn a_move_that_the_daemon_is_still_settling_is_waited_for() {
    let w = world();
    lock(&w.hosts["B"]).trouble = Trouble::ResumeFailsAndHolds;
    let mut going = Going::start(&w, &EVACUATE);
    going.until("waiting for job");
    lock(&w.hosts["B"]).trouble = Trouble::None;
    let (code, report) = going.end();
    assert_eq!(code, 0, "{report}");
    assert!(report["guests"][0]["reasons"][0]
        .as_str()
        .unwrap()
        .contains("goes on trying"));
    assert_eq!(running(&w, "B"), ALL);
    // One that does not end is reported, not waited for for ever.
    lock(&w.hosts["A"]).trouble = Trouble::ResumeFails(1000);
    let args = ["evacuate", "B", "--to", "A", "--wait", "1"];
    let (code, _, stderr) = vmbeam(&w, &args);
    assert_eq!(code, 1, "{stderr}");
    let (code, _, stderr) = vmbeam(&w, &args);
    assert_eq!(code, 1);
    assert!(stderr.contains("vmbeamd is not done yet"), "{stderr}");
    // A person can put an end to that, and is told first what that means.
    let running = || {
        let (_, stdout, _) = vmbeam(&w, &["status", "--json"]);
        let jobs = json(&stdout);
        let running = jobs
            .as_array()
            .unwrap()
            .iter()
            .find(|j| j["running"] == true);
        running.map(|j| j["id"].to_string())
    };
    let job = running().unwrap();
    let (code, _, stderr) = vmbeam(&w, &["forget", "--job", &job]);
    assert_eq!(code, 3, "{stderr}");
    for words in [
        "is about guest",
        "Let at most one of the two run",
        "add --yes",
    ] {
        assert!(stderr.contains(words), "{stderr}");
    }
    assert_eq!(running(), Some(job.clone()));
    let (code, _, stderr) = vmbeam(&w, &["forget", "--job", &job, "--yes"]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(running(), None);
    let (code, _, stderr) = vmbeam(&w, &["forget", "--job", &job, "--yes"]);
    assert_eq!(code, 3, "{stderr}");
    assert!(stderr.contains("no job"), "{stderr}");
}

#[test]
fn it_goes_on_when_nobody_reads_what_it_says() {
    let gone = || {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    let full = || Stdio::from(std::fs::File::create("/dev/full").unwrap());
    for (out, err, code) in [(gone(), gone(), 0), (full(), full(), 6)] {
        let w = world();
        let mut command = command(&w, &EVACUATE);
        let status = command.stdout(out).stderr(err).status().unwrap();
        assert_eq!(running(&w, "B"), ALL);
        assert_eq!(status.code(), Some(code));
    }
}

/// Neither a kill nor a terminal that is closed ends it, and it can be come back to.
#[test]
fn it_goes_on_without_its_command() {
    let w = world();
    let held = |args: &[&str]| {
        lock(&w.hosts["A"]).trouble = Trouble::SaveHangs;
        let left = running(&w, "A").len();
        let going = Going::start(&w, args);
        wait_for("a guest is being saved", || running(&w, "A").len() < left);
        going
    };
    let mut going = held(&EVACUATE);
    let pid = nix::unistd::Pid::from_raw(going.child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
    going.child.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let stdout = loop {
        let said = vmbeam(&w, &["status"]);
        if said.1.contains("guest guest (1 of 3)") {
            break said.1;
        }
        assert!(Instant::now() < deadline, "{said:?}");
    };
    let row = stdout.lines().find(|l| l.contains("guest guest (1 of 3)"));
    let columns: Vec<_> = row.unwrap().split_whitespace().collect();
    assert_eq!(columns[1..4], ["A", "B", "running:"]);
    let job = columns[0];
    // Ctrl-C ends only the one that watches.
    let watch = ["watch", job, "--json"];
    let mut first = Going::start(&w, &watch);
    let mut second = Going::start(&w, &watch);
    first.until("A/guest -> B (1 of 3)");
    second.until("A/guest -> B (1 of 3)");
    first.interrupt();
    first.child.wait().unwrap();
    lock(&w.hosts["A"]).trouble = Trouble::None;
    let (code, report) = second.end();
    assert_eq!(code, 0, "{report}");
    assert_eq!(running(&w, "B"), ALL);
    assert_eq!(vmbeam(&w, &watch).0, 0);
    let (code, stdout, _) = vmbeam(&w, &["forget", "--job", job]);
    assert_eq!((code, &*stdout), (0, ""));
    let (code, _, stderr) = vmbeam(&w, &watch);
    assert_eq!(code, 3);
    assert!(stderr.contains("there is no evacuation"), "{stderr}");
}

#[test]
fn it_can_be_left_to_the_daemon_from_the_beginning() {
    let w = world();
    let (code, stdout, _) = vmbeam(&w, &["evacuate", "A", "--to", "B", "--detach"]);
    let job = stdout.strip_prefix("job ").unwrap().trim();
    assert_eq!(code, 0);
    let (code, stdout, _) = vmbeam(&w, &["watch", job]);
    assert_eq!(code, 0);
    assert!(stdout.contains("A -> B: 3 of 3 guests moved"), "{stdout}");
    let args = ["evacuate", "A", "--to", "B", "--detach", "--json"];
    let (code, stdout, _) = vmbeam(&w, &args);
    assert_eq!(code, 0);
    assert!(json(&stdout)["job"].is_u64(), "{stdout}");
}

/// The daemon is started again in the middle: the command comes back to its job.
#[test]
fn it_outlives_its_daemon() {
    let mut w = world();
    lock(&w.hosts["A"]).trouble = Trouble::SaveHangs;
    let mut going = Going::start(&w, &EVACUATE);
    wait_for("a guest is being saved", || running(&w, "A").len() < 3);
    w.stop();
    going.until("goes on when it is back");
    lock(&w.hosts["A"]).trouble = Trouble::None;
    w.start();
    let (code, report) = going.end();
    assert_eq!(code, 0, "{report}");
    assert_eq!(running(&w, "B"), ALL);
}

#[test]
fn ctrl_c_stops_between_guests_and_then_cancels() {
    let w = world();
    let start = |left: usize| {
        lock(&w.hosts["A"]).trouble = Trouble::SaveHangs;
        let mut going = Going::start(&w, &EVACUATE);
        wait_for("a guest is being saved", || running(&w, "A").len() < left);
        going.interrupt();
        going.until("stopping after this step");
        going
    };
    let going = start(3);
    // What is moving is not disturbed.
    lock(&w.hosts["A"]).trouble = Trouble::None;
    let (code, report) = going.end();
    assert_eq!(code, 5, "{report}");
    assert_eq!(report["interrupted"], true);
    assert_eq!(running(&w, "B"), ["guest"]);

    let going = start(2);
    going.interrupt();
    let (code, report) = going.end();
    assert_eq!(code, 5, "{report}");
    assert_eq!(report["guests"][0]["outcome"], "put_back");
    assert_eq!(running(&w, "A"), ["second", "third"]);
    lock(&w.hosts["A"]).trouble = Trouble::None;
    assert_eq!(vmbeam(&w, &EVACUATE).0, 0);
    assert_eq!(running(&w, "B"), ALL);
}

/// Both guests of a name are named, and nothing is done to either.
#[test]
fn two_guests_of_one_name_are_in_the_way_of_each_other() {
    let w = world();
    lock(&w.hosts["A"]).add_guest(4, "second", 16);
    let before = w.memory();
    let words = "host VM A has several guests named second (domains 2, 4); rename all but one";
    for option in ["--dry-run", "--stop-on-error"] {
        let (code, stdout, _) = vmbeam(&w, &["evacuate", "A", "--to", "B", option]);
        assert_eq!(code, 3);
        assert_eq!(stdout.matches(words).count(), 2, "{stdout}");
    }
    for option in ["--dry-run", "--verify"] {
        let args = ["migrate", "second", "--from", "A", "--to", "B", option];
        let (code, _, stderr) = vmbeam(&w, &args);
        assert_eq!(code, 3, "{stderr}");
        assert!(stderr.contains(words), "{stderr}");
    }
    assert_eq!(w.memory(), before);
    let (code, stdout, _) = vmbeam(&w, &["evacuate", "A", "--to", "B", "--keep-going"]);
    assert_eq!(code, 5, "{stdout}");
    assert_eq!(running(&w, "A"), ["second", "second"]);
}

#[test]
fn what_is_being_torn_down_is_in_nobodys_way() {
    let w = world();
    for (vm, name) in [("A", "(null)"), ("B", "third")] {
        let mut host = lock(&w.hosts[vm]);
        host.add_guest(9, name, 16);
        host.guests.get_mut(&9).unwrap().ended = Some(GuestState::Dying);
    }
    let (code, stdout, _) = vmbeam(&w, &["evacuate", "A", "--to", "B"]);
    assert_eq!(code, 0, "{stdout}");
    assert!(stdout.contains("3 of 3 guests moved"), "{stdout}");
    assert_eq!(running(&w, "B"), ALL);
}

#[test]
fn a_guest_that_crashed_while_it_was_saved_stops_nothing_for_long() {
    let w = world();
    lock(&w.hosts["A"]).trouble = Trouble::SaveCrashes;
    let mut args = EVACUATE.to_vec();
    args.push("--keep-going");
    let (code, stdout, stderr) = vmbeam(&w, &args);
    let expected = [
        ("guest", "put_back"),
        ("second", "moved"),
        ("third", "moved"),
    ];
    assert_eq!(
        outcomes(&json(&stdout)),
        expected.map(|(g, o)| (g.into(), o.into())),
        "{stderr}"
    );
    assert_eq!(code, 5, "{stderr}");
    let reason = json(&stdout)["guests"][0]["reasons"][0].to_string();
    let words = "the guest has crashed or shut down, and is in A as it is";
    assert!(
        reason.contains(words) && !reason.contains("runs in A"),
        "{reason}"
    );
    assert_eq!(running(&w, "B"), ["second", "third"]);
    // It is where it was, as it is.
    let state = |w: &World| lock(&w.hosts["A"]).guests[&1].ended;
    assert_eq!(state(&w), Some(GuestState::Shutdown));
    let (code, stdout, _) = vmbeam(&w, &["evacuate", "A", "--to", "B"]);
    assert_eq!(code, 3);
    assert!(stdout.contains("guest guest does not run"), "{stdout}");
}

#[test]
fn names_are_names_whatever_they_have() {
    let names = ["a b", "c\"d'e\\f", "-g", "h/i", "%s{}$(j)"];
    let w = world();
    for (name, domid) in names.iter().zip(10..) {
        lock(&w.hosts["A"]).add_guest(domid, name, 16);
    }
    for name in names {
        let args = ["migrate", "--from", "A", "--to", "B", "--json", "--", name];
        let (code, stdout, stderr) = vmbeam(&w, &args);
        assert_eq!(code, 0, "{stderr}");
        assert_eq!(json(&stdout)["guest"], name);
    }
    let mut args = EVACUATE;
    (args[1], args[3]) = ("B", "A");
    let (code, stdout, stderr) = vmbeam(&w, &args);
    assert_eq!(code, 0, "{stderr}");
    let moved: Vec<_> = outcomes(&json(&stdout)).into_iter().map(|o| o.0).collect();
    assert_eq!(moved.len(), names.len());
    assert!(
        names.iter().all(|n| moved.contains(&(*n).to_owned())),
        "{moved:?}"
    );
}
