// SPDX-License-Identifier: GPL-2.0-only

//! A swap of two domains that is measured: what it is given, and what Xen's code asks meanwhile.

use std::cell::Cell;

use anyhow::ensure;
use anyhow::Result;

use crate::world;
use crate::xen::event;
use crate::xen::Args;
use crate::xen::Run;
use crate::xen::Xen;
use crate::xen::RESTART;

/// Entries of a page table.
pub const ENTRIES: u64 = 512;
/// Xen's code as it is built for production.
pub const LIBRARY: &str = "build/harness/timed.so";

/// Frames of a side, in the order of the gfns.
#[derive(Debug)]
pub struct Side {
    /// Its domain.
    pub id: u16,
    /// The frames.
    pub mfns: Vec<u64>,
}

impl Side {
    /// A domain with these frames, in entries of this order.
    pub fn new(xen: &Xen, id: u16, mfns: Vec<u64>, order: u32) -> Result<Self> {
        // Page tables of the last level, of those above, and what splitting may take.
        let tables = mfns.len() as u64 / ENTRIES;
        xen.create(id, 0, tables + tables / ENTRIES + 256, false)?;
        for gfn in (0..mfns.len()).step_by(1 << order) {
            xen.populate(id, gfn as u64, mfns[gfn], order)?;
        }
        Ok(Self { id, mfns })
    }
}

/// A run from the first gfn on.
pub fn linear(nr: usize) -> Vec<Run> {
    vec![Run {
        gfn_a: 0,
        gfn_b: 0,
        nr: nr as u32,
        pad: 0,
    }]
}

/// Swap, and pass each call of the hypercall to `call`.
pub fn request(
    xen: &Xen,
    a: &Side,
    b: &Side,
    runs: &[Run],
    mut call: impl FnMut(&mut Args) -> i64,
) -> Result<()> {
    let mut status = vec![1i32; runs.iter().map(|r| r.nr as usize).sum()];
    let mut args = Args::new(xen, (a.id, b.id), false, runs, &mut status);
    let rc = loop {
        let rc = call(&mut args);
        if rc != RESTART {
            break rc;
        }
    };
    ensure!(
        rc == 0 && status.iter().all(|s| *s == 0),
        "the swap did not succeed: {rc}"
    );
    Ok(())
}

thread_local! {
    /// Preempt the hypercall after each batch.
    pub static PREEMPT: Cell<bool> = const { Cell::new(false) };
}

/// Answers what Xen's code asks.
pub extern "C" fn handle(kind: u32, a: u64, b: u64, c: u64, d: u64) -> u64 {
    if kind == event::PREEMPT {
        return PREEMPT.get().into();
    }
    world::handle_little(kind, a, b, c, d)
}

/// CPU time that this thread has used, in ns. What others use does not count, so that only
/// caches and memory are shared with them.
pub fn now() -> f64 {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the structure is ours. The clock exists, so this cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut t) };
    t.tv_sec as f64 * 1e9 + t.tv_nsec as f64
}
