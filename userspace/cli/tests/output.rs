// SPDX-License-Identifier: GPL-2.0-only

//! Output that nobody takes: a reader that has gone (`vmbeam list | head -1`), a device
//! that is full. And output that somebody wants to be taken for more than it is.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod schema;

use std::fs::File;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use vmbeam_control_protocol::{
    CheckReport, Event, EventKind, FromDaemon, Guest, GuestKind, GuestState, HostMemory,
    HostVmMemory, HostVmReport, JobKind, JobReport, Phase, ToDaemon,
};
use vmbeam_wire::{encode, Decoder};

fn guest(name: &str) -> Guest {
    Guest {
        domid: 5,
        name: name.into(),
        kind: GuestKind::Pv,
        pages: 4096,
        state: GuestState::Running,
        cpu: Default::default(),
    }
}

fn answer(request: &ToDaemon, names: &[&str]) -> Vec<FromDaemon> {
    let progress = |phase| FromDaemon::Progress {
        phase,
        done: 1,
        total: 2,
    };
    match request {
        ToDaemon::Check => vec![FromDaemon::Check(CheckReport {
            daemon_version: "1".into(),
            protocol: 1,
            driver: Err("x".into()),
            agents: vec![],
            pairs: vec![],
            clocks: vec![],
        })],
        ToDaemon::List => vec![FromDaemon::List(vec![HostVmReport {
            name: "A".into(),
            domid: Ok(1),
            guests: Ok(names.iter().map(|n| guest(n)).collect()),
            maintenance: false,
            held: None,
        }])],
        ToDaemon::Status => vec![FromDaemon::Status(vec![JobReport {
            id: 1,
            from: "A/g".parse().unwrap(),
            to: "B/g".parse().unwrap(),
            phase: "swapping".into(),
            running: true,
            kind: JobKind::Migrate,
            outcome: None,
        }])],
        ToDaemon::Swap(_) => vec![progress(Phase::Commit), FromDaemon::Swapped(Box::default())],
        ToDaemon::Migrate(_) => vec![
            FromDaemon::Job { id: 1 },
            progress(Phase::Stream),
            FromDaemon::Migrated(Box::default()),
        ],
        ToDaemon::Plan { .. } => vec![FromDaemon::Plan(Default::default())],
        ToDaemon::Memory => vec![FromDaemon::Memory(vec![HostVmMemory {
            host_vm: "B".into(),
            memory: Ok(HostMemory {
                pages: 163_836,
                max_pages: 164_096,
                cache: 85,
                entries: 193_252,
                host_free: 51_200,
            }),
        }])],
        ToDaemon::Maintenance => vec![FromDaemon::Maintenance(vec!["B".into()])],
        ToDaemon::Events => vec![FromDaemon::Event(Event::new(0, EventKind::Following))],
        ToDaemon::Work(_) => vec![FromDaemon::Taken { id: 1 }],
        ToDaemon::Abort { .. }
        | ToDaemon::Dismiss { .. }
        | ToDaemon::SetMaintenance { .. }
        | ToDaemon::WorkOn { .. }
        | ToDaemon::Say { .. }
        | ToDaemon::End { .. } => vec![FromDaemon::Done],
        ToDaemon::Evacuate(_) | ToDaemon::Watch { .. } => vec![
            FromDaemon::Job { id: 1 },
            progress(Phase::Stream),
            FromDaemon::Evacuated(Box::default()),
        ],
    }
}

/// What the daemon of this directory does not answer.
fn is_silent(request: &ToDaemon, names: &[&str]) -> bool {
    match names {
        ["no memory"] => *request == ToDaemon::Memory,
        ["nothing"] => true,
        _ => false,
    }
}

fn serve(mut stream: UnixStream, names: &[&str]) {
    let mut decoder = Decoder::strict();
    let frame = loop {
        if let Some(frame) = decoder.next_frame().unwrap() {
            break frame;
        }
        if decoder.fill(&mut stream).unwrap() == 0 {
            return;
        }
    };
    let request = frame.decode().unwrap();
    if is_silent(&request, names) {
        // Until it gives up.
        let _ = decoder.fill(&mut stream);
        return;
    }
    for a in answer(&request, names) {
        let bytes = encode(frame.request, frame.session, &a).unwrap();
        // Somebody who follows without a reader has gone already.
        if std::io::Write::write_all(&mut stream, &bytes).is_err() {
            return;
        }
    }
}

