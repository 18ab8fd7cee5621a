// SPDX-License-Identifier: GPL-2.0-only

//! What an administrator has written down of a guest goes with it, whoever dies meanwhile;
//! and a host VM that boots starts no guest that may be anywhere else.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/moves.rs"]
mod moves;

use common::{agent, lock, uuid, World};
use moves::{
    contents, error, exchange, is_settled, left, migrate, report, request, swap_of,
    wait_until_runs_only_in,
};
use std::fs;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vmbeam_control_protocol::{Failure, FromDaemon, Mode, ToDaemon};
use vmbeamd::journal::State;

fn dir(w: &World, name: &str) -> PathBuf {
    w.dir.path().join(format!("xen-{name}"))
}

/// Directories for the files of A and B, and what starts the guest in these.
fn with_files(w: &World, defined: &[&str]) {
    for name in ["A", "B"] {
        fs::create_dir_all(dir(w, name).join("auto")).unwrap();
        lock(&w.hosts[name]).dir = Some(dir(w, name));
    }
    for name in defined {
        define(w, name);
    }
}

fn define(w: &World, name: &str) {
    let (dir, text) = (dir(w, name), format!("name=guest\nof {name}"));
    fs::write(dir.join("guest.cfg"), text).unwrap();
    symlink("../guest.cfg", dir.join("auto/guest")).unwrap();
}

/// The host VMs that would start the guest.
fn started_by(w: &World) -> Vec<&'static str> {
    let starts = |name: &&str| dir(w, name).join("auto/guest").exists();
    ["A", "B"].into_iter().filter(starts).collect()
}

/// What it was told.
fn gate(w: &World, name: &str) -> Option<String> {
    let file = dir(w, name).join("run/may-start");
    Some(fs::read_to_string(file).ok()?.trim().into())
}

