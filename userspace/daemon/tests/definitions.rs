// SPDX-License-Identifier: GPL-2.0-only

//! What an administrator has written down of a guest goes with it, whoever dies meanwhile.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/files.rs"]
mod files;
#[path = "common/moves.rs"]
mod moves;

use common::{lock, uuid, Trouble, World};
use files::{dir, gate, held, started_by, wait, with_domids, with_files};
use moves::{
    error, exchange, is_settled, left, migrate, report, request, swap_of, wait_until_runs_only_in,
};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use vmbeam_agent_protocol::GuestState;
use vmbeam_control_protocol::{Failure, FromDaemon, Mode, ToDaemon};
use vmbeamd::journal::State;

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
    w.autostart = true;
    lock(&w.hosts["B"]).guests.clear();
    with_files(&w, &["A"]);
    w.agents(&["A", "B"]);
    w.start();
    for name in ["A", "B"] {
        wait("it is told", || gate(&w, name).as_deref() == Some("yes"));
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
    // Nor does that start a second one meanwhile.
    assert_eq!(gate(&w, "A"), None);
    wait("it is held", || {
        held(&w, "A").contains("is still being brought to an end")
    });
    fs::remove_file(&file).unwrap();
    wait("it follows", || started_by(&w) == ["B"]);
    wait("it is settled", || is_settled(&w));
    wait("A is told", || gate(&w, "A").as_deref() == Some("yes"));
}

/// What is left of the guest is in nobody's way, for as long as its host VM runs.
#[test]
fn what_never_goes_away_is_not_waited_for() {
    let mut w = World::new();
    lock(&w.hosts["B"]).guests.clear();
    lock(&w.hosts["A"]).trouble = Trouble::StaysDying;
    with_files(&w, &["A"]);
    w.agents(&["A", "B"]);
    w.start();
    for name in ["A", "B"] {
        w.wait_agent(name, None);
    }
    let pending = report(migrate(&w, "A", "B")).pending.unwrap();
    assert!(pending.contains("does not go away"), "{pending}");
    wait("it is settled", || is_settled(&w));
    let dying = |w: &World| {
        let host = lock(&w.hosts["A"]);
        host.guests[&1].ended == Some(GuestState::Dying)
    };
    assert!(dying(&w));
    assert_eq!(started_by(&w), ["B"]);
    // It comes back to where that is.
    assert_eq!(report(migrate(&w, "B", "A")).pending, None);
    assert_eq!(lock(&w.hosts["A"]).running(), ["guest"]);
    assert_eq!(started_by(&w), ["A"]);
    assert!(dying(&w));
}

/// What has no name that can travel is found before, and the agent goes on.
#[test]
fn a_file_whose_name_cannot_travel_is_in_the_way() {
    let mut w = World::new();
    lock(&w.hosts["B"]).guests.clear();
    with_files(&w, &["A"]);
    let (dir, entry) = (dir(&w, "A"), dir(&w, "A").join("auto/guest"));
    fs::rename(dir.join("guest.cfg"), dir.join(".guest.cfg")).unwrap();
    fs::remove_file(&entry).unwrap();
    symlink("../.guest.cfg", &entry).unwrap();
    w.agents(&["A", "B"]);
    w.start();
    for name in ["A", "B"] {
        w.wait_agent(name, None);
    }
    for _ in 0..2 {
        let (failure, message) = error(migrate(&w, "A", "B"));
        assert_eq!(failure, Failure::Refused);
        assert!(
            message.contains("/.guest.cfg: a file of such a name cannot move"),
            "{message}"
        );
    }
    assert_eq!(lock(&w.hosts["A"]).suspended, 0);
}

/// It starts no guest while one is on its way, and all that are there once that is back.
#[test]
fn a_move_that_is_undone_leaves_what_starts_guests() {
    let mut w = World::new();
    w.autostart = true;
    lock(&w.hosts["B"]).guests.clear();
    lock(&w.hosts["B"]).trouble = Trouble::RestoreFails;
    with_files(&w, &["A"]);
    w.agents(&["A", "B"]);
    w.start();
    for name in ["A", "B"] {
        wait("it is told", || gate(&w, name).as_deref() == Some("yes"));
    }
    let (failure, _) = error(migrate(&w, "A", "B"));
    assert_eq!(failure, Failure::RolledBack);
    wait("A is told", || gate(&w, "A").as_deref() == Some("yes"));
    assert_eq!(started_by(&w), ["A"]);
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
