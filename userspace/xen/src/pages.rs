// SPDX-License-Identifier: GPL-2.0-only

//! From what the hypervisor says about frames to what may move.

use crate::sys;
use std::cmp::Reverse;
use std::collections::BTreeSet;

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;

/// A page's bytes.
pub type Page = [u8; PAGE_SIZE];

/// What a page of a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// Ordinary memory.
    Ordinary,
    /// A page table of some level.
    PageTable,
    /// The ring shared with xenstored.
    XenstoreRing,
    /// The ring shared with the console daemon.
    ConsoleRing,
    /// The start information.
    StartInfo,
    /// Part of a vCPU's descriptor table.
    Descriptors,
    /// Faulty, or claimed by two frames.
    Broken,
}

/// Pages that follow each other, in the guest and in its host VM. There can be one for each
/// page of a guest, so it is kept small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// The first one's number in the guest.
    pub pfn: u64,
    /// The frame behind it.
    pub gfn: u64,
    /// How many, at least 1.
    pub nr: u32,
    /// What they are.
    pub kind: PageKind,
}

impl PageRun {
    /// The page behind the last one.
    pub fn end(&self) -> u64 {
        self.pfn + u64::from(self.nr)
    }
}

/// Frames of a guest that have a special meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Special {
    /// Frame of the xenstore ring.
    pub xenstore: Option<u64>,
    /// Frame of the console ring.
    pub console: Option<u64>,
    /// Frame of the start information.
    pub start_info: Option<u64>,
    /// Frames of descriptor tables.
    pub descriptors: Vec<u64>,
}

impl Special {
    /// All of them, from the last frame to the first, each once.
    fn last_first(&self) -> Vec<(u64, PageKind)> {
        let mut named: Vec<_> = [
            (self.xenstore, PageKind::XenstoreRing),
            (self.console, PageKind::ConsoleRing),
            (self.start_info, PageKind::StartInfo),
        ]
        .into_iter()
        .filter_map(|(gfn, kind)| Some((gfn?, kind)))
        .chain(
            self.descriptors
                .iter()
                .map(|gfn| (*gfn, PageKind::Descriptors)),
        )
        .collect();
        named.sort_by_key(|n| Reverse(n.0));
        named.dedup_by_key(|n| n.0);
        named
    }
}

/// The frames of a guest. They are kept in runs: a guest of many GiB has millions of pages,
/// and memory for each of them would cost more than all else that is done with them.
#[derive(Clone, Debug, Default)]
pub struct Frames {
    runs: Vec<PageRun>,
    nr: u64,
}

impl Frames {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Append a frame with what the hypervisor says about it. Frames come in ascending
    /// order of gfn.
    pub fn push(&mut self, gfn: u64, pfn: u64, ty: u64) {
        let kind = if ty & sys::PFINFO_LTAB_MASK == sys::PFINFO_BROKEN {
            PageKind::Broken
        } else if ty & sys::PFINFO_LTABTYPE_MASK != 0 {
            PageKind::PageTable
        } else {
            PageKind::Ordinary
        };
        self.nr += 1;
        append(
            &mut self.runs,
            PageRun {
                pfn,
                gfn,
                nr: 1,
                kind,
            },
        );
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.nr
    }

    /// In how many runs they are.
    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    /// The page of a frame.
    pub fn pfn_of(&self, gfn: u64) -> Option<u64> {
        let run = self.runs.iter().find(|r| within(r.gfn, r.nr, gfn))?;
        Some(run.pfn + (gfn - run.gfn))
    }

    /// The first frame of a page.
    pub fn gfn_of(&self, pfn: u64) -> Option<u64> {
        let run = self.runs.iter().find(|r| within(r.pfn, r.nr, pfn))?;
        Some(run.gfn + (pfn - run.pfn))
    }

    /// The pages, in ascending order of pfn and without overlaps.
    ///
    /// The guest may change its entries in the machine-to-physical table, so two
    /// frames can claim to be the same page: then neither is taken at its word.
    pub fn classify(mut self, special: &Special) -> Vec<PageRun> {
        self.set_apart(special);
        let runs = in_order(self.runs);
        if runs.windows(2).any(|w| w[1].pfn < w[0].end()) {
            return one_each(&runs);
        }
        runs
    }

