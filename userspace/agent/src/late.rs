// SPDX-License-Identifier: GPL-2.0-only

//! A guest that suspends itself when nobody waits for that any more: the toolstack has given up
//! (after 60 seconds), or its program was killed, and the guest only then is as far. Nobody would
//! ever look at it again. So for a while after a save that came to nothing this does, and after a
//! guest was to go on that may have been asked by an agent before this one.

use crate::error::HvError;
use crate::orphan;
use crate::toolstack::Outgoing;
use std::collections::HashMap;
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tracing::{info, warn};
use vmbeam_xen::command::run;
use vmbeam_xen::sys::SHUTDOWN_SUSPEND;
use vmbeam_xen::Xen;

/// How long a guest may take to suspend itself after it was asked to.
const WATCHED: Duration = Duration::from_secs(300);
/// How often to look. The first time is behind whatever else lets the guest run again.
const LOOK: Duration = Duration::from_secs(5);
/// How long the program may take that takes a request back.
const WRITE: Duration = Duration::from_secs(10);

/// A guest: its number, which is another guest's once it is gone, and its UUID.
pub(crate) type Id = (u32, [u8; 16]);

/// Lets a guest run, in whatever state a save has left it.
pub(crate) type Wake = fn(&Xen, u32) -> Result<(), HvError>;

/// What has to be known and done about guests.
trait Guests {
    /// The UUID of what has this number now, and whether it has suspended itself, and nothing else.
    fn look(&self, guest: u32) -> Option<([u8; 16], bool)>;
    /// Whether it has not taken yet that it is to suspend itself.
    fn is_asked(&self, guest: u32) -> bool;
    /// Somebody else has a guest saved now.
    fn is_somebody_saving(&self) -> bool;
    /// Nobody asks it to suspend itself any more. If it takes the request just now, it writes the
    /// same.
    fn take_back(&self, guest: u32);
    /// Let it run.
    fn wake(&self, guest: u32) -> Result<(), HvError>;
}

/// The guests of this system.
struct System {
    xen: Xen,
    wake: Wake,
}

fn request_of(guest: u32) -> String {
    format!("/local/domain/{guest}/control/shutdown")
}

/// Whether a guest has not taken yet that it is to suspend itself.
pub(crate) fn is_asked(xen: &Xen, guest: u32) -> bool {
    xen.store_read(&request_of(guest)).as_deref() == Some("suspend")
}

impl Guests for System {
    fn look(&self, guest: u32) -> Option<([u8; 16], bool)> {
        let info = self.xen.domain(guest).ok()?;
        let suspended = !info.dying && info.shutdown == Some(SHUTDOWN_SUSPEND);
        Some((info.uuid, suspended))
    }

    fn is_asked(&self, guest: u32) -> bool {
        is_asked(&self.xen, guest)
    }

    fn is_somebody_saving(&self) -> bool {
        orphan::is_somebody_saving()
    }

    fn take_back(&self, guest: u32) {
        let path = request_of(guest);
        match run(Command::new("xenstore-write").args([&path, ""]), WRITE) {
            Ok(out) if out.status.success() => info!(guest, "it is not to suspend itself any more"),
            Ok(out) => warn!(guest, "cannot write {path}: {}", out.err.trim()),
            Err(e) => warn!(guest, "cannot write {path}: {e}"),
        }
    }

