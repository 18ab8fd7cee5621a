// SPDX-License-Identifier: GPL-2.0-only

//! Words for the numbers of the interface.

use super::uapi::*;

/// Word for a `STATE_*`.
pub const fn state(state: u32) -> &'static str {
    match state {
        STATE_UNBOUND => "unbound",
        STATE_EMPTY => "empty",
        STATE_LOADED => "loaded",
        STATE_COMMITTING => "committing",
        STATE_COMMITTED => "committed",
        STATE_ROLLING_BACK => "rolling-back",
        STATE_ROLLED_BACK => "rolled-back",
        STATE_ABANDONED => "abandoned",
        _ => "unknown",
    }
}

/// Word for the `BIND_*` of a session.
pub const fn mode(flags: u32) -> &'static str {
    match flags {
        0 => "swap",
        BIND_KEEP => "keep",
        BIND_TO_B => "to-b",
        BIND_TO_A => "to-a",
        _ => "unknown",
    }
}

/// Word for the `NR_*` of an ioctl that works on a session, or for none.
pub const fn activity(nr: u32) -> &'static str {
    match nr {
        0 => "none",
        NR_BIND => "bind",
        NR_ADD => "add",
        NR_CHECK => "check",
        NR_COMMIT => "commit",
        NR_ROLLBACK => "rollback",
        NR_ADOPT => "adopt",
        NR_ABANDON => "abandon",
        _ => "unknown",
    }
}
