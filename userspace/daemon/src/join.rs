// SPDX-License-Identifier: GPL-2.0-only

//! Joining two frame lists on the guest's page number.

use std::collections::BTreeMap;
use std::ops::Range;
use vmbeam_agent_protocol::{Excluded, FrameList, FrameRun, PfnRun, Reason};
use vmbeam_control_protocol::SwapRun;
use vmbeam_uapi::Run;

/// Pages that both guests have and that may move on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinedRun {
    /// First page.
    pub pfn: u64,
    /// First frame in the source's host VM.
    pub gfn_a: u64,
    /// First frame in the destination's host VM.
    pub gfn_b: u64,
    /// How many.
    pub nr: u32,
}

impl From<&JoinedRun> for Run {
    fn from(r: &JoinedRun) -> Self {
        Self {
            gfn_a: r.gfn_a,
            gfn_b: r.gfn_b,
            nr: r.nr,
            reserved: 0,
        }
    }
}

impl From<&SwapRun> for JoinedRun {
    fn from(r: &SwapRun) -> Self {
        Self {
            pfn: r.pfn,
            gfn_a: r.gfn_a,
            gfn_b: r.gfn_b,
            nr: r.nr,
        }
    }
}

impl From<&JoinedRun> for SwapRun {
    fn from(r: &JoinedRun) -> Self {
        Self {
            pfn: r.pfn,
            gfn_a: r.gfn_a,
            gfn_b: r.gfn_b,
            nr: r.nr,
        }
    }
}

impl From<&JoinedRun> for PfnRun {
    fn from(r: &JoinedRun) -> Self {
        Self {
            pfn: r.pfn,
            nr: r.nr,
        }
    }
}

/// Two lists joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Joined {
    /// What to swap, in ascending order of pfn.
    pub runs: Vec<JoinedRun>,
    /// How many pages that is.
    pub pages: u64,
    /// Pages of either guest that stay, by reason.
    pub kept: BTreeMap<String, u64>,
}

/// What a list says about some pages.
#[derive(Clone, Copy)]
enum Side {
    /// They may move; the first frame.
    Movable(u64),
    /// They may not.
    Excluded(Reason),
    /// The list does not speak of them.
    Absent,
}

/// What a list says from some page on.
struct Cursor<'a> {
    runs: &'a [FrameRun],
    excluded: &'a [Excluded],
}

impl<'a> Cursor<'a> {
    fn new(list: &'a FrameList) -> Self {
        Self {
            runs: list.runs(),
            excluded: list.excluded(),
        }
    }

    /// What the list says at `pfn`, and up to where that holds. It is never asked about
    /// an earlier page again.
    fn look(&mut self, pfn: u64) -> (Side, u64) {
        let end = |first: u64, nr: u32| first + u64::from(nr);
        while let [run, rest @ ..] = self.runs {
            if end(run.pfn, run.nr) > pfn {
                break;
            }
            self.runs = rest;
        }
        while let [gone, rest @ ..] = self.excluded {
            if end(gone.pfn, gone.nr) > pfn && gone.reason != Reason::NotPresent {
                break;
            }
            self.excluded = rest;
        }
        let run = self.runs.first();
        let run = run.map(|r| (r.pfn, end(r.pfn, r.nr), Side::Movable(r.gfn)));
        let excluded = self.excluded.first();
        let excluded = excluded.map(|e| (e.pfn, end(e.pfn, e.nr), Side::Excluded(e.reason)));
        // No page is in both.
        let next = run.into_iter().chain(excluded).min_by_key(|s| s.0);
        match next {
            None => (Side::Absent, u64::MAX),
            Some((start, ..)) if start > pfn => (Side::Absent, start),
            Some((start, end, Side::Movable(gfn))) => (Side::Movable(gfn + (pfn - start)), end),
            Some((_, end, side)) => (side, end),
        }
    }
}

