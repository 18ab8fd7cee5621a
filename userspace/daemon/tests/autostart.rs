// SPDX-License-Identifier: GPL-2.0-only

//! A host VM that boots starts no guest that may be anywhere else.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/files.rs"]
mod files;
#[path = "common/moves.rs"]
mod moves;

use common::{agent, guest_uuid, lock, peer, uuid, World};
use files::{dir, gate, held, started_by, wait, with_domids, with_files};
use moves::{contents, migrate, report};
use std::fs;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use vmbeam_agent_protocol::ToAgent;
use vmbeam_control_protocol::{Failure, FromDaemon, Mode, ToDaemon};

#[test]
fn a_host_vm_that_boots_starts_no_guest_that_lives_elsewhere() {
    let mut w = World::new();
    w.autostart = true;
    with_domids(&mut w);
    // As it is when the guest of A has moved, and A begins again as it was before.
    lock(&w.hosts["A"]).guests.clear();
    with_files(&w, &["A"]);
    w.agents(&["A"]);
    w.start();
    w.wait_agent("A", None);
    wait("it is held", || {
        held(&w, "A").contains("guests of host VM B")
    });
    assert_eq!((gate(&w, "A"), started_by(&w)), (None, vec!["A"]));
    agent(&w.socket("B"), w.hosts["B"].clone());
    wait("A is told", || gate(&w, "A").as_deref() == Some("yes"));
    // What starts it is where the guest is, and nothing is lost.
    assert_eq!(started_by(&w), ["B"]);
    assert_eq!(held(&w, "A"), "");
    wait("B is told", || gate(&w, "B").as_deref() == Some("yes"));
}

#[test]
fn a_host_vm_that_boots_restores_no_guest_that_lives_elsewhere() {
    let mut w = World::new();
    w.autostart = true;
    with_domids(&mut w);
    // A saved it when it was shut down, and it was started in B since. Nothing else starts it.
    lock(&w.hosts["A"]).guests.clear();
    with_files(&w, &[]);
    let save = dir(&w, "A").join("save");
    fs::create_dir_all(&save).unwrap();
    fs::write(save.join("guest"), "Xen saved domain").unwrap();
    w.agents(&["A", "B"]);
    w.start();
    wait("A is told", || gate(&w, "A").as_deref() == Some("yes"));
    assert!(!save.join("guest").exists());
    assert!(save.join(".guest.moved").exists());
}

#[test]
fn a_host_vm_that_boots_keeps_what_has_another_definition_there() {
    let mut w = World::new();
    w.autostart = true;
    with_domids(&mut w);
    lock(&w.hosts["A"]).guests.clear();
    with_files(&w, &["A", "B"]);
    w.agents(&["A", "B"]);
    w.start();
    // Whether it is an old file, or one of another guest, only a person knows.
    wait("it is held", || {
        held(&w, "A").contains("is written down otherwise in host VM A")
    });
    assert_eq!((gate(&w, "A"), started_by(&w)), (None, vec!["A", "B"]));
    assert!(!dir(&w, "A").join("guest.cfg.moved").exists());
    // Or the file says it.
    let mine = format!("name=guest\nuuid = '{}' # it\nof A", guest_uuid("guest"));
    fs::write(dir(&w, "A").join("guest.cfg"), &mine).unwrap();
    wait("A is told", || gate(&w, "A").as_deref() == Some("yes"));
    assert_eq!(started_by(&w), ["B"]);
    let text = |vm: &str, file: &str| fs::read_to_string(dir(&w, vm).join(file)).unwrap();
    assert_eq!(text("B", "guest.cfg"), "name=guest\nof B");
    assert_eq!(text("A", "guest.cfg.moved"), mine);
}

#[test]
fn two_guests_of_one_name_are_not_taken_for_one() {
    let mut w = World::new();
    w.autostart = true;
    with_domids(&mut w);
    lock(&w.hosts["A"]).guests.clear();
    with_files(&w, &["A"]);
    let file = dir(&w, "A").join("guest.cfg");
    let text = |name: &str| format!("name={name}\nuuid=\"{}\"", uuid("X"));
    fs::write(&file, text("guest")).unwrap();
    w.agents(&["A", "B"]);
    w.start();
    wait("it is held", || {
        held(&w, "A").contains(&format!("in host VM A it has UUID {}", uuid("X")))
    });
    assert_eq!((gate(&w, "A"), started_by(&w)), (None, vec!["A"]));
    fs::write(&file, text("other")).unwrap();
    wait("A is told", || gate(&w, "A").as_deref() == Some("yes"));
    assert_eq!(started_by(&w), ["A"]);
}

