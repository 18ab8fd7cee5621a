// SPDX-License-Identifier: GPL-2.0-only

//! What the driver does with a list, without a kernel: its ledger, on
//! memory of this program. Copies from and to the caller are plain copies here.

use std::convert::Infallible;

use anyhow::anyhow;
use anyhow::Result;
use vmbeam_core::frames;
use vmbeam_core::frames::Chunks;
use vmbeam_core::ledger::{Answer, Batch, Broken, Call, Counts, Ledger, Memory, Outside};
use vmbeam_core::uapi;
use vmbeamd::join::JoinedRun;

/// The driver's limits: `MAX_ADD_RUNS`, `BATCH_PAIRS`, `BATCH_RUNS`.
pub const ADD_RUNS: usize = 1 << 16;
const BATCH_PAIRS: u32 = 4096;
const BATCH_RUNS: usize = 512;

/// The chunks of one side, by number.
#[derive(Debug, Default)]
struct Frames(Vec<(u64, Box<[u64; frames::WORDS]>)>);

impl Chunks for Frames {
    type Error = Infallible;

    fn chunk(&mut self, number: u64) -> Result<&mut [u64; frames::WORDS], Infallible> {
        let at = frames::find(&self.0, number, |chunk| chunk.0).unwrap_or_else(|at| {
            self.0.insert(at, (number, Box::new([0; frames::WORDS])));
            at
        });
        Ok(&mut self.0[at].1)
    }

    fn prune(&mut self) {
        self.0
            .retain(|(_, words)| words.iter().any(|word| *word != 0));
    }
}

/// Memory of this program.
#[derive(Default)]
struct Heap;

impl Memory for Heap {
    type Error = Infallible;
    type List<T: Clone + Default> = Vec<T>;
    type Frames = Frames;

    fn grow<T: Clone + Default>(list: &mut Vec<T>, len: usize) -> Result<(), Infallible> {
        list.resize(len, T::default());
        Ok(())
    }

    fn truncate<T: Clone + Default>(list: &mut Vec<T>, len: usize) {
        list.truncate(len);
    }
}

/// A hypercall that does nothing, and the caller's array of statuses.
struct Nothing<'a> {
    calls: u64,
    user: &'a mut [i32],
}

impl Outside for Nothing<'_> {
    type Error = Broken;

    fn go_on(&mut self, _: Counts) -> Result<(), Broken> {
        Ok(())
    }

    fn call(&mut self, call: &Call<'_>, status: &mut [i32]) -> Answer<Broken> {
        self.calls += 1;
        status.fill(0);
        Answer {
            done: call.filled.pairs.into(),
            result: Ok(()),
        }
    }

    fn tell(&mut self, at: u32, status: &[i32]) -> Result<(), Broken> {
        self.user[at as usize..][..status.len()].copy_from_slice(status);
        Ok(())
    }

    fn lacks_room(&self, _: i32) -> bool {
        false
    }

    fn refused(&self, _: i32) -> Broken {
        Broken::Answer
    }

    fn broken(&mut self, how: Broken) -> Broken {
        how
    }
}

/// A session.
#[derive(Default)]
pub struct Session(Ledger<Heap>);

impl Session {
    /// At most [`ADD_RUNS`] runs.
    pub fn add(&mut self, user: &[uapi::Run]) -> Result<()> {
        let new = user.to_vec();
        self.0.add(&new).map_err(|why| anyhow!("{why:?}"))
    }

    /// All of these, in as many calls as that takes.
    pub fn add_all(&mut self, runs: &[JoinedRun]) -> Result<()> {
        let mut raw = Vec::new();
        runs.chunks(ADD_RUNS).try_for_each(|part| {
            raw.clear();
            raw.extend(part.iter().map(|r| uapi::Run {
                gfn_a: r.gfn_a,
                gfn_b: r.gfn_b,
                nr: r.nr,
                reserved: 0,
            }));
            self.add(&raw)
        })
    }

    /// A commit of everything with a hypercall that does nothing; the number of
    /// hypercalls. `user` is the caller's array of statuses.
    pub fn commit(&mut self, user: &mut [i32]) -> u64 {
        let Ok(mut batch) = Batch::new(BATCH_RUNS, BATCH_PAIRS);
        let mut outside = Nothing { calls: 0, user };
        let end = self.0.counts().pairs;
        let (_, result) = self.0.commit(end, &mut batch, &mut outside);
        debug_assert_eq!(result, Ok(()));
        outside.calls
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The limits are the driver's.
    #[test]
    fn has_the_limits_of_the_driver() {
        let text = include_str!("../../../drivers/vmbeam/session.rs");
        for limit in [
            format!("MAX_ADD_RUNS: u32 = 1 << {};", ADD_RUNS.ilog2()),
            format!("BATCH_PAIRS: u32 = {BATCH_PAIRS};"),
            format!("BATCH_RUNS: usize = {BATCH_RUNS};"),
        ] {
            assert!(text.contains(&limit), "the driver has no {limit}");
        }
    }

    #[test]
    fn takes_a_list_and_cuts_all_of_it() {
        let runs: Vec<_> = (0..100_000u64)
            .map(|i| uapi::Run {
                gfn_a: i * 8,
                gfn_b: (100_000 - i) * 8,
                nr: 7,
                reserved: 0,
            })
            .collect();
        let mut session = Session::default();
        runs.chunks(ADD_RUNS)
            .for_each(|part| session.add(part).unwrap());
        let mut status = vec![1; 700_000];
        assert_eq!(session.commit(&mut status), 100_000u64.div_ceil(512));
        assert!(status.iter().all(|s| *s == 0));
        assert!(Session::default().add(&[runs[0], runs[0]]).is_err());
    }
}
