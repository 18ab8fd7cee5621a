// SPDX-License-Identifier: GPL-2.0-only

//! Frame lists: which frame of its host VM is behind each page of a guest.

use serde::{Deserialize, Serialize};

/// Most pages of one guest: 256 GiB.
pub const MAX_PAGES: u64 = 1 << 26;
/// Most runs of one guest's list, of either sort.
pub const MAX_RUNS: usize = 1 << 20;
/// Most runs of either sort in one message; keeps it well below the limit, and what it is
/// read into in the processor's caches.
pub const RUNS_PER_CHUNK: usize = 4 << 10;
/// No frame number reaches this: physical addresses have at most 52 bits.
pub const FRAME_LIMIT: u64 = 1 << 40;

/// Pages that follow each other in the guest and in its host VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameRun {
    /// First page, in the guest's own numbering.
    pub pfn: u64,
    /// First frame, in the host VM's numbering.
    pub gfn: u64,
    /// How many, at least 1.
    pub nr: u32,
}

/// Pages that follow each other in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PfnRun {
    /// First page.
    pub pfn: u64,
    /// How many, at least 1.
    pub nr: u32,
}

impl PfnRun {
    /// Whether this page is among them.
    pub fn has(&self, pfn: u64) -> bool {
        pfn >= self.pfn && pfn - self.pfn < u64::from(self.nr)
    }
}

/// Why a page of a guest may not move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// A page table: it holds frame numbers of this host VM.
    PageTable,
    /// The ring shared with xenstored.
    XenstoreRing,
    /// The ring shared with the console daemon.
    ConsoleRing,
    /// The page with the start information; it holds frame numbers.
    StartInfo,
    /// A page that the guest hypervisor itself uses: descriptor tables.
    Descriptors,
    /// No frame of the guest's own behind it.
    NotPresent,
    /// Two frames claim to be this page, or the frame is faulty.
    Broken,
}

impl Reason {
    /// A short, stable key for reports.
    pub fn key(self) -> &'static str {
        match self {
            Self::PageTable => "page_table",
            Self::XenstoreRing => "xenstore_ring",
            Self::ConsoleRing => "console_ring",
            Self::StartInfo => "start_info",
            Self::Descriptors => "descriptors",
            Self::NotPresent => "not_present",
            Self::Broken => "broken",
        }
    }

    /// Whether daemons of the management VM may write to the page while the
    /// guest is paused.
    pub fn is_shared(self) -> bool {
        matches!(self, Self::XenstoreRing | Self::ConsoleRing)
    }

    /// Whether the guest has a page there at all.
    pub fn is_present(self) -> bool {
        !matches!(self, Self::NotPresent | Self::Broken)
    }
}

/// Pages that may not move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excluded {
    /// First page.
    pub pfn: u64,
    /// How many, at least 1.
    pub nr: u32,
    /// Why.
    pub reason: Reason,
}

/// A guest's complete list, in ascending order, without overlaps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrameList {
    runs: Vec<FrameRun>,
    excluded: Vec<Excluded>,
}

/// Why a frame list is not acceptable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// A run of no pages.
    #[error("an empty run at pfn {0:#x}")]
    Empty(u64),
    /// A run that ends beyond the last possible number.
    #[error("a run at pfn {0:#x} that ends beyond the last possible frame")]
    Overflow(u64),
    /// Not in ascending order, or overlapping.
    #[error("the runs overlap or are out of order at pfn {0:#x}")]
    Order(u64),
    /// The same frame behind two pages.
    #[error("frame {0:#x} is behind two pages")]
    SharedFrame(u64),
    /// A frame that the host VM does not have.
    #[error("frame {gfn:#x} is beyond the host VM's memory, which ends at {end:#x}")]
    BeyondMemory {
        /// The offending frame.
        gfn: u64,
        /// First frame number that the host VM does not have.
        end: u64,
    },
    /// More pages than [`MAX_PAGES`].
    #[error("more than {MAX_PAGES} pages")]
    TooManyPages,
    /// More runs than [`MAX_RUNS`].
    #[error("more than {MAX_RUNS} runs")]
    TooManyRuns,
    /// The final count does not fit what was sent.
    #[error("{got} pages were sent, {announced} announced")]
    Count {
        /// Pages received.
        got: u64,
        /// Pages that the end message speaks of.
        announced: u64,
    },
}

impl FrameList {
    /// Pages that may move.
    pub fn runs(&self) -> &[FrameRun] {
        &self.runs
    }

    /// Pages that may not.
    pub fn excluded(&self) -> &[Excluded] {
        &self.excluded
    }

