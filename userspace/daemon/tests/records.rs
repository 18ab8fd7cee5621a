// SPDX-License-Identifier: GPL-2.0-only

//! What a record is about: host VMs and a guest that are known by more than numbers and names,
//! which others can have by now. Nothing is done to what has only these.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/moves.rs"]
mod moves;

use common::peer::{assert_says, proxy};
use common::{guest_uuid, lock, uuid, Trouble, World, RESTORED};
use moves::{
    contents, error, exchange, is_settled, left_as, migrate, report, request, swap_of,
    wait_until_runs_only_in, world,
};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vmbeam_agent_protocol::ToAgent;
use vmbeam_control_protocol::{Failure, FromDaemon, JobKind, JobReport, ToDaemon};
use vmbeamd::journal::{Record, State};

fn jobs(w: &World) -> Vec<JobReport> {
    match w.ask(&ToDaemon::Status) {
        FromDaemon::Status(jobs) => jobs,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn wait_until(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Settled at the source, with what there is in B left alone.
#[track_caller]
fn assert_b_is_left_alone(w: &World) {
    wait_until("it is settled", || is_settled(w));
    assert_eq!(lock(&w.hosts["A"]).running(), ["guest"]);
    assert!(lock(&w.hosts["B"]).guests.contains_key(&RESTORED));
}

#[test]
fn a_record_says_what_it_is_about() {
    let w = world();
    lock(&w.hosts["A"]).trouble = Trouble::DestroyFails(1000);
    report(migrate(&w, "A", "B"));
    let file = std::fs::read_dir(w.journal()).unwrap().map(|f| f.unwrap());
    let file = file.map(|f| f.path()).find(|f| {
        let name = f.file_name().unwrap().to_string_lossy();
        name.starts_with("migration-") && name.ends_with(".json")
    });
    let text = std::fs::read_to_string(file.unwrap()).unwrap();
    // Its checksum stands behind it.
    let (last, _) = text.lines().last().unwrap().rsplit_once(' ').unwrap();
    let record: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!(record["boot"], vmbeamd::boot::id());
    assert_eq!(record["guest_uuid"], guest_uuid("guest").to_string());
    for (end, host_vm, id) in [("from", "A", 101), ("to", "B", 102)] {
        assert_eq!(record[end]["host_uuid"], uuid(host_vm).to_string());
        assert_eq!(record[end]["host_id"], id);
    }
    lock(&w.hosts["A"]).trouble = Trouble::None;
    wait_until("it is settled", || is_settled(&w));
}

#[test]
fn one_of_another_boot_is_told_and_touches_nothing() {
    for state in [State::Stream, State::Resume] {
        let change = |r: &mut Record| r.boot = "another".into();
        let (mut w, _) = left_as(|_, _| state, change);
        let before = (contents(&w, "A"), contents(&w, "B"));
        w.start();
        let words = "the host was restarted since";
        wait_until("it is told", || jobs(&w)[0].phase.contains(words));
        assert_eq!(jobs(&w)[0].kind, JobKind::Left);
        assert!(before == (contents(&w, "A"), contents(&w, "B")));
        // Nor is it in anybody's way.
        for name in ["A", "B"] {
            w.wait_agent(name, None);
        }
        let mut dry = request("A", "B");
        dry.dry_run = true;
        let answer = w.ask(&ToDaemon::Migrate(dry));
        assert!(matches!(answer, FromDaemon::Migrated(_)), "{answer:?}");
        assert_eq!(w.records(), 1);
        assert_eq!(w.ask(&ToDaemon::Dismiss { job: 1 }), FromDaemon::Done);
        assert_eq!(w.records(), 0);
        assert!(before == (contents(&w, "A"), contents(&w, "B")));
    }
}

/// It has the domid of the one that was meant, as host VMs with a fixed one have.
#[test]
fn a_host_vm_that_was_made_anew_is_another_one() {
    for by_uuid in [true, false] {
        let change = |r: &mut Record| {
            let (a, b) = (&mut r.from, &mut r.to);
            (a.host_uuid, a.host_id) = (Some(uuid("A")), Some(101));
            (b.host_uuid, b.host_id) = match by_uuid {
                true => (Some(uuid("the old B")), None),
                // Its configuration has the UUID as well.
                false => (Some(uuid("B")), Some(7)),
            };
        };
        let (mut w, _) = left_as(|_, _| State::Stream, change);
        w.start();
        assert_b_is_left_alone(&w);
    }
}

/// What was swapped with it is not there any more: nothing is swapped with another one.
#[test]
fn nothing_is_swapped_back_with_another_host_vm() {
    let state = |w: &World| {
        let state = swap_of(w);
        exchange(w, &state);
        state
    };
    let change = |r: &mut Record| {
        (r.from.host_id, r.to.host_id) = (Some(101), Some(7));
    };
    let (mut w, _) = left_as(|w, _| state(w), change);
    let before = w.memory();
    let guests = lock(&w.hosts["B"]).guests.len();
    w.start();
    wait_until("it is settled", || {
        w.records() == 0 || jobs(&w)[0].phase.contains("cannot be told")
    });
    assert!(before["B"] == w.memory()["B"]);
    assert_eq!(lock(&w.hosts["B"]).guests.len(), guests);
}

#[test]
fn another_guest_with_its_number_is_left_alone() {
    let change = |r: &mut Record| r.guest_uuid = Some(guest_uuid("guest"));
    let (mut w, _) = left_as(|_, _| State::Stream, change);
    lock(&w.hosts["B"]).uuids.insert(RESTORED, uuid("other"));
    w.start();
    assert_b_is_left_alone(&w);
}

/// A daemon that was killed while the guest was restored does not know its number.
#[test]
fn a_guest_without_a_number_is_known_by_its_uuid() {
    let change = |r: &mut Record| {
        r.guest_uuid = Some(guest_uuid("guest"));
        r.to.guest = None;
    };
    let (mut w, pages) = left_as(|_, _| State::Stream, change);
    let mut b = lock(&w.hosts["B"]);
    b.guests.get_mut(&RESTORED).unwrap().name = "renamed".into();
    b.uuids.insert(RESTORED, guest_uuid("guest"));
    drop(b);
    w.start();
    wait_until_runs_only_in(&w, "A", &pages);
    // Another one of its name.
    let (mut w, _) = left_as(|_, _| State::Stream, change);
    lock(&w.hosts["B"]).uuids.insert(RESTORED, uuid("other"));
    w.start();
    assert_b_is_left_alone(&w);
}

#[test]
fn two_guests_of_one_uuid_are_refused() {
    for vm in ["A", "B"] {
        let w = world();
        let mut host = lock(&w.hosts[vm]);
        host.add_guest(9, "twin", 16);
        host.uuids.insert(9, guest_uuid("guest"));
        drop(host);
        let before = w.memory();
        let (failure, message) = error(migrate(&w, "A", "B"));
        assert_eq!(failure, Failure::Refused);
        let words =
            format!("guest guest has the same UUID as guest twin (domain 9) of host VM {vm}");
        assert_says(&message, &words);
        assert!(before == w.memory());
    }
}

/// Somebody makes another guest of its name where it is restored: memory is not swapped with
/// that.
#[test]
fn the_restored_guest_is_known_by_its_uuid() {
    let mut w = World::new();
    lock(&w.hosts["B"]).guests.clear();
    w.agents(&["A"]);
    let b = w.hosts["B"].clone();
    let first = AtomicBool::new(true);
    let host = b.clone();
    proxy(&w.socket("B"), host, move |m, _, _| {
        if matches!(m, ToAgent::Finish) && first.swap(false, Ordering::Relaxed) {
            for domid in 20..30 {
                lock(&b).add_guest(domid, "guest", 2);
                lock(&b).uuids.insert(domid, uuid("other"));
                lock(&b).guests.get_mut(&domid).unwrap().paused = true;
            }
        }
        false
    });
    w.start();
    for name in ["A", "B"] {
        w.wait_agent(name, None);
    }
    let (_, pages) = contents(&w, "A").unwrap();
    report(migrate(&w, "A", "B"));
    lock(&w.hosts["B"])
        .guests
        .retain(|domid, _| *domid >= RESTORED);
    wait_until_runs_only_in(&w, "B", &pages);
}
