// SPDX-License-Identifier: GPL-2.0-only

//! Runs of pairs: what is accepted, how they are merged, and how a stretch of
//! them is cut into one hypercall.
//!
//! Pairs are numbered in the order in which they were added. The list is sorted
//! by number by construction, so a pair is found by bisection.

use super::{
    uapi,
    xen_abi::SwapRun, //
};

/// Guest frame numbers are below this: the address of every frame fits in 64 bits.
pub const GFN_LIMIT: u64 = 1 << 52;

/// Most pairs in one session. Pair numbers fit in 32 bits.
pub const MAX_PAIRS: u32 = 1 << 28;

/// Most runs in one session: the list of them takes 24 MiB, and twice that when it
/// has just been enlarged.
pub const MAX_RUNS: usize = 1 << 20;

/// A run with the number of its first pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// First frame in domain A.
    pub gfn_a: u64,
    /// First frame in domain B.
    pub gfn_b: u64,
    /// Number of the first pair.
    pub first: u32,
    /// Number of pairs.
    pub nr: u32,
}

impl Run {
    /// Number of the first pair after this run.
    pub const fn end(&self) -> u32 {
        self.first.saturating_add(self.nr)
    }

    /// Whether the frames of `next` follow this run's in both domains.
    const fn continued_by(&self, next: &uapi::Run) -> bool {
        next.gfn_a.wrapping_sub(self.gfn_a) == self.nr as u64
            && next.gfn_b.wrapping_sub(self.gfn_b) == self.nr as u64
    }

    /// The pairs `first..end`, which must lie in this run, for the hypervisor.
    const fn cut(&self, first: u32, end: u32) -> SwapRun {
        let skip = first.saturating_sub(self.first) as u64;

        SwapRun {
            gfn_a: self.gfn_a.wrapping_add(skip),
            gfn_b: self.gfn_b.wrapping_add(skip),
            nr: end.saturating_sub(first),
            pad: 0,
        }
    }
}

/// Why a run is not acceptable, whatever else is in the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRun {
    /// It has no pairs, or its reserved field is not 0.
    Invalid,
    /// It ends beyond the last possible frame.
    Overflow,
}

/// Check one run of a caller on its own.
///
/// # Errors
///
/// See [`BadRun`].
pub fn validate(run: &uapi::Run) -> Result<(), BadRun> {
    if run.nr == 0 || run.reserved != 0 {
        return Err(BadRun::Invalid);
    }
    for gfn in [run.gfn_a, run.gfn_b] {
        match gfn.checked_add(u64::from(run.nr)) {
            Some(end) if end <= GFN_LIMIT => (),
            _ => return Err(BadRun::Overflow),
        }
    }
    Ok(())
}

/// Number of pairs in a session.
pub fn total(runs: &[Run]) -> u32 {
    runs.last().map_or(0, Run::end)
}

/// Runs and pairs that a session would have with `new` appended. The pairs are
/// counted without limit; the caller applies [`MAX_PAIRS`].
pub fn size_with(runs: &[Run], new: &[uapi::Run]) -> (usize, u64) {
    let mut len = runs.len();
    let mut pairs = u64::from(total(runs));
    let mut last = runs.last().copied();

    for run in new {
        pairs = pairs.saturating_add(u64::from(run.nr));
        last = match last {
            Some(prev) if prev.continued_by(run) => Some(Run {
                nr: prev.nr.saturating_add(run.nr),
                ..prev
            }),
            _ => {
                len = len.saturating_add(1);
                Some(Run {
                    gfn_a: run.gfn_a,
                    gfn_b: run.gfn_b,
                    first: 0,
                    nr: run.nr,
                })
            }
        };
    }
    (len, pairs)
}

