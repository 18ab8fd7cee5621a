// SPDX-License-Identifier: GPL-2.0-only

//! The time that this thread has used, so that what else runs on the machine shows in
//! caches and memory only.

use std::time::Duration;

use nix::time::clock_gettime;
use nix::time::ClockId;

/// Seconds of CPU time so far.
pub fn now() -> f64 {
    // The clock exists, so this cannot fail.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(0.0, |t| Duration::from(t).as_secs_f64())
}

/// What `work` gives, and the seconds that it took.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = now();
    let result = work();
    (result, now() - start)
}
