// SPDX-License-Identifier: GPL-2.0-only

//! The daemon's configuration takes each host VM's agent for that of the other.

use anyhow::ensure;
use anyhow::Result;

use crate::migrate::REFUSED;
use crate::product;
use crate::tally::Tally;
use crate::topology::Topology;
use crate::topology::GUEST;
use crate::topology::HOST_VMS;
use crate::topology::SHORT;

const GROUP: &str = "nested";

/// Try it, with a guest VM in each, and put it right again.
pub fn run(tally: &mut Tally, topology: &Topology) {
    tally.case(GROUP, "each agent proves which host VM it is in", || {
        let text = topology.machine.host.sh("vmbeam check", SHORT)?;
        for name in HOST_VMS {
            let proven = format!("identity of host VM {name}: proven: domain ");
            ensure!(text.contains(&proven), "{text}");
        }
        Ok(())
    });
    tally.case(GROUP, "crossed sockets are found, nothing moves", || {
        let result = crossed(topology);
        product::stop_daemon(topology)?;
        product::configure(topology, &[])?;
        product::start_daemon(topology)?;
        product::wait_for_agents(topology)?;
        result
    });
}

fn crossed(topology: &Topology) -> Result<()> {
    let host = &topology.machine.host;
    product::stop_daemon(topology)?;
    let [a, b] = HOST_VMS;
    let line = |name, other| {
        format!("-e 's|^name = \"{name}\"|&\\nsocket = \"/run/vmbeam/agents/{other}.sock\"|'")
    };
    host.sh(
        &format!(
            "sed -i {} {} /etc/vmbeam/vmbeamd.toml",
            line(a, b),
            line(b, a)
        ),
        SHORT,
    )?;
    product::start_daemon(topology)?;
    let found =
        "until [ $(vmbeam check | grep -c 'it is in host VM') = 2 ]; do usleep 500000; done";
    host.sh(found, SHORT)?;
    for command in [
        format!("vmbeam swap --from A/{GUEST} --to B/{GUEST}"),
        format!("vmbeam migrate {GUEST} --from A --to B --mode copy"),
    ] {
        let output = host.run(&command, SHORT)?;
        ensure!(
            output.code == REFUSED && output.text.contains("is in the host VM with UUID"),
            "exit status {}, printed: {}",
            output.code,
            output.text.trim()
        );
    }
    Ok(())
}
