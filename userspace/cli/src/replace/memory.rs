// SPDX-License-Identifier: GPL-2.0-only

//! How much of the host's memory a replacement takes while it lasts.

use crate::restart::Toolstack;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Memory of the host that nobody had, in MiB, as far as the toolstack tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Memory {
    /// Before the new host VM was created.
    pub(super) free_before_mib: Option<u64>,
    /// When there was least; looked at before and after each step.
    pub(super) free_lowest_mib: Option<u64>,
    /// Now.
    pub(super) free_after_mib: Option<u64>,
}

impl Memory {
    /// Look again.
    pub(super) fn sample(&mut self, toolstack: &Toolstack) {
        let Ok(free) = toolstack.free_mib() else {
            return;
        };
        self.free_before_mib.get_or_insert(free);
        let lowest = self.free_lowest_mib.get_or_insert(free);
        *lowest = free.min(*lowest);
        self.free_after_mib = Some(free);
    }

    /// The most that it took.
    pub(super) fn peak_extra_mib(&self) -> Option<u64> {
        Some(self.free_before_mib?.saturating_sub(self.free_lowest_mib?))
    }
}
