// SPDX-License-Identifier: GPL-2.0-only

//! The order in which a call's frames are looked at.

use proptest::prelude::*;
use vmbeam_core::ranges;
use vmbeam_core::ranges::Candidate;
use vmbeam_core::ranges::Side;
use vmbeam_core::uapi::Run;

proptest! {
    #[test]
    fn candidates_are_in_order(
        starts in prop::collection::vec(prop_oneof![any::<u64>(), 0u64..300], 0..300),
    ) {
        let runs: Vec<Run> = starts.iter().map(|start| run(*start)).collect();
        let mut sorted = vec![Candidate::default(); runs.len()];
        let mut scratch = sorted.clone();
        ranges::candidates(&runs, Side::B, &mut sorted, &mut scratch);
        let mut expected: Vec<(u64, u32)> = starts.into_iter().zip(0..).collect();
        expected.sort();
        let sorted: Vec<(u64, u32)> = sorted.iter().map(|c| (c.start, c.index)).collect();
        prop_assert_eq!(sorted, expected);
    }
}

fn run(gfn_b: u64) -> Run {
    Run {
        gfn_a: 7,
        gfn_b,
        nr: 1,
        reserved: 0,
    }
}
