// SPDX-License-Identifier: GPL-2.0-only

//! A daemon that cannot start threads, because there are too many: what it has begun comes to an
//! end all the same.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/moves.rs"]
mod moves;

use common::peer::assert_says;
use common::{lock, World};
use fail::FailScenario;
use moves::{contents, error, wait_until_runs_only_in, world};
use vmbeam_control_protocol::{EvacuateRequest, FromDaemon, MoveOutcome, ToDaemon};

const EAGAIN: i32 = 11;

fn evacuate(w: &World) -> FromDaemon {
    w.ask(&ToDaemon::Evacuate(EvacuateRequest {
        from: "A".into(),
        to: "B".into(),
        wait_seconds: 30,
        ..EvacuateRequest::default()
    }))
}

/// What needs two threads panics when it gets one.
#[test]
fn what_an_evacuation_has_left_is_settled_without_a_thread_for_it() {
    let _scenario = FailScenario::setup();
    let w = world();
    let (_, pages) = contents(&w, "A").unwrap();
    fail::cfg("spawn-settle", &format!("return({EAGAIN})")).unwrap();
    lock(&w.driver.faults).panic = true;
    let FromDaemon::Evacuated(report) = evacuate(&w) else {
        panic!()
    };
    assert_eq!(report.guests[0].outcome, MoveOutcome::PutBack);
    wait_until_runs_only_in(&w, "A", &pages);
    lock(&w.driver.faults).panic = false;
    assert!(matches!(evacuate(&w), FromDaemon::Evacuated(_)));
    wait_until_runs_only_in(&w, "B", &pages);
}

#[test]
fn an_evacuation_that_gets_no_thread_is_none() {
    let _scenario = FailScenario::setup();
    let w = world();
    fail::cfg("spawn-evacuation", &format!("return({EAGAIN})")).unwrap();
    assert_says(&error(evacuate(&w)).1, "cannot start a thread");
    let FromDaemon::Status(jobs) = w.ask(&ToDaemon::Status) else {
        panic!()
    };
    assert!(!jobs[0].running);
    let job = jobs[0].id;
    let (_, message) = error(w.ask(&ToDaemon::Watch { job }));
    assert_says(&message, "there is no evacuation");
    let (_, message) = error(w.ask(&ToDaemon::Abort { job }));
    assert_says(&message, "has ended");
}