#[test]
fn a_host_vm_with_another_name_is_not_down() {
    let mut w = World::new();
    w.autostart = true;
    with_domids(&mut w);
    lock(&w.hosts["A"]).guests.clear();
    with_files(&w, &["A"]);
    fs::write(w.dir.path().join("renamed-B"), "").unwrap();
    // Somebody listens at its port, and does not answer.
    let silent = UnixListener::bind(w.socket("B")).unwrap();
    w.agents(&["A"]);
    w.start();
    wait("it is held", || {
        held(&w, "A").contains("guests of host VM B are not known")
    });
    assert_eq!((gate(&w, "A"), started_by(&w)), (None, vec!["A"]));
    drop(silent);
    fs::remove_file(w.socket("B")).unwrap();
    w.agents(&["B"]);
    wait("A is told", || gate(&w, "A").as_deref() == Some("yes"));
    assert_eq!(started_by(&w), ["B"]);
}

/// It is in neither of those that are asked, one after the other, if it moves in between.
#[test]
fn a_guest_that_moves_meanwhile_is_not_overlooked() {
    let mut w = World::new();
    w.autostart = true;
    w.more = "[[pair]]\nbetween = [\"B\", \"C\"]\n".into();
    with_domids(&mut w);
    fs::remove_file(w.dir.path().join("down-C")).unwrap();
    for name in ["A", "B"] {
        lock(&w.hosts[name]).guests.clear();
    }
    with_files(&w, &["A"]);
    let (hold, asked) = (w.dir.path().join("hold"), Arc::<AtomicBool>::default());
    let (answers, look) = (hold.clone(), asked.clone());
    peer::proxy(
        &w.socket("B"),
        w.hosts["B"].clone(),
        move |question, _, _| {
            // Of what there is in A. What is asked next is whether C runs.
            if *question == ToAgent::Autostart && look.swap(false, Ordering::SeqCst) {
                fs::write(&answers, "").unwrap();
            }
            false
        },
    );
    w.agents(&["C"]);
    w.start();
    for name in ["B", "C"] {
        wait("it is told", || gate(&w, name).as_deref() == Some("yes"));
    }
    asked.store(true, Ordering::SeqCst);
    w.agents(&["A"]);
    wait("B has answered", || hold.exists());
    report(migrate(&w, "C", "B"));
    fs::remove_file(&hold).unwrap();
    wait("A is told", || gate(&w, "A").as_deref() == Some("yes"));
    assert_eq!(lock(&w.hosts["B"]).running(), ["guest"]);
    assert_eq!(started_by(&w), ["B"]);
}

/// What is odd of a guest that nobody asks for keeps no other one from being started.
#[test]
fn names_that_cannot_be_shown_stop_nobody() {
    let mut w = World::new();
    w.autostart = true;
    with_domids(&mut w);
    lock(&w.hosts["A"]).guests.clear();
    lock(&w.hosts["B"]).guests.clear();
    with_files(&w, &["A"]);
    for name in ["A", "B"] {
        let odd = dir(&w, name).join("auto/odd");
        fs::write(odd, format!("name=odd\u{202e}of\t{name}\n")).unwrap();
        let save = dir(&w, name).join("save");
        fs::create_dir_all(&save).unwrap();
        fs::write(save.join(format!("saved\tin\u{200b}{name}")), "").unwrap();
    }
    w.agents(&["A", "B"]);
    w.start();
    for name in ["A", "B"] {
        wait("it is told", || gate(&w, name).as_deref() == Some("yes"));
    }
    // Nor is it taken for nothing.
    lock(&w.hosts["B"]).add_guest(7, "savedinA", 1);
    w.stop();
    w.start();
    wait("A is told", || {
        dir(&w, "A").join("save/.saved\tin\u{200b}A.moved").exists()
    });
    assert_eq!(started_by(&w), ["A"]);
}

