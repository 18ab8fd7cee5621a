// SPDX-License-Identifier: GPL-2.0-only

//! A guest VM that uses its network and its disk all the time moves between the two
//! nested systems again and again.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::migrate;
use crate::migrate::migrate;
use crate::migrate::Places;
use crate::migrate::BALLAST;
use crate::superpages::Superpages;
use crate::tally::Tally;
use crate::topology::Topology;
use crate::topology::GUEST;
use crate::topology::SHORT;
use crate::workload;
use crate::workload::Workload;

/// Starting a guest VM.
const LIMIT: Duration = Duration::from_secs(300);
/// The first there and the first back compare digests of all pages.
const VERIFIED: u32 = 2;
/// Free memory of B beyond the guest's own, in MiB: what its guest hypervisor needs for any
/// guest, and what preflight wants.
const ROOM_MIB: u64 = 4;
/// Of so many pages, one may be refused by the host hypervisor and copied. It was one of 1,700 at
/// most, but what a device model maps while a guest works is its own affair.
const REFUSED_OF: u64 = 200;
/// What could not follow after a move, at most: backends in the host hold a page for as long as
/// a request takes, and are waited for.
const LEFT: u64 = 3;
/// Beside these: the device model of a host VM maps its memory by the MiB, and should keep the one
/// with the ring of a virtio device. 64 stayed in the one move that was seen of a guest of 279 MiB,
/// and none with one of 256 MiB; that a ring is why is by reading.
const KEPT: u64 = 256;
/// Bytes of a superpage.
const SUPERPAGE: u64 = 2 << 20;
/// Its pages.
const SUPERPAGE_PAGES: u64 = SUPERPAGE / 4096;
/// Of a hundred pages, so many at least are exchanged in whole superpages. It was 78 with a
/// guest of 256 MiB (99 pairs of 64,713 pages, 29 November); its kernel and its page tables are a
/// larger part of it than of a guest of 1 GiB.
const WHOLE_PERCENT: u64 = 70;
/// Pages that a run has on average, at least.
const PAGES_OF_A_RUN: u64 = 20;

/// Run them with the guest VM of A. Gives the place where it is afterwards, and the
/// other one.
pub fn run(tally: &mut Tally, topology: &Topology, moves: u32) -> Option<Places> {
    let mut workload = None;
    tally.case("migrate", "the guest VM gets a network and a disk", || {
        workload = Some(workload::attach(topology)?);
        Ok(())
    });
    let mut workload = workload?;
    tally.case(
        "migrate",
        "B has no more free memory than the guest VM needs",
        || fill(topology),
    );
    let mut places = ["A", "B"];
    let mut first = BTreeMap::new();
    for number in 1..=moves {
        let [from, to] = places;
        let mut moved = false;
        tally.case(
            "migrate",
            &format!("under network and disk load, move {number}: {from} to {to}"),
            || {
                let frames_left = one(topology, &mut workload, places, number <= VERIFIED)?;
                ensure!(
                    frames_left <= LEFT + KEPT,
                    "{frames_left} frames could not follow"
                );
                // What the first one takes for good, it takes once.
                let now = (
                    migrate::free_memory(topology)?,
                    Superpages::count(topology)?,
                );
                println!("    superpages of A and B: {:?}", now.1);
                let (free, superpages) = *first.entry(to).or_insert(now);
                ensure!(now.0 == free, "free in A and B: {free:?}, then {:?}", now.0);
                // Frames of pages that stay where they are follow later, so none is lost.
                let lost = frames_left.min(LEFT) * SUPERPAGE;
                ensure!(
                    (now.1.iter().zip(&superpages)).all(|(n, f)| n.bytes() + lost >= f.bytes()),
                    "superpages of A and B: {superpages:?}, then {:?}, {frames_left} frames left",
                    now.1
                );
                moved = true;
                Ok(())
            },
        );
        if !moved {
            return None;
        }
        places.swap(0, 1);
    }
    tally.case("migrate", "B's memory is free again", || {
        topology
            .machine
            .b
            .sh(&format!("xl destroy {BALLAST}"), SHORT)?;
        Ok(())
    });
    Some(places)
}

/// Start another guest VM in B, which takes all but what the one that is to come needs.
fn fill(topology: &Topology) -> Result<()> {
    let [_, free] = migrate::free_memory(topology)?;
    let rest = free
        .checked_sub(u64::from(topology.sizes.guest_mib) + ROOM_MIB)
        .with_context(|| format!("only {free} MiB are free in B"))?;
    topology.machine.b.sh(
        &format!("xl create -p /etc/xen/{GUEST}.cfg 'name=\"{BALLAST}\"' memory={rest}"),
        LIMIT,
    )?;
    println!("    {free} MiB were free in B, {BALLAST} takes {rest} of them");
    Ok(())
}

/// One of them; how many frames could not follow.
fn one(
    topology: &Topology,
    workload: &mut Workload<'_>,
    [from, to]: [&str; 2],
    verify: bool,
) -> Result<u64> {
    let vm = topology.machine.vm(to);
    let console = migrate::console_lines(vm)?;
    let m = migrate(topology, from, to, if verify { "--verify" } else { "" })?;
    ensure!(
        !verify || m.pages_verified == m.pages_swapped + m.pages_copied,
        "{m:?}"
    );
    ensure!(m.pages_swapped > m.pages_sent, "{m:?}");
    let pages = m.pages_swapped + m.pages_copied + m.pages_sent;
    ensure!(m.pages_copied * REFUSED_OF < pages, "{m:?}");
    // What moves a guest that stands still from the beginning is no success here.
    ensure!(m.unstaged.is_none(), "it was not staged: {m:?}");
    let whole = m.counts.superpages * SUPERPAGE_PAGES;
    println!(
        "    {} pages in {} runs; {} superpages whole, {} pages in a hundred",
        m.pages_swapped,
        m.runs,
        m.counts.superpages,
        whole * 100 / m.pages_swapped
    );
    ensure!(
        whole * 100 >= m.pages_swapped * WHOLE_PERCENT && m.runs * PAGES_OF_A_RUN < m.pages_swapped,
        "superpages do not stay whole: {m:?}"
    );
    // Those of its console, its store, its disk and its network, after it was suspended.
    topology.machine.vm(from).sh(
        "tail -n 50 /var/log/vmbeam-agent.log >/run/lab/tail && \
         grep 'events pending.*events=[4-9]$' /run/lab/tail && \
         grep 'its disks are quiet.*rings=1 ' /run/lab/tail",
        SHORT,
    )?;
    let line = migrate::runs_only_in(topology, to)?;
    let done = workload.goes_on(vm, &line)?;
    let silence_ms = workload.silence()?;
    println!(
        "    {}",
        migrate::summary(&m, migrate::longest_gap(vm, console)?)?
    );
    println!(
        "    the same connection, silent for {:.3} s at most; so far {} blocks over it, {} of the disk",
        silence_ms as f64 / 1000.0,
        done.sent,
        done.written
    );
    Ok(m.frames_left)
}
