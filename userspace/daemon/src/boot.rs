// SPDX-License-Identifier: GPL-2.0-only

//! Which boot of the host this is. After another one nothing is left of what a record names:
//! its domids are those of other domains, if of any.

use std::fs;
use tracing::warn;

/// Differs after each restart of the host.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The host's boot id. Nothing if it cannot be read, which is never that of a boot.
pub fn id() -> String {
    fs::read_to_string(BOOT_ID).map_or_else(
        |e| {
            warn!("{BOOT_ID}: {e}");
            String::new()
        },
        |id| id.trim().to_owned(),
    )
}

/// Whether a record with this boot id is of another boot than this one. One without is not
/// known to be.
pub(crate) fn is_another(recorded: &str) -> bool {
    !recorded.is_empty() && recorded != id()
}
