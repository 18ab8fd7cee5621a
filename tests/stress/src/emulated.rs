// SPDX-License-Identifier: GPL-2.0-only

//! Swaps beside accesses of the guests that the hypervisor carries out itself: it
//! looks at the type of a frame first, and must not take one that is being swapped
//! for a device.
//!
//! A frame is only swapped with the one at the same place of the other window, and
//! each domain has words of its own in all frames. So what it wrote to a place is in
//! one of two frames, and a word that is in neither was lost.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Acquire;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use nix::errno::Errno;

use crate::control;
use crate::domain::Domain;
use crate::mailbox;
use crate::mailbox::CHUNK;
use crate::race::Options;
use crate::swap::Run;
use crate::swap::Statuses;
use crate::swap::Swapper;
use crate::world::join;
use crate::world::StopOnDrop;
use crate::world::World;
use crate::world::LIMIT;
use crate::xen::Foreign;

/// Frames of a window.
const FRAMES: u64 = 512;

/// Those that are swapped, all at a time, and accessed. Few, so that a swap soon comes
/// to the point where they are removed: what comes first in an emulation waits for the
/// whole swap, so that only one that was already about to look at the type goes wrong.
const HOT: u64 = 4;

/// What was done, and what went wrong.
#[derive(Debug, Default)]
struct Counts {
    /// Chunks that were written; as many numbers were read.
    chunks: u64,
    /// Words that are nowhere, of those stored and of those copied.
    lost: [u64; 2],
    /// Numbers that were read and that no frame has.
    invented: u64,
    /// Types asked for, and those that were not RAM.
    types: u64,
    wrong: u64,
}

/// The race.
pub fn emulated(options: Options) -> Result<String> {
    let world = World::new(2, 1, FRAMES, false)?;
    try_prefix(&world.domains[0])?;
    let stop = AtomicBool::new(false);
    let (statuses, counts) = thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        let swapper = scope.spawn(|| {
            let result = swap(&world, &stop, options.seed);
            stop.store(true, Relaxed);
            result
        });
        let mut random = fastrand::Rng::with_seed(options.seed);
        let mut counts = Counts::default();
        let start = Instant::now();
        let over = || start.elapsed() >= options.time || stop.load(Relaxed);
        let mut round = 0;
        while !over() {
            round += 1;
            access(&world, round, &mut counts, &mut random, &over)?;
        }
        stop.store(true, Relaxed);
        Ok::<_, anyhow::Error>((join(swapper)?, counts))
    })?;
    let words = counts.chunks * CHUNK / 2;
    let text = format!(
        "{}; words by emulated stores: {words}, lost: {}; by emulated copies: {words}, lost: {}; \
         emulated reads: {}, invented: {}; types asked for: {}, not RAM: {}",
        statuses.text(),
        counts.lost[0],
        counts.lost[1],
        counts.chunks,
        counts.invented,
        counts.types,
        counts.wrong,
    );
    ensure!(
        counts.lost == [0; 2] && counts.invented == 0 && counts.wrong == 0,
        text
    );
    ensure!(
        statuses.swapped() > 0 && counts.chunks > 0 && counts.types > 0,
        "there was no race: {text}"
    );
    // Says which frame is gone, if one is.
    world.sums()?;
    let how = world.audit(false)?;
    world.destroy()?;
    Ok(format!("{text}; {how}"))
}

/// Let the guest access one frame by the prefix. It dies if there is none.
fn try_prefix(domain: &Domain) -> Result<()> {
    domain.run(0, mailbox::EMULATE, &arguments(domain, 1, 1, 0));
    domain.wait(0, false, LIMIT).context(
        "no instruction can be emulated: the hypervisor must be one with assertions \
         (CONFIG_HVM_FEP), and have the option hvm_fep",
    )
}

fn arguments(domain: &Domain, frames: u64, chunks: u64, value: u64) -> [u64; 5] {
    [domain.base << 12, frames, first_word(domain), chunks, value]
}

/// The first word that a domain writes to in every frame.
fn first_word(domain: &Domain) -> u64 {
    mailbox::EMULATED + domain.index * mailbox::CHUNKS * CHUNK
}

/// Swap them until told to stop.
fn swap(world: &World, stop: &AtomicBool, seed: u64) -> Result<Statuses> {
    let mut random = fastrand::Rng::with_seed(seed);
    let swapper = Swapper::new(HOT as usize)?;
    let mut statuses = Statuses::default();
    let all = Run {
        a: 0,
        b: 0,
        nr: HOT as u32,
    };
    while !stop.load(Relaxed) {
        let outcome = world.swap(&swapper, 0, 1, &[all])?;
        // The hypervisor has a reference while it accesses a frame, and so has a mapping.
        statuses.add(&outcome.status, &[Errno::EBUSY])?;
        ensure!(outcome.rc == 0, "swap: {}", control::error(outcome.rc));
        // A gap, in which the guests come as far as to be surprised by the next one.
        thread::sleep(Duration::from_micros(random.u64(0..1000)));
    }
    Ok(statuses)
}

/// Let both guests fill their words of all these frames, or until `over`, and look for
/// what they wrote. Meanwhile ask for types of frames.
fn access(
    world: &World,
    round: u64,
    counts: &mut Counts,
    random: &mut fastrand::Rng,
    over: &dyn Fn() -> bool,
) -> Result<()> {
    for d in &world.domains {
        let args = arguments(d, HOT, mailbox::CHUNKS, round);
        d.run(0, mailbox::EMULATE, &args);
    }
    let busy = |d: &Domain| d.mailbox(0).command.load(Acquire) != 0;
    while !over() && world.domains.iter().any(busy) {
        for _ in 0..8 {
            let d = &world.domains[random.usize(0..2)];
            let kind = control::get_type(d.domid, d.base + random.u64(0..HOT))?;
            counts.types += 1;
            counts.wrong += u64::from(kind != control::RAM_RW);
        }
        thread::sleep(Duration::from_millis(1));
    }
    for d in &world.domains {
        d.wait(0, true, LIMIT)?;
        let [written, invented] = [0, 1].map(|i| d.mailbox(0).result[i].load(Relaxed));
        counts.chunks += written;
        counts.invented += invented;
        count_lost(world, d, written, round, counts)?;
    }
    Ok(())
}

/// Count words of a domain that are in neither of the two frames that they may be in.
fn count_lost(
    world: &World,
    domain: &Domain,
    written: u64,
    round: u64,
    counts: &mut Counts,
) -> Result<()> {
    // Once the first ones are mapped, their pairs are not swapped any more.
    let map = |d: &Domain| Foreign::all(d.domid, &d.gfns()[..HOT as usize]);
    let frames = [map(&world.domains[0])?, map(&world.domains[1])?];
    for index in 0..HOT {
        let chunks = written / HOT + u64::from(index < written % HOT);
        for word in 0..chunks * CHUNK {
            let at = (first_word(domain) + word) as usize;
            let there = frames
                .each_ref()
                .map(|f| f.frame(index as usize)[at].load(Relaxed));
            let kind = (word % CHUNK / (CHUNK / 2)) as usize;
            counts.lost[kind] += u64::from(!there.contains(&round));
        }
    }
    Ok(())
}
