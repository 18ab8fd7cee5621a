// SPDX-License-Identifier: GPL-2.0-only

//! Faults on request.
//!
//! Every request counts down: the event at which its counter reaches 0 is the one
//! that goes wrong. As the counter says afterwards whether it got there, a test
//! can try 1, 2, 3 and so on until nothing fails any more.

use kernel::{
    alloc::AllocError,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
};

use crate::xen_abi::{
    SwapFrames,
    SwapRun, //
};

extern "C" {
    fn vmbeam_debug_raise(signal: c_int);
    fn vmbeam_debug_sleep(msecs: c_uint);
}

const CLAIM_MORE: u32 = 1;
const CLAIM_ALL: u32 = 2;

/// Counts events until one that is to go wrong.
struct Countdown(Atomic<i64>);

impl Countdown {
    const fn new() -> Self {
        Self(Atomic::new(0))
    }

    /// Start at `nr`, 0 to have no event go wrong. Returns what was left.
    fn set(&self, nr: u64) -> u64 {
        let nr = i64::try_from(nr).unwrap_or(i64::MAX);
        u64::try_from(self.0.xchg(nr, Relaxed)).unwrap_or(0)
    }

    /// Whether this is the one.
    fn expired(&self) -> bool {
        self.0.fetch_add(-1, Relaxed) == 1
    }
}

static ALLOCATIONS: Countdown = Countdown::new();
static CALLS: Countdown = Countdown::new();
static CALL_RUNS: Atomic<u64> = Atomic::new(0);
static CALL_RETURNS: Atomic<i32> = Atomic::new(0);
static CALL_CLAIMS: Atomic<u32> = Atomic::new(0);
static SIGNALS: Countdown = Countdown::new();
static SIGNAL: Atomic<i32> = Atomic::new(0);
static SLEEP: Atomic<u64> = Atomic::new(0);
static HOLDS: Countdown = Countdown::new();
static HELD: Atomic<bool> = Atomic::new(false);

/// How often a hypercall that is held looks up at most, every 10 ms: a test may have been killed.
const LOOKS: u32 = 1000;

/// The `nr`th allocation from now on is to fail.
pub(crate) fn fail_allocation(nr: u64) -> u64 {
    ALLOCATIONS.set(nr)
}

/// The `nr`th hypercall from now on is to deal with the first `runs` only and to
/// return `ret`. It can claim more pairs than it was given ([`CLAIM_MORE`]), or all of them
/// ([`CLAIM_ALL`]).
pub(crate) fn fail_call(nr: u64, runs: u64, ret: i32, claims: u32) -> u64 {
    CALL_RUNS.store(runs, Relaxed);
    CALL_RETURNS.store(ret, Relaxed);
    CALL_CLAIMS.store(claims, Relaxed);
    CALLS.set(nr)
}

/// After the `nr`th hypercall from now on its caller is to get a signal.
pub(crate) fn signal(nr: u64, signal: i32) -> u64 {
    SIGNAL.store(signal, Relaxed);
    SIGNALS.set(nr)
}

/// Each hypercall takes this many milliseconds longer.
pub(crate) fn slow(msecs: u64) {
    SLEEP.store(msecs, Relaxed);
}

/// The `nr`th hypercall from now on is to wait for the next call of this.
pub(crate) fn hold(nr: u64) -> u64 {
    let left = HOLDS.set(nr);
    HELD.store(false, Relaxed);
    left
}

/// Whether a hypercall waits.
pub(crate) fn holds() -> bool {
    HELD.load(Relaxed)
}

fn sleep(msecs: u32) {
    // SAFETY: May be called by any code that may sleep. File operations make hypercalls, with no
    // spin lock held.
    unsafe { vmbeam_debug_sleep(msecs) };
}

/// Called for each allocation.
pub(crate) fn allocation() -> Result<(), AllocError> {
    if ALLOCATIONS.expired() {
        return Err(AllocError);
    }
    Ok(())
}

/// Called for each hypercall; `real` is what it would do.
pub(crate) fn with_faults(
    request: &mut SwapFrames,
    runs: &[SwapRun],
    real: impl FnOnce(&mut SwapFrames, &[SwapRun]) -> c_int,
) -> c_int {
    if let Ok(msecs @ 1..) = u32::try_from(SLEEP.load(Relaxed)) {
        sleep(msecs);
    }
    if HOLDS.expired() {
        HELD.store(true, Relaxed);
        (0..LOOKS).take_while(|_| holds()).for_each(|_| sleep(10));
        HELD.store(false, Relaxed);
    }
    let mut ret;
    if CALLS.expired() {
        let pairs = (runs.iter().map(|run| u64::from(run.nr))).fold(0, u64::saturating_add);
        let wanted = usize::try_from(CALL_RUNS.load(Relaxed)).unwrap_or(usize::MAX);
        let runs = runs.get(..wanted.min(runs.len())).unwrap_or(runs);
        ret = 0;
        if !runs.is_empty() {
            ret = real(request, runs);
        }
        if ret == 0 {
            ret = CALL_RETURNS.load(Relaxed);
        }
        match CALL_CLAIMS.load(Relaxed) {
            CLAIM_MORE => request.done = pairs.saturating_add(u64::MAX / 2),
            CLAIM_ALL => request.done = pairs,
            _ => (),
        }
    } else {
        ret = real(request, runs);
    }
    if SIGNALS.expired() {
        // SAFETY: The C function checks the number.
        unsafe { vmbeam_debug_raise(SIGNAL.load(Relaxed)) };
    }
    ret
}
