// SPDX-License-Identifier: GPL-2.0-only

//! A guest VM moves between a host VM that has little memory and one that has given it some: its
//! frames go over without any in return.

use std::collections::BTreeMap;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::faults;
use crate::migrate;
use crate::migrate::migrate;
use crate::pages::Pages;
use crate::paths;
use crate::product;
use crate::progress::Progress;
use crate::tally::Tally;
use crate::topology;
use crate::topology::Sizes;
use crate::topology::System;
use crate::topology::Topology;
use crate::topology::SHORT;

const GROUP: &str = "relocate";

/// There and back, in all.
const MOVES: u32 = 30;
/// By how much less B has at first than its management VM believes to have, in MiB. What both
/// have touched when they are up was 461 MiB of 640; what is left must be less than a guest VM writes.
const LESS_MIB: u32 = 80;
/// Of a guest VM's pages, what is relocated at least, in percent: others are exchanged with what the
/// guest hypervisor of B has touched when it booted, each time.
const RELOCATED: u64 = 50;

/// Until then what the host has free may still fall: reserves are made.
const SETTLED: u32 = 6;
/// Pages that the host may have fewer of after more moves: a reserve (16 MiB) that was used up a
/// bit is made whole again. A host VM that grows by 1 MiB with each move takes more.
const RESERVE: u64 = 4096;

/// Run the group.
pub fn check(tally: &mut Tally, sizes: Sizes, progress: &Progress) {
    let mut topology = None;
    tally.case(
        GROUP,
        "host VM B comes up with little memory, a guest VM in A",
        || {
            topology = Some(boot(sizes, progress)?);
            Ok(())
        },
    );
    let Some(topology) = topology else { return };
    tally.case(GROUP, "`vmbeam check` says which host VM is small", || {
        let text = topology.machine.host.sh("vmbeam check", SHORT)?;
        let small = |vm: &str| text.contains(&format!("memory of host VM {vm}: small:"));
        ensure!(!small("A") && small("B"), "it printed: {text}");
        Ok(())
    });
    let mut came = false;
    tally.case(GROUP, "the guest VM's memory goes over to B", || {
        let before = Pages::look(&topology)?;
        one(&topology, ["A", "B"])?;
        let after = Pages::look(&topology)?;
        ensure!(before.all() == after.all(), "{before:?}, then {after:?}");
        came = true;
        Ok(())
    });
    if !came {
        return;
    }
    tally.case(
        GROUP,
        "it comes back, and A, which gave memory away, gets a reserve for that",
        || {
            one(&topology, ["B", "A"])?;
            let log = "grep 'its reserve before a move.*host_vm=\"A\"' /var/log/vmbeamd.log";
            topology.machine.host.sh(log, SHORT)?;
            Ok(())
        },
    );
    let mut first = None;
    let mut free = BTreeMap::new();
    let mut way = ["A", "B"];
    for number in 3..=MOVES {
        let [from, to] = way;
        let mut moved = false;
        let name = format!("relocation {number}: {from} to {to}");
        tally.case(GROUP, &name, || {
            one(&topology, way)?;
            let now = Pages::look(&topology)?;
            if number <= SETTLED {
                free.insert(to, now.free);
            }
            let then = *free.get(to).context("no move there")?;
            println!(
                "    pages of the host that are free: {}, at least {then} - {RESERVE}",
                now.free
            );
            ensure!(
                now.free + RESERVE >= then,
                "{then} pages of the host were free, and {} are: host VMs grow",
                now.free
            );
            let first = first.get_or_insert_with(|| now.clone());
            ensure!(now.all() == first.all(), "{first:?}, then {now:?}");
            moved = true;
            Ok(())
        });
        if !moved {
            return;
        }
        way.swap(0, 1);
    }
    tally.case(GROUP, "the guest VM is in A", || {
        migrate::runs_only_in(&topology, way[0]).map(drop)?;
        faults::home(&topology)
    });
    if let Err(e) = faults::relocated(tally, &topology, GROUP) {
        tally.enter(GROUP, "the deaths of group faults", Err(e));
    }
    tally.case(GROUP, "host VM B is started again, small", || {
        topology.restart_host_vm("B", "", progress)?;
        grow(&topology, "B")?;
        product::wait_for_agents(&topology)?;
        one(&topology, ["A", "B"])
    });
}

fn boot(sizes: Sizes, progress: &Progress) -> Result<Topology> {
    let (topology, _) = Topology::boot_host(sizes, &paths::xen(), progress)?;
    product::start(&topology)?;
    let stage = progress.stage("start host VMs A and B, B with little memory");
    topology.create_host_vm("A", System::Current)?;
    topology.create_small_host_vm("B", sizes.management_mib - LESS_MIB)?;
    grow(&topology, "B")?;
    for vm in ["A", "B"] {
        topology.wait_for_host_vm(vm)?;
    }
    product::wait_for_agents(&topology)?;
    topology.start_guest("A", "")?;
    topology::wait_for_check(&topology.machine.a, faults::LIMIT)?;
    stage.done();
    Ok(topology)
}

/// Let a host VM have as much as it believes to have.
fn grow(topology: &Topology, vm: &str) -> Result<()> {
    let most = topology.sizes.host_vm_mib;
    let host = &topology.machine.host;
    host.sh(&format!("xl mem-max {vm} {most}"), SHORT)?;
    Ok(())
}

/// A move.
fn one(topology: &Topology, [from, to]: [&str; 2]) -> Result<()> {
    let vm = topology.machine.vm(to);
    let console = migrate::console_lines(vm)?;
    let m = migrate(topology, from, to, "")?;
    ensure!(
        m.relocated * 100 >= m.pages_swapped * RELOCATED && m.pages_swapped > m.pages_sent,
        "{m:?}"
    );
    migrate::runs_only_in(topology, to)?;
    let gap = migrate::longest_gap(vm, console)?;
    println!(
        "    {} of these relocated; {}",
        m.relocated,
        migrate::summary(&m, gap)?
    );
    Ok(())
}