    /// Give frames with a special meaning runs of their own.
    fn set_apart(&mut self, special: &Special) {
        // The parts behind a frame go to the end of the list. Those before it are looked
        // at later, and still are in order.
        let in_order = self.runs.len();
        for (gfn, kind) in special.last_first() {
            let at = self.runs[..in_order].partition_point(|r| r.gfn + u64::from(r.nr) <= gfn);
            let Some(run) = self.runs[..in_order].get_mut(at) else {
                continue;
            };
            if run.gfn > gfn || run.kind != PageKind::Ordinary {
                continue;
            }
            // Less than its length.
            let before = (gfn - run.gfn) as u32;
            let one = PageRun {
                pfn: run.pfn + u64::from(before),
                gfn,
                nr: 1,
                kind,
            };
            let behind = PageRun {
                pfn: one.pfn + 1,
                gfn: gfn + 1,
                nr: run.nr - before - 1,
                kind: run.kind,
            };
            if before == 0 {
                *run = one;
            } else {
                run.nr = before;
                self.runs.push(one);
            }
            if behind.nr > 0 {
                self.runs.push(behind);
            }
        }
    }
}

fn within(first: u64, nr: u32, number: u64) -> bool {
    number
        .checked_sub(first)
        .is_some_and(|at| at < u64::from(nr))
}

/// Append a run; what continues the last one is merged with it.
fn append(runs: &mut Vec<PageRun>, run: PageRun) {
    if let Some(last) = runs.last_mut() {
        let nr = u64::from(last.nr);
        let follows = last.kind == run.kind
            && last.pfn.checked_add(nr) == Some(run.pfn)
            && last.gfn.checked_add(nr) == Some(run.gfn);
        if let (true, Some(nr)) = (follows, last.nr.checked_add(run.nr)) {
            last.nr = nr;
            return;
        }
    }
    runs.push(run);
}

/// Sort by pfn.
fn in_order(mut runs: Vec<PageRun>) -> Vec<PageRun> {
    if runs.is_sorted_by_key(|r| r.pfn) {
        return runs;
    }
    let top = runs.iter().map(|r| r.pfn).max().unwrap_or(0);
    // Single pages in no order: numbers without many holes, each once, are places. No need
    // to compare them.
    if top < 2 * runs.len() as u64 {
        let mut places = vec![None; top as usize + 1];
        let unique = runs
            .iter()
            .all(|r| places[r.pfn as usize].replace(*r).is_none());
        if unique {
            runs.clear();
            runs.extend(places.into_iter().flatten());
            return runs;
        }
    }
    runs.sort_unstable_by_key(|r| r.pfn);
    runs
}

