// SPDX-License-Identifier: GPL-2.0-only

//! What only the whole topology can be measured in: swaps of guest VMs of several sizes, the
//! virtual network, and migrations beside the toolstack's own way. `tests/bench` makes the
//! report of it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use serde::Deserialize;
use vmbeam_bench::Part;

use crate::channel::Channel;
use crate::demo;
use crate::machine::Accelerator;
use crate::migrate;
use crate::migrate::Counts;
use crate::paths;
use crate::product;
use crate::progress::Progress;
use crate::stock;
use crate::topology;
use crate::topology::Sizes;
use crate::topology::Topology;
use crate::topology::GUEST;
use crate::topology::HOST_VMS;
use crate::topology::SHORT;
use crate::workload;
use crate::workload::Workload;

const LIMIT: Duration = Duration::from_secs(900);

/// Sizes of the guest VMs that are swapped, in MiB. The host VMs are made for the largest.
const SIZES: [u32; 3] = [256, 512, 1024];
/// Size of the one that migrates.
const MIGRATED: u32 = 256;
/// Bytes of one transfer over the virtual network.
const TRANSFER: u64 = 16 << 20;

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
    #[arg(long, default_value_t = 1)]
    stock: u32,
}

/// What the guest VM does meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    /// Read its memory.
    Reading,
    /// Use its network and its disk as well.
    NetworkAndDisk,
    /// Write all its memory anew, again and again.
    Rewriting,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Load::Reading => "reading memory",
            Load::NetworkAndDisk => "network and disk",
            Load::Rewriting => "rewriting memory",
        })
    }
}

/// What `vmbeam swap --json` prints, as far as it is used here.
#[derive(Debug, Deserialize)]
struct Swap {
    pages_swapped: u64,
    runs: u64,
    wire_bytes: u64,
    #[serde(flatten)]
    counts: Counts,
    seconds: BTreeMap<String, f64>,
}

/// Boot and measure. False if a part of it failed; what was measured is written all the same.
pub fn run(times: Times, progress: &Progress) -> Result<bool> {
    let largest = SIZES.into_iter().max().unwrap_or(MIGRATED);
    let sizes = Sizes::new(largest)?;
    let (topology, _) = Topology::boot_host(sizes, &paths::xen(), progress)?;
    product::start(&topology)?;
    topology.start_host_vms(progress)?;
    product::wait_for_agents(&topology)?;

    let mut part = Part::new("lab");
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
    let result = bench.transfers(&mut part, times.transfers);
    keep(&mut part, "the virtual network", result)?;
    for mib in SIZES {
        let result = bench.swaps(&mut part, mib, times.swaps);
        keep(&mut part, &format!("swaps of {mib} MiB"), result)?;
    }
    let result = bench.migrations(&mut part, times);
    keep(&mut part, "migrations", result)?;
    Ok(good)
}

struct Bench<'a> {
    topology: &'a Topology,
    progress: &'a Progress,
}

/// Seconds of CPU time that the management VMs have used: the host's, A's and B's.
type Cpu = [f64; 3];

