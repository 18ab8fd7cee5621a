// SPDX-License-Identifier: GPL-2.0-only

//! A guest VM of an old toolstack whose move was undone: what watches it there goes on with that, so
//! that it restarts when it reboots.

use std::time::Duration;

use anyhow::ensure;
use anyhow::Result;

use crate::migrate;
use crate::tally::Tally;
use crate::topology;
use crate::topology::Topology;
use crate::topology::SHORT;

const NAME: &str = "watched";
const MIB: u32 = 96;
/// In the host management VM: what the command said.
const OUT: &str = "/run/lab/watched.out";
const LIMIT: Duration = Duration::from_secs(600);
/// A domain is made anew within seconds.
const RESTART: Duration = Duration::from_secs(120);

/// In A, which has no guest VM; as a part of this group.
pub fn run(tally: &mut Tally, topology: &Topology, group: &str) {
    tally.case(
        group,
        "a guest VM whose move was undone still restarts when it reboots",
        || restarts(topology),
    );
    let _ = topology.machine.a.run(&format!("xl destroy {NAME}"), LIMIT);
}

fn restarts(topology: &Topology) -> Result<()> {
    let (host, a) = (&topology.machine.host, &topology.machine.a);
    a.sh(
        &format!(
            "cat >/etc/xen/{NAME}.cfg <<'EOF'\n{}\nEOF\nxl create /etc/xen/{NAME}.cfg",
            topology::guest_config(NAME, MIB, "vmbeam.spare=4")
        ),
        LIMIT,
    )?;
    topology::wait_for_check_of(a, NAME, LIMIT)?;
    // Somebody who looks each second is to see it suspended: nobody answers in B meanwhile.
    host.sh(
        &format!(
            "vmbeam migrate {NAME} --from A --to B --max-downtime 3000 >{OUT} 2>&1 & \
             until grep -q saving {OUT}; do usleep 5000; done"
        ),
        LIMIT,
    )?;
    let b = &topology.machine.b;
    b.sh("kill -STOP $(pidof vmbeam-agent)", SHORT)?;
    let undone = host.sh(
        &format!("until grep 'was suspended for' {OUT}; do usleep 50000; done"),
        LIMIT,
    );
    b.sh("kill -CONT $(pidof vmbeam-agent)", SHORT)?;
    undone?;
    migrate::settled(topology)?;
    topology::wait_for_check_of(a, NAME, LIMIT)?;
    let result = a.sh(
        &format!(
            "old=$(xl domid {NAME}) && xl reboot {NAME} && \
             until new=$(xl domid {NAME} 2>/dev/null) && [ \"$new\" != \"$old\" ]; do sleep 1; done"
        ),
        RESTART,
    );
    let log = a.sh(&format!("tail -n 20 /var/log/xen/xl-{NAME}.log"), SHORT)?;
    ensure!(
        result.is_ok() && log.contains("has shut down, reason code 2"),
        "it did not restart; who watched it says: {log}"
    );
    topology::wait_for_check_of(a, NAME, LIMIT)?;
    Ok(())
}
