// SPDX-License-Identifier: GPL-2.0-only

//! Frames go over to where the other domain has none, and back, while vCPUs of both touch what is
//! populated on demand and dom0 changes what there is for it.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Instant;

use anyhow::ensure;
use anyhow::Result;
use nix::errno::Errno;

use crate::control;
use crate::mailbox;
use crate::race::Options;
use crate::race::FRAMES;
use crate::race::TWICE;
use crate::swap::Run;
use crate::swap::Statuses;
use crate::swap::Swapper;
use crate::swap::TO_A;
use crate::swap::TO_B;
use crate::world::join;
use crate::world::numbers_at;
use crate::world::random_runs;
use crate::world::slot;
use crate::world::StopOnDrop;
use crate::world::World;
use crate::world::LIMIT;
use crate::xen::Foreign;

/// Where, in the window of the second domain, there is nothing at first: so many frames on.
const EMPTY: u64 = 0x2000;
/// Frames that a vCPU writes to, of those that come and go, which are the first ones.
const HOT: u64 = 64;
/// Those that come and go; the others are taken away and made anew, with nothing in them.
const MOVED: u64 = FRAMES - 64;
/// The giver has nothing there: what the receiver has reads as zeros.
const NOTHING: Errno = Errno::ENODATA;

/// Numbers in frames: of the first domain's window, and of what is empty at first.
type Model = [Vec<u64>; 2];

/// Every frame is where the statuses say, and the counts of pages are right to the page.
pub fn relocated(options: Options) -> Result<String> {
    let world = World::new(2, 1, FRAMES, false)?;
    let [a, b] = [&world.domains[0], &world.domains[1]];
    let empty = b.base + EMPTY;
    // In single frames: of a large one all is populated when one is touched.
    let places: Vec<u64> = (empty..empty + FRAMES).collect();
    control::populate_on_demand(b.domid, &places)?;
    let begin = control::demand(b.domid, true)?;
    ensure!(
        begin.entries == FRAMES && begin.cache == FRAMES,
        "d{} has {begin:?}",
        b.domid
    );
    let mut model = [world.numbers(0)?, vec![0; FRAMES as usize]];
    for (index, domain, first) in [(0, a, a.base), (1, b, empty)] {
        let other = 0xf << slot(1 - index, 0);
        let args = [first << 12, HOT, slot(index, 0), mailbox::SHARED, other];
        domain.run(0, mailbox::WRITE, &args);
    }

    let stop = AtomicBool::new(false);
    let (statuses, moved) = thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        let disturber = scope.spawn(|| disturb(&world, empty, options.seed, &stop));
        let result = move_about(&world, empty, options, &mut model);
        stop.store(true, Relaxed);
        join(disturber)?;
        result
    })?;
    for domain in [a, b] {
        domain.wait(0, true, LIMIT)?;
        let [writes, checks, wrong] = [0, 1, 2].map(|i| domain.mailbox(0).result[i].load(Relaxed));
        ensure!(
            writes > 0 && wrong == 0,
            "d{}: {writes} writes, {wrong} of {checks} times somebody else wrote to its frames",
            domain.domid
        );
    }
    for domain in [a, b] {
        control::demand(domain.domid, true)?;
    }
    let mut found = [world.numbers(0)?, numbers_at(b.domid, &places)?];
    for frames in found.iter_mut().chain(&mut model) {
        frames.truncate(MOVED as usize);
    }
    ensure!(found == model, "frames are elsewhere than the statuses say");
    for (domain, places) in [(a, FRAMES), (b, 2 * FRAMES)] {
        let now = control::demand(domain.domid, false)?;
        ensure!(
            now.pages == domain.low + places && now.cache == now.entries,
            "d{} has {now:?}, and {} places",
            domain.domid,
            domain.low + places
        );
        if let Some(errors) = control::audit(domain.domid)? {
            ensure!(
                errors == [0; 3],
                "Xen's audit of d{}: orphans, M2P, P2M errors {errors:?}",
                domain.domid
            );
        }
    }
    world.destroy()?;
    let [to_a, to_b] = moved;
    ensure!(to_a > 0 && to_b > 0, "{to_a} and {to_b} frames went over");
    Ok(format!(
        "{to_b} frames went over, {to_a} came back; {}",
        statuses.text()
    ))
}

/// Move and swap random runs there and back, and keep the model as they say.
fn move_about(
    world: &World,
    empty: u64,
    options: Options,
    model: &mut Model,
) -> Result<(Statuses, [u64; 2])> {
    let [a, b] = [&world.domains[0], &world.domains[1]];
    let mut random = fastrand::Rng::with_seed(options.seed);
    let swapper = Swapper::new(64 << 10)?;
    let mut statuses = Statuses::default();
    let mut moved = [0; 2];
    let start = Instant::now();
    while start.elapsed() < options.time {
        let offsets = random_runs(&mut random, MOVED);
        let runs: Vec<Run> = offsets
            .iter()
            .map(|r| Run {
                a: a.base + r.a,
                b: empty + r.b,
                nr: r.nr,
            })
            .collect();
        let receiver = random.usize(0..2);
        let outcome =
            world.announced(|| swapper.call(a.domid, b.domid, [TO_A, TO_B][receiver], &runs))?;
        ensure!(outcome.rc == 0, "swap: {}", control::error(outcome.rc));
        statuses.add(&outcome.status, &[TWICE, NOTHING, Errno::EBUSY])?;
        for (sum, n) in moved.iter_mut().zip(swapper.moved()) {
            *sum += n;
        }
        let pairs = offsets
            .iter()
            .flat_map(|r| (0..u64::from(r.nr)).map(|i| ((r.a + i) as usize, (r.b + i) as usize)));
        let [in_a, in_b] = model;
        for ((x, y), status) in pairs.zip(&outcome.status) {
            match -status {
                0 => std::mem::swap(&mut in_a[x], &mut in_b[y]),
                e if e == NOTHING as i32 => *[&mut in_a[x], &mut in_b[y]][receiver] = 0,
                _ => {}
            }
        }
    }
    Ok((statuses, moved))
}

/// Give both domains all that they have places for, again and again, look at frames, and take
/// them away.
fn disturb(world: &World, empty: u64, seed: u64, stop: &AtomicBool) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(seed);
    while !stop.load(Relaxed) {
        let index = random.usize(0..2);
        let domain = &world.domains[index];
        let now = control::demand(domain.domid, true)?;
        ensure!(
            now.cache <= now.entries,
            "d{} has more than it has places for: {now:?}",
            domain.domid
        );
        let gfn = [[domain.base, empty][index] + random.u64(MOVED..FRAMES)];
        drop(Foreign::all(domain.domid, &gfn)?);
        let gone = control::reserve(control::DECREASE, domain.domid, 0, &gfn)?;
        ensure!(gone == 1, "decrease_reservation: {}", control::error(gone));
        control::populate_on_demand(domain.domid, &gfn)?;
    }
    Ok(())
}