/// Answers everybody, until the test ends.
fn daemon(dir: &tempfile::TempDir, names: &'static [&str]) -> PathBuf {
    let socket = dir.path().join("control.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            serve(stream.unwrap(), names);
        }
    });
    socket
}

fn command(socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmbeam"));
    command.arg("--socket").arg(socket).args(args);
    // Not the system's.
    if ["rejuvenate", "replace"].contains(&args[0]) {
        command.arg("--state-dir").arg(socket.parent().unwrap());
    }
    command
}

fn full() -> Stdio {
    File::options()
        .write(true)
        .open("/dev/full")
        .unwrap()
        .into()
}

/// A pipe whose reader has gone.
fn gone() -> Stdio {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    drop(reader);
    writer.into()
}

/// Each command with the exit status that it has anyway.
const COMMANDS: &[(&[&str], i32)] = &[
    (&["check", "--device", "/nonexistent"], 1),
    (&["check", "--device", "/nonexistent", "--json"], 1),
    (&["list"], 0),
    (&["list", "--json"], 0),
    (&["status", "--device", "/nonexistent", "--json"], 0),
    (&["status", "--device", "/nonexistent"], 0),
    (&["status", "--watch", "--device", "/nonexistent"], 0),
    (&["events"], 0),
    (&["events", "--json"], 0),
    (&["records", "--device", "/nonexistent"], 1),
    (&["recover", "--device", "/nonexistent", "1"], 1),
    (&["forget", "--device", "/nonexistent", "1"], 1),
    (&["migrate", "g", "--from", "A", "--to", "B"], 0),
    (&["migrate", "g", "--from", "A", "--to", "B", "--json"], 0),
    (
        &["migrate", "g", "--from", "A", "--to", "B", "--dry-run"],
        0,
    ),
    (&["evacuate", "A", "--to", "B"], 0),
    (&["evacuate", "A", "--to", "B", "--json"], 0),
    (&["evacuate", "A", "--to", "B", "--detach"], 0),
    (&["evacuate", "A", "--to", "B", "--detach", "--json"], 0),
    (&["maintenance", "--json"], 0),
    (&["schema", "events"], 0),
    (&["watch", "1"], 0),
    (&["watch", "1", "--json"], 0),
    (
        &["rejuvenate", "A", "--here", "--config", "/nonexistent"],
        3,
    ),
    (
        &[
            "rejuvenate",
            "A",
            "--here",
            "--config",
            "/nonexistent",
            "--json",
        ],
        3,
    ),
    (&["replace", "A", "--here", "--config", "/nonexistent"], 3),
    (&["replace", "A", "--here", "--undo", "--json"], 3),
    (&["swap", "--from", "A/g", "--to", "B/g"], 0),
    (&["swap", "--from", "A/g", "--to", "B/g", "--json"], 0),
    (&["abort", "1"], 0),
    (&["memory", "7"], 1),
    (&["--help"], 0),
    (&["--version"], 0),
];

#[test]
fn a_reader_that_has_gone_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let socket = daemon(&dir, &["g"]);
    for (args, code) in COMMANDS {
        let out = command(&socket, args).stdout(gone()).output().unwrap();
        let stderr = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(*code), "{args:?}: {stderr}");
        assert!(!stderr.contains("cannot print"), "{args:?}: {stderr}");
        // `2>&1 | head`, and nowhere to say anything.
        for make in [gone, full] {
            let mut command = command(&socket, args);
            let status = command.stdout(gone()).stderr(make()).status().unwrap();
            assert_eq!(status.code(), Some(*code), "{args:?}");
        }
    }
}

#[test]
fn a_result_that_is_lost_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let socket = daemon(&dir, &["g"]);
    for (args, code) in COMMANDS {
        // The program asks nobody, and clap prints.
        if args[0].starts_with("--") {
            continue;
        }
        let out = command(&socket, args).stdout(full()).output().unwrap();
        let stderr = String::from_utf8(out.stderr).unwrap();
        let prints = !["abort", "memory", "records", "recover", "forget"].contains(&args[0]);
        let code = if prints && *code == 0 { 6 } else { *code };
        assert_eq!(out.status.code(), Some(code), "{args:?}: {stderr}");
        assert_eq!(
            stderr.contains("cannot print the result: No space left"),
            prints,
            "{args:?}: {stderr}"
        );
    }
}

