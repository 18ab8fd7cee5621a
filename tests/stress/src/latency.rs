// SPDX-License-Identifier: GPL-2.0-only

//! How long a vCPU has to wait because of a swap.

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

/// Swap windows of this size while a vCPU of each domain counts.
pub fn run(mib: u64) -> Result<String> {
    let nr = mib << 8;
    let world = World::new(2, 1, nr, true)?;
    count(&world, false);
    let hz = frequency(&world)?;
    let ms = |tsc: u64| tsc as f64 * 1e3 / hz;
    let quiet = ms(longest(&world)?.0);

    // The length of a batch: calls of one batch, with nobody running.
    let swapper = Swapper::new(nr as usize)?;
    let mut batches = Vec::new();
    for i in 0..64 {
        let run = Run {
            a: i % (nr / 512) * 512,
            b: i % (nr / 512) * 512,
            nr: 512,
        };
        let start = Instant::now();
        let outcome = world.swap(&swapper, 0, 1, &[run])?;
        batches.push(start.elapsed().as_secs_f64() * 1e3);
        ensure!(outcome.swapped == 512, "swap: {outcome:?}");
    }
    batches.sort_by(f64::total_cmp);
    let (median, slowest) = (batches[batches.len() / 2], batches[batches.len() - 1]);

    let mut text = format!(
        "{mib} MiB; a batch of 512 pairs {median:.2} ms, at most {slowest:.2} ms; longest stall \
         without a swap {quiet:.2} ms"
    );
    let mut bad = Vec::new();
    for (touch, what) in [(false, "that counts"), (true, "that writes to the frames")] {
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
        let (gap, writes) = longest(&world)?;
        let stall = ms(gap);
        ensure!(
            outcome.rc == 0 && outcome.swapped == nr,
            "swap: {}, {} of {nr}",
            control::error(outcome.rc),
            outcome.swapped
        );
        text += &format!("; a vCPU {what} stalled {stall:.2} ms of a swap of {total:.0} ms");
        if touch {
            let sums = world.sums()?;
            let found: u64 = (0..2).map(|i| sums[slot(i, 0) as usize]).sum();
            ensure!(found == writes, "{writes} writes, {found} are there");
        }
        // One batch that it waits for, one whose locks it gets behind of, and what the
        // machine below takes away now and then anyway.
        let bound = 3.0 * slowest + 2.0 * quiet;
        if stall > bound || stall > total / 4.0 {
            bad.push(format!("{stall:.2} ms, bound {bound:.2} ms"));
        }
    }
    ensure!(
        bad.is_empty(),
        "stalled too long ({}): {text}",
        bad.join(", ")
    );
    let how = world.audit(false)?;
    world.destroy()?;
    Ok(format!("{text}; {how}"))
}
