// SPDX-License-Identifier: GPL-2.0-only

//! `PREPARE` and `COMMIT`: batches of pairs for the hypervisor, forwards.
//!
//! Each of the loops here and in `back` ends at the first thing that stands in its
//! way, a signal or an error, and the caller of the loop decides whether the ioctl
//! got anywhere. Whatever a hypercall has done is recorded before anything else
//! that can fail.

use kernel::prelude::*;

use crate::{
    args::{
        Arg,
        StatusArray, //
    },
    file::Watch,
    glue,
    pairs::{
        self,
        Filled, //
    },
    session::{
        Bound,
        Session,
        BATCH_PAIRS, //
    },
    uapi,
    xen::{
        self,
        Mode,
        Reply, //
    },
};

/// What one ioctl has done so far.
#[derive(Default)]
pub(crate) struct Tally {
    /// Pairs dealt with.
    pub(crate) done: u32,
    /// Of these, swapped.
    pub(crate) swapped: u32,
    /// And refused.
    pub(crate) refused: u32,
}

/// What a call that ended with `result` says to its caller, who finds in the out
/// fields how far it came: success if it got anywhere, with two exceptions.
pub(crate) fn verdict(result: Result, done: u32) -> Result {
    match result {
        Err(error) if done == 0 || error == EFAULT || error == ECANCELED => Err(error),
        _ => Ok(()),
    }
}

/// The pairs from `first` on that a caller asked for by number, 0 meaning all.
/// Returns the end.
fn stretch(first: u64, nr: u64, pairs: u32) -> Result<u32> {
    let left = u64::from(pairs).checked_sub(first).ok_or(EINVAL)?;
    let nr = if nr == 0 { left } else { nr };

    if nr > left {
        return Err(EINVAL);
    }
    Ok(u32::try_from(first.saturating_add(nr))?)
}

impl Bound {
    /// Ask the hypervisor about the first `filled` of the batch. `cursor` is for those
    /// who trace.
    pub(crate) fn request(&mut self, mode: Mode, cursor: u32, filled: Filled) -> Result<Reply> {
        let runs = self.batch.runs.get(..filled.runs).ok_or(EIO)?;

        glue::trace_begin(self.domains, mode, cursor, filled);
        let reply = xen::swap_frames(self.domains, mode, runs, &mut self.batch.status);
        let status = self.batch.status.get(..reply.done).unwrap_or(&[]);
        glue::trace_end(self.domains, mode, cursor, &reply, runs, status);
        Ok(reply)
    }

    /// The statuses of the first `nr` pairs of the last request.
    pub(crate) fn status(&self, nr: usize) -> &[i32] {
        self.batch.status.get(..nr).unwrap_or(&[])
    }
}

impl Session {
    /// IOCTL: `PREPARE`: ask about pairs and change nothing.
    ///
    /// # Errors
    ///
    /// Those of the uAPI header.
    pub(crate) fn prepare(&mut self, mut arg: Arg<uapi::Prepare>, watch: Watch<'_>) -> Result {
        let pairs = self.progress.pairs();

        if pairs == 0 {
            return Err(EBADFD);
        }
        if arg.value.first >= u64::from(pairs) {
            return Err(EINVAL);
        }
        let end = stretch(arg.value.first, arg.value.nr, pairs)?;
        let first = u32::try_from(arg.value.first)?;
        let user = StatusArray::new(arg.value.status);
        let mut tally = Tally::default();
        let result = self.check(first, end, user, &mut tally, watch);

        arg.value.done = tally.done.into();
        arg.value.refused = tally.refused.into();
        arg.write()?;
        verdict(result, tally.done)
    }

    fn check(
        &mut self,
        first: u32,
        end: u32,
        user: StatusArray,
        tally: &mut Tally,
        watch: Watch<'_>,
    ) -> Result {
        loop {
            let at = first.saturating_add(tally.done);
            if at >= end {
                return Ok(());
            }
            watch.pause(self)?;
            let bound = self.bound.as_mut().ok_or(EBADFD)?;
            let filled = pairs::fill(&self.runs, at, end, BATCH_PAIRS, &mut bound.batch.runs);
            let reply = bound.request(Mode::Check, at, filled)?;
            let status = bound.status(reply.done);

            user.write(tally.done, status)?;
            for status in status {
                tally.done = tally.done.saturating_add(1);
                if *status != 0 {
                    tally.refused = tally.refused.saturating_add(1);
                }
            }
            reply.result?;
        }
    }

    /// IOCTL: `COMMIT`: swap the pairs from the cursor on.
    ///
    /// # Errors
    ///
    /// Those of the uAPI header. [`EFAULT`] is the one that can come with progress:
    /// when the caller takes its memory away meanwhile.
    pub(crate) fn commit(&mut self, mut arg: Arg<uapi::Commit>, watch: Watch<'_>) -> Result {
        if !self.is_bound() || !self.progress.may_commit() {
            return Err(EBADFD);
        }
        let first = self.progress.cursor();
        if arg.value.expected != u64::from(first) {
            arg.value.cursor = first.into();
            arg.write()?;
            return Err(ESTALE);
        }
        let end = stretch(first.into(), arg.value.nr, self.progress.pairs())?;
        let user = StatusArray::new(arg.value.status);

        // Before anything moves, so that bad pointers are found in time.
        arg.write()?;
        let mut tally = Tally::default();
        let result = self
            .mark_not_attempted(end.saturating_sub(first), user, watch)
            .and_then(|()| self.swap(end, user, &mut tally, watch));

        arg.value.cursor = self.progress.cursor().into();
        arg.value.swapped = tally.swapped.into();
        arg.value.refused = tally.refused.into();
        arg.write()?;
        verdict(result, tally.done)
    }

    fn mark_not_attempted(&mut self, nr: u32, user: StatusArray, watch: Watch<'_>) -> Result {
        let mut marked = 0;

        if !user.wanted() {
            return Ok(());
        }
        if let Some(bound) = &mut self.bound {
            bound.batch.status.fill(uapi::NOT_ATTEMPTED);
        }
        while marked < nr {
            let chunk = BATCH_PAIRS.min(nr.saturating_sub(marked));
            watch.pause(self)?;
            let bound = self.bound.as_ref().ok_or(EBADFD)?;
            user.write(marked, bound.status(usize::try_from(chunk)?))?;
            marked = marked.saturating_add(chunk);
        }
        Ok(())
    }

    fn swap(&mut self, end: u32, user: StatusArray, tally: &mut Tally, watch: Watch<'_>) -> Result {
        while self.progress.cursor() < end {
            watch.pause(self)?;
            let bound = self.bound.as_mut().ok_or(EBADFD)?;
            let cursor = self.progress.cursor();
            let filled = pairs::fill(&self.runs, cursor, end, BATCH_PAIRS, &mut bound.batch.runs);
            let reply = bound.request(Mode::Swap, cursor, filled)?;
            self.spent.add(&reply);

            let status = bound.status(reply.done);
            let (swapped, refused) = self.progress.advance(status, &mut self.refused);
            let offset = tally.done;
            tally.done = offset.saturating_add(swapped).saturating_add(refused);
            tally.swapped = tally.swapped.saturating_add(swapped);
            tally.refused = tally.refused.saturating_add(refused);
            user.write(offset, status)?;
            reply.result?;
        }
        Ok(())
    }
}
