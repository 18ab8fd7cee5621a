// SPDX-License-Identifier: GPL-2.0-only

//! How far a migration is, and between what.

/// One of the two host VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Where the guest was.
    Source,
    /// Where it is to go.
    Destination,
}

/// How far a migration is: what the journal says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// The guest runs at the source, and has not been suspended; a copy of it that never ran is
    /// being made at the destination.
    Stage,
    /// The guest is being saved and restored; its memory is at the source.
    Stream,
    /// Its memory is at the source or at the destination.
    Swap {
        /// Pages are to be copied besides.
        copies: bool,
        /// Some were swapped and could not be swapped back.
        torn: bool,
    },
    /// Behind the point of no return: to be let run at the destination.
    Resume,
    /// It runs at the destination; what is left at the source is to be destroyed.
    Destroy,
}
