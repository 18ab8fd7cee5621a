// SPDX-License-Identifier: GPL-2.0-only

//! An evacuation is a job of the daemon: it needs neither whoever asked for it, nor the daemon
//! that began it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{guest_uuid, lock, uuid, Trouble, World, RESTORED};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use vmbeam_control_protocol::{
    EvacuateReport, EvacuateRequest, Failure, FromDaemon, JobKind, JobReport, MoveOutcome, ToDaemon,
};
use vmbeam_wire::{encode, Decoder};

const ALL: [&str; 3] = ["guest", "second", "third"];

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

fn request() -> EvacuateRequest {
    EvacuateRequest {
        from: "A".into(),
        to: "B".into(),
        wait_seconds: 30,
        ..EvacuateRequest::default()
    }
}

/// Somebody who has asked, and reads answers as long as that is wanted.
struct Asking(UnixStream, Decoder);

impl Asking {
    fn ask(w: &World, request: &ToDaemon) -> Self {
        let mut stream = UnixStream::connect(w.control()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        stream.write_all(&encode(1, 1, request).unwrap()).unwrap();
        Self(stream, Decoder::strict())
    }

    /// The next answer, unless the daemon has hung up.
    fn next(&mut self) -> Option<FromDaemon> {
        loop {
            if let Some(frame) = self.1.next_frame().unwrap() {
                return Some(frame.decode().unwrap());
            }
            if self.1.fill(&mut self.0).unwrap() == 0 {
                return None;
            }
        }
    }

    fn last(mut self) -> Option<FromDaemon> {
        std::iter::from_fn(|| self.next()).last()
    }
}

/// Begin one, and leave.
fn begin(w: &World, request: EvacuateRequest) -> u64 {
    match Asking::ask(w, &ToDaemon::Evacuate(request)).next() {
        Some(FromDaemon::Job { id }) => id,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn watch(w: &World, job: u64) -> EvacuateReport {
    match w.ask(&ToDaemon::Watch { job }) {
        FromDaemon::Evacuated(report) => *report,
        other => panic!("{other:?}"),
    }
}

fn jobs(w: &World) -> Vec<JobReport> {
    match w.ask(&ToDaemon::Status) {
        FromDaemon::Status(jobs) => jobs,
        other => panic!("{other:?}"),
    }
}

fn running(w: &World, host_vm: &str) -> Vec<String> {
    lock(&w.hosts[host_vm]).running()
}

#[track_caller]
fn wait_for(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn outcomes(report: &EvacuateReport) -> Vec<MoveOutcome> {
    report.guests.iter().map(|g| g.outcome).collect()
}

fn file(w: &World, job: u64) -> PathBuf {
    w.journal().join(format!("evacuation-{job}.json"))
}

/// One whose first guest does not get on, after so many have moved.
fn held(w: &World, request: EvacuateRequest) -> u64 {
    lock(&w.hosts["A"]).trouble = Trouble::SaveHangs;
    let left = running(w, "A").len();
    let job = begin(w, request);
    wait_for("a guest is being saved", || running(w, "A").len() < left);
    job
}

fn let_go(w: &World) {
    lock(&w.hosts["A"]).trouble = Trouble::None;
}

#[test]
fn it_goes_on_without_whoever_asked_and_anybody_can_watch() {
    let w = world();
    let job = held(&w, request());
    let of_it = jobs(&w).into_iter().find(|j| j.id == job).unwrap();
    assert_eq!((of_it.kind, of_it.running), (JobKind::Evacuate, true));
    assert_eq!(of_it.phase, "guest guest (1 of 3)");
    assert_eq!(of_it.from.to_string(), "A");
    let mut first = Asking::ask(&w, &ToDaemon::Watch { job });
    let second = Asking::ask(&w, &ToDaemon::Watch { job });
    // What goes on is shown at once.
    let Some(FromDaemon::Moving {
        guest, number, of, ..
    }) = first.next()
    else {
        panic!()
    };
    assert_eq!((&*guest.guest, number, of), ("guest", 1, 3));
    // One that leaves disturbs nobody.
    drop(second);
    let third = Asking::ask(&w, &ToDaemon::Watch { job });
    let_go(&w);
    for watching in [first, third] {
        let Some(FromDaemon::Evacuated(report)) = watching.last() else {
            panic!()
        };
        assert_eq!(outcomes(&report), [MoveOutcome::Moved; 3]);
    }
    assert_eq!(running(&w, "B"), ALL);
    // Whoever comes late is told the same.
    assert!(watch(&w, job).guests[1].migration.is_some());
}

#[test]
fn two_do_not_move_guests_to_and_fro() {
    let w = world();
    let job = held(&w, request());
    let mut back = request();
    (back.from, back.to) = (back.to, back.from);
    for other in [request(), back] {
        let FromDaemon::Error { failure, message } = w.ask(&ToDaemon::Evacuate(other)) else {
            panic!()
        };
        assert_eq!(failure, Failure::Refused);
        let words = format!("job {job} moves the guests of host VM A to B already");
        assert!(message.contains(&words), "{message}");
    }
    let_go(&w);
    watch(&w, job);
}

#[test]
fn the_next_daemon_goes_on_with_it() {
    let mut w = world();
    let job = held(&w, request());
    let watching = Asking::ask(&w, &ToDaemon::Watch { job });
    w.stop();
    // Nobody is told that it has ended.
    assert!(!matches!(
        watching.last(),
        Some(FromDaemon::Evacuated(_) | FromDaemon::Error { .. })
    ));
    assert_eq!(running(&w, "A"), ALL);
    let_go(&w);
    w.start();
    let report = watch(&w, job);
    assert_eq!(outcomes(&report), [MoveOutcome::Moved; 3]);
    assert_eq!(running(&w, "B"), ALL);
    // One that has ended is still known to the one after that, and no number is given again.
    w.stop();
    w.start();
    assert_eq!(outcomes(&watch(&w, job)), outcomes(&report));
    assert_eq!(jobs(&w).len(), 1);
    assert_eq!(jobs(&w)[0].phase, "3 of 3 guests moved");
    for name in ["A", "B"] {
        w.wait_agent(name, None);
    }
    let mut dry = request();
    dry.dry_run = true;
    // Three guests moved, one of them twice, after the evacuation itself.
    assert_eq!(begin(&w, dry), job + 5);
}

/// As if it had been killed in the middle of the first guest's move: it does not know of any
/// that came after that.
#[test]
fn a_daemon_that_was_killed_is_gone_on_from() {
    let mut w = world();
    let job = held(&w, request());
    let then = std::fs::read(file(&w, job)).unwrap();
    assert_eq!(w.ask(&ToDaemon::Abort { job }), FromDaemon::Done);
    let_go(&w);
    assert!(watch(&w, job).interrupted);
    assert_eq!(running(&w, "A"), ["second", "third"]);
    w.stop();
    std::fs::write(file(&w, job), then).unwrap();
    lock(&w.hosts["A"]).guests.remove(&3);
    w.start();
    let report = watch(&w, job);
    assert_eq!(
        outcomes(&report),
        [MoveOutcome::Moved, MoveOutcome::Waiting, MoveOutcome::Gone]
    );
    let reason = "it had moved when vmbeamd was started again";
    assert_eq!(report.guests[0].reasons, [reason]);
    assert_eq!(running(&w, "A"), ["second"]);
}

/// A name is that of whichever guest has it by now.
#[test]
fn the_next_daemon_knows_the_guests_by_their_uuids() {
    let mut w = world();
    let job = held(&w, request());
    w.stop();
    let_go(&w);
    let mut a = lock(&w.hosts["A"]);
    let mut b = lock(&w.hosts["B"]);
    // The second one has another name, and somebody else its own; the third one has moved, and
    // been renamed.
    a.uuids.insert(2, guest_uuid("second"));
    a.guests.get_mut(&2).unwrap().name = "renamed".into();
    a.add_guest(9, "second", 16);
    a.uuids.insert(9, uuid("other"));
    a.guests.remove(&3);
    b.add_guest(7, "gone before", 16);
    b.uuids.insert(7, guest_uuid("third"));
    // What it gets when it is restored there, behind the first one.
    let restored = 2 * RESTORED + 7;
    b.uuids.insert(restored, guest_uuid("second"));
    drop((a, b));
    w.start();
    let report = watch(&w, job);
    assert_eq!(outcomes(&report), [MoveOutcome::Moved; 3], "{report:?}");
    assert_eq!(report.guests[1].guest, "renamed");
    assert_eq!(running(&w, "A"), ["second"]);
    assert_eq!(running(&w, "B"), ["gone before", "guest", "renamed"]);
    assert!(lock(&w.hosts["B"]).guests.contains_key(&restored));
}

/// One that the release before has begun has no UUIDs.
#[test]
fn a_record_without_uuids_is_gone_on_with() {
    let mut w = world();
    let job = held(&w, request());
    w.stop();
    let_go(&w);
    let text = std::fs::read(file(&w, job)).unwrap();
    let mut record: serde_json::Value = serde_json::from_slice(&text).unwrap();
    for guest in record["report"]["guests"].as_array_mut().unwrap() {
        let uuid = guest.as_object_mut().unwrap().remove("uuid");
        assert!(uuid.is_some_and(|u| u.is_string()));
    }
    std::fs::write(file(&w, job), record.to_string()).unwrap();
    w.start();
    assert_eq!(outcomes(&watch(&w, job)), [MoveOutcome::Moved; 3]);
    assert_eq!(running(&w, "B"), ALL);
}

#[test]
fn it_stops_after_the_guest_that_moves_or_at_once() {
    let mut w = world();
    let abort = |w: &World, job| w.ask(&ToDaemon::Abort { job });
    let job = held(&w, request());
    assert_eq!(abort(&w, job), FromDaemon::Done);
    let_go(&w);
    let report = watch(&w, job);
    assert!(report.interrupted);
    assert_eq!(report.count(MoveOutcome::Waiting), 2);
    assert_eq!(running(&w, "B"), ["guest"]);
    let FromDaemon::Error { message, .. } = abort(&w, job) else {
        panic!()
    };
    assert!(message.contains("has ended"), "{message}");

    let job = held(&w, request());
    assert_eq!(abort(&w, job), FromDaemon::Done);
    assert_eq!(abort(&w, job), FromDaemon::Done);
    let report = watch(&w, job);
    assert_eq!(outcomes(&report)[0], MoveOutcome::PutBack);
    assert_eq!(running(&w, "A"), ["second", "third"]);

    // The next daemon knows that it was to stop.
    let job = held(&w, request());
    assert_eq!(abort(&w, job), FromDaemon::Done);
    w.stop();
    let_go(&w);
    w.start();
    assert!(watch(&w, job).interrupted);
    assert_eq!(running(&w, "A"), ["second", "third"]);
}

#[test]
fn it_can_be_forgotten_when_it_has_ended() {
    let w = world();
    let job = held(&w, request());
    let forget = || w.ask(&ToDaemon::Dismiss { job });
    let FromDaemon::Error { failure, message } = forget() else {
        panic!()
    };
    assert_eq!(failure, Failure::Refused);
    assert!(message.contains("still moves guests"), "{message}");
    let_go(&w);
    watch(&w, job);
    assert!(file(&w, job).exists());
    assert_eq!(forget(), FromDaemon::Done);
    assert!(!file(&w, job).exists());
    assert!(jobs(&w).iter().all(|j| j.id != job));
    let FromDaemon::Error { message, .. } = w.ask(&ToDaemon::Watch { job }) else {
        panic!()
    };
    assert!(message.contains("there is no evacuation"), "{message}");
}

#[test]
fn one_of_another_boot_touches_nothing() {
    let mut w = world();
    let job = held(&w, request());
    w.stop();
    let_go(&w);
    let text = std::fs::read_to_string(file(&w, job)).unwrap();
    let boot = vmbeamd::boot::id();
    assert!(text.contains(&boot));
    std::fs::write(file(&w, job), text.replace(&boot, "another")).unwrap();
    w.start();
    let FromDaemon::Error { failure, message } = w.ask(&ToDaemon::Watch { job }) else {
        panic!()
    };
    assert_eq!(failure, Failure::Failed);
    let words = "the host was restarted while the guests of host VM A moved to B";
    assert!(message.contains(words), "{message}");
    assert_eq!(running(&w, "A"), ALL);
}
