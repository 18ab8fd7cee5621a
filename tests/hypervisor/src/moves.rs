// SPDX-License-Identifier: GPL-2.0-only

//! Frames that are moved to a domain which has nothing there yet: every kind of pair, what
//! counts with it, and the way back. The giver is domain 1, the receiver 2.

mod back;
mod large;

use std::path::Path;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::world;
use crate::xen::stat;
use crate::xen::Args;
use crate::xen::Direction;
use crate::xen::Pod;
use crate::xen::Run;
use crate::xen::Xen;
use crate::xen::NESTED;
use crate::xen::ON_DEMAND;
use crate::xen::RAM_RW;

const FRAMES: u64 = 4 * GIB;
const GIB: u64 = 1 << 18;
/// Frames of a 2 MiB entry.
const ENTRY: u64 = 512;
/// What a giver without debt gets into its cache: the option's default.
const RESERVE: u64 = 128;
const IDS: [u16; 2] = [1, 2];

/// All cases, with NPT or EPT.
pub fn run(library: &Path, ept: bool) -> Result<()> {
    let xen = Xen::load(library, FRAMES, ept, world::handle)?;
    xen.create(0, 2, 64, false)?;
    for id in IDS {
        xen.create(id, 0, 1024, false)?;
    }
    flags(&xen).context("flags")?;
    kinds(&xen).context("kinds of pairs")?;
    twice(&xen).context("a gfn in two pairs")?;
    reserve(&xen).context("the reserve")?;
    limit(&xen).context("the receiver's limit")?;
    claim(&xen).context("claims")?;
    cache(&xen).context("the receiver's cache")?;
    log_dirty(&xen).context("log-dirty mode")?;
    tracked(&xen).context("ranges that are tracked")?;
    large::superpages(&xen).context("2 MiB")?;
    large::partly(&xen).context("2 MiB of which not all is to be populated")?;
    last(&xen).context("the last page")?;
    back::run(&xen).context("the way back")?;
    large::gigabyte(&xen).context("1 GiB")?;
    if !ept {
        nested(&xen).context("nested P2Ms")?;
    }
    Ok(())
}

/// One run, to completion.
fn call(
    xen: &Xen,
    ids: [u16; 2],
    run: Run,
    to: Direction,
    check: bool,
    sum: u64,
) -> Result<(Vec<i32>, Args)> {
    let runs = [run];
    let mut status = vec![1; run.nr as usize];
    let mut args = Args::new(xen, (ids[0], ids[1]), check, &runs, &mut status).moving(to);
    args.to().fill(sum);
    let rc = xen.complete(&mut args);
    ensure!(rc == 0, "the call returned {rc}");
    for id in ids {
        ensure!(!xen.residue(id), "d{id}: something is left behind");
    }
    if let Some(violation) = world::with(|w| w.violation.take()) {
        anyhow::bail!("{violation}");
    }
    Ok((status, args))
}

fn run_at(gfn_a: u64, gfn_b: u64, nr: u64) -> Run {
    Run {
        gfn_a,
        gfn_b,
        nr: nr as u32,
        pad: 0,
    }
}

/// Move a run to B, and say how many frames went.
fn give(xen: &Xen, run: Run) -> Result<(Vec<i32>, u64)> {
    let (status, mut args) = call(xen, IDS, run, Direction::ToB, false, 0)?;
    let to = args.to().to_vec();
    ensure!(to[0] == 0, "{to:?} were moved");
    Ok((status, to[1]))
}

/// What a `give()` of all of the run did is undone.
fn back(xen: &Xen, run: Run) -> Result<()> {
    let (status, _) = call(xen, IDS, run, Direction::ToA, false, 0)?;
    ensure!(status.iter().all(|s| *s == 0), "not all came back");
    Ok(())
}

/// All but where sweeps begin, which never falls.
fn pods(xen: &Xen) -> [Pod; 2] {
    IDS.map(|id| Pod {
        max_guest: 0,
        ..xen.pod(id)
    })
}

