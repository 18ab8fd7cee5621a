// SPDX-License-Identifier: GPL-2.0-only

//! The interface of `/dev/vmbeam`, as `include/uapi/linux/vmbeam.h` has it.
//!
//! The header says what every field means. The structures are written by hand
//! because a module outside the kernel tree cannot run the kernel's bindgen; the
//! numbers at the end, which `vmbeam_abi.c` asserts of the header as well, keep
//! the two together.

use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout, //
};

/// Type byte of every ioctl of the device.
pub const IOC_TYPE: u32 = 0xbb;

/// `VMBEAM_CMD_INFO`
pub const NR_INFO: u32 = 0x80;
/// `VMBEAM_CMD_BIND`
pub const NR_BIND: u32 = 0x81;
/// `VMBEAM_CMD_ADD`
pub const NR_ADD: u32 = 0x82;
/// `VMBEAM_CMD_CHECK`
pub const NR_CHECK: u32 = 0x83;
/// `VMBEAM_CMD_COMMIT`
pub const NR_COMMIT: u32 = 0x84;
/// `VMBEAM_CMD_STATUS`
pub const NR_STATUS: u32 = 0x85;
/// `VMBEAM_CMD_ROLLBACK`
pub const NR_ROLLBACK: u32 = 0x86;
/// `VMBEAM_CMD_CANCEL`
pub const NR_CANCEL: u32 = 0x87;
/// `VMBEAM_CMD_RECORD`
pub const NR_RECORD: u32 = 0x88;
/// `VMBEAM_CMD_ADOPT`
pub const NR_ADOPT: u32 = 0x89;
/// `VMBEAM_CMD_ABANDON`
pub const NR_ABANDON: u32 = 0x8a;

/// The whole number of an ioctl: `_IO(VMBEAM_IOC_TYPE, nr)`.
pub const fn ioctl(nr: u32) -> u32 {
    (IOC_TYPE << 8) | nr
}

/// `vmbeam_info.features`: the hypervisor implements the swap.
pub const FEATURE_SWAP: u64 = 1 << 0;
/// And [`BIND_KEEP`].
pub const FEATURE_KEEP: u64 = 1 << 1;
/// And [`BIND_TO_B`] and [`BIND_TO_A`].
pub const FEATURE_RELOCATE: u64 = 1 << 2;

/// `vmbeam_bind.flags`: what is in the frames stays where it is.
pub const BIND_KEEP: u32 = 1 << 0;
/// Frames may go from A to B with none in return.
pub const BIND_TO_B: u32 = 1 << 1;
/// Frames may go from B to A with none in return.
pub const BIND_TO_A: u32 = 1 << 2;

/// No `VMBEAM_IOCTL_BIND` yet.
pub const STATE_UNBOUND: u32 = 0;
/// Bound to two domains, no runs.
pub const STATE_EMPTY: u32 = 1;
/// Has runs, nothing swapped.
pub const STATE_LOADED: u32 = 2;
/// The pairs before the cursor have been dealt with.
pub const STATE_COMMITTING: u32 = 3;
/// Every pair has been dealt with.
pub const STATE_COMMITTED: u32 = 4;
/// The pairs at and after the cursor are back.
pub const STATE_ROLLING_BACK: u32 = 5;
/// Every pair is where it was at first.
pub const STATE_ROLLED_BACK: u32 = 6;
/// Was bound, and `VMBEAM_IOCTL_ABANDON` came.
pub const STATE_ABANDONED: u32 = 7;