    /// Pages of both sorts that the list speaks of.
    pub fn pages(&self) -> u64 {
        total(self.runs.iter().map(|r| r.nr)) + total(self.excluded.iter().map(|e| e.nr))
    }

    /// Pages that may move.
    pub fn movable(&self) -> u64 {
        total(self.runs.iter().map(|r| r.nr))
    }
}

fn total(nr: impl Iterator<Item = u32>) -> u64 {
    nr.map(u64::from).sum()
}

/// End of a run, if it is not empty and within what frame numbers can be.
fn end(pfn: u64, first: u64, nr: u32) -> Result<u64, ListError> {
    if nr == 0 {
        return Err(ListError::Empty(pfn));
    }
    match first.checked_add(u64::from(nr)) {
        Some(end) if end <= FRAME_LIMIT => Ok(end),
        _ => Err(ListError::Overflow(pfn)),
    }
}

/// Puts a list together from pieces of unknown quality, or from single pages.
#[derive(Clone, Debug, Default)]
pub struct FrameListBuilder {
    list: FrameList,
    pages: u64,
    memory_end: Option<u64>,
}

impl FrameListBuilder {
    /// A builder that accepts every possible frame number.
    pub fn new() -> Self {
        Self::default()
    }

    /// A builder that only accepts frames below `end`.
    pub fn within(end: u64) -> Self {
        Self {
            memory_end: Some(end),
            ..Self::default()
        }
    }

    /// Make room for so many runs more, if a list can have them.
    pub fn expect(&mut self, more: usize) {
        let room = MAX_RUNS - self.list.runs.len();
        self.list.runs.reserve(more.min(room));
    }

    /// Pages received so far.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Pages with `nr` more, if that is not too many.
    fn with(&self, nr: u32) -> Result<u64, ListError> {
        let pages = self.pages + u64::from(nr);
        if pages > MAX_PAGES {
            return Err(ListError::TooManyPages);
        }
        Ok(pages)
    }

    /// Append pages that may move. They must come in ascending order of pfn;
    /// what continues the run before is merged with it.
    pub fn push_run(&mut self, run: FrameRun) -> Result<(), ListError> {
        end(run.pfn, run.pfn, run.nr)?;
        let gfn_end = end(run.pfn, run.gfn, run.nr)?;
        if let Some(end) = self.memory_end.filter(|end| gfn_end > *end) {
            return Err(ListError::BeyondMemory {
                gfn: gfn_end - 1,
                end,
            });
        }
        let pages = self.with(run.nr)?;
        let full = self.list.runs.len() >= MAX_RUNS;
        match self.list.runs.last_mut() {
            Some(last) if run.pfn < last.pfn + u64::from(last.nr) => {
                return Err(ListError::Order(run.pfn));
            }
            Some(last)
                if run.pfn - last.pfn == u64::from(last.nr)
                    && run.gfn == last.gfn + u64::from(last.nr) =>
            {
                // The sum is at most MAX_PAGES.
                last.nr += run.nr;
            }
            _ if full => return Err(ListError::TooManyRuns),
            _ => self.list.runs.push(run),
        }
        self.pages = pages;
        Ok(())
    }

    /// Append pages that may not move, under the same rules.
    pub fn push_excluded(&mut self, run: Excluded) -> Result<(), ListError> {
        end(run.pfn, run.pfn, run.nr)?;
        let pages = self.with(run.nr)?;
        let full = self.list.excluded.len() >= MAX_RUNS;
        match self.list.excluded.last_mut() {
            Some(last) if run.pfn < last.pfn + u64::from(last.nr) => {
                return Err(ListError::Order(run.pfn));
            }
            Some(last) if run.pfn - last.pfn == u64::from(last.nr) && run.reason == last.reason => {
                last.nr += run.nr;
            }
            _ if full => return Err(ListError::TooManyRuns),
            _ => self.list.excluded.push(run),
        }
        self.pages = pages;
        Ok(())
    }

    /// The list, if no page and no frame appears twice in it and it has as many
    /// pages as announced.
    pub fn finish(self, announced: u64) -> Result<FrameList, ListError> {
        if self.pages != announced {
            return Err(ListError::Count {
                got: self.pages,
                announced,
            });
        }
        if let Some(pfn) = self.list.ambiguous_page() {
            return Err(ListError::Order(pfn));
        }
        let frames = self.list.runs.iter().map(|r| (r.gfn, r.nr));
        let shared = match self.memory_end {
            Some(end) if end <= MARKED_MEMORY => marked_twice(frames, end),
            _ => overlap(frames.collect()),
        };
        if let Some(gfn) = shared {
            return Err(ListError::SharedFrame(gfn));
        }
        Ok(self.list)
    }
}

