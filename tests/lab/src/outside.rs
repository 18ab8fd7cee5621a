// SPDX-License-Identifier: GPL-2.0-only

//! Checks, from the host management VM, that a swap changed nothing but what was on
//! its lists. The work is done by `labtool frames-save` and `frames-compare` there.

use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use serde::Deserialize;

use crate::topology::Topology;
use crate::topology::GUEST;

/// Where the runs that move are listed, in the host management VM.
const RUNS: &str = "/run/lab/runs.json";

const LIMIT: Duration = Duration::from_secs(300);

/// Counts of what was compared and of what should not have changed but did.
#[derive(Debug, Default, Deserialize)]
pub struct Outside {
    /// Frames of both host VMs whose contents were compared.
    pub frames_checked: u64,
    /// Those that took over contents of the other host VM.
    pub frames_changed: u64,
    /// Entries of the host hypervisor's M2P table.
    pub m2p_checked: u64,
    /// Those that changed other than from one gfn of a pair to the other.
    pub m2p_unexpected: u64,
}

fn labtool(topology: &Topology, verb: &str) -> Result<String> {
    topology.machine.host.sh(
        &format!(
            "labtool {verb} --a $(xl domid A) --b $(xl domid B) --runs {RUNS} \
             --state /run/lab/frames.json"
        ),
        LIMIT,
    )
}

impl Outside {
    /// Learn which runs will move and remember how everything else is.
    pub fn before(topology: &Topology) -> Result<Self> {
        // A guest that runs turns pages into page tables and back.
        topology.machine.a.sh(&format!("xl pause {GUEST}"), LIMIT)?;
        topology.machine.host.sh(
            &format!("vmbeam swap --from A/{GUEST} --to B/{GUEST} --dry-run --runs {RUNS}"),
            LIMIT,
        )?;
        labtool(topology, "frames-save")?;
        Ok(Outside::default())
    }

    /// Compare with how it is now.
    pub fn compare(&mut self, topology: &Topology) -> Result<()> {
        let text = labtool(topology, "frames-compare")?;
        let line = text.lines().last().unwrap_or_default();
        *self = serde_json::from_str(line)
            .with_context(|| format!("labtool frames-compare printed: {text}"))?;
        Ok(())
    }
}
