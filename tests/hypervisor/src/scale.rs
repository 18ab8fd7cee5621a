// SPDX-License-Identifier: GPL-2.0-only

//! How the time of a swap grows with the size of the guest: page tables and frame tables of
//! that size, and no memory behind the frames. One size and one sort of entries a process,
//! because Xen's areas are mapped once.

use std::path::Path;

use anyhow::ensure;
use anyhow::Result;
use clap::ValueEnum;
use rand::seq::SliceRandom;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use crate::swap::handle;
use crate::swap::now;
use crate::swap::request;
use crate::swap::Side;
use crate::swap::ENTRIES;
use crate::swap::LIBRARY;
use crate::xen::Run;
use crate::xen::Xen;

/// Pairs that the driver puts into one hypercall.
const CALL: u64 = 4096;
/// How the frames are mapped, and where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Entries {
    /// 2 MiB entries.
    Large,
    /// 4 KiB entries, frames in order.
    Small,
    /// 4 KiB entries, frames in no order.
    Scattered,
}

/// Swap all of `mib` MiB `rounds` times, and print the seconds of each as JSON.
pub fn run(mib: u64, entries: Entries, rounds: usize) -> Result<()> {
    let pairs = mib << 8;
    ensure!(pairs % CALL == 0, "{mib} MiB are not a multiple of 16 MiB");
    let tables = 2 * (pairs / ENTRIES + pairs / ENTRIES / ENTRIES + 256);
    let base = ENTRIES;
    let frames = (base + 2 * pairs + tables + 65_536).next_multiple_of(ENTRIES);
    let xen = Xen::load(Path::new(LIBRARY), frames, false, handle)?;
    xen.create(0, 2, 64, false)?;
    let mut mfns: Vec<u64> = (base..base + 2 * pairs).collect();
    if entries == Entries::Scattered {
        mfns.shuffle(&mut ChaCha8Rng::seed_from_u64(1));
    }
    let order = if entries == Entries::Large { 9 } else { 0 };
    let second = mfns.split_off(pairs as usize);
    let (a, b) = (
        Side::new(&xen, 1, mfns, order)?,
        Side::new(&xen, 2, second, order)?,
    );

    let mut seconds = Vec::new();
    // The first round warms up.
    for round in 0..=rounds {
        let mut time = 0.0;
        for first in (0..pairs).step_by(CALL as usize) {
            let run = Run {
                gfn_a: first,
                gfn_b: first,
                nr: CALL as u32,
                pad: 0,
            };
            request(&xen, &a, &b, &[run], |args| {
                let start = now();
                let rc = xen.swap(args);
                time += now() - start;
                rc
            })?;
        }
        if round > 0 {
            seconds.push(time / 1e9);
        }
    }
    println!("{}", json!({ "seconds": seconds }));
    Ok(())
}