impl FrameList {
    /// A page that is both among those that may move and those that may not. Each of
    /// the two lists is in order and without overlaps.
    fn ambiguous_page(&self) -> Option<u64> {
        // A list has far fewer excluded pages than runs.
        let mut runs = self.runs.as_slice();
        self.excluded.iter().find_map(|gone| {
            let before = runs.partition_point(|r| r.pfn + u64::from(r.nr) <= gone.pfn);
            runs = &runs[before..];
            let next = runs.first()?;
            (next.pfn < gone.pfn + u64::from(gone.nr)).then_some(next.pfn.max(gone.pfn))
        })
    }
}

/// Up to here one bit for each frame is cheaper than sorting: 1 TiB, 32 MiB of bits.
const MARKED_MEMORY: u64 = 1 << 28;

/// A frame that two runs have, all of which end at `end` or before.
fn marked_twice(runs: impl Iterator<Item = (u64, u32)>, end: u64) -> Option<u64> {
    let mut marks = vec![0u64; end.div_ceil(64) as usize];
    for (first, nr) in runs {
        let mut at = first;
        let stop = first + u64::from(nr);
        while at < stop {
            let bit = at % 64;
            let nr = (64 - bit).min(stop - at);
            let mask = (u64::MAX >> (64 - nr)) << bit;
            let word = &mut marks[(at / 64) as usize];
            if *word & mask != 0 {
                return Some(at + (*word & mask).trailing_zeros() as u64 - bit);
            }
            *word |= mask;
            at += nr;
        }
    }
    None
}

