// SPDX-License-Identifier: GPL-2.0-only

//! `PREPARE`, `COMMIT`, `ROLLBACK`: batches of pairs for the hypervisor.
//!
//! Each of the three loops ends at the first thing that stands in its way, a
//! signal or an error, and the caller of the loop decides whether the ioctl got
//! anywhere. Whatever a hypercall has done is recorded before anything else that
//! can fail.

use kernel::{
    current,
    prelude::*, //
};

use crate::{
    args::{
        Arg,
        StatusArray, //
    },
    marks,
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
struct Tally {
    done: u32,
    swapped: u32,
    refused: u32,
}

/// What one hypercall of a rollback did.
struct Back {
    /// Pairs put back.
    swapped: u32,
    /// The last pair, by number, that it refused.
    refusal: Option<(u32, Error)>,
    /// Its result as a whole.
    result: Result,
}

/// To be called before each hypercall: let others run, and stop for a signal.
fn pause() -> Result {
    xen::cond_resched();
    if current!().signal_pending() {
        return Err(EINTR);
    }
    Ok(())
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
    /// Ask the hypervisor about the first `filled` of the batch.
    fn request(&mut self, mode: Mode, filled: Filled) -> Result<Reply> {
        let runs = self.batch.runs.get(..filled.runs).ok_or(EIO)?;

        Ok(xen::swap_frames(
            self.domains,
            mode,
            runs,
            &mut self.batch.status,
        ))
    }

    /// The statuses of the first `nr` pairs of the last request.
    fn status(&self, nr: usize) -> &[i32] {
        self.batch.status.get(..nr).unwrap_or(&[])
    }
}

impl Session {
    /// IOCTL: `PREPARE`: ask about pairs and change nothing.
    ///
    /// # Errors
    ///
    /// Those of the uAPI header.
    pub(crate) fn prepare(&mut self, mut arg: Arg<uapi::Prepare>) -> Result {
        let pairs = self.progress.pairs();

        if pairs == 0 {
            return Err(EBADFD);
        }
        if arg.value.first >= u64::from(pairs) {
            return Err(EINVAL);
        }
        let end = stretch(arg.value.first, arg.value.nr, pairs)?;
        let first = u32::try_from(arg.value.first)?;
        let mut tally = Tally::default();
        let result = self.check(first, end, StatusArray::new(arg.value.status), &mut tally);

        if result == Err(EFAULT) || tally.done == 0 {
            result?;
        }
        arg.value.done = tally.done.into();
        arg.value.refused = tally.refused.into();
        arg.write()
    }

    fn check(&mut self, first: u32, end: u32, user: StatusArray, tally: &mut Tally) -> Result {
        let bound = self.bound.as_mut().ok_or(EBADFD)?;

        loop {
            let at = first.saturating_add(tally.done);
            if at >= end {
                break;
            }
            pause()?;
            let filled = pairs::fill(&self.runs, at, end, BATCH_PAIRS, &mut bound.batch.runs);
            let reply = bound.request(Mode::Check, filled)?;
            let status = bound.status(reply.done);
            let refused = status.iter().filter(|status| **status != 0).count();

            user.write(tally.done, status)?;
            tally.refused = tally.refused.saturating_add(u32::try_from(refused)?);
            tally.done = tally.done.saturating_add(u32::try_from(reply.done)?);
            reply.result?;
        }
        Ok(())
    }

    /// IOCTL: `COMMIT`: swap the pairs from the cursor on.
    ///
    /// # Errors
    ///
    /// Those of the uAPI header. [`EFAULT`] is the one that can come with progress:
    /// when the caller takes its memory away meanwhile.
    pub(crate) fn commit(&mut self, mut arg: Arg<uapi::Commit>) -> Result {
        if self.bound.is_none() || !self.progress.may_commit() {
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
        self.mark_not_attempted(end.saturating_sub(first), user)?;

        let mut tally = Tally::default();
        let result = self.swap(end, user, &mut tally);
        if result == Err(EFAULT) || tally.done == 0 {
            result?;
        }
        arg.value.cursor = self.progress.cursor().into();
        arg.value.swapped = tally.swapped.into();
        arg.value.refused = tally.refused.into();
        arg.write()
    }

    fn mark_not_attempted(&mut self, nr: u32, user: StatusArray) -> Result {
        let bound = self.bound.as_mut().ok_or(EBADFD)?;
        let mut marked = 0;

        if user.wanted() {
            bound.batch.status.fill(uapi::NOT_ATTEMPTED);
        }
        while user.wanted() && marked < nr {
            let chunk = BATCH_PAIRS.min(nr.saturating_sub(marked));
            pause()?;
            user.write(marked, bound.status(usize::try_from(chunk)?))?;
            marked = marked.saturating_add(chunk);
        }
        Ok(())
    }

    fn swap(&mut self, end: u32, user: StatusArray, tally: &mut Tally) -> Result {
        let bound = self.bound.as_mut().ok_or(EBADFD)?;

        while self.progress.cursor() < end {
            pause()?;
            let cursor = self.progress.cursor();
            let filled = pairs::fill(&self.runs, cursor, end, BATCH_PAIRS, &mut bound.batch.runs);
            let reply = bound.request(Mode::Swap, filled)?;
            self.hypercalls = self.hypercalls.saturating_add(1);
            self.tlb_flushes = self.tlb_flushes.saturating_add(reply.tlb_flushes);

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

    /// IOCTL: `ROLLBACK`: put the pairs before the cursor back.
    ///
    /// # Errors
    ///
    /// Those of the uAPI header. [`EFAULT`] is the one that can come with progress:
    /// when the caller takes its memory away meanwhile.
    pub(crate) fn rollback(&mut self, mut arg: Arg<uapi::Rollback>) -> Result {
        if self.bound.is_none() || !self.progress.may_roll_back() {
            return Err(EBADFD);
        }
        if arg.value.expected != u64::from(self.progress.cursor()) {
            arg.value.cursor = self.progress.cursor().into();
            arg.write()?;
            return Err(ESTALE);
        }
        // Before anything moves, so that a bad pointer is found in time.
        arg.write()?;

        let mut tally = Tally::default();
        let result = self.swap_back(&mut tally);
        if tally.done == 0 {
            result?;
        }
        arg.value.cursor = self.progress.cursor().into();
        arg.value.swapped = tally.swapped.into();
        arg.write()
    }

    fn swap_back(&mut self, tally: &mut Tally) -> Result {
        loop {
            pause()?;
            let moved = self.retreat();
            tally.done = tally.done.saturating_add(moved);
            if self.progress.cursor() == 0 {
                return Ok(());
            }
            if moved == BATCH_PAIRS {
                continue;
            }

            // Where would the hypervisor stop us? The pairs above that go back; those below wait,
            // so that the cursor says it all.
            let check = self.request_back(Mode::Check, 0)?;
            check.result?;
            let from = match check.refusal {
                Some((pair, error)) if pair.saturating_add(1) == self.progress.cursor() => {
                    return Err(error);
                }
                Some((pair, _)) => pair.saturating_add(1),
                None => 0,
            };

            let swap = self.request_back(Mode::Swap, from)?;
            tally.done = tally.done.saturating_add(swap.swapped);
            tally.swapped = tally.swapped.saturating_add(swap.swapped);
            // Now, and not when the loop comes round: a signal may end it first. Pairs that went
            // back below one that did not are marked, and passed over later.
            self.retreat();
            swap.result?;
            if let Some((_, error)) = swap.refusal {
                // Something took hold of it since the check.
                return Err(error);
            }
        }
    }

    /// Move the cursor down over what needs no hypercall.
    fn retreat(&mut self) -> u32 {
        self.progress
            .retreat(&self.refused, &self.back, BATCH_PAIRS)
    }

    /// One hypercall for pairs right below the cursor and not below `from`.
    fn request_back(&mut self, mode: Mode, from: u32) -> Result<Back> {
        let bound = self.bound.as_mut().ok_or(EBADFD)?;
        let (refused, back) = (&self.refused, &mut self.back);
        let cursor = self.progress.cursor();
        let filled = pairs::fill_back(
            &self.runs,
            from.max(cursor.saturating_sub(BATCH_PAIRS)),
            cursor,
            BATCH_PAIRS,
            |pair| marks::is_set(refused, pair) || marks::is_set(back, pair),
            &mut bound.batch.runs,
            &mut bound.batch.firsts,
        );
        let reply = bound.request(mode, filled)?;
        let status = bound.status(reply.done);
        let runs = bound.batch.runs.get(..filled.runs).unwrap_or(&[]);
        let refusal = pairs::numbers(runs, &bound.batch.firsts)
            .zip(status)
            .filter(|(_, status)| **status != 0)
            .map(|(pair, status)| (pair, Error::from_errno(*status)))
            .max_by_key(|(pair, _)| *pair);

        let swapped = match mode {
            Mode::Check => 0,
            Mode::Swap => {
                self.hypercalls = self.hypercalls.saturating_add(1);
                self.tlb_flushes = self.tlb_flushes.saturating_add(reply.tlb_flushes);
                self.progress
                    .put_back(runs, &bound.batch.firsts, status, back)
            }
        };
        Ok(Back {
            swapped,
            refusal,
            result: reply.result,
        })
    }
}
