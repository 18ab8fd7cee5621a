// SPDX-License-Identifier: GPL-2.0-only

//! The memory of a ledger.

use kernel::prelude::*;

use crate::{
    alloc,
    frames::{
        self,
        Chunks,
        WORDS, //
    },
    ledger::Memory,
};

/// Most chunks of one domain: the frames of 2 TiB. They take 64 MiB.
const MAX_CHUNKS: usize = 1 << 14;

/// Part of the frames, one bit each.
struct Chunk {
    number: u64,
    words: KVVec<u64>,
}

/// All chunks in which a frame is in use, by number.
#[derive(Default)]
pub(crate) struct Frames(KVVec<Chunk>);

impl Chunks for Frames {
    type Error = Error;

    /// # Errors
    ///
    /// [`ENOSPC`]: there are [`MAX_CHUNKS`] already. [`ENOMEM`].
    fn chunk(&mut self, number: u64) -> Result<&mut [u64; WORDS]> {
        let at = match frames::find(&self.0, number, |chunk| chunk.number) {
            Ok(at) => at,
            Err(at) => {
                if self.0.len() >= MAX_CHUNKS {
                    return Err(ENOSPC);
                }
                let words = alloc::list(0, WORDS)?;
                alloc::insert(&mut self.0, at, Chunk { number, words })?;
                at
            }
        };
        let chunk = self.0.get_mut(at).ok_or(EINVAL)?;
        chunk.words.as_mut_slice().try_into().or(Err(EINVAL))
    }

    fn prune(&mut self) {
        alloc::retain(&mut self.0, |chunk| {
            chunk.words.iter().any(|word| *word != 0)
        });
    }
}

/// Memory that is charged to the caller.
#[derive(Default)]
pub(crate) struct Charged;

impl Memory for Charged {
    type Error = Error;
    type List<T: Clone + Default> = KVVec<T>;
    type Frames = Frames;

    fn grow<T: Clone + Default>(list: &mut KVVec<T>, len: usize) -> Result {
        Ok(alloc::resize(list, len)?)
    }

    fn truncate<T: Clone + Default>(list: &mut KVVec<T>, len: usize) {
        alloc::truncate(list, len);
    }
}
