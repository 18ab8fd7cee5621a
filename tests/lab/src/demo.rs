// SPDX-License-Identifier: GPL-2.0-only

//! The demonstration: a guest VM's memory changes places between two nested
//! virtualization systems, is verified, goes back and is verified again.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use serde::Deserialize;
use serde::Serialize;

use crate::machine::Accelerator;
use crate::migrate;
use crate::migrate::Counts;
use crate::migrate::Migration;
use crate::outside::Outside;
use crate::paths;
use crate::progress::Progress;
use crate::stock;
use crate::stock::Transport;
use crate::superpages::Superpages;
use crate::topology;
use crate::topology::Topology;
use crate::topology::GUEST;
use crate::topology::SHORT;
use crate::workload;

const SWAP: Duration = Duration::from_secs(1800);
const NETWORK: Duration = Duration::from_secs(1800);

/// What the host hypervisor says of a page that something holds: a device model has it mapped, or a
/// backend.
const HELD: &str = "referenced";
/// Of so many pages of a host VM one may be held although its device model was asked to let go. A pair
/// has a page of each of the two, and the answer does not tell which of them it is, so there may be
/// twice as many pairs. Page tables and what only one of two guest VMs has are no pairs, and are not
/// counted.
const HELD_OF: u64 = 1000;
/// The same of the pairs of a guest VM that works: what its backends hold is their own affair. It was
/// 37 to 147 of 65,000 to 77,000.
const HELD_OF_BUSY: u64 = 200;

/// Pairs that stayed because of that.
struct Held {
    way: &'static str,
    pairs: u64,
    /// Those that were tried.
    all: u64,
    /// So many may.
    most: u64,
}

/// What `vmbeam swap --json` prints, as far as the demonstration uses it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct SwapResult {
    pages_listed: u64,
    pages_swapped: u64,
    pages_refused: BTreeMap<String, u64>,
    pages_verified: u64,
    unmoved_verified: u64,
    mismatches: u64,
    seconds: BTreeMap<String, f64>,
    wire_bytes: u64,
    #[serde(flatten)]
    counts: Counts,
}

/// `build/report/demo.json`.
#[derive(Debug, Serialize)]
pub struct Report {
    accelerator: &'static str,
    xen_version: String,
    kernel_release: String,
    guest_mib: u32,
    pages_listed: u64,
    pages_swapped: u64,
    pages_refused: BTreeMap<String, u64>,
    pages_verified: u64,
    mismatches: u64,
    outside_frames_checked: u64,
    outside_frames_changed: u64,
    m2p_entries_checked: u64,
    m2p_entries_unexpected: u64,
    /// Of A and B, before the memory went and after it came back.
    superpages_before: [Superpages; 2],
    superpages_after: [Superpages; 2],
    hypercalls: u64,
    tlb_flushes: u64,
    swap_seconds: f64,
    network_bytes: u64,
    network_seconds: f64,
    network_over_swap: f64,
    there: SwapResult,
    back: SwapResult,
    guest_check: String,
    /// With `make demo` only.
    #[serde(flatten)]
    migration: Option<MigrationFigures>,
    setup_seconds: f64,
    total_seconds: f64,
}

/// The figures of two migrations of the running guest VM, which uses its network and its
/// disk: by VMBeam, and by the toolstack alone.
#[derive(Debug, Serialize)]
struct MigrationFigures {
    migrate_total_seconds: f64,
    migrate_downtime_seconds: f64,
    migrate_bytes_on_wire: u64,
    migrate_pages_swapped: u64,
    migrate_pages_sent: u64,
    /// The longest gap between two beats of the guest VM's heart, as it saw it.
    migrate_guest_gap_seconds: f64,
    /// What the guest VM said at its destination.
    migrate_guest_check: String,
    migrate: Migration,
    stock_total_seconds: f64,
    stock_downtime_seconds: f64,
    stock_bytes_on_wire: u64,
    stock_guest_gap_seconds: f64,
    stock_guest_check: String,
    /// The longest silence of the guest VM's TCP connection, as its peer saw it.
    migrate_connection_gap_seconds: f64,
    stock_connection_gap_seconds: f64,
    /// What it found wrong with its memory, its connection or its disk, and what its peer
    /// found wrong with the connection, all the time.
    guest_errors: u64,
}

