// SPDX-License-Identifier: GPL-2.0-only

//! Entries that can't be written when frames have been held, which is proven to be impossible:
//! everything is put back, or the domain is crashed and the caller told. For a library without
//! assertions, as these would stop it.

use std::path::Path;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::world;
use crate::world::Faults;
use crate::xen::Args;
use crate::xen::Direction;
use crate::xen::Run;
use crate::xen::Xen;
use crate::xen::ON_DEMAND;

/// Frames of a 2 MiB entry.
const ENTRY: u64 = 512;
/// Domains that swap, and a giver and a receiver, which has no frame yet.
const SWAPPED: [u16; 2] = [1, 2];
const MOVED: [u16; 2] = [3, 4];

/// A call of which writes fail.
struct Call {
    name: &'static str,
    ids: [u16; 2],
    /// What it is about: this many entries of this order.
    nr: u64,
    order: u32,
    /// How often lists are written in it, and entries on their own, before the flush and all in
    /// all. An empty list counts.
    lists: [u32; 2],
    entries: [u32; 2],
}

/// The giver's entries become populate-on-demand one by one, and its frames are in lists of their
/// own, as the receiver's are.
const CALLS: [Call; 4] = [
    Call {
        name: "frames",
        ids: SWAPPED,
        nr: 16,
        order: 0,
        lists: [2, 4],
        entries: [0, 0],
    },
    Call {
        name: "superpages",
        ids: SWAPPED,
        nr: 2,
        order: 9,
        lists: [2, 4],
        entries: [4, 8],
    },
    Call {
        name: "frames that move",
        ids: MOVED,
        nr: 4,
        order: 0,
        lists: [3, 6],
        entries: [0, 4],
    },
    Call {
        name: "superpages that move",
        ids: MOVED,
        nr: 2,
        order: 9,
        lists: [3, 6],
        entries: [2, 6],
    },
];

/// All cases, with NPT or EPT.
pub fn run(library: &Path, ept: bool) -> Result<()> {
    let xen = Xen::load(library, 1 << 18, ept, world::handle)?;
    xen.create(0, 2, 64, false)?;
    for id in SWAPPED.into_iter().chain(MOVED) {
        xen.create(id, 0, 1024, true)?;
    }
    // Each at gfns of its own, as what could not be written stays like that.
    let mut gfn = 0;
    for call in &CALLS {
        for (all, list) in [(call.lists, true), (call.entries, false)] {
            for nr in 0..all[1] {
                let faults = Faults {
                    leaves: list.then_some(nr),
                    entry: (!list).then_some(nr),
                    ..Faults::default()
                };
                one(&xen, call, gfn, faults, nr < all[0])
                    .with_context(|| format!("{}, list: {list}, number {nr}", call.name))?;
                gfn += 2 * ENTRY;
            }
        }
    }
    Ok(())
}

/// What is there: entries, frames, and what counts.
fn look(xen: &Xen, call: &Call, gfn: u64) -> Vec<String> {
    let gfns = gfn..gfn + (call.nr << call.order);
    let mut all: Vec<_> = call
        .ids
        .iter()
        .map(|id| format!("{:?}", xen.pod(*id)))
        .collect();
    for id in call.ids {
        for gfn in gfns.clone() {
            let entry = xen.lookup(id, gfn);
            let frame = (entry.mfn != world::NONE).then(|| xen.frame(entry.mfn));
            all.push(format!("d{id} {gfn:#x}: {entry:?}, {frame:?}"));
        }
    }
    all
}

/// One write fails: before the flush, or after it.
fn one(xen: &Xen, call: &Call, gfn: u64, faults: Faults, early: bool) -> Result<()> {
    let moves = call.ids == MOVED;
    let pages = call.nr << call.order;
    for (n, id) in (0..).zip(call.ids) {
        // In no order, or in that of superpages.
        for i in 0..call.nr {
            let at = if call.order == 0 { i * 7 % call.nr } else { i };
            let at = gfn + (at << call.order);
            let mfn = 2 * (gfn + (n + 1) * ENTRY) + (i << call.order);
            if moves && n == 1 {
                xen.pod_mark(id, at, call.order)?;
            } else {
                xen.populate(id, at, mfn, call.order)?;
            }
        }
    }
    let before = look(xen, call, gfn);
    let runs = [Run {
        gfn_a: gfn,
        gfn_b: gfn,
        nr: pages as u32,
        pad: 0,
    }];
    let mut status = vec![1; pages as usize];
    let mut args = Args::new(xen, (call.ids[0], call.ids[1]), false, &runs, &mut status);
    if moves {
        args = args.moving(Direction::ToB);
    }
    world::with(|w| {
        w.may_crash = true;
        w.begin(faults);
    });
    let rc = xen.swap(&mut args);
    let (crashes, fired) = world::with(|w| {
        let found = (w.counts.crashes, w.faults.fired);
        w.begin(Faults::default());
        found
    });
    ensure!(fired, "there is no such write");
    if early {
        ensure!(rc == -i64::from(libc::ENOMEM), "it returned {rc}");
        ensure!(crashes == 0, "a domain was crashed");
        ensure!(args.done() == 0, "{} are told as done", args.done());
        for (was, is) in before.iter().zip(look(xen, call, gfn)) {
            ensure!(*was == is, "{is}, not {was}");
        }
    } else {
        ensure!(rc == -i64::from(libc::EIO), "it returned {rc}");
        ensure!(crashes == 1, "{crashes} domains were crashed");
        ensure!(args.done() == pages, "{} are told as done", args.done());
    }
    for id in call.ids {
        ensure!(!xen.residue(id), "d{id}: something is left behind");
        // Or else what is populated there, by whoever looks at the domain, ends in BUG_ON().
        let left = (0..gfn + pages).filter(|gfn| xen.lookup(id, *gfn).p2m_type == ON_DEMAND);
        let (left, counted) = (left.count() as u64, xen.pod(id).entries);
        ensure!(counted >= left, "d{id}: {left} entries, {counted} counted");
    }
    Ok(())
}
