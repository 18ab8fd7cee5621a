// SPDX-License-Identifier: GPL-2.0-only

//! What is known of rejuvenations and replacements, for whoever watches one or has it stop, and
//! for the process that does it.

mod record;

pub(crate) use record::{Ended, Record};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Upkeeps that have ended and can be asked for.
const KEPT: usize = 8;
/// Lines that are kept of what a process has said.
const LINES: usize = 256;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All that there is to see of one.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) record: Record,
    /// What its process has said to this daemon, as much as is kept.
    lines: VecDeque<String>,
    /// Lines that it has said, and that are not all kept.
    pub(crate) said: u64,
    /// Connections of its process: one, but for a moment.
    pub(crate) present: u32,
}

impl View {
    pub(crate) fn has_ended(&self) -> bool {
        self.record.ended.is_some()
    }

    pub(crate) fn say(&mut self, line: String) {
        if self.lines.len() == LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
        self.said += 1;
    }

    /// What was said after so many lines.
    pub(crate) fn since(&self, seen: u64) -> Vec<String> {
        let new = usize::try_from(self.said - seen).unwrap_or(LINES);
        let old = self.lines.len().saturating_sub(new);
        self.lines.iter().skip(old).cloned().collect()
    }
}

/// An upkeep.
#[derive(Debug)]
pub(crate) struct Upkeep {
    pub(crate) id: u64,
    view: Mutex<View>,
    changed: Condvar,
}

impl Upkeep {
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut View) -> T) -> T {
        let changed = change(&mut lock(&self.view));
        self.changed.notify_all();
        changed
    }

    /// What is there once it is not `same` any more, or so much time has passed.
    pub(crate) fn wait(
        &self,
        limit: Duration,
        same: impl Fn(&View) -> bool,
    ) -> MutexGuard<'_, View> {
        let waited = self
            .changed
            .wait_timeout_while(lock(&self.view), limit, |view| same(view));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Those that go on, and the last ones that have ended.
#[derive(Debug, Default)]
pub(crate) struct Upkeeps(Mutex<BTreeMap<u64, Arc<Upkeep>>>);

impl Upkeeps {
    /// One that goes on in this host VM, or else what `begin` makes: whether it did.
    pub(crate) fn find_or<E>(
        &self,
        host_vm: &str,
        begin: impl FnOnce() -> Result<Record, E>,
    ) -> Result<(Arc<Upkeep>, bool), E> {
        let mut all = lock(&self.0);
        let there = all.values().find(|u| {
            let view = lock(&u.view);
            !view.has_ended() && view.record.request.host_vm == host_vm
        });
        match there {
            Some(there) => Ok((there.clone(), false)),
            None => Ok((enter(&mut all, begin()?), true)),
        }
    }

    pub(crate) fn enter(&self, record: Record) -> Arc<Upkeep> {
        enter(&mut lock(&self.0), record)
    }

    pub(crate) fn find(&self, id: u64) -> Option<Arc<Upkeep>> {
        lock(&self.0).get(&id).cloned()
    }

    pub(crate) fn forget(&self, id: u64) {
        lock(&self.0).remove(&id);
    }

    /// Forget those that ended long ago, and say which.
    pub(crate) fn prune(&self) -> Vec<u64> {
        let mut all = lock(&self.0);
        let ended = all.values().filter(|u| lock(&u.view).has_ended());
        let ended: Vec<_> = ended.map(|u| u.id).collect();
        let old = ended[..ended.len().saturating_sub(KEPT)].to_vec();
        for id in &old {
            all.remove(id);
        }
        old
    }
}

fn enter(all: &mut BTreeMap<u64, Arc<Upkeep>>, record: Record) -> Arc<Upkeep> {
    let upkeep = Arc::new(Upkeep {
        id: record.id,
        view: Mutex::new(View {
            record,
            lines: VecDeque::new(),
            said: 0,
            present: 0,
        }),
        changed: Condvar::new(),
    });
    all.insert(upkeep.id, upkeep.clone());
    upkeep
}
