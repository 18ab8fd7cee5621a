// SPDX-License-Identifier: GPL-2.0-only

//! The pairs of a migration in a file of their own, written while its guest runs: the record
//! of what is swapped then only names the file, and says in which pages it differs.

use crate::join::{select, JoinedRun};
use serde::{Deserialize, Serialize};
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use vmbeam_agent_protocol::{Digest, PfnRun};
use vmbeam_control_protocol::SwapRun;
use xxhash_rust::xxh3::xxh3_128;

/// First bytes of such a file.
const MAGIC: [u8; 16] = *b"vmbeam-pairs-v1\0";
/// Bytes of a run: `pfn`, `gfn_a`, `gfn_b`, `nr`, little endian.
const RUN: usize = 28;

/// What is swapped, all of it or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pairs {
    /// Those that are not in the file.
    pub pairs: Vec<SwapRun>,
    /// The file, if there is one.
    #[serde(default)]
    pub filed: Option<Filed>,
}

/// Pairs in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filed {
    /// XXH3-128 of the file.
    pub digest: Digest,
    /// Pages of it that are not swapped, in ascending order.
    pub without: Vec<PfnRun>,
}

/// Write the pairs; gives the file's digest.
pub(super) fn encode(runs: &[JoinedRun], out: impl Write) -> io::Result<Digest> {
    let mut bytes = Vec::with_capacity(MAGIC.len() + runs.len() * RUN);
    bytes.extend(MAGIC);
    for r in runs {
        for n in [r.pfn, r.gfn_a, r.gfn_b] {
            bytes.extend(n.to_le_bytes());
        }
        bytes.extend(r.nr.to_le_bytes());
    }
    let mut out = BufWriter::new(out);
    out.write_all(&bytes)?;
    out.flush()?;
    Ok(xxh3_128(&bytes).to_le_bytes())
}

fn decode(bytes: &[u8], digest: &Digest) -> Result<Vec<JoinedRun>, String> {
    if xxh3_128(bytes).to_le_bytes() != *digest {
        return Err("it is damaged".into());
    }
    let runs = bytes
        .strip_prefix(&MAGIC)
        .filter(|runs| runs.len() % RUN == 0)
        .ok_or("it is of another format")?;
    let number = |b: &[u8]| u64::from_le_bytes(std::array::from_fn(|i| b[i]));
    let run = |r: &[u8]| JoinedRun {
        pfn: number(&r[..8]),
        gfn_a: number(&r[8..16]),
        gfn_b: number(&r[16..24]),
        nr: u32::from_le_bytes(std::array::from_fn(|i| r[24 + i])),
    };
    Ok(runs.chunks_exact(RUN).map(run).collect())
}

impl Pairs {
    /// All that is swapped, given what is in the file.
    pub(super) fn resolve(&self, file: &[u8]) -> Result<Vec<JoinedRun>, String> {
        let mut all: Vec<JoinedRun> = self.pairs.iter().map(JoinedRun::from).collect();
        if let Some(Filed { digest, without }) = &self.filed {
            let mut wanted: Vec<Range<u64>> = Vec::new();
            let mut at = 0;
            for gone in without {
                wanted.push(at..gone.pfn);
                at = gone.pfn.saturating_add(gone.nr.into());
            }
            wanted.push(at..u64::MAX);
            wanted.retain(|w| w.start < w.end);
            all.extend(cut(&decode(file, digest)?, &wanted));
            all.sort_unstable_by_key(|r| r.pfn);
        }
        Ok(all)
    }
}

/// The parts of runs that are within these ranges.
fn cut(runs: &[JoinedRun], wanted: &[Range<u64>]) -> Vec<JoinedRun> {
    let last = runs.last().map_or(0, |r| r.pfn + u64::from(r.nr));
    let within: Vec<Range<u64>> = wanted
        .iter()
        .map(|w| w.start..w.end.min(last))
        .filter(|w| w.start < w.end)
        .collect();
    select(runs, &within).0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn pages(runs: &[JoinedRun]) -> Vec<(u64, u64, u64)> {
        let each = |r: &JoinedRun| {
            let r = *r;
            (0..u64::from(r.nr)).map(move |i| (r.pfn + i, r.gfn_a + i, r.gfn_b + i))
        };
        runs.iter().flat_map(each).collect()
    }

    proptest! {
        /// What is read back is what was written, without these pages and with those.
        #[test]
        fn what_is_in_the_file_and_what_is_not(
            lengths in vec((1u64..9, 1u32..20), 0..20),
            without in vec(any::<bool>(), 400),
            damage in proptest::option::of((any::<prop::sample::Index>(), 1u8..)),
        ) {
            let mut pfn = 0;
            let mut runs = Vec::new();
            for (gap, nr) in lengths {
                pfn += gap;
                runs.push(JoinedRun { pfn, gfn_a: 7000 - pfn, gfn_b: 5 * pfn, nr });
                pfn += u64::from(nr);
            }
            let mut file = Vec::new();
            let digest = encode(&runs, &mut file).unwrap();
            let plus = SwapRun { pfn: pfn + 50, gfn_a: 1, gfn_b: 2, nr: 3 };
            let gone = |pfn: u64| without[pfn as usize];
            let pairs = Pairs {
                pairs: vec![plus],
                filed: Some(Filed {
                    digest,
                    without: (0..400).filter(|p| gone(*p)).map(|pfn| PfnRun { pfn, nr: 1 }).collect(),
                }),
            };
            let mut expected = pages(&runs);
            expected.retain(|p| !gone(p.0));
            expected.extend(pages(&[JoinedRun::from(&plus)]));
            prop_assert_eq!(pages(&pairs.resolve(&file).unwrap()), expected);
            if let Some((at, change)) = damage {
                *at.get_mut(&mut file) ^= change;
                prop_assert!(pairs.resolve(&file).is_err());
            }
        }
    }
}
