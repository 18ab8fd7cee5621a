// SPDX-License-Identifier: GPL-2.0-only

//! One case each of everything that a pair is refused for, of 2 MiB entries that cannot be
//! exchanged whole, of 1 GiB entries, and of P2Ms of nested guests: what the random sequences
//! do not have.

use std::path::Path;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::keep;
use crate::others;
use crate::world;
use crate::xen::stat;
use crate::xen::Args;
use crate::xen::Run;
use crate::xen::Xen;
use crate::xen::ACCESS_RWX;
use crate::xen::ALTP2M;
use crate::xen::FOREIGN;
use crate::xen::NESTED;
use crate::xen::RAM_RW;
use crate::xen::RESTART;
use crate::xen::UNIQUE_ID;

/// Frames of the machine: two aligned GiB after the first one.
const FRAMES: u64 = 4 * GIB;
const GIB: u64 = 1 << 18;
/// Pairs that are swapped at a time, and which of them is disturbed.
const PAIRS: usize = 16;
const ODD: usize = 5;

/// What is done to a frame or its entry.
enum Change {
    /// Another type of entry, with the same frame.
    Type(u64),
    /// Another type of entry, and no frame.
    Nothing(u64),
    /// A frame of a third domain.
    Foreign,
    /// One of Xen's own.
    Special,
    /// Owned by a third domain.
    Owner,
    /// Used by somebody.
    Reference,
    /// M2P leads elsewhere.
    M2p,
    /// Under access restrictions; EPT only.
    Access,
}

/// Paging of memory is not in this build, and NPT has no entry for a broken page.
const CASES: [(&str, Change, i32); 17] = [
    ("a hole", Change::Nothing(1), -libc::ENOENT),
    ("emulated MMIO", Change::Nothing(4), -libc::ENOENT),
    ("read-only RAM", Change::Type(3), -libc::EROFS),
    ("MMIO", Change::Type(5), -libc::EOPNOTSUPP),
    ("populate on demand", Change::Nothing(6), -libc::ENODATA),
    ("a grant", Change::Type(7), -libc::EXDEV),
    ("a read-only grant", Change::Type(8), -libc::EXDEV),
    ("shared", Change::Type(12), -libc::EMLINK),
    ("foreign", Change::Foreign, -libc::EXDEV),
    ("an ioreq server's", Change::Type(15), -libc::EOPNOTSUPP),
    ("special", Change::Special, -libc::EPERM),
    ("another domain's", Change::Owner, -libc::EXDEV),
    ("in use", Change::Reference, -libc::EBUSY),
    ("mapped elsewhere", Change::M2p, -libc::EMLINK),
    ("restricted", Change::Access, -libc::EACCES),
    ("log-dirty", Change::Type(2), 0),
    ("plain RAM", Change::Type(RAM_RW as u64), 0),
];

/// All cases, with NPT or EPT.
pub fn run(library: &Path, ept: bool) -> Result<()> {
    let xen = Xen::load(library, FRAMES, ept, world::handle)?;
    xen.create(0, 2, 64, false)?;
    for id in 1..=3u16 {
        xen.create(id, 0, 1024, true)?;
        for i in 0..PAIRS as u64 {
            xen.populate(id, i, u64::from(id) * 1024 + i * 7 % PAIRS as u64, 0)?;
        }
    }
    for (name, change, status) in &CASES {
        if ept || !matches!(change, Change::Access) {
            refused(&xen, change, *status).with_context(|| (*name).to_owned())?;
        }
    }
    domains(&xen, ept).context("domains")?;
    superpages(&xen).context("2 MiB")?;
    merges(&xen).context("entries that could be put together")?;
    if !ept {
        nested(&xen).context("nested P2Ms")?;
    }
    log_dirty(&xen).context("log-dirty mode")?;
    gigabyte(&xen).context("1 GiB")?;
    others::run(&xen, ept).context("what others do")?;
    keep::run(&xen, 3 * GIB).context("contents that stay")
}

