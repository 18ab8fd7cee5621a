// SPDX-License-Identifier: GPL-2.0-only

//! The toolstack's own way to move a guest VM, which copies all memory, over the virtual
//! network: what VMBeam is compared with.
//!
//! `xl migrate` cannot be it: it needs log-dirty mode, which is part of shadow paging
//! for PV guests, and Debian builds its hypervisors without that. What is left is to save the
//! guest into the network and to restore it from there.

use std::fs;
use std::time::Duration;
use std::time::Instant;

use anyhow::anyhow;
use anyhow::Context;
use anyhow::Result;

use crate::paths;
use crate::topology;
use crate::topology::Topology;
use crate::topology::GUEST;

const LIMIT: Duration = Duration::from_secs(1800);
const PORT: u16 = 7010;

/// What it took.
#[derive(Clone, Copy, Debug)]
pub struct Stock {
    /// From the start of `xl save` until `xl restore` let the guest run.
    pub total_seconds: f64,
    /// The same from the request to suspend on.
    pub downtime_seconds: f64,
    /// Without the headers of TCP.
    pub bytes_on_wire: u64,
}

/// Move the guest VM.
pub fn migrate(topology: &Topology, from: &str, to: &str) -> Result<Stock> {
    let (source, destination) = (topology.machine.vm(from), topology.machine.vm(to));
    let address = topology::address(to);
    let start = Instant::now();
    let (saved, restored) = std::thread::scope(|scope| {
        let restored = scope.spawn(|| {
            destination.sh(
                &format!("socat -u -b 65536 TCP-LISTEN:{PORT} - | xl restore /proc/self/fd/0"),
                LIMIT,
            )?;
            anyhow::Ok(start.elapsed().as_secs_f64())
        });
        let saved = source.sh(
            &format!(
                "{{ xl -vvv save {GUEST} /proc/self/fd/3 3>&1 >&2 | labtool carry {address}:{PORT}; }} 2>&1 | \
                 labtool stamp"
            ),
            LIMIT,
        );
        (saved, restored.join())
    });
    let saved = saved?;
    fs::write(paths::logs().join("xl-save.log"), &saved)?;
    let total_seconds = restored.map_err(|_| anyhow!("a thread of the harness panicked"))??;
    let (suspended, bytes_on_wire) = read(&saved).context("xl save: see build/logs/xl-save.log")?;
    Ok(Stock {
        total_seconds,
        downtime_seconds: total_seconds - suspended,
        bytes_on_wire,
    })
}

/// When `xl` asked the guest to suspend itself, and the bytes that were carried.
fn read(text: &str) -> Result<(f64, u64)> {
    let lines = || text.lines().filter_map(|line| line.split_once(' '));
    let suspended = lines()
        .find(|(_, line)| line.contains("suspend request via"))
        .context("it did not ask the guest to suspend itself")?
        .0
        .parse()?;
    let bytes = lines()
        .find_map(|(_, line)| line.strip_prefix("CARRIED "))
        .context("the transport did not come to its end")?
        .parse()?;
    Ok((suspended, bytes))
}
