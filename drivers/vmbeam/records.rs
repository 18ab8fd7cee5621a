// SPDX-License-Identifier: GPL-2.0-only

//! Half moves that nobody holds open.
//!
//! A file that goes away with some of its pairs swapped and some not would leave
//! two guest VMs broken, and nobody who knows how to mend them. So the session is
//! rolled back first, and kept as a *record* if that is refused.
//!
//! Every session that is bound has reserved its place here, so that keeping it
//! can never fail. As long as there is a record the module cannot be unloaded.

use kernel::{
    alloc::KVVec,
    prelude::*, //
};
use zerocopy::IntoBytes;

use crate::{
    alloc,
    args::{
        self,
        Arg, //
    },
    errno::EBADFD,
    glue,
    session::Session,
    uapi,
};

/// Most sessions that are bound or records, together.
pub(crate) const MAX_SESSIONS: usize = 256;

/// Largest `struct vmbeam_record` that a caller may have.
const MAX_RECORD_SIZE: usize = 4096;

struct Record {
    id: u64,
    error: Error,
    session: KBox<Session>,
}

/// All records, and how many places are taken.
pub(crate) struct Table {
    /// Places in use, by sessions in open files and by records.
    taken: usize,
    last_id: u64,
    records: [Option<Record>; MAX_SESSIONS],
}

impl Table {
    /// No records.
    pub(crate) const fn new() -> Self {
        Self {
            taken: 0,
            last_id: 0,
            records: [const { None }; MAX_SESSIONS],
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().flatten()
    }

    fn take(&mut self, id: u64) -> Result<Record> {
        self.records
            .iter_mut()
            .find(|place| place.as_ref().is_some_and(|record| record.id == id))
            .and_then(Option::take)
            .ok_or(ENOENT)
    }
}

/// A place in the table, reserved for a session for as long as it is bound.
pub(crate) struct Place(());

impl Place {
    /// Reserve one.
    ///
    /// # Errors
    ///
    /// [`ENOSPC`]: there are [`MAX_SESSIONS`] already.
    pub(crate) fn reserve() -> Result<Self> {
        let mut table = glue::RECORDS.lock();

        if table.taken >= MAX_SESSIONS {
            return Err(ENOSPC);
        }
        table.taken = table.taken.saturating_add(1);
        Ok(Self(()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = glue::RECORDS.lock();
        table.taken = table.taken.saturating_sub(1);
    }
}

/// The last reference to a file is gone: leave its session's pairs all swapped or
/// all back, or keep a record.
pub(crate) fn settle(mut session: KBox<Session>) {
    let Err(error) = session.finish() else {
        return;
    };
    let left = session.view();
    let mut table = glue::RECORDS.lock();
    let id = table.last_id.saturating_add(1);

    // There is one: the session has reserved it.
    if let Some(place) = table.records.iter_mut().find(|place| place.is_none()) {
        *place = Some(Record { id, error, session });
        table.last_id = id;
        // The file that goes away still keeps the module.
        glue::pin_module();
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
    let record = glue::RECORDS.lock().take(arg.value.id)?;

    *session = record.session;
    glue::unpin_module();
    Ok(())
}

/// IOCTL: `FORGET`: drop a record.
///
/// # Errors
///
/// [`ENOENT`].
pub(crate) fn forget(arg: Arg<uapi::Forget>) -> Result {
    // A statement of its own: dropping the record takes the lock again.
    let record = glue::RECORDS.lock().take(arg.value.id)?;

    drop(record);
    glue::unpin_module();
    Ok(())
}

/// IOCTL: `RECORDS`: list them.
///
/// # Errors
///
/// Those of the uAPI header.
pub(crate) fn list(mut arg: Arg<uapi::Records>) -> Result {
    let stride = usize::try_from(arg.value.record_size)?;

    if stride < size_of::<uapi::Record>() || arg.value.reserved != 0 {
        return Err(EINVAL);
    }
    if stride > MAX_RECORD_SIZE {
        return Err(E2BIG);
    }

    let mut found: KVVec<uapi::Record> = alloc::list(uapi::Record::default(), MAX_SESSIONS)?;
    let mut total = 0;
    for (record, out) in glue::RECORDS.lock().iter().zip(found.iter_mut()) {
        let view = record.session.view();
        *out = uapi::Record {
            id: record.id,
            domid_a: view.domid_a,
            domid_b: view.domid_b,
            state: view.state,
            error: record.error.to_errno(),
            runs: view.runs,
            pairs: view.pairs,
            cursor: view.cursor,
            swapped: view.swapped,
            refused: view.refused,
        };
        total = usize::saturating_add(total, 1);
    }
    let found = found.get(..total).ok_or(EIO)?;

    let mut written = 0;
    let mut last_id = 0;
    while written < usize::try_from(arg.value.nr)? {
        let rest = found.iter().filter(|record| record.id > last_id);
        let Some(record) = rest.min_by_key(|record| record.id) else {
            break;
        };
        let offset = stride.saturating_mul(written);
        args::write_bytes(arg.value.records, offset, record.as_bytes())?;
        written = usize::saturating_add(written, 1);
        last_id = record.id;
    }
    arg.value.nr = u32::try_from(written)?;
    arg.value.total = u32::try_from(total)?;
    arg.write()
}