macro_rules! abi_struct {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
        pub struct $name {
            $($(#[$fdoc])* pub $field: $ty,)*
        }
    };
}

abi_struct! {
    /// `struct vmbeam_info`
    Info {
        /// Size of this structure.
        size: u32,
        /// Must be 0.
        flags: u32,
        /// Out: `FEATURE_*`.
        features: u64,
        /// Out: most runs in one `ADD`.
        max_add_runs: u32,
        /// Out: most pairs that one hypercall is given.
        batch_pairs: u32,
        /// Out: most runs in one session.
        max_runs: u64,
        /// Out: most pairs in one session.
        max_pairs: u64,
    }
}

abi_struct! {
    /// `struct vmbeam_bind`
    Bind {
        /// Size of this structure.
        size: u32,
        /// At most one of `BIND_*`.
        flags: u32,
        /// First domain.
        domid_a: u32,
        /// Second domain.
        domid_b: u32,
        /// In: 0, or the unique id of the first domain; out: that id.
        id_a: u64,
        /// The same of the second domain.
        id_b: u64,
    }
}

abi_struct! {
    /// `struct vmbeam_run`
    Run {
        /// First frame in domain A.
        gfn_a: u64,
        /// First frame in domain B.
        gfn_b: u64,
        /// Number of pairs.
        nr: u32,
        /// Must be 0.
        reserved: u32,
    }
}

abi_struct! {
    /// `struct vmbeam_add`
    Add {
        /// Size of this structure.
        size: u32,
        /// Must be 0.
        flags: u32,
        /// Address of the runs.
        runs: u64,
        /// Number of runs.
        nr_runs: u32,
        /// Out: index of the run that was not taken.
        bad_run: u32,
        /// Out: runs in the session.
        total_runs: u64,
        /// Out: pairs in the session.
        total_pairs: u64,
    }
}

abi_struct! {
    /// `struct vmbeam_check`
    Check {
        /// Size of this structure.
        size: u32,
        /// Must be 0.
        flags: u32,
        /// First pair to check.
        first: u64,
        /// Pairs to check, 0 for all.
        nr: u64,
        /// Address of the statuses, or 0.
        status: u64,
        /// Frames that would go over with none in return before these pairs.
        moves_before: u64,
        /// Out: pairs checked.
        done: u64,
        /// Out: pairs that would be refused.
        refused: u64,
        /// Out: frames that would go over with none in return.
        moves: u64,
    }
}

abi_struct! {
    /// `struct vmbeam_commit`
    Commit {
        /// Size of this structure.
        size: u32,
        /// Must be 0.
        flags: u32,
        /// Where the caller believes the cursor to be.
        expected: u64,
        /// Pairs to deal with, 0 for all.
        nr: u64,
        /// Address of the statuses, or 0.
        status: u64,
        /// Out: first pair not dealt with.
        cursor: u64,
        /// Out: pairs swapped by this call.
        swapped: u64,
        /// Out: pairs refused by this call.
        refused: u64,
        /// Out: frames that went over with none in return.
        moved: u64,
    }
}

abi_struct! {
    /// `struct vmbeam_status`
    Status {
        /// Size of this structure.
        size: u32,
        /// Must be 0.
        flags: u32,
        /// Out: `STATE_*`.
        state: u32,
        /// Out: first domain.
        domid_a: u32,
        /// Out: second domain.
        domid_b: u32,
        /// Out: number of the ioctl that works on the session now, or 0.
        activity: u32,
        /// Out: runs.
        runs: u64,
        /// Out: pairs.
        pairs: u64,
        /// Out: first pair not dealt with.
        cursor: u64,
        /// Out: pairs that are swapped now.
        swapped: u64,
        /// Out: pairs before the cursor that were refused.
        refused: u64,
        /// Out: `BIND_*`.
        mode: u32,
        /// Out: 0.
        reserved: u32,
        /// Out: frames that are over with none in return.
        moved: u64,
    }
}

abi_struct! {
    /// `struct vmbeam_rollback`
    Rollback {
        /// Size of this structure.
        size: u32,
        /// Must be 0.
        flags: u32,
        /// Where the caller believes the cursor to be.
        expected: u64,
        /// Out: pairs that remain to be put back.
        cursor: u64,
        /// Out: pairs put back by this call.
        restored: u64,
    }
}

abi_struct! {
    /// `struct vmbeam_cancel`
    Cancel {
        /// Size of this structure.
        size: u32,
        /// Must be 0.
        flags: u32,
    }
}

abi_struct! {
    /// `struct vmbeam_record`
    Record {
        /// Size of this structure.
        size: u32,
        /// Must be 0.
        flags: u32,
        /// In: the record before; out: what to call it.
        id: u64,
        /// Out: first domain.
        domid_a: u32,
        /// Out: second domain.
        domid_b: u32,
        /// Out: unique id of the first domain.
        id_a: u64,
        /// Out: unique id of the second domain.
        id_b: u64,
        /// Out: `STATE_*`.
        state: u32,
        /// Out: why it could not be rolled back.
        error: i32,
        /// Out: when it was kept, in seconds since 1970.
        time: u64,
        /// Out: the process that had bound the session.
        pid: u32,
        /// Out: 0.
        reserved: u32,
        /// Out: runs.
        runs: u64,
        /// Out: pairs.
        pairs: u64,
        /// Out: where the cursor is.
        cursor: u64,
        /// Out: pairs that are swapped still.
        swapped: u64,
        /// Out: pairs before the cursor that were refused.
        refused: u64,
        /// Out: `BIND_*`.
        mode: u32,
        /// Out: 0.
        reserved2: u32,
        /// Out: frames that are over with none in return.
        moved: u64,
    }
}

abi_struct! {
    /// `struct vmbeam_adopt`
    Adopt {
        /// Size of this structure.
        size: u32,
        /// Must be 0.
        flags: u32,
        /// Which record.
        id: u64,
    }
}

abi_struct! {
    /// `struct vmbeam_abandon`
    Abandon {
        /// Size of this structure.
        size: u32,
        /// Must be 0.
        flags: u32,
        /// Where the caller believes the cursor to be.
        expected: u64,
        /// Out: where it is.
        cursor: u64,
    }
}

/// What every request structure begins with.
pub trait Request: zerocopy::FromBytes + zerocopy::IntoBytes + zerocopy::Immutable {
    /// Size of the structure in version 1 of the interface; callers may pass that.
    const FIRST_SIZE: usize;

    /// The flags that there are.
    const FLAGS: u32;

    /// The flags that the caller set.
    fn flags(&self) -> u32;
}

macro_rules! request {
    ($($name:ident: $first:literal, $flags:expr;)*) => {
        $(impl Request for $name {
            const FIRST_SIZE: usize = $first;
            const FLAGS: u32 = $flags;
            fn flags(&self) -> u32 {
                self.flags
            }
        })*
    };
}

request! {
    Info: 40, 0; Bind: 32, BIND_KEEP | BIND_TO_B | BIND_TO_A; Add: 40, 0; Check: 64, 0;
    Commit: 64, 0; Status: 80, 0; Rollback: 32, 0; Cancel: 8, 0; Record: 120, 0; Adopt: 16, 0;
    Abandon: 24, 0;
}

macro_rules! assert_layout {
    ($name:ident, $size:literal, $($field:ident: $offset:literal),*) => {
        const _: () = {
            assert!(core::mem::size_of::<$name>() == $size);
            $(assert!(core::mem::offset_of!($name, $field) == $offset);)*
        };
    };
}

assert_layout!(Info, 40, features: 8, max_add_runs: 16, batch_pairs: 20, max_runs: 24,
    max_pairs: 32);
assert_layout!(Bind, 32, domid_a: 8, domid_b: 12, id_a: 16, id_b: 24);
assert_layout!(Run, 24, gfn_a: 0, gfn_b: 8, nr: 16, reserved: 20);
assert_layout!(Add, 40, runs: 8, nr_runs: 16, bad_run: 20, total_runs: 24, total_pairs: 32);
assert_layout!(Check, 64, first: 8, nr: 16, status: 24, moves_before: 32, done: 40, refused: 48,
    moves: 56);
assert_layout!(Commit, 64, expected: 8, nr: 16, status: 24, cursor: 32, swapped: 40, refused: 48,
    moved: 56);
assert_layout!(Status, 80, state: 8, domid_a: 12, domid_b: 16, activity: 20, runs: 24, pairs: 32,
    cursor: 40, swapped: 48, refused: 56, mode: 64, reserved: 68, moved: 72);
assert_layout!(Rollback, 32, expected: 8, cursor: 16, restored: 24);
assert_layout!(Cancel, 8, size: 0, flags: 4);
assert_layout!(Record, 120, id: 8, domid_a: 16, domid_b: 20, id_a: 24, id_b: 32, state: 40,
    error: 44, time: 48, pid: 56, reserved: 60, runs: 64, pairs: 72, cursor: 80, swapped: 88,
    refused: 96, mode: 104, reserved2: 108, moved: 112);
assert_layout!(Adopt, 16, id: 8);
assert_layout!(Abandon, 24, expected: 8, cursor: 16);
