// SPDX-License-Identifier: GPL-2.0-only

//! The frames that a session uses on one side, as sorted ranges: finds a frame
//! that is named twice.

use super::uapi;

/// Frames `start..start + nr`, not empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// First frame.
    pub start: u64,
    /// Number of frames.
    pub nr: u64,
}

impl Range {
    const fn end(&self) -> u64 {
        self.start.saturating_add(self.nr)
    }

    const fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }
}

/// A range and which run of the call it comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    /// First frame.
    pub start: u64,
    /// Number of frames.
    pub nr: u32,
    /// Index of the run.
    pub index: u32,
}

impl Candidate {
    const fn range(&self) -> Range {
        Range {
            start: self.start,
            nr: self.nr as u64,
        }
    }
}

/// Which domain's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Domain A.
    A,
    /// Domain B.
    B,
}

/// Put the frames of `runs` on one side into `out`, in ascending order. `out` and
/// `scratch`, whose contents do not matter, must be as long as `runs`.
pub fn candidates(
    runs: &[uapi::Run],
    side: Side,
    out: &mut [Candidate],
    scratch: &mut [Candidate],
) {
    let mut index = 0u32;

    for (run, slot) in runs.iter().zip(out.iter_mut()) {
        *slot = Candidate {
            start: match side {
                Side::A => run.gfn_a,
                Side::B => run.gfn_b,
            },
            nr: run.nr,
            index,
        };
        index = index.saturating_add(1);
    }
    sort(out, scratch);
}

/// Sort by first frame, one byte after the other: a radix sort, since frame numbers are
/// short. Not the standard library's sort: that one panics when an order contradicts
/// itself, which this code may not even seem to do.
fn sort(list: &mut [Candidate], scratch: &mut [Candidate]) {
    if list.is_sorted_by_key(|c| c.start) {
        return;
    }
    // Bits that are not the same everywhere.
    let first = list.first().map_or(0, |c| c.start);
    let differ = list.iter().fold(0, |bits, c| bits | (c.start ^ first));
    let (mut from, mut to) = (list, scratch);
    let mut swapped = false;

    for byte in 0..8 {
        if byte_of(differ, byte) != 0 {
            distribute(from, to, byte);
            core::mem::swap(&mut from, &mut to);
            swapped = !swapped;
        }
    }
    if swapped {
        for (slot, sorted) in to.iter_mut().zip(from.iter()) {
            *slot = *sorted;
        }
    }
}

fn byte_of(start: u64, byte: usize) -> u8 {
    start.to_le_bytes().get(byte).copied().unwrap_or(0)
}

/// Put the elements of `from` into `to` in the order of one byte, and of their places
/// where that is the same.
fn distribute(from: &[Candidate], to: &mut [Candidate], byte: usize) {
    // How many have each value, then where the next one of each value goes.
    let mut places = [0u32; 256];
    let mut total = 0u32;

    for candidate in from {
        if let Some(nr) = places.get_mut(usize::from(byte_of(candidate.start, byte))) {
            *nr = nr.saturating_add(1);
        }
    }
    for place in &mut places {
        let nr = *place;
        *place = total;
        total = total.saturating_add(nr);
    }
    for candidate in from {
        if let Some(place) = places.get_mut(usize::from(byte_of(candidate.start, byte))) {
            if let Some(slot) = to.get_mut(*place as usize) {
                *slot = *candidate;
            }
            *place = place.saturating_add(1);
        }
    }
}

/// How many elements, all at the beginning of `list`, are `before` something. Not
/// the standard library's `partition_point()`: its arithmetic could panic in theory.
pub(super) fn count_before<T>(list: &[T], before: impl Fn(&T) -> bool) -> usize {
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

/// The same if that many, or fewer, are known to be: near ones are found fast.
fn count_before_from<T>(list: &[T], known: usize, before: impl Fn(&T) -> bool) -> usize {
    let (mut low, mut step) = (known, 1usize);

    while list.get(low.saturating_add(step)).is_some_and(&before) {
        low = low.saturating_add(step);
        step = step.saturating_mul(2);
    }
    let high = low.saturating_add(step).min(list.len());
    let rest = list.get(low..high).unwrap_or(&[]);
    low.saturating_add(count_before(rest, before))
}

/// Whether any of the runs before `limit` shares a frame with `used` or with
/// another run before `limit`.
fn conflict_before(used: &[Range], sorted: &[Candidate], limit: u32) -> bool {
    let (mut end, mut at) = (0, 0);

    for candidate in sorted.iter().filter(|c| c.index < limit) {
        let range = candidate.range();
        at = count_before_from(used, at, |u| u.end() <= range.start);

        if range.start < end || used.get(at).is_some_and(|u| u.overlaps(&range)) {
            return true;
        }
        end = range.end();
    }
    false
}

/// Index of the first run, in the order of the call, that names a frame which
/// `used` or an earlier run has.
pub fn first_conflict(used: &[Range], sorted: &[Candidate]) -> Option<u32> {
    let all = u32::try_from(sorted.len()).unwrap_or(u32::MAX);

    if !conflict_before(used, sorted, all) {
        return None;
    }

    // Bisect for the shortest beginning of the call that has a conflict: its
    // last run is the culprit. Only a failing call pays for it.
    let (mut good, mut bad) = (0, all);
    while bad.saturating_sub(good) > 1 {
        let middle = good.saturating_add(bad.saturating_sub(good) / 2);
        if conflict_before(used, sorted, middle) {
            bad = middle;
        } else {
            good = middle;
        }
    }
    Some(good)
}

/// Merge `sorted`, which has no conflict, into the first `len` elements of
/// `used` and return the new length. The caller brings `sorted.len()` more.
pub fn merge(used: &mut [Range], len: usize, sorted: &[Candidate]) -> usize {
    // From the back, so that nothing is overwritten before it has moved.
    let mut old = len;
    let mut to = len.saturating_add(sorted.len());

    for candidate in sorted.iter().rev() {
        while let Some(last) = old.checked_sub(1).and_then(|i| used.get(i)).copied() {
            if last.start < candidate.start {
                break;
            }
            old = old.saturating_sub(1);
            to = to.saturating_sub(1);
            store(used, to, last);
        }
        to = to.saturating_sub(1);
        store(used, to, candidate.range());
    }

    coalesce(used, len.saturating_add(sorted.len()))
}

/// Join ranges that touch; return how many are left.
fn coalesce(used: &mut [Range], len: usize) -> usize {
    let mut kept: usize = 0;

    for i in 0..len {
        let Some(range) = used.get(i).copied() else {
            break;
        };
        match kept.checked_sub(1).and_then(|k| used.get_mut(k)) {
            Some(prev) if prev.end() == range.start => prev.nr = prev.nr.saturating_add(range.nr),
            _ => {
                store(used, kept, range);
                kept = kept.saturating_add(1);
            }
        }
    }
    kept
}

fn store(used: &mut [Range], at: usize, range: Range) {
    if let Some(slot) = used.get_mut(at) {
        *slot = range;
    }
}
