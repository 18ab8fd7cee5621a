// SPDX-License-Identifier: GPL-2.0-only

//! What only the whole topology can be measured in: swaps of guest VMs of several sizes, the
//! virtual network, and migrations beside the toolstack's own way. `tests/bench` makes the
//! report of it.

mod migrations;
mod network;

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use serde::Deserialize;
use vmbeam_bench::Part;

use crate::machine::Accelerator;
use crate::migrate::Counts;
use crate::paths;
use crate::product;
use crate::progress::Progress;
use crate::topology;
use crate::topology::Sizes;
use crate::topology::Topology;
use crate::topology::GUEST;
use crate::topology::HOST_VMS;
use crate::topology::SHORT;

const LIMIT: Duration = Duration::from_secs(900);

/// Sizes of the guest VMs that are swapped, in MiB. The host VMs are made for the largest.
const SIZES: [u32; 4] = [256, 512, 1024, 2048];
/// Those that the published prototype was measured with.
const PUBLISHED: [u32; 3] = [256, 512, 1024];
/// Memory that the rest of this machine keeps, in MiB.
const REST: u32 = 2048;

/// How often each thing is done.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Times {
    /// Swaps of each size.
    #[arg(long, default_value_t = 10)]
    swaps: u32,
    /// Transfers over the virtual network.
    #[arg(long, default_value_t = 5)]
    transfers: u32,
    /// Migrations by `vmbeam migrate`, under each load.
    #[arg(long, default_value_t = 5)]
    migrations: u32,
    /// Migrations by `xl save` and `xl restore`, under each load.
    #[arg(long, default_value_t = 5)]
    stock: u32,
    /// The same over SSH, which takes long here, under one load.
    #[arg(long, default_value_t = 1)]
    ssh: u32,
    /// Migrations beside another guest VM.
    #[arg(long, default_value_t = 5)]
    beside: u32,
}

/// What `vmbeam swap --json` prints, as far as it is used here.
#[derive(Debug, Deserialize)]
struct Swap {
    pages_swapped: u64,
    runs: u64,
    wire_messages: u64,
    wire_bytes: u64,
    #[serde(flatten)]
    counts: Counts,
    seconds: BTreeMap<String, f64>,
}

/// Boot and measure. False if a part of it failed; what was measured is written all the same.
pub fn run(times: Times, progress: &Progress) -> Result<bool> {
    let mut part = Part::new("lab");
    let largest = |sizes: &[u32]| {
        let mib = sizes.iter().copied().max().unwrap_or_default();
        Sizes::for_guests(1, mib)
    };
    let (mut swapped, mut sizes) = (&SIZES[..], largest(&SIZES));
    let here = available_mib()?;
    if here < sizes.machine_mib + REST {
        part.missing.push(format!(
            "swaps of 2048 MiB: {here} MiB of memory are free here, and {} are needed",
            sizes.machine_mib + REST
        ));
        (swapped, sizes) = (&PUBLISHED[..], largest(&PUBLISHED));
    }
    let (topology, _) = Topology::boot_host(sizes, &paths::xen(), progress)?;
    for (key, value) in [
        ("accelerator", Accelerator::detect().name().to_owned()),
        ("kernel", topology::kernel_release()?),
        ("memory of the machine, MiB", sizes.machine_mib.to_string()),
        ("memory of a host VM, MiB", sizes.host_vm_mib.to_string()),
    ] {
        part.environment.insert(key.to_owned(), value);
    }
    let bench = Bench {
        topology: &topology,
        progress,
    };
    let mut good = true;
    let mut keep = |part: &mut Part, what: &str, result: Result<()>| {
        if let Err(e) = result {
            println!("    FAILED: {what}: {e:#}");
            part.missing.push(format!("{what}, in part: {e:#}"));
            good = false;
        }
        // What is there stays, if the rest takes too long for somebody.
        part.write()
    };
    // Two small domains more than the lab is made for, before the others take the memory.
    let result = bench.netfront(&mut part, times.transfers);
    keep(&mut part, "the network of PVH host VMs", result)?;
    product::start(&topology)?;
    topology.start_host_vms(progress)?;
    product::wait_for_agents(&topology)?;
    let result = bench.transfers(&mut part, times.transfers);
    keep(&mut part, "the virtual network", result)?;
    for mib in swapped.iter().copied() {
        let result = bench.swaps(&mut part, mib, times.swaps);
        keep(&mut part, &format!("swaps of {mib} MiB"), result)?;
    }
    let result = bench.superpages(&mut part, "before");
    keep(&mut part, "superpages before the migrations", result)?;
    for load in migrations::LOADS {
        let result = bench.migrations(&mut part, load, times);
        keep(&mut part, &format!("migrations, {load}"), result)?;
    }
    let result = bench.sizes(&mut part, times);
    keep(&mut part, "migrations of several sizes", result)?;
    let result = bench.over_ssh(&mut part, times.ssh);
    keep(&mut part, "migrations over SSH", result)?;
    let result = bench.neighbour(&mut part, times.beside);
    keep(&mut part, "migrations beside another guest VM", result)?;
    let result = bench.superpages(&mut part, "after");
    keep(&mut part, "superpages after the migrations", result)?;
    Ok(good)
}