/// Join the lists of the source `a` and the destination `b`.
///
/// A page that may not move on either side is counted once, with the source's
/// reason if it has one.
pub fn join(a: &FrameList, b: &FrameList) -> Joined {
    let mut joined = Joined {
        // Mostly the runs of one of the two, cut where the other's end.
        runs: Vec::with_capacity(a.runs().len().max(b.runs().len())),
        ..Joined::default()
    };
    let (mut a, mut b) = (Cursor::new(a), Cursor::new(b));
    let mut pfn = 0;
    loop {
        // Most of two lists. What a list does not let move is in none of its runs.
        if let ([x, rest_x @ ..], [y, rest_y @ ..]) = (a.runs, b.runs) {
            if (x.pfn, y.pfn, x.nr) == (pfn, pfn, y.nr) {
                push(&mut joined, pfn, x.gfn, y.gfn, x.nr.into());
                (a.runs, b.runs) = (rest_x, rest_y);
                pfn += u64::from(x.nr);
                continue;
            }
        }
        let (side_a, end_a) = a.look(pfn);
        let (side_b, end_b) = b.look(pfn);
        let end = end_a.min(end_b);
        let reason = match (side_a, side_b) {
            (Side::Absent, Side::Absent) if end == u64::MAX => return joined,
            (Side::Absent, Side::Absent) => None,
            (Side::Movable(gfn_a), Side::Movable(gfn_b)) => {
                push(&mut joined, pfn, gfn_a, gfn_b, end - pfn);
                None
            }
            (Side::Excluded(r), _) => Some(format!("{}_source", r.key())),
            (_, Side::Excluded(r)) => Some(format!("{}_destination", r.key())),
            (Side::Movable(_), Side::Absent) => Some("only_in_source".into()),
            (Side::Absent, Side::Movable(_)) => Some("only_in_destination".into()),
        };
        if let Some(reason) = reason {
            *joined.kept.entry(reason).or_default() += end - pfn;
        }
        pfn = end;
    }
}

fn push(joined: &mut Joined, pfn: u64, gfn_a: u64, gfn_b: u64, nr: u64) {
    joined.pages += nr;
    // A list has at most 2^26 pages, so a span fits.
    let nr = nr as u32;
    joined.runs.push(JoinedRun {
        pfn,
        gfn_a,
        gfn_b,
        nr,
    });
}

/// Of what can be swapped, what is to be: the pages in `wanted`, which are ranges
/// in ascending order. Also gives the wanted pages that cannot be swapped.
pub fn select(runs: &[JoinedRun], wanted: &[Range<u64>]) -> (Vec<JoinedRun>, Vec<PfnRun>) {
    let mut selected = Vec::new();
    let mut missing = Vec::new();
    let mut at = 0;
    for want in wanted {
        let mut pfn = want.start;
        while pfn < want.end {
            while runs.get(at).is_some_and(|r| r.pfn + u64::from(r.nr) <= pfn) {
                at += 1;
            }
            match runs.get(at) {
                Some(r) if r.pfn <= pfn => {
                    let end = want.end.min(r.pfn + u64::from(r.nr));
                    let skip = pfn - r.pfn;
                    selected.push(JoinedRun {
                        pfn,
                        gfn_a: r.gfn_a + skip,
                        gfn_b: r.gfn_b + skip,
                        // At most r.nr.
                        nr: (end - pfn) as u32,
                    });
                    pfn = end;
                }
                next => {
                    let end = next.map_or(want.end, |r| want.end.min(r.pfn));
                    push_pages(&mut missing, pfn, end);
                    pfn = end;
                }
            }
        }
    }
    (selected, missing)
}

/// The parts of `runs` whose pages are in none of `others`. Both are in ascending order.
pub fn beyond(runs: &[JoinedRun], others: &[JoinedRun]) -> Vec<JoinedRun> {
    let mut rest = Vec::new();
    let mut others = others;
    for run in runs {
        let end = run.pfn + u64::from(run.nr);
        let mut pfn = run.pfn;
        let mut push = |from: u64, to: u64| {
            if from < to {
                let skip = from - run.pfn;
                rest.push(JoinedRun {
                    pfn: from,
                    gfn_a: run.gfn_a + skip,
                    gfn_b: run.gfn_b + skip,
                    // At most run.nr.
                    nr: (to - from) as u32,
                });
            }
        };
        while let [other, after @ ..] = others {
            let other_end = other.pfn + u64::from(other.nr);
            if other.pfn >= end {
                break;
            }
            push(pfn, other.pfn);
            pfn = pfn.max(other_end);
            if other_end > end {
                break;
            }
            others = after;
        }
        push(pfn, end);
    }
    rest
}

