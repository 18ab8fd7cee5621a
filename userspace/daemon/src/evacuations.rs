// SPDX-License-Identifier: GPL-2.0-only

//! What is known of evacuations, for whoever watches one or has it stop.

mod record;

use crate::client::{failed, Client};
pub(crate) use record::{Ended, Record};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vmbeam_control_protocol::{Failure, FromDaemon};

/// Evacuations that have ended and can be asked for.
const KEPT: usize = 8;
/// How often to look whether a client still watches.
const LOOK: Duration = Duration::from_millis(500);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What there is to see of one.
#[derive(Debug, Default)]
struct View {
    /// How many changes there were.
    news: u64,
    /// Which guest moves, or what is waited for; and the change that this was.
    step: Option<(u64, FromDaemon)>,
    /// How far the guest that moves is.
    progress: Option<FromDaemon>,
    /// The daemon does nothing more about it.
    over: bool,
    /// How it ended, if it has.
    end: Option<FromDaemon>,
}

/// Who wants it to stop.
#[derive(Debug, Default)]
struct Wishes {
    /// After the guest that moves.
    stop: bool,
    /// At once.
    cancel: bool,
    /// Set to cancel the move that goes on.
    current: Option<Arc<AtomicBool>>,
}

/// An evacuation.
#[derive(Debug)]
pub(crate) struct Evacuation {
    pub(crate) id: u64,
    record: Mutex<Record>,
    view: Mutex<View>,
    changed: Condvar,
    wishes: Mutex<Wishes>,
}

impl Evacuation {
    pub(crate) fn record(&self) -> MutexGuard<'_, Record> {
        lock(&self.record)
    }

    fn change(&self, change: impl FnOnce(&mut View)) {
        let mut view = lock(&self.view);
        view.news += 1;
        change(&mut view);
        drop(view);
        self.changed.notify_all();
    }

    pub(crate) fn step(&self, step: FromDaemon) {
        self.change(|view| {
            view.step = Some((view.news, step));
            view.progress = None;
        });
    }

    pub(crate) fn progress(&self, progress: &FromDaemon) {
        self.change(|view| view.progress = Some(progress.clone()));
    }

    /// The daemon does nothing more about it; it has ended like this, or the next one goes on.
    pub(crate) fn end(&self, end: Option<FromDaemon>) {
        self.change(|view| {
            view.over = true;
            view.end = end;
        });
    }

    pub(crate) fn has_ended(&self) -> bool {
        lock(&self.view).end.is_some()
    }

    /// A guest's move has begun, and can be cancelled by this.
    pub(crate) fn begun(&self, cancel: &Arc<AtomicBool>) {
        let mut wishes = lock(&self.wishes);
        cancel.store(wishes.cancel, Ordering::Relaxed);
        wishes.current = Some(cancel.clone());
    }

    /// It has ended.
    pub(crate) fn over(&self) {
        lock(&self.wishes).current = None;
    }

    pub(crate) fn is_stopped(&self) -> bool {
        lock(&self.wishes).stop
    }

    /// Somebody wants it to stop, or, if that was wanted before, at once. Whether it was not.
    pub(crate) fn stop(&self) -> Result<bool, String> {
        if lock(&self.view).over {
            return Err(format!("job {} has ended", self.id));
        }
        let mut wishes = lock(&self.wishes);
        if !std::mem::replace(&mut wishes.stop, true) {
            return Ok(true);
        }
        wishes.cancel = true;
        if let Some(cancel) = &wishes.current {
            cancel.store(true, Ordering::Relaxed);
        }
        Ok(false)
    }
}

/// Those that go on, and the last ones that have ended.
#[derive(Debug, Default)]
pub(crate) struct Evacuations(Mutex<BTreeMap<u64, Arc<Evacuation>>>);

impl Evacuations {
    pub(crate) fn enter(&self, record: Record) -> Arc<Evacuation> {
        let stop = record.stopping;
        let evacuation = Arc::new(Evacuation {
            id: record.id,
            record: Mutex::new(record),
            view: Mutex::default(),
            changed: Condvar::new(),
            wishes: Mutex::new(Wishes {
                stop,
                ..Wishes::default()
            }),
        });
        lock(&self.0).insert(evacuation.id, evacuation.clone());
        evacuation
    }

    pub(crate) fn find(&self, id: u64) -> Option<Arc<Evacuation>> {
        lock(&self.0).get(&id).cloned()
    }

    pub(crate) fn forget(&self, id: u64) {
        lock(&self.0).remove(&id);
    }

    /// Forget those that ended long ago, and say which.
    pub(crate) fn prune(&self) -> Vec<u64> {
        let mut all = lock(&self.0);
        let ended = all.values().filter(|e| e.has_ended());
        let ended: Vec<_> = ended.map(|e| e.id).collect();
        let old = ended[..ended.len().saturating_sub(KEPT)].to_vec();
        for id in &old {
            all.remove(id);
        }
        old
    }

    /// Show a client how an evacuation is getting on, until it has ended: gives how. Nothing if
    /// the client has gone, or the daemon stops.
    pub(crate) fn watch(&self, id: u64, client: &Client) -> Option<FromDaemon> {
        let Some(evacuation) = self.find(id) else {
            let why = format!("there is no evacuation, rejuvenation or replacement with number {id}; see `vmbeam status`");
            return Some(failed(Failure::Refused, &why));
        };
        let mut seen = 0;
        loop {
            let view = lock(&evacuation.view);
            let nothing = |v: &mut View| v.news == seen && !v.over;
            let (view, _) = evacuation
                .changed
                .wait_timeout_while(view, LOOK, nothing)
                .unwrap_or_else(PoisonError::into_inner);
            if view.over {
                return view.end.clone();
            }
            let step = view.step.as_ref().filter(|(news, _)| *news > seen);
            let step = step.map(|(_, step)| step.clone());
            let progress = view.progress.clone().filter(|_| view.news > seen);
            seen = view.news;
            // Whoever moves a guest does not wait for whoever looks.
            drop(view);
            step.iter().chain(&progress).for_each(|m| client.show(m));
            if client.is_gone() {
                return None;
            }
        }
    }
}
