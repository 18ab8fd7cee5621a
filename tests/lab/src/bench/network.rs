// SPDX-License-Identifier: GPL-2.0-only

//! How fast plain bytes go.

use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use serde::Deserialize;
use vmbeam_bench::Part;

use super::Bench;
use crate::demo;
use crate::topology::SHORT;

/// Bytes of one transfer over the virtual network.
const TRANSFER: u64 = 16 << 20;
const MIB: u32 = (TRANSFER >> 20) as u32;
const LIMIT: Duration = Duration::from_secs(600);

/// Two PVH host VMs on the bridge: the one that sends, and the one that receives.
const PAIR: [(&str, &str, &str); 2] = [
    ("recv", "10.77.0.11", "net-recv,10.77.0.11:7001"),
    ("send", "10.77.0.12", "net-send,10.77.0.11:7001,16777216"),
];

/// What `labtool net-send` prints.
#[derive(Debug, Deserialize)]
struct Sent {
    bytes: u64,
    seconds: f64,
}

impl Bench<'_> {
    /// Between the two guest management VMs, through their emulated cards.
    pub fn transfers(&self, part: &mut Part, times: u32) -> Result<()> {
        let stage = self.progress.stage(&format!(
            "send {MIB} MiB from A to B over the virtual network, {times} times"
        ));
        for _ in 0..times {
            let seconds = demo::network(self.topology, TRANSFER)?;
            enter(
                part,
                "between HVM host VMs, emulated cards",
                TRANSFER,
                seconds,
            );
        }
        stage.done();
        Ok(())
    }

    /// Between two PVH host VMs, over netfront and netback.
    pub fn netfront(&self, part: &mut Part, times: u32) -> Result<()> {
        let stage = self.progress.stage(&format!(
            "send {MIB} MiB between two PVH host VMs over netfront and netback, {times} times"
        ));
        let host = &self.topology.machine.host;
        host.sh("insmod /lib/modules/xen-netback.ko", SHORT)?;
        for (name, address, words) in PAIR {
            host.sh(
                &format!(
                    "cat >/etc/xen/{name}.cfg <<'EOF'\n\
                     name=\"{name}\"\n\
                     type=\"pvh\"\n\
                     memory=192\n\
                     vcpus=1\n\
                     kernel=\"/boot/vmlinux\"\n\
                     ramdisk=\"/boot/guest.cpio\"\n\
                     cmdline=\"console=hvc0 quiet mitigations=off clocksource=xen vmbeam.net={address},{words}\"\n\
                     vif=[\"bridge=br0,script=vif-lab\"]\n\
                     EOF\nxl create /etc/xen/{name}.cfg"
                ),
                SHORT,
            )?;
        }
        let text = host.sh(
            &format!(
                "log=/var/log/xen/console/guest-send.log; touch $log; \
                 until [ $(grep -c seconds $log) -ge {times} ]; do usleep 200000; done; \
                 sed -n /seconds/p $log"
            ),
            LIMIT,
        );
        for (name, ..) in PAIR {
            host.sh(
                &format!(
                    "xl destroy {name}; while xl domid {name} 2>/dev/null; do usleep 200000; done"
                ),
                SHORT,
            )?;
        }
        for line in text?.lines().take(times as usize) {
            let sent: Sent = serde_json::from_str(line.trim()).with_context(|| line.to_owned())?;
            let series = "between PVH host VMs, netfront and netback";
            enter(part, series, sent.bytes, sent.seconds);
        }
        stage.done();
        Ok(())
    }
}

fn enter(part: &mut Part, series: &str, bytes: u64, seconds: f64) {
    let rate = bytes as f64 / seconds;
    part.add("network.rate", series, f64::from(MIB), rate, "bytes/s");
}
