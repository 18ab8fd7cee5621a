// SPDX-License-Identifier: GPL-2.0-only

//! What a session takes, and how it is cut for the hypervisor.

use proptest::prelude::*;
use vmbeam_core::{
    ledger::NotAdded,
    pairs,
    uapi,
    xen_abi::SwapRun, //
};

use super::world::*;

/// Runs anywhere.
fn any_runs() -> impl Strategy<Value = Vec<uapi::Run>> {
    let one = (0u64..600, 0u64..600, 1u32..9).prop_map(|(a, b, nr)| run(a, b, nr));
    prop::collection::vec(one, 1..30)
}

proptest! {
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
                    prop_assert_eq!(session.add(&call), Err(NotAdded::InUse(index)));
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
        let to = (from + len).min(session.counts().pairs);
        let mut batch = [SwapRun::default(); BATCH_RUNS];
        let filled = pairs::fill(session.ledger.runs(), from, to, BATCH_PAIRS, &mut batch);
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
    assert_eq!((session.counts().runs, session.counts().pairs), (2, 7));
}
