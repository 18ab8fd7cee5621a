// SPDX-License-Identifier: GPL-2.0-only

//! The agent in A lies about its lists. What cannot be is refused, and what can be harms
//! nobody but A.

use std::time::Duration;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use serde_json::Value;

use crate::channel::Output;
use crate::migrate;
use crate::product;
use crate::tally::Tally;
use crate::topology;
use crate::topology::Topology;
use crate::topology::GUEST;
use crate::topology::SHORT;

const GROUP: &str = "nested";
const LIMIT: Duration = Duration::from_secs(600);
const PID_FILE: &str = "/run/lab/liar.pid";
/// A guest VM of A that never runs. Its frames are the ones that are told.
const OTHER: &str = "other";

/// Run them, with the guest VM running in A and an empty one in B.
pub fn run(tally: &mut Tally, topology: &Topology) {
    for (how, name, words) in [
        ("twice", "a frame behind two pages", "behind two pages"),
        ("beyond", "a frame that the host VM does not have", "beyond"),
    ] {
        tally.case(GROUP, &format!("a lying agent, refused: {name}"), || {
            believed(topology, how, || {
                let output = swap(topology, "")?;
                ensure!(
                    output.code == migrate::REFUSED && output.text.contains(words),
                    "exit status {}, printed: {}",
                    output.code,
                    output.text.trim()
                );
                Ok(())
            })
        });
    }
    tally.case(
        GROUP,
        "a lying agent: pages that the other guest does not have stay where they are",
        || {
            believed(topology, "pages", || {
                let output = swap(topology, "--dry-run --json 2>/run/lab/swap.err")?;
                let report: Value =
                    serde_json::from_str(&output.text).with_context(|| output.text.clone())?;
                let kept = &report["pages_refused"];
                ensure!(
                    kept["only_in_source"].as_u64() > Some(0)
                        && kept["only_in_destination"].as_u64() > Some(0),
                    "{report}"
                );
                Ok(())
            })
        },
    );
    tally.case(
        GROUP,
        "a lying agent: frames of another guest of A, there and back, and B is as it was",
        || other_guest(topology),
    );
}

fn other_guest(topology: &Topology) -> Result<()> {
    let (a, b) = (&topology.machine.a, &topology.machine.b);
    a.sh(
        &format!("xl create -p /etc/xen/{GUEST}.cfg 'name=\"{OTHER}\"' memory=80 'ramdisk=\"\"'"),
        LIMIT,
    )?;
    let result = a.sh(&format!("xl domid {OTHER}"), SHORT).and_then(|domid| {
        believed(
            topology,
            &format!("other-guest --other {}", domid.trim()),
            || {
                for _ in ["there", "back"] {
                    let output = swap(topology, "")?;
                    ensure!(output.code == 0, "{}", output.text.trim());
                    // Its hypervisor and its management VM go on.
                    migrate::guests(b)?;
                    topology.machine.host.sh("vmbeam check", SHORT)?;
                }
                Ok(())
            },
        )
    });
    a.sh(&format!("xl destroy {OTHER}"), SHORT)?;
    result?;
    // What A's lie moved came back: the guest finds its memory.
    a.sh(&format!("xl unpause {GUEST}"), SHORT)?;
    topology::wait_for_check(a, LIMIT).map(drop)
}

fn swap(topology: &Topology, options: &str) -> Result<Output> {
    topology.machine.host.run(
        &format!("vmbeam swap --from A/{GUEST} --to B/{GUEST} {options}"),
        LIMIT,
    )
}

/// Do this while A has an agent that lies like that.
fn believed(topology: &Topology, how: &str, test: impl FnOnce() -> Result<()>) -> Result<()> {
    let a = &topology.machine.a;
    a.sh(
        &format!(
            "pid=$(pidof vmbeam-agent); {}; \
             setsid labtool lie {how} </dev/null >/var/log/liar.log 2>&1 & echo $! >{PID_FILE}",
            product::END
        ),
        SHORT,
    )?;
    let result = product::wait_for_agents(topology).and_then(|()| test());
    a.sh(&format!("pid=$(cat {PID_FILE}); {}", product::END), SHORT)?;
    product::start_agent(topology, "A")?;
    product::wait_for_agents(topology)?;
    result
}
