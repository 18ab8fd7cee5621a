// SPDX-License-Identifier: GPL-2.0-only

//! Half moves that nobody holds open.
//!
//! A file that goes away with some of its pairs swapped and some not would leave
//! two guest VMs broken, and nobody who knows how to mend them. So the session is
//! rolled back first, and kept as a *record* if that is refused, where its place is.
//!
//! As long as there is a record the module cannot be unloaded.

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
    helpers::ModuleRef,
    places::MAX_SESSIONS,
    session::Session,
    trace,
    uapi, //
};

kernel::sync::global_lock! {
    // SAFETY: The module initialises it before its device exists, and nothing else leads here.
    pub(crate) unsafe(uninit) static RECORDS: Mutex<Table> = Table {
        last_id: 0,
        records: [const { None }; MAX_SESSIONS],
    };
}

struct Record {
    id: u64,
    error: Error,
    /// Seconds since 1970.
    time: u64,
    session: KBox<Session>,
    _module: ModuleRef,
}

/// All records, each where the place of its session is.
pub(crate) struct Table {
    last_id: u64,
    records: [Option<Record>; MAX_SESSIONS],
}

/// The last reference to a file is gone: leave its session's pairs all swapped or
/// all back, or keep a record.
pub(crate) fn settle(mut session: KBox<Session>) {
    let Err(error) = session.finish() else {
        return;
    };
    let left = session.view().status;
    let Some(bound) = &session.bound else {
        // Only a session that is bound has anything to roll back.
        kernel::warn_on!(true);
        return;
    };
    let index = bound.place.index();
    bound.place.keep();
    let mut table = RECORDS.lock();
    let id = table.last_id.saturating_add(1);

    // There is one, and it is free: the session has its place.
    let Some(record @ None) = table.records.get_mut(index) else {
        kernel::warn_on!(true);
        return;
    };
    *record = Some(Record {
        id,
        error,
        time: u64::try_from(RealTime::ktime_get() / NSEC_PER_SEC).unwrap_or(0),
        session,
        _module: ModuleRef::get(),
    });
    table.last_id = id;
    drop(table);
    trace::record_kept(id, &left, error);
}

/// IOCTL: `ADOPT`: continue the session of a record.
///
/// # Errors
///
/// [`ENOENT`], [`EBADFD`].
pub(crate) fn adopt(session: &mut KBox<Session>, arg: Arg<uapi::Adopt>) -> Result {
    if !session.is_new() {
        return Err(EBADFD);
    }
    let mut table = RECORDS.lock();
    let record = table
        .records
        .iter_mut()
        .find_map(|record| record.take_if(|record| record.id == arg.value.id))
        .ok_or(ENOENT)?;
    drop(table);

    *session = record.session;
    match &session.bound {
        Some(bound) => bound.place.adopt(),
        // None was kept that was not bound.
        None => {
            kernel::warn_on!(true);
        }
    }
    Ok(())
}

/// IOCTL: `RECORD`: the first record after the one that is named.
///
/// # Errors
///
/// [`ENOENT`], [`EFAULT`].
pub(crate) fn next(mut arg: Arg<uapi::Record>) -> Result {
    let table = RECORDS.lock();
    let records = table.records.iter().flatten();
    let record = records
        .filter(|record| record.id > arg.value.id)
        .min_by_key(|record| record.id)
        .ok_or(ENOENT)?;
    let status = record.session.view().status;
    let bound = record.session.bound.as_ref().ok_or(EIO)?;
    let [id_a, id_b] = bound.domains.ids;

    arg.value = uapi::Record {
        id: record.id,
        domid_a: status.domid_a,
        domid_b: status.domid_b,
        id_a,
        id_b,
        state: status.state,
        error: record.error.to_errno(),
        time: record.time,
        pid: bound.pid,
        reserved: 0,
        runs: status.runs,
        pairs: status.pairs,
        cursor: status.cursor,
        swapped: status.swapped,
        refused: status.refused,
        mode: status.mode,
        reserved2: 0,
        moved: status.moved,
        ..arg.value
    };
    drop(table);
    arg.write()
}