/// The first number that two spans have in common.
fn overlap(mut spans: Vec<(u64, u32)>) -> Option<u64> {
    spans.sort_unstable();
    spans
        .windows(2)
        .find(|w| w[1].0 < w[0].0 + u64::from(w[0].1))
        .map(|w| w[1].0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(pfn: u64, gfn: u64, nr: u32) -> FrameRun {
        FrameRun { pfn, gfn, nr }
    }

    #[test]
    fn merges_neighbours() {
        let mut b = FrameListBuilder::new();
        for pfn in 0..10 {
            b.push_run(run(pfn, pfn + 100, 1)).unwrap();
        }
        b.push_run(run(10, 5, 1)).unwrap();
        let reason = Reason::PageTable;
        for pfn in 11..14 {
            b.push_excluded(Excluded { pfn, nr: 1, reason }).unwrap();
        }
        let list = b.finish(14).unwrap();
        assert_eq!(list.runs(), [run(0, 100, 10), run(10, 5, 1)]);
        assert_eq!(
            list.excluded(),
            [Excluded {
                pfn: 11,
                nr: 3,
                reason
            }]
        );
        assert_eq!((list.pages(), list.movable()), (14, 11));
    }

    #[test]
    fn refuses_bad_runs() {
        let mut b = FrameListBuilder::within(1000);
        assert_eq!(b.push_run(run(1, 1, 0)), Err(ListError::Empty(1)));
        assert_eq!(
            b.push_run(run(u64::MAX, 1, 1)),
            Err(ListError::Overflow(u64::MAX))
        );
        assert_eq!(
            b.push_run(run(1, u64::MAX - 1, u32::MAX)),
            Err(ListError::Overflow(1))
        );
        assert_eq!(
            b.push_run(run(1, FRAME_LIMIT, 1)),
            Err(ListError::Overflow(1))
        );
        let e = ListError::BeyondMemory {
            gfn: 1000,
            end: 1000,
        };
        assert_eq!(b.push_run(run(1, 990, 11)), Err(e));
        b.push_run(run(1, 990, 10)).unwrap();
        assert_eq!(b.push_run(run(10, 1, 1)), Err(ListError::Order(10)));
        let mut c = b.clone();
        c.push_run(run(11, 999, 1)).unwrap();
        assert_eq!(c.finish(11), Err(ListError::SharedFrame(999)));
        let mut c = b.clone();
        c.push_excluded(Excluded {
            pfn: 5,
            nr: 1,
            reason: Reason::Broken,
        })
        .unwrap();
        assert_eq!(c.finish(11), Err(ListError::Order(5)));
        assert_eq!(
            b.finish(11),
            Err(ListError::Count {
                got: 10,
                announced: 11
            })
        );
    }

    #[test]
    fn totals_are_bounded() {
        let mut b = FrameListBuilder::new();
        b.push_run(run(0, 0, MAX_PAGES as u32)).unwrap();
        let pfn = MAX_PAGES;
        assert_eq!(b.push_run(run(pfn, pfn, 1)), Err(ListError::TooManyPages));
        let mut b = FrameListBuilder::new();
        for i in 0..MAX_RUNS as u64 {
            b.push_run(run(3 * i, 3 * i, 1)).unwrap();
        }
        // The last one may still grow.
        let pfn = 3 * MAX_RUNS as u64 - 2;
        b.push_run(run(pfn, pfn, 1)).unwrap();
        assert_eq!(
            b.push_run(run(pfn + 2, pfn, 1)),
            Err(ListError::TooManyRuns)
        );
        let reason = Reason::PageTable;
        for i in 0..MAX_RUNS as u64 {
            b.push_excluded(Excluded {
                pfn: 3 * i + 2,
                nr: 1,
                reason,
            })
            .unwrap();
        }
        let more = |pfn| Excluded { pfn, nr: 1, reason };
        b.push_excluded(more(pfn + 2)).unwrap();
        assert_eq!(b.push_excluded(more(pfn + 4)), Err(ListError::TooManyRuns));
        let pages = b.pages();
        assert_eq!(pages, 2 * MAX_RUNS as u64 + 2);
        assert_eq!(b.finish(pages).unwrap().pages(), pages);
    }

    /// A number that two of these spans have in common, page by page.
    fn shared(spans: impl Iterator<Item = (u64, u32)>) -> std::collections::HashSet<u64> {
        let mut seen = std::collections::HashSet::new();
        spans
            .flat_map(|(first, nr)| (0..u64::from(nr)).map(move |i| first + i))
            .filter(|n| !seen.insert(*n))
            .collect()
    }

    proptest! {
        /// Both ways to find a frame that is named twice agree with counting.
        #[test]
        fn finds_what_is_named_twice(
            spans in proptest::collection::vec((0u64..600, 1u32..150), 0..12),
        ) {
            let twice = shared(spans.iter().copied());
            for found in [marked_twice(spans.iter().copied(), 750), overlap(spans.clone())] {
                match found {
                    Some(n) => prop_assert!(twice.contains(&n)),
                    None => prop_assert!(twice.is_empty()),
                }
            }
        }

        /// A page in both lists is found, and the first one is named.
        #[test]
        fn finds_pages_of_both_sorts(
            gaps in proptest::collection::vec((0u64..30, 1u32..30), 0..20),
            excluded in proptest::collection::vec((0u64..90, 1u32..30), 0..8),
        ) {
            let spread = |gaps: &[(u64, u32)]| -> Vec<(u64, u32)> {
                let mut at = 0;
                gaps.iter()
                    .map(|(gap, nr)| {
                        let first = at + gap;
                        at = first + u64::from(*nr);
                        (first, *nr)
                    })
                    .collect()
            };
            let (runs, excluded) = (spread(&gaps), spread(&excluded));
            let list = FrameList {
                runs: runs.iter().map(|(pfn, nr)| run(*pfn, 0, *nr)).collect(),
                excluded: excluded
                    .iter()
                    .map(|(pfn, nr)| Excluded { pfn: *pfn, nr: *nr, reason: Reason::Broken })
                    .collect(),
            };
            let both = shared(runs.iter().chain(&excluded).copied());
            prop_assert_eq!(list.ambiguous_page(), both.into_iter().min());
        }

        /// Whatever comes in, what comes out is in order, disjoint and bounded.
        #[test]
        fn finished_lists_are_sound(
            runs in proptest::collection::vec((0u64..300, 0u64..300, 0u32..20), 0..40),
            excluded in proptest::collection::vec((0u64..300, 0u32..20), 0..10),
            end in 0u64..400,
        ) {
            let mut b = FrameListBuilder::within(end);
            for (pfn, gfn, nr) in runs {
                let _ = b.push_run(run(pfn, gfn, nr));
            }
            for (pfn, nr) in excluded {
                let _ = b.push_excluded(Excluded { pfn, nr, reason: Reason::PageTable });
            }
            let pages = b.pages();
            if let Ok(list) = b.finish(pages) {
                let mut pfns = std::collections::HashSet::new();
                let mut gfns = std::collections::HashSet::new();
                for r in list.runs() {
                    for i in 0..u64::from(r.nr) {
                        prop_assert!(pfns.insert(r.pfn + i));
                        prop_assert!(gfns.insert(r.gfn + i));
                        prop_assert!(r.gfn + i < end);
                    }
                }
                for e in list.excluded() {
                    for i in 0..u64::from(e.nr) {
                        prop_assert!(pfns.insert(e.pfn + i));
                    }
                }
                prop_assert_eq!(pfns.len() as u64, list.pages());
            }
        }
    }
}