fn swap(xen: &Xen, ids: (u16, u16), check: bool, run: Run) -> Result<(Vec<i32>, Args)> {
    let runs = [run];
    let mut status = vec![1; run.nr as usize];
    let mut args = Args::new(xen, ids, check, &runs, &mut status);
    let rc = xen.complete(&mut args);
    ensure!(rc == 0, "the swap returned {rc}");
    Ok((status, args))
}

/// What is refused because of a domain, before anything is copied or allocated.
fn domains(xen: &Xen, ept: bool) -> Result<()> {
    const SPECIAL: u16 = 6;
    xen.create(SPECIAL, ALTP2M, 64, false)?;
    xen.create(others::NESTED_DOMAIN, NESTED, 64, false)?;
    let nested = if ept { -libc::ENXIO } else { 0 };
    let id = |domid: u64| UNIQUE_ID + domid;
    for (what, other, ids, expected) in [
        ("no ids", 2, [0, 0], 0),
        ("the right ids", 2, [id(1), id(2)], 0),
        ("another A", 2, [id(3), id(2)], -libc::EADDRNOTAVAIL),
        ("another B", 2, [0, id(1)], -libc::EADDRNOTAVAIL),
        ("altp2m could be used", SPECIAL, [0, 0], -libc::EADDRINUSE),
        ("nested HVM", others::NESTED_DOMAIN, [0, 0], nested),
        ("the caller", 0, [0, 0], -libc::EPERM),
        ("nobody", 99, [0, 0], -libc::ESRCH),
    ] {
        let runs = [Run {
            gfn_a: 0,
            gfn_b: 0,
            nr: 1,
            pad: 0,
        }];
        let mut status = [1];
        let mut args = Args::new(xen, (1, other), true, &runs, &mut status);
        args.ids().copy_from_slice(&ids);
        world::with(|w| {
            w.begin(world::Faults {
                alloc: (expected != 0).then_some(0),
                ..Default::default()
            });
        });
        let rc = xen.swap(&mut args);
        let allocated = world::with(|w| w.faults.fired);
        ensure!(rc == i64::from(expected), "{what}: {rc}, not {expected}");
        ensure!(!allocated, "{what}: memory was allocated");
        if expected == 0 {
            let given = args.ids().to_vec();
            ensure!(
                given == [id(1), id(u64::from(other))],
                "{what}: the ids given back are {given:x?}"
            );
        }
    }
    world::with(|w| w.begin(world::Faults::default()));
    Ok(())
}

fn refused(xen: &Xen, change: &Change, expected: i32) -> Result<()> {
    let gfn = ODD as u64;
    let mfn = xen.lookup(1, gfn).mfn;
    let m2p = (xen.layout.m2p + mfn * 8) as *mut u64;
    let map = |mfn, kind, access| xen.write(1, gfn, mfn, 0, kind, access);
    match change {
        Change::Type(kind) => map(mfn, *kind, ACCESS_RWX)?,
        Change::Nothing(kind) => map(world::NONE, *kind, ACCESS_RWX)?,
        Change::Foreign => map(xen.lookup(3, 0).mfn, FOREIGN, ACCESS_RWX)?,
        Change::Special => xen.set_special(mfn, true),
        Change::Owner => xen.set_owner(mfn, 3),
        Change::Reference => ensure!(xen.get_page(mfn, 1), "no reference"),
        // SAFETY: an entry of the simulated machine's table.
        Change::M2p => unsafe { *m2p += 1 },
        Change::Access => map(mfn, RAM_RW.into(), 1)?,
    }
    let before = (xen.lookup(1, gfn), xen.frame(mfn));
    for ids in [(1, 2), (2, 1)] {
        let run = Run {
            gfn_a: 0,
            gfn_b: 0,
            nr: PAIRS as u32,
            pad: 0,
        };
        for check in [true, false] {
            let (status, _) = swap(xen, ids, check, run)?;
            for (i, got) in status.iter().enumerate() {
                let want = if i == ODD { expected } else { 0 };
                ensure!(*got == want, "pair {i}: status {got}, not {want}");
            }
            let now = (xen.lookup(1, gfn), xen.frame(mfn));
            ensure!(
                expected == 0 || now == before,
                "what was refused has changed: {now:?}, not {before:?}"
            );
        }
    }
    match change {
        Change::Special => xen.set_special(mfn, false),
        Change::Owner => xen.set_owner(mfn, 1),
        Change::Reference => xen.put_page(mfn),
        // SAFETY: as above.
        Change::M2p => unsafe { *m2p -= 1 },
        _ => {}
    }
    map(mfn, RAM_RW.into(), ACCESS_RWX)
}

