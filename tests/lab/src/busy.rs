// SPDX-License-Identifier: GPL-2.0-only

//! Guest VMs that write and check their memory all the time, and the commands that replace what
//! they run on.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use anyhow::Context;
use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use crate::channel::Channel;
use crate::paths;
use crate::progress::Progress;
use crate::topology;
use crate::topology::wait_for_check_of;
use crate::topology::Topology;
use crate::topology::SHORT;

/// They.
pub const GUESTS: [&str; 3] = ["guest1", "guest2", "guest3"];
/// Memory of each.
pub const GUEST_MIB: u32 = 128;
/// Time for one to start, or to find its memory right.
pub const START: Duration = Duration::from_secs(1200);
const JOB: Duration = Duration::from_secs(3600);

/// What a guest VM says each time that it has found its memory as it wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Beat {
    /// How often it has checked its memory since it was started.
    pub round: u64,
    /// Since the line before.
    pub gap_ms: u64,
    /// Since it was started.
    pub longest_ms: u64,
    /// Its kernel's own number of this boot.
    pub boot: String,
}

impl Beat {
    /// From a line of its console.
    fn read(line: &str) -> Option<Self> {
        let (_, text) = line.split_once("CHECK ")?;
        let mut words = text.split_whitespace();
        let round = words.next()?.parse().ok()?;
        if words.next()? != "ok" {
            return None;
        }
        let mut value = |name: &str| words.find_map(|w| w.strip_prefix(name));
        Some(Beat {
            round,
            gap_ms: value("gap_ms=")?.parse().ok()?,
            longest_ms: value("longest_ms=")?.parse().ok()?,
            boot: value("boot=")?.to_owned(),
        })
    }
}

/// Start them in A, and wait until each has found its memory right.
pub fn start(topology: &Topology, progress: &Progress) -> Result<()> {
    let stage = progress.stage(&format!(
        "start {} guest VMs of {GUEST_MIB} MiB in A, which write their memory all the time",
        GUESTS.len()
    ));
    for (number, name) in GUESTS.into_iter().enumerate() {
        start_guest(topology, number, name)?;
    }
    now(&topology.machine.a)?;
    stage.done();
    Ok(())
}

/// What each says next, in this host VM.
pub fn now(vm: &Channel) -> Result<Vec<Beat>> {
    let beat = |name| {
        let line = wait_for_check_of(vm, name, START)?;
        Beat::read(&line).with_context(|| format!("{name} says {line}"))
    };
    GUESTS.into_iter().map(beat).collect()
}

fn start_guest(topology: &Topology, number: usize, name: &str) -> Result<()> {
    let a = &topology.machine.a;
    a.sh(
        &format!(
            "cat >/etc/xen/{name}.cfg <<'EOF'\n{}\nEOF\nxl create /etc/xen/{name}.cfg",
            topology::guest_config(
                name,
                GUEST_MIB,
                &format!(
                    "vmbeam.seed={} vmbeam.rewrite",
                    topology::SEED + number as u64
                )
            )
        ),
        START,
    )?;
    follow(a, name, "A")
}

/// Copy a guest VM's console in one host VM to a file, from now on.
pub fn follow(vm: &Channel, guest: &str, place: &str) -> Result<()> {
    let log = format!("/var/log/xen/console/guest-{guest}.log");
    vm.follow(
        &format!("touch {log}; tail -n +1 -F {log} 2>/dev/null"),
        &log_file(guest, place),
    )
}

fn log_file(guest: &str, place: &str) -> PathBuf {
    paths::logs().join(format!("busy-{guest}-{place}.log"))
}

/// The beats in a file of [`follow`], and whether any line says that memory is wrong.
pub fn beats(guest: &str, place: &str) -> Result<(Vec<Beat>, bool)> {
    let text = fs::read(log_file(guest, place))?;
    let text = String::from_utf8_lossy(&text);
    let bad = text
        .lines()
        .any(|l| l.contains(" BAD ") || l.contains("panic"));
    Ok((text.lines().filter_map(Beat::read).collect(), bad))
}

/// `vmbeam rejuvenate` or `vmbeam replace` with these arguments; gives its report. What it says
/// meanwhile is shown.
pub fn upkeep(topology: &Topology, arguments: &str) -> Result<Value> {
    // Nothing here would answer the power button, so there is no use in waiting long.
    let command = format!("vmbeam {arguments} --shutdown-timeout 5 --json");
    let host = &topology.machine.host;
    let mut line = String::new();
    let output = host.run_with(
        &format!("{command} 2>&1 >/run/lab/upkeep.json"),
        JOB,
        |part| {
            line.push_str(part);
            while let Some((first, rest)) = line.split_once('\n') {
                println!("    {first}");
                line = rest.to_owned();
            }
        },
    )?;
    let text = host.sh("cat /run/lab/upkeep.json", SHORT)?;
    if output.code != 0 {
        bail!("`{command}` ended with {}: {text}", output.code);
    }
    serde_json::from_str(&text).with_context(|| format!("`{command}` printed: {text}"))
}
