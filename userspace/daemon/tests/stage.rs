// SPDX-License-Identifier: GPL-2.0-only

//! Migrations whose guest runs while its copy is made: what fails then, it never notices; and
//! what is left for the pause.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/moves.rs"]
mod moves;

use common::peer::proxy;
use common::{lock, wait_until, Trouble, World};
use moves::{
    assert_runs_only_in, contents, error, exchange, left_with, migrate, report, request, swap_of,
    wait_until_runs_only_in, world,
};
use std::sync::{Arc, Mutex};
use vmbeam_control_protocol::{Failure, FromDaemon, Phase, ToDaemon};
use vmbeam_uapi::Errno;
use vmbeam_xen::PageKind;
use vmbeamd::join::JoinedRun;
use vmbeamd::journal::{Filed, Pairs, State};

#[test]
fn the_pause_is_the_sum_of_its_parts() {
    let w = world();
    let (_, pages) = contents(&w, "A").unwrap();
    let r = report(migrate(&w, "A", "B"));
    assert_eq!(r.unstaged, None);
    assert_eq!(r.pages_swapped, 1024 - 64 - 2);
    assert_runs_only_in(&w, "B", &pages);
    assert_eq!(lock(&w.hosts["A"]).suspended, 1);
    let names: Vec<&str> = r.pause.iter().map(|p| p.0.as_str()).collect();
    let expected = [
        "suspend", "state", "restore", "confirm", "digests", "journal", "swap", "copy", "resume",
    ];
    assert_eq!(names, expected);
    let sum: u64 = r.pause.iter().map(|p| p.1).sum();
    assert!((sum as f64 / 1e9 - r.seconds.downtime).abs() < 1e-9);
    let (all, still) = (r.traffic, r.traffic_suspended);
    assert!(
        0 < still.bytes && still.bytes < all.bytes,
        "{still:?} of {all:?}"
    );
    assert!(
        0 < still.messages && still.messages < all.messages,
        "{still:?} of {all:?}"
    );
    let all = r.seconds.preflight + r.seconds.stage + r.seconds.downtime;
    assert!(r.seconds.stage > 0.0 && all <= r.seconds.total, "{r:?}");
    // A toolstack that cannot stage is used as it was before.
    lock(&w.hosts["A"]).unstaged = true;
    let r = report(migrate(&w, "B", "A"));
    let why = r.unstaged.unwrap();
    assert!(why.contains("host VM A lacks `xl save --staged`"), "{why}");
    assert_eq!(r.seconds.stage, 0.0);
    assert!(r.pause.iter().any(|p| p.0 == "lists"), "{:?}", r.pause);
    let (all, still) = (r.traffic, r.traffic_suspended);
    assert!(2 * still.bytes > all.bytes, "{still:?} of {all:?}");
    let sum: u64 = r.pause.iter().map(|p| p.1).sum();
    assert!((sum as f64 / 1e9 - r.seconds.downtime).abs() < 1e-9);
    assert_runs_only_in(&w, "A", &pages);
}

/// It runs in A, has never been suspended, and B has nothing of it.
#[track_caller]
fn has_not_noticed(w: &World, pages: &std::collections::HashMap<u64, u64>) {
    assert_runs_only_in(w, "A", pages);
    assert_eq!(lock(&w.hosts["A"]).suspended, 0);
}

#[test]
fn what_fails_while_it_is_staged_the_guest_does_not_notice() {
    let w = world();
    let (_, pages) = contents(&w, "A").unwrap();
    for (vm, trouble, words) in [
        ("A", Trouble::StageFails, "the save has failed"),
        ("B", Trouble::NoBridge, "no such bridge"),
    ] {
        lock(&w.hosts[vm]).trouble = trouble;
        let (failure, message) = error(migrate(&w, "A", "B"));
        assert_eq!(failure, Failure::RolledBack, "{message}");
        assert!(message.contains(words), "{message}");
        lock(&w.hosts[vm]).trouble = Trouble::None;
        has_not_noticed(&w, &pages);
    }
    // What the driver refuses is known before, too.
    let all: Vec<u64> = lock(&w.hosts["A"]).guests[&1]
        .pages
        .iter()
        .map(|p| p.gfn)
        .collect();
    lock(&w.driver.faults).refuse = all.iter().map(|g| (*g, -(Errno::EBUSY as i32))).collect();
    let (_, message) = error(migrate(&w, "A", "B"));
    assert!(message.contains("pages cannot be swapped"), "{message}");
    lock(&w.driver.faults).refuse.clear();
    has_not_noticed(&w, &pages);
    // A save that says nothing ends with the limit of time, or when nobody wants it.
    lock(&w.hosts["A"]).trouble = Trouble::StageHangs;
    let mut r = request("A", "B");
    r.timeout_seconds = Some(3);
    let (_, message) = error(w.ask(&ToDaemon::Migrate(r)));
    assert!(message.contains("--timeout"), "{message}");
    has_not_noticed(&w, &pages);
    std::thread::scope(|s| {
        let answer = s.spawn(|| migrate(&w, "A", "B"));
        wait_until("the fifth job stages", || {
            let FromDaemon::Status(jobs) = w.ask(&ToDaemon::Status) else {
                panic!()
            };
            let mut jobs = jobs.iter();
            jobs.any(|j| j.id == 5 && j.phase == Phase::Stage.text())
        });
        assert_eq!(w.ask(&ToDaemon::Abort { job: 5 }), FromDaemon::Done);
        let (_, message) = error(answer.join().unwrap());
        assert!(message.contains("it was cancelled"), "{message}");
    });
    has_not_noticed(&w, &pages);
    lock(&w.hosts["A"]).trouble = Trouble::None;
    report(migrate(&w, "A", "B"));
    assert_runs_only_in(&w, "B", &pages);
}

