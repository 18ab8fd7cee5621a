// SPDX-License-Identifier: GPL-2.0-only

//! Host VMs whose domids are in the configuration: no toolstack is asked whether they run, and
//! what is written there may be wrong by now. What the hypervisor knows decides, or nobody.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/moves.rs"]
mod moves;

use common::{lock, World};
use moves::{
    contents, exchange, is_settled, left, left_as, swap_of, wait_until_runs_only_in,
    wait_until_stuck,
};
use std::time::{Duration, Instant};
use vmbeam_uapi::Errno;
use vmbeamd::driver::{Driver, Pinned};
use vmbeamd::journal::{Record, State};

/// The hypervisor's ids were known.
fn ids(record: &mut Record) {
    (record.from.host_id, record.to.host_id) = (Some(101), Some(102));
}

/// A does, with all that is in it.
fn dies(w: &World) {
    std::fs::remove_file(w.socket("A")).unwrap();
    lock(&w.hosts["A"]).guests.clear();
    lock(&w.driver.faults).gone.insert(1);
}

/// Both halves of the guest are as they were, and there is a record.
#[track_caller]
fn assert_untouched(w: &World) {
    for vm in ["A", "B"] {
        assert!(!contents(w, vm).unwrap().0, "it runs in {vm}");
    }
    assert_eq!(w.records(), 1);
}

/// The number of one host VM is corrected, or those of two are exchanged: neither says that the
/// domain of the record is gone.
#[test]
fn another_number_in_the_configuration_does_not_say_that_a_host_vm_is_gone() {
    for (state, vm) in [(State::Stream, "A"), (State::Resume, "B")] {
        for exchanged in [false, true] {
            let (mut w, pages) = left(|w| {
                if state == State::Resume {
                    exchange(w, &swap_of(w));
                }
                state.clone()
            });
            let right = w.domids.clone();
            w.domids.insert(vm.into(), 9);
            if exchanged {
                w.domids.insert("A".into(), 2);
                w.domids.insert("B".into(), 1);
            }
            w.start();
            let words = "still runs: vmbeamd's configuration says that it is domain";
            wait_until_stuck(&w, words);
            assert_untouched(&w);
            w.stop();
            w.domids = right;
            w.start();
            wait_until_runs_only_in(&w, vm, &pages);
        }
    }
}

/// If the hypervisor's id is known, it is known which domain is meant.
#[test]
fn the_domain_of_a_record_is_found_whatever_the_configuration_says() {
    let (mut w, pages) = left_as(|_, _| State::Stream, ids);
    w.domids.insert("A".into(), 9);
    w.start();
    wait_until_runs_only_in(&w, "A", &pages);
}

/// It has died with the guest's husk once all memory had gone over.
#[test]
fn a_host_vm_that_has_died_is_gone() {
    let swapped = |w: &World| {
        let state = swap_of(w);
        exchange(w, &state);
        state
    };
    let (mut w, pages) = left_as(|w, _| swapped(w), ids);
    dies(&w);
    w.start();
    wait_until_runs_only_in(&w, "B", &pages);
}

/// Nor need its id be known: nobody has its number.
#[test]
fn a_source_that_has_died_takes_its_guest_with_it() {
    let (mut w, _) = left(|_| State::Stream);
    dies(&w);
    w.start();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_settled(&w) {
        assert!(Instant::now() < deadline, "it is not settled");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(lock(&w.hosts["B"]).guests.is_empty());
}

#[test]
fn a_driver_that_fails_does_not_say_that_a_host_vm_is_there_or_gone() {
    for errno in [Errno::EOPNOTSUPP, Errno::ENOMEM] {
        let (mut w, pages) = left_as(|_, _| State::Stream, ids);
        lock(&w.driver.faults).open = Some(errno);
        w.start();
        wait_until_stuck(&w, "it is not known whether host VM");
        assert_untouched(&w);
        lock(&w.driver.faults).open = None;
        wait_until_runs_only_in(&w, "A", &pages);
    }
}

#[test]
fn the_driver_is_asked_for_one_domain() {
    let w = World::new();
    let driver = Pinned::new(w.driver.clone());
    assert_eq!(driver.has(1, None), Ok(true));
    assert_eq!(driver.has(1, Some(101)), Ok(true));
    assert_eq!(driver.has(1, Some(7)), Ok(false));
    lock(&w.driver.faults).reused.insert(1);
    assert_eq!(driver.has(1, Some(101)), Ok(false));
    assert_eq!(driver.has(1, None), Ok(true));
    lock(&w.driver.faults).gone.insert(2);
    assert_eq!(driver.has(2, None), Ok(false));
    lock(&w.driver.faults).open = Some(Errno::EIO);
    assert!(driver.has(1, None).is_err());
}
