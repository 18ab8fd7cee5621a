// SPDX-License-Identifier: GPL-2.0-only

//! What the command line prints and how it exits, against no daemon and
//! against one that gives a fixed answer.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use vmbeam_control_protocol::{
    AgentReport, CheckReport, Failure, FromDaemon, GuestRef, MigrateReport, Mode, Phase, Seconds,
    SwapReport, ToDaemon,
};
use vmbeam_wire::{encode, Decoder};

fn vmbeam(socket: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmbeam"))
        .arg("--socket")
        .arg(socket)
        .args(args)
        .output()
        .unwrap()
}

const SWAP: [&str; 5] = ["swap", "--from", "A/guest", "--to", "B/guest"];

/// Answer one request with these messages.
fn daemon(dir: &tempfile::TempDir, answers: Vec<FromDaemon>) -> PathBuf {
    let socket = dir.path().join("control.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut decoder = Decoder::strict();
        let frame = loop {
            if let Some(frame) = decoder.next_frame().unwrap() {
                break frame;
            }
            assert_ne!(decoder.fill(&mut stream).unwrap(), 0);
        };
        for a in &answers {
            let bytes = encode(frame.request, frame.session, a).unwrap();
            std::io::Write::write_all(&mut stream, &bytes).unwrap();
        }
    });
    socket
}

fn with(answers: Vec<FromDaemon>, args: &[&str]) -> (i32, String, String) {
    let dir = tempfile::tempdir().unwrap();
    let out = vmbeam(&daemon(&dir, answers), args);
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    (
        out.status.code().unwrap(),
        text(out.stdout),
        text(out.stderr),
    )
}

fn error(failure: Failure) -> Vec<FromDaemon> {
    vec![FromDaemon::Error {
        failure,
        message: "because".into(),
    }]
}

fn report(mismatches: u64) -> FromDaemon {
    let guest = |vm: &str| GuestRef {
        host_vm: vm.into(),
        guest: "guest".into(),
    };
    FromDaemon::Swapped(Box::new(SwapReport {
        from: guest("A"),
        to: guest("B"),
        guest_mib: 256,
        pages_listed: 100,
        pages_swapped: 90,
        pages_refused: BTreeMap::from([("page_table_source".into(), 10)]),
        pages_verified: 90,
        mismatches,
        seconds: Seconds {
            commit: 0.25,
            ..Seconds::default()
        },
        ..SwapReport::default()
    }))
}

#[test]
fn exit_codes_tell_failures_apart() {
    for (failure, code) in [
        (Failure::Failed, 1),
        (Failure::Refused, 3),
        (Failure::RolledBack, 4),
    ] {
        let (got, _, stderr) = with(error(failure), &SWAP);
        assert_eq!(got, code);
        assert!(stderr.contains("because"), "{stderr}");
    }
    assert_eq!(with(vec![report(0)], &SWAP).0, 0);
    assert_eq!(with(vec![report(1)], &SWAP).0, 1);
    assert_eq!(with(vec![], &SWAP).0, 1);
    assert_eq!(with(vec![FromDaemon::List(vec![])], &SWAP).0, 1);
}

