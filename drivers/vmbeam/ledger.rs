// SPDX-License-Identifier: GPL-2.0-only

//! The ledger of a session: its pairs, and which of them are swapped.
//!
//! Swapping a pair twice puts it back, so what is written here must be what happened. The
//! invariant: of the pairs before the *cursor*, those are swapped that are marked neither
//! *refused* (a commit passed them over) nor *back* (a rollback put them back although one
//! above them could not be). The pairs from the cursor on are not swapped. The counts are
//! those of the marks.
//!
//! All that changes a ledger is in this file and in `loops`. It asks the hypervisor itself, so
//! that nobody can forget to write down what came of it. When an answer, or the ledger itself,
//! contradicts the invariant, nobody knows any more what is swapped: the ledger is *broken* for
//! good and moves nothing.
//!
//! Marks are bits and not ranges: their size is known as soon as the runs are, so writing down
//! what a hypercall did can never fail for lack of memory.

use core::ops::{
    Deref,
    DerefMut, //
};

use super::{
    frames::{
        self,
        Chunks,
        NotTaken, //
    },
    pairs::{
        self,
        BadRun,
        Run,
        MAX_PAIRS,
        MAX_RUNS, //
    },
    uapi, //
};

#[path = "ledger/batch.rs"]
mod batch;
#[path = "ledger/loops.rs"]
mod loops;

pub use batch::{
    Answer,
    Batch,
    Call,
    Outside,
    Way, //
};
pub use loops::Tally;

/// Where a ledger's memory comes from.
pub trait Memory {
    /// Why there is none.
    type Error;
    /// A list that can be enlarged.
    type List<T: Clone + Default>: Default + Deref<Target = [T]> + DerefMut;
    /// The frames of one domain.
    type Frames: Chunks<Error = Self::Error> + Default;

    /// Enlarge a list to `len` elements.
    ///
    /// # Errors
    ///
    /// There is no memory; the list is as it was.
    fn grow<T: Clone + Default>(list: &mut Self::List<T>, len: usize) -> Result<(), Self::Error>;

    /// Cut a list down to `len` elements.
    fn truncate<T: Clone + Default>(list: &mut Self::List<T>, len: usize);
}

/// How a ledger is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// It was broken before.
    Already,
    /// By an answer of the hypervisor that makes no sense.
    Answer,
    /// By a mistake in these files.
    Invariant,
}

/// Why something cannot be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not in this state.
    State,
    /// The caller is wrong about the cursor.
    Stale,
    /// There are not as many pairs.
    Range,
    /// The ledger is broken.
    Broken,
}

/// Why runs were not added.
#[derive(Debug, PartialEq, Eq)]
pub enum NotAdded<E> {
    /// See there.
    Refused(Refusal),
    /// A run, by its index, is wrong in itself.
    Bad(u32, BadRun),
    /// A run, by its index, has a frame that is in use.
    InUse(u32),
    /// More than [`MAX_RUNS`] or [`MAX_PAIRS`].
    Full,
    /// There is no memory.
    Memory(E),
    /// The ledger is broken from now on.
    Broken,
}

impl<E> From<E> for NotAdded<E> {
    fn from(error: E) -> Self {
        Self::Memory(error)
    }
}

/// Where a session stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// One of `uapi::STATE_*`.
    pub state: u32,
    /// Runs, after merging.
    pub runs: u32,
    /// Pairs.
    pub pairs: u32,
    /// Number of the first pair that is not swapped or refused.
    pub cursor: u32,
    /// Pairs that are swapped now.
    pub swapped: u32,
    /// Pairs before the cursor that were refused.
    pub refused: u32,
}

/// What has been done to a session's pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// Runs may be added.
    #[default]
    Loading,
    /// At least one pair has been dealt with.
    Committing,
    /// At least one pair has been put back or passed over on the way back.
    RollingBack,
}

/// See the top of this file.
#[derive(Default)]
pub struct Ledger<M: Memory> {
    /// In the order of their pairs' numbers, merged.
    runs: M::List<Run>,
    /// The frames in use in A and in B.
    frames: [M::Frames; 2],
    /// One bit a pair.
    refused: M::List<u64>,
    /// One bit a pair.
    back: M::List<u64>,
    phase: Phase,
    /// Its `state` and `runs` are those of the fields above and are filled in by
    /// [`counts`](Ledger::counts).
    counts: Counts,
    broken: bool,
}

/// Whether `pair` is marked.
fn is_marked(marks: &[u64], pair: u32) -> bool {
    marks
        .get((pair / u64::BITS) as usize)
        .is_some_and(|word| (word >> (pair % u64::BITS)) & 1 != 0)
}

impl<M: Memory> Ledger<M> {
    /// Where the session stands.
    pub fn counts(&self) -> Counts {
        let Counts { pairs, cursor, .. } = self.counts;

        Counts {
            state: match self.phase {
                Phase::Loading if pairs == 0 => uapi::STATE_EMPTY,
                Phase::Loading => uapi::STATE_LOADED,
                Phase::Committing if cursor < pairs => uapi::STATE_COMMITTING,
                Phase::Committing => uapi::STATE_COMMITTED,
                Phase::RollingBack if cursor > 0 => uapi::STATE_ROLLING_BACK,
                Phase::RollingBack => uapi::STATE_ROLLED_BACK,
            },
            runs: u32::try_from(self.runs.len()).unwrap_or(u32::MAX),
            ..self.counts
        }
    }

