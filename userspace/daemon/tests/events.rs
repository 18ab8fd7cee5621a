// SPDX-License-Identifier: GPL-2.0-only

//! Following what happens.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/moves.rs"]
mod moves;

use common::{lock, Trouble, World};
use moves::world;
use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use vmbeam_control_protocol::{
    Event, EventKind, Failure, FromDaemon, JobKind, JobOutcome, MigrateRequest, ToDaemon,
};
use vmbeam_wire::{encode, Decoder};

struct Follower {
    stream: UnixStream,
    decoder: Decoder,
}

impl Follower {
    fn new(control: &Path) -> Self {
        let mut stream = UnixStream::connect(control).unwrap();
        let limit = Some(Duration::from_secs(30));
        stream.set_read_timeout(limit).unwrap();
        let bytes = encode(1, 1, &ToDaemon::Events).unwrap();
        stream.write_all(&bytes).unwrap();
        let decoder = Decoder::strict();
        Self { stream, decoder }
    }

    /// The next message; none if the daemon has hung up.
    fn message(&mut self) -> Option<FromDaemon> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame.decode().unwrap());
            }
            match self.decoder.fill(&mut self.stream) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return None,
                Err(e) => panic!("{e}"),
            }
        }
    }

    fn event(&mut self) -> Option<Event> {
        match self.message()? {
            FromDaemon::Event(event) => Some(event),
            other => panic!("{other:?}"),
        }
    }

    /// All up to one of this kind.
    fn until(&mut self, kind: EventKind) -> Vec<Event> {
        let mut all = Vec::new();
        loop {
            all.push(self.event().unwrap());
            if all.last().unwrap().event == kind {
                return all;
            }
        }
    }
}

fn migrate(w: &World, dry_run: bool) -> FromDaemon {
    w.ask(&ToDaemon::Migrate(MigrateRequest {
        dry_run,
        verify: false,
        ..moves::request("A", "B")
    }))
}

fn maintain(w: &World, on: bool) {
    let host_vm = "C".into();
    let done = w.ask(&ToDaemon::SetMaintenance { host_vm, on });
    assert_eq!(done, FromDaemon::Done);
}

#[test]
fn a_job_is_followed_from_its_beginning_to_its_end() {
    let w = world();
    let mut f = Follower::new(&w.control());
    assert_eq!(f.event().unwrap().event, EventKind::Following);
    assert!(matches!(migrate(&w, true), FromDaemon::Migrated(_)));
    f.until(EventKind::JobEnds);
    lock(&w.hosts["B"]).trouble = Trouble::RestoreFails;
    assert!(matches!(migrate(&w, false), FromDaemon::Error { .. }));
    let failed = f.until(EventKind::JobEnds);
    assert_eq!(failed.last().unwrap().outcome, Some(JobOutcome::RolledBack));
    lock(&w.hosts["B"]).trouble = Trouble::None;

    let before = failed.last().unwrap().time_ms;
    assert!(matches!(migrate(&w, false), FromDaemon::Migrated(_)));
    let all = f.until(EventKind::JobEnds);
    let (first, last) = (&all[0], all.last().unwrap());
    assert_eq!(
        (first.event, first.kind, first.outcome, first.job),
        (EventKind::JobBegins, Some(JobKind::Migrate), None, last.job)
    );
    assert_eq!(first.from.as_ref().unwrap().to_string(), "A/guest");
    assert_eq!(last.to.as_ref().unwrap().to_string(), "B/guest");
    assert_eq!(last.outcome, Some(JobOutcome::Done));
    assert!(last.text.as_ref().unwrap().starts_with("migrated: "));
    let steps: Vec<_> = all[1..all.len() - 1]
        .iter()
        .map(|e| {
            assert_eq!(e.event, EventKind::JobStep, "{e:?}");
            e.text.clone().unwrap()
        })
        .collect();
    for step in ["checking", "swapping", "resuming", "cleaning up"] {
        assert!(steps.iter().any(|s| s == step), "no {step} in {steps:?}");
    }
    // Each once, however often it says how far it is.
    assert!(steps.windows(2).all(|two| two[0] != two[1]), "{steps:?}");
    assert!(all.windows(2).all(|two| two[0].time_ms <= two[1].time_ms));
    assert!(first.time_ms >= before);
    // The list of jobs says the same.
    let FromDaemon::Status(jobs) = w.ask(&ToDaemon::Status) else {
        panic!()
    };
    assert_eq!(jobs.last().unwrap().outcome, Some(JobOutcome::Done));
}

