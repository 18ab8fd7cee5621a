// SPDX-License-Identifier: GPL-2.0-only

//! What a daemon that was killed left behind: the next one brings it to an end, and the
//! guest runs in one place, with what it had in its pages.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/moves.rs"]
mod moves;

use common::peer::{hello, request_of};
use common::{impostor, lock, read_request, wait_until, World, RESTORED};
use moves::{
    contents, error, exchange, is_settled, left, left_as, left_behind, migrate, swap_of, toolstack,
    wait_until_runs_only_in, wait_until_stuck, BOTH,
};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmbeam_agent_protocol::ToAgent;
use vmbeam_control_protocol::{Failure, FromDaemon, Mode, ToDaemon};
use vmbeam_uapi::Errno;
use vmbeam_wire::encode;
use vmbeamd::journal::{Record, State};

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
    wait_until_stuck(&w, "cannot be told");
    // And nobody else may use the two.
    let (failure, message) = error(migrate(&w, "A", "B"));
    assert_eq!(failure, Failure::Refused);
    assert!(message.contains("brought to an end"), "{message}");
    // But whoever wants to look can.
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let FromDaemon::List(list) = w.ask(&ToDaemon::List) else {
            panic!()
        };
        if list[0].guests.is_ok() && list[1].guests.is_ok() {
            break;
        }
        assert!(Instant::now() < deadline, "{list:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_half_move_that_the_driver_keeps_is_put_back_before_the_guest_goes_on() {
    let mut middle = None;
    let (w, pages) = left_behind(|w| {
        let state = swap_of(w);
        let mut half = state.clone();
        if let State::Swap { pairs, .. } = &mut half {
            // Neither of the two pages that are looked at.
            pairs.pairs = pairs.pairs[4..8].into();
        }
        exchange(w, &half);
        middle = Some(half);
        lock(&w.driver.faults).record = true;
        state
    });
    wait_until_stuck(
        &w,
        "a part of the memory of guest guest is in A and a part in B",
    );
    // What `vmbeam recover` does.
    exchange(&w, &middle.unwrap());
    lock(&w.driver.faults).record = false;
    wait_until_runs_only_in(&w, "A", &pages);
}

#[test]
fn a_toolstack_that_fails_does_not_say_that_a_host_vm_is_gone() {
    for (state, moved, end) in [
        (Some(State::Stream), false, "A"),
        (None, false, "A"),
        (None, true, "A"),
        (Some(State::Resume), true, "B"),
    ] {
        let (mut w, pages) = left(|w| {
            let swap = swap_of(w);
            if moved {
                exchange(w, &swap);
            }
            state.unwrap_or(swap)
        });
        toolstack(&mut w, BOTH);
        let blind = w.dir.path().join("blind");
        std::fs::write(&blind, "").unwrap();
        w.start();
        wait_until_stuck(&w, "not known whether host VM");
        assert!(contents(&w, "A").is_some() && contents(&w, "B").is_some());
        std::fs::remove_file(blind).unwrap();
        wait_until_runs_only_in(&w, end, &pages);
    }
}

/// The guest stands still in A, whose pages tell that its memory is there.
#[test]
fn a_destination_that_does_not_answer_keeps_no_guest_suspended() {
    for silent in [false, true] {
        let (mut w, pages) = left(swap_of);
        w.timeout = 5;
        std::fs::remove_file(w.socket("B")).unwrap();
        let back = Arc::new(AtomicBool::new(false));
        if silent {
            let back = back.clone();
            impostor(&w.socket("B"), move |stream| {
                while let Some((request, session, payload)) = read_request(stream) {
                    if back.load(Ordering::Relaxed) {
                        return;
                    }
                    if let Some(ToAgent::Hello { .. }) = request_of(&payload) {
                        let _ = stream.write_all(&encode(request, session, &hello()).unwrap());
                    }
                }
            });
        }
        w.start();
        let runs = |vm| contents(&w, vm).map(|c| c.0);
        wait_until("it runs in A", || runs("A") == Some(true));
        assert_eq!(runs("B"), Some(false));
        back.store(true, Ordering::Relaxed);
        let _ = std::fs::remove_file(w.socket("B"));
        w.agents(&["B"]);
        wait_until("it is settled", || is_settled(&w));
        wait_until_runs_only_in(&w, "A", &pages);
    }
}

#[test]
fn a_host_vm_is_known_by_its_number_and_not_by_its_name() {
    let (mut w, pages) = left(|w| {
        exchange(w, &swap_of(w));
        State::Resume
    });
    toolstack(&mut w, &BOTH.replace('B', "renamed"));
    w.start();
    wait_until_runs_only_in(&w, "B", &pages);
    // Another domain has the name, and the one that is meant is gone.
    let (mut w, pages) = left(|_| State::Stream);
    lock(&w.hosts["B"]).guests.clear();
    toolstack(&mut w, &BOTH.replace("B 2", "B 7"));
    w.start();
    wait_until_runs_only_in(&w, "A", &pages);
}

