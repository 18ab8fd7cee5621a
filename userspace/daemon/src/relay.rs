// SPDX-License-Identifier: GPL-2.0-only

//! A guest's state on its way from the one toolstack to the other.

use vmbeam_xen::stream::Scanner;

/// What is on its way of a guest's state.
#[derive(Debug, Default)]
pub(crate) struct Relay {
    pub(crate) scanner: Scanner,
    /// Pulled, and not pushed yet.
    pub(crate) waiting: Vec<u8>,
    /// All was pulled.
    pub(crate) end: bool,
    pub(crate) gate: Gate,
    /// Something came through since that was opened.
    pub(crate) answered: bool,
}

/// What keeps the source from suspending the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Nothing comes that would follow.
    #[default]
    Shut,
    /// It is to be opened by the next question.
    Opens,
    /// Nothing.
    Open,
}

impl Gate {
    /// Whether there is nothing to be pulled now.
    pub(crate) fn is_shut(self, scanner: &Scanner) -> bool {
        self == Self::Shut && scanner.contents().staged
    }
}

impl Relay {
    /// One that nothing keeps from coming.
    pub(crate) fn open() -> Self {
        Self {
            gate: Gate::Open,
            answered: true,
            ..Self::default()
        }
    }

    /// All that can be before the guest is suspended has been pushed.
    pub(crate) fn is_staged(&self) -> bool {
        self.waiting.is_empty() && (self.scanner.contents().staged || self.end)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.waiting.is_empty() && self.end
    }
}