/// A pair of 2 MiB entries of which one frame cannot be swapped: only that one stays, all
/// others are swapped one by one.
fn superpages(xen: &Xen) -> Result<()> {
    let disturbed = [
        ("in use", -libc::EBUSY),
        ("another domain's", -libc::EXDEV),
        ("mapped elsewhere", -libc::EMLINK),
    ];
    for (n, (what, expected)) in (1..).zip(disturbed) {
        let gfn = n * 512;
        for id in 1..=2u16 {
            xen.populate(id, gfn, u64::from(id) * 16384 + gfn, 9)?;
        }
        let mfn = xen.lookup(1, gfn).mfn + ODD as u64;
        let m2p = (xen.layout.m2p + mfn * 8) as *mut u64;
        match expected {
            e if e == -libc::EBUSY => ensure!(xen.get_page(mfn, 1), "no reference"),
            e if e == -libc::EXDEV => xen.set_owner(mfn, 3),
            // SAFETY: an entry of the simulated machine's table.
            _ => unsafe { *m2p += 1 },
        }
        let before = xen.frame(mfn);
        let run = Run {
            gfn_a: gfn,
            gfn_b: gfn,
            nr: 512,
            pad: 0,
        };
        let (status, args) = swap(xen, (1, 2), false, run)?;
        for (i, got) in status.iter().enumerate() {
            let want = if i == ODD { expected } else { 0 };
            ensure!(*got == want, "{what}: pair {i}: status {got}, not {want}");
        }
        for (counter, nr, want) in [
            ("pairs swapped", stat::SWAPPED, 511),
            ("superpages", stat::SUPERPAGES, 0),
            ("2 MiB entries split", stat::SPLITS_2M, 2),
        ] {
            let got = args.stat(nr);
            ensure!(got == want, "{what}: {got} {counter}, not {want}");
        }
        ensure!(xen.frame(mfn) == before, "{what}: the frame has changed");
        ensure!(xen.lookup(1, gfn + ODD as u64).mfn == mfn, "{what}: moved");
    }
    Ok(())
}

/// 4 KiB entries become one of 2 MiB when their frames have come back, and only if each of
/// them is of a kind for that.
fn merges(xen: &Xen) -> Result<()> {
    const READ_ONLY: u64 = 3;
    let gfn = 16 * 512;
    let odd = gfn + ODD as u64;
    for id in 1..=2u16 {
        xen.populate(id, gfn, u64::from(id) * 16384 + gfn, 9)?;
        // In a row, but not where a superpage can be.
        for i in 512..1024 {
            xen.populate(id, gfn + i, u64::from(id) * 16384 + gfn + i + 1, 0)?;
        }
    }
    let order = |id| xen.lookup(id, gfn).order;
    let all = |first| Run {
        gfn_a: first,
        gfn_b: first,
        nr: 512,
        pad: 0,
    };
    for _ in 0..2 {
        swap(xen, (1, 2), false, all(gfn + 512))?;
        let put_together = xen.lookup(1, gfn + 512).order;
        ensure!(put_together == 0, "not aligned: order {put_together}");
    }
    let mfn = xen.lookup(1, odd).mfn;
    xen.write(1, odd, mfn, 0, READ_ONLY, ACCESS_RWX)?;
    for (round, wanted) in [[0, 0], [0, 9]].into_iter().enumerate() {
        let (status, _) = swap(xen, (1, 2), false, all(gfn))?;
        ensure!(status[ODD] == -libc::EROFS, "status {}", status[ODD]);
        let got = [order(1), order(2)];
        ensure!(got == wanted, "round {round}: orders {got:?}");
    }
    xen.write(1, odd, mfn, 0, RAM_RW.into(), ACCESS_RWX)?;
    for wanted in [[0, 0], [9, 9]] {
        let one = Run { nr: 1, ..all(odd) };
        swap(xen, (1, 2), false, one)?;
        let got = [order(1), order(2)];
        ensure!(got == wanted, "one frame: orders {got:?}, not {wanted:?}");
    }
    Ok(())
}

