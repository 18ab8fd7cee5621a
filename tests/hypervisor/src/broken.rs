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
use crate::xen::Run;
use crate::xen::Xen;

const PAIRS: u64 = 16;
/// Lists of entries that are removed, before those that are written.
const REMOVED: u32 = 2;

/// All cases, with NPT or EPT.
pub fn run(library: &Path, ept: bool) -> Result<()> {
    let xen = Xen::load(library, 1 << 16, ept, world::handle)?;
    xen.create(0, 2, 64, false)?;
    for id in [1, 2u16] {
        xen.create(id, 0, 1024, true)?;
        for i in 0..4 * PAIRS {
            xen.populate(id, i, u64::from(id) * 1024 + i * 7 % (4 * PAIRS), 0)?;
        }
    }
    for nr in 0..2 * REMOVED {
        list(&xen, nr).with_context(|| format!("list {nr} of entries"))?;
    }
    Ok(())
}

/// The list of this number is not written: of A and of B, removed and then made.
fn list(xen: &Xen, nr: u32) -> Result<()> {
    let gfn = u64::from(nr) * PAIRS;
    let look = || -> Vec<_> {
        let all = [1, 2].into_iter();
        all.flat_map(|id| (gfn..gfn + PAIRS).map(move |g| (id, g)))
            .map(|(id, gfn)| {
                let entry = xen.lookup(id, gfn);
                (entry, xen.frame(entry.mfn))
            })
            .collect()
    };
    let before = look();
    let runs = [Run {
        gfn_a: gfn,
        gfn_b: gfn,
        nr: PAIRS as u32,
        pad: 0,
    }];
    let mut status = [1; PAIRS as usize];
    let mut args = Args::new(xen, (1, 2), false, &runs, &mut status);
    world::with(|w| {
        w.may_crash = true;
        w.begin(Faults {
            leaves: Some(nr),
            ..Faults::default()
        });
    });
    let rc = xen.swap(&mut args);
    let crashes = world::with(|w| w.counts.crashes);
    if nr < REMOVED {
        ensure!(rc == -i64::from(libc::ENOMEM), "it returned {rc}");
        ensure!(crashes == 0, "a domain was crashed");
        ensure!(args.done() == 0, "{} are told as done", args.done());
        ensure!(look() == before, "it is not as it was");
    } else {
        ensure!(rc == -i64::from(libc::EIO), "it returned {rc}");
        ensure!(crashes == 1, "{crashes} domains were crashed");
        ensure!(args.done() == PAIRS, "{} are told as done", args.done());
    }
    for id in [1, 2] {
        ensure!(!xen.residue(id), "d{id}: something is left behind");
    }
    Ok(())
}