fn page(xen: &Xen, mfn: u64) -> *mut u64 {
    (xen.layout.direct_map + (mfn << 12)) as *mut u64
}

/// Write all of a frame.
fn fill(xen: &Xen, mfn: u64, value: u64) {
    for i in 0..512 {
        // SAFETY: a frame of the simulated machine.
        unsafe { *page(xen, mfn).add(i) = value };
    }
}

fn is_filled(xen: &Xen, mfn: u64, value: u64) -> bool {
    // SAFETY: as above.
    (0..512).all(|i| unsafe { *page(xen, mfn).add(i) } == value)
}

fn flags(xen: &Xen) -> Result<()> {
    xen.populate(1, 0, 64, 0)?;
    xen.populate(2, 0, 65, 0)?;
    for (flags, want) in [
        (1 << 3, 0),
        (1 << 4, 0),
        (3 << 3, -libc::EINVAL),
        (1 << 5, -libc::EINVAL),
        (1 << 2, 0),
        ((1 << 2) | (1 << 3), -libc::EINVAL),
        ((1 << 2) | (1 << 4), -libc::EINVAL),
        ((1 << 3) | 2, -libc::EINVAL),
        ((1 << 3) | 3, 0),
    ] {
        let runs = [run_at(0, 0, 1)];
        let mut status = [1];
        let mut args = Args::new(xen, (1, 2), false, &runs, &mut status);
        args.set_flags(flags);
        let rc = xen.swap(&mut args);
        ensure!(rc == i64::from(want), "flags {flags:#x}: {rc}, not {want}");
        ensure!(args.to() == [0, 0], "flags {flags:#x}: frames were moved");
    }
    Ok(())
}

/// RAM and what is to be populated, on either side; asked, done, and undone. Then the same with
/// the first four pairs in use on one side, where nothing may happen and the caller must be told.
fn kinds(xen: &Xen) -> Result<()> {
    const GFN: u64 = 16;
    for (id, on_demand) in IDS.into_iter().zip([[2, 3], [1, 3]]) {
        for i in 0..4 {
            let gfn = GFN + 4 * i;
            for j in 0..4 {
                if on_demand.contains(&i) {
                    xen.pod_mark(id, gfn + j, 0)?;
                } else {
                    xen.populate(id, gfn + j, u64::from(id) * 1024 + 4 * i + j, 0)?;
                    fill(xen, u64::from(id) * 1024 + 4 * i + j, gfn + j);
                }
            }
        }
    }
    let look = || -> Vec<_> {
        let all = IDS
            .into_iter()
            .flat_map(|id| (GFN..GFN + 16).map(move |g| (id, g)));
        all.map(|(id, gfn)| xen.lookup(id, gfn)).collect()
    };
    let all = run_at(GFN, GFN, 16);
    let (before, counted) = (look(), pods(xen));
    let want = [0, 0, -libc::ENODATA, -libc::ENODATA];
    for check in [true, false] {
        let (status, mut args) = call(xen, IDS, all, Direction::ToB, check, 0)?;
        for (i, status) in status.into_iter().enumerate() {
            ensure!(status == want[i / 4], "pair {i}: {status}, check {check}");
        }
        ensure!(args.to() == [0, 4], "{:?} are told as moved", args.to());
        ensure!(
            !check || (look() == before && pods(xen) == counted),
            "a check has changed something"
        );
    }
    let now = look();
    for i in 0..4 {
        let (a, b) = (before[4 + i].mfn, before[16 + 8 + i].mfn);
        ensure!(now[4 + i].p2m_type == ON_DEMAND, "A: {:?}", now[4 + i]);
        ensure!(
            now[16 + 4 + i].mfn == a && now[16 + 4 + i].p2m_type == RAM_RW,
            "B: {:?}",
            now[16 + 4 + i]
        );
        let frame = xen.frame(a);
        ensure!(
            frame.owner == 2 && frame.gpfn == GFN + 4 + i as u64,
            "{frame:?}"
        );
        ensure!(is_filled(xen, a, GFN + 4 + i as u64), "contents are lost");
        ensure!(now[16 + 8 + i].mfn == b, "the frame does not stay");
        ensure!(is_filled(xen, b, 0), "the frame was not zeroed");
    }
    let [a, b] = pods(xen);
    let [old_a, old_b] = counted;
    // It has been in debt before, so there is no reserve.
    let want_a = Pod {
        tot_pages: old_a.tot_pages - 4,
        entries: old_a.entries + 4,
        ..old_a
    };
    let want_b = Pod {
        tot_pages: old_b.tot_pages + 4,
        entries: old_b.entries - 4,
        ..old_b
    };
    ensure!(a == want_a && b == want_b, "{a:?}, {b:?}");
    for id in IDS {
        let first = xen.pod(id).max_guest;
        ensure!(first == GFN + 7, "d{id}: sweeps begin at {first:#x}");
    }
    back(xen, run_at(GFN, GFN, 8))?;
    ensure!(look() == before, "it is not as it was");
    let now = pods(xen);
    ensure!(now == counted, "{now:?}, not {counted:?}");

    for (id, mfn, first) in [(1, before[4].mfn, 4), (2, before[16 + 8].mfn, 8)] {
        fill(xen, mfn, 7);
        ensure!(xen.get_page(mfn, id), "no reference");
        for check in [true, false] {
            let run = run_at(GFN + first, GFN + first, 1);
            let (status, mut args) = call(xen, IDS, run, Direction::ToB, check, 0)?;
            ensure!(status == [-libc::EBUSY], "d{id} in use: {status:?}");
            ensure!(args.to() == [0, 0], "d{id} in use: counted");
        }
        ensure!(is_filled(xen, mfn, 7), "d{id} in use: zeroed");
        xen.put_page(mfn);
    }
    ensure!(look() == before, "what was in use has moved");
    Ok(())
}

