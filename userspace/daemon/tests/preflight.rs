// SPDX-License-Identifier: GPL-2.0-only

//! What would fail only once a guest is suspended is refused before: whoever asks, and in
//! whatever way, is told the same, and nothing is done to the guest.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{lock, wait_until, FakeGuest, Trouble, World};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vmbeam_agent_protocol::{Inspection, Need, NeedKind};
use vmbeam_control_protocol::{
    Failure, FromDaemon, GuestRef, MigrateReport, MigrateRequest, Mode, ToDaemon,
};
use vmbeam_wire::{encode, Decoder};

/// Two host VMs; B has no guest.
fn world_with(timeout: u64) -> World {
    let mut w = World::new();
    w.timeout = timeout;
    lock(&w.hosts["B"]).guests.clear();
    w.agents(&["A", "B"]);
    w.start();
    for name in ["A", "B"] {
        w.wait_agent(name, None);
    }
    w
}

fn world() -> World {
    world_with(60)
}

fn request(mode: Mode, dry_run: bool) -> ToDaemon {
    ToDaemon::Migrate(MigrateRequest {
        from: GuestRef {
            host_vm: "A".into(),
            guest: "guest".into(),
        },
        to: "B".into(),
        mode,
        dry_run,
        verify: false,
        timeout_seconds: None,
        max_downtime_ms: None,
    })
}

#[track_caller]
fn report(answer: FromDaemon) -> MigrateReport {
    match answer {
        FromDaemon::Migrated(report) => *report,
        other => panic!("{other:?}"),
    }
}

/// All that ask are told this, and nothing has changed.
#[track_caller]
fn assert_in_the_way(w: &World, expected: &[&str]) {
    let before = w.memory();
    for mode in [Mode::Swap, Mode::Copy] {
        let plan = ToDaemon::Plan {
            from: "A".into(),
            to: "B".into(),
            mode,
        };
        let FromDaemon::Plan(plan) = w.ask(&plan) else {
            panic!()
        };
        assert_eq!(plan.guests[0].blockers, expected);
        assert_eq!(report(w.ask(&request(mode, true))).blockers, expected);
        let FromDaemon::Error { failure, message } = w.ask(&request(mode, false)) else {
            panic!()
        };
        assert_eq!((failure, message), (Failure::Refused, expected.join("; ")));
    }
    assert_eq!(w.memory(), before);
    assert_eq!(lock(&w.hosts["A"]).running(), ["guest"]);
    assert!(lock(&w.hosts["B"]).guests.is_empty());
}

fn inspection(w: &World, problems: &[&str], needs: &[(NeedKind, &str)]) {
    let mut host = lock(&w.hosts["A"]);
    let guest: &mut FakeGuest = host.guests.get_mut(&1).unwrap();
    guest.inspection = Inspection {
        problems: problems.iter().map(|p| (*p).into()).collect(),
        needs: needs
            .iter()
            .map(|(kind, name)| Need {
                kind: *kind,
                name: (*name).into(),
            })
            .collect(),
    };
}

#[test]
fn what_the_source_knows_of_its_guest_is_in_the_way() {
    let w = world();
    inspection(&w, &["it is ill", "it is busy"], &[]);
    assert_in_the_way(&w, &["guest guest: it is ill", "guest guest: it is busy"]);
    inspection(&w, &[], &[]);
    report(w.ask(&request(Mode::Swap, false)));
    assert_eq!(lock(&w.hosts["B"]).running(), ["guest"]);
}

#[test]
fn what_the_destination_lacks_is_in_the_way() {
    let w = world();
    let needs = [
        (NeedKind::Bridge, "br0"),
        (NeedKind::Disk, "/dev/vg/disk"),
        (NeedKind::Kernel, "/boot/vmlinux"),
        (NeedKind::Pool, "fast"),
    ];
    inspection(&w, &[], &needs);
    lock(&w.hosts["B"]).lacks = needs.iter().map(|n| n.1.into()).collect();
    let missing = |what| {
        format!("host VM B has no {what}, which guest guest needs; provide it there, or change the guest's configuration")
    };
    let all = [
        "network bridge br0",
        "disk /dev/vg/disk",
        "kernel file /boot/vmlinux",
        "cpupool fast",
    ]
    .map(missing);
    assert_in_the_way(&w, &all.each_ref().map(|m| &**m));
    lock(&w.hosts["B"]).lacks.remove(0);
    assert_in_the_way(&w, &[&all[1], &all[2], &all[3]]);
    lock(&w.hosts["B"]).lacks.clear();
    report(w.ask(&request(Mode::Swap, false)));
}

