// SPDX-License-Identifier: GPL-2.0-only

//! A model of the hypervisor, of two domains and of a caller, and a session with them.

use std::collections::BTreeMap;

use proptest::prelude::*;

use vmbeam_core::{
    frames::{
        Chunks,
        WORDS, //
    },
    ledger::{
        Answer,
        Batch,
        Broken,
        Call,
        Counts,
        Ledger,
        Memory,
        NotAdded,
        Outside,
        Refusal,
        Tally,
        Way, //
    },
    pairs,
    uapi, //
};

use Fate::*;

pub const BATCH_PAIRS: u32 = 13;
pub const BATCH_RUNS: usize = 4;

pub const EIO: i32 = 5;
pub const EINTR: i32 = 4;
pub const EBUSY: i32 = 16;
pub const ENOMEM: i32 = 12;
pub const EFAULT: i32 = 14;
pub const ENOSPC: i32 = 28;

/// What happens to a pair, or to the hypercall at that pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Swap,
    Refuse,
    /// The request ends here with an error.
    Fail,
    /// It ends here and claims to have done all.
    Claim,
    /// It claims more pairs than it was asked for.
    Exaggerate,
    /// The status of a pair is not written.
    Omit,
    /// A status that there is not.
    Positive,
}

/// Two domains of 1024 frames; each frame has contents of its own. The hypervisor, and the
/// caller who waits.
pub struct World {
    pub a: Vec<u32>,
    pub b: Vec<u32>,
    /// Decides about the next pair, over and over.
    pub fate: Vec<Fate>,
    pub at: usize,
    /// After how many hypercalls a signal comes, over and over; 0 for never.
    pub signal: u32,
    pub calls: u32,
    /// Pairs that there is room for on the way back.
    pub room: u32,
    /// Which way hypercalls are to go.
    pub way: Way,
    /// What the caller was told, one a pair asked for.
    pub told: Vec<i32>,
    /// The hypercall after which the caller can be told nothing; 0 for none.
    pub deaf: u32,
    pub broken: Vec<Broken>,
}

impl World {
    pub fn new(fate: Vec<Fate>) -> Self {
        Self {
            a: (0..1024).collect(),
            b: (5000..6024).collect(),
            fate,
            at: 0,
            signal: 0,
            calls: 0,
            room: u32::MAX,
            way: Way::There,
            told: vec![],
            deaf: 0,
            broken: vec![],
        }
    }
}

impl Outside for World {
    type Error = i32;

    fn go_on(&mut self, counts: Counts) -> Result<(), i32> {
        assert!(counts.cursor <= counts.pairs && counts.swapped <= counts.cursor);
        if self.signal != 0 && self.calls >= self.signal {
            self.calls = 0;
            return Err(EINTR);
        }
        Ok(())
    }

    fn call(&mut self, call: &Call<'_>, status: &mut [i32]) -> Answer<i32> {
        let asked: u32 = call.runs.iter().map(|run| run.nr).sum();
        assert_eq!(call.filled.runs, call.runs.len());
        assert_eq!(call.way, self.way);
        assert!(!call.runs.is_empty() && call.runs.len() <= BATCH_RUNS);
        assert!(asked == call.filled.pairs && asked <= BATCH_PAIRS);
        assert_eq!(status.len(), asked as usize);
        self.calls += 1;

        let (mut done, mut room) = (0, self.room);
        let answer = |done: usize, result| Answer {
            done: done as u64,
            result,
        };
        for run in call.runs {
            assert!(run.nr > 0 && run.pad == 0);
            for i in 0..u64::from(run.nr) {
                let fate = self.fate[self.at % self.fate.len()];
                self.at += 1;
                match fate {
                    Fail => return answer(done, Err(ENOMEM)),
                    Claim => return answer(done, Ok(())),
                    Exaggerate => return answer(asked as usize + 1, Ok(())),
                    Omit => (),
                    Positive => status[done] = 7,
                    Refuse => status[done] = -EBUSY,
                    Swap if call.way == Way::Back && room == 0 => status[done] = -ENOSPC,
                    Swap => {
                        room -= u32::from(call.way == Way::Back);
                        if call.swap {
                            self.room = room;
                            let (a, b) = ((run.gfn_a + i) as usize, (run.gfn_b + i) as usize);
                            std::mem::swap(&mut self.a[a], &mut self.b[b]);
                        }
                        status[done] = 0;
                    }
                }
                done += 1;
            }
        }
        answer(done, Ok(()))
    }

    fn tell(&mut self, at: u32, status: &[i32]) -> Result<(), i32> {
        assert_eq!(at as usize, self.told.len());
        self.told.extend(status);
        if self.deaf != 0 && self.calls >= self.deaf {
            return Err(EFAULT);
        }
        Ok(())
    }

    fn lacks_room(&self, status: i32) -> bool {
        status == -ENOSPC
    }

    fn refused(&self, status: i32) -> i32 {
        -status
    }

    fn broken(&mut self, how: Broken) -> i32 {
        self.broken.push(how);
        EIO
    }
}

/// As much as is wanted, until it is used up.
#[derive(Default)]
pub struct Heap;

/// As many chunks as there can be.
#[derive(Default)]
pub struct Frames(BTreeMap<u64, [u64; WORDS]>);

#[derive(Debug, PartialEq, Eq)]
pub struct NoMemory;

thread_local! {
    /// Allocations that succeed.
    pub static ALLOCATIONS: std::cell::Cell<u32> = const { std::cell::Cell::new(u32::MAX) };
    /// Times that chunks are found.
    pub static LOOKUPS: std::cell::Cell<u32> = const { std::cell::Cell::new(u32::MAX) };
}

pub fn allocate() -> Result<(), NoMemory> {
    let left = ALLOCATIONS.get().checked_sub(1).ok_or(NoMemory)?;
    ALLOCATIONS.set(left);
    Ok(())
}

