// SPDX-License-Identifier: GPL-2.0-only

//! What a daemon that was killed left behind: the next one brings it to an end, and the
//! guest runs in one place, with what it had in its pages.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/moves.rs"]
mod moves;

use common::{lock, World, RESTORED};
use moves::{
    contents, error, exchange, left, left_behind, migrate, swap_of, wait_until_runs_only_in,
    wait_until_stuck,
};
use std::os::unix::fs::PermissionsExt;
use vmbeam_wire::message::Failure;
use vmbeamd::journal::State;

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
    wait_until_stuck(&w, "cannot be told");
    // What `vmbeam recover` does.
    exchange(&w, &middle.unwrap());
    lock(&w.driver.faults).record = false;
    wait_until_runs_only_in(&w, "A", &pages);
}

/// The host's toolstack: no name can be looked up, and there is a list unless that fails.
const XL: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
[ "$1" = list ] && [ ! -e blind ] || { echo "no memory" >&2; exit 1; }
echo "Name ID Mem VCPUs State Time(s)"
echo "Domain-0 0 4096 2 r----- 9.0"
cat domains
"#;

/// A host whose `xl list` shows these besides the management VM.
fn toolstack(w: &mut World, domains: &str) {
    let xl = w.dir.path().join("xl");
    std::fs::write(&xl, XL).unwrap();
    std::fs::set_permissions(&xl, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(w.dir.path().join("domains"), domains).unwrap();
    w.domid_command = Some(xl);
    w.domid_of_all = true;
}

const BOTH: &str = "A 1 1024 1 -b---- 1.0\nB 2 1024 1 -b---- 1.0\n";

#[test]
fn a_toolstack_that_fails_does_not_say_that_a_host_vm_is_gone() {
    for state in [State::Stream, State::Resume] {
        let end = if state == State::Stream { "A" } else { "B" };
        let (mut w, pages) = left(|w| {
            if state == State::Resume {
                exchange(w, &swap_of(w));
            }
            state
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
