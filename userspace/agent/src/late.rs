// SPDX-License-Identifier: GPL-2.0-only

//! A guest that suspends itself when nobody waits for that any more: the toolstack has given up
//! (after 60 seconds), or its program was killed, and the guest only then is as far. Nobody would
//! ever look at it again. So for a while after a save that came to nothing this does, and after a
//! guest was to go on that may have been asked by an agent before this one.
//!
//! An agent that is restarted meanwhile goes on with that. It must be certain then that no move has
//! the guest by now: who would be let run could be its half that has left. So each guest that is watched
//! is noted, and not any more before a move begins.

mod notes;

use crate::error::HvError;
use crate::orphan;
use crate::toolstack::Outgoing;
use notes::Notes;
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
/// How often to look.
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
    /// Held while something is done for it, which may take a minute: who is to have
    /// this guest waits for that, and nobody waits for that of another one.
    seen: Mutex<Seen>,
}

/// What is known of a guest that is watched.
#[derive(Debug)]
struct Seen {
    /// It still is.
    watched: bool,
    /// When it was looked at last it was suspended, and nobody had it saved.
    left: bool,
}

impl Entry {
    /// Not any more; whether it was until now.
    fn end(&self) -> bool {
        std::mem::replace(&mut lock(&self.seen).watched, false)
    }

    /// Look once, and let it run if it was left like that when it was looked at before: whoever lets it
    /// run itself has had time to do that, or whoever has saved it to end it. Whether to look again.
    fn look(&self, guests: &impl Guests) -> bool {
        let mut seen = lock(&self.seen);
        seen.watched &= Instant::now() < self.until;
        if !seen.watched {
            return false;
        }
        let (guest, uuid) = self.guest;
        let Some((_, suspended)) = guests.look(guest).filter(|(now, _)| *now == uuid) else {
            seen.watched = false;
            return false;
        };
        let before = std::mem::replace(&mut seen.left, false);
        let asked = guests.is_asked(guest);
        // Looked for behind that: what is asked for by nobody is a request that was left.
        if !(asked || suspended) || guests.is_somebody_saving() {
            return true;
        }
        if asked {
            guests.take_back(guest);
        }
        seen.left = suspended;
        if suspended && before {
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
#[derive(Clone, Debug)]
pub(crate) struct Watch {
    all: Arc<Mutex<HashMap<u32, Arc<Entry>>>>,
    /// Written with the lock of the others.
    notes: Notes,
}

/// Those of this system.
pub(crate) static WATCH: LazyLock<Watch> = LazyLock::new(|| Watch::with(Notes::system()));

impl Watch {
    fn with(notes: Notes) -> Self {
        Self {
            all: Arc::default(),
            notes,
        }
    }

    /// Watch a guest for a while.
    pub(crate) fn begin(&self, guest: Id, wake: Wake) {
        self.follow(guest, Instant::now() + WATCHED, wake);
    }

    /// The same again of one that was left.
    pub(crate) fn resume(&self, left: &Entry, wake: Wake) {
        self.follow(left.guest, left.until, wake);
    }

    /// The same of all that an agent before this one watched.
    pub(crate) fn take_over(&self, wake: Wake) {
        for (guest, left) in self.notes.all(WATCHED) {
            info!(guest = guest.0, "it was watched by the agent before");
            self.follow(guest, Instant::now() + left, wake);
        }
    }

    /// A move has this guest. Whoever lets it run just now is waited for. Gives what was watched.
    ///
    /// # Errors
    ///
    /// It cannot be forgotten: the next agent would take it for one that is to be let run.
    pub(crate) fn leave(&self, guest: u32) -> Result<Option<Arc<Entry>>, HvError> {
        let left = {
            let mut all = lock(&self.all);
            self.notes.forget(guest)?;
            all.remove(&guest)
        };
        Ok(left.filter(|left| left.end()))
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
        let left = self.leave(guest.0)?;
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
            seen: Mutex::new(Seen {
                watched: true,
                left: false,
            }),
        });
        let before = {
            let mut all = lock(&self.all);
            let left = until.saturating_duration_since(Instant::now());
            if let Err(e) = self.notes.note(guest, WATCHED.saturating_sub(left)) {
                warn!(
                    guest = guest.0,
                    "an agent after this one will not watch it: {e}"
                );
            }
            all.insert(guest.0, entry.clone())
        };
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
                while entry.look(&guests) {
                    thread::sleep(LOOK);
                }
                let mut all = lock(&watch.all);
                if all.get(&guest.0).is_some_and(|e| Arc::ptr_eq(e, &entry)) {
                    all.remove(&guest.0);
                    if let Err(e) = watch.notes.forget(guest.0) {
                        warn!(guest = guest.0, "{e}");
                    }
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
mod tests;
