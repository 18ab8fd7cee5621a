// SPDX-License-Identifier: GPL-2.0-only

//! The page through which the stress program tells a vCPU what to do. Compiled
//! into both the program and the guest.

use core::sync::atomic::AtomicU64;

/// Add one to words of frames until told to stop.
pub const WRITE: u64 = 1;
/// Read the time stamp counter without end and note the longest gap.
pub const COUNT: u64 = 2;
/// Give frames back and populate them again until told to stop.
pub const BALLOON: u64 = 3;
/// Map frames that another domain granted, write to them, unmap them.
pub const GRANT: u64 = 4;
/// Call `XENMEM_swap_frames` with arbitrary arguments.
pub const FUZZ: u64 = 5;
/// Read and write frames by instructions that the hypervisor emulates.
pub const EMULATE: u64 = 6;
/// Look for writes of another domain to frames that this one has.
pub const WATCH: u64 = 7;

/// Guest-physical addresses of the parts of a guest.
pub const IMAGE: u64 = 0x10_0000;
/// One page for each vCPU.
pub const MAILBOXES: u64 = 0x20_0000;
/// 16 KiB for each vCPU.
pub const STACKS: u64 = 0x22_0000;
/// Page tables.
pub const TABLES: u64 = 0x24_0000;
/// The grant table.
pub const GRANTS: u64 = 0x25_0000;
/// First frame that has no place here.
pub const LOW_END: u64 = 0x24_8000;

/// Word 0 of a frame is its number: this, the domain that it was first in plus one in
/// bits 32 to 39, and its place in the window below.
pub const NUMBER: u64 = 0x5741_0000_0000_0000;
/// Words of a frame: 0 says which frame it is, the next ones belong to one vCPU each.
pub const SLOT: u64 = 8;
/// Words that vCPUs with the same number in different domains share.
pub const SHARED: u64 = 48;
/// First word of those that `EMULATE` writes to: a half of them for each of two domains.
pub const EMULATED: u64 = 64;
/// Words that it writes to at a time: half by a store, half by a copy. At least two
/// each, as the hypervisor emulates a single one in another way.
pub const CHUNK: u64 = 4;
/// How often each of the two domains can write to a frame before it has to begin again.
pub const CHUNKS: u64 = (512 - EMULATED) / 2 / CHUNK;

/// The page.
#[repr(C)]
#[derive(Debug)]
pub struct Mailbox {
    /// What to do; zero when it is done.
    pub command: AtomicU64,
    /// Not zero: end the command soon.
    pub stop: AtomicU64,
    /// Swaps that were begun by anybody, and those that ended.
    pub begun: AtomicU64,
    /// See `begun`.
    pub ended: AtomicU64,
    /// Arguments of the command.
    pub arg: [AtomicU64; 8],
    /// Its results.
    pub result: [AtomicU64; 8],
    /// `COUNT`: gaps by the logarithm of their length.
    pub gaps: [AtomicU64; 64],
    /// `FUZZ`: results by error number.
    pub errors: [AtomicU64; 128],
}

impl Mailbox {
    /// An empty one.
    pub const fn new() -> Self {
        Self {
            command: AtomicU64::new(0),
            stop: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            arg: [const { AtomicU64::new(0) }; 8],
            result: [const { AtomicU64::new(0) }; 8],
            gaps: [const { AtomicU64::new(0) }; 64],
            errors: [const { AtomicU64::new(0) }; 128],
        }
    }
}
