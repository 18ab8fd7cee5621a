// SPDX-License-Identifier: GPL-2.0-only

//! The search for pages that differ, and so tell where a guest's memory is.

use crate::exchange::{both, refused, SwapError};
use crate::job::Job;
use crate::join::{sample, JoinedRun};
use crate::journal::Probe;
use crate::link::parts;
use crate::load::Loaded;
use vmbeam_agent_protocol::{Digest, PfnRun, PAGE};
use vmbeam_uapi::{Errno, NOT_ATTEMPTED};
use xxhash_rust::xxh3::xxh3_128;

/// Pages that are looked at in search of a difference, spread over the guest: most
/// pages of a guest that ran differ from those of one that did not.
const PROBE_SAMPLE: u64 = 256;
/// The same when none of these differs, and all pages are looked at.
const PROBE_BATCH: u64 = 4096;

impl Job<'_> {
    /// Pages that differ, of which two are kept: they tell where the memory is.
    pub(crate) fn probes(&mut self, loaded: &Loaded, there: u32) -> Result<Vec<Probe>, SwapError> {
        if self.route.relocates() {
            return self.probes_afar(loaded, there, Vec::new());
        }
        match self.differences(&samples(&loaded.good), there)? {
            found if found.is_empty() => self.search(&loaded.good, there),
            found => Ok(two_of(&found)),
        }
    }

    /// The same among all pages.
    pub(crate) fn search(
        &mut self,
        runs: &[JoinedRun],
        there: u32,
    ) -> Result<Vec<Probe>, SwapError> {
        let all: Vec<PfnRun> = runs.iter().map(PfnRun::from).collect();
        for batch in parts(&all, PROBE_BATCH) {
            let found = self.differences(&batch, there)?;
            if !found.is_empty() {
                return Ok(two_of(&found));
            }
        }
        Ok(Vec::new())
    }

    fn differences(&mut self, runs: &[PfnRun], there: u32) -> Result<Vec<Probe>, SwapError> {
        self.go_on()?;
        let here = self.guest.domid;
        let (from, to) = (&mut self.exec.from, &mut self.exec.to);
        let (a, b) = both(
            || from.talk(|l| l.digests(here, runs, |_| {})),
            || to.talk(|l| l.digests(there, runs, |_| {})),
        );
        Ok(different([a.map_err(refused)?, b.map_err(refused)?]))
    }

    /// The same without looking at pages that are not there yet at the destination, which would
    /// make each be there, with 511 neighbours: they read as zeroes. `known` are digests at the
    /// source of some pages.
    pub(crate) fn probes_afar(
        &mut self,
        loaded: &Loaded,
        there: u32,
        known: Vec<(u64, Digest)>,
    ) -> Result<Vec<Probe>, SwapError> {
        let here = self.guest.domid;
        let all = loaded.good.iter().map(PfnRun::from).collect::<Vec<_>>();
        let all = without(&all, &loaded.empty);
        let first = match known.is_empty() {
            true => vec![without(&samples(&loaded.good), &loaded.empty)],
            false => vec![Vec::new()],
        };
        let batches = first.into_iter().chain(parts(&all, PROBE_BATCH));
        let mut known = Some(known).filter(|k| !k.is_empty());
        for batch in batches {
            self.go_on()?;
            let digests = match known.take() {
                Some(known) => known,
                None if batch.is_empty() => continue,
                None => {
                    let from = &mut self.exec.from;
                    from.talk(|l| l.digests(here, &batch, |_| {}))
                        .map_err(refused)?
                }
            };
            let first = self.probe_among(loaded, there, digests.iter())?;
            let last = self.probe_among(loaded, there, digests.iter().rev())?;
            if let (Some(first), Some(last)) = (first, last) {
                return Ok(match first == last {
                    true => vec![first],
                    false => vec![first, last],
                });
            }
        }
        Ok(Vec::new())
    }

    /// The first of these that differs.
    fn probe_among<'d>(
        &mut self,
        loaded: &Loaded,
        there: u32,
        digests: impl Iterator<Item = &'d (u64, Digest)>,
    ) -> Result<Option<Probe>, SwapError> {
        let zeroes = zeroes();
        for &(pfn, source) in digests.filter(|(_, digest)| *digest != zeroes) {
            let Some(pair) = pair_of(&loaded.good, pfn) else {
                continue;
            };
            let moves = loop {
                match loaded.session.prepare(pair, 0, &mut [NOT_ATTEMPTED]) {
                    Ok(looked) if looked.done > 0 => break looked.moves,
                    Err(e) if e.errno != Errno::EINTR => return Err(refused(e)),
                    _ => {}
                }
            };
            let destination = match moves {
                0 => {
                    let page = [PfnRun { pfn, nr: 1 }];
                    let to = &mut self.exec.to;
                    let digests = to.talk(|l| l.digests(there, &page, |_| {}));
                    match digests.map_err(refused)?[..] {
                        [(_, digest)] => digest,
                        _ => continue,
                    }
                }
                _ => zeroes,
            };
            if source != destination {
                return Ok(Some(Probe {
                    pfn,
                    source,
                    destination,
                }));
            }
        }
        Ok(None)
    }
}

