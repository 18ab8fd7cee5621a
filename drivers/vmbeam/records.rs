// SPDX-License-Identifier: GPL-2.0-only

//! Who has pairs swapped, and half moves that nobody holds open.
//!
//! A file that goes away with some of its pairs swapped and some not would leave
//! two guest VMs broken, and nobody who knows how to mend them. So the session is
//! rolled back first, and kept as a *record* if that is refused.
//!
//! Every session that is bound has reserved its place here, so that keeping it
//! can never fail. As long as there is a record the module cannot be unloaded.

use kernel::{
    prelude::*,
    time::{
        ClockSource,
        RealTime,
        NSEC_PER_SEC, //
    },
};

use crate::{
    args::Arg,
    glue::{
        self,
        ModuleRef, //
    },
    session::Session,
    uapi,
    xen::Domains,
};

/// Most sessions that are bound or records, together.
pub(crate) const MAX_SESSIONS: usize = 256;

struct Record {
    id: u64,
    error: Error,
    /// Seconds since 1970.
    time: u64,
    session: KBox<Session>,
    _module: ModuleRef,
}

/// What is known of a session that is bound, in an open file or as a record.
struct Entry {
    domains: Domains,
    /// It has pairs swapped, or is about to.
    swapped: bool,
    record: Option<Record>,
}

/// All sessions that are bound.
pub(crate) struct Table {
    last_id: u64,
    entries: [Option<Entry>; MAX_SESSIONS],
}

impl Table {
    /// None.
    pub(crate) const fn new() -> Self {
        Self {
            last_id: 0,
            entries: [const { None }; MAX_SESSIONS],
        }
    }

    /// Whether a session other than that in `place` has pairs of one of the domains swapped.
    fn busy(&self, domains: &Domains, place: Option<usize>) -> bool {
        self.entries.iter().enumerate().any(|(index, entry)| {
            Some(index) != place
                && entry
                    .as_ref()
                    .is_some_and(|entry| entry.swapped && entry.domains.share(domains))
        })
    }

    fn entry(&mut self, place: &Place) -> Option<&mut Entry> {
        self.entries.get_mut(place.0)?.as_mut()
    }
}

/// A place in the table, for a session for as long as it is bound.
pub(crate) struct Place(usize);

impl Place {
    /// Reserve one.
    ///
    /// # Errors
    ///
    /// - [`ENOSPC`]: there are [`MAX_SESSIONS`] already.
    /// - [`EBUSY`]: another session has pairs of one of these domains swapped.
    pub(crate) fn reserve(domains: Domains) -> Result<Self> {
        let mut table = glue::RECORDS.lock();

        if table.busy(&domains, None) {
            return Err(EBUSY);
        }
        let mut places = table.entries.iter_mut().enumerate();
        let (index, free) = places.find(|(_, entry)| entry.is_none()).ok_or(ENOSPC)?;
        *free = Some(Entry {
            domains,
            swapped: false,
            record: None,
        });
        Ok(Self(index))
    }

    /// Be the only session with pairs of these domains swapped, until [`note`] finds that
    /// there are none.
    ///
    /// # Errors
    ///
    /// [`EBUSY`]: there is another one.
    pub(crate) fn claim(&self) -> Result {
        let mut table = glue::RECORDS.lock();
        let domains = table.entry(self).ok_or(EIO)?.domains;

        if table.busy(&domains, Some(self.0)) {
            return Err(EBUSY);
        }
        table.entry(self).ok_or(EIO)?.swapped = true;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = glue::RECORDS.lock();

        if let Some(entry) = table.entries.get_mut(self.0) {
            *entry = None;
        }
    }
}

/// An ioctl is through with a session: let others know whether it has pairs swapped.
pub(crate) fn note(session: &Session) {
    if let Some(bound) = &session.bound {
        let swapped = session.ledger.may_be_swapped();

        if let Some(entry) = glue::RECORDS.lock().entry(&bound.place) {
            entry.swapped = swapped;
        }
    }
}

/// The last reference to a file is gone: leave its session's pairs all swapped or
/// all back, or keep a record.
pub(crate) fn settle(mut session: KBox<Session>) {
    let Err(error) = session.finish() else {
        return;
    };
    let left = session.view();
    let Some(bound) = &session.bound else {
        return;
    };
    let index = bound.place.0;
    let mut table = glue::RECORDS.lock();
    let id = table.last_id.saturating_add(1);

    // There is one: the session has reserved it.
    if let Some(Some(entry)) = table.entries.get_mut(index) {
        // What cannot be put back ever is in nobody's way.
        entry.swapped = error != ESRCH;
        entry.record = Some(Record {
            id,
            error,
            time: u64::try_from(RealTime::ktime_get() / NSEC_PER_SEC).unwrap_or(0),
            session,
            _module: ModuleRef::get(),
        });
        table.last_id = id;
        drop(table);
        glue::record_kept(id, &left, error);
    }
}

/// IOCTL: `ADOPT`: continue the session of a record.
///
/// # Errors
///
/// [`ENOENT`], [`EBADFD`].
pub(crate) fn adopt(session: &mut KBox<Session>, arg: Arg<uapi::Adopt>) -> Result {
    if session.is_bound() {
        return Err(EBADFD);
    }
    let mut table = glue::RECORDS.lock();
    let record = table
        .entries
        .iter_mut()
        .flatten()
        .find_map(|entry| entry.record.take_if(|record| record.id == arg.value.id))
        .ok_or(ENOENT)?;
    drop(table);

    *session = record.session;
    Ok(())
}

/// IOCTL: `RECORD`: the first record after the one that is named.
///
/// # Errors
///
/// [`ENOENT`], [`EFAULT`].
pub(crate) fn next(mut arg: Arg<uapi::Record>) -> Result {
    let table = glue::RECORDS.lock();
    let records = table.entries.iter().flatten();
    let record = records
        .filter_map(|entry| entry.record.as_ref())
        .filter(|record| record.id > arg.value.id)
        .min_by_key(|record| record.id)
        .ok_or(ENOENT)?;
    let view = record.session.view();
    let bound = record.session.bound.as_ref().ok_or(EIO)?;
    let [id_a, id_b] = bound.domains.ids;

    arg.value = uapi::Record {
        id: record.id,
        domid_a: view.domid_a,
        domid_b: view.domid_b,
        id_a,
        id_b,
        state: view.state,
        error: record.error.to_errno(),
        time: record.time,
        pid: bound.pid,
        reserved: 0,
        runs: view.runs,
        pairs: view.pairs,
        cursor: view.cursor,
        swapped: view.swapped,
        refused: view.refused,
        ..arg.value
    };
    drop(table);
    arg.write()
}