/// Append `new` to the first `len` elements of `runs`, merging what follows on,
/// and return the new length. The caller brings room for all of `new` and has
/// kept to [`MAX_PAIRS`].
pub fn append(runs: &mut [Run], len: usize, new: &[uapi::Run]) -> usize {
    let mut len = len;

    for run in new {
        let last = len.checked_sub(1).and_then(|i| runs.get_mut(i));
        let first = last.as_deref().map_or(0, Run::end);

        match last {
            Some(prev) if prev.continued_by(run) => prev.nr = prev.nr.saturating_add(run.nr),
            _ => {
                if let Some(slot) = runs.get_mut(len) {
                    *slot = Run {
                        gfn_a: run.gfn_a,
                        gfn_b: run.gfn_b,
                        first,
                        nr: run.nr,
                    };
                    len = len.saturating_add(1);
                }
            }
        }
    }
    len
}

/// How many elements, all at the beginning of `list`, are `before` something. Not
/// the standard library's `partition_point()`: its arithmetic could panic in theory.
pub fn count_before<T>(list: &[T], before: impl Fn(&T) -> bool) -> usize {
    let (mut low, mut high) = (0usize, list.len());

    while low < high {
        let middle = low.midpoint(high);
        if list.get(middle).is_some_and(&before) {
            low = middle.saturating_add(1);
        } else {
            high = middle;
        }
    }
    low
}

/// How much of a batch is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filled {
    /// Runs.
    pub runs: usize,
    /// Pairs in them.
    pub pairs: u32,
}

/// Cut the pairs from `from` on, up to `to` and to `max_pairs` of them, into
/// `out`. They stay in order and nothing is left out, so pair `from + i` is the
/// batch's `i`th.
pub fn fill(runs: &[Run], from: u32, to: u32, max_pairs: u32, out: &mut [SwapRun]) -> Filled {
    let to = to.min(from.saturating_add(max_pairs));
    let start = count_before(runs, |run| run.end() <= from);
    let mut filled = Filled::default();

    for (run, slot) in runs.get(start..).unwrap_or(&[]).iter().zip(out) {
        let first = run.first.max(from);
        let end = run.end().min(to);
        if first >= end {
            break;
        }
        *slot = run.cut(first, end);
        filled.runs = filled.runs.saturating_add(1);
        filled.pairs = filled.pairs.saturating_add(slot.nr);
    }
    filled
}

/// Cut pairs below `to` and not below `from` into `out`, the last ones first and
/// without those that `skip` names. `firsts` receives the number of each cut's
/// first pair. At most `max_pairs` are taken.
pub fn fill_back(
    runs: &[Run],
    from: u32,
    to: u32,
    max_pairs: u32,
    skip: impl Fn(u32) -> bool,
    out: &mut [SwapRun],
    firsts: &mut [u32],
) -> Filled {
    let mut filled = Filled::default();
    let mut slots = out.iter_mut().zip(firsts);
    let after = count_before(runs, |run| run.first < to);

    for run in runs.get(..after).unwrap_or(&[]).iter().rev() {
        let floor = run.first.max(from);
        let mut end = run.end().min(to);

        while end > floor {
            let last = end.saturating_sub(1);
            if skip(last) {
                end = last;
                continue;
            }
            let left = max_pairs.saturating_sub(filled.pairs);
            if left == 0 {
                return filled;
            }
            let Some((slot, first)) = slots.next() else {
                return filled;
            };
            let floor = floor.max(end.saturating_sub(left));
            let mut start = last;
            while start > floor && !skip(start.saturating_sub(1)) {
                start = start.saturating_sub(1);
            }
            *slot = run.cut(start, end);
            *first = start;
            filled.runs = filled.runs.saturating_add(1);
            filled.pairs = filled.pairs.saturating_add(slot.nr);
            end = start;
        }
        if run.first <= from {
            break;
        }
    }
    filled
}

/// The number of each pair of a batch that [`fill_back`] made, in its order.
pub fn numbers<'a>(batch: &'a [SwapRun], firsts: &'a [u32]) -> impl Iterator<Item = u32> + 'a {
    batch
        .iter()
        .zip(firsts)
        .flat_map(|(run, first)| *first..first.saturating_add(run.nr))
}
