// SPDX-License-Identifier: GPL-2.0-only

//! What a migration has left that did not come to an end by itself.

use crate::execute::Work;

/// What is to be settled.
#[derive(Debug)]
pub(crate) enum Unsettled {
    /// It is known how far it is.
    Known(Box<Work>),
    /// A job panicked: what the journal says of this number counts.
    Written(u64),
}

impl Unsettled {
    /// The number of its record.
    pub(crate) fn id(&self) -> u64 {
        match self {
            Self::Known(work) => work.record.id,
            Self::Written(id) => *id,
        }
    }
}
