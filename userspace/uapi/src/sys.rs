// SPDX-License-Identifier: GPL-2.0-only

//! The structures and numbers of `include/uapi/linux/vmbeam.h`.
//!
//! The names are those of the header without the `vmbeam_` prefix. What each
//! field means is said there, once.

use std::mem::{offset_of, size_of};

/// `VMBEAM_IOC_TYPE`
pub const IOC_TYPE: u32 = 0xBB;
/// `VMBEAM_NOT_ATTEMPTED`: status of a pair that has not been looked at.
pub const NOT_ATTEMPTED: i32 = 1;
/// `VMBEAM_FEATURE_SWAP`: the hypervisor implements the swap of frames.
pub const FEATURE_SWAP: u64 = 1;

/// `_IOC(dir, type, nr, size)` of `asm-generic/ioctl.h`.
const fn ioc(dir: u32, ty: u32, nr: u32, size: usize) -> u32 {
    (dir << 30) | ((size as u32) << 16) | (ty << 8) | nr
}

/// `_IOWR(VMBEAM_IOC_TYPE, nr, T)`: read and write are 3.
const fn iowr<T>(nr: u32) -> u32 {
    ioc(3, IOC_TYPE, nr, size_of::<T>())
}

/// `VMBEAM_IOCTL_INFO`
pub const IOCTL_INFO: u32 = iowr::<Info>(0);
/// `VMBEAM_IOCTL_OPEN`
pub const IOCTL_OPEN: u32 = iowr::<Open>(1);
/// `VMBEAM_IOCTL_ADD`
pub const IOCTL_ADD: u32 = iowr::<Add>(2);
/// `VMBEAM_IOCTL_PREPARE`
pub const IOCTL_PREPARE: u32 = iowr::<Prepare>(3);
/// `VMBEAM_IOCTL_COMMIT`
pub const IOCTL_COMMIT: u32 = iowr::<Commit>(4);
/// `VMBEAM_IOCTL_STATUS`
pub const IOCTL_STATUS: u32 = iowr::<Status>(5);
/// `VMBEAM_IOCTL_ROLLBACK`
pub const IOCTL_ROLLBACK: u32 = iowr::<Rollback>(6);

/// Declare one structure of the header: every field public and documented by
/// its name in C, the size and each offset checked, no padding possible.
macro_rules! uapi_struct {
    ($(#[$doc:meta])* $name:ident, $size:literal { $($field:ident: $ty:ty = $off:literal,)* }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $(#[doc = concat!("`", stringify!($field), "` of the C structure")] pub $field: $ty,)*
        }

        const _: () = {
            assert!(size_of::<$name>() == $size);
            $(assert!(offset_of!($name, $field) == $off);)*
            // Equal sums mean that there is no implicit padding.
            assert!(0 $(+ size_of::<$ty>())* == $size);
        };
    };
}

uapi_struct! {
    /// `struct vmbeam_info`
    Info, 40 {
        size: u32 = 0,
        flags: u32 = 4,
        features: u64 = 8,
        max_add_runs: u32 = 16,
        batch_pairs: u32 = 20,
        max_runs: u64 = 24,
        max_pairs: u64 = 32,
    }
}

uapi_struct! {
    /// `struct vmbeam_open`
    Open, 16 {
        size: u32 = 0,
        flags: u32 = 4,
        domid_a: u32 = 8,
        domid_b: u32 = 12,
    }
}

uapi_struct! {
    /// `struct vmbeam_run`
    Run, 24 {
        gfn_a: u64 = 0,
        gfn_b: u64 = 8,
        nr: u32 = 16,
        reserved: u32 = 20,
    }
}

uapi_struct! {
    /// `struct vmbeam_add`
    Add, 40 {
        size: u32 = 0,
        flags: u32 = 4,
        runs: u64 = 8,
        nr_runs: u32 = 16,
        bad_run: u32 = 20,
        total_runs: u64 = 24,
        total_pairs: u64 = 32,
    }
}

uapi_struct! {
    /// `struct vmbeam_prepare`
    Prepare, 48 {
        size: u32 = 0,
        flags: u32 = 4,
        first: u64 = 8,
        nr: u64 = 16,
        status: u64 = 24,
        done: u64 = 32,
        refused: u64 = 40,
    }
}

uapi_struct! {
    /// `struct vmbeam_commit`
    Commit, 56 {
        size: u32 = 0,
        flags: u32 = 4,
        expected: u64 = 8,
        nr: u64 = 16,
        status: u64 = 24,
        cursor: u64 = 32,
        swapped: u64 = 40,
        refused: u64 = 48,
    }
}

uapi_struct! {
    /// `struct vmbeam_status`
    Status, 80 {
        size: u32 = 0,
        flags: u32 = 4,
        state: u32 = 8,
        domid_a: u32 = 12,
        domid_b: u32 = 16,
        reserved: u32 = 20,
        runs: u64 = 24,
        pairs: u64 = 32,
        cursor: u64 = 40,
        swapped: u64 = 48,
        refused: u64 = 56,
        hypercalls: u64 = 64,
        tlb_flushes: u64 = 72,
    }
}

uapi_struct! {
    /// `struct vmbeam_rollback`
    Rollback, 32 {
        size: u32 = 0,
        flags: u32 = 4,
        expected: u64 = 8,
        cursor: u64 = 16,
        swapped: u64 = 24,
    }
}

/// `enum vmbeam_state`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// No `OPEN` yet.
    Unbound = 0,
    /// Bound to two domains, no runs.
    Empty = 1,
    /// Has runs, nothing swapped.
    Loaded = 2,
    /// The pairs before the cursor have been dealt with.
    Committing = 3,
    /// Every pair has been dealt with.
    Committed = 4,
    /// The pairs at and after the cursor are back.
    RollingBack = 5,
    /// Every pair is where it was at first.
    RolledBack = 6,
}

impl State {
    /// The state with this number, if there is one.
    pub fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            0 => Self::Unbound,
            1 => Self::Empty,
            2 => Self::Loaded,
            3 => Self::Committing,
            4 => Self::Committed,
            5 => Self::RollingBack,
            6 => Self::RolledBack,
            _ => return None,
        })
    }
}
