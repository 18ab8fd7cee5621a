// SPDX-License-Identifier: GPL-2.0-only

//! The swap hypercall of the patched hypervisor (`xen/include/public/memory.h`
//! there): `XENMEM_swap_frames`, a sub-operation of `memory_op`.

/// Number of the sub-operation.
pub const XENMEM_SWAP_FRAMES: u32 = 48;

/// The version of the interface that this file describes.
pub const SWAP_VERSION: u32 = 5;

/// Flag: report the statuses and change nothing.
pub const SWAP_CHECK: u32 = 1;

/// Flag, only with [`SWAP_CHECK`]: ask the device models to give up mappings that they merely
/// keep in stock.
pub const SWAP_UNMAP: u32 = 2;

/// Flag: what is in the frames of a pair changes places with them, so that neither domain sees
/// a difference. Alone, or with [`SWAP_CHECK`] and [`SWAP_UNMAP`]; so are the next two.
pub const SWAP_KEEP: u32 = 1 << 2;

/// Flag: frames of domain B may go over where A has populate-on-demand.
pub const SWAP_TO_A: u32 = 1 << 3;

/// Flag: frames of domain A may go over where B has populate-on-demand.
pub const SWAP_TO_B: u32 = 1 << 4;

/// Flag, only with [`SWAP_TO_A`] or [`SWAP_TO_B`]: this undoes what was done with the other one
/// of them, and no pair is refused because the hypervisor has no memory for the cache of the
/// domain that gives.
pub const SWAP_UNDO: u32 = 1 << 5;

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

/// What a request took: the counters in the order of their numbers
/// (`XENMEM_SWAP_STAT_*`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwapStats {
    /// Pairs swapped.
    pub swapped: u64,
    /// Batches.
    pub batches: u64,
    /// Rounds of TLB flushes: of all CPUs for each batch, of those that one domain runs on
    /// for each superpage that is put together.
    pub tlb_flushes: u64,
    /// Flushes of the nested P2Ms of one domain.
    pub nested_flushes: u64,
    /// P2M entries removed or written.
    pub p2m_writes: u64,
    /// Pairs of 2 MiB entries exchanged whole.
    pub superpages: u64,
    /// 2 MiB entries split.
    pub splits_2m: u64,
    /// 1 GiB entries split.
    pub splits_1g: u64,
    /// 2 MiB entries put together.
    pub merges_2m: u64,
    /// 1 GiB entries put together.
    pub merges_1g: u64,
    /// Frames marked as dirty.
    pub dirtied: u64,
    /// Continuations of the hypercall.
    pub preempted: u64,
}

/// `xen_mem_swap_frames_t`: one request.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwapFrames {
    /// First domain.
    pub domid_a: u16,
    /// Second domain.
    pub domid_b: u16,
    /// `SWAP_*`
    pub flags: u32,
    /// Number of runs; 0 only with [`SWAP_CHECK`]: check the domains only.
    pub nr_runs: u32,
    /// [`SWAP_VERSION`].
    pub version: u32,
    /// Address of the runs.
    pub runs: u64,
    /// Out: address of one `i32` a pair.
    pub status: u64,
    /// Sum of the runs' `nr`.
    pub nr_pairs: u64,
    /// In and out: pairs dealt with, in order.
    pub done: u64,
    /// In and out: the id of the first domain, which no other one ever has; 0 if it is not
    /// known.
    pub id_a: u64,
    /// In and out: that of the second one.
    pub id_b: u64,
    /// In and out: address of the counters, to which is added.
    pub stats: u64,
    /// How many counters there is room for.
    pub nr_stats: u32,
    /// Must be 0.
    pub pad: u32,
    /// In and out: frames that went to A with none in return, to which is added. A check counts
    /// what comes in against the domain's maximum of memory.
    pub to_a: u64,
    /// The same to B.
    pub to_b: u64,
}

/// Counters in [`SwapStats`].
pub const SWAP_NR_STATS: usize = core::mem::size_of::<SwapStats>() / core::mem::size_of::<u64>();

const _: () = {
    use core::mem::{
        offset_of,
        size_of, //
    };

    // vmbeam_abi.c asserts the same of the C declaration.
    assert!(size_of::<SwapRun>() == 24);
    assert!(offset_of!(SwapRun, gfn_b) == 8);
    assert!(offset_of!(SwapRun, nr) == 16);
    assert!(offset_of!(SwapRun, pad) == 20);
    assert!(SWAP_NR_STATS == 12);
    assert!(offset_of!(SwapStats, batches) == 8);
    assert!(offset_of!(SwapStats, tlb_flushes) == 16);
    assert!(offset_of!(SwapStats, p2m_writes) == 32);
    assert!(offset_of!(SwapStats, superpages) == 40);
    assert!(offset_of!(SwapStats, splits_2m) == 48);
    assert!(offset_of!(SwapStats, splits_1g) == 56);
    assert!(offset_of!(SwapStats, merges_2m) == 64);
    assert!(offset_of!(SwapStats, merges_1g) == 72);
    assert!(offset_of!(SwapStats, preempted) == 88);
    assert!(size_of::<SwapFrames>() == 96);
    assert!(offset_of!(SwapFrames, domid_b) == 2);
    assert!(offset_of!(SwapFrames, flags) == 4);
    assert!(offset_of!(SwapFrames, nr_runs) == 8);
    assert!(offset_of!(SwapFrames, version) == 12);
    assert!(offset_of!(SwapFrames, runs) == 16);
    assert!(offset_of!(SwapFrames, status) == 24);
    assert!(offset_of!(SwapFrames, nr_pairs) == 32);
    assert!(offset_of!(SwapFrames, done) == 40);
    assert!(offset_of!(SwapFrames, id_a) == 48);
    assert!(offset_of!(SwapFrames, id_b) == 56);
    assert!(offset_of!(SwapFrames, stats) == 64);
    assert!(offset_of!(SwapFrames, nr_stats) == 72);
    assert!(offset_of!(SwapFrames, pad) == 76);
    assert!(offset_of!(SwapFrames, to_a) == 80);
    assert!(offset_of!(SwapFrames, to_b) == 88);
};
