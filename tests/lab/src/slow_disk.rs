// SPDX-License-Identifier: GPL-2.0-only

//! A guest VM moves, or does not get there, while its disk is slow where it comes from: what it has
//! written is on its way when it is suspended, and must not come after what it writes next.

use std::time::Duration;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::migrate;
use crate::migrate::Places;
use crate::product;
use crate::tally::Tally;
use crate::topology::Topology;
use crate::topology::SHORT;
use crate::workload::Workload;

const LIMIT: Duration = Duration::from_secs(1200);
/// Writes in a second.
const SLOW: u32 = 4;
/// How often it is tried to suspend the guest VM while it writes.
const TRIES: u32 = 4;

/// The guest VM, which uses its disk, is in the first of these places, and so it is afterwards.
pub fn run(tally: &mut Tally, topology: &Topology, workload: &Workload<'_>, places: Places) {
    tally.case(
        "migrate",
        "a slow disk: what was written is waited for before the guest VM goes on",
        || there_and_back(topology, workload, places),
    );
    let [from, to] = places;
    tally.case(
        "migrate",
        "a slow disk: kill -9 of the daemon after the swap: the guest VM goes on at the source",
        || {
            slow(topology, from, SLOW)?;
            let result = undone(topology, [from, to]);
            slow(topology, from, 0)?;
            result?;
            goes_on(topology, workload, from)
        },
    );
}

/// The device model of this host VM lets so many writes through in a second; all for none.
fn slow(topology: &Topology, host_vm: &str, writes: u32) -> Result<()> {
    let command = format!(
        "xl qemu-monitor-command {host_vm} 'block_set_io_throttle disk 0 0 0 0 0 {writes}'"
    );
    let said = topology.machine.host.sh(&command, SHORT)?;
    ensure!(said.trim().is_empty(), "{command}: {said}");
    Ok(())
}

/// How often the agent here has waited for a guest's disks, and for how many milliseconds last.
fn waited(topology: &Topology, host_vm: &str) -> Result<(u64, u64)> {
    let text = topology.machine.vm(host_vm).sh(
        "grep 'its disks are quiet' /var/log/vmbeam-agent.log | sed -n 's/.* ms=//p'",
        SHORT,
    )?;
    let all: Vec<u64> = text
        .lines()
        .map(|line| line.trim().parse())
        .collect::<Result<_, _>>()
        .with_context(|| text.clone())?;
    Ok((all.len() as u64, all.last().copied().unwrap_or_default()))
}

fn goes_on(topology: &Topology, workload: &Workload<'_>, place: &str) -> Result<()> {
    let line = migrate::runs_only_in(topology, place)?;
    workload.goes_on(topology.machine.vm(place), &line)?;
    Ok(())
}

fn there_and_back(topology: &Topology, workload: &Workload<'_>, [from, to]: Places) -> Result<()> {
    for _ in 0..TRIES {
        slow(topology, from, SLOW)?;
        let moved = migrate::migrate(topology, from, to, "");
        slow(topology, from, 0)?;
        moved?;
        goes_on(topology, workload, to)?;
        let (_, ms) = waited(topology, from)?;
        migrate::migrate(topology, to, from, "")?;
        goes_on(topology, workload, from)?;
        println!("    its disk was waited for for {ms} ms");
        if ms >= u64::from(1000 / SLOW / 2) {
            return Ok(());
        }
    }
    anyhow::bail!("nothing was on its way in {TRIES} moves")
}

fn undone(topology: &Topology, [from, to]: Places) -> Result<()> {
    let host = &topology.machine.host;
    let (before, _) = waited(topology, from)?;
    host.sh(
        &format!(
            "{} >/run/lab/migrate.out 2>&1 & pid=$!; \
             until grep -q 'digests after' /run/lab/migrate.out; do usleep 20000; done; \
             killall -9 vmbeamd; wait $pid; true",
            migrate::command(from, to, "--verify")
        ),
        LIMIT,
    )?;
    product::start_daemon(topology)?;
    product::wait_for_agents(topology)?;
    migrate::settled(topology)?;
    let (after, ms) = waited(topology, from)?;
    ensure!(after > before, "its disk was not waited for");
    println!("    its disk was waited for for {ms} ms");
    Ok(())
}