/// A page of each of so many spots, spread evenly over all pages, the first and the last among
/// them.
pub fn sample(runs: &[JoinedRun], most: u64) -> Vec<u64> {
    let pages: u64 = runs.iter().map(|r| u64::from(r.nr)).sum();
    let nr = pages.min(most);
    let mut runs = runs.iter();
    let mut run = runs.next();
    let mut before = 0;
    let mut found = Vec::with_capacity(nr as usize);
    for i in 0..nr {
        let at = i * (pages - 1) / (nr - 1).max(1);
        while let Some(r) = run {
            if at < before + u64::from(r.nr) {
                found.push(r.pfn + (at - before));
                break;
            }
            before += u64::from(r.nr);
            run = runs.next();
        }
    }
    found
}

/// Append pages, in runs as long as their type allows.
fn push_pages(runs: &mut Vec<PfnRun>, mut pfn: u64, end: u64) {
    while pfn < end {
        let nr = u32::try_from(end - pfn).unwrap_or(u32::MAX);
        runs.push(PfnRun { pfn, nr });
        pfn += u64::from(nr);
    }
}

/// Split by the status of each page: what can be swapped, and the pages that
/// cannot.
pub fn split(runs: &[JoinedRun], status: &[i32]) -> (Vec<JoinedRun>, Vec<PfnRun>) {
    let mut good: Vec<JoinedRun> = Vec::new();
    let mut bad: Vec<PfnRun> = Vec::new();
    let mut at = 0;
    for run in runs {
        let end = at + run.nr as usize;
        let mut first = 0;
        for part in status[at..end].chunk_by(|a, b| (*a == 0) == (*b == 0)) {
            // Within a run.
            let nr = part.len() as u32;
            if part[0] == 0 {
                good.push(JoinedRun {
                    pfn: run.pfn + first,
                    gfn_a: run.gfn_a + first,
                    gfn_b: run.gfn_b + first,
                    nr,
                });
            } else {
                let pfn = run.pfn + first;
                bad.push(PfnRun { pfn, nr });
            }
            first += u64::from(nr);
        }
        at = end;
    }
    (good, bad)
}

