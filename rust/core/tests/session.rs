// SPDX-License-Identifier: GPL-2.0-only

//! Whole sessions against a model of the hypervisor and of two domains.
//!
//! The loops here are those of the driver (`swap.rs`) without a kernel around
//! them. The model refuses pairs at random and fails at random in the middle of a
//! request; whatever happens, the frames must be where the cursor says.

use std::{
    collections::BTreeMap,
    convert::Infallible, //
};

use proptest::prelude::*;

use vmbeam_core::{
    frames::{
        self,
        Chunks,
        Refusal,
        WORDS, //
    },
    marks,
    pairs::{
        self,
        Run, //
    },
    progress::Progress,
    uapi,
    xen_abi::SwapRun, //
};

const BATCH_PAIRS: u32 = 13;
const BATCH_RUNS: usize = 4;

/// Two domains of 1024 frames; each frame has contents of its own.
struct Hypervisor {
    a: Vec<u32>,
    b: Vec<u32>,
    /// Decides about the next pair, over and over: 0 to swap, 1 to refuse, 2 to
    /// end the request with an error.
    fate: Vec<u8>,
    at: usize,
}

impl Hypervisor {
    fn new(fate: Vec<u8>) -> Self {
        Self {
            a: (0..1024).collect(),
            b: (5000..6024).collect(),
            fate,
            at: 0,
        }
    }

    /// Whether a signal came, which it does now and then.
    fn interrupted(&self) -> bool {
        self.fate[self.at % self.fate.len()] == 2
    }

    fn swap(&mut self, check: bool, runs: &[SwapRun], status: &mut Vec<i32>) -> bool {
        status.clear();
        for run in runs {
            assert!(run.nr > 0 && run.pad == 0);
            for i in 0..u64::from(run.nr) {
                let fate = self.fate[self.at % self.fate.len()];
                self.at += 1;
                match fate {
                    2 => return false,
                    1 => status.push(-16),
                    _ => {
                        if !check {
                            let (a, b) = ((run.gfn_a + i) as usize, (run.gfn_b + i) as usize);
                            std::mem::swap(&mut self.a[a], &mut self.b[b]);
                        }
                        status.push(0);
                    }
                }
            }
        }
        true
    }
}

/// As many chunks as there can be.
#[derive(Default)]
struct Used(BTreeMap<u64, Vec<u64>>);

impl Chunks for Used {
    type Error = Infallible;

    fn chunk(&mut self, number: u64) -> Result<&mut [u64], Infallible> {
        Ok(self.0.entry(number).or_insert_with(|| vec![0; WORDS]))
    }
}

#[derive(Default)]
struct Session {
    runs: Vec<Run>,
    used: [Used; 2],
    refused: Vec<u64>,
    back: Vec<u64>,
    progress: Progress,
}

impl Session {
    fn add(&mut self, new: &[uapi::Run]) -> Result<(), u32> {
        if let Err((index, refusal)) = frames::take(&mut self.used, new) {
            assert_eq!(refusal, Refusal::InUse);
            return Err(index);
        }
        let expected = pairs::size_with(&self.runs, new);
        let len = self.runs.len();
        self.runs.resize(len + new.len(), Run::default());
        let len = pairs::append(&mut self.runs, len, new);
        self.runs.truncate(len);
        let total = pairs::total(&self.runs);
        assert_eq!(expected, (len, u64::from(total)));
        self.refused.resize(marks::words(total), 0);
        self.back.resize(marks::words(total), 0);
        self.progress.loaded(total);
        Ok(())
    }

    /// One call of the driver's `COMMIT`, ending at the first failure.
    fn commit(&mut self, xen: &mut Hypervisor, end: u32) {
        let mut status = vec![];
        while self.progress.cursor() < end {
            let mut batch = [SwapRun::default(); BATCH_RUNS];
            let cursor = self.progress.cursor();
            let filled = pairs::fill(&self.runs, cursor, end, BATCH_PAIRS, &mut batch);
            assert!(filled.pairs > 0 && filled.pairs <= BATCH_PAIRS);
            let ok = xen.swap(false, &batch[..filled.runs], &mut status);
            self.progress.advance(&status, &mut self.refused);
            if !ok || xen.interrupted() {
                return;
            }
        }
    }