#[test]
fn agents_and_maintenance_are_followed() {
    let mut w = World::new();
    w.start();
    let mut f = Follower::new(&w.control());
    // What comes before that is not told.
    assert_eq!(f.event().unwrap().event, EventKind::Following);
    w.agents(&["A"]);
    let there = f.until(EventKind::AgentAppears);
    assert_eq!(there.last().unwrap().host_vm.as_deref(), Some("A"));
    // Once each, whatever is asked for twice.
    for on in [true, true, false, false] {
        maintain(&w, on);
    }
    for kind in [EventKind::MaintenanceBegins, EventKind::MaintenanceEnds] {
        let event = f.event().unwrap();
        assert_eq!(
            (event.event, event.host_vm.as_deref()),
            (kind, Some("C")),
            "{event:?}"
        );
    }
    // A job that is refused is no job.
    assert!(matches!(w.swap("A", "C"), FromDaemon::Error { .. }));
    w.stop();
    assert_eq!(f.event(), None);
}

#[test]
fn an_agent_that_goes_is_missed() {
    let mut w = World::new();
    w.start();
    let mut f = Follower::new(&w.control());
    assert_eq!(f.event().unwrap().event, EventKind::Following);
    let peer = common::impostor(&w.socket("A"), |stream| {
        let mut agent = vmbeam_agent::Agent::new(common::FakeHypervisor(common::host(0, 16, 1)));
        let half = stream.try_clone().unwrap();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(3));
            let _ = half.shutdown(std::net::Shutdown::Both);
        });
        let _ = agent.serve(stream);
    });
    f.until(EventKind::AgentAppears);
    let gone = f.until(EventKind::AgentDisappears).pop().unwrap();
    assert_eq!(gone.host_vm.as_deref(), Some("A"));
    assert!(gone.text.is_some(), "{gone:?}");
    w.stop();
    drop(peer);
}

#[test]
fn whoever_reads_slowly_holds_nothing_up_and_is_told_what_is_missing() {
    let mut w = World::new();
    w.start();
    let mut f = Follower::new(&w.control());
    assert_eq!(f.event().unwrap().event, EventKind::Following);
    const ROUNDS: u64 = 750;
    for _ in 0..ROUNDS {
        maintain(&w, true);
        maintain(&w, false);
    }
    let (mut seen, mut missing) = (0, 0);
    while seen + missing < 2 * ROUNDS {
        let event = f.event().unwrap();
        match event.event {
            EventKind::Dropped => missing += event.dropped,
            _ => seen += 1,
        }
    }
    assert_eq!(seen + missing, 2 * ROUNDS);
    assert!(seen >= 1024 && missing > 0, "{seen} {missing}");
    // What comes later is not missing, and a stop does not wait for who does not read.
    maintain(&w, true);
    assert_eq!(f.event().unwrap().event, EventKind::MaintenanceBegins);
    for _ in 0..200 {
        maintain(&w, false);
        maintain(&w, true);
    }
    let began = Instant::now();
    w.stop();
    assert!(began.elapsed() < Duration::from_secs(60));
}

#[test]
fn those_who_follow_leave_room_for_others() {
    let mut w = World::new();
    w.start();
    let mut all: Vec<_> = (0..16).map(|_| Follower::new(&w.control())).collect();
    for f in &mut all {
        assert_eq!(f.event().unwrap().event, EventKind::Following);
    }
    let Some(FromDaemon::Error { failure, message }) = Follower::new(&w.control()).message() else {
        panic!()
    };
    assert_eq!(failure, Failure::Refused);
    assert!(
        message.contains("16 clients follow what happens already"),
        "{message}"
    );
    maintain(&w, true);
    // One that goes makes room.
    all.pop();
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Some(FromDaemon::Error { .. }) = Follower::new(&w.control()).message() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_the_log_warns_of_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let control = dir.path().join("c.sock");
    let base = dir.path().display();
    let config = dir.path().join("vmbeamd.toml");
    let text = format!(
        "[daemon]\ncontrol_socket = {control:?}\nstate_dir = \"{base}/state\"\n\
         device = \"/nonexistent/vmbeam\"\n\
         [[host_vm]]\nname = \"A\"\nsocket = \"{base}/A.sock\"\ndomid = 1\n"
    );
    std::fs::write(&config, text).unwrap();
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_vmbeamd"))
        .arg("--config")
        .arg(&config)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while UnixStream::connect(&control).is_err() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut f = Follower::new(&control);
    assert_eq!(f.event().unwrap().event, EventKind::Following);
    // A client that does not speak the protocol.
    let noise = UnixStream::connect(&control)
        .unwrap()
        .write_all(&[b'x'; 64]);
    let warning = f.until(EventKind::Warning).pop().unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    noise.unwrap();
    let text = warning.text.unwrap();
    assert!(text.starts_with("dropped a client: "), "{text}");
}