/// Of pages with the same pfn leave the first one, as broken. A guest says which pfn its frames
/// have, so this takes memory by the number of runs, and not of pages.
fn one_each(runs: &[PageRun]) -> Vec<PageRun> {
    let mut cuts: Vec<(u64, usize)> = Vec::with_capacity(2 * runs.len());
    for (i, run) in runs.iter().enumerate() {
        cuts.extend([(run.pfn, i), (run.pfn + u64::from(run.nr), i)]);
    }
    cuts.sort_unstable();
    // Those that have pages here, the one of the first frames first: how far frames are from
    // pages is the same all along a run.
    let mut here: BTreeSet<(i64, usize)> = BTreeSet::new();
    let mut merged = Vec::new();
    let mut from = 0;
    for (pfn, i) in cuts {
        if let (Some((_, first)), true) = (here.first(), from < pfn) {
            let PageRun {
                pfn: start,
                gfn,
                kind,
                ..
            } = runs[*first];
            let run = PageRun {
                pfn: from,
                gfn: gfn + (from - start),
                // A part of that run.
                nr: (pfn - from) as u32,
                kind: if here.len() > 1 {
                    PageKind::Broken
                } else {
                    kind
                },
            };
            append(&mut merged, run);
        }
        from = pfn;
        let key = (runs[i].gfn.wrapping_sub(runs[i].pfn) as i64, i);
        if !here.remove(&key) {
            here.insert(key);
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn classified(frames: &[(u64, u64, u64)], special: &Special) -> Vec<PageRun> {
        let mut all = Frames::new();
        for (gfn, pfn, ty) in frames {
            all.push(*gfn, *pfn, *ty);
        }
        assert_eq!(all.count(), frames.len() as u64);
        all.classify(special)
    }

    #[test]
    fn tells_pages_apart() {
        let special = Special {
            xenstore: Some(103),
            console: Some(104),
            start_info: Some(105),
            descriptors: vec![106, 102, 500],
        };
        let frames = [
            (100, 0, 0),
            (101, 1, 1 << 28),
            (102, 2, (4 << 28) | (1 << 31)),
            (103, 3, 0),
            (104, 4, 0),
            (105, 5, 0),
            (106, 6, 0),
            (107, 7, sys::PFINFO_BROKEN),
            (110, 10, 0),
            (120, 10, 0),
        ];
        let pages = classified(&frames, &special);
        let kinds: Vec<_> = pages.iter().map(|p| (p.pfn, p.nr, p.kind)).collect();
        use PageKind::*;
        assert_eq!(
            kinds,
            [
                (0, 1, Ordinary),
                (1, 2, PageTable),
                (3, 1, XenstoreRing),
                (4, 1, ConsoleRing),
                (5, 1, StartInfo),
                (6, 1, Descriptors),
                (7, 1, Broken),
                (10, 1, Broken),
            ]
        );
    }

    /// A guest that says this has the agent list it, and not run out of memory.
    #[test]
    fn a_page_of_two_frames_costs_no_more_than_it_has_runs() {
        const LARGE: u32 = 1 << 31;
        let run = |pfn, gfn, nr| PageRun {
            pfn,
            gfn,
            nr,
            kind: PageKind::Ordinary,
        };
        let all = one_each(&[run(7, 1 << 40, LARGE), run(100, 50, 2), run(101, 9, 1)]);
        let found: Vec<_> = all.iter().map(|r| (r.pfn, r.gfn, r.nr, r.kind)).collect();
        use PageKind::*;
        let rest = (1 << 40) + 102 - 7;
        assert_eq!(
            found,
            [
                (7, 1 << 40, 93, Ordinary),
                (100, 50, 1, Broken),
                (101, 9, 1, Broken),
                (102, rest, LARGE - 95, Ordinary),
            ]
        );
    }

    #[test]
    fn finds_frames_and_pages() {
        let mut all = Frames::new();
        for (gfn, pfn) in [(100, 20), (101, 21), (105, 3)] {
            all.push(gfn, pfn, 0);
        }
        assert_eq!(
            [100, 101, 105].map(|g| all.pfn_of(g)),
            [Some(20), Some(21), Some(3)]
        );
        assert_eq!(
            [20, 21, 3].map(|p| all.gfn_of(p)),
            [Some(100), Some(101), Some(105)]
        );
        assert_eq!((all.pfn_of(102), all.gfn_of(22)), (None, None));
    }

    /// The same said plainly: page by page, a map, and nothing that is there twice is taken
    /// at its word.
    fn obvious(frames: &[(u64, u64, u64)], special: &Special) -> Vec<(u64, u64, PageKind)> {
        let mut pages = BTreeMap::new();
        for (gfn, pfn, ty) in frames {
            let kind = if ty & sys::PFINFO_LTAB_MASK == sys::PFINFO_BROKEN {
                PageKind::Broken
            } else if ty & sys::PFINFO_LTABTYPE_MASK != 0 {
                PageKind::PageTable
            } else if special.xenstore == Some(*gfn) {
                PageKind::XenstoreRing
            } else if special.console == Some(*gfn) {
                PageKind::ConsoleRing
            } else if special.start_info == Some(*gfn) {
                PageKind::StartInfo
            } else if special.descriptors.contains(gfn) {
                PageKind::Descriptors
            } else {
                PageKind::Ordinary
            };
            pages
                .entry(*pfn)
                .and_modify(|p: &mut (u64, u64, PageKind)| p.2 = PageKind::Broken)
                .or_insert((*pfn, *gfn, kind));
        }
        pages.into_values().collect()
    }

    /// Some frames in runs, with gaps between them: gap, length, pfn, type.
    fn runs() -> impl Strategy<Value = Vec<(u64, u64, u64, u64)>> {
        let kind = prop_oneof![
            6 => Just(0),
            1 => Just(1u64 << 28),
            1 => Just(sys::PFINFO_BROKEN)
        ];
        proptest::collection::vec((0u64..3, 1u64..7, 0u64..120, kind), 0..25)
    }

    proptest! {
        /// However the numbers lie, whatever is there twice, whatever is special.
        #[test]
        fn equals_the_obvious(
            runs in runs(),
            spacing in prop_oneof![Just(1u64), Just(7), Just(1 << 40)],
            unique in any::<bool>(),
            special in proptest::collection::vec(0u64..80, 3..9),
        ) {
            let mut frames = Vec::new();
            let mut seen = std::collections::HashSet::new();
            let mut gfn = 0;
            for (gap, nr, pfn, ty) in runs {
                gfn += gap;
                for i in 0..nr {
                    let pfn = pfn * spacing + i;
                    if seen.insert(pfn) || !unique {
                        frames.push((gfn, pfn, ty));
                    }
                    gfn += 1;
                }
            }
            let special = Special {
                xenstore: Some(special[0]),
                console: Some(special[1]),
                start_info: Some(special[2]),
                descriptors: special[3..].to_vec(),
            };
            let got = classified(&frames, &special);
            let pages: Vec<_> = got
                .iter()
                .flat_map(|r| (0..u64::from(r.nr)).map(|i| (r.pfn + i, r.gfn + i, r.kind)))
                .collect();
            prop_assert_eq!(pages, obvious(&frames, &special));
        }
    }
}