    /// Whether it must not be thrown away: some pairs are swapped and some are not, or nobody
    /// knows.
    pub fn is_half_way(&self) -> bool {
        self.broken || (self.counts.swapped > 0 && self.counts().state != uapi::STATE_COMMITTED)
    }

    /// Whether some pairs are swapped, or nobody knows.
    pub fn may_be_swapped(&self) -> bool {
        self.broken || self.counts.swapped > 0
    }

    /// The runs.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Whether `pair` is swapped now, as far as is known.
    pub fn is_swapped(&self, pair: u32) -> bool {
        pair < self.counts.cursor && !self.is_home(pair)
    }

    /// Whether a pair before the cursor is where it was at first.
    fn is_home(&self, pair: u32) -> bool {
        is_marked(&self.refused, pair) || is_marked(&self.back, pair)
    }

    fn require(&self, states: &[u32]) -> Result<(), Refusal> {
        if self.broken {
            Err(Refusal::Broken)
        } else if states.contains(&self.counts().state) {
            Ok(())
        } else {
            Err(Refusal::State)
        }
    }

    /// Whether runs may be added.
    ///
    /// # Errors
    ///
    /// [`Refusal::State`], [`Refusal::Broken`].
    pub fn may_add(&self) -> Result<(), Refusal> {
        self.require(&[uapi::STATE_EMPTY, uapi::STATE_LOADED])
    }

    /// The end of the `nr` pairs from `first` on, 0 meaning all that there are, if something
    /// can be asked about them.
    ///
    /// # Errors
    ///
    /// [`Refusal::State`], [`Refusal::Range`], [`Refusal::Broken`].
    pub fn may_check(&self, first: u64, nr: u64) -> Result<u32, Refusal> {
        if self.broken {
            return Err(Refusal::Broken);
        }
        if self.counts.pairs == 0 {
            return Err(Refusal::State);
        }
        let left = u64::from(self.counts.pairs).saturating_sub(first);
        if left == 0 || nr > left {
            return Err(Refusal::Range);
        }
        let nr = if nr == 0 { left } else { nr };
        u32::try_from(first.saturating_add(nr)).or(Err(Refusal::Range))
    }

    /// The same for a commit from the cursor on, which the caller must know.
    ///
    /// # Errors
    ///
    /// All of [`Refusal`].
    pub fn may_commit(&self, expected: u64, nr: u64) -> Result<u32, Refusal> {
        self.require(&[uapi::STATE_LOADED, uapi::STATE_COMMITTING])?;
        if expected != u64::from(self.counts.cursor) {
            return Err(Refusal::Stale);
        }
        self.may_check(expected, nr)
    }

    /// Whether a rollback makes sense.
    ///
    /// # Errors
    ///
    /// [`Refusal::State`], [`Refusal::Stale`], [`Refusal::Broken`].
    pub fn may_roll_back(&self, expected: u64) -> Result<(), Refusal> {
        self.require(&[
            uapi::STATE_COMMITTING,
            uapi::STATE_COMMITTED,
            uapi::STATE_ROLLING_BACK,
        ])?;
        if expected != u64::from(self.counts.cursor) {
            return Err(Refusal::Stale);
        }
        Ok(())
    }

    /// Append runs, all or none.
    ///
    /// # Errors
    ///
    /// See [`NotAdded`].
    pub fn add(&mut self, new: &[uapi::Run]) -> Result<(), NotAdded<M::Error>> {
        self.may_add().map_err(NotAdded::Refused)?;
        let mut index = 0u32;
        for run in new {
            pairs::validate(run).map_err(|bad| NotAdded::Bad(index, bad))?;
            index = index.saturating_add(1);
        }
        let (nr_runs, nr_pairs) = pairs::size_with(&self.runs, new);
        let nr_pairs = u32::try_from(nr_pairs).unwrap_or(u32::MAX);
        if nr_runs > MAX_RUNS || nr_pairs > MAX_PAIRS {
            return Err(NotAdded::Full);
        }

        // All that can fail comes first, the frames last: nobody has to give them back.
        let nr_words = nr_pairs.div_ceil(u64::BITS) as usize;
        for marks in [&mut self.refused, &mut self.back] {
            // An `ADD` that failed may have left more.
            if nr_words > marks.len() {
                M::grow(marks, nr_words)?;
            }
        }
        let len = self.runs.len();
        M::grow(&mut self.runs, len.saturating_add(new.len()))?;
        if let Err((index, why)) = frames::take(&mut self.frames, new) {
            M::truncate(&mut self.runs, len);
            self.broken = matches!(why, NotTaken::Kept);
            return Err(match why {
                NotTaken::InUse => NotAdded::InUse(index),
                NotTaken::NoChunk(error) => error.into(),
                NotTaken::Kept => NotAdded::Broken,
            });
        }
        let len = pairs::append(&mut self.runs, len, new);
        M::truncate(&mut self.runs, len);
        self.counts.pairs = nr_pairs;
        Ok(())
    }
}
