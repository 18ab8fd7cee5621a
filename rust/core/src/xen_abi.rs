// SPDX-License-Identifier: GPL-2.0-only

//! The swap hypercall of the patched hypervisor (`xen/include/public/memory.h`
//! there): `XENMEM_swap_frames`, a sub-operation of `memory_op`.

/// Number of the sub-operation.
pub const XENMEM_SWAP_FRAMES: u32 = 48;

/// Flag: report the statuses and change nothing.
pub const SWAP_CHECK: u32 = 1;

/// Most runs in one hypercall.
pub const SWAP_MAX_RUNS: usize = 1024;

/// Most pairs in one hypercall.
pub const SWAP_MAX_PAIRS: usize = 1 << 20;

/// Highest number that an ordinary domain can have.
pub const LAST_DOMID: u32 = 0x7fef;

/// `xen_mem_swap_run_t`: frames that follow each other in both domains.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwapRun {
    /// First frame in domain A.
    pub gfn_a: u64,
    /// First frame in domain B.
    pub gfn_b: u64,
    /// Number of pairs, at least 1.
    pub nr: u32,
    /// Must be 0.
    pub pad: u32,
}

/// `xen_mem_swap_frames_t`: one request.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwapFrames {
    /// First domain.
    pub domid_a: u16,
    /// Second domain.
    pub domid_b: u16,
    /// 0 or [`SWAP_CHECK`].
    pub flags: u32,
    /// Number of runs; 0 only with [`SWAP_CHECK`]: check the domains only.
    pub nr_runs: u32,
    /// Must be 0.
    pub pad: u32,
    /// Address of the runs.
    pub runs: u64,
    /// Out: address of one `i32` a pair.
    pub status: u64,
    /// Sum of the runs' `nr`.
    pub nr_pairs: u64,
    /// In and out: pairs dealt with, in order.
    pub done: u64,
    /// In and out: pairs swapped are added.
    pub swapped: u64,
    /// In and out: TLB flushes are added.
    pub tlb_flushes: u64,
    /// In and out: batches are added.
    pub batches: u64,
}

const _: () = {
    use core::mem::{
        offset_of,
        size_of, //
    };

    // vmbeam_glue.c asserts the same of the C declaration.
    assert!(size_of::<SwapRun>() == 24);
    assert!(offset_of!(SwapRun, gfn_b) == 8);
    assert!(offset_of!(SwapRun, nr) == 16);
    assert!(offset_of!(SwapRun, pad) == 20);
    assert!(size_of::<SwapFrames>() == 72);
    assert!(offset_of!(SwapFrames, domid_b) == 2);
    assert!(offset_of!(SwapFrames, flags) == 4);
    assert!(offset_of!(SwapFrames, nr_runs) == 8);
    assert!(offset_of!(SwapFrames, pad) == 12);
    assert!(offset_of!(SwapFrames, runs) == 16);
    assert!(offset_of!(SwapFrames, status) == 24);
    assert!(offset_of!(SwapFrames, nr_pairs) == 32);
    assert!(offset_of!(SwapFrames, done) == 40);
    assert!(offset_of!(SwapFrames, swapped) == 48);
    assert!(offset_of!(SwapFrames, tlb_flushes) == 56);
    assert!(offset_of!(SwapFrames, batches) == 64);
};
