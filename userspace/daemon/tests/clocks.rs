// SPDX-License-Identifier: GPL-2.0-only

//! Host VMs whose clocks differ: everybody who asks is warned, and nobody is held up.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/moves.rs"]
mod moves;

use common::peer::proxy;
use common::{lock, World};
use std::io::Write;
use std::time::Duration;
use vmbeam_agent_protocol::{AgentErrorCode, FromAgent, ToAgent};
use vmbeam_control_protocol::{
    Clocks, EvacuateRequest, FromDaemon, MigrateReport, MigrateRequest, Mode, ToDaemon,
};
use vmbeam_wire::encode;

const FAST: &str = "the clock of host VM B is 5.0 s ahead of that of host VM A, and so the time of a guest that moves jumps; have both management VMs set theirs from the network (NTP)";

fn migrate(w: &World, dry_run: bool) -> MigrateReport {
    let answer = w.ask(&ToDaemon::Migrate(MigrateRequest {
        dry_run,
        verify: false,
        ..moves::request("A", "B")
    }));
    match answer {
        FromDaemon::Migrated(report) => *report,
        other => panic!("{other:?}"),
    }
}

fn clocks(w: &World) -> Clocks {
    match w.ask(&ToDaemon::Check) {
        FromDaemon::Check(report) => report.clocks[0].1.clone(),
        other => panic!("{other:?}"),
    }
}

fn world() -> World {
    let w = World::new();
    lock(&w.hosts["B"]).guests.clear();
    w
}

fn start(w: &mut World) {
    w.start();
    for name in ["A", "B"] {
        w.wait_agent(name, None);
    }
}

#[test]
fn clocks_that_are_apart_are_a_warning() {
    let mut w = world();
    w.agents(&["A", "B"]);
    start(&mut w);
    assert_eq!(clocks(&w), Clocks::Together);
    assert!(migrate(&w, true).warnings.is_empty());
    lock(&w.hosts["B"]).fast = Duration::from_secs(5);
    // More than a busy machine takes for an answer.
    assert_eq!(clocks(&w), Clocks::Apart(FAST.into()));
    let dry = migrate(&w, true);
    assert_eq!((dry.warnings, dry.blockers.len()), (vec![FAST.into()], 0));
    let plan = ToDaemon::Plan {
        from: "A".into(),
        to: "B".into(),
        mode: Mode::Swap,
    };
    let FromDaemon::Plan(plan) = w.ask(&plan) else {
        panic!()
    };
    assert_eq!((plan.warnings, plan.blockers.len()), (vec![FAST.into()], 0));
    let evacuate = ToDaemon::Evacuate(EvacuateRequest {
        from: "A".into(),
        to: "B".into(),
        dry_run: true,
        ..EvacuateRequest::default()
    });
    let FromDaemon::Evacuated(report) = w.ask(&evacuate) else {
        panic!()
    };
    assert_eq!(report.warnings, [FAST]);
    assert!(!report.is_blocked());
    assert_eq!(migrate(&w, false).warnings, [FAST]);
    assert_eq!(lock(&w.hosts["B"]).running(), ["guest"]);
}

/// One of an earlier version answers so, and moves guests as ever.
#[test]
fn an_agent_that_does_not_tell_the_time_is_no_warning() {
    let mut w = world();
    w.agents(&["A"]);
    let host = w.hosts["B"].clone();
    lock(&host).fast = Duration::from_secs(5);
    proxy(
        &w.socket("B"),
        host,
        |request, daemon, (number, session)| {
            let is_time = matches!(request, ToAgent::Time);
            if is_time {
                let code = AgentErrorCode::BadRequest;
                let message = "a message that cannot be decoded".into();
                let answer = FromAgent::Error { code, message };
                let bytes = encode(number, session, &answer).unwrap();
                daemon.write_all(&bytes).unwrap();
            }
            is_time
        },
    );
    start(&mut w);
    assert_eq!(
        clocks(&w),
        Clocks::Unknown("the agent of host VM B does not tell the time".into())
    );
    assert!(migrate(&w, false).warnings.is_empty());
    assert_eq!(lock(&w.hosts["B"]).running(), ["guest"]);
}