/// Two frames do not go to one gfn, nor is one that goes there taken for nothing.
fn twice(xen: &Xen) -> Result<()> {
    const GFN: u64 = 64;
    for i in 0..2 {
        xen.populate(1, GFN + i, 2048 + i, 0)?;
    }
    xen.pod_mark(1, GFN + 2, 0)?;
    xen.pod_mark(2, GFN, 0)?;
    let runs: Vec<_> = (0..3).map(|i| run_at(GFN + i, GFN, 1)).collect();
    let mut status = [1; 3];
    let mut args = Args::new(xen, (1, 2), false, &runs, &mut status).moving(Direction::ToB);
    let rc = xen.swap(&mut args);
    ensure!(rc == 0 && args.to() == [0, 1], "{rc}, {:?}", args.to());
    ensure!(status == [0, -libc::EEXIST, -libc::EEXIST], "{status:?}");
    ensure!(xen.lookup(2, GFN).mfn == 2048 && xen.lookup(1, GFN + 1).mfn == 2049);
    back(xen, runs[0])
}

/// A giver without debt gets frames to go on with: as many as it gives, up to a limit. With
/// these it can write zeros to everything that it gave.
fn reserve(xen: &Xen) -> Result<()> {
    const GFN: u64 = 1024;
    const NR: u64 = 300;
    let (giver, receiver) = (3, 4);
    for id in [giver, receiver] {
        xen.create(id, 0, 1024, false)?;
    }
    for i in 0..NR {
        xen.populate(giver, GFN + i, 4096 + i * 7 % NR, 0)?;
        xen.pod_mark(receiver, GFN + i, 0)?;
    }
    let mut before = xen.pod(giver);
    // What it gets must not be in the way of what is to come back.
    xen.set_limit(giver, NR, 0);
    let part = |first, nr| run_at(GFN + first, GFN + first, nr);
    for (first, nr, cache) in [(0, 100, 100), (100, 100, RESERVE), (200, 100, RESERVE)] {
        let (_, mut args) = call(xen, [3, 4], part(first, nr), Direction::ToB, false, 0)?;
        ensure!(args.to() == [0, nr], "{:?} were moved", args.to());
        let now = xen.pod(giver);
        let want = Pod {
            tot_pages: NR - first - nr + cache,
            cache,
            entries: first + nr,
            max_guest: GFN + first + nr - 1,
            ..before
        };
        ensure!(now == want, "{now:?}, not {want:?}");
    }
    for gfn in GFN..GFN + NR {
        let mfn = xen.pod_touch(giver, gfn);
        ensure!(is_filled(xen, mfn, 0), "gfn {gfn:#x} is not zero");
    }
    let now = xen.pod(giver);
    ensure!(now.cache > 0 && now.tot_pages == RESERVE, "{now:?}");
    let ram = NR - now.entries;
    let run = part(0, NR);
    let (status, mut args) = call(xen, [3, 4], run, Direction::ToA, true, 0)?;
    ensure!(status.iter().all(|s| *s == 0), "not all would come back");
    ensure!(args.to() == [now.entries, 0], "{:?} would come", args.to());
    // What it has populated is swapped.
    let (status, mut args) = call(xen, [3, 4], run, Direction::ToA, false, 0)?;
    ensure!(status.iter().all(|s| *s == 0), "not all came back");
    ensure!(args.to() == [now.entries, 0], "{:?}, {ram}", args.to());
    let after = xen.pod(giver);
    before.max_guest = after.max_guest;
    ensure!(after == before, "{after:?}, not {before:?}");
    // Those that the giver had touched are the receiver's now. With nothing left to populate it
    // was without debt as well.
    let left = xen.pod(receiver);
    ensure!(left.tot_pages == ram + RESERVE, "{left:?}, not {ram}");

    // No memory for it: that costs one pair, and leaves nothing behind.
    xen.set_limit(giver, u64::from(u32::MAX), 0);
    let first = ENTRY;
    for i in first..first + 20 {
        xen.populate(giver, GFN + i, 4096 + i, 0)?;
        xen.pod_mark(receiver, GFN + i, 0)?;
    }
    world::with(|w| {
        w.begin(world::Faults {
            frame: Some(5),
            ..Default::default()
        });
    });
    let (status, mut args) = call(xen, [3, 4], part(first, 20), Direction::ToB, false, 0)?;
    let refused: Vec<_> = (0..20).filter(|i| status[*i] != 0).collect();
    ensure!(
        refused == [5] && status[5] == -libc::ENOMEM && args.to() == [0, 19],
        "{status:?}"
    );
    world::with(|w| w.begin(world::Faults::default()));
    let now = xen.pod(giver);
    ensure!(now.cache == 19 && now.entries == 19, "{now:?}");
    ensure!(now.tot_pages == before.tot_pages + 20, "{now:?}");
    Ok(())
}

