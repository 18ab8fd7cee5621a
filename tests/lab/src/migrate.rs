// SPDX-License-Identifier: GPL-2.0-only

//! A running guest VM migrates between the two nested systems, by `vmbeam migrate`.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use serde::Deserialize;
use serde::Serialize;

use crate::channel::Channel;
use crate::topology;
use crate::topology::Topology;
use crate::topology::GUEST;
use crate::topology::SHORT;

const LIMIT: Duration = Duration::from_secs(1200);

/// Exit statuses of `vmbeam`.
/// Something is left to be done, or to be looked at.
pub const FAILED: i64 = 1;
/// Nothing was changed.
pub const REFUSED: i64 = 3;
/// The guest goes on where it was.
pub const ROLLED_BACK: i64 = 4;

/// What `vmbeam migrate --json` prints, as far as it is used here.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Migration {
    /// Pages whose memory was swapped.
    pub pages_swapped: u64,
    /// Those of them for which none went back.
    pub relocated: u64,
    /// Runs in which their frames are listed.
    pub runs: u64,
    /// Pages in the saved state.
    pub pages_sent: u64,
    /// Pages that the agents copied.
    pub pages_copied: u64,
    /// Frames that could not follow: a superpage of each host VM at most.
    pub frames_left: u64,
    /// Pages whose digests were compared, with `--verify`.
    pub pages_verified: u64,
    /// Bytes of the saved state.
    pub stream_bytes: u64,
    /// Everything that went through the agents' ports, and its bytes.
    pub wire_messages: u64,
    pub wire_bytes: u64,
    /// Those of them that did while the guest was suspended.
    pub wire_bytes_suspended: u64,
    /// What the hypervisor counted.
    #[serde(flatten)]
    pub counts: Counts,
    /// Why the copy was not made before the guest was suspended, unless it was.
    pub unstaged: Option<String>,
    /// Seconds of the downtime, by what they went into.
    pub pause: BTreeMap<String, f64>,
    seconds: BTreeMap<String, f64>,
}

/// What a swap took, as the hypervisor counted it.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Counts {
    /// Hypercalls.
    pub hypercalls: u64,
    /// TLB flushes, domains by batches.
    pub tlb_flushes: u64,
    /// Entries of a P2M that were written.
    pub p2m_writes: u64,
    /// Pairs of superpages that were exchanged whole.
    pub superpages: u64,
    /// Superpages that were split.
    pub splits: u64,
    /// Superpages that were put together again.
    pub merges: u64,
}

impl Migration {
    /// The parts of the pause are all of it.
    pub fn check_pause(&self) -> Result<()> {
        let (sum, downtime) = (self.pause.values().sum::<f64>(), self.seconds("downtime")?);
        ensure!(
            (sum - downtime).abs() < 1e-6,
            "the parts of the pause are {sum} s, and it was {downtime} s: {:?}",
            self.pause
        );
        Ok(())
    }

    /// Seconds of one of its parts.
    pub fn seconds(&self, part: &str) -> Result<f64> {
        self.seconds
            .get(part)
            .copied()
            .with_context(|| format!("no seconds.{part}"))
    }
}

/// Destroy the guest VM of B, which has the name and the memory.
pub fn make_room(topology: &Topology) -> Result<()> {
    topology
        .machine
        .b
        .sh(&format!("xl destroy {GUEST}"), SHORT)?;
    Ok(())
}

/// The command line of a migration.
pub fn command(from: &str, to: &str, options: &str) -> String {
    format!("vmbeam migrate {GUEST} --from {from} --to {to} {options}")
}

/// Migrate; the guest must be where it was sent, and nowhere else, with its memory.
pub fn migrate(topology: &Topology, from: &str, to: &str, options: &str) -> Result<Migration> {
    let text = topology.machine.host.sh(
        &format!(
            "{} --json 2>/run/lab/migrate.err || {{ code=$?; cat /run/lab/migrate.err; exit $code; }}",
            command(from, to, options)
        ),
        LIMIT,
    )?;
    serde_json::from_str(&text).with_context(|| format!("vmbeam migrate printed: {text}"))
}