/// Memory of this machine that nobody uses, in MiB.
fn available_mib() -> Result<u32> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let kib = text
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))
        .and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u32>().ok())
        .context("no MemAvailable in /proc/meminfo")?;
    Ok(kib / 1024)
}

struct Bench<'a> {
    topology: &'a Topology,
    progress: &'a Progress,
}

impl Bench<'_> {
    fn swaps(&self, part: &mut Part, mib: u32, times: u32) -> Result<()> {
        let stage = self
            .progress
            .stage(&format!("swap guest VMs of {mib} MiB, {times} times"));
        for vm in HOST_VMS {
            self.create(vm, GUEST, mib, "", "-p")?;
        }
        let mut pages = None;
        for _ in 0..times {
            let swap = self.swap()?;
            let size = f64::from(mib);
            for (series, name) in [
                ("commit", "commit"),
                ("all of vmbeam swap", "total"),
                ("lists", "lists"),
                ("join", "join"),
                ("add", "add"),
                ("dry run", "prepare"),
            ] {
                let seconds = swap.seconds.get(name);
                let seconds = *seconds.with_context(|| format!("no seconds.{name}"))?;
                part.add("swap.time", series, size, seconds, "s");
            }
            for (series, value) in [
                ("pages", swap.pages_swapped),
                ("runs", swap.runs),
                ("messages", swap.wire_messages),
            ]
            .into_iter()
            .chain(named(&swap.counts))
            {
                part.add("swap.count", series, size, value as f64, "");
            }
            let bytes = swap.wire_bytes as f64;
            part.add("swap.bytes", "agents' ports", size, bytes, "bytes");
            let before = *pages.get_or_insert(swap.pages_swapped);
            ensure!(
                before == swap.pages_swapped,
                "{before} pages went and {} came back",
                swap.pages_swapped
            );
        }
        for vm in HOST_VMS {
            self.destroy(vm, GUEST)?;
        }
        stage.done();
        Ok(())
    }

    fn swap(&self) -> Result<Swap> {
        let text = self.topology.machine.host.sh(
            &format!(
                "vmbeam swap --from A/{GUEST} --to B/{GUEST} --json 2>/run/lab/swap.err || \
                 {{ code=$?; cat /run/lab/swap.err; exit $code; }}"
            ),
            LIMIT,
        )?;
        serde_json::from_str(&text).with_context(|| format!("vmbeam swap printed: {text}"))
    }

    fn create(&self, vm: &str, name: &str, mib: u32, words: &str, options: &str) -> Result<()> {
        self.topology.machine.vm(vm).sh(
            &format!(
                "cat >/etc/xen/{name}.cfg <<'EOF'\n{}\nEOF\nxl create {options} /etc/xen/{name}.cfg",
                topology::guest_config(name, mib, words)
            ),
            LIMIT,
        )?;
        Ok(())
    }

    fn destroy(&self, vm: &str, name: &str) -> Result<()> {
        self.topology.machine.vm(vm).sh(
            &format!(
                "xl destroy {name}; while xl domid {name} 2>/dev/null; do usleep 200000; done"
            ),
            SHORT,
        )?;
        Ok(())
    }
}

fn named(counts: &Counts) -> [(&'static str, u64); 6] {
    [
        ("hypercalls", counts.hypercalls),
        ("TLB flushes", counts.tlb_flushes),
        ("P2M writes", counts.p2m_writes),
        ("superpages exchanged", counts.superpages),
        ("splits", counts.splits),
        ("merges", counts.merges),
    ]
}
