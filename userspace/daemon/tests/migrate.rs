// SPDX-License-Identifier: GPL-2.0-only

//! Migrations through a real daemon and real agents, with a toolstack that only
//! plays with memory: at every failure the guest runs in one place, with what it
//! had in its pages.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/moves.rs"]
mod moves;

use common::{lock, wait_until, Faults, Trouble, World, RESTORED};
use moves::{
    assert_runs_only_in, contents, error, migrate, report, request, wait_until_runs_only_in, world,
};
use vmbeam_control_protocol::{Failure, FromDaemon, MigrateRequest, Mode, ToDaemon};
use vmbeam_uapi::Errno;
use vmbeam_xen::PageKind;

#[test]
fn there_and_back() {
    let w = world();
    let (_, pages) = contents(&w, "A").unwrap();
    let r = report(migrate(&w, "A", "B"));
    assert_eq!(r.pages_swapped, 1024 - 64 - 2);
    assert_eq!(r.pages_verified, r.pages_swapped);
    assert_eq!((r.pages_sent, r.pages_copied), (64 + 2, 0));
    assert!((1..=r.pages_swapped).contains(&r.runs), "{} runs", r.runs);
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
        ("A", Trouble::DiskBusy),
        ("A", Trouble::SaveDies),
        ("A", Trouble::SaveRuns),
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

/// It could suspend the guest at any time, whoever lets it run.
#[test]
fn nobody_works_on_guests_beside_what_an_earlier_agent_has_begun() {
    let w = world();
    let (_, pages) = contents(&w, "A").unwrap();
    lock(&w.hosts["A"]).trouble = Trouble::Orphan;
    let (_, message) = error(migrate(&w, "A", "B"));
    assert!(
        message.contains("`xl save` of an earlier agent"),
        "{message}"
    );
    // Nor is it believed that the guest runs on, before that has ended.
    assert_eq!(w.records(), 1);
    lock(&w.hosts["A"]).trouble = Trouble::None;
    wait_until_runs_only_in(&w, "A", &pages);
    report(migrate(&w, "A", "B"));
}

#[test]
fn a_guest_that_restarts_or_ends_while_it_is_saved() {
    for (trouble, words, running) in [
        (
            Trouble::SaveReboots,
            "the guest has restarted by itself in A",
            &["guest"][..],
        ),
        (Trouble::SaveEnds, "the guest has ended by itself in A", &[]),
    ] {
        let w = world();
        lock(&w.hosts["A"]).trouble = trouble;
        let (failure, message) = error(migrate(&w, "A", "B"));
        assert_eq!(failure, Failure::Failed);
        assert!(message.ends_with(words), "{message}");
        assert_eq!(lock(&w.hosts["A"]).running(), running);
        assert!(lock(&w.hosts["B"]).guests.is_empty());
        assert_eq!(w.records(), 0);
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

/// What an administrator is told whose guest may wait for an event for ever.
const AWAY: &str = "the guest runs in A; if its network or a disk is silent there, restart it: an event may have been lost while its memory was in B";

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
    assert!(message.contains(AWAY), "{message}");
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
    // Nothing was swapped.
    assert!(message.ends_with("the guest runs in A"), "{message}");
    assert_runs_only_in(&w, "A", &pages);
    r.max_downtime_ms = None;
    r.timeout_seconds = Some(4);
    let (_, message) = error(w.ask(&ToDaemon::Migrate(r.clone())));
    assert!(message.contains("--timeout"), "{message}");
    assert_runs_only_in(&w, "A", &pages);
    // An agent that is silent beyond that is not waited for, but for a few seconds.
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
        w.wait_paused("A");
        wait_until("B sleeps if it is to", || {
            lock(&w.hosts["B"]).trouble != Trouble::RestoreSleeps
        });
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
        assert_eq!(w.records(), 0, "{lie}");
    }
}

/// A panic is a bug, but the guest is not to stay suspended because of one.
#[test]
fn a_panic_leaves_no_guest_behind() {
    let w = world();
    let (_, pages) = contents(&w, "A").unwrap();
    lock(&w.driver.faults).panic = true;
    let (failure, message) = error(migrate(&w, "A", "B"));
    assert_eq!(failure, Failure::Failed);
    assert!(message.contains("internal error"), "{message}");
    lock(&w.driver.faults).panic = false;
    wait_until_runs_only_in(&w, "A", &pages);
}