/// A guest VM that only takes memory.
pub const BALLAST: &str = "ballast";

/// Names and states of the guest VMs that a host VM has, but for [`BALLAST`].
pub fn guests(vm: &Channel) -> Result<Vec<(String, String)>> {
    let text = vm.sh("xl list", SHORT)?;
    Ok(text
        .lines()
        .skip(1)
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            Some(((*words.first()?).to_owned(), (*words.get(4)?).to_owned()))
        })
        .filter(|(name, _)| name != "Domain-0" && name != BALLAST)
        .collect())
}

/// The guest runs here and only here, with its memory as it wrote it. Gives its line.
pub fn runs_only_in(topology: &Topology, name: &str) -> Result<String> {
    for vm in topology::HOST_VMS {
        let guests = guests(topology.machine.vm(vm))?;
        if vm == name {
            ensure!(
                guests.len() == 1 && guests[0].0 == GUEST && !guests[0].1.contains('p'),
                "guests of {vm}: {guests:?}"
            );
        } else {
            ensure!(guests.is_empty(), "guests of {vm}: {guests:?}");
        }
    }
    topology::wait_for_check(topology.machine.vm(name), LIMIT)
}

/// Lines that a guest VM's console log has.
pub fn console_lines(vm: &Channel) -> Result<u64> {
    let text = vm.sh(
        &format!("cat /var/log/xen/console/guest-{GUEST}.log 2>/dev/null | wc -l"),
        SHORT,
    )?;
    Ok(text.trim().parse()?)
}

/// The longest gap between two beats of the guest VM's heart that it saw, in
/// milliseconds, in the lines of its console after these.
pub fn longest_gap(vm: &Channel, after: u64) -> Result<u64> {
    let text = vm.sh(
        &format!(
            "tail -n +{} /var/log/xen/console/guest-{GUEST}.log | \
             sed -n 's/.* gap_ms=\\([0-9]*\\).*/\\1/p' | sort -n | tail -n 1",
            after + 1
        ),
        SHORT,
    )?;
    text.trim()
        .parse()
        .with_context(|| format!("no heart beats in the console's log: {text:?}"))
}

/// Free memory of each guest hypervisor, in MiB.
pub fn free_memory(topology: &Topology) -> Result<[u64; 2]> {
    let free = |vm: &Channel| -> Result<u64> {
        let text = vm.sh("xl info free_memory", SHORT)?;
        text.trim()
            .parse()
            .with_context(|| format!("xl info printed {text}"))
    };
    Ok([free(&topology.machine.a)?, free(&topology.machine.b)?])
}

/// Where the guest VM is, and the other host VM.
pub type Places = [&'static str; 2];

/// The figures, with the gap that the guest itself saw.
pub fn summary(m: &Migration, gap_ms: u64) -> Result<String> {
    m.check_pause()?;
    let pause: Vec<String> = m
        .pause
        .iter()
        .map(|(part, seconds)| format!("{part} {seconds:.3}"))
        .collect();
    Ok(format!(
        "{} pages swapped in {:.3} s, {} sent, {} copied; {} bytes of state, {} on the wire, {} of \
         them while it was suspended; \
         {} {:.3} s, down {:.3} s ({}), total {:.3} s; the guest saw a gap of {:.3} s",
        m.pages_swapped,
        m.seconds("swap")?,
        m.pages_sent,
        m.pages_copied,
        m.stream_bytes,
        m.wire_bytes,
        m.wire_bytes_suspended,
        m.unstaged.as_deref().unwrap_or("staged"),
        m.seconds("stage")?,
        m.seconds("downtime")?,
        pause.join(", "),
        m.seconds("total")?,
        gap_ms as f64 / 1000.0,
    ))
}

/// Wait until the daemon has no job any more.
pub fn settled(topology: &Topology) -> Result<()> {
    let start = Instant::now();
    loop {
        let text = topology.machine.host.sh("vmbeam status", SHORT)?;
        if !text.contains("running:") {
            return Ok(());
        }
        if start.elapsed() > LIMIT {
            bail!("still not settled: {text}");
        }
        thread::sleep(Duration::from_secs(1));
    }
}
