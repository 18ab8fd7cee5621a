// SPDX-License-Identifier: GPL-2.0-only

//! Frames taken and refused, against a set of them.

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::collections::HashSet;
use vmbeam_core::frames;
use vmbeam_core::frames::Chunks;
use vmbeam_core::frames::NotTaken;
use vmbeam_core::frames::CHUNK;
use vmbeam_core::frames::WORDS;
use vmbeam_core::uapi::Run;

/// With room for so many chunks.
#[derive(Clone, Debug)]
struct Room(usize, BTreeMap<u64, [u64; WORDS]>);

impl Chunks for Room {
    type Error = ();

    fn chunk(&mut self, number: u64) -> Result<&mut [u64; WORDS], ()> {
        if self.1.len() == self.0 && !self.1.contains_key(&number) {
            return Err(());
        }
        Ok(self.1.entry(number).or_insert([0; WORDS]))
    }

    fn prune(&mut self) {
        self.1
            .retain(|_, words| words.iter().any(|word| *word != 0));
    }
}

impl Room {
    fn frames(&self) -> HashSet<u64> {
        let bits = |(chunk, words): (&u64, &[u64; WORDS])| {
            let first = chunk * CHUNK;
            let words = *words;
            (0..CHUNK)
                .filter(move |i| (words[(i / 64) as usize] >> (i % 64)) & 1 != 0)
                .map(move |i| first + i)
        };
        self.1.iter().flat_map(bits).collect()
    }
}

fn run(gfn_a: u64, gfn_b: u64, nr: u32) -> Run {
    Run {
        gfn_a,
        gfn_b,
        nr,
        reserved: 0,
    }
}

/// Near the ends of words and chunks, and over several of both.
fn any_run() -> impl Strategy<Value = Run> {
    let gfn = || {
        let place = prop_oneof![Just(0), Just(64), Just(CHUNK), Just(4 * CHUNK)];
        (place, 0u64..200).prop_map(|(place, more)| place + more)
    };
    let nr = prop_oneof![
        1u32..10,
        50u32..150,
        Just(CHUNK as u32),
        Just(CHUNK as u32 * 2 + 1)
    ];
    (gfn(), gfn(), nr).prop_map(|(a, b, nr)| run(a, b, nr))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn all_or_none(
        calls in prop::collection::vec(prop::collection::vec(any_run(), 1..6), 1..4),
        room in 1usize..8,
    ) {
        let mut used = [(); 2].map(|()| Room(room, BTreeMap::new()));
        let mut model = [(); 2].map(|()| HashSet::new());
        for call in calls {
            let mut expected = Ok(());
            let mut after = model.clone();
            'runs: for (index, run) in (0u32..).zip(&call) {
                for (side, first) in after.iter_mut().zip([run.gfn_a, run.gfn_b]) {
                    if !(first..first + u64::from(run.nr)).all(|frame| side.insert(frame)) {
                        expected = Err(index);
                        break 'runs;
                    }
                }
            }
            match (frames::take(&mut used, &call), expected) {
                (Ok(()), Ok(())) => model = after,
                (Err((index, NotTaken::InUse)), Err(bad)) => prop_assert_eq!(index, bad),
                (Err((index, NotTaken::NoChunk(()))), expected) => {
                    prop_assert!(expected.is_ok() || expected >= Err(index));
                    let wanted = |side: usize| {
                        let used = model[side].iter().map(|frame| frame / CHUNK);
                        let mut numbers: HashSet<_> = used.collect();
                        for run in &call[..=index as usize] {
                            let first = [run.gfn_a, run.gfn_b][side];
                            let last = first + u64::from(run.nr) - 1;
                            numbers.extend(first / CHUNK..=last / CHUNK);
                        }
                        numbers.len()
                    };
                    prop_assert!(wanted(0).max(wanted(1)) > room);
                }
                (got, expected) => prop_assert!(false, "{got:?}, expected {expected:?}"),
            }
            prop_assert_eq!(used.clone().map(|side| side.frames()), model.clone());
            // Nor is there a chunk that nobody uses.
            let chunks = model.clone().map(|frames| {
                let numbers = frames.iter().map(|frame| frame / CHUNK);
                numbers.collect::<HashSet<_>>().len()
            });
            prop_assert_eq!([used[0].1.len(), used[1].1.len()], chunks);
        }
    }
}

proptest! {
    #[test]
    fn a_chunk_is_found_by_its_number(
        first in prop_oneof![0u64..10, Just(u64::MAX - 8)],
        gaps in prop::collection::vec(1u64..4, 0..8),
        wanted in prop_oneof![0u64..40, (u64::MAX - 12)..=u64::MAX],
    ) {
        let mut numbers = vec![first];
        for gap in gaps {
            let next = numbers[numbers.len() - 1].checked_add(gap);
            numbers.extend(next);
            if next.is_none() {
                break;
            }
        }
        let found = frames::find(&numbers, wanted, |n| *n);
        prop_assert_eq!(found, numbers.binary_search(&wanted));
        prop_assert_eq!(frames::find(&[], wanted, |n: &u64| *n), Err(0));
    }
}

#[test]
fn the_last_frames_there_can_be() {
    let mut used = [(); 2].map(|()| Room(9, BTreeMap::new()));
    let last = run((1 << 52) - 1, (1 << 52) - 1, 1);
    assert_eq!(frames::take(&mut used, &[last]), Ok(()));
    assert_eq!(frames::take(&mut used, &[last]), Err((0, NotTaken::InUse)));
    let beyond = run(u64::MAX, u64::MAX, u32::MAX);
    assert!(frames::take(&mut used, &[beyond]).is_err());
}
