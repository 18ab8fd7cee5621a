// SPDX-License-Identifier: GPL-2.0-only

//! One hypercall: what is asked, what is answered, and whether that makes sense.

use super::{
    Broken,
    Counts,
    Memory, //
};
use crate::{
    pairs::Filled,
    xen_abi::SwapRun, //
};

/// What the loops deal with: a hypervisor, and a caller who waits.
pub trait Outside {
    /// What ends a loop.
    type Error;

    /// Comes before each hypercall.
    ///
    /// # Errors
    ///
    /// The loop shall end.
    fn go_on(&mut self, counts: Counts) -> Result<(), Self::Error>;

    /// One hypercall.
    fn call(&mut self, call: &Call<'_>, status: &mut [i32]) -> Answer<Self::Error>;

    /// Tell the caller the statuses of pairs, the first being the `at`th that it asked for.
    ///
    /// # Errors
    ///
    /// The loop shall end.
    fn tell(&mut self, at: u32, status: &[i32]) -> Result<(), Self::Error>;

    /// Whether a pair with this status may be taken when fewer others come before it.
    fn lacks_room(&self, status: i32) -> bool;

    /// The error to end with when a pair has this status.
    fn refused(&self, status: i32) -> Self::Error;

    /// The error to end with because the ledger is broken.
    fn broken(&mut self, how: Broken) -> Self::Error;
}

/// Which way pairs go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As in a commit.
    There,
    /// As in a rollback.
    Back,
}

/// What the hypervisor is asked for.
pub struct Call<'a> {
    /// To swap, and not merely to tell what a swap would do.
    pub swap: bool,
    /// Where to.
    pub way: Way,
    /// The cursor, for those who trace.
    pub cursor: u32,
    /// The pairs.
    pub runs: &'a [SwapRun],
    /// How many there are in `runs`.
    pub filled: Filled,
}

/// What the hypervisor says.
pub struct Answer<E> {
    /// Pairs dealt with. Can be more than 0 although `result` is an error.
    pub done: u64,
    /// Whether it did all.
    pub result: Result<(), E>,
}

/// Memory for hypercalls, which neither a commit nor a rollback can lack then.
pub struct Batch<M: Memory> {
    pub(super) runs: M::List<SwapRun>,
    /// The number of each run's first pair, for batches that are not one stretch.
    pub(super) firsts: M::List<u32>,
    pub(super) status: M::List<i32>,
    pub(super) pairs: u32,
}

/// A status that the hypervisor has not written: none is positive.
const UNWRITTEN: i32 = 1;

/// What ends a loop.
pub(super) enum Stop<E> {
    Error(E),
    Broken(Broken),
}

impl<E> From<E> for Stop<E> {
    fn from(error: E) -> Self {
        Self::Error(error)
    }
}

/// An answer that has been looked at.
pub(super) struct Heard<'a, E> {
    pub(super) status: &'a [i32],
    pub(super) result: Result<(), Stop<E>>,
}

impl<E> Heard<'_, E> {
    /// Go on, now that the caller was told, or could not be. That nobody knows any more what is
    /// swapped comes before what the caller lacks.
    ///
    /// # Errors
    ///
    /// The loop shall end.
    pub(super) fn go_on(self, told: Result<(), E>) -> Result<(), Stop<E>> {
        match self.result {
            Err(Stop::Broken(how)) => Err(Stop::Broken(how)),
            result => told.map_err(Stop::Error).and(result),
        }
    }
}

impl<M: Memory> Batch<M> {
    /// For this many runs and pairs in one hypercall.
    ///
    /// # Errors
    ///
    /// There is no memory.
    pub fn new(runs: usize, pairs: u32) -> Result<Self, M::Error> {
        let mut batch = Self {
            runs: M::List::default(),
            firsts: M::List::default(),
            status: M::List::default(),
            pairs,
        };
        M::grow(&mut batch.runs, runs)?;
        M::grow(&mut batch.firsts, runs)?;
        M::grow(&mut batch.status, pairs as usize)?;
        Ok(batch)
    }

    /// Ask for what is in the batch. What it says of pairs is to be written down before its
    /// result is looked at.
    pub(super) fn ask<'a, O: Outside>(
        runs: &[SwapRun],
        status: &'a mut [i32],
        (swap, way, cursor, filled): (bool, Way, u32, Filled),
        outside: &mut O,
    ) -> Result<Heard<'a, O::Error>, Stop<O::Error>> {
        let (Some(runs @ [_, ..]), Some(status)) = (
            runs.get(..filled.runs),
            status.get_mut(..filled.pairs as usize),
        ) else {
            return Err(Stop::Broken(Broken::Invariant));
        };
        status.fill(UNWRITTEN);
        let call = Call {
            swap,
            way,
            cursor,
            runs,
            filled,
        };
        let answer = outside.call(&call, status);

        let claimed = usize::try_from(answer.done)
            .ok()
            .and_then(|done| status.get(..done))
            .unwrap_or(&[]);
        let written = (claimed.iter().take_while(|status| **status <= 0))
            .fold(0usize, |written, _| written.saturating_add(1));
        let all = filled.pairs as usize;
        let sensible = written as u64 == answer.done && (answer.result.is_err() || written == all);
        Ok(Heard {
            status: claimed.get(..written).unwrap_or(&[]),
            result: if sensible {
                answer.result.map_err(Stop::Error)
            } else {
                Err(Stop::Broken(Broken::Answer))
            },
        })
    }
}
