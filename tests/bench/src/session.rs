// SPDX-License-Identifier: GPL-2.0-only

//! What the driver does with a list, without a kernel: the functions of `rust/core` in the
//! order in which `drivers/vmbeam/load.rs` and `swap.rs` call them, on memory of this
//! program. Copies from and to the caller are plain copies here.

use std::convert::Infallible;

use anyhow::anyhow;
use anyhow::ensure;
use anyhow::Result;
use vmbeam_core::frames;
use vmbeam_core::frames::Chunks;
use vmbeam_core::marks;
use vmbeam_core::pairs;
use vmbeam_core::progress::Progress;
use vmbeam_core::uapi;
use vmbeam_core::xen_abi::SwapRun;

/// The driver's limits: `MAX_ADD_RUNS`, `MAX_RUNS`, `BATCH_PAIRS`, `BATCH_RUNS`.
pub const ADD_RUNS: usize = 1 << 16;
const MAX_RUNS: usize = 1 << 20;
const BATCH_PAIRS: u32 = 4096;
const BATCH_RUNS: usize = 512;

/// The chunks of one side, by number.
#[derive(Debug, Default)]
struct Used(Vec<(u64, Vec<u64>)>);

impl Chunks for Used {
    type Error = Infallible;

    fn chunk(&mut self, number: u64) -> Result<&mut [u64], Infallible> {
        let at = frames::find(&self.0, number, |chunk| chunk.0).unwrap_or_else(|at| {
            self.0.insert(at, (number, vec![0; frames::WORDS]));
            at
        });
        Ok(&mut self.0[at].1)
    }
}

/// A session.
#[derive(Debug, Default)]
pub struct Session {
    runs: Vec<pairs::Run>,
    used: [Used; 2],
    refused: Vec<u64>,
    back: Vec<u64>,
    progress: Progress,
}

fn extend<T: Clone + Default>(
    list: &mut Vec<T>,
    more: usize,
    fill: impl FnOnce(&mut [T], usize) -> usize,
) {
    let len = list.len();
    list.resize(len + more, T::default());
    let filled = fill(list, len);
    list.truncate(filled);
}

impl Session {
    /// At most [`ADD_RUNS`] runs.
    pub fn add(&mut self, user: &[uapi::Run]) -> Result<()> {
        let new = user.to_vec();
        for run in &new {
            ensure!(pairs::validate(run).is_ok(), "a bad run");
        }
        let (nr_runs, nr_pairs) = pairs::size_with(&self.runs, &new);
        ensure!(
            nr_runs <= MAX_RUNS && nr_pairs <= pairs::MAX_PAIRS.into(),
            "{nr_runs} runs and {nr_pairs} pairs; the most is {MAX_RUNS} and {}",
            pairs::MAX_PAIRS
        );
        let words = marks::words(nr_pairs as u32);
        self.refused.resize(words, 0);
        self.back.resize(words, 0);
        let taken = frames::take(&mut self.used, &new);
        taken.map_err(|(run, _)| anyhow!("a frame of run {run} is named twice"))?;
        let nr = new.len();
        extend(&mut self.runs, nr, |r, len| pairs::append(r, len, &new));
        self.progress.loaded(nr_pairs as u32);
        Ok(())
    }

    /// A commit of everything with a hypercall that does nothing; the number of
    /// hypercalls. `user` is the caller's array of statuses.
    pub fn commit(&mut self, user: &mut [i32]) -> u64 {
        let mut batch = vec![SwapRun::default(); BATCH_RUNS];
        let mut status = vec![uapi::NOT_ATTEMPTED; BATCH_PAIRS as usize];
        for part in user.chunks_mut(status.len()) {
            part.copy_from_slice(&status[..part.len()]);
        }
        let mut calls = 0;
        let end = self.progress.pairs();
        while self.progress.cursor() < end {
            let from = self.progress.cursor();
            let filled = pairs::fill(&self.runs, from, end, BATCH_PAIRS, &mut batch);
            let done = &mut status[..filled.pairs as usize];
            done.fill(0);
            self.progress.advance(done, &mut self.refused);
            let from = from as usize;
            user[from..from + done.len()].copy_from_slice(done);
            calls += 1;
        }
        calls
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
            format!("MAX_RUNS: usize = 1 << {};", MAX_RUNS.ilog2()),
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
