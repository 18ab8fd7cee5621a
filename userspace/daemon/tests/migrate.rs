// SPDX-License-Identifier: GPL-2.0-only

//! Migrations through a real daemon and real agents, with a toolstack that only
//! plays with memory: at every failure the guest runs in one place, with what it
//! had in its pages.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{lock, Faults, Trouble, World, RESTORED};
use std::collections::HashMap;
use std::time::{Duration, Instant};
use vmbeam_uapi::Errno;
use vmbeam_wire::message::{
    Failure, FromDaemon, GuestRef, MigrateReport, MigrateRequest, Mode, SwapRun, ToDaemon,
};
use vmbeam_xen::PageKind;
use vmbeamd::journal::{Journal, Place, Probe, State};

/// Two host VMs; B has no guest.
fn world() -> World {
    let mut w = World::new();
    lock(&w.hosts["B"]).guests.clear();
    w.agents(&["A", "B"]);
    w.start();
    for name in ["A", "B"] {
        w.wait_agent(name, None);
    }
    w
}

fn request(from: &str, to: &str) -> MigrateRequest {
    MigrateRequest {
        from: GuestRef {
            host_vm: from.into(),
            guest: "guest".into(),
        },
        to: to.into(),
        mode: Mode::Swap,
        dry_run: false,
        verify: true,
        timeout_seconds: None,
        max_downtime_ms: None,
    }
}

fn migrate(w: &World, from: &str, to: &str) -> FromDaemon {
    w.ask(&ToDaemon::Migrate(request(from, to)))
}

