// SPDX-License-Identifier: GPL-2.0-only

//! Swaps beside frames that are taken offline. That starts from a frame, not from a gfn, and
//! takes no P2M lock: so it comes across frames that are between two owners, and marks them
//! as it does any other. The mark has to survive, or a frame with bad memory is used again.

use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::ensure;
use anyhow::Result;
use nix::errno::Errno;

use crate::control;
use crate::control::OFFLINE;
use crate::control::ONLINE;
use crate::control::QUERY;
use crate::race::race;
use crate::race::Options;
use crate::race::FRAMES;
use crate::race::TWICE;
use crate::swap::Run;
use crate::swap::Swapper;
use crate::world::World;
use crate::world::LIMIT;

/// What taking offline may say: it will be, once its owner, a domain, has given it up; or
/// there was no owner to be found, as no reference can be had of a frame that is being swapped.
const PENDING: u32 = 1 << 2;
const FAILED: u32 = 1 << 3;
const ANONYMOUS: u32 = 1 << 10;
const OWNED: u32 = 1 << 12;
/// What taking back says.
const BACK: u32 = 1 << 1;
/// What a query says.
const IS_OFFLINE: u32 = 1 << 1;
const IS_PENDING: u32 = 1 << 3;

/// The race, and afterwards what becomes of a frame that its domain gives up.
pub fn offline(options: Options) -> Result<String> {
    let text = marked(options)?;
    given_up()?;
    Ok(text)
}

fn query(frame: u64, expected: u32, when: &str) -> Result<()> {
    let state = control::page_offline(QUERY, frame)?;
    ensure!(
        state == expected,
        "frame {frame:#x} {when}: its state is {state:#x}, not {expected:#x}"
    );
    Ok(())
}

fn marked(options: Options) -> Result<String> {
    let world = World::new(2, 1, FRAMES, false)?;
    world.write();
    race(
        world,
        options,
        &[(0, 1)],
        // A frame that is marked stays where it is.
        (&[TWICE, Errno::EBUSY], &[], false),
        &|world, stop| {
            let ids = [0, 1].map(|i| u32::from(world.domains[i].domid));
            let mut random = fastrand::Rng::with_seed(options.seed);
            let (mut frames, mut anonymous) = (0u64, 0u64);
            while !stop.load(Relaxed) {
                let frame = world.frames[random.usize(0..world.frames.len())];
                let status = control::page_offline(OFFLINE, frame)?;
                match status & 0xffff {
                    flags if flags == OWNED | PENDING => ensure!(
                        ids.contains(&(status >> 16)),
                        "frame {frame:#x} is said to be d{}'s",
                        status >> 16
                    ),
                    flags if flags == ANONYMOUS | FAILED => anonymous += 1,
                    flags => anyhow::bail!("taking {frame:#x} offline: {flags:#x}"),
                }
                query(frame, IS_PENDING, "was taken offline")?;
                // By now a swap that had it has come to its end.
                thread::sleep(Duration::from_micros(random.u64(0..2000)));
                query(frame, IS_PENDING, "was taken offline a while ago")?;
                let status = control::page_offline(ONLINE, frame)?;
                ensure!(
                    status == BACK,
                    "taking {frame:#x} back: {status:#x}, not {BACK:#x}"
                );
                query(frame, 0, "was taken back")?;
                frames += 1;
            }
            Ok((frames, anonymous))
        },
        &|world, (frames, anonymous)| {
            ensure!(frames > 0, "no frame was taken offline");
            let writes = world.stop_writers()?;
            Ok(format!(
                "{frames} frames taken offline and back, {anonymous} of them while \
                 they were swapped; {writes} writes, none lost"
            ))
        },
    )
}

/// A frame that was swapped and is taken offline is so when its new domain is gone.
fn given_up() -> Result<()> {
    let mut world = World::new(2, 1, FRAMES, false)?;
    let swapper = Swapper::new(FRAMES as usize)?;
    let all = Run {
        a: 0,
        b: 0,
        nr: FRAMES as u32,
    };
    let outcome = world.swap(&swapper, 0, 1, &[all])?;
    ensure!(
        outcome.rc == 0 && outcome.swapped == FRAMES,
        "swap: {}, {} of {FRAMES} pairs",
        control::error(outcome.rc),
        outcome.swapped
    );
    let frame = world.frames[0];
    let status = control::page_offline(OFFLINE, frame)?;
    ensure!(
        status & 0xffff == OWNED | PENDING,
        "taking {frame:#x} offline: {status:#x}"
    );
    let owner = status >> 16;
    for domain in &mut world.domains {
        if u32::from(domain.domid) == owner {
            domain.destroy()?;
        }
    }
    let start = Instant::now();
    while control::page_offline(QUERY, frame)? == IS_PENDING && start.elapsed() < LIMIT {
        thread::sleep(Duration::from_millis(10));
    }
    query(frame, IS_OFFLINE, "has no owner any more")?;
    let status = control::page_offline(ONLINE, frame)?;
    ensure!(status == BACK, "taking {frame:#x} back: {status:#x}");
    query(frame, 0, "was taken back")?;
    world.destroy()
}
