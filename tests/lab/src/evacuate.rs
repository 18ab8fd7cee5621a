// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam evacuate` is stopped with guest VMs left, and the same command goes on with these; or
//! it loses its daemon, and the next one goes on by itself.

use std::time::Duration;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use serde_json::Value;

use crate::channel::Output;
use crate::migrate;
use crate::product;
use crate::tally::Tally;
use crate::topology::wait_for_check_of;
use crate::topology::Topology;
use crate::topology::SHORT;

const GROUP: &str = "rejuvenate";
const LIMIT: Duration = Duration::from_secs(1200);

/// Exit status of `vmbeam` when a job of several steps is done in part.
const INCOMPLETE: i64 = 5;

const ERR: &str = "/run/lab/evacuate.err";
const JSON: &str = "/run/lab/evacuate.json";

/// There and back, with these guest VMs, which run in A.
pub fn run(tally: &mut Tally, topology: &Topology, guests: &[&str]) {
    tally.case(
        GROUP,
        "evacuate: Ctrl-C stops after the guest VM that is moving",
        || {
            let output = disturbed(topology, ["A", "B"], "1 of", "kill -INT $pid")?;
            let report = report(&output)?;
            ensure!(
                output.code == INCOMPLETE && report["interrupted"] == true,
                "exit status {}: {report}",
                output.code
            );
            ensure!(count(&report, "moved") == 1, "{report}");
            ensure!(count(&report, "waiting") == guests.len() - 1, "{report}");
            places(topology, guests, ["A", "B"], 1)
        },
    );
    tally.case(GROUP, "evacuate: the same command goes on", || {
        all(topology, guests, ["A", "B"])
    });
    tally.case(
        GROUP,
        "evacuate: kill -9 of the daemon at the second guest VM",
        || {
            let kill =
                format!("until grep -q '2 of' {ERR}; do usleep 5000; done; killall -9 vmbeamd");
            let output = disturbed(topology, ["B", "A"], "1 of", &kill)?;
            ensure!(output.code != 0, "exit status 0: {}", output.text);
            product::start_daemon(topology)?;
            product::wait_for_agents(topology)?;
            migrate::settled(topology)
        },
    );
    tally.case(GROUP, "evacuate: the next daemon goes on with the same job", || {
        // The last one, and what it settles first has a number of its own.
        let watch = "vmbeam watch $(ls /var/lib/vmbeam/evacuation-*.json | tr -dc '0-9\\n' | sort -n | tail -n 1) --json";
        let output = topology.machine.host.run(watch, LIMIT)?;
        let report = report(&output)?;
        ensure!(
            output.code == 0 && count(&report, "moved") == guests.len(),
            "exit status {}: {report}",
            output.code
        );
        places(topology, guests, ["B", "A"], guests.len())
    });
}

fn command([from, to]: [&str; 2], options: &str) -> String {
    format!("vmbeam evacuate {from} --to {to} --json {options} >{JSON} 2>{ERR}")
}

/// Begin, and do this once standard error has these words. A daemon that is gone is not
/// waited for long.
fn disturbed(topology: &Topology, way: [&str; 2], words: &str, what: &str) -> Result<Output> {
    topology.machine.host.run(
        &format!(
            "rm -f {ERR} {JSON}; {} & pid=$!; until grep -qs '{words}' {ERR}; do usleep 5000; done; \
             {what}; wait $pid; code=$?; cat {JSON}; exit $code",
            command(way, "--wait 10")
        ),
        LIMIT,
    )
}

fn report(output: &Output) -> Result<Value> {
    serde_json::from_str(&output.text).with_context(|| output.text.clone())
}

fn count(report: &Value, outcome: &str) -> usize {
    let guests = report["guests"].as_array();
    guests.map_or(0, |g| g.iter().filter(|g| g["outcome"] == outcome).count())
}

/// Whatever is left moves.
fn all(topology: &Topology, guests: &[&str], way: [&str; 2]) -> Result<()> {
    let output = topology.machine.host.run(
        &format!(
            "{}; code=$?; cat {JSON} {ERR}; exit $code",
            command(way, "")
        ),
        LIMIT,
    )?;
    ensure!(
        output.code == 0,
        "exit status {}: {}",
        output.code,
        output.text
    );
    places(topology, guests, way, guests.len())
}

/// So many of them run at the destination, the others at the source, each only there, and all
/// with their memory.
fn places(topology: &Topology, guests: &[&str], [from, to]: [&str; 2], moved: usize) -> Result<()> {
    let (source, destination) = (topology.machine.vm(from), topology.machine.vm(to));
    let (left, arrived) = (migrate::guests(source)?, migrate::guests(destination)?);
    ensure!(
        arrived.len() == moved && left.len() + moved == guests.len(),
        "in {from}: {left:?}; in {to}: {arrived:?}"
    );
    for guest in guests {
        let here = left.iter().any(|(name, _)| name == guest);
        let vm = if here { source } else { destination };
        wait_for_check_of(vm, guest, LIMIT).with_context(|| format!("{guest} in {}", vm.name()))?;
    }
    topology.machine.host.sh("vmbeam check", SHORT)?;
    Ok(())
}