#[test]
fn what_is_printed_for_programs_fits_its_schema() {
    let dir = tempfile::tempdir().unwrap();
    let socket = daemon(&dir, &["g"]);
    let printing = COMMANDS.iter().filter(|(args, _)| args.contains(&"--json"));
    // They go on for ever with a daemon like this.
    for (args, code) in printing.filter(|(args, _)| args[0] != "events") {
        let out = command(&socket, args).output().unwrap();
        assert_eq!(out.status.code(), Some(*code), "{args:?}");
        let json = serde_json::from_slice(&out.stdout).unwrap();
        schema::assert_fits(args[0], &json);
    }
}

fn text(out: Output) -> String {
    assert!(out.status.success(), "{out:?}");
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn a_host_vm_that_starts_small_is_seen_by_whoever_looks() {
    let dir = tempfile::tempdir().unwrap();
    let socket = daemon(&dir, &["g"]);
    let status = ["status", "--device", "/nonexistent"];
    let shown = text(command(&socket, &status).output().unwrap());
    for line in [
        "Host VM B: small: 639 MiB, at most 641; a reserve of 0 MiB for 754 MiB that are not there: start nothing in it",
        "Host VM B: its reserve is 0 MiB, and less than 16 MiB: it dies with",
        "Host VM B: it may have 641 MiB, so that at most 1 MiB of guests can be relocated to it; `xl mem-max B 1394` lets it",
    ] {
        assert!(shown.contains(line), "{shown}");
    }
    let check = ["check", "--device", "/nonexistent"];
    let out = command(&socket, &check).output().unwrap();
    let shown = String::from_utf8(out.stdout).unwrap();
    assert!(
        shown.contains("WARNING  memory of host VM B: small: 639 MiB"),
        "{shown}"
    );
}

#[test]
fn names_say_nothing_but_names() {
    const NAMES: &[&str] = &[
        "with space",
        "with 'quotes\"",
        "x\nB  2  db  7  4096  PV  running",
        "\u{1b}[2J\u{202e}gpj.exe\r\u{7}",
        "back\\slash",
        "\u{e9}t\u{e9}",
    ];
    let dir = tempfile::tempdir().unwrap();
    let socket = daemon(&dir, NAMES);
    let shown = text(command(&socket, &["list"]).output().unwrap());
    // One row for each, and the header.
    assert_eq!(shown.lines().count(), 1 + NAMES.len(), "{shown}");
    for name in [
        "with space",
        "with 'quotes\"",
        "x\\nB  2  db",
        "\\u{1b}[2J\\u{202e}gpj.exe\\r\\u{7}",
        "back\\\\slash",
        "\u{e9}t\u{e9}",
    ] {
        assert!(shown.contains(name), "no {name} in {shown}");
    }
    // A script gets the name itself, and may give it. The protocol takes no control
    // characters of anybody.
    let json = text(command(&socket, &["list", "--json"]).output().unwrap());
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    for (i, name) in NAMES.iter().enumerate() {
        assert_eq!(json[0]["guests"]["Ok"][i]["name"], *name);
        if name.chars().any(char::is_control) {
            continue;
        }
        let args = ["migrate", name, "--from", "A", "--to", "B"];
        text(command(&socket, &args).output().unwrap());
    }
}

/// Of a daemon that waits for the toolstack, or for its disk, what it knows is shown all the same.
#[test]
fn status_does_not_wait_for_ever() {
    let shown = |names| {
        let dir = tempfile::tempdir().unwrap();
        let socket = daemon(&dir, names);
        let mut status = command(&socket, &["status", "--device", "/nonexistent"]);
        let output = status.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let (code, out, _) = shown(&["no memory"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("A/g   B/g  running: swapping"), "{out}");
    let why = "The memory of the host VMs is not known: vmbeamd has not answered within 20 s";
    assert!(out.contains(why), "{out}");
    let (code, out, err) = shown(&["nothing"]);
    assert_eq!((code, &*out), (Some(1), ""));
    assert!(
        err.contains("vmbeamd has not answered within 10 s"),
        "{err}"
    );
}