/// Run the demonstration on a topology whose guests are up. The virtual network of the
/// lab is slow: of the bytes, one in `network_part` is sent over it for comparison.
pub fn run(topology: &Topology, progress: &Progress, network_part: u64) -> Result<Report> {
    let setup_seconds = since_start();
    let host = &topology.machine.host;

    let stage = progress.stage("look at the frames outside the lists, before");
    let mut outside = Outside::before(topology)?;
    let superpages_before = Superpages::count(topology)?;
    stage.done();

    let stage = progress.stage("swap the guest VMs' memory and verify every page");
    let there = swap(topology)?;
    stage.done();
    let stage = progress.stage("verify that nothing outside the lists changed");
    outside.compare(topology)?;
    stage.done();

    let stage = progress.stage("swap back and verify again");
    let back = swap(topology)?;
    let superpages_after = Superpages::count(topology)?;
    topology
        .machine
        .a
        .sh(&format!("xl unpause {GUEST}"), SHORT)?;
    let guest_check = topology::wait_for_check(&topology.machine.a, SWAP)?;
    stage.done();

    let network_bytes = there.pages_swapped * 4096 / network_part;
    let stage = progress.stage(&format!(
        "send {} MiB over the virtual network, from A to B",
        network_bytes >> 20
    ));
    topology.machine.a.sh(&format!("xl pause {GUEST}"), SHORT)?;
    let network_seconds = network(topology, network_bytes)?;
    topology
        .machine
        .a
        .sh(&format!("xl unpause {GUEST}"), SHORT)?;
    stage.done();

    let swap_seconds = *there.seconds.get("commit").context("no seconds.commit")?;
    let xen_version = host.sh("xl info xen_version", SHORT)?.trim().to_owned();
    Ok(Report {
        accelerator: Accelerator::detect().name(),
        xen_version,
        kernel_release: topology::kernel_release()?,
        guest_mib: topology.sizes.guest_mib,
        pages_listed: there.pages_listed,
        pages_swapped: there.pages_swapped,
        pages_refused: there.pages_refused.clone(),
        pages_verified: there.pages_verified + back.pages_verified,
        mismatches: there.mismatches + back.mismatches,
        outside_frames_checked: outside.frames_checked,
        outside_frames_changed: outside.frames_changed,
        m2p_entries_checked: outside.m2p_checked,
        m2p_entries_unexpected: outside.m2p_unexpected,
        superpages_before,
        superpages_after,
        hypercalls: there.counts.hypercalls,
        tlb_flushes: there.counts.tlb_flushes,
        swap_seconds,
        network_bytes,
        network_seconds,
        network_over_swap: network_seconds * network_part as f64 / swap_seconds,
        there,
        back,
        guest_check,
        migration: None,
        setup_seconds,
        total_seconds: since_start(),
    })
}

/// Then the running guest VM itself migrates from A to B, while it uses a network and a
/// disk, and goes back by what the toolstack has of its own.
pub fn migrate(topology: &Topology, progress: &Progress, report: &mut Report) -> Result<()> {
    let (a, b) = (&topology.machine.a, &topology.machine.b);
    let stage = progress.stage("give the guest VM a network and a disk");
    migrate::make_room(topology)?;
    let mut workload = workload::attach(topology)?;
    stage.done();

    let stage = progress.stage("migrate the running guest VM from A to B");
    let before = migrate::console_lines(b)?;
    let migration = migrate::migrate(topology, "A", "B", "")?;
    migration.check_pause()?;
    let check = migrate::runs_only_in(topology, "B")?;
    workload.goes_on(b, &check)?;
    let gap_ms = migrate::longest_gap(b, before)?;
    let silence_ms = workload.silence()?;
    stage.done();

    let stage =
        progress.stage("the same from B to A by xl save and xl restore, over the virtual network");
    let before = migrate::console_lines(a)?;
    let stock = stock::migrate(topology, "B", "A", Transport::Tcp)?;
    let stock_check = migrate::runs_only_in(topology, "A")?;
    workload.goes_on(a, &stock_check)?;
    let stock_gap_ms = migrate::longest_gap(a, before)?;
    let stock_silence_ms = workload.silence()?;
    stage.done();

    let seconds = |ms: u64| ms as f64 / 1000.0;
    report.migration = Some(MigrationFigures {
        migrate_total_seconds: migration.seconds("total")?,
        migrate_downtime_seconds: migration.seconds("downtime")?,
        migrate_bytes_on_wire: migration.wire_bytes,
        migrate_pages_swapped: migration.pages_swapped,
        migrate_pages_sent: migration.pages_sent,
        migrate_guest_gap_seconds: seconds(gap_ms),
        migrate_guest_check: check,
        migrate: migration,
        stock_total_seconds: stock.total_seconds,
        stock_downtime_seconds: stock.downtime_seconds,
        stock_bytes_on_wire: stock.bytes_on_wire,
        stock_guest_gap_seconds: seconds(stock_gap_ms),
        stock_guest_check: stock_check,
        migrate_connection_gap_seconds: seconds(silence_ms),
        stock_connection_gap_seconds: seconds(stock_silence_ms),
        guest_errors: workload.errors()?,
    });
    report.total_seconds = since_start();
    Ok(())
}

