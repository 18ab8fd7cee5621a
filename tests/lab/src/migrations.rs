// SPDX-License-Identifier: GPL-2.0-only

//! Group `migrate`: a running guest VM migrates between the two nested systems, and is made to fail.

use std::time::Duration;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::channel::Output;
use crate::migrate::command;
use crate::migrate::make_room;
use crate::migrate::migrate;
use crate::migrate::runs_only_in;
use crate::migrate::settled;
use crate::migrate::Migration;
use crate::migrate::Places;
use crate::migrate::REFUSED;
use crate::migrate::ROLLED_BACK;
use crate::moves;
use crate::product;
use crate::tally::Tally;
use crate::topology;
use crate::topology::Topology;
use crate::topology::DRIVE;
use crate::topology::SHORT;
use crate::workload;

const LIMIT: Duration = Duration::from_secs(1200);

/// How much of it is tried.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Moves under load.
    pub moves: u32,
    /// Whether it is also made to fail.
    pub failures: bool,
}

/// Move it so often, on a topology whose guests are up. The guest VM of B is destroyed.
/// Gives where it is, unless a move failed.
pub fn run(tally: &mut Tally, topology: &Topology, moves: u32) -> Option<Places> {
    same_name(tally, topology);
    let mut ready = false;
    tally.case("migrate", "a dry run finds nothing in the way", || {
        make_room(topology)?;
        let output = run_here(topology, &command("A", "B", "--dry-run"))?;
        ensure!(
            output.code == 0 && output.text.contains("nothing"),
            "exit status {}, printed: {}",
            output.code,
            output.text.trim()
        );
        runs_only_in(topology, "A")?;
        ready = true;
        Ok(())
    });
    if !ready {
        return None;
    }
    moves::run(tally, topology, moves)
}

fn run_here(topology: &Topology, command: &str) -> Result<Output> {
    topology.machine.host.run(command, LIMIT)
}

fn same_name(tally: &mut Tally, topology: &Topology) {
    tally.case("migrate", "refused: a guest of the same name", || {
        let output = run_here(topology, &command("A", "B", ""))?;
        ensure!(
            output.code == REFUSED && output.text.contains("has a guest named"),
            "exit status {}, printed: {}",
            output.code,
            output.text.trim()
        );
        topology::wait_for_check(&topology.machine.a, LIMIT)?;
        Ok(())
    });
}

/// Make it fail, and see that the guest goes on where it was.
pub fn failures(tally: &mut Tally, topology: &Topology, [from, to]: Places) {
    let host = &topology.machine.host;
    tally.case(
        "migrate",
        "too long a downtime: the guest goes on at the source",
        || {
            let output = run_here(topology, &command(from, to, "--max-downtime 1"))?;
            ensure!(
                output.code == ROLLED_BACK && output.text.contains("--max-downtime"),
                "exit status {}, printed: {}",
                output.code,
                output.text.trim()
            );
            runs_only_in(topology, from)?;
            Ok(())
        },
    );
    tally.case(
        "migrate",
        "cancelled: the guest goes on at the source",
        || {
            let output = run_here(
                topology,
                &format!(
                    "{} >/run/lab/migrate.out 2>&1 & pid=$!; \
                 until grep -q saving /run/lab/migrate.out; do usleep 20000; done; \
                 kill -INT $pid; wait $pid; code=$?; cat /run/lab/migrate.out; exit $code",
                    command(from, to, "")
                ),
            )?;
            ensure!(
                output.code == ROLLED_BACK && output.text.contains("cancelled"),
                "exit status {}, printed: {}",
                output.code,
                output.text.trim()
            );
            runs_only_in(topology, from)?;
            Ok(())
        },
    );
    for phase in ["saving", "digests after"] {
        let name = format!("kill -9 of the daemon while {phase}: the next one undoes it");
        tally.case("migrate", &name, || {
            // It is killed as soon as the command line shows the phase.
            host.sh(
                &format!(
                    "{} >/run/lab/migrate.out 2>&1 & pid=$!; \
                     until grep -q '{phase}' /run/lab/migrate.out; do usleep 20000; done; \
                     killall -9 vmbeamd; wait $pid; true",
                    command(from, to, "--verify")
                ),
                LIMIT,
            )?;
            product::start_daemon(topology)?;
            product::wait_for_agents(topology)?;
            settled(topology)?;
            runs_only_in(topology, from)?;
            Ok(())
        });
    }
    tally.case("migrate", "--mode copy: all of it travels as data", || {
        copied(topology, from, to)
    });
    tally.case(
        "migrate",
        "the disk is slow at the source: no write of it comes late",
        || slow_disk(topology, from, to),
    );
    tally.case("migrate", "and after all that it migrates again", || {
        migrate(topology, to, from, "")?;
        runs_only_in(topology, from)?;
        Ok(())
    });
}

