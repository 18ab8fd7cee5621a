// SPDX-License-Identifier: GPL-2.0-only

//! A guest VM that uses its network and its disk all the time moves between the two
//! nested systems again and again.

use std::collections::BTreeMap;

use anyhow::ensure;
use anyhow::Result;

use crate::migrate;
use crate::migrate::migrate;
use crate::migrate::Places;
use crate::tally::Tally;
use crate::topology::Topology;
use crate::topology::SHORT;
use crate::workload;
use crate::workload::Workload;

/// The first there and the first back compare digests of all pages.
const VERIFIED: u32 = 2;

/// Run them with the guest VM of A. Gives the place where it is afterwards, and the
/// other one.
pub fn run(tally: &mut Tally, topology: &Topology, moves: u32) -> Option<Places> {
    let mut workload = None;
    tally.case("migrate", "the guest VM gets a network and a disk", || {
        workload = Some(workload::attach(topology)?);
        Ok(())
    });
    let mut workload = workload?;
    let mut places = ["A", "B"];
    let mut free = BTreeMap::new();
    for number in 1..=moves {
        let [from, to] = places;
        let mut moved = false;
        tally.case(
            "migrate",
            &format!("under network and disk load, move {number}: {from} to {to}"),
            || {
                one(topology, &mut workload, places, number <= VERIFIED)?;
                // What the first one takes for good, it takes once.
                let now = migrate::free_memory(topology)?;
                let before = *free.entry(to).or_insert(now);
                ensure!(now == before, "free in A and B: {before:?}, then {now:?}");
                moved = true;
                Ok(())
            },
        );
        if !moved {
            return None;
        }
        places.swap(0, 1);
    }
    Some(places)
}

fn one(
    topology: &Topology,
    workload: &mut Workload<'_>,
    [from, to]: [&str; 2],
    verify: bool,
) -> Result<()> {
    let vm = topology.machine.vm(to);
    let console = migrate::console_lines(vm)?;
    let m = migrate(topology, from, to, if verify { "--verify" } else { "" })?;
    ensure!(
        !verify || m.pages_verified == m.pages_swapped + m.pages_copied,
        "{m:?}"
    );
    ensure!(m.pages_swapped > m.pages_sent, "{m:?}");
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
    Ok(())
}