    fn wake(&self, guest: u32) -> Result<(), HvError> {
        (self.wake)(&self.xen, guest)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A guest that is watched.
#[derive(Debug)]
pub(crate) struct Entry {
    guest: Id,
    until: Instant,
    /// It still is. Held while something is done for it, which may take a minute: who is to have
    /// this guest waits for that, and nobody waits for that of another one.
    watched: Mutex<bool>,
}

impl Entry {
    /// Not any more; whether it was until now.
    fn end(&self) -> bool {
        std::mem::replace(&mut *lock(&self.watched), false)
    }

    /// Look once, and let it run if it `wakes`; whether to look again.
    fn look(&self, guests: &impl Guests, wakes: bool) -> bool {
        let mut watched = lock(&self.watched);
        *watched &= Instant::now() < self.until;
        if !*watched {
            return false;
        }
        let (guest, uuid) = self.guest;
        let Some((_, suspended)) = guests.look(guest).filter(|(now, _)| *now == uuid) else {
            *watched = false;
            return false;
        };
        let asked = guests.is_asked(guest);
        // Looked for behind that: what is asked for by nobody is a request that was left.
        if !(asked || suspended && wakes) || guests.is_somebody_saving() {
            return true;
        }
        if asked {
            guests.take_back(guest);
        }
        if suspended && wakes {
            warn!(
                guest,
                "it has suspended itself after its save was given up, and is let run"
            );
            if let Err(e) = guests.wake(guest) {
                warn!(guest, "{e}");
            }
        }
        true
    }
}

/// Guests that are watched, by their numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch(Arc<Mutex<HashMap<u32, Arc<Entry>>>>);

/// Those of this system.
pub(crate) static WATCH: LazyLock<Watch> = LazyLock::new(Watch::default);

impl Watch {
    /// Watch a guest for a while.
    pub(crate) fn begin(&self, guest: Id, wake: Wake) {
        self.follow(guest, Instant::now() + WATCHED, wake);
    }

    /// The same again of one that was left.
    pub(crate) fn resume(&self, left: &Entry, wake: Wake) {
        self.follow(left.guest, left.until, wake);
    }

    /// A move has this guest. Whoever lets it run just now is waited for. Gives what was watched.
    pub(crate) fn leave(&self, guest: u32) -> Option<Arc<Entry>> {
        let left = lock(&self.0).remove(&guest)?;
        left.end().then_some(left)
    }

    /// Have a guest saved by what `begin` starts; whoever watches the guest leaves it alone before.
    /// One that is `staged` is not asked to suspend itself until the gate is opened.
    pub(crate) fn save<S>(
        &self,
        guest: Id,
        staged: bool,
        wake: Wake,
        begin: impl FnOnce() -> Result<S, HvError>,
    ) -> Result<Watched<S>, HvError> {
        let left = self.leave(guest.0);
        let (watch, asked) = (self.clone(), !staged);
        match begin() {
            Ok(save) => Ok(Watched {
                watch,
                guest,
                wake,
                save,
                asked,
                left,
            }),
            Err(e) => {
                // It is no other's than before.
                if let Some(left) = left {
                    self.resume(&left, wake);
                }
                Err(e)
            }
        }
    }

    fn enter(&self, guest: Id, until: Instant) -> Arc<Entry> {
        let entry = Arc::new(Entry {
            guest,
            until,
            watched: Mutex::new(true),
        });
        let before = lock(&self.0).insert(guest.0, entry.clone());
        if let Some(before) = before {
            before.end();
        }
        entry
    }

    fn follow(&self, guest: Id, until: Instant, wake: Wake) {
        let (watch, entry) = (self.clone(), self.enter(guest, until));
        let watches = move || match Xen::open() {
            Ok(xen) => {
                let guests = System { xen, wake };
                let mut again = entry.look(&guests, false);
                while again {
                    thread::sleep(LOOK);
                    again = entry.look(&guests, true);
                }
                let mut all = lock(&watch.0);
                if all.get(&guest.0).is_some_and(|e| Arc::ptr_eq(e, &entry)) {
                    all.remove(&guest.0);
                }
            }
            Err(e) => warn!(
                guest = guest.0,
                "nobody looks whether it suspends itself: {e}"
            ),
        };
        let named = thread::Builder::new().name(format!("watch-{}", guest.0));
        if let Err(e) = named.spawn(watches) {
            warn!(
                guest = guest.0,
                "nobody looks whether it suspends itself: {e}"
            );
        }
    }
}

/// A guest that is being saved, and is watched if nothing comes of that.
#[derive(Debug)]
pub(crate) struct Watched<S> {
    watch: Watch,
    guest: Id,
    wake: Wake,
    save: S,
    /// The guest was, or may have been, asked to suspend itself.
    asked: bool,
    /// It was watched because of the save before.
    left: Option<Arc<Entry>>,
}

impl<S: Outgoing> Outgoing for Watched<S> {
    fn go(&mut self) -> Result<(), HvError> {
        self.asked = true;
        self.save.go()
    }

    fn pull(&mut self) -> Result<(Vec<u8>, bool), HvError> {
        self.save.pull()
    }

    fn abort(&mut self) -> Result<(), HvError> {
        let result = self.save.abort();
        match (self.asked, &self.left) {
            (true, _) => self.watch.begin(self.guest, self.wake),
            (false, Some(left)) => self.watch.resume(left, self.wake),
            (false, None) => {}
        }
        result
    }
}

#[cfg(test)]
mod tests {
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
        let entry = lock(&watch.0).get(&ID.0).cloned();
        entry.is_some_and(|e| *lock(&e.watched))
    }

    #[test]
    fn one_that_suspends_itself_too_late_is_let_run() {
        let (guests, watch) = (Fake::default(), Watch::default());
        let entry = watch.enter(ID, later());
        guests.suspended.set(Some(false));
        assert!(entry.look(&guests, true) && guests.woken.borrow().is_empty());
        // A person has it saved.
        guests.suspended.set(Some(true));
        guests.saving.set(true);
        assert!(entry.look(&guests, true) && guests.woken.borrow().is_empty());
        guests.saving.set(false);
        // Somebody else may let it run in the beginning.
        assert!(entry.look(&guests, false) && guests.woken.borrow().is_empty());
        assert!(entry.look(&guests, true));
        assert_eq!(*guests.woken.borrow(), [7]);
        // The next move has it.
        guests.suspended.set(Some(true));
        assert!(watch.leave(7).is_some() && watch.leave(7).is_none());
        assert!(!entry.look(&guests, true));
        // It is gone.
        let entry = watch.enter(ID, later());
        guests.suspended.set(None);
        assert!(!entry.look(&guests, true) && watch.leave(7).is_none());
        // It has had its time.
        guests.suspended.set(Some(true));
        assert!(!watch.enter(ID, Instant::now()).look(&guests, true));
        assert_eq!(*guests.woken.borrow(), [7]);
    }

    #[test]
    fn another_guest_of_the_same_number_is_not_let_run() {
        let (guests, watch) = (Fake::default(), Watch::default());
        guests.suspended.set(Some(true));
        guests.asked.set(true);
        let other = watch.enter((ID.0, [2; 16]), later());
        assert!(!other.look(&guests, true));
        assert!(guests.woken.borrow().is_empty() && guests.asked.get());
    }

    /// What it is asked for by the next move is not taken back.
    #[test]
    fn only_a_request_that_was_left_is_taken_back() {
        let (guests, watch) = (Fake::default(), Watch::default());
        guests.suspended.set(Some(false));
        guests.asked.set(true);
        guests.saving.set(true);
        let entry = watch.enter(ID, later());
        assert!(entry.look(&guests, false) && guests.asked.get());
        guests.saving.set(false);
        let left = watch.leave(ID.0).unwrap();
        assert!(!entry.look(&guests, false) && guests.asked.get());
        let entry = watch.enter(left.guest, left.until);
        assert!(entry.look(&guests, false) && !guests.asked.get());
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
            let watch = Watch::default();
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
        let watch = Watch::default();
        let entry = watch.enter(ID, later());
        let wakes = thread::spawn(move || {
            let guests = Fake {
                holds: Some((told, ends)),
                ..Fake::default()
            };
            guests.suspended.set(Some(true));
            entry.look(&guests, true)
        });
        is_told.recv().unwrap();
        // This would last for ever.
        watch.enter((8, [3; 16]), later());
        assert!(watch.leave(8).is_some());
        let leaves = watch.clone();
        let leaves = thread::spawn(move || leaves.leave(ID.0).is_some());
        thread::sleep(Duration::from_millis(50));
        assert!(!leaves.is_finished());
        // Nor does who waits for it.
        let others = watch.clone();
        let others = thread::spawn(move || drop(others.enter((9, [4; 16]), later())));
        let soon = Instant::now() + Duration::from_secs(30);
        while !others.is_finished() {
            assert!(Instant::now() < soon, "it waits as well");
            thread::sleep(Duration::from_millis(5));
        }
        end.send(()).unwrap();
        assert!(leaves.join().unwrap() && wakes.join().unwrap());
    }
}
