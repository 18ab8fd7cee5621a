// SPDX-License-Identifier: GPL-2.0-only

//! Starting VMBeam itself in the host management VM.

use anyhow::Result;

use crate::topology::Topology;
use crate::topology::HOST_VMS;
use crate::topology::SHORT;

/// Load the driver and start the daemon.
pub fn start(topology: &Topology) -> Result<()> {
    let [a, b] = HOST_VMS;
    let config = format!(
        "[[host_vm]]\nname = \"{a}\"\n\n[[host_vm]]\nname = \"{b}\"\n\n\
         [[pair]]\nbetween = [\"{a}\", \"{b}\"]\n"
    );
    let host = &topology.machine.host;
    host.sh(
        "insmod /lib/modules/vmbeam.ko && test -c /dev/vmbeam",
        SHORT,
    )?;
    host.sh(
        &format!("mkdir -p /etc/vmbeam && cat >/etc/vmbeam/vmbeamd.toml <<'EOF'\n{config}\nEOF\n"),
        SHORT,
    )?;
    start_daemon(topology)?;
    host.follow(
        "tail -n +1 -F /var/log/vmbeamd.log",
        &crate::paths::logs().join("vmbeamd.log"),
    )
}

/// Start the daemon, the first one or the next one.
pub fn start_daemon(topology: &Topology) -> Result<()> {
    topology.machine.host.sh(
        "setsid vmbeamd </dev/null >>/var/log/vmbeamd.log 2>&1 &",
        SHORT,
    )?;
    Ok(())
}

/// Wait until the daemon has heard from both agents.
pub fn wait_for_agents(topology: &Topology) -> Result<()> {
    topology
        .machine
        .host
        .sh("until vmbeam check; do usleep 500000; done", SHORT)?;
    Ok(())
}
