// SPDX-License-Identifier: GPL-2.0-only

//! One bit a pair, in memory that the caller brings.
//!
//! A bitmap and not a list of ranges: its size is known as soon as the runs are,
//! so recording what a hypercall did can never fail for lack of memory.

/// Pairs in one word.
const WORD: u32 = u64::BITS;

/// Words needed for `pairs` marks.
pub const fn words(pairs: u32) -> usize {
    pairs.div_ceil(WORD) as usize
}

/// Whether `pair` is marked. A pair beyond the memory is not.
pub fn is_set(marks: &[u64], pair: u32) -> bool {
    marks
        .get((pair / WORD) as usize)
        .is_some_and(|word| (word >> (pair % WORD)) & 1 != 0)
}

/// Mark `pair`. A pair beyond the memory is ignored.
pub fn set(marks: &mut [u64], pair: u32) {
    if let Some(word) = marks.get_mut((pair / WORD) as usize) {
        *word |= 1 << (pair % WORD);
    }
}
