// SPDX-License-Identifier: GPL-2.0-only

//! Records of migrations that cannot be read: each has a job that says so, and what it may be
//! about does not move until a person has looked.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/moves.rs"]
mod moves;

use common::peer::assert_says;
use common::World;
use moves::{contents, error, left, left_as, migrate, wait_until_runs_only_in, wait_until_stuck};
use std::path::PathBuf;
use vmbeam_control_protocol::{
    EvacuateRequest, Failure, FromDaemon, GuestRef, JobKind, JobReport, ToDaemon,
};
use vmbeamd::journal::State;

fn record(w: &World) -> PathBuf {
    w.journal().join("migration-1.json")
}

fn job(w: &World) -> JobReport {
    match w.ask(&ToDaemon::Status) {
        FromDaemon::Status(jobs) => jobs[0].clone(),
        other => panic!("{other:?}"),
    }
}

/// A world whose only record is this; what it was before that.
fn damaged(damage: impl FnOnce(String) -> String) -> (World, String) {
    let (w, _) = left(|_| State::Stream);
    let text = std::fs::read_to_string(record(&w)).unwrap();
    std::fs::write(record(&w), damage(text.clone())).unwrap();
    (w, text)
}

#[test]
fn one_that_is_damaged_keeps_all_guests_where_they_are() {
    let (mut w, text) = damaged(|text| text.replacen("guest", "gu3st", 1));
    w.start();
    let words = "migration-1.json: its checksum does not fit; put back what was there";
    wait_until_stuck(&w, words);
    assert_eq!(job(&w).kind, JobKind::Settle);
    assert_eq!(job(&w).from, GuestRef::default());
    assert_eq!(job(&w).from.to_string(), "?");
    // Neither what is in it is known, nor of whom.
    for (from, to) in [("A", "B"), ("B", "A"), ("C", "D")] {
        let (failure, message) = error(migrate(&w, from, to));
        assert_eq!(failure, Failure::Refused);
        assert_says(
            &message,
            "an earlier migration, which may be of any host VM",
        );
        assert_says(&message, words);
    }
    let answer = w.ask(&ToDaemon::Evacuate(EvacuateRequest {
        from: "A".into(),
        to: "B".into(),
        ..EvacuateRequest::default()
    }));
    assert_says(&error(answer).1, words);
    assert!(!contents(&w, "A").unwrap().0 && w.records() == 1);
    // Somebody has a copy.
    let (_, pages) = contents(&w, "A").unwrap();
    std::fs::write(record(&w), text).unwrap();
    wait_until_runs_only_in(&w, "A", &pages);
}

#[test]
fn it_is_in_the_way_until_it_is_forgotten() {
    let (mut w, _) = damaged(|_| "{}".into());
    w.start();
    wait_until_stuck(&w, "it is of another version of the format");
    let job = job(&w).id;
    assert_eq!(w.ask(&ToDaemon::Dismiss { job }), FromDaemon::Done);
    assert_eq!(w.records(), 0);
    let (_, message) = error(migrate(&w, "A", "B"));
    assert!(!message.contains("earlier migration"), "{message}");
}

/// A line that is whole says which host VMs it is about.
#[test]
fn what_can_be_read_of_it_is_in_nobody_elses_way() {
    let (mut w, _) = damaged(|text| text + "and something else\n");
    w.start();
    wait_until_stuck(&w, "its checksum does not fit");
    let job = job(&w);
    assert_eq!(
        (job.from.to_string(), job.to.to_string()),
        ("A/guest".into(), "B/guest".into())
    );
    let (_, message) = error(migrate(&w, "A", "B"));
    assert_says(
        &message,
        "an earlier migration of A/guest to B is still being brought to an end",
    );
    let (_, message) = error(migrate(&w, "C", "D"));
    assert!(!message.contains("earlier migration"), "{message}");
}

/// Nothing is left of what it is about.
#[test]
fn one_of_another_boot_is_in_nobodys_way() {
    let (mut w, _) = left_as(|_, _| State::Stream, |r| r.boot = "another".into());
    let text = std::fs::read_to_string(record(&w)).unwrap();
    std::fs::write(record(&w), text + "and something else\n").unwrap();
    w.start();
    wait_until_stuck(&w, "its checksum does not fit");
    assert_eq!(job(&w).kind, JobKind::Left);
    let (_, message) = error(migrate(&w, "A", "B"));
    assert!(!message.contains("earlier migration"), "{message}");
}

/// What the release after this one writes.
#[test]
fn one_of_a_newer_version_is_left_to_that() {
    let newer = |text: String| {
        let (line, _) = text.trim_end().rsplit_once(' ').unwrap();
        let line = line.replacen("\"version\":2", "\"version\":3,\"more\":[]", 1);
        let sum = xxhash_rust::xxh3::xxh3_64(line.as_bytes());
        format!("{line} {sum:016x}\n")
    };
    let (mut w, _) = damaged(newer);
    let before = std::fs::read(record(&w)).unwrap();
    w.start();
    wait_until_stuck(&w, "migration-1.json: ");
    assert_eq!(job(&w).from.to_string(), "A/guest");
    assert_eq!(std::fs::read(record(&w)).unwrap(), before);
}