/// `rdtsc` is emulated where the processor has another frequency, and nothing said so.
#[test]
fn a_guest_that_will_be_slower_is_a_warning() {
    let w = world();
    inspection(&w, &[], &[(NeedKind::Tsc, "2994374")]);
    assert_eq!(report(w.ask(&request(Mode::Swap, true))).warnings, [""; 0]);
    lock(&w.hosts["B"]).lacks = vec!["2994374".into()];
    let moved = |dry_run| {
        let report = report(w.ask(&request(Mode::Swap, dry_run)));
        assert_eq!(report.blockers, [""; 0]);
        assert_eq!(report.warnings.len(), 1, "{report:?}");
        let told = "guest guest reads the clock of the processor (TSC, 2994374 kHz) itself, and in host VM B";
        assert!(report.warnings[0].starts_with(told), "{report:?}");
    };
    moved(true);
    let plan = ToDaemon::Plan {
        from: "A".into(),
        to: "B".into(),
        mode: Mode::Swap,
    };
    let FromDaemon::Plan(plan) = w.ask(&plan) else {
        panic!()
    };
    assert_eq!((plan.warnings.len(), plan.guests[0].blockers.len()), (1, 0));
    moved(false);
    assert_eq!(lock(&w.hosts["B"]).running(), ["guest"]);
}

#[test]
fn an_agent_that_does_not_know_the_question_is_in_nobodys_way() {
    let w = world();
    inspection(&w, &["it is ill"], &[]);
    lock(&w.hosts["A"]).is_old = true;
    report(w.ask(&request(Mode::Swap, false)));
    assert_eq!(lock(&w.hosts["B"]).running(), ["guest"]);
}

/// At boot no question to it is answered before xenstored is there.
#[test]
fn a_toolstack_that_was_of_no_use_is_asked_again() {
    let mut w = World::new();
    lock(&w.hosts["B"]).guests.clear();
    lock(&w.hosts["B"]).trouble = Trouble::Stock;
    w.agents(&["A", "B"]);
    w.start();
    for name in ["A", "B"] {
        w.wait_agent(name, None);
    }
    let problem = || {
        let FromDaemon::Check(check) = w.ask(&ToDaemon::Check) else {
            panic!()
        };
        check.agents[1].connected.clone().unwrap().toolstack.problem
    };
    assert_eq!(problem().as_deref(), Some("it is Debian's toolstack"));
    lock(&w.hosts["B"]).trouble = Trouble::None;
    report(w.ask(&request(Mode::Swap, true)));
    assert_eq!(problem(), None);
}

#[test]
fn a_restore_has_as_long_as_an_agent() {
    let w = world_with(5);
    lock(&w.hosts["B"]).trouble = Trouble::RestoreStalls;
    let FromDaemon::Error { failure, message } = w.ask(&request(Mode::Swap, false)) else {
        panic!()
    };
    assert_eq!(failure, Failure::RolledBack);
    let words = "host VM B took nothing of the guest for 5 s";
    assert!(message.contains(words), "{message}");
    assert_eq!(lock(&w.hosts["A"]).running(), ["guest"]);
}

#[test]
fn a_stop_waits_until_a_client_has_its_answer() {
    let mut w = world();
    let mut guest = lock(&w.hosts["A"]).guests[&1].clone();
    guest.pages.truncate(1);
    guest.name = "x".repeat(250);
    let more = (2..1000).map(|domid| (domid, guest.clone()));
    lock(&w.hosts["A"]).guests.extend(more);
    let mut stream = UnixStream::connect(w.control()).unwrap();
    let question = encode(1, 1, &ToDaemon::List).unwrap();
    stream.write_all(&question).unwrap();
    // It has begun to answer, and cannot go on: that does not fit into the socket.
    let mut first = [0];
    stream.read_exact(&mut first).unwrap();
    let stopped = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            w.stop();
            stopped.store(true, Ordering::Relaxed);
        });
        let deadline = Instant::now() + Duration::from_millis(300);
        while Instant::now() < deadline {
            assert!(!stopped.load(Ordering::Relaxed), "it has not waited");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut rest = (&first[..]).chain(&stream);
        let mut decoder = Decoder::strict();
        let answer: FromDaemon = loop {
            if let Some(frame) = decoder.next_frame().unwrap() {
                break frame.decode().unwrap();
            }
            assert_ne!(decoder.fill(&mut rest).unwrap(), 0);
        };
        let FromDaemon::List(host_vms) = answer else {
            panic!("{answer:?}")
        };
        assert_eq!(host_vms[0].guests.as_ref().unwrap().len(), 999);
    });
}

/// A client that asks and does not look: the guest does not stand still for it, and the
/// answer is there when it looks again.
#[test]
fn a_client_that_does_not_read_costs_no_downtime() {
    let w = world();
    // So many steps that they do not fit into the socket.
    lock(&w.driver.faults).step = Some(1);
    let mut stuck = UnixStream::connect(w.control()).unwrap();
    let question = encode(1, 1, &request(Mode::Swap, false)).unwrap();
    stuck.write_all(&question).unwrap();
    wait_until("it has moved", || {
        let FromDaemon::Status(jobs) = w.ask(&ToDaemon::Status) else {
            panic!()
        };
        jobs.first().is_some_and(|j| !j.running)
    });
    let mut decoder = Decoder::strict();
    let mut shown = 0;
    let report = loop {
        while let Some(frame) = decoder.next_frame().unwrap() {
            match frame.decode().unwrap() {
                FromDaemon::Migrated(report) => return assert!(shown > 100, "{report:?}"),
                FromDaemon::Progress { .. } => shown += 1,
                FromDaemon::Job { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        if decoder.fill(&mut stuck).unwrap() == 0 {
            break "hung up";
        }
    };
    panic!("{report}");
}
