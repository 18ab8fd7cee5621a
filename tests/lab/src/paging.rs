// SPDX-License-Identifier: GPL-2.0-only

//! What a test ran on: which vendor's page tables translate the memory of domains.

use std::fs;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::channel::Channel;
use crate::paths;
use crate::topology::SHORT;

/// Hardware-assisted paging of a vendor.
#[derive(Clone, Copy, Debug)]
pub struct Paging {
    vendor: &'static str,
    /// What the hypervisor says of it when it boots.
    lines: [&'static str; 2],
}

const DETECTED: &str = "HVM: Hardware Assisted Paging (HAP) detected";

/// Intel's.
pub const EPT: Paging = Paging {
    vendor: "GenuineIntel",
    lines: ["- Extended Page Tables (EPT)", DETECTED],
};
/// AMD's.
pub const NPT: Paging = Paging {
    vendor: "AuthenticAMD",
    lines: ["- Nested Page Tables (NPT)", DETECTED],
};

impl Paging {
    /// An error if the machine whose console is in that log does not have it.
    pub fn check(&self, host: &Channel, log: &str) -> Result<()> {
        let processor = host.sh("grep -m 1 vendor_id /proc/cpuinfo", SHORT)?;
        ensure!(
            processor.contains(self.vendor),
            "the processor is not {}'s: {}",
            self.vendor,
            processor.trim()
        );
        let path = paths::logs().join(log);
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let text = String::from_utf8_lossy(&text);
        for line in self.lines {
            ensure!(
                text.lines()
                    .any(|l| l.contains("(XEN)") && l.contains(line)),
                "the hypervisor did not print \"{line}\", see {}",
                path.display()
            );
        }
        Ok(())
    }
}