    /// One call of the driver's `ROLLBACK`. Returns whether it ended after a batch,
    /// by a signal or a failure, and so may have left pairs to pass over.
    fn rollback(&mut self, xen: &mut Hypervisor) -> bool {
        loop {
            let moved = self
                .progress
                .retreat(&self.refused, &self.back, BATCH_PAIRS);
            if self.progress.cursor() == 0 {
                return false;
            }
            if moved == BATCH_PAIRS {
                continue;
            }
            let Some(refusal) = self.request_back(xen, true, 0) else {
                return false;
            };
            let from = match refusal {
                Some(pair) if pair + 1 == self.progress.cursor() => return false,
                Some(pair) => pair + 1,
                None => 0,
            };
            let result = self.request_back(xen, false, from);
            self.progress
                .retreat(&self.refused, &self.back, BATCH_PAIRS);
            // A signal can end the call here.
            if result != Some(None) || xen.interrupted() {
                return true;
            }
        }
    }

    fn request_back(
        &mut self,
        xen: &mut Hypervisor,
        check: bool,
        from: u32,
    ) -> Option<Option<u32>> {
        let mut batch = [SwapRun::default(); BATCH_RUNS];
        let mut firsts = [0; BATCH_RUNS];
        let mut status = vec![];
        let cursor = self.progress.cursor();
        let (refused, back) = (&self.refused, &mut self.back);
        let filled = pairs::fill_back(
            &self.runs,
            from.max(cursor.saturating_sub(BATCH_PAIRS)),
            cursor,
            BATCH_PAIRS,
            |pair| marks::is_set(refused, pair) || marks::is_set(back, pair),
            &mut batch,
            &mut firsts,
        );
        assert!(filled.pairs > 0 && filled.pairs <= BATCH_PAIRS);
        let batch = &batch[..filled.runs];
        let ok = xen.swap(check, batch, &mut status);
        let refusal = pairs::numbers(batch, &firsts)
            .zip(&status)
            .filter(|(_, status)| **status != 0)
            .map(|(pair, _)| pair)
            .max();
        if !check {
            self.progress.put_back(batch, &firsts, &status, back);
        }
        ok.then_some(refusal)
    }

    /// The frames of each pair by number, from the runs.
    fn frames(&self) -> Vec<(usize, usize)> {
        frames(self.runs.iter().map(|run| (run.gfn_a, run.gfn_b, run.nr)))
    }

    /// Every frame is where the session says that it is.
    fn verify(&self, xen: &Hypervisor) {
        let fresh = Hypervisor::new(vec![0]);
        let (mut a, mut b) = (fresh.a, fresh.b);
        let mut swapped = 0;
        let mut refused = 0;
        for (pair, (frame_a, frame_b)) in (0u32..).zip(self.frames()) {
            let below = pair < self.progress.cursor();
            if below && marks::is_set(&self.refused, pair) {
                refused += 1;
            } else if below && !marks::is_set(&self.back, pair) {
                std::mem::swap(&mut a[frame_a], &mut b[frame_b]);
                swapped += 1;
            }
        }
        assert_eq!(self.progress.swapped(), swapped);
        assert_eq!(self.progress.refused(), refused);
        assert_eq!((&xen.a, &xen.b), (&a, &b));
    }
}

/// The frames of each pair of a list of runs.
fn frames(runs: impl Iterator<Item = (u64, u64, u32)>) -> Vec<(usize, usize)> {
    runs.flat_map(|(a, b, nr)| (0..u64::from(nr)).map(move |i| (a + i, b + i)))
        .map(|(a, b)| (a as usize, b as usize))
        .collect()
}

fn run(gfn_a: u64, gfn_b: u64, nr: u32) -> uapi::Run {
    uapi::Run {
        gfn_a,
        gfn_b,
        nr,
        reserved: 0,
    }
}

/// Runs that do not overlap, some of which follow on from the one before.
fn distinct_runs() -> impl Strategy<Value = Vec<uapi::Run>> {
    prop::collection::vec((0u64..3, 0u64..3, 1u32..9), 1..40).prop_map(|steps| {
        let (mut a, mut b) = (0, 400);
        steps
            .into_iter()
            .map(|(gap_a, gap_b, nr)| {
                let run = run(a + gap_a, b + gap_b, nr);
                a = run.gfn_a + u64::from(nr);
                b = run.gfn_b + u64::from(nr);
                run
            })
            .collect()
    })
}

/// Runs anywhere.
fn any_runs() -> impl Strategy<Value = Vec<uapi::Run>> {
    let one = (0u64..600, 0u64..600, 1u32..9).prop_map(|(a, b, nr)| run(a, b, nr));
    prop::collection::vec(one, 1..30)
}