/// Wait until nothing is being settled any more, and there is no record.
#[track_caller]
fn wait_until_settled(w: &World) -> String {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let FromDaemon::Status(jobs) = w.ask(&ToDaemon::Status) else {
            panic!()
        };
        if jobs.iter().all(|j| !j.running) {
            assert_eq!(w.records(), 0);
            return jobs[0].phase.clone();
        }
        assert!(Instant::now() < deadline, "{jobs:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Both were made anew, and have the numbers that are meant.
#[test]
fn nothing_is_touched_where_both_host_vms_are_others() {
    for state in [State::Stream, State::Resume] {
        let change = |record: &mut Record| {
            (record.from.host_id, record.to.host_id) = (Some(7), Some(8));
        };
        let (mut w, _) = left_as(|_, _| state, change);
        let before = (contents(&w, "A"), contents(&w, "B"));
        w.start();
        assert!(wait_until_settled(&w).contains("lost"));
        assert!(before == (contents(&w, "A"), contents(&w, "B")));
    }
}

/// Neither an xenstore that cannot be read nor `xl rename` makes another guest of it.
#[test]
fn a_guest_is_known_by_its_number_and_not_by_its_name() {
    for (state, end) in [(State::Stream, "A"), (State::Resume, "B")] {
        let (mut w, pages) = left(|w| {
            if state == State::Resume {
                exchange(w, &swap_of(w));
            }
            state
        });
        lock(&w.hosts["A"]).nameless = true;
        let mut b = lock(&w.hosts["B"]);
        b.guests.get_mut(&RESTORED).unwrap().name = "renamed".into();
        drop(b);
        w.start();
        wait_until_runs_only_in(&w, end, &pages);
    }
}

#[test]
fn a_guest_that_is_gone_is_not_looked_for_for_ever() {
    // Its memory had not moved: it is lost, and its empty copy goes.
    let (mut w, _) = left(swap_of);
    lock(&w.hosts["A"]).guests.clear();
    w.start();
    assert!(wait_until_settled(&w).contains("lost"));
    assert!(lock(&w.hosts["B"]).guests.is_empty());
    // It had: only the husk is gone.
    let (mut w, pages) = left(|w| {
        let state = swap_of(w);
        exchange(w, &state);
        state
    });
    lock(&w.hosts["A"]).guests.clear();
    w.start();
    wait_until_runs_only_in(&w, "B", &pages);
}

/// Of a swap that was torn and is put together, one half may be whole. Nobody knows which when
/// a host VM is gone, so a person has to look.
#[test]
fn what_may_be_whole_is_not_destroyed_and_can_be_dismissed() {
    let (mut w, pages) = left(|w| {
        let mut state = swap_of(w);
        if let State::Swap { torn, .. } = &mut state {
            *torn = true;
        }
        state
    });
    toolstack(&mut w, "A 1 1024 1 -b---- 1.0\n");
    lock(&w.hosts["B"]).guests.clear();
    w.start();
    wait_until_stuck(
        &w,
        "a part of the memory of guest guest is in A and a part in B",
    );
    assert!(contents(&w, "A").unwrap().1 == pages);
    let FromDaemon::Error { message, .. } = w.ask(&ToDaemon::Dismiss { job: 2 }) else {
        panic!()
    };
    assert!(message.contains("there is no job 2"), "{message}");
    assert_eq!(w.ask(&ToDaemon::Dismiss { job: 1 }), FromDaemon::Done);
    assert!(wait_until_settled(&w).contains("dismissed"));
    let (runs, now) = contents(&w, "A").unwrap();
    assert!(!runs && now == pages);
    let FromDaemon::Error { message, .. } = w.ask(&ToDaemon::Dismiss { job: 1 }) else {
        panic!()
    };
    assert!(message.contains("has ended"), "{message}");
}

/// What goes back after a daemon has died is no rollback of the driver's: it can be refused for want
/// of memory of the host, and is done when there is some.
#[test]
fn what_recovery_cannot_put_back_waits_for_memory_of_the_host() {
    let (mut w, pages) = left_as(
        |w, _| {
            let state = swap_of(w);
            exchange(w, &state);
            state
        },
        |record| record.mode = Mode::Relocate,
    );
    let gfn = lock(&w.hosts["A"]).guests[&1].pages[20].gfn;
    let none = -(Errno::ENOMEM as i32);
    lock(&w.driver.faults).refuse.insert(gfn, none);
    let memory = w.memory();
    w.start();
    let said = "1 pages cannot be swapped back now; everything was swapped back";
    wait_until_stuck(&w, said);
    assert!(memory == w.memory());
    lock(&w.driver.faults).refuse.clear();
    wait_until_runs_only_in(&w, "A", &pages);
}
