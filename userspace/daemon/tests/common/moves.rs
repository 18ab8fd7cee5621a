// SPDX-License-Identifier: GPL-2.0-only

//! Migrations between two fake host VMs, and how a daemon leaves them that was killed.

#![allow(dead_code, reason = "every test file uses a part of it")]

use crate::common::{lock, World, RESTORED};
use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};
use vmbeam_control_protocol::{
    Failure, FromDaemon, GuestRef, MigrateReport, MigrateRequest, Mode, SwapRun, ToDaemon,
};
use vmbeam_xen::PageKind;
use vmbeamd::journal::{Journal, Pairs, Place, Probe, Record, State};

/// Two host VMs; B has no guest.
pub fn world() -> World {
    let mut w = World::new();
    lock(&w.hosts["B"]).guests.clear();
    w.agents(&["A", "B"]);
    w.start();
    for name in ["A", "B"] {
        w.wait_agent(name, None);
    }
    w
}

pub fn request(from: &str, to: &str) -> MigrateRequest {
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

pub fn migrate(w: &World, from: &str, to: &str) -> FromDaemon {
    w.ask(&ToDaemon::Migrate(request(from, to)))
}

#[track_caller]
pub fn report(answer: FromDaemon) -> MigrateReport {
    match answer {
        FromDaemon::Migrated(report) => *report,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
pub fn error(answer: FromDaemon) -> (Failure, String) {
    match answer {
        FromDaemon::Error { failure, message } => (failure, message),
        other => panic!("{other:?}"),
    }
}

/// What the guest has in its ordinary pages, and whether it runs; `None` if the
/// host VM has none.
pub fn contents(w: &World, name: &str) -> Option<(bool, HashMap<u64, u64>)> {
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
pub fn assert_runs_only_in(w: &World, name: &str, pages: &HashMap<u64, u64>) {
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
    let left = w.records();
    assert_eq!(left, 0, "records in the journal");
}

/// The host's toolstack: a list unless that fails or hangs, and the numbers in it.
const XL: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
while [ -e hangs ]; do sleep 0.1; done
[ ! -e blind ] || { echo "no memory" >&2; exit 1; }
if [ "$1" = list ]; then
    echo "Name ID Mem VCPUs State Time(s)"
    echo "Domain-0 0 4096 2 r----- 9.0"
    cat domains
else
    while read -r name id rest; do [ "$name" != "$2" ] || echo "$id"; done <domains
fi
"#;

/// A host whose `xl list` shows these besides the management VM.
pub fn toolstack(w: &mut World, domains: &str) {
    let xl = w.dir.path().join("xl");
    std::fs::write(&xl, XL).unwrap();
    std::fs::set_permissions(&xl, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(w.dir.path().join("domains"), domains).unwrap();
    w.domid_command = Some(xl);
    w.domid_of_all = true;
}

pub const BOTH: &str = "A 1 1024 1 -b---- 1.0\nB 2 1024 1 -b---- 1.0\n";

/// No migration is noted, and nobody works on one: its record is gone before its job has ended,
/// and until then its guest cannot move.
pub fn is_settled(w: &World) -> bool {
    let FromDaemon::Status(jobs) = w.ask(&ToDaemon::Status) else {
        panic!("no status");
    };
    w.records() == 0 && jobs.iter().all(|j| !j.running)
}

#[track_caller]
pub fn wait_until_runs_only_in(w: &World, name: &str, pages: &HashMap<u64, u64>) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let here = contents(w, name).is_some_and(|c| c.0);
        if here && is_settled(w) || Instant::now() > deadline {
            return assert_runs_only_in(w, name, pages);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The world as a daemon leaves it that was killed, and the next daemon.
pub fn left_behind(state: impl FnOnce(&World) -> State) -> (World, HashMap<u64, u64>) {
    let (mut w, pages) = left(state);
    w.start();
    (w, pages)
}

/// The world as a daemon leaves it that was killed: agents run, a guest exists
/// twice, and there is a record.
pub fn left(state: impl FnOnce(&World) -> State) -> (World, HashMap<u64, u64>) {
    left_with(|w, _| state(w))
}

/// The same with what else is in the journal. The record's number is 1.
pub fn left_with(state: impl FnOnce(&World, &Journal) -> State) -> (World, HashMap<u64, u64>) {
    left_as(state, |_| {})
}

/// The same with something else in the record.
pub fn left_as(
    state: impl FnOnce(&World, &Journal) -> State,
    change: impl FnOnce(&mut Record),
) -> (World, HashMap<u64, u64>) {
    let w = World::new();
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
        ..Place::default()
    };
    let mut record = journal.begin("guest", place("A", 1, 1), place("B", 2, RESTORED));
    record.state = state(&w, &journal);
    change(&mut record);
    journal.write(&record).unwrap();
    (w, pages)
}

/// The state before a swap, whether it happens or not.
pub fn swap_of(w: &World) -> State {
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
        pairs: Pairs { pairs, filed: None },
        probes: probes.into(),
        copies: false,
        torn: false,
    }
}

pub fn exchange(w: &World, state: &State) {
    let State::Swap { pairs, .. } = state else {
        panic!()
    };
    let (mut a, mut b) = (lock(&w.hosts["A"]), lock(&w.hosts["B"]));
    for p in &pairs.pairs {
        let (old_a, old_b) = (a.memory[&p.gfn_a], b.memory[&p.gfn_b]);
        a.memory.insert(p.gfn_a, old_b);
        b.memory.insert(p.gfn_b, old_a);
    }
}

/// Wait until the first job says this; neither half of the guest runs.
#[track_caller]
pub fn wait_until_stuck(w: &World, words: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let FromDaemon::Status(jobs) = w.ask(&ToDaemon::Status) else {
            panic!()
        };
        if jobs
            .first()
            .is_some_and(|j| j.running && j.phase.contains(words))
        {
            break;
        }
        assert!(Instant::now() < deadline, "{jobs:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    for vm in ["A", "B"] {
        assert!(!contents(w, vm).is_some_and(|c| c.0), "it runs in {vm}");
    }
}
