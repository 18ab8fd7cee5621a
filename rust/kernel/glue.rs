// SPDX-License-Identifier: GPL-2.0-only

//! What the kernel crate has no safe function for, apart from the hypercall:
//! tracepoints, references to the module, a lock that is not in a structure.
//!
//! Like [`xen`](super::xen) it holds `unsafe` code so that the driver has none.

use core::ffi::{
    c_int,
    c_uint, //
};

use kernel::{
    bindings,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    workqueue::Queue, //
};

use crate::{
    pairs::Filled,
    records::Table,
    uapi,
    xen::{
        Domains,
        Mode,
        Reply, //
    },
    xen_abi::SwapRun,
};

extern "C" {
    fn vmbeam_pin_module();
    fn vmbeam_unpin_module();
    fn vmbeam_in_kthread() -> bool;
    fn vmbeam_workqueue_create() -> c_int;
    fn vmbeam_workqueue_destroy();
    fn vmbeam_workqueue_get() -> *const bindings::workqueue_struct;
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

kernel::sync::global_lock! {
    // SAFETY: `init()` is called before the device exists, and nothing else leads here.
    pub(crate) unsafe(uninit) static RECORDS: Mutex<Table> = Table::new();
}

/// To be called by the module's `init` before anything else of the driver.
pub(crate) fn init() {
    static DONE: Atomic<i32> = Atomic::new(0);

    if DONE.xchg(1, Relaxed) == 0 {
        // SAFETY: Once, because of `DONE`.
        unsafe { RECORDS.init() };
        #[cfg(vmbeam_debug)]
        // SAFETY: As above.
        unsafe {
            MOCK.init()
        };
    }
}

/// Keeps the module from being unloaded. For file operations, which have the reference of
/// their open file besides.
pub(crate) struct ModuleRef(());

impl ModuleRef {
    /// Take a reference.
    pub(crate) fn get() -> Self {
        // SAFETY: This code runs, so the module is there.
        unsafe { vmbeam_pin_module() };
        Self(())
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: `get()` has taken the reference, and nothing else gives it back.
        unsafe { vmbeam_unpin_module() };
    }
}

/// Whether this is a thread of the kernel's own, in which nobody waits for one file only.
pub(crate) fn in_kthread() -> bool {
    // SAFETY: It takes nothing and reads a field of the current thread.
    unsafe { vmbeam_in_kthread() }
}

/// The driver's workqueue, for as long as this lives: one at a time.
pub(crate) struct WorkQueue(());

impl WorkQueue {
    /// Make it.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: May be called by any code that may sleep, as a module's `init` may.
        kernel::error::to_result(unsafe { vmbeam_workqueue_create() })?;
        Ok(Self(()))
    }

    /// The queue, for files of the device, which exists only as long as the queue does.
    pub(crate) fn get() -> &'static Queue {
        // SAFETY: The module has made it before the device and destroys it after the last
        // file is gone.
        unsafe { Queue::from_raw(vmbeam_workqueue_get()) }
    }
}

impl Drop for WorkQueue {
    fn drop(&mut self) {
        // SAFETY: It was made by `new()`. This waits for what still runs in it.
        unsafe { vmbeam_workqueue_destroy() };
    }
}

/// A hypercall begins.
pub(crate) fn trace_begin(domains: Domains, mode: Mode, cursor: u32, filled: Filled) {
    // SAFETY: Numbers only, and any will do.
    unsafe {
        vmbeam_trace_begin(
            domains.a.into(),
            domains.b.into(),
            mode != Mode::Swap,
            cursor.into(),
            u32::try_from(filled.runs).unwrap_or(u32::MAX),
            filled.pairs,
        )
    };
}

/// A hypercall for `runs` has ended with these `status`.
pub(crate) fn trace_end(
    domains: Domains,
    mode: Mode,
    cursor: u32,
    reply: &Reply,
    runs: &[SwapRun],
    status: &[i32],
) {
    let (a, b, check) = (domains.a.into(), domains.b.into(), mode != Mode::Swap);

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

#[cfg(vmbeam_debug)]
mod debug {
    use super::*;

    extern "C" {
        fn vmbeam_debug_raise(signal: c_int);
        fn vmbeam_debug_sleep(msecs: c_uint);
    }

    kernel::sync::global_lock! {
        // SAFETY: As for `RECORDS`.
        pub(crate) unsafe(uninit) static MOCK: Mutex<crate::debug::mock::Domains> =
            crate::debug::mock::Domains::new();
    }

    /// Send a signal to the current thread.
    pub(crate) fn raise(signal: i32) {
        // SAFETY: The C function checks the number.
        unsafe { vmbeam_debug_raise(signal) };
    }

    /// Sleep; no signal ends it.
    pub(crate) fn sleep(msecs: u32) {
        // SAFETY: May be called by any code that may sleep. It is only called by file operations,
        // which hold no spin lock.
        unsafe { vmbeam_debug_sleep(msecs) };
    }
}
#[cfg(vmbeam_debug)]
pub(crate) use debug::{
    raise,
    sleep,
    MOCK, //
};
