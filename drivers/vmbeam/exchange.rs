// SPDX-License-Identifier: GPL-2.0-only

//! `CHECK`, `COMMIT` and `ROLLBACK`: what the loops of the ledger deal with.

use kernel::prelude::*;

use crate::{
    args::{
        Arg,
        StatusArray, //
    },
    hypervisor,
    ledger::{
        Answer,
        Batch,
        Broken,
        Call,
        Counts,
        Outside,
        Refusal,
        Tally, //
    },
    memory::Charged,
    session::{
        Bound,
        Session,
        Spent,
        View,
        BATCH_PAIRS, //
    },
    trace,
    turns::Watch,
    uapi,
    xen::{
        self,
        Domains,
        Mode, //
    },
};

/// What a call that ended with `result` says to its caller, who finds in the out
/// fields how far it came: success if it got anywhere, with two exceptions.
fn verdict(result: Result, done: u32) -> Result {
    match result {
        Err(error) if done == 0 || error == EFAULT || error == ECANCELED => Err(error),
        _ => Ok(()),
    }
}

/// The error for the caller.
pub(crate) fn refused(why: Refusal) -> Error {
    match why {
        Refusal::State => EBADFD,
        Refusal::Stale => ESTALE,
        Refusal::Range => EINVAL,
        Refusal::Broken => EIO,
    }
}

/// The hypervisor, for two domains, and who waits.
struct Exchange<'a> {
    domains: Domains,
    spent: &'a mut Spent,
    user: StatusArray,
    watch: Watch<'a>,
    /// Whether a signal ends the call. Not before it got anywhere: calls make progress at any
    /// rate of signals.
    interruptible: bool,
}

impl<'a> Exchange<'a> {
    fn new(
        bound: &'a mut Bound,
        spent: &'a mut Spent,
        user: StatusArray,
        watch: Watch<'a>,
    ) -> (&'a mut Batch<Charged>, Self) {
        let outside = Self {
            domains: bound.domains,
            spent,
            user,
            watch,
            interruptible: false,
        };
        (&mut bound.batch, outside)
    }
}

impl Outside for Exchange<'_> {
    type Error = Error;

    fn go_on(&mut self, counts: Counts) -> Result {
        let signals = core::mem::replace(&mut self.interruptible, true);

        self.watch
            .pause(View::new(self.domains, counts, self.spent), signals)
    }

    fn call(&mut self, call: &Call<'_>, status: &mut [i32]) -> Answer<Error> {
        let mode = if call.swap { Mode::Swap } else { Mode::Check };

        trace::begin(self.domains, mode, call.cursor, call.filled);
        let reply = hypervisor::swap_frames(self.domains, mode, call.runs, status);
        let done = usize::try_from(reply.done).unwrap_or(usize::MAX);
        let status = status.get(..done).unwrap_or(&[]);
        trace::end(self.domains, mode, call.cursor, &reply, call.runs, status);
        if call.swap {
            self.spent.add(&reply);
        }
        Answer {
            done: reply.done,
            result: reply.result,
        }
    }

    fn tell(&mut self, at: u32, status: &[i32]) -> Result {
        self.user.write(at, status)
    }

    fn refused(&self, status: i32) -> Error {
        xen::pair_error(status)
    }

    fn broken(&mut self, how: Broken) -> Error {
        match how {
            Broken::Already => (),
            Broken::Answer => kernel::pr_err_once!("an answer of the hypervisor makes no sense\n"),
            Broken::Invariant => {
                kernel::warn_on!(true);
            }
        }
        EIO
    }
}