fn swap(topology: &Topology) -> Result<SwapResult> {
    let text = topology.machine.host.sh(
        &format!(
            "vmbeam swap --from A/{GUEST} --to B/{GUEST} --verify --json 2>/run/lab/swap.err || \
             {{ code=$?; cat /run/lab/swap.err; exit $code; }}"
        ),
        SWAP,
    )?;
    serde_json::from_str(&text).with_context(|| format!("vmbeam swap printed: {text}"))
}

/// Seconds that so many bytes take over the virtual network, from A to B.
pub fn network(topology: &Topology, bytes: u64) -> Result<f64> {
    let (a, b) = (&topology.machine.a, &topology.machine.b);
    // The receiver says when it listens; only then does the sender start.
    b.sh(
        "labtool net-recv 10.77.0.2:5001 >/run/net-recv.log 2>&1 & \
         until grep -q LISTENING /run/net-recv.log; do usleep 20000; done",
        SHORT,
    )?;
    let text = a.sh(&format!("labtool net-send 10.77.0.2:5001 {bytes}"), NETWORK)?;
    let line = text.lines().last().unwrap_or_default();
    let value: serde_json::Value =
        serde_json::from_str(line).with_context(|| format!("labtool net-send printed: {text}"))?;
    value["seconds"]
        .as_f64()
        .context("labtool net-send printed no seconds")
}

/// Seconds since `make` began; since the start of this process if that is unknown.
fn since_start() -> f64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |d| d.as_secs_f64());
    let begun = std::env::var("VMBEAM_STARTED")
        .ok()
        .and_then(|t| t.parse::<f64>().ok());
    begun.map_or_else(
        || process_start().elapsed().as_secs_f64(),
        |begun| now - begun,
    )
}

/// When this process started, if this is called first thing.
pub fn process_start() -> Instant {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *START.get_or_init(Instant::now)
}