#[track_caller]
fn wait(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is() {
        assert!(Instant::now() < deadline, "not so after 30 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn held(w: &World, name: &str) -> String {
    let FromDaemon::List(list) = w.ask(&ToDaemon::List) else {
        panic!()
    };
    let vm = list.into_iter().find(|vm| vm.name == name).unwrap();
    vm.held.unwrap_or_default()
}

#[test]
fn what_starts_a_guest_goes_with_it() {
    let mut w = World::new();
    lock(&w.hosts["B"]).guests.clear();
    with_files(&w, &["A"]);
    w.agents(&["A", "B"]);
    w.start();
    for name in ["A", "B"] {
        w.wait_agent(name, None);
    }
    for (from, to) in [("A", "B"), ("B", "A")] {
        assert_eq!(started_by(&w), [from]);
        assert_eq!(report(migrate(&w, from, to)).pending, None);
        assert_eq!(started_by(&w), [to]);
        let text = fs::read_to_string(dir(&w, to).join("guest.cfg")).unwrap();
        assert_eq!(text, "name=guest\nof A");
        assert!(!dir(&w, from).join("guest.cfg").exists());
    }
    // One that comes back to where it was is where it was.
    assert!(!dir(&w, "A").join("guest.cfg.moved").exists());
}

/// Found once the guest has moved, it would be written down where it is not.
#[test]
fn what_has_the_name_of_its_file_there_is_in_the_way() {
    let mut w = World::new();
    lock(&w.hosts["B"]).guests.clear();
    with_files(&w, &["A"]);
    w.agents(&["A", "B"]);
    w.start();
    for name in ["A", "B"] {
        w.wait_agent(name, None);
    }
    let (file, entry) = (
        dir(&w, "B").join("guest.cfg"),
        dir(&w, "B").join("auto/guest"),
    );
    // Another guest's, and nobody's.
    fs::write(&file, "name=other\n").unwrap();
    fs::write(&entry, "# nothing yet\n").unwrap();
    let refused = |path: &Path, what: &str| {
        let path = path.display();
        format!("host VM B cannot keep what is written down of guest guest: {path} is there already, and {what}; rename one of the two")
    };
    let both = [
        refused(&file, "makes guest other"),
        refused(&entry, "makes no guest"),
    ];
    for mode in [Mode::Swap, Mode::Copy] {
        let mut asked = request("A", "B");
        asked.mode = mode;
        let (failure, message) = error(w.ask(&ToDaemon::Migrate(asked.clone())));
        assert_eq!((failure, message), (Failure::Refused, both.join("; ")));
        asked.dry_run = true;
        assert_eq!(report(w.ask(&ToDaemon::Migrate(asked))).blockers, both);
        let plan = ToDaemon::Plan {
            from: "A".into(),
            to: "B".into(),
            mode,
        };
        let FromDaemon::Plan(plan) = w.ask(&plan) else {
            panic!()
        };
        assert_eq!(plan.guests[0].blockers, both);
    }
    assert_eq!(lock(&w.hosts["A"]).running(), ["guest"]);
    assert_eq!(lock(&w.hosts["A"]).suspended, 0);
    let text = fs::read_to_string(dir(&w, "A").join("guest.cfg")).unwrap();
    assert_eq!(text, "name=guest\nof A");
    // What the guest has left there itself is in nobody's way.
    fs::write(&file, "name=guest\nold").unwrap();
    fs::remove_file(&entry).unwrap();
    assert_eq!(report(migrate(&w, "A", "B")).pending, None);
    assert_eq!(started_by(&w), ["B"]);
}

#[test]
fn what_cannot_be_written_down_is_tried_until_it_can() {
    let mut w = World::new();
    lock(&w.hosts["B"]).guests.clear();
    with_files(&w, &["A"]);
    w.agents(&["A", "B"]);
    w.start();
    for name in ["A", "B"] {
        w.wait_agent(name, None);
    }
    // There is no directory where one is to be.
    let file = dir(&w, "B").join("auto");
    fs::remove_dir(&file).unwrap();
    fs::write(&file, "").unwrap();
    let pending = report(migrate(&w, "A", "B")).pending.unwrap();
    assert!(pending.contains("/auto: "), "{pending}");
    assert_eq!(lock(&w.hosts["B"]).running(), ["guest"]);
    assert!(lock(&w.hosts["A"]).guests.is_empty());
    // It is in one of them all the time.
    assert_eq!(started_by(&w), ["A"]);
    fs::remove_file(&file).unwrap();
    wait("it follows", || started_by(&w) == ["B"]);
    wait("it is settled", || is_settled(&w));
}

#[test]
fn a_daemon_that_was_killed_in_between() {
    for defined in [&["A"][..], &["A", "B"], &["B"], &[]] {
        let (mut w, pages) = left(|w| {
            exchange(w, &swap_of(w));
            State::Destroy
        });
        with_files(&w, defined);
        let b = &w.hosts["B"];
        lock(b).guests.values_mut().for_each(|g| g.paused = false);
        w.start();
        wait_until_runs_only_in(&w, "B", &pages);
        let expected: &[&str] = match defined.is_empty() {
            true => &[],
            false => &["B"],
        };
        assert_eq!(started_by(&w), expected, "{defined:?}");
    }
    // One that was killed before is put back, and nothing was done.
    let (mut w, pages) = left(|_| State::Stream);
    with_files(&w, &["A"]);
    w.start();
    wait_until_runs_only_in(&w, "A", &pages);
    assert_eq!(started_by(&w), ["A"]);
}

/// A and B are there if these files are.
fn with_domids(w: &mut World) {
    let command = w.dir.path().join("domids");
    let up = w.dir.path().display();
    let text = format!(
        "#!/bin/sh\nn=0\ncase $1 in list) echo Name ID Mem VCPUs State 'Time(s)'; \
         echo Domain-0 0 1 1 r----- 1;; esac\nfor vm in A B C D; do n=$((n + 1))\n\
         [ -e {up}/down-$vm ] && continue\n\
         case $1 in list) echo $vm $n 1 1 r----- 1;; *) [ $2 = $vm ] && echo $n && exit 0;; \
         esac\ndone\n[ $1 = list ]\n"
    );
    fs::write(&command, text).unwrap();
    fs::set_permissions(&command, fs::Permissions::from_mode(0o755)).unwrap();
    w.domid_command = Some(command);
    w.domid_of_all = true;
    for name in ["C", "D"] {
        fs::write(w.dir.path().join(format!("down-{name}")), "").unwrap();
    }
}

#[test]
fn what_is_written_down_stays_if_the_destination_is_lost() {
    let (mut w, _) = left(|w| {
        exchange(w, &swap_of(w));
        State::Destroy
    });
    with_domids(&mut w);
    with_files(&w, &["A"]);
    // Who answers there is somebody else.
    fs::write(w.dir.path().join("down-B"), "").unwrap();
    lock(&w.hosts["B"]).uuid = uuid("X");
    w.start();
    wait("it is settled", || is_settled(&w));
    assert_eq!(started_by(&w), ["A"]);
    assert!(lock(&w.hosts["A"]).guests.is_empty());
}

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
    wait("A is told", || gate(&w, "A").as_deref() == Some("yes"));
    assert_eq!(started_by(&w), ["B"]);
    let text = |vm: &str, file: &str| fs::read_to_string(dir(&w, vm).join(file)).unwrap();
    assert_eq!(text("B", "guest.cfg"), "name=guest\nof B");
    assert_eq!(text("A", "guest.cfg.moved"), "name=guest\nof A");
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
