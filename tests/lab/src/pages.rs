// SPDX-License-Identifier: GPL-2.0-only

//! Which domain has how many pages of the host.

use std::collections::BTreeMap;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use serde::Serialize;

use crate::topology::Topology;
use crate::topology::SHORT;

/// How often to ask.
const TRIES: u32 = 20;

/// Pages of domains, by their domids, and of nobody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pages {
    /// In the heap.
    pub free: u64,
    /// Those that each domain has.
    pub domains: BTreeMap<u32, u64>,
}

impl Pages {
    /// Ask the host hypervisor until two answers agree: a host VM that is gone gives its last
    /// pages back later.
    pub fn look(topology: &Topology) -> Result<Self> {
        let mut last = Self::now(topology)?;
        for _ in 0..TRIES {
            let now = Self::now(topology)?;
            if now == last {
                return Ok(now);
            }
            last = now;
        }
        bail!("still changing: {last:?}")
    }

    fn now(topology: &Topology) -> Result<Self> {
        let host = &topology.machine.host;
        // What is freed is in no list of the heap until it is scrubbed.
        let text = host.sh(
            "labtool pages && xl debug-keys H && sleep 1 && xl dmesg | \
             sed -n -e '/dumping heap info/h' -e '/heap\\[node/H' -e '${x;p}' | \
             sed -n 's/.*heap\\[node.*-> \\([0-9]*\\) pages.*/free \\1/p'",
            SHORT,
        )?;
        let mut pages = Pages {
            free: 0,
            domains: BTreeMap::new(),
        };
        for line in text.lines() {
            let (what, nr) = line.split_once(' ').context("two words")?;
            let nr: u64 = nr.trim().parse().with_context(|| format!("in {line}"))?;
            match what.parse() {
                Ok(domid) => drop(pages.domains.insert(domid, nr)),
                Err(_) => pages.free += nr,
            }
        }
        ensure!(pages.free > 0, "no pages of the heap in: {text}");
        Ok(pages)
    }

    /// All but those of the host management VM.
    pub fn of_host_vms(&self) -> u64 {
        let host_vms = self.domains.iter().filter(|(domid, _)| **domid > 0);
        host_vms.map(|(_, pages)| pages).sum()
    }

    /// All that there are.
    pub fn all(&self) -> u64 {
        self.free + self.domains.values().sum::<u64>()
    }
}