#[test]
fn a_host_vm_alone_starts_its_guests() {
    let mut w = World::new();
    w.autostart = true;
    with_domids(&mut w);
    lock(&w.hosts["A"]).guests.clear();
    with_files(&w, &["A"]);
    fs::write(w.dir.path().join("down-B"), "").unwrap();
    w.agents(&["A"]);
    w.start();
    wait("A is told", || gate(&w, "A").as_deref() == Some("yes"));
    assert_eq!(started_by(&w), ["A"]);
}

#[test]
fn a_host_vm_that_starts_small_starts_no_guests() {
    let mut w = World::new();
    w.autostart = true;
    with_domids(&mut w);
    lock(&w.hosts["A"]).guests.clear();
    with_files(&w, &["A"]);
    fs::write(w.dir.path().join("down-B"), "").unwrap();
    let file = w.dir.path().join("memory-1");
    let memory = |cache| {
        let text = format!("{{\"pages\":9,\"max_pages\":9,\"cache\":{cache},\"entries\":9}}");
        fs::write(&file, text).unwrap();
    };
    memory(8);
    w.agents(&["A"]);
    w.start();
    wait("it is held", || {
        held(&w, "A").contains("has less memory than its guest hypervisor believes")
    });
    assert_eq!(gate(&w, "A"), None);
    memory(9);
    wait("A is told", || gate(&w, "A").as_deref() == Some("yes"));
}

#[test]
fn two_host_vms_that_would_start_one_guest_start_none() {
    let mut w = World::new();
    w.autostart = true;
    with_domids(&mut w);
    for name in ["A", "B"] {
        lock(&w.hosts[name]).guests.clear();
    }
    with_files(&w, &["A", "B"]);
    w.agents(&["A", "B"]);
    w.start();
    for name in ["A", "B"] {
        wait("it is held", || held(&w, name).contains("would both start"));
    }
    assert_eq!((gate(&w, "A"), gate(&w, "B")), (None, None));
    fs::remove_file(dir(&w, "A").join("auto/guest")).unwrap();
    for name in ["A", "B"] {
        wait("it is told", || gate(&w, name).as_deref() == Some("yes"));
    }
}

#[test]
fn a_host_vm_in_maintenance_starts_nothing_and_takes_nothing() {
    let mut w = World::new();
    w.autostart = true;
    with_domids(&mut w);
    lock(&w.hosts["B"]).guests.clear();
    with_files(&w, &[]);
    w.agents(&["A", "B"]);
    w.start();
    for name in ["A", "B"] {
        wait("it is told", || gate(&w, name).as_deref() == Some("yes"));
    }
    let set = |w: &World, host_vm: &str, on| {
        let host_vm = host_vm.into();
        w.ask(&ToDaemon::SetMaintenance { host_vm, on })
    };
    assert_eq!(set(&w, "B", true), FromDaemon::Done);
    wait("B is told", || gate(&w, "B").as_deref() == Some("no"));
    // Nor does it if the daemon is another one.
    w.stop();
    fs::remove_file(dir(&w, "B").join("run/may-start")).unwrap();
    w.start();
    wait("B is told", || gate(&w, "B").as_deref() == Some("no"));
    let maintained = || w.ask(&ToDaemon::Maintenance);
    assert_eq!(maintained(), FromDaemon::Maintenance(vec!["B".into()]));
    let words = "host VM B is in maintenance, and takes no guests";
    let FromDaemon::Error { failure, message } = migrate(&w, "A", "B") else {
        panic!()
    };
    assert_eq!(failure, Failure::Refused);
    assert!(message.contains(words), "{message}");
    let plan = ToDaemon::Plan {
        from: "A".into(),
        to: "B".into(),
        mode: Mode::Swap,
    };
    let FromDaemon::Plan(plan) = w.ask(&plan) else {
        panic!()
    };
    assert!(plan.blockers.len() == 1 && plan.blockers[0].contains(words));
    assert!(contents(&w, "A").unwrap().0);
    // Guests may leave.
    assert_eq!(set(&w, "B", false), FromDaemon::Done);
    wait("B is told", || gate(&w, "B").as_deref() == Some("yes"));
    report(migrate(&w, "A", "B"));
    assert_eq!(set(&w, "B", true), FromDaemon::Done);
    report(migrate(&w, "B", "A"));
    let FromDaemon::Error { message, .. } = set(&w, "X", true) else {
        panic!()
    };
    assert!(message.contains("no host VM named X"), "{message}");
}
