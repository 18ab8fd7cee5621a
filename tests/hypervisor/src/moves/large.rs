// SPDX-License-Identifier: GPL-2.0-only

//! Entries of 2 MiB and 1 GiB whose frames are moved.

use anyhow::ensure;
use anyhow::Result;

use super::back;
use super::call;
use super::give;
use super::pods;
use super::run_at;
use super::ENTRY;
use super::GIB;
use super::IDS;
use crate::xen::stat;
use crate::xen::Direction;
use crate::xen::Xen;
use crate::xen::ON_DEMAND;

/// 2 MiB that are moved whole, whatever the entries of the receiver are, and those that are not.
pub(super) fn superpages(xen: &Xen) -> Result<()> {
    const GFN: u64 = 32768;
    for (n, order) in [9, 0].into_iter().enumerate() {
        let gfn = GFN + n as u64 * ENTRY;
        xen.populate(1, gfn, gfn, 9)?;
        for i in (0..ENTRY).step_by(1 << order) {
            xen.pod_mark(2, gfn + i, order)?;
        }
        let run = run_at(gfn, gfn, ENTRY);
        let before = pods(xen);
        for round in 0..2 {
            let (status, args) = call(xen, IDS, run, Direction::ToB, false, 0)?;
            ensure!(status.iter().all(|s| *s == 0), "a pair was refused");
            // The receiver's small entries are put together, at the first time only.
            let merged = u64::from(order == 0 && round == 0);
            for (counter, nr, want) in [
                ("pairs", stat::SWAPPED, ENTRY),
                ("superpages", stat::SUPERPAGES, 1),
                ("splits", stat::SPLITS_2M, 0),
                ("put together", stat::MERGES_2M, merged),
                ("entries written", stat::P2M_WRITES, 3 + merged),
                ("flushes", stat::TLB_FLUSHES, 1 + merged),
            ] {
                let got = args.stat(nr);
                ensure!(got == want, "order {order}: {got} {counter}, not {want}");
            }
            let (a, b) = (xen.lookup(1, gfn), xen.lookup(2, gfn));
            ensure!(a.p2m_type == ON_DEMAND && a.order == 9, "A: {a:?}");
            ensure!(b.mfn == gfn && b.order == 9, "B: {b:?}");
            back(xen, run)?;
            let a = xen.lookup(1, gfn);
            ensure!(a.mfn == gfn && a.order == 9, "A: {a:?}");
        }
        // Whatever A got for its cache it has given back, unless it was in debt before.
        let after = pods(xen);
        ensure!(after[1] == before[1], "{after:?}, not {before:?}");
        ensure!(after[0].tot_pages == before[0].tot_pages, "{after:?}");

        // One frame has to stay, and then the receiver has no room.
        let odd = 5;
        ensure!(xen.get_page(gfn + odd, 1), "no reference");
        let (status, moved) = give(xen, run)?;
        ensure!(
            moved == ENTRY - 1 && status[odd as usize] == -libc::EBUSY,
            "{moved}"
        );
        xen.put_page(gfn + odd);
        let (_, mut args) = call(xen, IDS, run, Direction::ToA, false, 0)?;
        ensure!(args.to() == [ENTRY - 1, 0], "{:?} came back", args.to());
        let a = xen.lookup(1, gfn);
        ensure!(a.mfn == gfn && a.order == 9, "A: {a:?}");
        xen.set_limit(2, xen.pod(2).tot_pages + 100, 0);
        for check in [true, false] {
            let (status, mut args) = call(xen, IDS, run, Direction::ToB, check, 0)?;
            ensure!(args.to() == [0, 100], "check {check}: {:?}", args.to());
            ensure!(
                status[100] == -libc::ENOSPC,
                "check {check}: {}",
                status[100]
            );
        }
        xen.set_limit(2, u64::from(u32::MAX), 0);
        back(xen, run_at(gfn, gfn, 100))?;
    }
    Ok(())
}

/// Of the receiver's 2 MiB one frame is there: it is exchanged, and all others are moved to it,
/// one by one.
pub(super) fn partly(xen: &Xen) -> Result<()> {
    const GFN: u64 = 36864;
    const THERE: u64 = 7;
    xen.populate(1, GFN, GFN, 9)?;
    xen.pod_mark(2, GFN, 9)?;
    let mfn = GFN + ENTRY;
    xen.pod_decrease(2, GFN + THERE, 0);
    xen.populate(2, GFN + THERE, mfn, 0)?;
    let run = run_at(GFN, GFN, ENTRY);
    let (status, args) = call(xen, IDS, run, Direction::ToB, false, 0)?;
    ensure!(status.iter().all(|s| *s == 0), "a pair was refused");
    let supers = args.stat(stat::SUPERPAGES);
    ensure!(supers == 0, "{supers} superpages were moved whole");
    ensure!(
        xen.lookup(1, GFN + THERE).mfn == mfn,
        "it was not exchanged"
    );
    let b = xen.lookup(2, GFN);
    ensure!(b.mfn == GFN && b.order == 9, "B: {b:?}");
    back(xen, run)?;
    ensure!(
        xen.lookup(2, GFN + THERE).mfn == mfn,
        "it has not come back"
    );
    let a = xen.lookup(1, GFN);
    ensure!(a.mfn == GFN && a.order == 9, "A: {a:?}");
    Ok(())
}

/// 1 GiB entries on both sides.
pub(super) fn gigabyte(xen: &Xen) -> Result<()> {
    xen.populate(1, GIB, 2 * GIB, 18)?;
    xen.pod_mark(2, GIB, 18)?;
    let run = run_at(GIB, GIB, GIB);
    let before = pods(xen);
    let (status, args) = call(xen, IDS, run, Direction::ToB, false, 0)?;
    ensure!(status.iter().all(|s| *s == 0), "a pair was refused");
    // A superpage costs twice as much as one that is swapped.
    for (counter, nr, want) in [
        ("superpages", stat::SUPERPAGES, GIB / ENTRY),
        ("splits", stat::SPLITS_1G, 2),
        ("put together", stat::MERGES_1G, 1),
        ("batches", stat::BATCHES, GIB / ENTRY / 4),
    ] {
        let got = args.stat(nr);
        ensure!(got == want, "{got} {counter}, not {want}");
    }
    let b = xen.lookup(2, GIB);
    ensure!(b.mfn == 2 * GIB && b.order == 18, "B: {b:?}");
    back(xen, run)?;
    let a = xen.lookup(1, GIB);
    ensure!(a.mfn == 2 * GIB && a.order == 18, "A: {a:?}");
    let after = pods(xen);
    ensure!(
        after[1] == before[1] && after[0].tot_pages == before[0].tot_pages,
        "{after:?}, not {before:?}"
    );
    Ok(())
}
