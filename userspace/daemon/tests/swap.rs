// SPDX-License-Identifier: GPL-2.0-only

//! Swaps through a real daemon and real agents.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{lock, request, Faults, World};
use std::time::Duration;
use vmbeam_control_protocol::{Failure, FromDaemon, SwapReport, ToDaemon};
use vmbeam_uapi::Errno;

fn world(names: &[&str]) -> World {
    let mut w = World::new();
    w.agents(names);
    w.start();
    for name in names {
        w.wait_agent(name, None);
    }
    w
}

fn report(answer: FromDaemon) -> SwapReport {
    match answer {
        FromDaemon::Swapped(report) => *report,
        other => panic!("{other:?}"),
    }
}

fn error(answer: FromDaemon) -> (Failure, String) {
    match answer {
        FromDaemon::Error { failure, message } => (failure, message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn swaps_verifies_and_swaps_back() {
    let w = world(&["A", "B"]);
    let before = w.memory();
    let r = report(w.swap("A", "B"));
    // 64 page tables on each side and two rings stay.
    assert_eq!(r.pages_listed, 1024);
    assert_eq!(r.pages_swapped, 1024 - 64 - 64 - 2);
    assert_eq!(r.pages_refused["page_table_source"], 64);
    assert_eq!(r.pages_refused["page_table_destination"], 64);
    assert_eq!(r.pages_refused["xenstore_ring_source"], 1);
    assert_eq!(
        r.pages_listed,
        r.pages_swapped + r.pages_refused.values().sum::<u64>()
    );
    assert_eq!((r.pages_verified, r.mismatches), (r.pages_swapped, 0));
    assert_eq!(r.unmoved_verified, 2 * 128);
    assert!(r.traffic.bytes > 16 * 2 * 2 * 1000, "{:?}", r.traffic);
    // Both agents, a question and an answer each at least.
    assert!((4..200).contains(&r.traffic.messages), "{:?}", r.traffic);
    assert!(r.counts.hypercalls > 0 && r.seconds.total > 0.0);
    let during = w.memory();
    assert_ne!(before, during);
    let moved = during["A"]
        .iter()
        .filter(|(gfn, v)| before["A"][gfn] != **v)
        .count();
    assert_eq!(moved as u64, r.pages_swapped);
    assert!(w.paused("A") && w.paused("B"));

    let back = report(w.swap("A", "B"));
    assert_eq!((back.pages_swapped, back.mismatches), (r.pages_swapped, 0));
    assert_eq!(w.memory(), before);
}

#[test]
fn a_dry_run_changes_nothing() {
    let w = world(&["A", "B"]);
    let before = w.memory();
    let gfn = lock(&w.hosts["A"]).guests[&1].pages[100].gfn;
    lock(&w.driver.faults)
        .refuse
        .insert(gfn, -(Errno::EBUSY as i32));
    let mut r = request("A", "B");
    r.dry_run = true;
    let r = report(w.ask(&ToDaemon::Swap(r)));
    assert_eq!(r.pages_swapped, 1024 - 64 - 64 - 2 - 1);
    assert_eq!(r.pages_refused["referenced"], 1);
    assert_eq!(w.memory(), before);
    assert!(!w.paused("A") && !w.paused("B"));
}

#[test]
fn refused_pages_are_counted_and_shown() {
    let w = world(&["A", "B"]);
    let gfns: Vec<u64> = lock(&w.hosts["A"]).guests[&1].pages[32..43]
        .iter()
        .map(|p| p.gfn)
        .collect();
    let mut refuse: std::collections::HashMap<_, _> =
        gfns.iter().map(|g| (*g, -(Errno::EBUSY as i32))).collect();
    refuse.insert(gfns[1], -(Errno::EOPNOTSUPP as i32));
    lock(&w.driver.faults).refuse = refuse;
    let r = report(w.swap("A", "B"));
    // 35 and 37 are page tables on one of the sides.
    assert_eq!(r.pages_refused["referenced"], 8);
    assert_eq!(r.pages_refused["not_plain_ram"], 1);
    assert_eq!(
        r.refused_examples
            .iter()
            .filter(|e| e.0 == "referenced")
            .count(),
        4
    );
    assert_eq!(r.mismatches, 0);
    assert_eq!(r.unmoved_verified, 2 * (128 + 9));
}

#[test]
fn interrupted_in_small_steps_it_still_ends() {
    let w = world(&["A", "B"]);
    *lock(&w.driver.faults) = Faults {
        step: Some(7),
        interrupt: true,
        ..Faults::default()
    };
    let r = report(w.swap("A", "B"));
    assert_eq!((r.pages_verified, r.mismatches), (1024 - 130, 0));
}

#[test]
fn a_failure_half_way_is_rolled_back() {
    let w = world(&["A", "B"]);
    let before = w.memory();
    *lock(&w.driver.faults) = Faults {
        step: Some(100),
        fail_at: Some(450),
        interrupt: true,
        ..Faults::default()
    };
    let (failure, message) = error(w.swap("A", "B"));
    assert_eq!(failure, Failure::RolledBack, "{message}");
    assert!(message.contains("swapped back"), "{message}");
    assert_eq!(w.memory(), before);
    assert!(!w.paused("A") && !w.paused("B"));
    // And at the very start there is nothing to roll back.
    lock(&w.driver.faults).fail_at = Some(0);
    assert_eq!(error(w.swap("A", "B")).0, Failure::Refused);
    assert!(!w.paused("A") && !w.paused("B"));
}

#[test]
fn a_wrong_page_is_found() {
    let w = world(&["A", "B"]);
    let page = lock(&w.hosts["A"]).guests[&1].pages[200];
    lock(&w.driver.faults).spoil = Some(page.gfn);
    let r = report(w.swap("A", "B"));
    assert_eq!((r.mismatches, r.mismatch_examples), (1, vec![page.pfn]));
}

#[test]
fn guests_of_unequal_size() {
    let w = world(&["A", "B"]);
    lock(&w.hosts["B"])
        .guests
        .get_mut(&1)
        .unwrap()
        .pages
        .truncate(512);
    let r = report(w.swap("A", "B"));
    assert_eq!(r.pages_refused["only_in_source"], 512 - 32);
    assert_eq!(r.pages_swapped, 512 - 32 - 32 - 2);
    assert_eq!(r.mismatches, 0);
}

#[test]
fn refusals_before_anything_happens() {
    let w = world(&["A", "B", "C"]);
    let before = w.memory();
    for (from, to, expected) in [
        ("A", "C", "[[pair]]"),
        ("A", "A", "both host VM A"),
        ("A", "Z", "no host VM named Z"),
        ("C", "D", "agent of host VM D is not there"),
    ] {
        let (failure, message) = error(w.swap(from, to));
        assert_eq!(failure, Failure::Refused);
        assert!(message.contains(expected), "{message}");
    }
    let mut r = request("A", "B");
    r.to.guest = "other".into();
    let (failure, message) = error(w.ask(&ToDaemon::Swap(r)));
    assert_eq!(failure, Failure::Refused);
    assert!(message.contains("no guest named other"), "{message}");
    lock(&w.driver.faults).open = Some(Errno::EOPNOTSUPP);
    let (failure, message) = error(w.swap("A", "B"));
    assert_eq!(failure, Failure::Refused);
    assert!(message.contains("VMBeam patches"), "{message}");
    assert_eq!(w.memory(), before);
    assert!(!w.paused("A") && !w.paused("B"));
}

#[test]
fn everything_refused_is_a_refusal() {
    let w = world(&["A", "B"]);
    let refuse = (0..common::MEMORY_END)
        .map(|g| (g, -(Errno::EXDEV as i32)))
        .collect();
    lock(&w.driver.faults).refuse = refuse;
    let (failure, message) = error(w.swap("A", "B"));
    assert_eq!(failure, Failure::Refused);
    assert!(message.contains("wrong_owner"), "{message}");
    assert!(!w.paused("A") && !w.paused("B"));
}

#[test]
fn list_and_status() {
    let w = world(&["A", "B"]);
    let FromDaemon::List(vms) = w.ask(&ToDaemon::List) else {
        panic!()
    };
    assert_eq!(vms.len(), 4);
    assert_eq!(vms[0].guests.as_ref().unwrap()[0].name, "guest");
    assert!(vms[2].guests.is_err());
    report(w.swap("A", "B"));
    let FromDaemon::Status(jobs) = w.ask(&ToDaemon::Status) else {
        panic!()
    };
    assert_eq!((jobs.len(), jobs[0].running), (1, false));
    assert!(jobs[0].phase.contains("894"), "{}", jobs[0].phase);
}

#[test]
fn stops_cleanly_and_starts_again() {
    let mut w = world(&["A", "B"]);
    report(w.swap("A", "B"));
    w.stop();
    assert!(!w.control().exists());
    // The agents serve the next daemon; the control socket is free again.
    std::thread::sleep(Duration::from_millis(1500));
    w.start();
    w.wait_agent("A", None);
    w.wait_agent("B", None);
    assert_eq!(report(w.swap("A", "B")).mismatches, 0);
}