/// Either agent goes away once B has the guest, or at the gate.
#[test]
fn agents_that_go_away_at_the_gate() {
    for (vm, at) in [("A", "Kept"), ("B", "Kept"), ("A", "Go"), ("B", "Staged")] {
        let mut w = World::new();
        lock(&w.hosts["B"]).guests.clear();
        let other = if vm == "A" { "B" } else { "A" };
        w.agents(&[other]);
        let once = Mutex::new(true);
        proxy(
            &w.socket(vm),
            w.hosts[vm].clone(),
            move |message, daemon, _| {
                let name = format!("{message:?}");
                let hit = name.starts_with(at) && std::mem::take(&mut *once.lock().unwrap());
                if hit {
                    let _ = daemon.shutdown(std::net::Shutdown::Both);
                }
                hit
            },
        );
        w.start();
        for name in ["A", "B"] {
            w.wait_agent(name, None);
        }
        let (_, pages) = contents(&w, "A").unwrap();
        let (failure, message) = error(migrate(&w, "A", "B"));
        assert_eq!(failure, Failure::RolledBack, "{vm} {at}: {message}");
        has_not_noticed(&w, &pages);
    }
}

#[test]
fn a_daemon_that_dies_while_it_is_staged() {
    let (mut w, pages) = left_with(|w, _| {
        lock(&w.hosts["A"]).guests.get_mut(&1).unwrap().paused = false;
        State::Stage
    });
    w.start();
    wait_until_runs_only_in(&w, "A", &pages);
    assert_eq!(lock(&w.hosts["A"]).suspended, 0);
}

/// What the file says is swapped back, but for what the record says.
#[test]
fn a_daemon_that_dies_behind_the_swap_finds_the_pairs_in_their_file() {
    let (mut w, pages) = left_with(|w, journal| {
        let mut state = swap_of(w);
        exchange(w, &state);
        let State::Swap { pairs, .. } = &mut state else {
            panic!()
        };
        let mut filed: Vec<JoinedRun> = pairs.pairs[10..].iter().map(JoinedRun::from).collect();
        // A pair that was not swapped after all.
        let stays = JoinedRun {
            pfn: filed.last().unwrap().pfn + 1,
            gfn_a: 7,
            gfn_b: 7,
            nr: 3,
        };
        filed.push(stays);
        *pairs = Pairs {
            pairs: pairs.pairs[..10].into(),
            filed: Some(Filed {
                digest: journal.file_pairs(1, &filed).unwrap(),
                without: vec![(&stays).into()],
            }),
        };
        state
    });
    let stays = lock(&w.hosts["A"]).memory[&8];
    w.start();
    wait_until_runs_only_in(&w, "A", &pages);
    assert_eq!(lock(&w.hosts["A"]).memory[&8], stays);
}

/// Pages that are page tables no more, and pages that have become some, since the guest's
/// copy was made.
#[test]
fn what_has_changed_since_is_found() {
    let w = world();
    let word = |pfn: usize| {
        let host = lock(&w.hosts["A"]);
        host.memory[&host.guests[&1].pages[pfn].gfn]
    };
    let (was_table, becomes_table) = (word(3), word(4));
    let here: Vec<u64> = lock(&w.hosts["A"]).guests[&1]
        .pages
        .iter()
        .map(|p| p.gfn)
        .collect();
    lock(&w.hosts["A"]).trouble = Trouble::TablesMove;
    let r = report(migrate(&w, "A", "B"));
    assert_eq!((r.pages_swapped, r.pages_sent), (1024 - 66, 66));
    assert_eq!(r.pages_verified, r.pages_swapped);
    let host = lock(&w.hosts["B"]);
    let guest = host.guests.values().next().unwrap();
    let now = |pfn: usize| host.memory[&guest.pages[pfn].gfn];
    assert_eq!(guest.pages[3].kind, PageKind::Ordinary);
    assert_eq!(now(3), was_table);
    assert_ne!(now(4), becomes_table, "its contents came with the state");
    // The frames of those that were not swapped follow: no superpage stays in two.
    let pairs = here.iter().zip(&guest.pages);
    let mut stayed: Vec<(u64, u64)> = pairs
        .filter(|(_, p)| p.kind != PageKind::Ordinary)
        .map(|(a, p)| (*a, p.gfn))
        .collect();
    assert_eq!(stayed.len(), 66);
    stayed.sort_unstable();
    let mut kept = lock(&w.driver.kept).clone();
    kept.sort_unstable();
    assert_eq!(kept, stayed);
}

