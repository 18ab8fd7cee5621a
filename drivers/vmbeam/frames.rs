// SPDX-License-Identifier: GPL-2.0-only

//! The frames that a session uses, one bit each: finds a frame that is named twice.
//!
//! Bits and not sorted ranges, because the frames of a guest can all be apart, and in
//! another order in each domain: looking at two bits of a pair takes a fraction of sorting
//! its frames into place twice. The bits are kept in chunks, so that memory is needed for
//! the part of a domain that is in use, wherever that is.

use super::{
    pairs,
    uapi, //
};

/// Frames in one chunk: 128 MiB of a domain.
pub const CHUNK: u64 = 1 << 15;

/// Words in one chunk.
pub const WORDS: usize = 512;

const _: () = assert!(WORDS as u64 * u64::BITS as u64 == CHUNK);

/// The chunks of one domain, in memory that the caller brings.
pub trait Chunks {
    /// Why there is no chunk.
    type Error;

    /// The words of a chunk, which are 0 at first. Cannot fail for a number that it
    /// has not failed for before.
    ///
    /// # Errors
    ///
    /// The chunk is a new one, for which there is no memory.
    fn chunk(&mut self, number: u64) -> Result<&mut [u64; WORDS], Self::Error>;

    /// Drop all chunks whose words are 0.
    fn prune(&mut self);
}

/// Where a chunk is among others, which are in the order of their numbers, or where it
/// would have to be.
///
/// # Errors
///
/// It is not there.
pub fn find<T>(chunks: &[T], wanted: u64, number: impl Fn(&T) -> u64) -> Result<usize, usize> {
    // Mostly no number is left out.
    let first = chunks.first().map_or(0, &number);
    let guess = wanted.wrapping_sub(first) as usize;
    if chunks
        .get(guess)
        .is_some_and(|chunk| number(chunk) == wanted)
    {
        return Ok(guess);
    }

    let at = pairs::count_before(chunks, |chunk| number(chunk) < wanted);
    match chunks.get(at) {
        Some(chunk) if number(chunk) == wanted => Ok(at),
        _ => Err(at),
    }
}

/// Why frames are not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTaken<E> {
    /// One of them is in use.
    InUse,
    /// There is no chunk for one of them.
    NoChunk(E),
    /// And others, which had been taken, could not be given back.
    Kept,
}

impl<E> From<E> for NotTaken<E> {
    fn from(error: E) -> Self {
        Self::NoChunk(error)
    }
}

/// Take the frames of `runs`, which have been found valid, in A and in B: all or none.
///
/// # Errors
///
/// The index of the first run with a frame that an earlier run has or that was in use
/// before, or that there is no memory for; or anything, with [`NotTaken::Kept`].
pub fn take<C: Chunks>(
    used: &mut [C; 2],
    runs: &[uapi::Run],
) -> Result<(), (u32, NotTaken<C::Error>)> {
    let mut index = 0u32;

    for run in runs {
        if let Err(why) = take_run(used, run) {
            let result = give_back(used, runs, index).and(Err(why));
            // What is not taken takes no memory, and none of the chunks that there can be.
            used.iter_mut().for_each(Chunks::prune);
            return result.map_err(|why| (index, why));
        }
        index = index.saturating_add(1);
    }
    Ok(())
}

/// Those of the first `nr` runs.
fn give_back<C: Chunks>(
    [a, b]: &mut [C; 2],
    runs: &[uapi::Run],
    nr: u32,
) -> Result<(), NotTaken<C::Error>> {
    for run in runs.iter().take(nr as usize) {
        give_back_side(a, run.gfn_a, run.nr)?;
        give_back_side(b, run.gfn_b, run.nr)?;
    }
    Ok(())
}

fn take_run<C: Chunks>([a, b]: &mut [C; 2], run: &uapi::Run) -> Result<(), NotTaken<C::Error>> {
    take_side(a, run.gfn_a, run.nr)?;
    take_side(b, run.gfn_b, run.nr)
        .or_else(|why| give_back_side(a, run.gfn_a, run.nr).and(Err(why)))
}

fn take_side<C: Chunks>(side: &mut C, first: u64, nr: u32) -> Result<(), NotTaken<C::Error>> {
    let mut taken = 0u32;

    for part in parts(first, nr) {
        if let Err(why) = take_part(side, part) {
            return give_back_side(side, first, taken).and(Err(why));
        }
        taken = taken.saturating_add(part.nr);
    }
    Ok(())
}

fn take_part<C: Chunks>(side: &mut C, part: Part) -> Result<(), NotTaken<C::Error>> {
    if bits(side, part)?.any(|(mask, word)| *word & mask != 0) {
        return Err(NotTaken::InUse);
    }
    for (mask, word) in bits(side, part)? {
        *word |= mask;
    }
    Ok(())
}

/// The chunks of frames that were taken exist.
fn give_back_side<C: Chunks>(side: &mut C, first: u64, nr: u32) -> Result<(), NotTaken<C::Error>> {
    for part in parts(first, nr) {
        for (mask, word) in bits(side, part).or(Err(NotTaken::Kept))? {
            *word &= !mask;
        }
    }
    Ok(())
}

/// The words of a part, each after its bits in it.
fn bits<C: Chunks>(
    side: &mut C,
    part: Part,
) -> Result<impl Iterator<Item = (u64, &mut u64)>, C::Error> {
    let words = side.chunk(part.chunk)?;
    Ok(masks(part).zip(words.iter_mut().skip(part.word)))
}

/// Frames of one chunk.
#[derive(Clone, Copy)]
struct Part {
    /// Number of the chunk.
    chunk: u64,
    /// Index of the first word.
    word: usize,
    /// First bit in that word.
    bit: u32,
    /// Frames.
    nr: u32,
}

/// Cut frames by chunks.
fn parts(first: u64, nr: u32) -> impl Iterator<Item = Part> {
    let (mut first, mut left) = (first, nr);

    core::iter::from_fn(move || {
        let within = first % CHUNK;
        // At most a chunk, so it fits.
        let nr = left.min(CHUNK.saturating_sub(within) as u32);
        let part = Part {
            chunk: first / CHUNK,
            word: (within / u64::from(u64::BITS)) as usize,
            bit: (within % u64::from(u64::BITS)) as u32,
            nr,
        };
        first = first.saturating_add(nr.into());
        left = left.saturating_sub(nr);
        (nr > 0).then_some(part)
    })
}

/// The bits of a part in each word from its first one on.
fn masks(part: Part) -> impl Iterator<Item = u64> {
    let (mut bit, mut left) = (part.bit, part.nr);

    core::iter::from_fn(move || {
        let nr = left.min(u64::BITS.saturating_sub(bit));
        let mask = u64::MAX.checked_shr(u64::BITS.saturating_sub(nr))?;
        let mask = mask.checked_shl(bit)?;
        left = left.saturating_sub(nr);
        bit = 0;
        Some(mask)
    })
}
