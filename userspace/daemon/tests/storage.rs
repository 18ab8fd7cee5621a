// SPDX-License-Identifier: GPL-2.0-only

//! A journal that cannot be written, at every write: the guest runs in one place all the same,
//! and never where the next daemon would not have it run.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/moves.rs"]
mod moves;

use common::{lock, World};
use fail::FailScenario;
use moves::{contents, error, migrate, report, wait_until_runs_only_in, world};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmbeam_control_protocol::{EvacuateRequest, Failure, FromDaemon, ToDaemon};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;

/// Wait until all jobs have ended; the host VM where the guest runs, as it was.
#[track_caller]
fn where_it_runs(w: &World, pages: &HashMap<u64, u64>) -> &'static str {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let FromDaemon::Status(jobs) = w.ask(&ToDaemon::Status) else {
            panic!()
        };
        if jobs.iter().all(|j| !j.running) {
            break;
        }
        assert!(Instant::now() < deadline, "{jobs:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let end = match contents(w, "A") {
        Some(_) => "A",
        None => "B",
    };
    wait_until_runs_only_in(w, end, pages);
    end
}

#[test]
fn whichever_write_fails_the_guest_runs_in_one_place() {
    let _scenario = FailScenario::setup();
    let w = world();
    let (_, pages) = contents(&w, "A").unwrap();
    let mut at = "A";
    let points = [
        ("journal-create", ENOSPC),
        ("journal-data", EIO),
        ("journal-rename", EROFS),
        ("journal-sync", EIO),
        ("journal-pairs", ENOSPC),
        ("journal-remove", EROFS),
    ];
    for (point, errno) in points {
        // A migration writes five times and its pairs, and removes: no point is passed more
        // often than that makes durable.
        for nr in 0..10 {
            fail::cfg(point, &format!("{nr}*off->1*return({errno})->off")).unwrap();
            let to = if at == "A" { "B" } else { "A" };
            let answer = migrate(&w, at, to);
            at = where_it_runs(&w, &pages);
            let moved = matches!(answer, FromDaemon::Migrated(_));
            assert_eq!(moved, at == to, "{point} {nr}: {answer:?}");
        }
    }
}

/// The point of no return may be in the journal: until it is known that it is not, the guest
/// runs nowhere.
#[test]
fn nothing_runs_while_the_journal_may_say_something_else() {
    let _scenario = FailScenario::setup();
    let w = world();
    let (_, pages) = contents(&w, "A").unwrap();
    // Behind the file and the directory of the first line and of the pairs, and two lines.
    fail::cfg("journal-sync", &format!("6*off->return({EIO})")).unwrap();
    let (failure, message) = error(migrate(&w, "A", "B"));
    assert_eq!(failure, Failure::Failed);
    assert!(message.contains("cannot write the journal"), "{message}");
    std::thread::sleep(Duration::from_millis(1500));
    for vm in ["A", "B"] {
        assert!(!contents(&w, vm).unwrap().0, "it runs in {vm}");
    }
    fail::remove("journal-sync");
    wait_until_runs_only_in(&w, "A", &pages);
    // Nor is a record given up that cannot be removed.
    fail::cfg("journal-remove", &format!("return({EROFS})")).unwrap();
    assert!(matches!(migrate(&w, "A", "B"), FromDaemon::Migrated(_)));
    assert_eq!(lock(&w.hosts["B"]).running(), ["guest"]);
    assert_eq!(w.records(), 1);
    fail::remove("journal-remove");
    wait_until_runs_only_in(&w, "B", &pages);
}

/// Nobody knows what it says when the daemon dies: the next one does.
#[test]
fn a_daemon_that_dies_behind_a_point_of_no_return_that_was_not_written_well() {
    // It cannot be taken back, or that is not sure either.
    for (point, before, end) in [("journal-create", 4, "B"), ("journal-sync", 6, "A")] {
        let _scenario = FailScenario::setup();
        let mut w = world();
        let (_, pages) = contents(&w, "A").unwrap();
        fail::cfg("journal-sync", &format!("6*off->1*return({EIO})->off")).unwrap();
        fail::cfg(point, &format!("{before}*off->return({EIO})")).unwrap();
        let (failure, message) = error(migrate(&w, "A", "B"));
        assert_eq!(failure, Failure::Failed);
        assert!(message.contains("cannot write the journal"), "{message}");
        w.stop();
        for vm in ["A", "B"] {
            assert!(!contents(&w, vm).unwrap().0, "it runs in {vm}");
        }
        fail::remove("journal-sync");
        fail::remove(point);
        w.start();
        wait_until_runs_only_in(&w, end, &pages);
    }
}

