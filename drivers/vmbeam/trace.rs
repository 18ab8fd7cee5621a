// SPDX-License-Identifier: GPL-2.0-only

//! Trace events. `vmbeam_events.c` defines them, which only C can, and declares the functions.

use kernel::prelude::*;

use crate::{
    hypervisor::Reply,
    pairs::Filled,
    uapi,
    xen::{
        Domains,
        What, //
    },
    xen_abi::SwapRun,
};

extern "C" {
    fn vmbeam_trace_begin(a: c_uint, b: c_uint, check: bool, cursor: u64, runs: u32, pairs: u32);
    fn vmbeam_trace_end(
        a: c_uint,
        b: c_uint,
        check: bool,
        cursor: u64,
        done: u64,
        tlb_flushes: u64,
        ret: c_int,
    );
    fn vmbeam_trace_refused_enabled() -> bool;
    fn vmbeam_trace_refused(a: c_uint, b: c_uint, check: bool, gfn_a: u64, gfn_b: u64, why: c_int);
    fn vmbeam_record_kept(id: u64, a: c_uint, b: c_uint, swapped: u64, why: c_int);
}

/// A hypercall begins.
pub(crate) fn begin(domains: Domains, what: What, cursor: u32, filled: Filled) {
    // SAFETY: Numbers only, and any will do.
    unsafe {
        vmbeam_trace_begin(
            domains.a.into(),
            domains.b.into(),
            !what.swaps(),
            cursor.into(),
            u32::try_from(filled.runs).unwrap_or(u32::MAX),
            filled.pairs,
        )
    };
}

/// A hypercall for `runs` has ended with these `status`.
pub(crate) fn end(
    domains: Domains,
    what: What,
    cursor: u32,
    reply: &Reply,
    runs: &[SwapRun],
    status: &[i32],
) {
    let (a, b, check) = (domains.a.into(), domains.b.into(), !what.swaps());

    // SAFETY: Numbers only, and any will do.
    unsafe {
        vmbeam_trace_end(
            a,
            b,
            check,
            cursor.into(),
            reply.done,
            reply.stats.tlb_flushes,
            reply.result.err().map_or(0, Error::to_errno),
        )
    };
    // SAFETY: It takes nothing and only reads a static key.
    if !unsafe { vmbeam_trace_refused_enabled() } {
        return;
    }

    let mut status = status.iter();
    for run in runs {
        for i in 0..u64::from(run.nr) {
            let Some(why) = status.next() else {
                return;
            };
            if *why != 0 {
                let (gfn_a, gfn_b) = (run.gfn_a.wrapping_add(i), run.gfn_b.wrapping_add(i));
                // SAFETY: Numbers only, and any will do.
                unsafe { vmbeam_trace_refused(a, b, check, gfn_a, gfn_b, *why) };
            }
        }
    }
}

/// Half a move was kept as record `id`: trace it and, at a limited rate, log it.
pub(crate) fn record_kept(id: u64, left: &uapi::Status, why: Error) {
    // SAFETY: Numbers only, and any will do.
    unsafe { vmbeam_record_kept(id, left.domid_a, left.domid_b, left.swapped, why.to_errno()) };
}