impl Report {
    /// Write `build/report/demo.json`.
    pub fn write(&self) -> Result<()> {
        fs::create_dir_all(paths::reports())?;
        let path = paths::reports().join("demo.json");
        fs::write(&path, serde_json::to_string_pretty(self)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Pairs that the host hypervisor did not swap: on the way there, back, and in the migration
    /// (copied then), with the pages that there were.
    fn held(&self) -> Vec<Held> {
        let of = |s: &SwapResult| s.pages_refused.get(HELD).copied().unwrap_or(0);
        let swap = |way, swap: &SwapResult| Held {
            way,
            pairs: of(swap),
            all: of(swap) + swap.pages_swapped,
            most: 2 * (of(swap) + swap.pages_swapped) / HELD_OF,
        };
        let migration = self.migration.as_ref().map(|m| {
            let all = m.migrate.pages_copied + m.migrate_pages_swapped;
            Held {
                way: "in the migration",
                pairs: m.migrate.pages_copied,
                all,
                most: all / HELD_OF_BUSY,
            }
        });
        let swaps = [swap("A to B", &self.there), swap("B to A", &self.back)];
        swaps.into_iter().chain(migration).collect()
    }

    /// An error unless everything verified.
    pub fn verdict(&self) -> Result<()> {
        ensure!(self.pages_swapped > 0, "no page was swapped");
        for Held {
            way,
            pairs,
            all,
            most,
        } in self.held()
        {
            ensure!(
                pairs <= most,
                "{way}: {pairs} of {all} pairs were held, at most {most}"
            );
        }
        ensure!(
            self.mismatches == 0,
            "{} pages have the wrong contents",
            self.mismatches
        );
        ensure!(
            self.pages_verified == self.pages_swapped + self.back.pages_swapped,
            "{} of {} moved pages were verified on both sides",
            self.pages_verified,
            self.pages_swapped + self.back.pages_swapped
        );
        ensure!(
            self.pages_swapped == self.back.pages_swapped,
            "{} pages went and {} came back",
            self.pages_swapped,
            self.back.pages_swapped
        );
        ensure!(
            self.outside_frames_checked > 0 && self.outside_frames_changed == 0,
            "{} of {} frames outside the lists changed",
            self.outside_frames_changed,
            self.outside_frames_checked
        );
        ensure!(
            self.m2p_entries_unexpected == 0,
            "{} M2P entries changed that should not have",
            self.m2p_entries_unexpected
        );
        let swaps = [&self.there.counts, &self.back.counts];
        let splits = swaps.iter().map(|c| c.splits).sum();
        let merges = swaps.iter().map(|c| c.merges).sum();
        let (before, after) = (&self.superpages_before, &self.superpages_after);
        ensure!(
            before.iter().all(|s| s.of_2m + s.of_1g > 0)
                && Superpages::become_by(before, after, splits, merges),
            "the hypervisor counted {splits} splits and {merges} merges, but superpages were \
             {before:?} and are {after:?}"
        );
        if !self.guest_check.contains(" ok ") {
            bail!("the guest VM's own check: {}", self.guest_check);
        }
        let errors = self.migration.as_ref().map_or(0, |m| m.guest_errors);
        ensure!(errors == 0, "the guest VM found {errors} errors");
        Ok(())
    }

    /// Print the table.
    pub fn print(&self) {
        let row = |name: &str, value: String| println!("  {name:<44} {value:>24}");
        println!();
        println!(
            "Guest VM of {} MiB, A to B and back ({})",
            self.guest_mib, self.accelerator
        );
        println!();
        row("pages listed by both agents", self.pages_listed.to_string());
        row("pages moved", self.pages_swapped.to_string());
        for (reason, count) in &self.pages_refused {
            row(&format!("pages not moved: {reason}"), count.to_string());
        }
        for held in self.held() {
            row(
                &format!("pairs that something held, {}", held.way),
                format!("{} of {}, at most {}", held.pairs, held.all, held.most),
            );
        }
        row(
            "pages verified, there and back",
            self.pages_verified.to_string(),
        );
        row("pages with wrong contents", self.mismatches.to_string());
        row(
            "frames outside the lists compared",
            self.outside_frames_checked.to_string(),
        );
        row("  of them changed", self.outside_frames_changed.to_string());
        row(
            "M2P entries of the host compared",
            self.m2p_entries_checked.to_string(),
        );
        row(
            "  of them changed without reason",
            self.m2p_entries_unexpected.to_string(),
        );
        let of_2m = |s: &[Superpages; 2]| s[0].of_2m + s[1].of_2m;
        row(
            "superpages of both host VMs, before and after",
            format!(
                "{}, {}",
                of_2m(&self.superpages_before),
                of_2m(&self.superpages_after)
            ),
        );
        row("hypercalls", self.hypercalls.to_string());
        row("rounds of TLB flushes", self.tlb_flushes.to_string());
        row(
            "swap (all COMMIT ioctls)",
            format!("{:.3} s", self.swap_seconds),
        );
        row(
            &format!("virtual network, {} MiB", self.network_bytes >> 20),
            format!("{:.3} s", self.network_seconds),
        );
        row(
            "network over swap, for the same bytes",
            format!("{:.1} x", self.network_over_swap),
        );
        row("guest VM's own check afterwards", self.guest_check.clone());
        if let Some(m) = &self.migration {
            println!();
            println!(
                "  {:<44} {:>12} {:>11}",
                "The guest VM, running, with network and disk", "vmbeam", "stock"
            );
            let both = |name: &str, vmbeam: f64, stock: f64| {
                println!("  {name:<44} {vmbeam:>10.3} s {stock:>9.3} s");
            };
            both("total", m.migrate_total_seconds, m.stock_total_seconds);
            both(
                "stood still",
                m.migrate_downtime_seconds,
                m.stock_downtime_seconds,
            );
            both(
                "longest gap that it saw itself",
                m.migrate_guest_gap_seconds,
                m.stock_guest_gap_seconds,
            );
            both(
                "longest silence of its connection",
                m.migrate_connection_gap_seconds,
                m.stock_connection_gap_seconds,
            );
            println!(
                "  {:<44} {:>12} {:>11}",
                "bytes on the wire", m.migrate_bytes_on_wire, m.stock_bytes_on_wire
            );
            println!();
            let downtime = m.migrate_downtime_seconds;
            for (part, seconds) in &m.migrate.pause {
                // One bar of 40 in all.
                let bar = "#".repeat((seconds / downtime * 40.0).round() as usize);
                row(
                    &format!("stood still: {part}  {bar}"),
                    format!("{seconds:.3} s"),
                );
            }
            row(
                "pages swapped and sent",
                format!("{} and {}", m.migrate_pages_swapped, m.migrate_pages_sent),
            );
            row("guest VM's own check in B", m.migrate_guest_check.clone());
            row("  and in A again", m.stock_guest_check.clone());
            row("errors that it found", m.guest_errors.to_string());
        }
        row("set-up", format!("{:.0} s", self.setup_seconds));
        row("total", format!("{:.0} s", self.total_seconds));
        println!();
    }
}
