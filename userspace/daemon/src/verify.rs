// SPDX-License-Identifier: GPL-2.0-only

//! Comparing the pages of two guests before and after a swap.

use std::collections::HashMap;
use vmbeam_agent_protocol::Digest;

/// How many mismatches are listed.
const EXAMPLES: usize = 8;

/// Digests of a guest's pages.
pub(crate) type Digests = HashMap<u64, Digest>;

/// Both guests at one time.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) from: Digests,
    pub(crate) to: Digests,
}

/// What a comparison found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) verified: u64,
    pub(crate) unmoved_verified: u64,
    pub(crate) mismatches: u64,
    pub(crate) examples: Vec<u64>,
}

/// Every swapped page must be on one side what it was on the other; every
/// other page must be what it was.
pub(crate) fn compare(
    before: &Snapshot,
    after: &Snapshot,
    swapped: impl Fn(u64) -> bool,
) -> Verdict {
    let mut verdict = Verdict::default();
    let wrong = |verdict: &mut Verdict, pfn| {
        verdict.mismatches += 1;
        if verdict.examples.len() < EXAMPLES {
            verdict.examples.push(pfn);
        }
    };
    let mut pfns: Vec<u64> = before
        .from
        .keys()
        .chain(before.to.keys())
        .copied()
        .collect();
    pfns.sort_unstable();
    pfns.dedup();
    for pfn in pfns {
        let old = (before.from.get(&pfn), before.to.get(&pfn));
        let new = (after.from.get(&pfn), after.to.get(&pfn));
        if swapped(pfn) {
            if old.0.is_some() && old.1.is_some() && new == (old.1, old.0) {
                verdict.verified += 1;
            } else {
                wrong(&mut verdict, pfn);
            }
            continue;
        }
        for (old, new) in [(old.0, new.0), (old.1, new.1)] {
            match old {
                None => {}
                Some(_) if old == new => verdict.unmoved_verified += 1,
                Some(_) => wrong(&mut verdict, pfn),
            }
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digests(pages: &[(u64, u8)]) -> Digests {
        pages.iter().map(|(pfn, d)| (*pfn, [*d; 16])).collect()
    }

    #[test]
    fn finds_what_is_wrong() {
        let before = Snapshot {
            from: digests(&[(0, 1), (1, 2), (2, 3), (3, 4)]),
            to: digests(&[(0, 11), (1, 12), (2, 13)]),
        };
        let swapped = |pfn| pfn < 2;
        let good = Snapshot {
            from: digests(&[(0, 11), (1, 12), (2, 3), (3, 4)]),
            to: digests(&[(0, 1), (1, 2), (2, 13)]),
        };
        let v = compare(&before, &good, swapped);
        assert_eq!((v.verified, v.unmoved_verified, v.mismatches), (2, 3, 0));
        let bad = Snapshot {
            // 0 not moved, 2 changed, 3 gone.
            from: digests(&[(0, 1), (1, 12), (2, 9)]),
            to: digests(&[(0, 11), (1, 2), (2, 13)]),
        };
        let v = compare(&before, &bad, swapped);
        assert_eq!((v.verified, v.unmoved_verified, v.mismatches), (1, 1, 3));
        assert_eq!(v.examples, [0, 2, 3]);
    }
}
