// SPDX-License-Identifier: GPL-2.0-only

//! How much of the host's memory a replacement takes while it lasts.

use crate::restart::Toolstack;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::mpsc::{channel, RecvTimeoutError};
use std::time::Duration;

/// How often to look while guests move.
const LOOK: Duration = Duration::from_secs(1);

/// Memory of the host that nobody had, in MiB, as far as the toolstack tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Memory {
    /// Before the new host VM was created.
    pub(super) free_before_mib: Option<u64>,
    /// When there was least; looked at before and after each step, and while guests move.
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

    /// Look again and again while this runs, and once more: what it comes to, and what was seen.
    pub(super) fn during<T>(self, toolstack: &Toolstack, run: impl FnOnce() -> T) -> (T, Self) {
        std::thread::scope(|scope| {
            let (running, ended) = channel::<()>();
            let watcher = scope.spawn(move || {
                let mut memory = self;
                while ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                    memory.sample(toolstack);
                }
                memory.sample(toolstack);
                memory
            });
            let result = run();
            drop(running);
            (result, watcher.join().unwrap_or(self))
        })
    }

    /// The most that it took.
    pub(super) fn peak_extra_mib(&self) -> Option<u64> {
        Some(self.free_before_mib?.saturating_sub(self.free_lowest_mib?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_taken_while_guests_move_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let (program, free) = (dir.path().join("xl"), dir.path().join("free"));
        std::fs::write(&program, format!("#!/bin/sh\ncat {}\n", free.display())).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let toolstack = Toolstack {
            program,
            create_timeout: LOOK,
        };
        let have = |mib: &str| std::fs::write(&free, mib).unwrap();
        have("500");
        let mut memory = Memory::default();
        memory.sample(&toolstack);
        let ((), memory) = memory.during(&toolstack, || {
            have("320");
            std::thread::sleep(3 * LOOK);
            have("480");
        });
        assert_eq!(memory.peak_extra_mib(), Some(180));
        assert_eq!(memory.free_after_mib, Some(480));
    }
}
