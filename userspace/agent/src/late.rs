// SPDX-License-Identifier: GPL-2.0-only

//! A guest that suspends itself when nobody waits for that any more: the toolstack has given up
//! (after 60 seconds), or its program was killed, and the guest only then is as far. Nobody would
//! ever look at it again. So for a while after a save that came to nothing this does.

use crate::hypervisor::{HvError, Hypervisor};
use crate::orphan;
use crate::toolstack::Outgoing;
use std::collections::HashSet;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

/// What has to be known and done about guests.
pub(crate) trait Guests {
    /// Nobody asks this guest to suspend itself any more.
    fn take_back(&self, guest: u32);
    /// Whether it has suspended itself, and nothing else; nothing if it is gone.
    fn is_suspended(&self, guest: u32) -> Option<bool>;
    /// Somebody else has a guest saved now.
    fn is_somebody_saving(&self) -> bool;
    /// Let it run.
    fn wake(&self, guest: u32) -> Result<(), HvError>;
}

impl Guests for Xen {
    fn take_back(&self, guest: u32) {
        let path = format!("/local/domain/{guest}/control/shutdown");
        // If it takes the request just now, it writes the same.
        if self.store_read(&path).as_deref() != Some("suspend") {
            return;
        }
        match run(Command::new("xenstore-write").args([&path, ""]), WRITE) {
            Ok(out) if out.status.success() => info!(guest, "it is not to suspend itself any more"),
            Ok(out) => warn!(guest, "cannot write {path}: {}", out.err.trim()),
            Err(e) => warn!(guest, "cannot write {path}: {e}"),
        }
    }

    fn is_suspended(&self, guest: u32) -> Option<bool> {
        let info = self.domain(guest).ok()?;
        Some(!info.dying && info.shutdown == Some(SHUTDOWN_SUSPEND))
    }

    fn is_somebody_saving(&self) -> bool {
        orphan::is_somebody_saving()
    }

    fn wake(&self, guest: u32) -> Result<(), HvError> {
        self.resume(guest)
    }
}

/// Guests that are watched.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch(Arc<Mutex<HashSet<u32>>>);

impl Watch {
    fn lock(&self) -> MutexGuard<'_, HashSet<u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A move has this guest. Whoever lets it run just now is waited for.
    fn leave(&self, guest: u32) {
        self.lock().remove(&guest);
    }

    /// Look once; whether to look again.
    fn look(&self, guests: &impl Guests, guest: u32) -> bool {
        let mut watched = self.lock();
        if !watched.contains(&guest) {
            return false;
        }
        match guests.is_suspended(guest) {
            None => {
                watched.remove(&guest);
                return false;
            }
            Some(true) if !guests.is_somebody_saving() => {
                warn!(
                    guest,
                    "it has suspended itself after its save was given up, and is let run"
                );
                if let Err(e) = guests.wake(guest) {
                    warn!(guest, "{e}");
                }
            }
            Some(_) => {}
        }
        true
    }
}

/// The guests of this system that are watched.
static WATCH: Mutex<Option<Watch>> = Mutex::new(None);

fn watch() -> Watch {
    let mut watch = WATCH.lock().unwrap_or_else(PoisonError::into_inner);
    watch.get_or_insert_default().clone()
}

/// A guest that is being saved, and is watched if nothing comes of that.
#[derive(Debug)]
pub(crate) struct Watched<S> {
    guest: u32,
    save: S,
    /// The guest was, or may have been, asked to suspend itself.
    asked: bool,
}

impl<S> Watched<S> {
    /// Before `begin`, which has it saved, whoever watches the guest leaves it alone. One that is
    /// `staged` is not asked to suspend itself until the gate is opened.
    pub(crate) fn begin(
        guest: u32,
        staged: bool,
        begin: impl FnOnce() -> Result<S, HvError>,
    ) -> Result<Self, HvError> {
        watch().leave(guest);
        let (save, asked) = (begin()?, !staged);
        Ok(Self { guest, save, asked })
    }
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
        if !self.asked {
            return result;
        }
        let (guest, watch) = (self.guest, watch());
        watch.lock().insert(guest);
        let watches = move || match Xen::open() {
            Ok(xen) => {
                xen.take_back(guest);
                let until = Instant::now() + WATCHED;
                while Instant::now() < until {
                    thread::sleep(LOOK);
                    if !watch.look(&xen, guest) {
                        return;
                    }
                }
                watch.leave(guest);
            }
            Err(e) => warn!(guest, "nobody looks whether it suspends itself: {e}"),
        };
        let named = thread::Builder::new().name(format!("watch-{guest}"));
        if let Err(e) = named.spawn(watches) {
            warn!(guest, "nobody looks whether it suspends itself: {e}");
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};

    #[derive(Default)]
    struct Fake {
        suspended: Cell<Option<bool>>,
        saving: Cell<bool>,
        woken: RefCell<Vec<u32>>,
    }

    impl Guests for Fake {
        fn take_back(&self, _: u32) {}

        fn is_suspended(&self, _: u32) -> Option<bool> {
            self.suspended.get()
        }

        fn is_somebody_saving(&self) -> bool {
            self.saving.get()
        }

        fn wake(&self, guest: u32) -> Result<(), HvError> {
            self.woken.borrow_mut().push(guest);
            self.suspended.set(Some(false));
            Ok(())
        }
    }

    #[test]
    fn one_that_suspends_itself_too_late_is_let_run() {
        let (guests, watch) = (Fake::default(), Watch::default());
        watch.lock().insert(7);
        guests.suspended.set(Some(false));
        assert!(watch.look(&guests, 7) && guests.woken.borrow().is_empty());
        // A person has it saved.
        guests.suspended.set(Some(true));
        guests.saving.set(true);
        assert!(watch.look(&guests, 7) && guests.woken.borrow().is_empty());
        guests.saving.set(false);
        assert!(watch.look(&guests, 7));
        assert_eq!(*guests.woken.borrow(), [7]);
        // The next move has it.
        guests.suspended.set(Some(true));
        watch.leave(7);
        assert!(!watch.look(&guests, 7));
        // It is gone.
        watch.lock().insert(7);
        guests.suspended.set(None);
        assert!(!watch.look(&guests, 7) && watch.lock().is_empty());
        assert_eq!(*guests.woken.borrow(), [7]);
    }
}