impl Chunks for Frames {
    type Error = NoMemory;

    fn chunk(&mut self, number: u64) -> Result<&mut [u64; WORDS], NoMemory> {
        LOOKUPS.set(LOOKUPS.get().checked_sub(1).ok_or(NoMemory)?);
        if !self.0.contains_key(&number) {
            allocate()?;
        }
        Ok(self.0.entry(number).or_insert([0; WORDS]))
    }

    fn prune(&mut self) {
        self.0
            .retain(|_, words| words.iter().any(|word| *word != 0));
    }
}

impl Memory for Heap {
    type Error = NoMemory;
    type List<T: Clone + Default> = Vec<T>;
    type Frames = Frames;

    fn grow<T: Clone + Default>(list: &mut Vec<T>, len: usize) -> Result<(), NoMemory> {
        allocate()?;
        assert!(len >= list.len());
        list.resize(len, T::default());
        Ok(())
    }

    fn truncate<T: Clone + Default>(list: &mut Vec<T>, len: usize) {
        list.truncate(len);
    }
}

pub struct Session {
    pub ledger: Ledger<Heap>,
    pub batch: Batch<Heap>,
}

impl Default for Session {
    fn default() -> Self {
        Self {
            ledger: Ledger::default(),
            batch: Batch::new(BATCH_RUNS, BATCH_PAIRS).unwrap(),
        }
    }
}

impl Session {
    pub fn add(&mut self, new: &[uapi::Run]) -> Result<(), NotAdded<NoMemory>> {
        let expected = pairs::size_with(self.ledger.runs(), new);
        self.ledger.add(new)?;
        let counts = self.ledger.counts();
        assert_eq!(expected, (counts.runs as usize, counts.pairs.into()));
        assert_eq!(counts.pairs, pairs::total(self.ledger.runs()));
        Ok(())
    }

    /// One `COMMIT` of everything up to `end`, if there is something.
    pub fn commit(&mut self, world: &mut World, end: u32) -> Result<(), i32> {
        let cursor = self.counts().cursor;
        let Some(nr @ 1..) = end.checked_sub(cursor) else {
            return Ok(());
        };
        if let Err(why) = self.ledger.may_commit(cursor.into(), nr.into()) {
            assert_eq!(why, Refusal::Broken);
            return Err(EIO);
        }
        world.told.clear();
        world.way = Way::There;
        let (tally, result) = self.ledger.commit(end, &mut self.batch, world);
        let refused = world.told.iter().filter(|status| **status != 0).count() as u32;
        assert_eq!(tally.done as usize, world.told.len());
        assert_eq!(
            (tally.refused, tally.swapped),
            (refused, tally.done - refused)
        );
        assert_eq!(self.counts().cursor, cursor + tally.done);
        assert!(result.is_err() || self.counts().cursor == end);
        result
    }

    /// One `ROLLBACK`.
    pub fn rollback(&mut self, world: &mut World) -> (Tally, Result<(), i32>) {
        let before = self.counts();
        world.way = Way::Back;
        let (tally, result) = self.ledger.roll_back(&mut self.batch, world);
        let after = self.counts();
        assert_eq!(after.swapped, before.swapped - tally.swapped);
        assert!(after.cursor <= before.cursor && tally.done >= tally.swapped);
        // What could be passed over has been, up to the first pair that is still away; but for
        // as many as a batch has, when a signal comes.
        if !matches!(result, Err(EINTR)) && after.cursor > 0 {
            assert!(result.is_err() && self.ledger.is_swapped(after.cursor - 1));
        }
        (tally, result)
    }

    pub fn counts(&self) -> Counts {
        self.ledger.counts()
    }

    /// The frames of each pair by number, from the runs.
    pub fn frames(&self) -> Vec<(usize, usize)> {
        let runs = self.ledger.runs().iter();
        frames(runs.map(|run| (run.gfn_a, run.gfn_b, run.nr)))
    }

    /// Every frame is where the session says that it is.
    pub fn verify(&self, world: &World) {
        let fresh = World::new(vec![]);
        let (mut a, mut b) = (fresh.a, fresh.b);
        let mut swapped = 0;
        for (pair, (frame_a, frame_b)) in (0u32..).zip(self.frames()) {
            if self.ledger.is_swapped(pair) {
                std::mem::swap(&mut a[frame_a], &mut b[frame_b]);
                swapped += 1;
            }
        }
        assert_eq!(self.counts().swapped, swapped);
        assert_eq!((&world.a, &world.b), (&a, &b));
    }
}

/// The frames of each pair of a list of runs.
pub fn frames(runs: impl Iterator<Item = (u64, u64, u32)>) -> Vec<(usize, usize)> {
    runs.flat_map(|(a, b, nr)| (0..u64::from(nr)).map(move |i| (a + i, b + i)))
        .map(|(a, b)| (a as usize, b as usize))
        .collect()
}

pub fn run(gfn_a: u64, gfn_b: u64, nr: u32) -> uapi::Run {
    uapi::Run {
        gfn_a,
        gfn_b,
        nr,
        reserved: 0,
    }
}

/// Runs that do not overlap, some of which follow on from the one before.
pub fn distinct_runs() -> impl Strategy<Value = Vec<uapi::Run>> {
    prop::collection::vec((0u64..3, 0u64..3, 1u32..9), 1..40).prop_map(|steps| {
        let (mut a, mut b) = (0, 400);
        steps
            .into_iter()
            .map(|(gap_a, gap_b, nr)| {
                let run = run(a + gap_a, b + gap_b, nr);
                a = run.gfn_a + u64::from(nr);
                b = run.gfn_b + u64::from(nr);
                run
            })
            .collect()
    })
}
