// SPDX-License-Identifier: GPL-2.0-only

//! Nobody writes to a frame that was handed over: looked for where and when it must show,
//! while a translation that outlived the swap is still there. Emulators and processors drop
//! translations for reasons of their own, so what writes to all frames in turn may not be
//! back in time.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;

use anyhow::ensure;
use anyhow::Result;

use crate::control;
use crate::mailbox;
use crate::race::Options;
use crate::swap::Run;
use crate::swap::Swapper;
use crate::world::slot;
use crate::world::World;
use crate::world::LIMIT;
use crate::xen::Foreign;

/// Frames of a window: a batch.
const FRAMES: u64 = 512;
/// Frames that are written to: so few that their translations stay in the TLB.
const HOT: u64 = 64;
/// How long to look for a write.
const LOOK: Duration = Duration::from_millis(2);
/// Swaps at least, in each direction.
const ROUNDS: u64 = 20;

/// One domain keeps writing to a few frames without a reason to leave guest mode. All of its
/// window goes to another, whose vCPU looks at these frames meanwhile, and this program
/// afterwards; then the same in the other direction.
pub fn handed_over(options: Options) -> Result<String> {
    let world = World::new(2, 1, FRAMES, false)?;
    let mut random = fastrand::Rng::with_seed(options.seed);
    let (mut rounds, mut looks, mut written) = (0, 0, [0; 2]);
    for (from, to) in [(0, 1), (1, 0)] {
        let (source, target) = (&world.domains[from], &world.domains[to]);
        let word = slot(from, 0);
        let first = random.u64(0..FRAMES - HOT);
        let words = [(source.base + first) << 12, HOT, word, mailbox::SHARED, 0];
        source.run(0, mailbox::WRITE, &words);
        let words = [(target.base + first) << 12, HOT, word, random.u64(..)];
        target.run(0, mailbox::WATCH, &words);

        let begun = Instant::now();
        let mut round = 0;
        while round < ROUNDS || begun.elapsed() < options.time / 2 {
            swap(&world, (from, to))?;
            let gfn = target.base + first + random.u64(0..HOT);
            let mapped = Foreign::all(target.domid, &[gfn])?;
            let word = &mapped.frame(0)[word as usize];
            let (before, start) = (word.load(Relaxed), Instant::now());
            while start.elapsed() < LOOK {
                ensure!(
                    word.load(Relaxed) == before,
                    "round {round}: d{} writes to a frame that d{} has got",
                    source.domid,
                    target.domid
                );
            }
            round += 1;
        }
        rounds += round;

        for domain in [source, target] {
            domain.wait(0, true, LIMIT)?;
        }
        let [seen, wrong] = [0, 1].map(|i| target.mailbox(0).result[i].load(Relaxed));
        ensure!(
            wrong == 0,
            "{wrong} of {seen} times d{} saw d{} write to a frame that it had got",
            target.domid,
            source.domid
        );
        looks += seen;
        written[from] = source.mailbox(0).result[0].load(Relaxed);
        ensure!(written[from] > 0, "d{} wrote nothing", source.domid);
    }
    let sums = world.sums()?;
    for (index, count) in written.into_iter().enumerate() {
        let found = sums[slot(index, 0) as usize];
        ensure!(
            found == count,
            "domain {index} wrote {count} times, {found} are there"
        );
    }
    let how = world.audit(false)?;
    world.destroy()?;
    Ok(format!(
        "{rounds} swaps, {} writes, {looks} looks by the other domain; {how}",
        written[0] + written[1]
    ))
}

/// Swap both windows as a whole. Nothing is named twice, so that no frame can go and come
/// back within a call, on which the guest relies.
fn swap(world: &World, (from, to): (usize, usize)) -> Result<()> {
    let swapper = Swapper::new(FRAMES as usize)?;
    let run = Run {
        a: 0,
        b: 0,
        nr: FRAMES as u32,
    };
    let outcome = world.swap(&swapper, to, from, &[run])?;
    ensure!(
        outcome.rc == 0 && outcome.swapped == FRAMES,
        "swap: {}, {} of {FRAMES} pairs",
        control::error(outcome.rc),
        outcome.swapped
    );
    Ok(())
}
