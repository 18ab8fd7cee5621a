// SPDX-License-Identifier: GPL-2.0-only

//! The structures and numbers of `include/uapi/linux/vmbeam.h`.
//!
//! The structures and constants are those that the driver itself is compiled
//! from. Their names are those of the header without the
//! `vmbeam_` prefix. What each field means is said there, once.

pub use vmbeam_core::mode::Mode;
pub use vmbeam_core::names;
pub use vmbeam_core::uapi::{
    ioctl, Abandon, Add, Adopt, Bind, Cancel, Check, Commit, Info, Record, Request, Rollback, Run,
    Status, BIND_KEEP, BIND_TO_A, BIND_TO_B, FEATURE_KEEP, FEATURE_RELOCATE, FEATURE_SWAP,
    IOC_TYPE,
};
use vmbeam_core::uapi::{
    NR_ABANDON, NR_ADD, NR_ADOPT, NR_BIND, NR_CANCEL, NR_CHECK, NR_COMMIT, NR_INFO, NR_RECORD,
    NR_ROLLBACK, NR_STATUS, STATE_ABANDONED, STATE_COMMITTED, STATE_COMMITTING, STATE_EMPTY,
    STATE_LOADED, STATE_ROLLED_BACK, STATE_ROLLING_BACK, STATE_UNBOUND,
};

/// `VMBEAM_IOCTL_INFO`
pub const IOCTL_INFO: u32 = ioctl(NR_INFO);
/// `VMBEAM_IOCTL_BIND`
pub const IOCTL_BIND: u32 = ioctl(NR_BIND);
/// `VMBEAM_IOCTL_ADD`
pub const IOCTL_ADD: u32 = ioctl(NR_ADD);
/// `VMBEAM_IOCTL_CHECK`
pub const IOCTL_CHECK: u32 = ioctl(NR_CHECK);
/// `VMBEAM_IOCTL_COMMIT`
pub const IOCTL_COMMIT: u32 = ioctl(NR_COMMIT);
/// `VMBEAM_IOCTL_STATUS`
pub const IOCTL_STATUS: u32 = ioctl(NR_STATUS);
/// `VMBEAM_IOCTL_ROLLBACK`
pub const IOCTL_ROLLBACK: u32 = ioctl(NR_ROLLBACK);
/// `VMBEAM_IOCTL_CANCEL`
pub const IOCTL_CANCEL: u32 = ioctl(NR_CANCEL);
/// `VMBEAM_IOCTL_RECORD`
pub const IOCTL_RECORD: u32 = ioctl(NR_RECORD);
/// `VMBEAM_IOCTL_ADOPT`
pub const IOCTL_ADOPT: u32 = ioctl(NR_ADOPT);
/// `VMBEAM_IOCTL_ABANDON`
pub const IOCTL_ABANDON: u32 = ioctl(NR_ABANDON);

/// `enum vmbeam_state`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// No `BIND` yet.
    Unbound = STATE_UNBOUND,
    /// Bound to two domains, no runs.
    Empty = STATE_EMPTY,
    /// Has runs, nothing swapped.
    Loaded = STATE_LOADED,
    /// The pairs before the cursor have been dealt with.
    Committing = STATE_COMMITTING,
    /// Every pair has been dealt with.
    Committed = STATE_COMMITTED,
    /// The pairs at and after the cursor are back.
    RollingBack = STATE_ROLLING_BACK,
    /// Every pair is where it was at first.
    RolledBack = STATE_ROLLED_BACK,
    /// Was bound, and was given up.
    Abandoned = STATE_ABANDONED,
}

impl State {
    /// The state with this number, if there is one.
    pub fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            STATE_UNBOUND => Self::Unbound,
            STATE_EMPTY => Self::Empty,
            STATE_LOADED => Self::Loaded,
            STATE_COMMITTING => Self::Committing,
            STATE_COMMITTED => Self::Committed,
            STATE_ROLLING_BACK => Self::RollingBack,
            STATE_ROLLED_BACK => Self::RolledBack,
            STATE_ABANDONED => Self::Abandoned,
            _ => return None,
        })
    }
}