/// Frames are marked as dirty one by one, so with one domain in the mode a superpage takes all of
/// a batch, which bounds how long others wait; without it eight make one.
fn log_dirty(xen: &Xen) -> Result<()> {
    const GFN: u64 = 32 * 512;
    const PAIRS: u64 = 8 * 512;
    for id in 1..=2u16 {
        for i in (0..PAIRS).step_by(512) {
            xen.populate(id, GFN + i, u64::from(id) * 65536 + i, 9)?;
        }
    }
    let run = Run {
        gfn_a: GFN,
        gfn_b: GFN,
        nr: PAIRS as u32,
        pad: 0,
    };
    for (modes, batches) in [
        ([false, false], 1),
        ([true, false], 8),
        ([false, true], 8),
        ([false, false], 1),
    ] {
        for (id, on) in (1..).zip(modes) {
            if on {
                xen.log_dirty(id, true)?;
            }
        }
        world::with(|w| {
            w.begin(world::Faults {
                preempt: u64::MAX,
                ..Default::default()
            });
        });
        let (status, args) = swap(xen, (1, 2), false, run)?;
        let continued = world::with(|w| w.counts.continued);
        ensure!(status.iter().all(|s| *s == 0), "a pair was refused");
        let logging = modes.iter().filter(|on| **on).count() as u64;
        for (counter, got, want) in [
            ("batches", args.stat(stat::BATCHES), batches),
            ("continuations", continued, batches - 1),
            ("superpages", args.stat(stat::SUPERPAGES), 8),
            ("dirty frames", args.stat(stat::DIRTIED), PAIRS * logging),
        ] {
            ensure!(got == want, "{modes:?}: {got} {counter}, not {want}");
        }
        for (id, on) in (1..).zip(modes) {
            if on {
                xen.log_dirty(id, false)?;
            }
        }
    }
    world::with(|w| w.begin(world::Faults::default()));
    Ok(())
}

/// P2Ms of nested guests with entries for frames that are swapped: they are flushed once in
/// each batch, before a frame changes its owner, and the entries are gone.
fn nested(xen: &Xen) -> Result<()> {
    /// More than a batch.
    const PAIRS: u64 = 2048;
    const P2MS: u64 = 3;
    const GFN: u64 = 0x123;
    let ids = [4u16, 5];
    for id in ids {
        xen.create(id, NESTED, 1024, false)?;
        for i in 0..PAIRS {
            xen.populate(id, i, u64::from(id) * 2 * PAIRS + i * 7 % PAIRS, 0)?;
        }
    }
    world::with(|w| {
        w.begin(world::Faults {
            preempt: u64::MAX,
            ..Default::default()
        });
    });
    let runs = [Run {
        gfn_a: 0,
        gfn_b: 0,
        nr: PAIRS as u32,
        pad: 0,
    }];
    let mut status = vec![1; PAIRS as usize];
    let mut args = Args::new(xen, (ids[0], ids[1]), false, &runs, &mut status);
    let mut batches = 0;
    let rc = loop {
        // Of each batch one frame that is going to be swapped in it.
        let gfn = args.done() + ODD as u64;
        for id in ids {
            for which in 0..P2MS {
                let mfn = xen.lookup(id, gfn).mfn;
                xen.nested_write(id, which, GFN, mfn)?;
                let got = xen.nested_lookup(id, which, GFN);
                ensure!(got == mfn, "d{id}: nested P2M leads to {got:#x}");
            }
        }
        let owner = xen.owner_field(xen.lookup(ids[0], gfn).mfn);
        // SAFETY: a field of the simulated machine's frame table.
        let old = unsafe { *owner };
        world::with(|w| {
            w.counts.nested = 0;
            w.probe = Some((owner, old));
        });
        let rc = xen.swap(&mut args);
        batches += 1;
        let (flushed, violation) = world::with(|w| (w.counts.nested, w.violation.take()));
        if let Some(violation) = violation {
            bail!("{violation}");
        }
        let want = ids.len() as u64 * P2MS;
        ensure!(flushed == want, "{flushed} flushes in a batch, not {want}");
        // SAFETY: as above.
        ensure!(unsafe { *owner } != old, "the frame was not swapped");
        for id in ids {
            for which in 0..P2MS {
                let left = xen.nested_lookup(id, which, GFN);
                ensure!(left == world::NONE, "d{id}: {left:#x} is still mapped");
            }
            ensure!(!xen.residue(id), "something is left behind");
        }
        if rc != RESTART {
            break rc;
        }
    };
    world::with(|w| {
        w.probe = None;
        w.begin(world::Faults::default());
    });
    ensure!(
        rc == 0 && status.iter().all(|s| *s == 0),
        "the swap returned {rc}"
    );
    let reported = args.stat(stat::BATCHES);
    ensure!(batches > 1 && batches == reported, "{batches} batches");
    let counted = args.stat(stat::NESTED_FLUSHES);
    ensure!(
        counted == 2 * batches,
        "{counted} flushes of nested P2Ms are reported"
    );
    Ok(())
}

