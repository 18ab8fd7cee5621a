// SPDX-License-Identifier: GPL-2.0-only

//! A guest that is looked at, and is no guest.

use super::*;
use std::cell::{Cell, RefCell};
use std::sync::mpsc::{channel, Receiver, Sender};
use vmbeam_agent_protocol::AgentErrorCode;

const ID: Id = (7, [1; 16]);

#[derive(Default)]
struct Fake {
    suspended: Cell<Option<bool>>,
    asked: Cell<bool>,
    saving: Cell<bool>,
    woken: RefCell<Vec<u32>>,
    /// Told when a guest is let run, and how long that takes.
    holds: Option<(Sender<()>, Receiver<()>)>,
}

impl Guests for Fake {
    fn look(&self, _: u32) -> Option<([u8; 16], bool)> {
        self.suspended.get().map(|suspended| (ID.1, suspended))
    }

    fn is_asked(&self, _: u32) -> bool {
        self.asked.get()
    }

    fn is_somebody_saving(&self) -> bool {
        self.saving.get()
    }

    fn take_back(&self, _: u32) {
        self.asked.set(false);
    }

    fn wake(&self, guest: u32) -> Result<(), HvError> {
        self.woken.borrow_mut().push(guest);
        self.suspended.set(Some(false));
        if let Some((told, holds)) = &self.holds {
            told.send(()).unwrap();
            holds.recv().unwrap();
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Nothing;

impl Outgoing for Nothing {
    fn go(&mut self) -> Result<(), HvError> {
        Ok(())
    }

    fn pull(&mut self) -> Result<(Vec<u8>, bool), HvError> {
        Ok((Vec::new(), false))
    }

    fn abort(&mut self) -> Result<(), HvError> {
        Ok(())
    }
}

fn later() -> Instant {
    Instant::now() + WATCHED
}

fn is_watched(watch: &Watch) -> bool {
    let entry = lock(&watch.all).get(&ID.0).cloned();
    entry.is_some_and(|e| lock(&e.seen).watched)
}

fn watch() -> (tempfile::TempDir, Watch) {
    let dir = tempfile::tempdir().unwrap();
    let watch = Watch::with(Notes::at(dir.path().join("watched")));
    (dir, watch)
}

fn leaves(watch: &Watch, guest: u32) -> Option<Arc<Entry>> {
    watch.leave(guest).unwrap()
}

#[test]
fn one_that_suspends_itself_too_late_is_let_run() {
    let (guests, (_dir, watch)) = (Fake::default(), watch());
    let entry = watch.enter(ID, later());
    guests.suspended.set(Some(false));
    assert!(entry.look(&guests) && guests.woken.borrow().is_empty());
    // Somebody else may let it run.
    guests.suspended.set(Some(true));
    assert!(entry.look(&guests) && guests.woken.borrow().is_empty());
    guests.suspended.set(Some(false));
    assert!(entry.look(&guests));
    guests.suspended.set(Some(true));
    assert!(entry.look(&guests) && guests.woken.borrow().is_empty());
    assert!(entry.look(&guests));
    assert_eq!(*guests.woken.borrow(), [7]);
    // The next move has it.
    guests.suspended.set(Some(true));
    assert!(leaves(&watch, 7).is_some() && leaves(&watch, 7).is_none());
    assert!(!entry.look(&guests));
    // It is gone.
    let entry = watch.enter(ID, later());
    guests.suspended.set(None);
    assert!(!entry.look(&guests) && leaves(&watch, 7).is_none());
    // It has had its time.
    guests.suspended.set(Some(true));
    assert!(!watch.enter(ID, Instant::now()).look(&guests));
    assert_eq!(*guests.woken.borrow(), [7]);
}

/// Libvirt's helper has ended by the time that the guest is ended.
#[test]
fn what_somebody_has_saved_is_left_time_to_be_ended() {
    let (guests, (_dir, watch)) = (Fake::default(), watch());
    let entry = watch.enter(ID, later());
    guests.suspended.set(Some(true));
    assert!(entry.look(&guests));
    guests.saving.set(true);
    for _ in 0..3 {
        assert!(entry.look(&guests) && guests.woken.borrow().is_empty());
    }
    guests.saving.set(false);
    assert!(entry.look(&guests) && guests.woken.borrow().is_empty());
    guests.suspended.set(None);
    assert!(!entry.look(&guests) && guests.woken.borrow().is_empty());
}

#[test]
fn an_agent_that_is_restarted_goes_on_with_it() {
    let wake: Wake = |_, _| Ok(());
    let (dir, first) = watch();
    let again = || Watch::with(Notes::at(dir.path().join("watched")));
    // Most of its time is over.
    first.enter(ID, Instant::now() + Duration::from_secs(100));
    first.enter((8, [3; 16]), later());
    let second = again();
    second.take_over(wake);
    assert!(is_watched(&second));
    let left = leaves(&second, ID.0).unwrap();
    let left = left.until.saturating_duration_since(Instant::now());
    assert!(left > Duration::from_secs(60) && left <= Duration::from_secs(100));
    // A move has it since, and it may be its half that has left.
    let third = again();
    third.take_over(wake);
    assert!(!is_watched(&third) && leaves(&third, 8).is_some());
    // Nor has a save to know of it that it is watched no more.
    first.enter(ID, later());
    third.save(ID, true, wake, || Ok(Nothing)).unwrap();
    let fourth = again();
    fourth.take_over(wake);
    assert!(lock(&fourth.all).is_empty());
    // It has had its time.
    first.enter(ID, Instant::now());
    fourth.take_over(wake);
    assert!(lock(&fourth.all).is_empty());
}

#[test]
fn nothing_is_saved_that_the_next_agent_would_let_run() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("watched");
    std::fs::write(&file, "").unwrap();
    let watch = Watch::with(Notes::at(file));
    let begun = Cell::new(false);
    let save = watch.save(
        ID,
        true,
        |_, _| Ok(()),
        || {
            begun.set(true);
            Ok(Nothing)
        },
    );
    assert!(save.is_err() && !begun.get());
}

#[test]
fn another_guest_of_the_same_number_is_not_let_run() {
    let (guests, (_dir, watch)) = (Fake::default(), watch());
    guests.suspended.set(Some(true));
    guests.asked.set(true);
    let other = watch.enter((ID.0, [2; 16]), later());
    assert!(!other.look(&guests));
    assert!(guests.woken.borrow().is_empty() && guests.asked.get());
}

/// What it is asked for by the next move is not taken back.
#[test]
fn only_a_request_that_was_left_is_taken_back() {
    let (guests, (_dir, watch)) = (Fake::default(), watch());
    guests.suspended.set(Some(false));
    guests.asked.set(true);
    guests.saving.set(true);
    let entry = watch.enter(ID, later());
    assert!(entry.look(&guests) && guests.asked.get());
    guests.saving.set(false);
    let left = leaves(&watch, ID.0).unwrap();
    assert!(!entry.look(&guests) && guests.asked.get());
    let entry = watch.enter(left.guest, left.until);
    assert!(entry.look(&guests) && !guests.asked.get());
}

#[test]
fn one_that_is_not_asked_again_is_watched_as_before() {
    let wake: Wake = |_, _| Ok(());
    let fails = || -> Result<Nothing, HvError> {
        Err(HvError {
            code: AgentErrorCode::Toolstack,
            message: "no processes".into(),
        })
    };
    for watched in [true, false] {
        let (_dir, watch) = watch();
        if watched {
            watch.enter(ID, later());
        }
        assert!(watch.save(ID, true, wake, fails).is_err());
        assert_eq!(is_watched(&watch), watched);
        // Given up before the gate was opened.
        let mut save = watch.save(ID, true, wake, || Ok(Nothing)).unwrap();
        assert!(!is_watched(&watch));
        save.abort().unwrap();
        assert_eq!(is_watched(&watch), watched);
        // And behind it.
        let mut save = watch.save(ID, true, wake, || Ok(Nothing)).unwrap();
        save.go().unwrap();
        save.abort().unwrap();
        assert!(is_watched(&watch));
    }
}

#[test]
fn who_lets_a_guest_run_holds_up_no_other() {
    let ((told, is_told), (end, ends)) = (channel(), channel());
    let (_dir, watch) = watch();
    let entry = watch.enter(ID, later());
    let wakes = thread::spawn(move || {
        let guests = Fake {
            holds: Some((told, ends)),
            ..Fake::default()
        };
        guests.suspended.set(Some(true));
        entry.look(&guests) && entry.look(&guests)
    });
    is_told.recv().unwrap();
    // This would last for ever.
    watch.enter((8, [3; 16]), later());
    assert!(leaves(&watch, 8).is_some());
    let leaver = watch.clone();
    let leaver = thread::spawn(move || leaves(&leaver, ID.0).is_some());
    thread::sleep(Duration::from_millis(50));
    assert!(!leaver.is_finished());
    // Nor does who waits for it.
    let others = watch.clone();
    let others = thread::spawn(move || drop(others.enter((9, [4; 16]), later())));
    let soon = Instant::now() + Duration::from_secs(30);
    while !others.is_finished() {
        assert!(Instant::now() < soon, "it waits as well");
        thread::sleep(Duration::from_millis(5));
    }
    end.send(()).unwrap();
    assert!(leaver.join().unwrap() && wakes.join().unwrap());
}
