// SPDX-License-Identifier: GPL-2.0-only

//! Frames that are exchanged while their contents stay where they are.

use anyhow::ensure;
use anyhow::Result;

use crate::xen::stat;
use crate::xen::Args;
use crate::xen::Run;
use crate::xen::Xen;
use crate::xen::KEEP;

const IDS: (u16, u16) = (4, 5);
/// Superpages of each domain.
const SUPERS: u64 = 20;
/// In each of them the frame that is left behind.
const LEFT: u64 = 5;
/// Pairs that are dealt with at a time, as hypercall.rst says.
const BATCH: u64 = 8;

fn first(gfn: u64) -> Run {
    Run {
        gfn_a: gfn,
        gfn_b: gfn,
        nr: 1,
        pad: 0,
    }
}

fn swap(xen: &Xen, flags: u64, runs: &[Run]) -> Result<(Vec<i32>, Args)> {
    let pairs: u32 = runs.iter().map(|r| r.nr).sum();
    let mut status = vec![1; pairs as usize];
    let mut args = Args::new(xen, IDS, false, runs, &mut status);
    args.set(flags);
    let rc = xen.complete(&mut args);
    ensure!(rc == 0, "the swap returned {rc}");
    Ok((status, args))
}

/// The first and the last word of what a domain has at a gfn.
fn words(xen: &Xen, id: u16, gfn: u64) -> [*mut u64; 2] {
    let page = xen.layout.direct_map + xen.lookup(id, gfn).mfn * 4096;
    [page as *mut u64, (page + 4088) as *mut u64]
}

/// Whether each gfn has the contents that it had.
fn check(xen: &Xen, what: &str) -> Result<()> {
    for id in [IDS.0, IDS.1] {
        for gfn in (LEFT..SUPERS * 512).step_by(512) {
            for word in words(xen, id, gfn) {
                // SAFETY: the direct map, which is mapped for all frames.
                let got = unsafe { *word };
                let want = (u64::from(id) << 32) | gfn;
                ensure!(got == want, "{what}: d{id} {gfn:#x} has {got:#x}");
            }
        }
    }
    Ok(())
}

/// Frames that stayed when those around them went follow; then whole superpages. The frames
/// from `free` on are nobody's yet.
pub fn run(xen: &Xen, free: u64) -> Result<()> {
    for (n, id) in [IDS.0, IDS.1].into_iter().enumerate() {
        xen.create(id, 0, 1024, false)?;
        for gfn in (0..SUPERS * 512).step_by(512) {
            xen.populate(id, gfn, free + n as u64 * SUPERS * 512 + gfn, 9)?;
        }
        for gfn in (LEFT..SUPERS * 512).step_by(512) {
            for word in words(xen, id, gfn) {
                // SAFETY: the direct map, which is mapped for all frames.
                unsafe { *word = (u64::from(id) << 32) | gfn };
            }
        }
    }
    // All but one frame of each go, which stays with its contents.
    let mut others = Vec::new();
    for gfn in (0..SUPERS * 512).step_by(512) {
        others.push(Run {
            nr: LEFT as u32,
            ..first(gfn)
        });
        others.push(Run {
            nr: (511 - LEFT) as u32,
            ..first(gfn + LEFT + 1)
        });
    }
    let (_, args) = swap(xen, 0, &others)?;
    ensure!(args.stat(stat::MERGES_2M) == 0, "put together too early");
    check(xen, "left behind")?;

    let left: Vec<Run> = (LEFT..SUPERS * 512).step_by(512).map(first).collect();
    let held = xen.lookup(IDS.1, LEFT).mfn;
    ensure!(xen.get_page(held, IDS.1), "no reference");
    let (status, args) = swap(xen, KEEP, &left)?;
    ensure!(status[0] == -libc::EBUSY, "in use: {}", status[0]);
    ensure!(status[1..].iter().all(|s| *s == 0), "statuses {status:?}");
    xen.put_page(held);
    let batches = SUPERS.div_ceil(BATCH);
    for (name, counter, want) in [
        ("swapped", stat::SWAPPED, SUPERS - 1),
        ("batches", stat::BATCHES, batches),
        ("put together", stat::MERGES_2M, 2 * (SUPERS - 1)),
        ("exchanged whole", stat::SUPERPAGES, 0),
    ] {
        let got = args.stat(counter);
        ensure!(got == want, "{got} {name}, not {want}");
    }
    check(xen, "after they followed")?;
    for id in [IDS.0, IDS.1] {
        for gfn in (512..SUPERS * 512).step_by(512) {
            let order = xen.lookup(id, gfn).order;
            ensure!(order == 9, "d{id} {gfn:#x}: order {order}");
        }
    }

    // Whole superpages: one by one, and whole in the end.
    let whole = Run {
        nr: 512,
        ..first(512)
    };
    let (_, args) = swap(xen, KEEP, &[whole])?;
    for (name, counter, want) in [
        ("batches", stat::BATCHES, 512 / BATCH),
        ("put together", stat::MERGES_2M, 2),
        ("exchanged whole", stat::SUPERPAGES, 0),
    ] {
        let got = args.stat(counter);
        ensure!(got == want, "a whole one: {got} {name}, not {want}");
    }
    check(xen, "a whole one")
}
