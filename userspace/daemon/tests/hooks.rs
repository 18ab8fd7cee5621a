// SPDX-License-Identifier: GPL-2.0-only

//! Programs that are run before and after a move.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/moves.rs"]
mod moves;

use common::{lock, Trouble, World};
use moves::{contents, error, exchange, migrate, report, swap_of};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};
use vmbeam_control_protocol::{Failure, FromDaemon, JobKind, ToDaemon};
use vmbeamd::journal::State;

/// Says in `hooks` what it was told, and then does what is in the file of its name.
const HOOK: &str = "#!/bin/sh
cd \"${0%/*}\" || exit 1
echo \"$1 $VMBEAM_HOOK $VMBEAM_GUEST $VMBEAM_FROM $VMBEAM_TO $VMBEAM_OUTCOME again=$VMBEAM_AGAIN\" >>hooks
[ ! -e \"$1\" ] || . \"./$1\"
";

const TABLE: &str = "[[hook]]\n\
                     before_move = \"DIR/hook\"\nafter_move = \"DIR/hook\"\ntimeout_seconds = 2\n";

/// Not begun yet: A has a guest, B none.
fn with(mut w: World, table: &str) -> World {
    let path = w.dir.path().join("hook");
    std::fs::write(&path, HOOK).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    w.more = table.replace("DIR", &w.dir.path().display().to_string());
    w
}

fn begun(mut w: World) -> World {
    w.start();
    w.wait_agent("A", None);
    w.wait_agent("B", None);
    w
}

fn world(table: &str) -> World {
    let w = World::new();
    lock(&w.hosts["B"]).guests.clear();
    w.agents(&["A", "B"]);
    with(w, table)
}

fn put(w: &World, name: &str, text: &str) {
    std::fs::write(w.dir.path().join(name), text).unwrap();
}

/// What they were told.
fn told(w: &World) -> Vec<String> {
    let file = w.dir.path().join("hooks");
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    let _ = std::fs::remove_file(file);
    text.lines().map(str::to_owned).collect()
}

fn noted(w: &World) -> String {
    std::fs::read_to_string(w.journal().join("hooks.json")).unwrap_or_default()
}

const BEFORE: &str = "before_move before_move guest A B  again=no";
const MOVED: &str = "after_move after_move guest A B moved again=no";

#[track_caller]
fn wait_for(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_idle(w: &World) -> bool {
    match w.ask(&ToDaemon::Status) {
        FromDaemon::Status(jobs) => jobs.iter().all(|j| !j.running),
        other => panic!("{other:?}"),
    }
}

#[test]
fn hooks_are_run_before_and_after_a_move() {
    let w = begun(world(TABLE));
    let mut dry = moves::request("A", "B");
    dry.dry_run = true;
    w.ask(&ToDaemon::Migrate(dry));
    assert_eq!(told(&w), [""; 0]);
    // One that is not possible anyway is no move.
    let mut nobody = moves::request("A", "B");
    nobody.from.guest = "nobody".into();
    error(w.ask(&ToDaemon::Migrate(nobody)));
    assert_eq!(told(&w), [""; 0]);
    report(migrate(&w, "A", "B"));
    assert_eq!(told(&w), [BEFORE, MOVED]);
    assert_eq!(noted(&w), "[]");
    // A move that fails is told to have failed; one that fails afterwards is only a warning.
    lock(&w.hosts["A"]).trouble = Trouble::RestoreFails;
    put(&w, "after_move", "exit 3");
    error(migrate(&w, "B", "A"));
    assert_eq!(
        told(&w)[1],
        "after_move after_move guest B A stayed again=no"
    );
    lock(&w.hosts["A"]).trouble = Trouble::None;
    report(migrate(&w, "B", "A"));
    assert_eq!(told(&w).len(), 2);
    assert_eq!(noted(&w), "[]");
}

#[test]
fn a_guest_may_have_its_own() {
    let own = "[[hook]]\nguest = \"guest\"\nafter_move = \"DIR/hook\"\n\
               [[hook]]\nbefore_move = \"/nonexistent\"\n";
    let w = begun(world(own));
    report(migrate(&w, "A", "B"));
    assert_eq!(told(&w), [MOVED]);
    lock(&w.hosts["A"]).add_guest(7, "other", 16);
    let mut other = moves::request("A", "B");
    other.from.guest = "other".into();
    let (failure, message) = error(w.ask(&ToDaemon::Migrate(other)));
    assert_eq!(failure, Failure::Refused);
    assert!(
        message.contains("the hook before the move, /nonexistent, failed: No such file"),
        "{message}"
    );
}

#[test]
fn a_move_is_refused_if_the_hook_before_it_fails() {
    let w = begun(world(TABLE));
    let pages = contents(&w, "A").unwrap().1;
    for (text, why) in [
        (
            "echo first >&2; echo 'the backup runs' >&2; exit 3",
            "failed: exit status: 3: the backup runs",
        ),
        (
            "sleep 60 & echo $! >child; wait",
            "failed: it did not end within 2 s",
        ),
    ] {
        put(&w, "before_move", text);
        let (failure, message) = error(migrate(&w, "A", "B"));
        assert_eq!(failure, Failure::Refused);
        assert!(message.ends_with(why), "{message}");
        moves::assert_runs_only_in(&w, "A", &pages);
        assert_eq!(told(&w), [BEFORE]);
        assert_eq!((w.records(), noted(&w).as_str()), (0, "[]"));
    }
    // What it has begun ends with it.
    let child = std::fs::read_to_string(w.dir.path().join("child")).unwrap();
    let child = std::path::Path::new("/proc")
        .join(child.trim())
        .join("stat");
    wait_for("sleep", || match std::fs::read_to_string(&child) {
        Ok(stat) => stat.contains(" Z "),
        Err(_) => true,
    });
}

#[test]
fn a_move_can_be_cancelled_while_its_hook_runs() {
    let w = begun(world(&TABLE.replace("= 2", "= 60")));
    put(&w, "before_move", "exec sleep 60");
    let aborted = std::thread::scope(|s| {
        let moving = s.spawn(|| migrate(&w, "A", "B"));
        wait_for("hook", || w.dir.path().join("hooks").exists());
        assert_eq!(w.ask(&ToDaemon::Abort { job: 1 }), FromDaemon::Done);
        moving.join().unwrap()
    });
    let (failure, message) = error(aborted);
    assert_eq!(failure, Failure::Refused);
    assert!(message.contains("it was cancelled"), "{message}");
    assert_eq!(told(&w), [BEFORE]);
}

#[test]
fn a_hook_that_cannot_be_noted_is_not_run() {
    let w = begun(world(TABLE));
    std::fs::create_dir(w.journal().join("hooks.new")).unwrap();
    let (failure, message) = error(migrate(&w, "A", "B"));
    assert_eq!(failure, Failure::Refused);
    assert!(
        message.contains("cannot note that hooks are run: "),
        "{message}"
    );
    assert_eq!(told(&w), [""; 0]);
}

/// What a daemon has left that ended while it ran a hook.
fn note(w: &World, after: &str) {
    std::fs::create_dir_all(w.journal()).unwrap();
    let text = format!(r#"[{{"guest":"guest","from":"A","to":"B","job":99,"after":{after}}}]"#);
    std::fs::write(w.journal().join("hooks.json"), text).unwrap();
}

#[test]
fn a_daemon_that_died_meanwhile_has_the_hook_after_it_run_by_the_next_one() {
    for (after, expected) in [
        ("null", "unknown again=no"),
        ("\"stayed\"", "stayed again=yes"),
    ] {
        let w = world(TABLE);
        note(&w, after);
        let w = begun(w);
        wait_for("idle", || is_idle(&w));
        let FromDaemon::Status(jobs) = w.ask(&ToDaemon::Status) else {
            panic!()
        };
        assert_eq!(jobs[0].kind, JobKind::Settle);
        assert_eq!(
            told(&w),
            [format!("after_move after_move guest A B {expected}")]
        );
        assert_eq!(noted(&w), "[]");
        report(migrate(&w, "A", "B"));
        assert_eq!(told(&w), [BEFORE, MOVED]);
    }
}

#[test]
fn without_one_after_it_the_hook_before_a_move_is_told_that_it_is_run_again() {
    let w = world("[[hook]]\nbefore_move = \"DIR/hook\"\n");
    note(&w, "null");
    let w = begun(w);
    // What is no move changes nothing about that.
    let mut dry = moves::request("A", "B");
    dry.dry_run = true;
    w.ask(&ToDaemon::Migrate(dry));
    let pause = |paused| lock(&w.hosts["A"]).guests.get_mut(&1).unwrap().paused = paused;
    pause(true);
    error(migrate(&w, "A", "B"));
    pause(false);
    report(migrate(&w, "A", "B"));
    assert_eq!(told(&w), ["before_move before_move guest A B  again=yes"]);
    assert_eq!(noted(&w), "[]");
}

#[test]
fn what_is_settled_by_the_next_daemon_has_its_hook_run_when_it_is_known_where_the_guest_is() {
    for (goes, expected) in [(false, "stayed"), (true, "moved")] {
        let (w, _) = moves::left(|w| match goes {
            false => State::Stream,
            true => {
                exchange(w, &swap_of(w));
                State::Resume
            }
        });
        let w = with(w, TABLE);
        note(&w, "null");
        let w = begun(w);
        wait_for("idle", || is_idle(&w));
        assert_eq!(
            told(&w),
            [format!(
                "after_move after_move guest A B {expected} again=no"
            )]
        );
    }
}

#[test]
fn what_cannot_be_read_is_not_nothing() {
    let w = world(TABLE);
    std::fs::create_dir_all(w.journal()).unwrap();
    std::fs::write(w.journal().join("hooks.json"), "[{").unwrap();
    let e = w.start_on("control.sock").err().unwrap();
    assert!(
        e.contains("hooks.json") && e.contains("mend it, or remove it if no guest was on its way"),
        "{e}"
    );
}
