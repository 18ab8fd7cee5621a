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
        Tally,
        Way, //
    },
    memory::Charged,
    mode::Mode,
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
        What, //
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

/// On the way back of a relocation: a frame that went over held nothing but zeroes, and its
/// domain has let go of it since. There is nothing to put back but zeroes, which the hypervisor
/// has done, so that the pair is home.
fn put_back_by_zeroes(status: &mut [i32]) {
    for status in status {
        if *status == ENODATA.to_errno() {
            *status = 0;
        }
    }
}

/// The hypervisor, for two domains, and who waits.
struct Exchange<'a> {
    domains: Domains,
    mode: Mode,
    spent: &'a mut Spent,
    /// Frames that would go over with none in return before the pairs that a dry run asks about
    /// next, and after these.
    moves: u64,
    moves_then: u64,
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
            mode: bound.mode,
            spent,
            moves: 0,
            moves_then: 0,
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

        self.watch.pause(
            View::new(self.domains, self.mode, counts, self.spent),
            signals,
        )
    }

    fn call(&mut self, call: &Call<'_>, status: &mut [i32]) -> Answer<Error> {
        let (back, mode) = match call.way {
            Way::There => (false, self.mode),
            Way::Back => (true, self.mode.opposite()),
        };
        let (what, before) = match (call.swap, back) {
            (false, false) => (What::Check, self.moves),
            (false, true) => (What::CheckUndo, self.moves),
            // What has gone over is in the domains' counts already.
            (true, false) => (What::Swap, 0),
            (true, true) => (What::Undo, 0),
        };

        trace::begin(self.domains, what, call.cursor, call.filled);
        let reply = hypervisor::swap_frames(self.domains, (what, mode, before), call.runs, status);
        let done = usize::try_from(reply.done).unwrap_or(usize::MAX);
        let status = status.get_mut(..done).unwrap_or_default();
        trace::end(self.domains, what, call.cursor, &reply, call.runs, status);
        if call.swap {
            self.spent.add(&reply, back);
        }
        self.moves_then = reply.moved;
        if back && mode.relocates() {
            put_back_by_zeroes(status);
        }
        Answer {
            done: reply.done,
            result: reply.result,
        }
    }

    fn tell(&mut self, at: u32, status: &[i32]) -> Result {
        self.user.write(at, status)?;
        self.moves = self.moves_then;
        Ok(())
    }

    fn lacks_room(&self, status: i32) -> bool {
        status == ENOSPC.to_errno()
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
        let (first, before) = (u32::try_from(arg.value.first)?, arg.value.moves_before);
        if before > first.into() {
            return Err(EINVAL);
        }
        let user = StatusArray::new(arg.value.status);
        let (batch, mut outside) = Exchange::new(bound, &mut self.spent, user, watch);
        outside.moves = before;
        let (tally, result) = self.ledger.check(first, end, batch, &mut outside);

        arg.value.done = tally.done.into();
        arg.value.refused = tally.refused.into();
        arg.value.moves = outside.moves.saturating_sub(before);
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
        let went = self.spent.went;

        bound.place.claim()?;
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
        arg.value.moved = self.spent.went.saturating_sub(went);
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

    /// The file is gone: roll back what was left half way, for as long as it takes. Where what
    /// is in the frames stays where it is, there is no half way.
    ///
    /// # Errors
    ///
    /// What stands in the way of putting all pairs back.
    pub(crate) fn finish(&mut self) -> Result {
        let half_way = self.ledger.is_half_way();
        let Some(bound) =
            (self.bound.as_mut()).filter(|bound| half_way && bound.mode != Mode::Keep)
        else {
            return Ok(());
        };
        let nobody = StatusArray::new(0);
        let (batch, mut outside) = Exchange::new(bound, &mut self.spent, nobody, Watch::NOBODY);
        self.ledger.roll_back(batch, &mut outside).1
    }
}