/// The pages of a list whose contents can be compared: those that are there and
/// that no daemon of the management VM writes to while the guest is paused.
pub fn comparable(list: &FrameList) -> Vec<PfnRun> {
    let movable = list.runs().iter().map(|r| PfnRun {
        pfn: r.pfn,
        nr: r.nr,
    });
    let kept = list
        .excluded()
        .iter()
        .filter(|e| e.reason.is_present() && !e.reason.is_shared());
    let mut all: Vec<_> = movable
        .chain(kept.map(|e| PfnRun {
            pfn: e.pfn,
            nr: e.nr,
        }))
        .collect();
    all.sort_by_key(|r| r.pfn);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{HashMap, HashSet};
    use vmbeam_agent_protocol::{Excluded, FrameListBuilder, FrameRun};

    fn list(runs: &[(u64, u64, u32)], excluded: &[(u64, u32, Reason)]) -> FrameList {
        let mut b = FrameListBuilder::new();
        for (pfn, gfn, nr) in runs {
            b.push_run(FrameRun {
                pfn: *pfn,
                gfn: *gfn,
                nr: *nr,
            })
            .unwrap();
        }
        for (pfn, nr, reason) in excluded {
            b.push_excluded(Excluded {
                pfn: *pfn,
                nr: *nr,
                reason: *reason,
            })
            .unwrap();
        }
        let pages = b.pages();
        b.finish(pages).unwrap()
    }

    #[test]
    fn joins_on_the_pfn() {
        let a = list(
            &[(0, 1000, 10), (12, 2000, 8)],
            &[(10, 1, Reason::PageTable), (11, 1, Reason::XenstoreRing)],
        );
        let b = list(
            &[(0, 500, 4), (4, 700, 11), (15, 900, 2)],
            &[
                (17, 1, Reason::PageTable),
                (18, 1, Reason::NotPresent),
                (30, 3, Reason::NotPresent),
            ],
        );
        let j = join(&a, &b);
        let run = |pfn, gfn_a, gfn_b, nr| JoinedRun {
            pfn,
            gfn_a,
            gfn_b,
            nr,
        };
        assert_eq!(
            j.runs,
            [
                run(0, 1000, 500, 4),
                run(4, 1004, 700, 6),
                run(12, 2000, 708, 3),
                run(15, 2003, 900, 2)
            ]
        );
        assert_eq!(j.pages, 15);
        let kept: Vec<_> = j.kept.iter().map(|(k, v)| (k.as_str(), *v)).collect();
        assert_eq!(
            kept,
            [
                ("only_in_source", 2),
                ("page_table_destination", 1),
                ("page_table_source", 1),
                ("xenstore_ring_source", 1)
            ]
        );
        assert_eq!(comparable(&a).iter().map(|r| r.nr).sum::<u32>(), 19);
    }

    #[test]
    fn lists_of_unequal_length() {
        let a = list(&[(0, 0, 100)], &[]);
        let b = list(&[(0, 0, 60)], &[]);
        let j = join(&a, &b);
        assert_eq!((j.pages, j.kept["only_in_source"]), (60, 40));
        let j = join(&b, &a);
        assert_eq!((j.pages, j.kept["only_in_destination"]), (60, 40));
        assert_eq!(join(&list(&[], &[]), &list(&[], &[])), Joined::default());
    }

    /// A list from random page kinds: 0 absent, 1 excluded, else movable.
    fn random(kinds: &[u8], scramble: u64) -> FrameList {
        let mut b = FrameListBuilder::new();
        for (pfn, kind) in kinds.iter().enumerate() {
            let pfn = pfn as u64;
            match kind {
                0 => {}
                1 => b
                    .push_excluded(Excluded {
                        pfn,
                        nr: 1,
                        reason: Reason::PageTable,
                    })
                    .unwrap(),
                _ => b
                    .push_run(FrameRun {
                        pfn,
                        gfn: (pfn * 7 + scramble) ^ 1,
                        nr: 1,
                    })
                    .unwrap(),
            }
        }
        let pages = b.pages();
        b.finish(pages).unwrap()
    }

    fn pages_of(runs: &[JoinedRun]) -> Vec<(u64, u64, u64)> {
        runs.iter()
            .flat_map(|r| (0..u64::from(r.nr)).map(|i| (r.pfn + i, r.gfn_a + i, r.gfn_b + i)))
            .collect()
    }

    fn pfns_of(runs: &[PfnRun]) -> Vec<u64> {
        runs.iter()
            .flat_map(|r| (0..u64::from(r.nr)).map(|i| r.pfn + i))
            .collect()
    }

    fn per_page(list: &FrameList) -> HashMap<u64, u64> {
        list.runs()
            .iter()
            .flat_map(|r| (0..u64::from(r.nr)).map(|i| (r.pfn + i, r.gfn + i)))
            .collect()
    }

    proptest! {
        /// Every wanted page is selected or missing, and no other is.
        #[test]
        fn selects_what_is_wanted(
            kinds in proptest::collection::vec(0u8..3, 0..200),
            wanted in proptest::collection::vec(any::<bool>(), 0..250),
        ) {
            let list = random(&kinds, 1000);
            let runs = join(&list, &list).runs;
            let mut ranges: Vec<std::ops::Range<u64>> = Vec::new();
            for pfn in (0..wanted.len() as u64).filter(|i| wanted[*i as usize]) {
                match ranges.last_mut() {
                    Some(r) if r.end == pfn => r.end += 1,
                    _ => ranges.push(pfn..pfn + 1),
                }
            }
            let (selected, missing) = select(&runs, &ranges);
            let want = |pfn: u64| wanted.get(pfn as usize) == Some(&true);
            let expected: Vec<_> = pages_of(&runs).into_iter().filter(|p| want(p.0)).collect();
            prop_assert_eq!(pages_of(&selected), expected);
            let movable = per_page(&list);
            let rest: Vec<_> = (0..wanted.len() as u64)
                .filter(|pfn| want(*pfn) && !movable.contains_key(pfn))
                .collect();
            prop_assert_eq!(pfns_of(&missing), rest);
        }

        /// What is left of runs without others, and samples of them, page by page.
        #[test]
        fn is_beyond_others_and_is_sampled(
            kinds in proptest::collection::vec(0u8..3, 0..200),
            others in proptest::collection::vec(0u8..3, 0..200),
            most in 0u64..300,
        ) {
            let (list, other) = (random(&kinds, 1000), random(&others, 1));
            let (runs, others) = (join(&list, &list).runs, join(&other, &other).runs);
            let gone: HashSet<u64> = pages_of(&others).iter().map(|p| p.0).collect();
            let all = pages_of(&runs);
            let expected: Vec<_> = all.iter().filter(|p| !gone.contains(&p.0)).copied().collect();
            prop_assert_eq!(pages_of(&beyond(&runs, &others)), expected);
            let some = sample(&runs, most);
            let all: Vec<u64> = all.iter().map(|p| p.0).collect();
            prop_assert_eq!(some.len() as u64, most.min(all.len() as u64));
            prop_assert!(some.windows(2).all(|w| w[0] < w[1]));
            prop_assert!(some.iter().all(|pfn| all.binary_search(pfn).is_ok()));
            if some.len() > 1 {
                prop_assert_eq!((some.first(), some.last()), (all.first(), all.last()));
            }
        }

        /// Every page is on the side that its status says.
        #[test]
        fn splits_by_status(
            lengths in proptest::collection::vec(1u32..20, 0..20),
            statuses in proptest::collection::vec(-1i32..=0, 400),
        ) {
            let mut runs = Vec::new();
            let mut pfn = 0;
            for nr in lengths {
                runs.push(JoinedRun { pfn, gfn_a: pfn + 1000, gfn_b: pfn + 5000, nr });
                pfn += u64::from(nr) + 3;
            }
            let all = pages_of(&runs);
            let (good, bad) = split(&runs, &statuses[..all.len()]);
            let with = |ok: bool| -> Vec<_> {
                all.iter().zip(&statuses).filter(|p| (*p.1 == 0) == ok).map(|p| *p.0).collect()
            };
            prop_assert_eq!(pages_of(&good), with(true));
            prop_assert_eq!(pfns_of(&bad), with(false).into_iter().map(|p| p.0).collect::<Vec<_>>());
        }

        /// The same as joining page by page, and every page is accounted for.
        #[test]
        fn equals_the_obvious_join(
            a in proptest::collection::vec(0u8..5, 0..200),
            b in proptest::collection::vec(0u8..5, 0..200),
        ) {
            let (la, lb) = (random(&a, 1000), random(&b, 5000));
            let j = join(&la, &lb);
            let (pa, pb) = (per_page(&la), per_page(&lb));
            let mut got = HashMap::new();
            for r in &j.runs {
                for i in 0..u64::from(r.nr) {
                    prop_assert!(got.insert(r.pfn + i, (r.gfn_a + i, r.gfn_b + i)).is_none());
                }
            }
            let expected: HashMap<_, _> = pa
                .iter()
                .filter_map(|(pfn, ga)| pb.get(pfn).map(|gb| (*pfn, (*ga, *gb))))
                .collect();
            prop_assert_eq!(&got, &expected);
            let present = |kinds: &[u8]| -> HashSet<usize> {
                kinds.iter().enumerate().filter(|k| *k.1 != 0).map(|k| k.0).collect()
            };
            let all = present(&a).union(&present(&b)).count() as u64;
            prop_assert_eq!(j.pages + j.kept.values().sum::<u64>(), all);
        }
    }
}