impl Bench<'_> {
    fn transfers(&self, part: &mut Part, times: u32) -> Result<()> {
        let mib = TRANSFER >> 20;
        let stage = self.progress.stage(&format!(
            "send {mib} MiB over the virtual network, {times} times"
        ));
        for _ in 0..times {
            let seconds = demo::network(self.topology, TRANSFER)?;
            let rate = TRANSFER as f64 / seconds;
            part.add("network.rate", "raw TCP", mib as f64, rate, "bytes/s");
        }
        stage.done();
        Ok(())
    }

    fn swaps(&self, part: &mut Part, mib: u32, times: u32) -> Result<()> {
        let stage = self
            .progress
            .stage(&format!("swap guest VMs of {mib} MiB, {times} times"));
        for vm in HOST_VMS {
            self.create(vm, mib, "", "-p")?;
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
            for (series, value) in [("pages", swap.pages_swapped), ("runs", swap.runs)]
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
            self.destroy(vm)?;
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

    fn create(&self, vm: &str, mib: u32, words: &str, options: &str) -> Result<()> {
        self.topology.machine.vm(vm).sh(
            &format!(
                "cat >/etc/xen/{GUEST}.cfg <<'EOF'\n{}\nEOF\nxl create {options} /etc/xen/{GUEST}.cfg",
                topology::guest_config(mib, words)
            ),
            LIMIT,
        )?;
        Ok(())
    }

    fn destroy(&self, vm: &str) -> Result<()> {
        self.topology.machine.vm(vm).sh(
            &format!(
                "xl destroy {GUEST}; while xl domid {GUEST} 2>/dev/null; do usleep 200000; done"
            ),
            SHORT,
        )?;
        Ok(())
    }

    /// Without what was idle, waited or stolen.
    fn cpu(&self) -> Result<Cpu> {
        let machine = &self.topology.machine;
        let used = |vm: &Channel| -> Result<f64> {
            let text = vm.sh("awk '/^cpu /{print $2+$3+$4+$7+$8}' /proc/stat", SHORT)?;
            Ok(text.trim().parse::<f64>()? / 100.0)
        };
        Ok([used(&machine.host)?, used(&machine.a)?, used(&machine.b)?])
    }

    fn migrations(&self, part: &mut Part, times: Times) -> Result<()> {
        let mut at = 0;
        self.create("A", MIGRATED, "", "")?;
        topology::wait_for_check(&self.topology.machine.a, LIMIT)?;
        self.under(part, Load::Reading, times, &mut at, None)?;
        if at != 0 {
            self.ours(part, Load::Reading, &mut at, None)?;
        }
        let mut workload = workload::attach(self.topology)?;
        self.under(
            part,
            Load::NetworkAndDisk,
            times,
            &mut at,
            Some(&mut workload),
        )?;
        self.destroy(HOST_VMS[at])?;
        self.create("A", MIGRATED, "vmbeam.rewrite", "")?;
        topology::wait_for_check(&self.topology.machine.a, LIMIT)?;
        self.under(part, Load::Rewriting, times, &mut 0, None)
    }

    /// All migrations under one load; `at` is where the guest VM is.
    fn under(
        &self,
        part: &mut Part,
        load: Load,
        times: Times,
        at: &mut usize,
        mut workload: Option<&mut Workload<'_>>,
    ) -> Result<()> {
        for i in 1..=times.migrations {
            let text = format!("{load}: vmbeam migrate, {i} of {}", times.migrations);
            let stage = self.progress.stage(&text);
            self.ours(part, load, at, workload.as_deref_mut())?;
            stage.done();
        }
        for i in 1..=times.stock {
            let text = format!("{load}: xl save and xl restore, {i} of {}", times.stock);
            let stage = self.progress.stage(&text);
            self.stock(part, load, at, workload.as_deref_mut())?;
            stage.done();
        }
        Ok(())
    }

    fn ours(
        &self,
        part: &mut Part,
        load: Load,
        at: &mut usize,
        workload: Option<&mut Workload<'_>>,
    ) -> Result<()> {
        let who = format!("vmbeam migrate, {load}");
        let m = self.one(part, &who, at, workload, |from, to| {
            migrate::migrate(self.topology, from, to, "")
        })?;
        let mib = f64::from(MIGRATED);
        part.add("migrate.total", &who, mib, m.seconds("total")?, "s");
        part.add("migrate.down", &who, mib, m.seconds("downtime")?, "s");
        part.add("migrate.swap", &who, mib, m.seconds("swap")?, "s");
        let bytes = m.wire_bytes as f64;
        part.add("migrate.bytes", &who, mib, bytes, "bytes");
        for (series, value) in [
            ("pages swapped", m.pages_swapped),
            ("pages sent", m.pages_sent),
        ]
        .into_iter()
        .chain(named(&m.counts))
        {
            let series = format!("{series}, {load}");
            part.add("migrate.count", &series, mib, value as f64, "");
        }
        Ok(())
    }

    fn stock(
        &self,
        part: &mut Part,
        load: Load,
        at: &mut usize,
        workload: Option<&mut Workload<'_>>,
    ) -> Result<()> {
        let who = format!("xl save and restore, {load}");
        let s = self.one(part, &who, at, workload, |from, to| {
            stock::migrate(self.topology, from, to)
        })?;
        let mib = f64::from(MIGRATED);
        part.add("migrate.total", &who, mib, s.total_seconds, "s");
        part.add("migrate.down", &who, mib, s.downtime_seconds, "s");
        let bytes = s.bytes_on_wire as f64;
        part.add("migrate.bytes", &who, mib, bytes, "bytes");
        Ok(())
    }

    /// Move the guest VM to where it is not, and enter what can be seen from outside of it.
    fn one<T>(
        &self,
        part: &mut Part,
        who: &str,
        at: &mut usize,
        workload: Option<&mut Workload<'_>>,
        moves: impl FnOnce(&str, &str) -> Result<T>,
    ) -> Result<T> {
        let (from, to) = (HOST_VMS[*at], HOST_VMS[1 - *at]);
        let vm = self.topology.machine.vm(to);
        let console = migrate::console_lines(vm)?;
        let before = self.cpu()?;
        let result = moves(from, to)?;
        let after = self.cpu()?;
        *at = 1 - *at;
        let line = migrate::runs_only_in(self.topology, to)?;
        let mib = f64::from(MIGRATED);
        if let Some(workload) = workload {
            workload.goes_on(vm, &line)?;
            let silence = workload.silence()? as f64 / 1000.0;
            part.add("migrate.silence", who, mib, silence, "s");
        }
        let gap = migrate::longest_gap(vm, console)? as f64 / 1000.0;
        part.add("migrate.gap", who, mib, gap, "s");
        // Whichever of the two is the source.
        let (source, destination) = if from == HOST_VMS[0] { (1, 2) } else { (2, 1) };
        for (name, i) in [
            ("host", 0),
            ("source", source),
            ("destination", destination),
        ] {
            let what = format!("migrate.cpu.{name}");
            part.add(&what, who, mib, after[i] - before[i], "s");
        }
        Ok(result)
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