/// A 1 GiB entry on either side: exchanged whole, split for a part, and not put together
/// again by the other part.
fn gigabyte(xen: &Xen) -> Result<()> {
    for id in 1..=2u16 {
        xen.populate(id, GIB, u64::from(id) * GIB, 18)?;
    }
    let run = |first: u64, nr: u64| Run {
        gfn_a: GIB + first,
        gfn_b: GIB + first,
        nr: nr as u32,
        pad: 0,
    };
    for (what, run, splits, merges, order) in [
        ("all of it", run(0, GIB), 2, 2, 18),
        ("all of it again", run(0, GIB), 2, 2, 18),
        ("the first part", run(0, 4096), 2, 0, 9),
        ("the other part", run(4096, GIB - 4096), 0, 0, 9),
        ("all of it, 2 MiB entries", run(0, GIB), 0, 2, 18),
    ] {
        let (status, args) = swap(xen, (1, 2), false, run)?;
        ensure!(status.iter().all(|s| *s == 0), "{what}: a pair was refused");
        let supers = u64::from(run.nr) / 512;
        let batches = u64::from(run.nr).div_ceil(4096);
        for (counter, nr, want) in [
            ("pairs swapped", stat::SWAPPED, u64::from(run.nr)),
            ("superpages", stat::SUPERPAGES, supers),
            ("1 GiB entries split", stat::SPLITS_1G, splits),
            ("2 MiB entries split", stat::SPLITS_2M, 0),
            ("1 GiB entries put together", stat::MERGES_1G, merges),
            ("entries written", stat::P2M_WRITES, 4 * supers + merges),
            ("batches", stat::BATCHES, batches),
            ("flushes", stat::TLB_FLUSHES, batches + merges),
        ] {
            let got = args.stat(nr);
            ensure!(got == want, "{what}: {got} {counter}, not {want}");
        }
        for id in 1..=2u16 {
            let entry = xen.lookup(id, GIB);
            ensure!(
                entry.order == order,
                "{what}: an entry of order {}",
                entry.order
            );
            ensure!(!xen.residue(id), "{what}: something is left behind");
        }
    }
    // An even number of exchanges of everything.
    for i in (0..GIB).step_by(511) {
        for id in 1..=2u16 {
            let mfn = u64::from(id) * GIB + i;
            let (entry, frame) = (xen.lookup(id, GIB + i), xen.frame(mfn));
            ensure!(
                entry.mfn == mfn && frame.gpfn == GIB + i && frame.owner == u32::from(id),
                "gfn {:#x} of d{id}: {entry:?}, {frame:?}",
                GIB + i
            );
        }
    }
    Ok(())
}