/// What the receiver may have at most: asked for in two calls, and done in two.
fn limit(xen: &Xen) -> Result<()> {
    const GFN: u64 = 4096;
    for i in 0..ENTRY {
        xen.populate(1, GFN + i, 8192 + i, 0)?;
        xen.pod_mark(2, GFN + i, 0)?;
    }
    let tot = xen.pod(2).tot_pages;
    let all = pods(xen);
    xen.set_limit(2, tot + 100, 130);
    for check in [true, false] {
        let mut sum = 0;
        for (first, nr, fit) in [(0, 70, 70), (70, 70, 30), (140, 10, 0)] {
            let run = run_at(GFN + first, GFN + first, nr);
            let (status, mut args) = call(xen, IDS, run, Direction::ToB, check, sum)?;
            for (i, status) in status.into_iter().enumerate() {
                let want = if (i as u64) < fit { 0 } else { -libc::ENOSPC };
                ensure!(status == want, "pair {i} of {first}: {status}");
            }
            ensure!(args.to()[1] == sum + fit, "{:?}, check {check}", args.to());
            sum += fit;
        }
    }
    let now = xen.pod(2);
    ensure!(now.tot_pages == tot + 100, "{now:?}");
    ensure!(now.claim == 30, "of the claim {} are left", now.claim);
    xen.set_limit(2, u64::from(u32::MAX), 0);
    back(xen, run_at(GFN, GFN, 100))?;
    ensure!(pods(xen)[1] == all[1], "{:?}, not {all:?}", pods(xen));
    // A sum that is beyond everything.
    let run = run_at(GFN, GFN, 1);
    for sum in [u64::from(u32::MAX), u64::MAX] {
        let (status, _) = call(xen, IDS, run, Direction::ToB, true, sum)?;
        ensure!(status == [-libc::ENOSPC], "{sum:#x}: {status:?}");
    }
    Ok(())
}

