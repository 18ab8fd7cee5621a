// SPDX-License-Identifier: GPL-2.0-only

//! The loops. Each ends at the first thing that stands in its way, a signal or an error.
//! Whatever a hypercall has done is written down before anything else that can fail.

use super::{
    batch::{
        Batch,
        Outside,
        Stop,
        Way, //
    },
    is_marked,
    Broken,
    Counts,
    Ledger,
    Memory,
    Phase, //
};
use crate::pairs;

/// What a call did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Pairs dealt with.
    pub done: u32,
    /// Of these, swapped.
    pub swapped: u32,
    /// And refused.
    pub refused: u32,
}

/// Mark `pair`, which must not be marked yet and for which there must be a bit.
fn mark<E>(marks: &mut [u64], pair: u32) -> Result<(), Stop<E>> {
    let word = marks.get_mut((pair / u64::BITS) as usize);
    let (word, bit) = (
        word.ok_or(Stop::Broken(Broken::Invariant))?,
        1 << (pair % u64::BITS),
    );

    if *word & bit != 0 {
        return Err(Stop::Broken(Broken::Invariant));
    }
    *word |= bit;
    Ok(())
}

/// One less, of which there must be one.
fn count_down<E>(count: &mut u32) -> Result<(), Stop<E>> {
    *count = count
        .checked_sub(1)
        .ok_or(Stop::Broken(Broken::Invariant))?;
    Ok(())
}

impl<M: Memory> Ledger<M> {
    /// What can be seen of the invariant at a glance.
    fn audit<E>(&self) -> Result<(), Stop<E>> {
        let Counts {
            pairs,
            cursor,
            swapped,
            refused,
            ..
        } = self.counts;
        let dealt_with = swapped.saturating_add(refused);
        let sound = match self.phase {
            Phase::Loading => cursor == 0 && dealt_with == 0,
            Phase::Committing => dealt_with == cursor,
            Phase::RollingBack => dealt_with <= cursor,
        };

        if sound && cursor <= pairs && pairs == pairs::total(&self.runs) {
            Ok(())
        } else {
            Err(Stop::Broken(Broken::Invariant))
        }
    }

    /// The only way out of a loop.
    fn end<O: Outside>(
        &mut self,
        result: Result<(), Stop<O::Error>>,
        outside: &mut O,
    ) -> Result<(), O::Error> {
        result.map_err(|stop| match stop {
            Stop::Error(error) => error,
            Stop::Broken(how) => {
                self.broken = true;
                outside.broken(how)
            }
        })
    }

    /// Find out about the pairs `first..end` and change nothing.
    ///
    /// # Errors
    ///
    /// What stands in the way, after the pairs in the tally.
    pub fn check<O: Outside>(
        &mut self,
        first: u32,
        end: u32,
        batch: &mut Batch<M>,
        outside: &mut O,
    ) -> (Tally, Result<(), O::Error>) {
        let mut tally = Tally::default();
        let result = self.check_all(first, end, batch, outside, &mut tally);
        (tally, self.end(result, outside))
    }

    fn check_all<O: Outside>(
        &self,
        first: u32,
        end: u32,
        batch: &mut Batch<M>,
        outside: &mut O,
        tally: &mut Tally,
    ) -> Result<(), Stop<O::Error>> {
        if self.broken {
            return Err(Stop::Broken(Broken::Already));
        }
        self.audit()?;
        loop {
            let at = first.saturating_add(tally.done);
            if at >= end {
                return Ok(());
            }
            outside.go_on(self.counts())?;
            let filled = pairs::fill(&self.runs, at, end, batch.pairs, &mut batch.runs);
            let what = (false, Way::There, at, filled);
            let reply = Batch::<M>::ask(&batch.runs, &mut batch.status, what, outside)?;

            // What the caller does not learn is not done: nothing has changed.
            let told = outside.tell(tally.done, reply.status);
            for status in reply.status.iter().filter(|_| told.is_ok()) {
                tally.done = tally.done.saturating_add(1);
                if *status != 0 {
                    tally.refused = tally.refused.saturating_add(1);
                }
            }
            reply.go_on(told)?;
        }
    }

    /// Swap the pairs from the cursor to `end`, see [`may_commit`](Self::may_commit).
    ///
    /// # Errors
    ///
    /// What stands in the way, after the pairs in the tally.
    pub fn commit<O: Outside>(
        &mut self,
        end: u32,
        batch: &mut Batch<M>,
        outside: &mut O,
    ) -> (Tally, Result<(), O::Error>) {
        let mut tally = Tally::default();
        let result = match self.phase {
            _ if self.broken => Err(Stop::Broken(Broken::Already)),
            Phase::RollingBack => Err(Stop::Broken(Broken::Invariant)),
            _ => self.swap_all(end, batch, outside, &mut tally),
        };
        (tally, self.end(result, outside))
    }

    fn swap_all<O: Outside>(
        &mut self,
        end: u32,
        batch: &mut Batch<M>,
        outside: &mut O,
        tally: &mut Tally,
    ) -> Result<(), Stop<O::Error>> {
        while self.counts.cursor < end {
            self.audit()?;
            outside.go_on(self.counts())?;
            let cursor = self.counts.cursor;
            let filled = pairs::fill(&self.runs, cursor, end, batch.pairs, &mut batch.runs);
            let what = (true, Way::There, cursor, filled);
            let reply = Batch::<M>::ask(&batch.runs, &mut batch.status, what, outside)?;

            let at = tally.done;
            for status in reply.status {
                self.advance(*status, tally)?;
            }
            let told = outside.tell(at, reply.status);
            reply.go_on(told)?;
        }
        self.audit()
    }