proptest! {
    #[test]
    fn cursor_and_frames_agree(
        runs in distinct_runs(),
        shuffle in any::<bool>(),
        fate in prop::collection::vec(prop_oneof![8 => Just(0u8), 1 => Just(1), 1 => Just(2)], 1..200),
        stops in prop::collection::vec(0u32..100, 0..6),
    ) {
        let mut runs = runs;
        if shuffle {
            runs.reverse();
        }
        let mut session = Session::default();
        for chunk in runs.chunks(7) {
            prop_assert_eq!(session.add(chunk), Ok(()));
        }
        let total: u32 = runs.iter().map(|run| run.nr).sum();
        prop_assert_eq!(session.progress.pairs(), total);
        prop_assert_eq!(session.progress.state(), uapi::STATE_LOADED);

        let mut xen = Hypervisor::new(fate);
        for stop in stops {
            session.commit(&mut xen, stop.min(total));
            session.verify(&xen);
        }
        for _ in 0..20 {
            let cut_short = session.rollback(&mut xen);
            session.verify(&xen);
            // What could be passed over has been, up to the first pair that is still away.
            let mut progress = session.progress;
            let left = progress.retreat(&session.refused, &session.back, 1);
            prop_assert!(cut_short || left == 0);
        }

        // In the end nothing is refused any more.
        let began = session.progress.cursor() > 0;
        xen.fate = vec![0];
        session.rollback(&mut xen);
        prop_assert_eq!(session.progress.cursor(), 0);
        session.verify(&xen);
        if began {
            prop_assert_eq!(session.progress.state(), uapi::STATE_ROLLED_BACK);
        }
    }

    #[test]
    fn conflicts_are_found_and_named(calls in prop::collection::vec(any_runs(), 1..6)) {
        let mut session = Session::default();
        let mut taken: Vec<uapi::Run> = vec![];
        for call in calls {
            let mut known = taken.clone();
            let mut culprit = None;
            for (index, new) in (0u32..).zip(&call) {
                let overlap = |x: u64, nx: u32, y: u64, ny: u32| {
                    x < y + u64::from(ny) && y < x + u64::from(nx)
                };
                if known.iter().any(|old| {
                    overlap(old.gfn_a, old.nr, new.gfn_a, new.nr)
                        || overlap(old.gfn_b, old.nr, new.gfn_b, new.nr)
                }) {
                    culprit = Some(index);
                    break;
                }
                known.push(*new);
            }
            let before = session.frames();
            match culprit {
                Some(index) => {
                    prop_assert_eq!(session.add(&call), Err(index));
                    prop_assert_eq!(session.frames(), before);
                }
                None => {
                    prop_assert_eq!(session.add(&call), Ok(()));
                    taken = known;
                }
            }
            let expected = frames(taken.iter().map(|run| (run.gfn_a, run.gfn_b, run.nr)));
            prop_assert_eq!(session.frames(), expected);
        }
    }

    #[test]
    fn fill_is_the_stretch(runs in distinct_runs(), from in 0u32..300, len in 0u32..300) {
        let mut session = Session::default();
        session.add(&runs).unwrap();
        let to = (from + len).min(session.progress.pairs());
        let mut batch = [SwapRun::default(); BATCH_RUNS];
        let filled = pairs::fill(&session.runs, from, to, BATCH_PAIRS, &mut batch);
        let got = frames(batch[..filled.runs].iter().map(|run| (run.gfn_a, run.gfn_b, run.nr)));
        let all = session.frames();
        let end = from + filled.pairs;
        prop_assert_eq!(got.as_slice(), all.get(from as usize..end as usize).unwrap_or(&[]));
        prop_assert!(filled.pairs <= BATCH_PAIRS);
        prop_assert!(end == to.max(from) || filled.pairs == BATCH_PAIRS || filled.runs == BATCH_RUNS);
    }
}

#[test]
fn runs_that_follow_on_are_merged() {
    let mut session = Session::default();

    session.add(&[run(10, 20, 3), run(13, 23, 2)]).unwrap();
    session.add(&[run(15, 25, 1), run(16, 30, 1)]).unwrap();
    assert_eq!(session.runs.len(), 2);
    assert_eq!(session.progress.pairs(), 7);
}

#[test]
fn states() {
    let mut session = Session::default();
    let mut xen = Hypervisor::new(vec![0]);

    assert_eq!(session.progress.state(), uapi::STATE_EMPTY);
    session.add(&[run(0, 0, 4)]).unwrap();
    assert_eq!(session.progress.state(), uapi::STATE_LOADED);
    assert!(session.progress.may_add() && !session.progress.may_roll_back());
    session.commit(&mut xen, 2);
    assert_eq!(session.progress.state(), uapi::STATE_COMMITTING);
    assert!(!session.progress.may_add());
    session.commit(&mut xen, 4);
    assert_eq!(session.progress.state(), uapi::STATE_COMMITTED);
    assert!(!session.progress.may_commit());
    session.rollback(&mut xen);
    assert_eq!(session.progress.state(), uapi::STATE_ROLLED_BACK);
    assert!(!session.progress.may_roll_back() && !session.progress.may_commit());
}