/// What is claimed while frames are on their way is for what is missing besides these: it is as it
/// was staked when they have arrived, though they had reduced an older claim.
fn claim(xen: &Xen) -> Result<()> {
    const GFN: u64 = 6144;
    const NR: u64 = 16;
    for i in 0..NR {
        xen.populate(1, GFN + i, 10240 + i, 0)?;
        xen.pod_mark(2, GFN + i, 0)?;
    }
    let run = run_at(GFN, GFN, NR);
    for (older, left) in [(0, 0), (5, 0), (100, 84)] {
        for staked in [None, Some(7)] {
            xen.set_limit(2, u64::from(u32::MAX), older);
            world::with(|w| w.stake = staked.map(|pages| (xen.claim_field(2), pages)));
            let (_, moved) = give(xen, run)?;
            let claim = xen.pod(2).claim;
            let want = staked.map_or(left, u64::from);
            ensure!(
                moved == NR && claim == want,
                "{older} claimed, then {staked:?}: {moved} moved, {claim} left, not {want}"
            );
            back(xen, run)?;
        }
    }
    xen.set_limit(2, u64::from(u32::MAX), 0);
    Ok(())
}

/// A receiver's cache is never larger than what it could still populate.
fn cache(xen: &Xen) -> Result<()> {
    const GFN: u64 = 8192;
    let debt = xen.pod(2);
    for i in 0..50 {
        xen.populate(1, GFN + i, 12288 + i, 0)?;
        xen.pod_mark(2, GFN + i, 0)?;
    }
    xen.pod_target(2, debt.tot_pages + debt.entries + 50)?;
    let full = xen.pod(2);
    ensure!(full.cache == full.entries, "{full:?}");
    world::with(|w| w.begin(world::Faults::default()));
    let (_, moved) = give(xen, run_at(GFN, GFN, 50))?;
    let now = xen.pod(2);
    ensure!(
        moved == 50 && now.cache == now.entries && now.entries == full.entries - 50,
        "{now:?}, {full:?}"
    );
    ensure!(now.tot_pages == full.tot_pages, "{now:?}, {full:?}");
    let freed = world::with(|w| w.counts.freed);
    ensure!(freed == 50, "{freed} frames were freed");
    back(xen, run_at(GFN, GFN, 50))
}

fn log_dirty(xen: &Xen) -> Result<()> {
    const GFN: u64 = 16384;
    for i in 0..4 {
        xen.populate(1, GFN + i, 16384 + i, 0)?;
        xen.pod_mark(2, GFN + i, 0)?;
        xen.pod_mark(1, GFN + 4 + i, 0)?;
        xen.populate(2, GFN + 4 + i, 16388 + i, 0)?;
    }
    for id in IDS {
        xen.log_dirty(id, true)?;
    }
    let (status, args) = call(xen, IDS, run_at(GFN, GFN, 8), Direction::ToB, false, 0)?;
    ensure!(status[..4] == [0; 4], "{status:?}");
    let dirty = args.stat(stat::DIRTIED);
    // Both sides of four that were moved, and four that were zeroed.
    ensure!(dirty == 12, "{dirty} frames are dirty");
    for gfn in GFN + 4..GFN + 8 {
        let kind = xen.lookup(2, gfn).p2m_type;
        ensure!(kind == RAM_RW, "what was zeroed counts as clean: {kind}");
    }
    back(xen, run_at(GFN, GFN, 4))?;
    for id in IDS {
        xen.log_dirty(id, false)?;
    }
    Ok(())
}