    /// The pair at the cursor was swapped or refused.
    fn advance<E>(&mut self, status: i32, tally: &mut Tally) -> Result<(), Stop<E>> {
        let pair = self.counts.cursor;
        let (count, told) = if status == 0 {
            (&mut self.counts.swapped, &mut tally.swapped)
        } else {
            mark(&mut self.refused, pair)?;
            (&mut self.counts.refused, &mut tally.refused)
        };

        *count = count.saturating_add(1);
        *told = told.saturating_add(1);
        tally.done = tally.done.saturating_add(1);
        self.counts.cursor = pair.saturating_add(1);
        self.phase = Phase::Committing;
        Ok(())
    }

    /// Put the pairs before the cursor back, the last ones first.
    ///
    /// # Errors
    ///
    /// What stands in the way, after the pairs in the tally.
    pub fn roll_back<O: Outside>(
        &mut self,
        batch: &mut Batch<M>,
        outside: &mut O,
    ) -> (Tally, Result<(), O::Error>) {
        let mut tally = Tally::default();
        let result = if self.broken {
            Err(Stop::Broken(Broken::Already))
        } else {
            self.put_all_back(batch, outside, &mut tally)
        };
        (tally, self.end(result, outside))
    }

    fn put_all_back<O: Outside>(
        &mut self,
        batch: &mut Batch<M>,
        outside: &mut O,
        tally: &mut Tally,
    ) -> Result<(), Stop<O::Error>> {
        loop {
            self.audit()?;
            outside.go_on(self.counts())?;
            let passed = self.retreat(batch.pairs)?;
            tally.done = tally.done.saturating_add(passed);
            if self.counts.cursor == 0 {
                return self.audit();
            }
            if passed == batch.pairs {
                continue;
            }

            let from = self.stops_at(batch, outside, tally)?;
            let result = self.ask_back(true, from, batch, outside, tally);
            // Now, and not when the loop comes round: a signal may end it first. Pairs that went
            // back below one that did not are marked, and passed over later.
            self.retreat(batch.pairs)?;
            if let Some((_, status)) = result? {
                // Something took hold of it since the check.
                return Err(outside.refused(status).into());
            }
        }
    }

    /// Where would the hypervisor stop us? The pairs above that go back; those below wait, so
    /// that the cursor says it all.
    fn stops_at<O: Outside>(
        &mut self,
        batch: &mut Batch<M>,
        outside: &mut O,
        tally: &mut Tally,
    ) -> Result<u32, Stop<O::Error>> {
        let cursor = self.counts.cursor;
        let mut from = cursor.saturating_sub(batch.pairs);

        loop {
            match self.ask_back(false, from, batch, outside, tally)? {
                None => return Ok(from),
                Some((pair, _)) if pair.saturating_add(1) < cursor => {
                    return Ok(pair.saturating_add(1));
                }
                // The last pair of a run comes after those that go back later, and these have
                // taken the room: fewer of them.
                Some((_, status)) if outside.lacks_room(status) && from.midpoint(cursor) > from => {
                    from = from.midpoint(cursor);
                }
                Some((_, status)) => return Err(outside.refused(status).into()),
            }
        }
    }

    /// Move the cursor down over what needs no hypercall, and return by how many pairs. At most
    /// `limit`, so that the caller can look up.
    fn retreat<E>(&mut self, limit: u32) -> Result<u32, Stop<E>> {
        let mut passed = 0u32;

        while let Some(pair) = self.counts.cursor.checked_sub(1) {
            if passed >= limit || !self.is_home(pair) {
                break;
            }
            if is_marked(&self.refused, pair) {
                count_down(&mut self.counts.refused)?;
            }
            self.counts.cursor = pair;
            self.phase = Phase::RollingBack;
            passed = passed.saturating_add(1);
        }
        Ok(passed)
    }

    /// One hypercall for pairs right below the cursor and not below `from`. Returns the last
    /// pair, by number, that was refused, and its status.
    fn ask_back<O: Outside>(
        &mut self,
        swap: bool,
        from: u32,
        batch: &mut Batch<M>,
        outside: &mut O,
        tally: &mut Tally,
    ) -> Result<Option<(u32, i32)>, Stop<O::Error>> {
        let cursor = self.counts.cursor;
        let filled = pairs::fill_back(
            &self.runs,
            from,
            cursor,
            batch.pairs,
            |pair| self.is_home(pair),
            &mut batch.runs,
            &mut batch.firsts,
        );
        let what = (swap, Way::Back, cursor, filled);
        let reply = Batch::<M>::ask(&batch.runs, &mut batch.status, what, outside)?;

        let mut refusal: Option<(u32, i32)> = None;
        let mut numbers = pairs::numbers(&batch.runs, &batch.firsts);
        for status in reply.status {
            // A status of no pair would be a mark that nobody makes.
            let pair = numbers.next().ok_or(Stop::Broken(Broken::Invariant))?;
            if *status != 0 {
                refusal = refusal.max(Some((pair, *status)));
            } else if swap {
                mark(&mut self.back, pair)?;
                count_down(&mut self.counts.swapped)?;
                tally.done = tally.done.saturating_add(1);
                tally.swapped = tally.swapped.saturating_add(1);
                self.phase = Phase::RollingBack;
            }
        }
        reply.result?;
        Ok(refusal)
    }
}
