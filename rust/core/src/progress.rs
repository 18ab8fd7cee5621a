// SPDX-License-Identifier: GPL-2.0-only

//! How far a session has come, and what a hypercall's answer does to that.
//!
//! Two bitmaps go with it. *Refused* pairs are those that a commit passed over:
//! they were never swapped and a rollback must not touch them. *Back* pairs are
//! those that a rollback has put back although the cursor is still above them,
//! which happens when the hypervisor refuses a pair between them.

use super::{
    marks,
    pairs,
    uapi,
    xen_abi::SwapRun, //
};

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

/// Where a session stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    phase: Phase,
    pairs: u32,
    cursor: u32,
    swapped: u32,
    refused: u32,
}

impl Progress {
    /// Pairs in the session.
    pub const fn pairs(&self) -> u32 {
        self.pairs
    }

    /// Number of the first pair that is not swapped or refused.
    pub const fn cursor(&self) -> u32 {
        self.cursor
    }

    /// Pairs that are swapped now.
    pub const fn swapped(&self) -> u32 {
        self.swapped
    }

    /// Pairs before the cursor that were refused.
    pub const fn refused(&self) -> u32 {
        self.refused
    }

    /// The state that the session reports, one of `uapi::STATE_*`.
    pub const fn state(&self) -> u32 {
        match self.phase {
            Phase::Loading if self.pairs == 0 => uapi::STATE_EMPTY,
            Phase::Loading => uapi::STATE_LOADED,
            Phase::Committing if self.cursor < self.pairs => uapi::STATE_COMMITTING,
            Phase::Committing => uapi::STATE_COMMITTED,
            Phase::RollingBack if self.cursor > 0 => uapi::STATE_ROLLING_BACK,
            Phase::RollingBack => uapi::STATE_ROLLED_BACK,
        }
    }

    /// Whether runs may be added.
    pub const fn may_add(&self) -> bool {
        matches!(self.phase, Phase::Loading)
    }

    /// Whether a commit makes sense.
    pub const fn may_commit(&self) -> bool {
        matches!(self.state(), uapi::STATE_LOADED | uapi::STATE_COMMITTING)
    }

    /// Whether a rollback makes sense.
    pub const fn may_roll_back(&self) -> bool {
        matches!(
            self.state(),
            uapi::STATE_COMMITTING | uapi::STATE_COMMITTED | uapi::STATE_ROLLING_BACK
        )
    }

    /// Runs were added; the session now has `pairs` pairs.
    pub fn loaded(&mut self, pairs: u32) {
        self.pairs = pairs;
    }

    /// A commit dealt with the next pairs, one for each of `status`. Returns how
    /// many were swapped and how many refused.
    pub fn advance(&mut self, status: &[i32], refused: &mut [u64]) -> (u32, u32) {
        let (mut nr_swapped, mut nr_refused) = (0u32, 0u32);

        for status in status {
            if self.cursor >= self.pairs {
                break;
            }
            if *status == 0 {
                nr_swapped = nr_swapped.saturating_add(1);
            } else {
                marks::set(refused, self.cursor);
                nr_refused = nr_refused.saturating_add(1);
            }
            self.cursor = self.cursor.saturating_add(1);
            self.phase = Phase::Committing;
        }
        self.swapped = self.swapped.saturating_add(nr_swapped);
        self.refused = self.refused.saturating_add(nr_refused);
        (nr_swapped, nr_refused)
    }

    /// A rollback got these statuses for the beginning of a batch that
    /// [`pairs::fill_back`] made. Returns how many pairs were put back.
    pub fn put_back(
        &mut self,
        batch: &[SwapRun],
        firsts: &[u32],
        status: &[i32],
        back: &mut [u64],
    ) -> u32 {
        let mut nr = 0u32;

        for (pair, status) in pairs::numbers(batch, firsts).zip(status) {
            if *status == 0 {
                marks::set(back, pair);
                nr = nr.saturating_add(1);
                self.phase = Phase::RollingBack;
            }
        }
        self.swapped = self.swapped.saturating_sub(nr);
        nr
    }

    /// Move the cursor down over pairs that are where they were at first, and
    /// return by how many. At most `limit`, so that a caller can look up.
    pub fn retreat(&mut self, refused: &[u64], back: &[u64], limit: u32) -> u32 {
        let mut moved = 0;

        while let Some(pair) = self.cursor.checked_sub(1) {
            if moved >= limit {
                break;
            }
            if marks::is_set(refused, pair) {
                self.refused = self.refused.saturating_sub(1);
            } else if !marks::is_set(back, pair) {
                break;
            }
            self.cursor = pair;
            self.phase = Phase::RollingBack;
            moved = u32::saturating_add(moved, 1);
        }
        moved
    }
}
