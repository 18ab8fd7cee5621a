// SPDX-License-Identifier: GPL-2.0-only

//! The runs of a frame list as bytes.
//!
//! Each run is three numbers: how far its first page is from the page after the run
//! before, the same of its first frame, and how many pages it has. The first two are
//! signed. All are LEB128, which is what the rest of a payload consists of, signed ones in
//! zigzag order. The first run follows one that ended at 0 and 0, so that every message can
//! be read by itself.
//!
//! A guest's pages mostly follow each other. Then a run that is somewhere else takes about
//! five bytes instead of nine, and less time to read.

use crate::list::{FrameRun, RUNS_PER_CHUNK};
use integer_encoding::VarInt;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

/// Most bytes of a run.
const MOST: usize = 10 + 10 + 5;

/// The numbers of the page and the frame that would follow.
#[derive(Clone, Copy, Default)]
struct Next {
    pfn: u64,
    gfn: u64,
}

impl Next {
    /// After this run. Whether a run is possible at all is not judged here.
    fn after(run: &FrameRun) -> Self {
        Self {
            pfn: run.pfn.wrapping_add(run.nr.into()),
            gfn: run.gfn.wrapping_add(run.nr.into()),
        }
    }
}

pub(crate) fn serialize<S: Serializer>(runs: &[FrameRun], to: S) -> Result<S::Ok, S::Error> {
    let mut bytes = vec![0; runs.len() * MOST];
    let mut at = 0;
    let mut next = Next::default();
    for run in runs {
        at += (run.pfn.wrapping_sub(next.pfn) as i64).encode_var(&mut bytes[at..]);
        at += (run.gfn.wrapping_sub(next.gfn) as i64).encode_var(&mut bytes[at..]);
        at += run.nr.encode_var(&mut bytes[at..]);
        next = Next::after(run);
    }
    to.serialize_bytes(&bytes[..at])
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<FrameRun>, D::Error> {
    let bytes = <&[u8]>::deserialize(from)?;
    unpack(bytes).ok_or_else(|| D::Error::invalid_length(bytes.len(), &"runs"))
}

fn unpack(mut bytes: &[u8]) -> Option<Vec<FrameRun>> {
    // A run has three bytes at least.
    let mut runs = Vec::with_capacity((bytes.len() / 3).min(RUNS_PER_CHUNK));
    let mut next = Next::default();
    while !bytes.is_empty() {
        let run = FrameRun {
            pfn: next.pfn.wrapping_add_signed(number(&mut bytes)?),
            gfn: next.gfn.wrapping_add_signed(number(&mut bytes)?),
            nr: number(&mut bytes)?,
        };
        next = Next::after(&run);
        runs.push(run);
    }
    Some(runs)
}

fn number<N: VarInt>(bytes: &mut &[u8]) -> Option<N> {
    let (number, size) = N::decode_var(bytes)?;
    *bytes = &bytes[size..];
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FromAgent;
    use proptest::prelude::*;
    use vmbeam_wire::MAX_PAYLOAD;

    fn payload(runs: Vec<FrameRun>) -> Vec<u8> {
        let excluded = Vec::new();
        let more = 0;
        let message = FromAgent::FramesChunk {
            runs,
            excluded,
            more,
        };
        postcard::to_stdvec(&message).unwrap()
    }

    #[test]
    fn has_the_documented_bytes() {
        let run = |pfn, gfn, nr| FrameRun { pfn, gfn, nr };
        let runs = vec![run(0, 0x1000, 512), run(512, 0x40, 1), run(520, 0x41, 1)];
        // 0, 0x1000, 512; 0, 0x40 - 0x1200, 1; 7, 0, 1.
        let bytes = [
            0, 0x80, 0x40, 0x80, 0x04, //
            0, 0xff, 0x46, 1, //
            14, 0, 1,
        ];
        assert_eq!(unpack(&bytes), Some(runs.clone()));
        // Message 2, the bytes, nothing that may not move, no more runs.
        let mut whole = vec![2, bytes.len() as u8];
        whole.extend(bytes);
        whole.extend([0, 0]);
        assert_eq!(payload(runs), whole);
    }

    #[test]
    fn the_largest_part_fits_into_a_message() {
        let far = |i| FrameRun {
            pfn: i * (u64::MAX / 2),
            gfn: i * (u64::MAX / 2),
            nr: u32::MAX,
        };
        let runs: Vec<_> = (0..RUNS_PER_CHUNK as u64).map(|i| far(i % 2)).collect();
        assert!(payload(runs).len() < MAX_PAYLOAD / 2);
    }

    proptest! {
        /// What was cut off, or has numbers that are too long, is refused.
        #[test]
        fn half_a_run_is_refused(runs in proptest::collection::vec(any::<(u64, u64, u32)>(), 1..9)) {
            let runs: Vec<_> =
                runs.into_iter().map(|(pfn, gfn, nr)| FrameRun { pfn, gfn, nr }).collect();
            let whole = payload(runs.clone());
            let bytes = &whole[2 + usize::from(whole[1] > 127)..whole.len() - 2];
            prop_assert_eq!(unpack(bytes), Some(runs));
            prop_assert_eq!(unpack(&bytes[..bytes.len() - 1]), None);
            let mut long = bytes.to_vec();
            long.extend([0x80; 11]);
            prop_assert_eq!(unpack(&long), None);
        }
    }
}
