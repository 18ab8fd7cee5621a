// SPDX-License-Identifier: GPL-2.0-only

//! What others do or are told: device models, memory types, foreign mappings.

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::world;
use crate::world::Faults;
use crate::xen::Args;
use crate::xen::Run;
use crate::xen::Xen;
use crate::xen::ACCESS_RWX;
use crate::xen::FOREIGN;
use crate::xen::KEEP;
use crate::xen::RAM_RW;
use crate::xen::UNMAP;

const GFN: u64 = 0x30000;
const MFN: u64 = 0x38000;
/// Frames of a 2 MiB entry.
const ENTRY: u64 = 512;
/// Superpages of a domain: more than a batch has.
const SUPERS: u64 = 12;
/// One with P2Ms of nested guests.
pub(crate) const NESTED_DOMAIN: u16 = 7;

/// All cases, on domains 1 to 3 and [`NESTED_DOMAIN`].
pub fn run(xen: &Xen, ept: bool) -> Result<()> {
    for id in [1, 2] {
        for i in 0..SUPERS {
            let gfn = GFN + i * ENTRY;
            xen.populate(id, gfn, MFN + (u64::from(id) * SUPERS + i) * ENTRY, 9)?;
        }
    }
    device_models(xen).context("device models")?;
    foreign(xen).context("foreign mappings")?;
    caches(xen).context("caches")?;
    if ept {
        memory_types(xen).context("memory types")?;
    }
    Ok(())
}

/// One run of the superpages, to completion.
fn swap(xen: &Xen, nr: u64, flags: u64, faults: Faults) -> Result<(i64, Vec<i32>)> {
    swap_at(xen, GFN, nr, flags, faults)
}

fn swap_at(xen: &Xen, gfn: u64, nr: u64, flags: u64, faults: Faults) -> Result<(i64, Vec<i32>)> {
    let runs = [Run {
        gfn_a: gfn,
        gfn_b: gfn,
        nr: nr as u32,
        pad: 0,
    }];
    let mut status = vec![1; nr as usize];
    let mut args = Args::new(xen, (1, 2), flags == UNMAP, &runs, &mut status);
    args.set(flags);
    world::with(|w| w.begin(faults));
    let rc = xen.complete(&mut args);
    Ok((rc, status))
}

/// Device models are asked to drop their mappings once, not in each continuation, and not for
/// a list that is refused.
fn device_models(xen: &Xen) -> Result<()> {
    let faults = Faults {
        preempt: u64::MAX,
        ..Faults::default()
    };
    let (rc, _) = swap(xen, SUPERS * ENTRY, UNMAP, faults)?;
    let counts = world::with(|w| w.counts);
    ensure!(rc == 0 && counts.continued > 0, "{rc}, {counts:?}");
    ensure!(
        counts.unmaps == 2,
        "{} requests to drop mappings",
        counts.unmaps
    );

    let faults = Faults {
        copy: Some(1),
        ..Faults::default()
    };
    let (rc, _) = swap(xen, 1, UNMAP, faults)?;
    let unmaps = world::with(|w| w.counts.unmaps);
    ensure!(
        rc == -i64::from(libc::EFAULT) && unmaps == 0,
        "{rc}, {unmaps} requests to drop mappings"
    );
    world::with(|w| w.begin(Faults::default()));
    Ok(())
}

/// A page whose foreign mapping is removed stays in use until no TLB has it any more: neither
/// the domain's nor those of its nested guests and its IOMMU.
fn foreign(xen: &Xen) -> Result<()> {
    for id in [3, NESTED_DOMAIN] {
        unmap(xen, id).with_context(|| format!("d{id}"))?;
    }
    for later in [false, true] {
        xen.set_iommu(3, true, later);
        unmap(xen, 3).with_context(|| format!("with an IOMMU, flushed later: {later}"))?;
        let flushes = world::with(|w| w.counts.iommu);
        ensure!(flushes > 0, "the IOMMU's TLB is not flushed");
        xen.set_iommu(3, false, false);
    }
    Ok(())
}

