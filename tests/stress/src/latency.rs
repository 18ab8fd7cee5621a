// SPDX-License-Identifier: GPL-2.0-only

//! How long a vCPU has to wait because of a swap.

use std::ops::RangeInclusive;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::ensure;
use anyhow::Result;

use crate::control;
use crate::mailbox;
use crate::swap::Run;
use crate::swap::Swapper;
use crate::world::slot;
use crate::world::World;
use crate::world::LIMIT;

/// Let vCPU 0 of both domains count; `touch`: and write to their windows.
fn count(world: &World, touch: bool) {
    for (i, d) in world.domains.iter().enumerate() {
        let nr = if touch { d.nr } else { 0 };
        d.run(0, mailbox::COUNT, &[d.base << 12, nr, slot(i, 0)]);
    }
}

/// Stop them; the longest gap of each in time stamps, and writes.
fn longest(world: &World) -> Result<(u64, u64)> {
    let (mut gap, mut writes) = (0, 0);
    for d in &world.domains {
        d.wait(0, true, LIMIT)?;
        gap = gap.max(d.mailbox(0).result[1].load(Relaxed));
        writes += d.mailbox(0).result[3].load(Relaxed);
    }
    Ok((gap, writes))
}

/// Time stamps in a second, as a counting vCPU sees them.
fn frequency(world: &World) -> Result<f64> {
    let now = || {
        (
            world.domains[0].mailbox(0).result[2].load(Relaxed),
            Instant::now(),
        )
    };
    thread::sleep(Duration::from_millis(100));
    let (first, t0) = now();
    thread::sleep(Duration::from_millis(900));
    let (last, t1) = now();
    ensure!(last > first, "the vCPU does not count");
    Ok((last - first) as f64 / (t1 - t0).as_secs_f64())
}

/// Pairs of the largest batch: superpages, which are cheaper by the pair than 4k ones.
const BATCH: u64 = 4096;
/// A defect is there each time; what else the machine does is not. So there are more
/// rounds while the stalls are too long.
const ROUNDS: RangeInclusive<u64> = 3..=12;

/// Times of calls that are a batch each, in ms and sorted, with nobody running.
fn batches(world: &World, swapper: &Swapper) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for i in 0..64 {
        let first = i % (world.domains[0].nr / BATCH) * BATCH;
        let run = Run {
            a: first,
            b: first,
            nr: BATCH as u32,
        };
        let start = Instant::now();
        let outcome = world.swap(swapper, 0, 1, &[run])?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        ensure!(
            outcome.swapped == BATCH && swapper.batches() == 1,
            "{} of {BATCH} pairs swapped in {} batches",
            outcome.swapped,
            swapper.batches()
        );
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// Swap windows of this size while a vCPU of each domain counts. How many batches that takes
/// is compared always, how long a vCPU stalled only if `bounds` says so.
pub fn run(mib: u64, bounds: bool) -> Result<String> {
    let nr = mib << 8;
    let world = World::new(2, 1, nr, true)?;
    count(&world, false);
    let hz = frequency(&world)?;
    let ms = |tsc: u64| tsc as f64 * 1e3 / hz;
    let quiet = ms(longest(&world)?.0);

    let swapper = Swapper::new(nr as usize)?;
    let times = batches(&world, &swapper)?;
    let (median, slowest) = (times[times.len() / 2], times[times.len() - 1]);
    let mut text = format!(
        "{mib} MiB; a batch of {BATCH} pairs takes {median:.2} ms, at most {slowest:.2} ms; \
         longest stall without a swap {quiet:.2} ms"
    );
    // One batch that it waits for, one whose locks it gets behind of, and what the
    // machine below takes away now and then anyway.
    let bound = 3.0 * slowest + 2.0 * quiet;
    let mut written = 0;
    for (touch, what) in [(false, "that counts"), (true, "that writes to the frames")] {
        let (mut best, mut share) = (f64::INFINITY, f64::INFINITY);
        let mut round = 0;
        // Without a check for preemption it stalls for the whole of every swap.
        let mut good = false;
        while round < *ROUNDS.start() || (bounds && !good && round < *ROUNDS.end()) {
            round += 1;
            count(&world, touch);
            thread::sleep(Duration::from_millis(200));
            let run = Run {
                a: 0,
                b: 0,
                nr: nr as u32,
            };
            let start = Instant::now();
            let outcome = world.swap(&swapper, 0, 1, &[run])?;
            let total = start.elapsed().as_secs_f64() * 1e3;
            let parts = swapper.batches();
            let (gap, writes) = longest(&world)?;
            written += writes;
            best = ms(gap).min(best);
            share = (ms(gap) / total).min(share);
            good = best <= bound && share <= 0.5;
            ensure!(
                outcome.rc == 0 && outcome.swapped == nr,
                "swap: {}, {} of {nr}",
                control::error(outcome.rc),
                outcome.swapped
            );
            // Exact, where the times of an emulator are not.
            ensure!(
                parts == nr / BATCH,
                "{nr} pairs in {parts} batches, expected {}: {text}",
                nr / BATCH
            );
        }
        text += &format!(
            "; a vCPU {what} stalled {best:.2} ms (bound {bound:.2} ms), {:.0} % of the swap, \
             the least of {round} swaps",
            share * 100.0
        );
        ensure!(good || !bounds, "stalled too long: {text}");
    }
    let sums = world.sums()?;
    let found: u64 = (0..2).map(|i| sums[slot(i, 0) as usize]).sum();
    ensure!(found == written, "{written} writes, {found} are there");
    let how = world.audit(false)?;
    world.destroy()?;
    Ok(format!("{text}; {how}"))
}