/// The disk of the source does nothing for longer than all of the pause takes otherwise, and less
/// than the agent waits. An agent that does not wait is found by what it says: the device model
/// does what it holds back when the host hypervisor asks for its mappings, so that no write comes
/// late here.
fn slow_disk(topology: &Topology, from: &str, to: &str) -> Result<()> {
    const HELD_S: u32 = 25;
    // A byte a second; 0 is no limit.
    let writes = |limit: u32| {
        format!(
            "xl qemu-monitor-command {from} \
             'block_set_io_throttle {DRIVE} 0 0 {limit} 0 0 0'"
        )
    };
    let host = &topology.machine.host;
    let output = host.run(
        &format!(
            "{} || exit; {} >/run/lab/migrate.out 2>&1 & pid=$!; \
             while kill -0 $pid && ! grep -q saving /run/lab/migrate.out; do usleep 20000; done; \
             sleep {HELD_S}; {}; wait $pid; code=$?; cat /run/lab/migrate.out; exit $code",
            writes(1),
            command(from, to, ""),
            writes(0)
        ),
        LIMIT,
    )?;
    ensure!(
        output.code == 0,
        "exit status {}, printed: {}",
        output.code,
        output.text.trim()
    );
    runs_only_in(topology, to)?;
    workload::disk_is_whole(topology.machine.vm(to))?;
    // So there was one.
    let log = topology.machine.vm(from).sh(
        "sed -n 's/.*its disks are quiet.*rings=1 ms=\\([0-9]*\\).*/\\1/p' /var/log/vmbeam-agent.log | \
         tail -n 1",
        SHORT,
    )?;
    let waited_ms: u32 = log.trim().parse().with_context(|| format!("{log:?}"))?;
    println!("    its disk was waited for {waited_ms} ms");
    ensure!(waited_ms >= 1000, "nothing was under way");
    Ok(())
}

/// A small guest VM is copied: the agents' ports are no network card.
fn copied(topology: &Topology, from: &str, to: &str) -> Result<()> {
    const SMALL: &str = "small";
    const MIB: u32 = 96;
    let (source, destination) = (topology.machine.vm(from), topology.machine.vm(to));
    source.sh(
        &format!(
            "cat >/etc/xen/{SMALL}.cfg <<'EOF'\n{}\nEOF\nxl create /etc/xen/{SMALL}.cfg",
            topology::guest_config(SMALL, MIB, "vmbeam.spare=4")
        ),
        LIMIT,
    )?;
    topology::wait_for_check_of(source, SMALL, LIMIT)?;
    let text = topology.machine.host.sh(
        &format!("vmbeam migrate {SMALL} --from {from} --to {to} --mode copy --json 2>/dev/null"),
        LIMIT,
    )?;
    let m: Migration =
        serde_json::from_str(&text).with_context(|| format!("vmbeam migrate printed: {text}"))?;
    ensure!(
        m.pages_swapped == 0
            && m.pages_copied == 0
            && m.stream_bytes >> 20 >= u64::from(MIB) * 9 / 10,
        "{m:?}"
    );
    topology::wait_for_check_of(destination, SMALL, LIMIT)?;
    destination.sh(&format!("xl destroy {SMALL}"), SHORT)?;
    runs_only_in(topology, from).map(drop)
}
