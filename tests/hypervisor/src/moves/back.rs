// SPDX-License-Identifier: GPL-2.0-only

//! What must be possible in both directions, or in none; and what is refused leaves nothing
//! changed behind.

use anyhow::ensure;
use anyhow::Result;

use super::run_at;
use crate::world;
use crate::world::Faults;
use crate::xen::Args;
use crate::xen::Direction;
use crate::xen::Pod;
use crate::xen::Xen;
use crate::xen::UNDO;

/// Frames in each case.
const NR: u64 = 40;
const GIVER: u16 = 5;
const RECEIVER: u16 = 6;
const GFN: u64 = 0x40000;
const MFN: u64 = 0x50000;

/// All cases, on the domains that [`super::last`] created. Neither is in debt, and both have
/// hardly anything to populate.
pub(super) fn run(xen: &Xen) -> Result<()> {
    devices(xen)?;
    for i in 0..NR {
        xen.populate(GIVER, GFN + i, MFN + i, 0)?;
        xen.pod_mark(RECEIVER, GFN + i, 0)?;
    }
    for id in [GIVER, RECEIVER] {
        let pod = xen.pod(id);
        xen.pod_target(id, pod.tot_pages + pod.entries - pod.cache)?;
    }
    nothing_freed_in_vain(xen)?;
    without_memory(xen)
}

fn call(xen: &Xen, to: Direction, flags: u64, faults: Faults) -> Result<(i64, Vec<i32>, u64)> {
    let runs = [run_at(GFN, GFN, NR)];
    let mut status = vec![1; NR as usize];
    let mut args = Args::new(xen, (GIVER, RECEIVER), false, &runs, &mut status).moving(to);
    args.set(flags);
    world::with(|w| w.begin(faults));
    let rc = xen.complete(&mut args);
    let violation = world::with(|w| {
        w.begin(Faults::default());
        w.violation.take()
    });
    ensure!(violation.is_none(), "{violation:?}");
    let moved = args.to().iter().sum();
    Ok((rc, status, moved))
}

/// A device in either domain is in the way: what went could not come back.
fn devices(xen: &Xen) -> Result<()> {
    for id in [GIVER, RECEIVER] {
        xen.set_device(id, true);
        for to in [Direction::ToA, Direction::ToB] {
            let (rc, _, moved) = call(xen, to, 0, Faults::default())?;
            ensure!(
                rc == -i64::from(libc::ENOTEMPTY) && moved == 0,
                "d{id} has a device, {to:?}: {rc}, {moved} moved"
            );
        }
        xen.set_device(id, false);
    }
    Ok(())
}

/// A receiver's cache that would make room, but for a limit that is too low or a reserve
/// that cannot be had, is as it was, and so is its claim.
fn nothing_freed_in_vain(xen: &Xen) -> Result<()> {
    let full = xen.pod(RECEIVER);
    ensure!(full.cache == full.entries, "{full:?}");
    xen.set_limit(RECEIVER, full.tot_pages - NR, NR);
    let full = Pod { claim: NR, ..full };
    let (rc, status, moved) = call(xen, Direction::ToB, 0, Faults::default())?;
    ensure!(
        rc == 0 && moved == 0 && status.iter().all(|s| *s == -libc::ENOSPC),
        "{rc}, {moved} moved, {status:?}"
    );
    let now = xen.pod(RECEIVER);
    ensure!(now == full, "{now:?}, not {full:?}");

    // Exactly as much as the cache makes room for.
    xen.set_limit(RECEIVER, full.tot_pages, NR);
    let (rc, _, moved) = call(
        xen,
        Direction::ToB,
        0,
        Faults {
            frames: Some(0),
            ..Faults::default()
        },
    )?;
    let now = xen.pod(RECEIVER);
    ensure!(
        rc == 0 && moved == 0 && now == full,
        "without a reserve: {rc}, {moved} moved, {now:?}, not {full:?}"
    );
    let (rc, status, moved) = call(xen, Direction::ToB, 0, Faults::default())?;
    ensure!(rc == 0 && moved == NR, "{rc}, {moved} moved, {status:?}");
    let now = xen.pod(RECEIVER);
    ensure!(
        now.tot_pages == full.tot_pages && now.cache == now.entries && now.claim == 0,
        "{now:?}, {full:?}"
    );
    xen.set_limit(RECEIVER, u64::from(u32::MAX), 0);
    Ok(())
}

/// Back when Xen has no memory for the cache of the domain that gives then, or not enough.
fn without_memory(xen: &Xen) -> Result<()> {
    const SOME: u32 = 10;
    let only = |frames| Faults {
        frames: Some(frames),
        ..Faults::default()
    };
    let before = xen.pod(RECEIVER);
    ensure!(before.entries < 128 - NR, "no reserve is due: {before:?}");
    let (rc, status, moved) = call(xen, Direction::ToA, 0, only(0))?;
    ensure!(
        rc == 0 && moved == 0 && status.iter().all(|s| *s == -libc::ENOMEM),
        "{rc}, {moved} moved, {status:?}"
    );
    let now = xen.pod(RECEIVER);
    ensure!(now == before, "{now:?}, not {before:?}");

    // As many as there are frames for, and with the flag all others as well.
    let some = u64::from(SOME);
    let (rc, status, moved) = call(xen, Direction::ToA, 0, only(SOME))?;
    ensure!(
        rc == 0
            && moved == some
            && status[..SOME as usize].iter().all(|s| *s == 0)
            && status[SOME as usize..].iter().all(|s| *s == -libc::ENOMEM),
        "{rc}, {moved} moved, {status:?}"
    );
    let part = xen.pod(RECEIVER);
    ensure!(
        part.cache == before.cache + some && part.entries == before.entries + some,
        "{part:?}, {before:?}"
    );
    let rest = NR - some;
    let (rc, status, moved) = call(xen, Direction::ToA, UNDO, only(SOME))?;
    ensure!(rc == 0 && moved == rest, "{rc}, {moved} moved, {status:?}");
    let now = xen.pod(RECEIVER);
    ensure!(
        now.cache == part.cache + some
            && now.entries == part.entries + rest
            && now.tot_pages == part.tot_pages + some - rest,
        "{now:?}, {part:?}"
    );

    let (rc, _, moved) = call(xen, Direction::ToB, 0, Faults::default())?;
    ensure!(rc == 0 && moved == NR, "{rc}, {moved} moved");
    let before = xen.pod(RECEIVER);
    let (rc, status, moved) = call(xen, Direction::ToA, UNDO, only(0))?;
    ensure!(rc == 0 && moved == NR, "{rc}, {moved} moved, {status:?}");
    let now = xen.pod(RECEIVER);
    ensure!(
        now.cache == before.cache && now.entries == before.entries + NR,
        "{now:?}, {before:?}"
    );
    Ok(())
}
