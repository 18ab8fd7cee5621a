// SPDX-License-Identifier: GPL-2.0-only

//! Starting VMBeam itself in the host management VM.

use anyhow::Result;

use crate::paths;
use crate::progress::Progress;
use crate::topology::BootTimes;
use crate::topology::Sizes;
use crate::topology::Topology;
use crate::topology::HOST_VMS;
use crate::topology::SHORT;

impl Topology {
    /// Boot everything, VMBeam included, up to guest VMs that can be swapped.
    pub fn boot(sizes: Sizes, progress: &Progress) -> Result<(Self, BootTimes)> {
        let (topology, host) = Self::boot_host(sizes, &paths::xen(), progress)?;
        start(&topology)?;
        let host_vms = topology.start_host_vms(progress)?;
        wait_for_agents(&topology)?;
        let guests = topology.start_guests(progress)?;
        Ok((
            topology,
            BootTimes {
                host,
                host_vms,
                guests,
            },
        ))
    }
}

/// Load the driver and start the daemon.
pub fn start(topology: &Topology) -> Result<()> {
    let host = &topology.machine.host;
    host.sh(
        "insmod /lib/modules/vmbeam.ko && test -c /dev/vmbeam",
        SHORT,
    )?;
    configure(topology, &[])?;
    start_daemon(topology)?;
    host.follow(
        "tail -n +1 -F /var/log/vmbeamd.log",
        &paths::logs().join("vmbeamd.log"),
    )
}

/// Write the daemon's configuration, with the domids of the host VMs if they shall be
/// in it.
pub fn configure(topology: &Topology, domids: &[u32]) -> Result<()> {
    let [a, b] = HOST_VMS;
    let mut config = format!("[[pair]]\nbetween = [\"{a}\", \"{b}\"]\n");
    for (index, name) in HOST_VMS.iter().enumerate() {
        config.push_str(&format!("\n[[host_vm]]\nname = \"{name}\"\n"));
        if let Some(domid) = domids.get(index) {
            config.push_str(&format!("domid = {domid}\n"));
        }
    }
    topology.machine.host.sh(
        &format!("mkdir -p /etc/vmbeam && cat >/etc/vmbeam/vmbeamd.toml <<'EOF'\n{config}\nEOF\n"),
        SHORT,
    )?;
    Ok(())
}

/// Where the process id of the daemon is.
pub const PID_FILE: &str = "/run/lab/vmbeamd.pid";

/// Start the daemon, the first one or the next one.
pub fn start_daemon(topology: &Topology) -> Result<()> {
    start_daemon_with(topology, "")
}

/// The same with these options.
pub fn start_daemon_with(topology: &Topology, options: &str) -> Result<()> {
    topology.machine.host.sh(
        &format!(
            "setsid vmbeamd {options} </dev/null >>/var/log/vmbeamd.log 2>&1 & \
             echo $! >{PID_FILE}"
        ),
        SHORT,
    )?;
    Ok(())
}

/// For a shell: end the processes `$pid`, and wait until they are gone, so that none of them
/// answers in the name of its successor. Nobody reaps them here.
pub const END: &str = "kill $pid && for p in $pid; do \
     while grep -qs '^State:.[^Z]' /proc/$p/status; do usleep 50000; done; done";

/// End the daemon and wait until it is gone.
pub fn stop_daemon(topology: &Topology) -> Result<()> {
    topology
        .machine
        .host
        .sh(&format!("pid=$(cat {PID_FILE}) && {END}"), SHORT)?;
    Ok(())
}

/// Start the agent of a host VM again.
pub fn start_agent(topology: &Topology, vm: &str) -> Result<()> {
    topology.machine.vm(vm).sh(
        "setsid vmbeam-agent </dev/null >/var/log/vmbeam-agent.log 2>&1 &",
        SHORT,
    )?;
    Ok(())
}

/// Wait until the daemon has heard from both agents.
pub fn wait_for_agents(topology: &Topology) -> Result<()> {
    topology.machine.host.sh(
        &format!(
            "until vmbeam check; do grep -qs '^State:.[^Z]' /proc/$(cat {PID_FILE})/status || \
                 {{ echo vmbeamd has ended; dmesg | tail -n 20; exit 9; }}; usleep 500000; done"
        ),
        SHORT,
    )?;
    Ok(())
}