/// The digest of a page of zeroes.
fn zeroes() -> Digest {
    xxh3_128(&[0; PAGE]).to_le_bytes()
}

/// Which pair of a session's runs is of this page.
fn pair_of(runs: &[JoinedRun], pfn: u64) -> Option<u64> {
    let mut before = 0;
    for run in runs {
        if (run.pfn..run.pfn + u64::from(run.nr)).contains(&pfn) {
            return Some(before + pfn - run.pfn);
        }
        before += u64::from(run.nr);
    }
    None
}

/// Pages of the one that are not among the other; both are in order.
pub(crate) fn without(runs: &[PfnRun], these: &[PfnRun]) -> Vec<PfnRun> {
    let mut left = Vec::new();
    let mut these = these.iter().peekable();
    for run in runs {
        let end = run.pfn + u64::from(run.nr);
        let mut at = run.pfn;
        while at < end {
            while these.next_if(|t| t.pfn + u64::from(t.nr) <= at).is_some() {}
            let (stop, next) = match these.peek() {
                Some(t) if t.pfn < end => (t.pfn.max(at), t.pfn + u64::from(t.nr)),
                _ => (end, end),
            };
            if stop > at {
                left.push(PfnRun {
                    pfn: at,
                    // Within a run.
                    nr: (stop - at) as u32,
                });
            }
            at = next;
        }
    }
    left
}

/// Pages spread over all of these.
pub(crate) fn samples(runs: &[JoinedRun]) -> Vec<PfnRun> {
    let page = |pfn| PfnRun { pfn, nr: 1 };
    sample(runs, PROBE_SAMPLE).into_iter().map(page).collect()
}

/// Pages whose digests at the source and at the destination differ.
pub(crate) fn different([a, b]: [Vec<(u64, Digest)>; 2]) -> Vec<Probe> {
    a.into_iter()
        .zip(b)
        .filter(|(a, b)| a.1 != b.1)
        .map(|(a, b)| Probe {
            pfn: a.0,
            source: a.1,
            destination: b.1,
        })
        .collect()
}

/// The first and the last.
pub(crate) fn two_of(probes: &[Probe]) -> Vec<Probe> {
    match probes {
        [first, .., last] => vec![*first, *last],
        few => few.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn runs(pages: &std::collections::BTreeSet<u64>) -> Vec<PfnRun> {
        let mut runs: Vec<PfnRun> = Vec::new();
        for pfn in pages {
            match runs.last_mut() {
                Some(run) if run.pfn + u64::from(run.nr) == *pfn => run.nr += 1,
                _ => runs.push(PfnRun { pfn: *pfn, nr: 1 }),
            }
        }
        runs
    }

    proptest! {
        #[test]
        fn what_is_left_is_the_difference(
            all in proptest::collection::btree_set(0u64..64, 0..64),
            these in proptest::collection::btree_set(0u64..64, 0..64),
        ) {
            let expected: Vec<u64> = all.difference(&these).copied().collect();
            let left = without(&runs(&all), &runs(&these));
            let left: Vec<u64> = left.iter().flat_map(|r| r.pfn..r.pfn + u64::from(r.nr)).collect();
            prop_assert_eq!(left, expected);
        }
    }
}
