// SPDX-License-Identifier: GPL-2.0-only

//! The structures and numbers of `include/uapi/linux/vmbeam.h`.
//!
//! The structures and constants are those that the driver itself is compiled
//! from, in `rust/core`. Their names are those of the header without the
//! `vmbeam_` prefix. What each field means is said there, once.

use std::mem::size_of;

pub use vmbeam_core::names;
pub use vmbeam_core::uapi::{
    Add, Adopt, Cancel, Commit, Forget, Info, Open, Prepare, Record, Records, Request, Rollback,
    Run, Status, FEATURE_DEBUG, FEATURE_MOCK, FEATURE_SWAP, IOC_TYPE, NOT_ATTEMPTED,
};
use vmbeam_core::uapi::{
    NR_ADD, NR_ADOPT, NR_CANCEL, NR_COMMIT, NR_FORGET, NR_INFO, NR_OPEN, NR_PREPARE, NR_RECORDS,
    NR_ROLLBACK, NR_STATUS, STATE_COMMITTED, STATE_COMMITTING, STATE_EMPTY, STATE_LOADED,
    STATE_ROLLED_BACK, STATE_ROLLING_BACK, STATE_UNBOUND,
};

/// `_IOC(dir, type, nr, size)` of `asm-generic/ioctl.h`.
const fn ioc(dir: u32, ty: u32, nr: u32, size: usize) -> u32 {
    (dir << 30) | ((size as u32) << 16) | (ty << 8) | nr
}

/// `_IOWR(VMBEAM_IOC_TYPE, nr, T)`: read and write are 3.
const fn iowr<T>(nr: u32) -> u32 {
    ioc(3, IOC_TYPE, nr, size_of::<T>())
}

/// `VMBEAM_IOCTL_INFO`
pub const IOCTL_INFO: u32 = iowr::<Info>(NR_INFO);
/// `VMBEAM_IOCTL_OPEN`
pub const IOCTL_OPEN: u32 = iowr::<Open>(NR_OPEN);
/// `VMBEAM_IOCTL_ADD`
pub const IOCTL_ADD: u32 = iowr::<Add>(NR_ADD);
/// `VMBEAM_IOCTL_PREPARE`
pub const IOCTL_PREPARE: u32 = iowr::<Prepare>(NR_PREPARE);
/// `VMBEAM_IOCTL_COMMIT`
pub const IOCTL_COMMIT: u32 = iowr::<Commit>(NR_COMMIT);
/// `VMBEAM_IOCTL_STATUS`
pub const IOCTL_STATUS: u32 = iowr::<Status>(NR_STATUS);
/// `VMBEAM_IOCTL_ROLLBACK`
pub const IOCTL_ROLLBACK: u32 = iowr::<Rollback>(NR_ROLLBACK);
/// `VMBEAM_IOCTL_CANCEL`
pub const IOCTL_CANCEL: u32 = iowr::<Cancel>(NR_CANCEL);
/// `VMBEAM_IOCTL_RECORDS`
pub const IOCTL_RECORDS: u32 = iowr::<Records>(NR_RECORDS);
/// `VMBEAM_IOCTL_ADOPT`
pub const IOCTL_ADOPT: u32 = iowr::<Adopt>(NR_ADOPT);
/// `VMBEAM_IOCTL_FORGET`
pub const IOCTL_FORGET: u32 = iowr::<Forget>(NR_FORGET);

/// `enum vmbeam_state`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// No `OPEN` yet.
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
            _ => return None,
        })
    }
}