#[track_caller]
fn report(answer: FromDaemon) -> MigrateReport {
    match answer {
        FromDaemon::Migrated(report) => *report,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn error(answer: FromDaemon) -> (Failure, String) {
    match answer {
        FromDaemon::Error { failure, message } => (failure, message),
        other => panic!("{other:?}"),
    }
}

/// What the guest has in its ordinary pages, and whether it runs; `None` if the
/// host VM has none.
fn contents(w: &World, name: &str) -> Option<(bool, HashMap<u64, u64>)> {
    let host = lock(&w.hosts[name]);
    assert!(host.guests.len() <= 1, "{:?}", host.guests.keys());
    let guest = host.guests.values().next()?;
    let pages = guest
        .pages
        .iter()
        .filter(|p| p.kind == PageKind::Ordinary)
        .map(|p| (p.pfn, host.memory[&p.gfn]))
        .collect();
    Some((!guest.paused, pages))
}

/// It runs here, nowhere else, and has what it had.
#[track_caller]
fn assert_runs_only_in(w: &World, name: &str, pages: &HashMap<u64, u64>) {
    for vm in ["A", "B"] {
        match contents(w, vm) {
            None => assert_ne!(vm, name, "the guest is gone"),
            Some((running, now)) => {
                assert_eq!(vm, name, "it is (also) in {vm}, running: {running}");
                assert!(running, "it does not run");
                assert!(now == *pages, "its memory has changed");
            }
        }
    }
    let left = std::fs::read_dir(w.journal()).unwrap().count();
    assert_eq!(left, 0, "records in the journal");
}

#[track_caller]
fn wait_until_runs_only_in(w: &World, name: &str, pages: &HashMap<u64, u64>) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let here = contents(w, name).is_some_and(|c| c.0);
        let settled = std::fs::read_dir(w.journal()).unwrap().count() == 0;
        if here && settled || Instant::now() > deadline {
            return assert_runs_only_in(w, name, pages);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn there_and_back() {
    let w = world();
    let (_, pages) = contents(&w, "A").unwrap();
    let r = report(migrate(&w, "A", "B"));
    assert_eq!(r.pages_swapped, 1024 - 64 - 2);
    assert_eq!(r.pages_verified, r.pages_swapped);
    assert_eq!((r.pages_sent, r.pages_copied), (64 + 2, 0));
    assert!(r.stream_bytes > 66 * 4096 && r.traffic.bytes > 0);
    // It went into a port and out of one, but compressed.
    assert!(r.traffic.bytes < r.stream_bytes, "{:?}", r.traffic);
    assert!(r.seconds.downtime > 0.0 && r.seconds.total >= r.seconds.downtime);
    assert_eq!(r.pending, None);
    assert_runs_only_in(&w, "B", &pages);
    report(migrate(&w, "B", "A"));
    assert_runs_only_in(&w, "A", &pages);
}

#[test]
fn an_event_for_a_guest_that_is_suspended_is_no_damage() {
    let w = world();
    lock(&w.hosts["A"]).trouble = Trouble::LateEvent;
    let r = report(migrate(&w, "A", "B"));
    assert_eq!(r.pages_verified, r.pages_swapped);
    assert_eq!(lock(&w.hosts["A"]).trouble, Trouble::None);
    assert!(contents(&w, "B").unwrap().0);
}

#[test]
fn a_dry_run_names_what_is_in_the_way_and_changes_nothing() {
    let w = world();
    let before = w.memory();
    let mut r = request("A", "B");
    r.dry_run = true;
    let r1 = report(w.ask(&ToDaemon::Migrate(r.clone())));
    assert!(r1.blockers.is_empty());
    assert_eq!((r1.pages_swapped, r1.pages_sent), (1024 - 66, 66));
    lock(&w.hosts["B"]).free_mib = 3;
    lock(&w.hosts["B"]).trouble = Trouble::Stock;
    let r2 = report(w.ask(&ToDaemon::Migrate(r)));
    assert_eq!(r2.blockers.len(), 2, "{:?}", r2.blockers);
    let (failure, message) = error(migrate(&w, "A", "B"));
    assert_eq!(failure, Failure::Refused);
    assert!(
        message.contains("Debian's toolstack") && message.contains("3 MiB"),
        "{message}"
    );
    assert_eq!(w.memory(), before);
}

#[test]
fn refusals() {
    let w = world();
    for (from, to, expected) in [
        ("A", "C", "[[pair]]"),
        ("A", "A", "both host VM A"),
        ("B", "A", "no guest named guest"),
    ] {
        let (failure, message) = error(migrate(&w, from, to));
        assert_eq!(failure, Failure::Refused);
        assert!(message.contains(expected), "{message}");
    }
    lock(&w.driver.faults).open = Some(Errno::EOPNOTSUPP);
    let (failure, message) = error(migrate(&w, "A", "B"));
    assert_eq!(failure, Failure::Refused);
    assert!(message.contains("--mode copy"), "{message}");
    assert!(matches!(
        w.ask(&ToDaemon::Abort { job: 9 }),
        FromDaemon::Error { .. }
    ));
}

#[test]
fn refused_pages_are_copied() {
    let w = world();
    let (_, pages) = contents(&w, "A").unwrap();
    let gfns: Vec<u64> = lock(&w.hosts["A"]).guests[&1].pages[200..450]
        .iter()
        .map(|p| p.gfn)
        .collect();
    lock(&w.driver.faults).refuse = gfns.iter().map(|g| (*g, -(Errno::EBUSY as i32))).collect();
    let r = report(migrate(&w, "A", "B"));
    assert!(r.pages_copied > 200, "{r:?}");
    assert_eq!(r.pages_refused["referenced"], r.pages_copied);
    assert_eq!(r.pages_verified, r.pages_swapped + r.pages_copied);
    assert_runs_only_in(&w, "B", &pages);
}

#[test]
fn a_copy_is_only_made_on_request() {
    let w = world();
    let before = w.memory();
    lock(&w.driver.faults).open = Some(Errno::EOPNOTSUPP);
    let mut r = request("A", "B");
    r.mode = Mode::Copy;
    r.verify = false;
    let r = report(w.ask(&ToDaemon::Migrate(r)));
    assert_eq!((r.pages_swapped, r.pages_sent), (0, 1024));
    assert!(contents(&w, "A").is_none());
    assert!(contents(&w, "B").unwrap().0);
    // The fake restore does not look at pages; nothing else did either.
    assert_eq!(before["C"], w.memory()["C"]);
}

#[test]
fn whatever_fails_before_the_point_of_no_return_is_undone() {
    for (vm, trouble) in [
        ("A", Trouble::SaveFails),
        ("A", Trouble::SaveDies),
        ("B", Trouble::RestoreFails),
    ] {
        let w = world();
        let (_, pages) = contents(&w, "A").unwrap();
        lock(&w.hosts[vm]).trouble = trouble;
        let (failure, message) = error(migrate(&w, "A", "B"));
        assert_eq!(failure, Failure::RolledBack, "{message}");
        assert!(message.contains("the guest runs in A"), "{message}");
        assert_runs_only_in(&w, "A", &pages);
        lock(&w.hosts[vm]).trouble = Trouble::None;
        report(migrate(&w, "A", "B"));
        assert_runs_only_in(&w, "B", &pages);
    }
}

#[test]
fn a_swap_that_fails_is_undone() {
    for faults in [
        Faults {
            step: Some(100),
            fail_at: Some(450),
            interrupt: true,
            ..Faults::default()
        },
        Faults {
            fail_at: Some(0),
            ..Faults::default()
        },
    ] {
        let w = world();
        let (_, pages) = contents(&w, "A").unwrap();
        *lock(&w.driver.faults) = faults;
        assert_eq!(error(migrate(&w, "A", "B")).0, Failure::RolledBack);
        assert_runs_only_in(&w, "A", &pages);
    }
}

#[test]
fn a_page_that_arrives_wrong_stops_it() {
    let w = world();
    let (_, pages) = contents(&w, "A").unwrap();
    let page = lock(&w.hosts["A"]).guests[&1].pages[201];
    assert_eq!(page.kind, PageKind::Ordinary);
    lock(&w.driver.faults).spoil = Some(page.gfn);
    let (failure, message) = error(migrate(&w, "A", "B"));
    assert_eq!(failure, Failure::RolledBack);
    assert!(message.contains("0xc9"), "{message}");
    // All but the page that the driver spoiled is as it was.
    let (running, now) = contents(&w, "A").unwrap();
    let wrong: Vec<_> = pages.iter().filter(|(p, v)| now[*p] != **v).collect();
    assert!(running && wrong.len() <= 1, "{wrong:?}");
}

#[test]
fn limits_of_time_and_ctrl_c() {
    let w = world();
    let (_, pages) = contents(&w, "A").unwrap();
    lock(&w.hosts["A"]).trouble = Trouble::SaveHangs;
    let mut r = request("A", "B");
    r.max_downtime_ms = Some(50);
    let (failure, message) = error(w.ask(&ToDaemon::Migrate(r.clone())));
    assert_eq!(failure, Failure::RolledBack);
    assert!(message.contains("--max-downtime"), "{message}");
    assert_runs_only_in(&w, "A", &pages);
    r.max_downtime_ms = None;
    r.timeout_seconds = Some(1);
    let (_, message) = error(w.ask(&ToDaemon::Migrate(r.clone())));
    assert!(message.contains("--timeout"), "{message}");
    assert_runs_only_in(&w, "A", &pages);
    // An agent that is silent for longer than that is not waited for.
    lock(&w.hosts["A"]).trouble = Trouble::None;
    lock(&w.hosts["B"]).trouble = Trouble::RestoreSleeps;
    let (failure, message) = error(w.ask(&ToDaemon::Migrate(r.clone())));
    assert_eq!(failure, Failure::RolledBack);
    let expected = "the --timeout: agent of host VM B: it did not answer within 5 s; ";
    assert!(message.contains(expected), "{message}");
    assert_runs_only_in(&w, "A", &pages);
    // Nor when it is cancelled. The fourth job.
    lock(&w.hosts["B"]).trouble = Trouble::RestoreSleeps;
    r.timeout_seconds = None;
    cancel(
        &w,
        r.clone(),
        4,
        "it was cancelled: agent of host VM B: it did not answer within 5 s; ",
    );
    assert_runs_only_in(&w, "A", &pages);
    lock(&w.hosts["A"]).trouble = Trouble::SaveHangs;
    cancel(&w, r, 5, "it was cancelled; ");
    assert_runs_only_in(&w, "A", &pages);
}

/// Cancel a migration, which has this number, when its guest is suspended and B sleeps if it
/// is to.
#[track_caller]
fn cancel(w: &World, r: MigrateRequest, job: u64, expected: &str) {
    std::thread::scope(|s| {
        let answer = s.spawn(|| w.ask(&ToDaemon::Migrate(r)));
        while !lock(&w.hosts["A"]).guests[&1].paused
            || lock(&w.hosts["B"]).trouble == Trouble::RestoreSleeps
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(w.ask(&ToDaemon::Abort { job }), FromDaemon::Done);
        let (failure, message) = error(answer.join().unwrap());
        assert_eq!(failure, Failure::RolledBack);
        assert!(message.contains(expected), "{message}");
    });
}

#[test]
fn two_migrations_of_one_guest_and_opposite_ones() {
    let w = world();
    let (_, pages) = contents(&w, "A").unwrap();
    let (one, other) = std::thread::scope(|s| {
        let other = s.spawn(|| migrate(&w, "A", "B"));
        (migrate(&w, "A", "B"), other.join().unwrap())
    });
    let ended: Vec<_> = [&one, &other]
        .iter()
        .map(|a| matches!(a, FromDaemon::Migrated(_)))
        .collect();
    assert_eq!(ended.iter().filter(|e| **e).count(), 1, "{one:?} {other:?}");
    assert_runs_only_in(&w, "B", &pages);
    let mut guest = lock(&w.hosts["B"]).guests[&RESTORED].clone();
    guest.name = "other".into();
    guest.paused = false;
    lock(&w.hosts["A"]).guests.insert(5, guest);
    let mut opposite = request("A", "B");
    opposite.from.guest = "other".into();
    let (there, back) = std::thread::scope(|s| {
        let there = s.spawn(|| w.ask(&ToDaemon::Migrate(opposite)));
        let back = migrate(&w, "B", "A");
        (there.join().unwrap(), back)
    });
    // At least one of them gets both host VMs; no other guest is touched.
    assert!(
        matches!(there, FromDaemon::Migrated(_)) || matches!(back, FromDaemon::Migrated(_)),
        "{there:?} {back:?}"
    );
    let names = |vm: &str| lock(&w.hosts[vm]).guests.len();
    assert_eq!(names("A") + names("B"), 2);
}

#[test]
fn behind_the_point_of_no_return_it_is_tried_until_it_works() {
    let w = world();
    let (_, pages) = contents(&w, "A").unwrap();
    lock(&w.hosts["B"]).trouble = Trouble::ResumeFails(1);
    let (failure, message) = error(migrate(&w, "A", "B"));
    assert_eq!(failure, Failure::Failed);
    assert!(message.contains("goes on trying"), "{message}");
    wait_until_runs_only_in(&w, "B", &pages);
    lock(&w.hosts["B"]).trouble = Trouble::DestroyFails(1);
    let r = report(migrate(&w, "B", "A"));
    assert!(r.pending.unwrap().contains("cannot be destroyed"));
    wait_until_runs_only_in(&w, "A", &pages);
}

/// The world as a daemon leaves it that was killed: agents run, a guest exists
/// twice, and there is a record.
fn left_behind(state: impl FnOnce(&World) -> State) -> (World, HashMap<u64, u64>) {
    let mut w = World::new();
    lock(&w.hosts["B"]).guests.clear();
    w.agents(&["A", "B"]);
    let (_, pages) = contents(&w, "A").unwrap();
    let mut copy = lock(&w.hosts["A"]).guests[&1].clone();
    for page in &mut copy.pages {
        page.gfn = 1024 + page.pfn;
        lock(&w.hosts["B"]).memory.insert(page.gfn, 0xdead);
    }
    copy.paused = true;
    lock(&w.hosts["B"]).guests.insert(RESTORED, copy);
    lock(&w.hosts["A"]).guests.get_mut(&1).unwrap().paused = true;
    let (journal, ..) = Journal::open(&w.journal()).unwrap();
    let place = |host_vm: &str, host_domid, guest| Place {
        host_vm: host_vm.into(),
        host_domid,
        guest: Some(guest),
    };
    let mut record = journal.begin("guest", place("A", 1, 1), place("B", 2, RESTORED));
    record.state = state(&w);
    journal.write(&record).unwrap();
    w.start();
    (w, pages)
}

/// The state before a swap, whether it happens or not.
fn swap_of(w: &World) -> State {
    let pages = lock(&w.hosts["A"]).guests[&1].pages.clone();
    let pairs: Vec<SwapRun> = pages
        .iter()
        .filter(|p| p.kind == PageKind::Ordinary)
        .map(|p| SwapRun {
            pfn: p.pfn,
            gfn_a: p.gfn,
            gfn_b: 1024 + p.pfn,
            nr: 1,
        })
        .collect();
    let digest = |vm: &str, gfn: u64| {
        let mut page = [0; 4096];
        page[..8].copy_from_slice(&lock(&w.hosts[vm]).memory[&gfn].to_le_bytes());
        xxhash_rust::xxh3::xxh3_128(&page).to_le_bytes()
    };
    let probes = [pairs[0], pairs[pairs.len() - 1]].map(|p| Probe {
        pfn: p.pfn,
        source: digest("A", p.gfn_a),
        destination: digest("B", p.gfn_b),
    });
    State::Swap {
        pairs,
        probes: probes.into(),
        copies: false,
        torn: false,
    }
}

fn exchange(w: &World, state: &State) {
    let State::Swap { pairs, .. } = state else {
        panic!()
    };
    let (mut a, mut b) = (lock(&w.hosts["A"]), lock(&w.hosts["B"]));
    for p in pairs {
        let (old_a, old_b) = (a.memory[&p.gfn_a], b.memory[&p.gfn_b]);
        a.memory.insert(p.gfn_a, old_b);
        b.memory.insert(p.gfn_b, old_a);
    }
}

#[test]
fn a_daemon_that_was_killed_is_recovered_from() {
    let (w, pages) = left_behind(|_| State::Stream);
    wait_until_runs_only_in(&w, "A", &pages);
    // Killed before the swap, and after it.
    let (w, pages) = left_behind(swap_of);
    wait_until_runs_only_in(&w, "A", &pages);
    let (w, pages) = left_behind(|w| {
        let state = swap_of(w);
        exchange(w, &state);
        state
    });
    wait_until_runs_only_in(&w, "A", &pages);
    let (w, pages) = left_behind(|w| {
        exchange(w, &swap_of(w));
        State::Resume
    });
    wait_until_runs_only_in(&w, "B", &pages);
    let (w, pages) = left_behind(|w| {
        exchange(w, &swap_of(w));
        lock(&w.hosts["B"])
            .guests
            .get_mut(&RESTORED)
            .unwrap()
            .paused = false;
        State::Destroy
    });
    wait_until_runs_only_in(&w, "B", &pages);
}

/// Both halves of the guest are paused, and that is said.
fn wait_until_stuck(w: &World) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let FromDaemon::Status(jobs) = w.ask(&ToDaemon::Status) else {
            panic!()
        };
        if jobs[0].phase.contains("cannot be told") {
            break;
        }
        assert!(Instant::now() < deadline, "{jobs:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(!contents(w, "A").unwrap().0 && !contents(w, "B").unwrap().0);
}

#[test]
fn nothing_is_touched_when_nobody_knows_where_the_memory_is() {
    let (w, _) = left_behind(|w| {
        let mut state = swap_of(w);
        if let State::Swap { probes, .. } = &mut state {
            for p in probes {
                (p.source, p.destination) = ([8; 16], [9; 16]);
            }
        }
        state
    });
    wait_until_stuck(&w);
    // And nobody else may use the two.
    let (failure, message) = error(migrate(&w, "A", "B"));
    assert_eq!(failure, Failure::Refused);
    assert!(message.contains("brought to an end"), "{message}");
}

#[test]
fn a_half_move_that_the_driver_keeps_is_put_back_before_the_guest_goes_on() {
    let mut middle = None;
    let (w, pages) = left_behind(|w| {
        let state = swap_of(w);
        let mut half = state.clone();
        if let State::Swap { pairs, .. } = &mut half {
            // Neither of the two pages that are looked at.
            *pairs = pairs[4..8].into();
        }
        exchange(w, &half);
        middle = Some(half);
        lock(&w.driver.faults).record = true;
        state
    });
    wait_until_stuck(&w);
    // What `vmbeam recover` does.
    exchange(&w, &middle.unwrap());
    lock(&w.driver.faults).record = false;
    wait_until_runs_only_in(&w, "A", &pages);
}

/// What the frames of a guest have.
fn memory_of(w: &World, host_vm: &str, name: &str) -> Vec<u64> {
    let host = lock(&w.hosts[host_vm]);
    let guest = host.guests.values().find(|g| g.name == name).unwrap();
    guest.pages.iter().map(|p| host.memory[&p.gfn]).collect()
}

#[test]
fn a_host_vm_that_lies_about_its_frames_harms_only_itself() {
    for (lie, expected) in [
        ("double use", Some("page")),
        ("a frame that it does not have", Some("not acceptable")),
        ("frames of another guest of its own", None),
    ] {
        let w = world();
        lock(&w.hosts["A"]).add_guest(2, "victim", 8);
        lock(&w.hosts["B"]).add_guest(9, "resident", 64);
        let others = || {
            let all = w.memory();
            (
                memory_of(&w, "B", "resident"),
                all["C"].clone(),
                all["D"].clone(),
            )
        };
        let before = others();
        {
            let mut host = lock(&w.hosts["A"]);
            let victims: Vec<u64> = host.guests[&2].pages.iter().map(|p| p.gfn).collect();
            let pages = &mut host.guests.get_mut(&1).unwrap().pages;
            match lie {
                "double use" => pages[201].gfn = pages[200].gfn,
                "a frame that it does not have" => pages[201].gfn = common::MEMORY_END + 5,
                _ => (200..).zip(victims).for_each(|(i, gfn)| pages[i].gfn = gfn),
            }
        }
        let answer = migrate(&w, "A", "B");
        match expected {
            Some(words) => {
                let (failure, message) = error(answer);
                assert_eq!(failure, Failure::RolledBack, "{lie}: {message}");
                assert!(message.contains(words), "{lie}: {message}");
                assert_eq!(lock(&w.hosts["A"]).running(), ["guest", "victim"], "{lie}");
            }
            // It gave away what its own guest had. Nobody else can know.
            None => {
                report(answer);
                assert_eq!(lock(&w.hosts["B"]).running(), ["guest", "resident"]);
            }
        }
        assert!(others() == before, "{lie}");
        assert_eq!(std::fs::read_dir(w.journal()).unwrap().count(), 0, "{lie}");
    }
}