/// What holds a frame for a while, or for good, costs a superpage at most.
#[test]
fn a_frame_that_is_held_follows_later_or_is_left() {
    for lets_go in [true, false] {
        let w = world();
        let (_, pages) = contents(&w, "A").unwrap();
        let table = lock(&w.hosts["A"]).guests[&1]
            .pages
            .iter()
            .find(|p| p.kind != PageKind::Ordinary)
            .unwrap()
            .gfn;
        let busy = -(Errno::EBUSY as i32);
        lock(&w.driver.faults).refuse.insert(table, busy);
        let tries = || {
            let kept = lock(&w.driver.kept);
            kept.iter().filter(|(a, _)| *a == table).count()
        };
        let r = std::thread::scope(|scope| {
            scope.spawn(|| {
                if lets_go {
                    wait_until("it is tried again", || tries() >= 2);
                    lock(&w.driver.faults).refuse.clear();
                }
            });
            report(migrate(&w, "A", "B"))
        });
        assert_runs_only_in(&w, "B", &pages);
        assert_eq!(r.frames_left, u64::from(!lets_go));
        let expected = match lets_go {
            true => 3..6,
            false => 6..7,
        };
        assert!(expected.contains(&tries()), "{} tries", tries());
    }
}

#[test]
fn a_guest_that_balloons_at_the_gate_goes_on() {
    let w = world();
    let (_, pages) = contents(&w, "A").unwrap();
    lock(&w.hosts["A"]).trouble = Trouble::Balloons;
    let (failure, message) = error(migrate(&w, "A", "B"));
    assert_eq!(failure, Failure::RolledBack);
    assert!(message.contains("changed while it was staged"), "{message}");
    assert_runs_only_in(&w, "A", &pages);
    // Twice, as it was tried again.
    assert_eq!(lock(&w.hosts["A"]).suspended, 2);
    lock(&w.hosts["A"]).trouble = Trouble::BalloonsOnce;
    report(migrate(&w, "A", "B"));
    assert_runs_only_in(&w, "B", &pages);
}

#[test]
fn a_pause_that_would_be_too_long_is_not_begun() {
    let mut w = world();
    let (_, pages) = contents(&w, "A").unwrap();
    report(migrate(&w, "A", "B"));
    // The next daemon knows it as well.
    w.stop();
    w.start();
    w.wait_agent("A", None);
    w.wait_agent("B", None);
    let mut r = request("B", "A");
    r.max_downtime_ms = Some(0);
    let (failure, message) = error(w.ask(&ToDaemon::Migrate(r)));
    assert_eq!(failure, Failure::RolledBack);
    assert!(
        message.contains("more than the 0 ms of --max-downtime"),
        "{message}"
    );
    assert_runs_only_in(&w, "B", &pages);
    assert_eq!(lock(&w.hosts["B"]).suspended, 0);
}

/// Questions that follow each other while the guest is suspended; parts of its state come
/// as many as there are.
#[test]
fn few_questions_are_asked_in_the_pause() {
    let mut w = World::new();
    lock(&w.hosts["B"]).guests.clear();
    let asked: Arc<Mutex<Vec<(&str, String)>>> = Arc::default();
    for vm in ["A", "B"] {
        let asked = asked.clone();
        proxy(&w.socket(vm), w.hosts[vm].clone(), move |message, _, _| {
            let name = format!("{message:?}");
            let name = name.split([' ', '{']).next().unwrap();
            asked.lock().unwrap().push((vm, name.into()));
            false
        });
    }
    w.start();
    for name in ["A", "B"] {
        w.wait_agent(name, None);
    }
    // Some pages are to be copied.
    let gfn = lock(&w.hosts["A"]).guests[&1].pages[200].gfn;
    lock(&w.driver.faults).refuse = [(gfn, -(Errno::EBUSY as i32))].into();
    let mut r = request("A", "B");
    r.verify = false;
    assert_eq!(report(w.ask(&ToDaemon::Migrate(r))).pages_copied, 1);
    let asked = asked.lock().unwrap();
    let go = asked.iter().position(|q| q.1 == "Go").unwrap();
    let end = asked.iter().position(|q| q.1 == "Resume").unwrap();
    let of = |vm: &str| -> Vec<&str> {
        asked[go..=end]
            .iter()
            .filter(|q| q.0 == vm && !matches!(q.1.as_str(), "Pull" | "Push"))
            .map(|q| q.1.as_str())
            .collect()
    };
    // After Go, which is answered with a part of the state, the four of B follow each other, and
    // those of A are asked meanwhile.
    assert_eq!(of("A"), ["Go", "Digest", "ReadPages"]);
    assert_eq!(of("B"), ["Finish", "Digest", "WritePages", "Resume"]);
    let before: Vec<&str> = asked[..go].iter().map(|q| q.1.as_str()).collect();
    for name in ["Frames", "Kept", "Staged"] {
        assert!(before.contains(&name), "{before:?}");
    }
}