fn unmap(xen: &Xen, id: u16) -> Result<()> {
    const AT: u64 = 0x100;
    const NESTED_AT: u64 = 0x123;
    let mfn = xen.lookup(1, 0).mfn;
    let count = (xen.layout.frames + mfn * xen.layout.sizeof_page_info + xen.layout.count_offset)
        as *const u64;
    let before = xen.frame(mfn);
    xen.write(id, AT, mfn, 0, FOREIGN, ACCESS_RWX)?;
    let mapped = xen.frame(mfn).count_info;
    ensure!(mapped == before.count_info + 1, "{mapped:#x}, {before:x?}");
    if id == NESTED_DOMAIN {
        xen.nested_write(id, 0, NESTED_AT, mfn)?;
    }
    world::with(|w| {
        w.begin(Faults::default());
        w.kept = Some((count, mapped, id.into()));
    });
    // A hole: p2m_invalid.
    xen.write(id, AT, world::NONE, 0, 1, ACCESS_RWX)?;
    let violation = world::with(|w| {
        w.kept = None;
        w.violation.take()
    });
    ensure!(violation.is_none(), "{violation:?}");
    if id == NESTED_DOMAIN {
        let left = xen.nested_lookup(id, 0, NESTED_AT);
        ensure!(left == world::NONE, "a nested guest still has {left:#x}");
    }
    let after = xen.frame(mfn);
    ensure!(after == before, "{after:x?}, not {before:x?}");
    Ok(())
}

/// What a domain with memory of a device has may differ from what is in caches. They are flushed
/// when nobody reaches the frames, and again when contents were exchanged; not for other domains.
fn caches(xen: &Xen) -> Result<()> {
    const BATCH: u64 = 8;
    for (id, flags, pairs, flushes) in [
        (None, 0, BATCH * ENTRY, 0),
        (Some(1), 0, BATCH * ENTRY, 1),
        (Some(2), 0, BATCH * ENTRY, 1),
        (Some(2), KEEP, 1, 2),
        (None, KEEP, 1, 0),
    ] {
        if let Some(id) = id {
            xen.mix_types(id, GFN + SUPERS * ENTRY)?;
        }
        let owner = xen.owner_field(xen.lookup(1, GFN).mfn);
        // SAFETY: a field of the simulated machine's frame table.
        let old = unsafe { *owner };
        world::with(|w| w.probe = Some((owner, old)));
        let (rc, status) = swap(xen, pairs, flags, Faults::default())?;
        let (got, violation) = world::with(|w| {
            w.probe = None;
            (w.counts.caches, w.violation.take())
        });
        ensure!(violation.is_none(), "{violation:?}");
        ensure!(
            rc == 0 && status.iter().all(|s| *s == 0) && got == flushes,
            "d{id:?} has a device's memory, flags {flags:#x}: {rc}, {got} flushes, not {flushes}"
        );
        if let Some(id) = id {
            xen.mix_types(id, world::NONE)?;
        }
    }
    Ok(())
}

/// A superpage that has to be split as its memory is of more than one type is, before anything
/// is changed: without memory for that its frames are dealt with one by one.
fn memory_types(xen: &Xen) -> Result<()> {
    let before = [1, 2].map(|id| xen.lookup(id, GFN).mfn);
    for table in [Some(0), None] {
        for (n, id) in [1, 2].into_iter().enumerate() {
            let whole = xen.lookup(id, GFN);
            xen.write(id, GFN, whole.mfn, 9, RAM_RW.into(), ACCESS_RWX)?;
            xen.mix_types(id, GFN)?;
            // A gfn beyond all that there can be leads to the same entry, if only its lower
            // bits are looked at. Nothing may be done to that.
            let (_, status) = swap_at(xen, GFN + (1 << 36), ENTRY, 0, Faults::default())?;
            ensure!(status.iter().all(|s| *s == -libc::ENOENT), "{status:?}");
            let faults = Faults {
                table,
                ..Faults::default()
            };
            let (rc, status) = swap(xen, ENTRY, 0, faults)?;
            ensure!(
                rc == 0 && status.iter().all(|s| *s == 0),
                "d{id} of mixed types, {table:?}: {rc}, {status:?}"
            );
            let fired = world::with(|w| w.faults.fired);
            ensure!(fired == table.is_some(), "d{id}: no page table was needed");
            let now = xen.lookup(id, GFN).mfn;
            ensure!(now == before[1 - n], "d{id}: {now:#x}");
            // And back.
            xen.mix_types(id, world::NONE)?;
            swap(xen, ENTRY, 0, Faults::default())?;
            let now = xen.lookup(id, GFN).mfn;
            ensure!(now == before[n], "d{id}: {now:#x}, not {:#x}", before[n]);
        }
    }
    world::with(|w| w.begin(Faults::default()));
    Ok(())
}
