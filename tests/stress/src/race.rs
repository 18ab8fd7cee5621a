// SPDX-License-Identifier: GPL-2.0-only

//! One race: swaps at the same time as something else, and the audit behind them.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::ensure;
use anyhow::Result;
use nix::errno::Errno;

use crate::control;
use crate::swap::Statuses;
use crate::swap::Swapper;
use crate::world::join;
use crate::world::random_runs;
use crate::world::StopOnDrop;
use crate::world::World;

/// Frames of a window: two of 2 MiB.
pub const FRAMES: u64 = 1024;

/// What a test is given.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Seed of what is random.
    pub seed: u64,
    /// How long each race goes on.
    pub time: Duration,
}

/// Results of whole calls that the state of a domain may cause.
type Calls = [Errno];

/// Swap random runs of two windows until told to stop.
fn swap_until(
    world: &World,
    stop: &AtomicBool,
    (x, y): (usize, usize),
    seed: u64,
    pairs: &[Errno],
    calls: &Calls,
) -> Result<Statuses> {
    let mut random = fastrand::Rng::with_seed(seed);
    let swapper = Swapper::new(64 << 10)?;
    let mut statuses = Statuses::default();
    while !stop.load(Relaxed) {
        let runs = random_runs(&mut random, world.domains[x].nr);
        let outcome = world.swap(&swapper, x, y, &runs)?;
        statuses.add(&outcome.status, pairs)?;
        ensure!(
            outcome.rc == 0 || calls.iter().any(|e| *e as i64 == -outcome.rc),
            "swap: {}",
            control::error(outcome.rc)
        );
        // A gap, in which the guests can look for writes of others.
        if random.u8(0..4) == 0 {
            thread::sleep(Duration::from_micros(random.u64(0..2000)));
        }
    }
    Ok(statuses)
}

/// Overlapping runs of a list name a frame twice.
pub const TWICE: Errno = Errno::EEXIST;

/// Run disturbances while pairs of domains are swapped; then stop, look at what
/// they left with `check`, and audit. `check` gets what `disturb` returned, when no
/// swap is under way any more: it maps frames, which a swap would find in use.
pub fn race<T: Send>(
    world: World,
    options: Options,
    pairs: &[(usize, usize)],
    (statuses, calls, moved): (&[Errno], &Calls, bool),
    disturb: &(dyn Fn(&World, &AtomicBool) -> Result<T> + Sync),
    check: &dyn Fn(&World, T) -> Result<String>,
) -> Result<String> {
    let stop = AtomicBool::new(false);
    let mut total = Statuses::default();
    let left = thread::scope(|scope| -> Result<T> {
        let _stop = StopOnDrop(&stop);
        let (world, stop) = (&world, &stop);
        let disturber = scope.spawn(move || {
            let result = disturb(world, stop);
            if result.is_err() {
                stop.store(true, Relaxed);
            }
            result
        });
        let swappers: Vec<_> = pairs
            .iter()
            .enumerate()
            .map(|(i, pair)| {
                let seed = options.seed.wrapping_add(i as u64);
                scope.spawn(move || {
                    let result = swap_until(world, stop, *pair, seed, statuses, calls);
                    stop.store(true, Relaxed);
                    result
                })
            })
            .collect();
        let start = Instant::now();
        while start.elapsed() < options.time && !stop.load(Relaxed) {
            thread::sleep(Duration::from_millis(10));
        }
        stop.store(true, Relaxed);
        for swapper in swappers {
            total.merge(join(swapper)?);
        }
        join(disturber)
    })?;
    let text = check(&world, left)?;
    ensure!(total.swapped() > 0, "nothing was swapped: {}", total.text());
    let how = world.audit(moved)?;
    world.destroy()?;
    Ok(format!("{}; {text}; {how}", total.text()))
}