#[test]
fn usage_errors() {
    let none = Path::new("/nonexistent/control.sock");
    for args in [
        &["swap", "--from", "A", "--to", "B/guest"][..],
        &["swap"],
        &["migrate"],
        &["migrate", "guest", "--from", "A"],
        &[
            "migrate",
            "guest",
            "--from",
            "A",
            "--to",
            "B",
            "--mode",
            "sometimes",
        ],
        &["abort"],
        &[],
    ] {
        assert_eq!(vmbeam(none, args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn without_a_daemon() {
    let none = Path::new("/nonexistent/control.sock");
    for args in [&["list"][..], &["status"], &SWAP] {
        let out = vmbeam(none, args);
        assert_eq!(out.status.code(), Some(1));
        let text = String::from_utf8(out.stderr).unwrap();
        assert!(
            text.contains("`systemctl start vmbeamd` starts it"),
            "{text}"
        );
    }
}

#[test]
fn check_says_what_is_missing() {
    let none = Path::new("/nonexistent/control.sock");
    let out = vmbeam(none, &["check", "--device", "/nonexistent/vmbeam"]);
    assert_eq!(out.status.code(), Some(1));
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(
        text.contains("MISSING  driver") && text.contains("insmod vmbeam.ko"),
        "{text}"
    );
    assert!(text.contains("MISSING  daemon"), "{text}");

    let answer = FromDaemon::Check(CheckReport {
        daemon_version: "1.2.3".into(),
        protocol: 3,
        driver: Err("no permission".into()),
        agents: vec![AgentReport {
            host_vm: "A".into(),
            socket: "/run/A.sock".into(),
            domid_fixed: false,
            connected: None,
            problem: Some("is vmbeam-agent running?".into()),
            identity: None,
        }],
        pairs: vec![],
        clocks: vec![],
    });
    let (code, stdout, _) = with(vec![answer], &["check", "--json"]);
    assert_eq!(code, 1);
    let items: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let find = |name: &str| {
        let mut found = items
            .as_array()
            .unwrap()
            .iter()
            .filter(|i| i["name"] == name);
        found.next().unwrap().clone()
    };
    assert_eq!(find("daemon")["ok"], true);
    let driver = find("driver, for vmbeamd");
    assert_eq!(driver["ok"], false);
    assert!(driver["detail"].as_str().unwrap().contains("no permission"));
    assert_eq!(
        find("agent of host VM A")["detail"],
        "is vmbeam-agent running?"
    );
    assert_eq!(find("pairs")["ok"], false);
}

#[test]
fn json_and_plain_output() {
    let progress = FromDaemon::Progress {
        phase: Phase::Commit,
        done: 0,
        total: 90,
    };
    let mut args = SWAP.to_vec();
    args.push("--json");
    let (code, stdout, stderr) = with(vec![progress.clone(), report(0)], &args);
    assert_eq!((code, stderr.as_str()), (0, "swapping: 90 pages\n"));
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(json["from"], "A/guest");
    assert_eq!(json["pages_refused"]["page_table_source"], 10);
    assert_eq!(json["seconds"]["commit"], 0.25);
    let (_, stdout, _) = with(vec![progress, report(0)], &SWAP);
    assert!(stdout.contains("90 of 100 pages"), "{stdout}");
    assert!(stdout.contains("page table source"), "{stdout}");
}

const MIGRATE: [&str; 6] = ["migrate", "guest", "--from", "A", "--to", "B"];

fn migrated(blockers: &[&str]) -> FromDaemon {
    FromDaemon::Migrated(Box::new(MigrateReport {
        from: GuestRef {
            host_vm: "A".into(),
            guest: "guest".into(),
        },
        to: "B".into(),
        dry_run: !blockers.is_empty(),
        blockers: blockers.iter().map(|b| (*b).into()).collect(),
        pages_swapped: 100,
        pages_sent: 7,
        ..MigrateReport::default()
    }))
}

#[test]
fn migrations() {
    for (failure, code, words) in [
        (Failure::Failed, 1, "because"),
        (Failure::Refused, 3, "nothing was changed"),
        (Failure::RolledBack, 4, "put back"),
    ] {
        let (got, _, stderr) = with(error(failure), &MIGRATE);
        assert_eq!(got, code);
        assert!(stderr.contains(words), "{stderr}");
    }
    let progress = FromDaemon::Progress {
        phase: Phase::Stream,
        done: 5,
        total: 0,
    };
    let answers = || vec![FromDaemon::Job { id: 3 }, progress.clone(), migrated(&[])];
    let (code, stdout, stderr) = with(answers(), &MIGRATE);
    assert_eq!((code, stderr.as_str()), (0, "saving\n"));
    assert!(stdout.contains("A/guest -> B: migrated"), "{stdout}");
    assert!(stdout.contains("downtime"), "{stdout}");
    let mut args = MIGRATE.to_vec();
    args.push("--json");
    let (_, stdout, _) = with(answers(), &args);
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(json["mode"], "swap");
    assert_eq!(json["pages_sent"], 7);
    assert_eq!(json["seconds"]["downtime"], 0.0);
    // A relocation says what went without anything in return.
    let mut relocated = migrated(&[]);
    if let FromDaemon::Migrated(report) = &mut relocated {
        (report.mode, report.relocated, report.pages_empty) = (Mode::Relocate, 60, 3);
    }
    let (_, stdout, _) = with(vec![relocated.clone()], &MIGRATE);
    assert!(
        stdout.contains("of these given  60 pages\n  empty           3 pages\n"),
        "{stdout}"
    );
    let (_, stdout, _) = with(vec![relocated], &args);
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (&json["mode"], &json["relocated"]),
        (&"relocate".into(), &60.into())
    );
    // A dry run that finds something in the way.
    args[6] = "--dry-run";
    let (code, stdout, _) = with(vec![migrated(&["no room"])], &args);
    assert_eq!(code, 3);
    assert!(stdout.contains("in the way      no room"), "{stdout}");
    assert_eq!(with(vec![report(0)], &MIGRATE).0, 1);
    assert_eq!(with(vec![FromDaemon::Done], &["abort", "3"]).0, 0);
    assert_eq!(with(error(Failure::Refused), &["abort", "3"]).0, 3);
}

/// The next request, and where its answers go.
fn next(listener: &UnixListener) -> (ToDaemon, impl FnMut(&FromDaemon)) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut decoder = Decoder::strict();
    let frame = loop {
        if let Some(frame) = decoder.next_frame().unwrap() {
            break frame;
        }
        assert_ne!(decoder.fill(&mut stream).unwrap(), 0);
    };
    let request = frame.decode().unwrap();
    (request, move |answer: &FromDaemon| {
        let bytes = encode(frame.request, frame.session, answer).unwrap();
        std::io::Write::write_all(&mut stream, &bytes).unwrap();
    })
}

#[test]
fn ctrl_c_before_the_number_of_the_job_is_known_cancels_it() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_vmbeam"))
        .arg("--socket")
        .arg(&socket)
        .args(MIGRATE)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (request, mut answer) = next(&listener);
    assert!(matches!(request, ToDaemon::Migrate(_)));
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(said.next().unwrap().unwrap().contains("cancelling"));
    let cancelled = std::thread::spawn(move || {
        let (request, mut answer) = next(&listener);
        answer(&FromDaemon::Done);
        request
    });
    answer(&FromDaemon::Job { id: 3 });
    assert_eq!(cancelled.join().unwrap(), ToDaemon::Abort { job: 3 });
    answer(&error(Failure::RolledBack)[0]);
    assert_eq!(child.wait().unwrap().code(), Some(4));
}