/// What a device model draws is what was written since it last asked: frames that came, or were
/// filled with zeros. What was given away is drawn when it is populated.
fn tracked(xen: &Xen) -> Result<()> {
    const GFN: u64 = 16448;
    for i in 0..4 {
        xen.populate(1, GFN + i, 16448 + i, 0)?;
        xen.pod_mark(2, GFN + i, 0)?;
        xen.pod_mark(1, GFN + 4 + i, 0)?;
        xen.populate(2, GFN + 4 + i, 16452 + i, 0)?;
        for id in IDS {
            xen.populate(id, GFN + 8 + i, 16448 + u64::from(id) * 8 + i, 0)?;
        }
    }
    let ask = || -> Result<Vec<u64>> {
        let ask = |id| xen.track_vram(id, GFN, 16);
        IDS.into_iter().map(ask).collect()
    };
    ask()?;
    let quiet = ask()?;
    ensure!(quiet == [0, 0], "nothing was written, but {quiet:x?}");
    let run = run_at(GFN, GFN, 9);
    give(xen, run)?;
    let written = ask()?;
    ensure!(written == [0x100, 0x1ff], "{written:x?} were written");
    let quiet = ask()?;
    ensure!(quiet == [0, 0], "nothing was written since, but {quiet:x?}");
    back(xen, run_at(GFN, GFN, 4))?;
    let written = ask()?;
    ensure!(
        written == [0xf, 0],
        "{written:x?} were written when they came back"
    );
    give(xen, run_at(GFN, GFN, 4))?;
    ask()?;
    xen.pod_target(1, u64::from(u32::MAX))?;
    xen.pod_touch(1, GFN + 2);
    let written = ask()?;
    ensure!(
        written == [4, 0],
        "{written:x?} were written when one was populated"
    );
    for id in IDS {
        xen.track_vram(id, GFN, 0)?;
    }
    Ok(())
}

/// A domain that has no page any more has one reference less, and another one has one more.
fn last(xen: &Xen) -> Result<()> {
    let ids = [5, 6];
    for id in ids {
        xen.create(id, 0, 256, false)?;
        xen.pod_mark(id, 8, 0)?;
        xen.pod_mark(id, 0, 0)?;
    }
    xen.pod_decrease(5, 0, 0);
    xen.populate(5, 0, 20480, 0)?;
    for (to, pages) in [
        (Direction::ToB, [0, 1]),
        (Direction::ToA, [1, 0]),
        (Direction::ToB, [0, 1]),
    ] {
        call(xen, ids, run_at(0, 0, 1), to, false, 0)?;
        for (id, pages) in ids.into_iter().zip(pages) {
            let pod = xen.pod(id);
            ensure!(
                pod.tot_pages == pages && pod.references == 1 + pages,
                "d{id}: {pod:?}"
            );
        }
    }
    Ok(())
}

/// P2Ms of nested guests are flushed before, and not under, the lock of populate-on-demand.
fn nested(xen: &Xen) -> Result<()> {
    let id = 7;
    xen.create(id, NESTED, 256, false)?;
    xen.populate(id, 0, 24576, 0)?;
    xen.pod_mark(2, 0x20000, 0)?;
    xen.nested_write(id, 0, 0x123, 24576)?;
    let (status, args) = call(
        xen,
        [id, 2],
        run_at(0, 0x20000, 1),
        Direction::ToB,
        false,
        0,
    )?;
    ensure!(status == [0], "{status:?}");
    let flushes = args.stat(stat::NESTED_FLUSHES);
    ensure!(flushes == 1, "{flushes} flushes");
    let left = xen.nested_lookup(id, 0, 0x123);
    ensure!(left == world::NONE, "{left:#x} is still mapped");
    Ok(())
}