impl Session {
    /// IOCTL: `CHECK`: ask about pairs and change nothing.
    ///
    /// # Errors
    ///
    /// Those of the uAPI header.
    pub(crate) fn check(&mut self, mut arg: Arg<uapi::Check>, watch: Watch<'_>) -> Result {
        let bound = self.bound.as_mut().ok_or(EBADFD)?;
        let end = self.ledger.may_check(arg.value.first, arg.value.nr);
        let end = end.map_err(refused)?;
        let first = u32::try_from(arg.value.first)?;
        let user = StatusArray::new(arg.value.status);
        let (batch, mut outside) = Exchange::new(bound, &mut self.spent, user, watch);
        let (tally, result) = self.ledger.check(first, end, batch, &mut outside);

        arg.value.done = tally.done.into();
        arg.value.refused = tally.refused.into();
        arg.write()?;
        verdict(result, tally.done)
    }

    /// IOCTL: `COMMIT`: swap the pairs from the cursor on.
    ///
    /// # Errors
    ///
    /// Those of the uAPI header. [`EFAULT`] is one that can come with progress: when the
    /// caller's memory cannot be written later on.
    pub(crate) fn commit(&mut self, mut arg: Arg<uapi::Commit>, watch: Watch<'_>) -> Result {
        let bound = self.bound.as_mut().ok_or(EBADFD)?;
        let first = self.ledger.counts().cursor;
        let end = match self.ledger.may_commit(arg.value.expected, arg.value.nr) {
            Err(Refusal::Stale) => {
                arg.value.cursor = first.into();
                arg.write()?;
                return Err(ESTALE);
            }
            end => end.map_err(refused)?,
        };
        let user = StatusArray::new(arg.value.status);

        bound.place.claim(&bound.domains)?;
        // Before anything moves, so that bad pointers are found in time; and no more than one
        // batch of them, so that a signal does not wait for it.
        arg.write()?;
        let probed = user.probe(end.saturating_sub(first).min(BATCH_PAIRS));
        let (batch, mut outside) = Exchange::new(bound, &mut self.spent, user, watch);
        let (tally, result) = match probed {
            Ok(()) => self.ledger.commit(end, batch, &mut outside),
            Err(error) => (Tally::default(), Err(error)),
        };

        arg.value.cursor = self.ledger.counts().cursor.into();
        arg.value.swapped = tally.swapped.into();
        arg.value.refused = tally.refused.into();
        arg.write()?;
        verdict(result, tally.done)
    }

    /// IOCTL: `ROLLBACK`: put the pairs before the cursor back.
    ///
    /// # Errors
    ///
    /// Those of the uAPI header. [`EFAULT`] is one that can come with progress:
    /// when the caller takes its memory away meanwhile.
    pub(crate) fn rollback(&mut self, mut arg: Arg<uapi::Rollback>, watch: Watch<'_>) -> Result {
        let bound = self.bound.as_mut().ok_or(EBADFD)?;
        match self.ledger.may_roll_back(arg.value.expected) {
            Err(Refusal::Stale) => {
                arg.value.cursor = self.ledger.counts().cursor.into();
                arg.write()?;
                return Err(ESTALE);
            }
            may => may.map_err(refused)?,
        }
        // Before anything moves, so that a bad pointer is found in time.
        arg.write()?;

        let nobody = StatusArray::new(0);
        let (batch, mut outside) = Exchange::new(bound, &mut self.spent, nobody, watch);
        let (tally, result) = self.ledger.roll_back(batch, &mut outside);

        arg.value.cursor = self.ledger.counts().cursor.into();
        arg.value.restored = tally.swapped.into();
        arg.write()?;
        verdict(result, tally.done)
    }

    /// The file is gone: roll back what was left half way, for as long as it takes.
    ///
    /// # Errors
    ///
    /// What stands in the way of putting all pairs back.
    pub(crate) fn finish(&mut self) -> Result {
        let Some(bound) = self.bound.as_mut().filter(|_| self.ledger.is_half_way()) else {
            return Ok(());
        };
        let nobody = StatusArray::new(0);
        let (batch, mut outside) = Exchange::new(bound, &mut self.spent, nobody, Watch::NOBODY);
        self.ledger.roll_back(batch, &mut outside).1
    }
}