#[test]
fn few_writes_are_waited_for_in_the_pause() {
    let _scenario = FailScenario::setup();
    let w = world();
    let (a, b) = (w.hosts["A"].clone(), w.hosts["B"].clone());
    let syncs = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
    let counted = syncs.clone();
    fail::cfg_callback("journal-sync", move || {
        let stopped = lock(&a).suspended > 0 && lock(&b).running().is_empty();
        counted[usize::from(stopped)].fetch_add(1, Ordering::Relaxed);
    })
    .unwrap();
    report(migrate(&w, "A", "B"));
    let [outside, pause] = [0, 1].map(|i| syncs[i].load(Ordering::Relaxed));
    // What is swapped, and that there is no return.
    assert_eq!(pause, 2);
    assert!(outside > 3, "{outside}");
}

/// What an evacuation writes, at every write: it is refused, and for the next daemon as well, or
/// goes on.
#[test]
fn whichever_write_of_an_evacuation_fails_its_guests_run_in_one_place() {
    let _scenario = FailScenario::setup();
    let mut w = world();
    let (_, pages) = contents(&w, "A").unwrap();
    let mut at = "A";
    for (point, errno) in [
        ("durable-create", ENOSPC),
        ("durable-data", EIO),
        ("durable-rename", EROFS),
        ("durable-sync", EIO),
        ("evacuation-remove", EROFS),
    ] {
        // It writes when it begins, when it is planned, for each guest and when it ends.
        for nr in 0..5 {
            fail::cfg(point, &format!("{nr}*off->1*return({errno})->off")).unwrap();
            let to = if at == "A" { "B" } else { "A" };
            let answer = w.ask(&ToDaemon::Evacuate(EvacuateRequest {
                from: at.into(),
                to: to.into(),
                wait_seconds: 30,
                ..EvacuateRequest::default()
            }));
            match answer {
                FromDaemon::Evacuated(report) => {
                    assert!(report.blockers.is_empty(), "{point} {nr}: {report:?}");
                    at = to;
                }
                FromDaemon::Error { failure, message } => {
                    assert_eq!((failure, nr), (Failure::Refused, 0), "{point}: {message}");
                    // What was refused no other daemon begins.
                    w.stop();
                    w.start();
                    for name in ["A", "B"] {
                        w.wait_agent(name, None);
                    }
                }
                other => panic!("{point} {nr}: {other:?}"),
            }
            assert_eq!(where_it_runs(&w, &pages), at, "{point} {nr}");
            fail::remove(point);
        }
    }
}

/// A record that may be there and cannot be removed is what the next daemon goes by. Whoever is
/// told that the evacuation is refused is told that as well.
#[test]
fn an_evacuation_that_is_refused_and_may_be_begun_is_both() {
    let _scenario = FailScenario::setup();
    let w = world();
    let refused = || {
        let answer = w.ask(&ToDaemon::Evacuate(EvacuateRequest {
            from: "A".into(),
            to: "B".into(),
            ..EvacuateRequest::default()
        }));
        let (failure, message) = error(answer);
        assert_eq!(failure, Failure::Refused);
        message
    };
    let words = "remove it, or the next vmbeamd begins what is refused";
    fail::cfg("evacuation-remove", &format!("return({EROFS})")).unwrap();
    fail::cfg("durable-sync", &format!("1*return({EIO})->off")).unwrap();
    let message = refused();
    assert!(message.contains(words), "{message}");
    // There is nothing to be removed.
    fail::cfg("durable-create", &format!("1*return({ENOSPC})->off")).unwrap();
    let message = refused();
    assert!(!message.contains(words), "{message}");
}

/// Whoever is told that it failed finds it as it was.
#[test]
fn maintenance_that_cannot_be_noted_is_none() {
    let _scenario = FailScenario::setup();
    let w = world();
    let names = || match w.ask(&ToDaemon::Maintenance) {
        FromDaemon::Maintenance(names) => names,
        other => panic!("{other:?}"),
    };
    let set = |on| {
        w.ask(&ToDaemon::SetMaintenance {
            host_vm: "B".into(),
            on,
        })
    };
    for point in [
        "durable-create",
        "durable-data",
        "durable-rename",
        "durable-sync",
    ] {
        fail::cfg(point, &format!("return({EIO})")).unwrap();
        assert!(matches!(set(true), FromDaemon::Error { .. }), "{point}");
        assert!(names().is_empty(), "{point}");
        fail::remove(point);
        assert_eq!(set(true), FromDaemon::Done);
        assert_eq!(names(), ["B"]);
        assert_eq!(set(false), FromDaemon::Done);
    }
}
