// SPDX-License-Identifier: GPL-2.0-only

//! `ROLLBACK`: batches of pairs for the hypervisor, backwards.

use kernel::prelude::*;

use crate::{
    args::Arg,
    file::Watch,
    marks, pairs,
    session::{
        Session,
        BATCH_PAIRS, //
    },
    swap::{
        verdict,
        Tally, //
    },
    uapi,
    xen::{
        self,
        Mode, //
    },
};

/// What one hypercall of a rollback did.
struct Back {
    /// Pairs put back.
    swapped: u32,
    /// The last pair, by number, that it refused.
    refusal: Option<(u32, Error)>,
    /// Its result as a whole.
    result: Result,
}

impl Session {
    /// IOCTL: `ROLLBACK`: put the pairs before the cursor back.
    ///
    /// # Errors
    ///
    /// Those of the uAPI header. [`EFAULT`] is the one that can come with progress:
    /// when the caller takes its memory away meanwhile.
    pub(crate) fn rollback(&mut self, mut arg: Arg<uapi::Rollback>, watch: Watch<'_>) -> Result {
        if !self.is_bound() || !self.progress.may_roll_back() {
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
        let result = self.swap_back(&mut tally, watch);

        arg.value.cursor = self.progress.cursor().into();
        arg.value.swapped = tally.swapped.into();
        arg.write()?;
        verdict(result, tally.done)
    }

    /// The file is gone: roll back what was left half way, for as long as it takes.
    ///
    /// # Errors
    ///
    /// What stands in the way of putting all pairs back.
    pub(crate) fn finish(&mut self) -> Result {
        // Nothing moved, or everything did.
        if self.progress.swapped() == 0 || self.progress.state() == uapi::STATE_COMMITTED {
            return Ok(());
        }
        self.swap_back(&mut Tally::default(), Watch::NOBODY)
    }

    fn swap_back(&mut self, tally: &mut Tally, watch: Watch<'_>) -> Result {
        loop {
            watch.pause(self)?;
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
        let reply = bound.request(mode, cursor, filled)?;
        let status = bound.status(reply.done);
        let runs = bound.batch.runs.get(..filled.runs).unwrap_or(&[]);
        let refusal = pairs::numbers(runs, &bound.batch.firsts)
            .zip(status)
            .filter(|(_, status)| **status != 0)
            .map(|(pair, status)| (pair, xen::pair_error(*status)))
            .max_by_key(|(pair, _)| *pair);

        let swapped = match mode {
            Mode::Open | Mode::Check => 0,
            Mode::Swap => {
                self.spent.add(&reply);
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
