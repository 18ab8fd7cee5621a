// SPDX-License-Identifier: GPL-2.0-only

//! The daemon with the least privilege that it can do with: an ordinary user in the
//! group of the device, no capabilities, no privcmd, a filter of system calls that
//! ends it at the first one that is not on the list.

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::channel::Channel;
use crate::product;
use crate::tally::Tally;
use crate::topology::Topology;
use crate::topology::HOST_VMS;
use crate::topology::SHORT;

/// Its user and its group, in the image as the package of the driver makes them.
const USER: &str = "vmbeam";

/// Somebody who is not in the group.
const STRANGER: &str = "nobody";

/// The kernel's word for a call that the filter stopped.
const STOPPED: &str = "type=1326";

/// What `/proc/PID/status` of each of its threads must say.
const STATUS: [&str; 9] = [
    "Uid:\t990\t990\t990\t990",
    "Gid:\t990\t990\t990\t990",
    "Groups:\t990",
    "CapInh:\t0000000000000000",
    "CapPrm:\t0000000000000000",
    "CapEff:\t0000000000000000",
    "CapAmb:\t0000000000000000",
    "NoNewPrivs:\t1",
    "Seccomp:\t2",
];

/// Restart the daemon like this on a topology whose host VMs are up; tests that
/// follow use it.
pub fn start(tally: &mut Tally, topology: &Topology) {
    let host = &topology.machine.host;
    tally.case(
        "nested",
        "the daemon starts over without privileges",
        || {
            product::stop_daemon(topology)?;
            // No program can be run to learn the domids.
            let mut domids = Vec::new();
            for name in HOST_VMS {
                let text = host.sh(&format!("xl domid {name}"), SHORT)?;
                domids.push(text.trim().parse().context(text)?);
            }
            product::configure(topology, &domids)?;
            // What udev's rule and the host VMs' start do elsewhere.
            host.sh(
                &format!(
                    "cd /run/vmbeam/agents && chgrp {USER} . *.sock && chmod 750 . && \
                 chmod 660 *.sock && chgrp {USER} /dev/vmbeam && chmod 660 /dev/vmbeam"
                ),
                SHORT,
            )?;
            product::start_daemon_with(topology, &format!("--user {USER} --seccomp kill"))?;
            product::wait_for_agents(topology)
        },
    );
    tally.case("nested", "its threads have no privileges", || threads(host));
    tally.case("nested", "its user cannot make hypercalls", || user(host));
}

/// Look at it once more, and start the ordinary one again.
pub fn stop(tally: &mut Tally, topology: &Topology) {
    let host = &topology.machine.host;
    tally.case("nested", "it had all system calls that it needed", || {
        threads(host)?;
        let text = host.run(&format!("dmesg | grep {STOPPED}"), SHORT)?.text;
        ensure!(text.is_empty(), "{text}");
        Ok(())
    });
    tally.case("nested", "the daemon starts over as root", || {
        product::stop_daemon(topology)?;
        product::configure(topology, &[])?;
        product::start_daemon(topology)?;
        product::wait_for_agents(topology)
    });
}

fn threads(host: &Channel) -> Result<()> {
    let text = host.sh(
        &format!(
            "cd /proc/$(cat {}) && cat task/*/status && ls -l fd",
            product::PID_FILE
        ),
        SHORT,
    )?;
    let count = |line: &str| text.lines().filter(|l| l.trim_end() == line).count();
    let threads = text.lines().filter(|l| l.starts_with("Pid:")).count();
    // One that waits for signals, one for each agent, one for the control socket.
    ensure!(threads >= 4, "{threads} threads:\n{text}");
    for line in STATUS {
        let found = count(line);
        ensure!(
            found == threads,
            "{line:?} in {found} of {threads} threads:\n{text}"
        );
    }
    ensure!(!text.contains("/dev/xen"), "it has /dev/xen open:\n{text}");
    Ok(())
}

/// What users get who open a device.
fn user(host: &Channel) -> Result<()> {
    for (user, device, allowed) in [
        (USER, "/dev/vmbeam", true),
        (USER, "/dev/xen/privcmd", false),
        (USER, "/proc/xen/privcmd", false),
        (USER, "/dev/xen/gntdev", false),
        (USER, "/dev/xen/evtchn", false),
        (USER, "/run/xenstored/socket", false),
        (STRANGER, "/dev/vmbeam", false),
        (STRANGER, "/run/vmbeam/control.sock", false),
    ] {
        let what = format!("test -e {device} && su -s /bin/sh {user} -c ': <>{device}'");
        let output = host.run(&what, SHORT)?;
        let denied = output.code != 0 && output.text.contains("ermission denied");
        ensure!(
            if allowed { output.code == 0 } else { denied },
            "{user} opens {device}: exit status {}, printed: {}",
            output.code,
            output.text.trim()
        );
    }
    Ok(())
}
