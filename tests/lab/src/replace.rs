// SPDX-License-Identifier: GPL-2.0-only

//! Host VM A is replaced by another one, with a newer guest hypervisor, under three running guest
//! VMs, by `vmbeam replace`; and then restarted by `vmbeam rejuvenate`, for comparison.

use std::time::Duration;
use std::time::Instant;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use crate::busy;
use crate::busy::Beat;
use crate::busy::GUESTS;
use crate::busy::GUEST_MIB;
use crate::busy::START;
use crate::channel::Channel;
use crate::images;
use crate::machine::Accelerator;
use crate::migrate;
use crate::pages::Pages;
use crate::product;
use crate::progress::Progress;
use crate::rejuvenate::version;
use crate::topology;
use crate::topology::Place;
use crate::topology::System;
use crate::topology::Topology;
use crate::topology::SHORT;
use crate::upkeep;

/// What the new host VM starts with in MiB, if it is to have the rest from the old one. None: all
/// that it can have, and guest VMs move by swaps.
const SMALL_MIB: Option<u32> = Some(672);

/// Pages that the host hypervisor needs more, or fewer, for a host VM of another release.
const OTHER_RELEASE: u64 = 8;

/// What is taken of the host beyond what the new host VM starts with, its management VM and its
/// guest hypervisor, at most: tables of the host hypervisor, and reserves.
const PEAK_BEYOND_MIB: u64 = 32;

/// Configuration of host VM A after both jobs, in the host management VM.
const NEW: &str = "/etc/xen/A-new.cfg";

/// Where the new host VM is: on the CPU of B, which is not there meanwhile.
const BESIDE: Place = Place {
    called: "A.new",
    number: 3,
    cpu: 2,
};

/// One guest VM in the report.
#[derive(Debug, Serialize)]
struct Guest {
    name: &'static str,
    before: Beat,
    replaced: Beat,
    rejuvenated: Beat,
    /// The longest time between two beats of its heart that it saw in each job.
    replace_gap_seconds: f64,
    rejuvenate_gap_seconds: [f64; 2],
    /// Lines of its console that tell of wrong memory or of another boot.
    errors: usize,
}

/// `build/report/replace.json`.
#[derive(Debug, Serialize)]
pub struct Report {
    accelerator: &'static str,
    kernel_release: String,
    xen_before: String,
    xen_after: String,
    new_host_vm_starts_with_mib: Option<u32>,
    replace_seconds: f64,
    rejuvenate_seconds: f64,
    /// Beyond what was in use before, while it was replaced: what `vmbeam replace` saw, and what was
    /// seen from outside.
    peak_extra_mib: u64,
    peak_seen_mib: u64,
    /// Pages that went over to the new host VM without one in return.
    pages_relocated: u64,
    /// What the host VM has while nothing is done.
    steady_mib: u64,
    guests_mib: u32,
    guest_errors: usize,
    guests: Vec<Guest>,
    /// With the old host VM, with the new one, and with the same made by `xl create` alone.
    pages: [Pages; 3],
    /// When both were there.
    pages_meanwhile: Vec<String>,
    replace: Value,
    rejuvenate: Value,
    guests_in_a: usize,
}

fn wait_for_agent(topology: &Topology, name: &str) -> Result<()> {
    let host = &topology.machine.host;
    host.sh(
        &format!("until vmbeam check | grep -q '^ok .*toolstack of host VM {name}:'; do usleep 500000; done"),
        START,
    )?;
    Ok(())
}

/// Until whoever is behind the lab's port of a host VM does what is asked: it may be another one
/// than before.
fn reach(vm: &Channel) -> Result<()> {
    let deadline = Instant::now() + START;
    loop {
        match vm.run("true", Duration::from_secs(5)) {
            Ok(_) => return Ok(()),
            Err(e) if Instant::now() >= deadline => return Err(e),
            Err(_) => {}
        }
    }
}

/// Look at the memory every few seconds while this runs.
fn watched<T>(topology: &Topology, run: impl FnOnce() -> Result<T>) -> Result<(T, Vec<String>)> {
    let host = &topology.machine.host;
    let log = "/run/lab/pages";
    host.sh(
        &format!(
            "touch {log}.on; : >{log}; setsid sh -c 'while [ -e {log}.on ]; do \
             echo $(labtool pages) $(xl info free_memory) >>{log}; sleep 4; done' \
             </dev/null >/dev/null 2>&1 &"
        ),
        SHORT,
    )?;
    let result = run();
    let text = host.sh(&format!("rm {log}.on; uniq {log}"), SHORT)?;
    Ok((result?, text.lines().map(str::to_owned).collect()))
}

/// The most that was taken since the first look, in MiB. The free memory is the last word of a line.
fn peak(looks: &[String]) -> Result<u64> {
    let free = looks
        .iter()
        .map(|line| line.split(' ').next_back().unwrap_or_default().parse())
        .collect::<Result<Vec<u64>, _>>()
        .with_context(|| format!("no free memory in {looks:?}"))?;
    let (first, least) = (free.first(), free.iter().min());
    let (first, least) = first.zip(least).context("nobody looked")?;
    Ok(first - least)
}

/// What the report of a job says of all its guests' moves.
fn relocated(replace: &Value) -> Result<u64> {
    let moved = replace["moved"].as_array().context("no guests")?;
    moved
        .iter()
        .map(|guest| guest["migration"]["relocated"].as_u64())
        .sum::<Option<u64>>()
        .with_context(|| format!("a guest VM's move is not told: {moved:?}"))
}

fn guest(name: &'static str, before: Beat, after: (Beat, Beat)) -> Result<Guest> {
    let (replaced, rejuvenated) = after;
    let mut errors = 0;
    let mut gaps = [0.0; 3];
    let logs = ["A", "A-new", "B", "A-again"];
    for (at, place) in logs.into_iter().enumerate() {
        let (beats, bad) = busy::beats(name, place)?;
        errors += usize::from(bad) + beats.iter().filter(|b| b.boot != before.boot).count();
        if at > 0 {
            let longest = beats.iter().map(|b| b.gap_ms).max().unwrap_or(0);
            gaps[at - 1] = longest as f64 / 1e3;
        }
    }
    let [replace_gap_seconds, there, back] = gaps;
    Ok(Guest {
        name,
        before,
        replaced,
        rejuvenated,
        replace_gap_seconds,
        rejuvenate_gap_seconds: [there, back],
        errors,
    })
}

impl Guest {
    /// It ran in each place, and went on with what it did.
    fn went_on(&self) -> Result<()> {
        let rounds = [&self.before, &self.replaced, &self.rejuvenated].map(|b| b.round);
        ensure!(
            rounds.is_sorted_by(|a, b| a < b),
            "{} counts {rounds:?}",
            self.name
        );
        let [there, back] = self.rejuvenate_gap_seconds;
        ensure!(
            [self.replace_gap_seconds, there, back]
                .iter()
                .all(|g| *g > 0.0),
            "{} did not run in each place",
            self.name
        );
        Ok(())
    }
}

impl upkeep::Report for Report {
    const NAME: &str = "replace";

    /// Bring it up: the old guest hypervisor in A with three guest VMs, and no B.
    fn boot(progress: &Progress) -> Result<Topology> {
        let topology = upkeep::boot_host(progress)?;
        product::stop_daemon(&topology)?;
        topology.machine.host.sh(
            "sed -i '/^name = \"A\"/a replaceable = true' /etc/vmbeam/vmbeamd.toml",
            SHORT,
        )?;
        product::start_daemon(&topology)?;
        let stage = progress.stage("start host VM A: Debian 12's Xen and Debian's kernel");
        topology.create_host_vm_at("A", System::Old, Place::of("A"))?;
        topology.wait_for_host_vm("A")?;
        wait_for_agent(&topology, "A")?;
        stage.done();
        Ok(topology)
    }

    fn run(topology: &Topology, progress: &Progress) -> Result<Self> {
        let (host, a) = (&topology.machine.host, &topology.machine.a);
        let xen_before = version(a)?;
        let config = topology.host_vm_config_at("A", System::Current, BESIDE);
        host.sh(
            &format!("cat >{NEW} <<'EOF'\n{config}\nEOF\n{}", BESIDE.devices()),
            SHORT,
        )?;
        let before = busy::now(a)?;
        let pages_before = Pages::look(topology)?;

        let stage = progress.stage("replace host VM A: vmbeam replace");
        let start = Instant::now();
        let small = SMALL_MIB.map(|mib| format!("--start-with {mib}"));
        let command = format!("replace A --config {NEW} {}", small.unwrap_or_default());
        let (replace, pages_meanwhile) = watched(topology, || busy::upkeep(topology, &command))?;
        let replace_seconds = start.elapsed().as_secs_f64();
        stage.done();
        let pages_after = Pages::look(topology)?;

        let stage = progress.stage("look at the guest VMs");
        host.sh("ln -sfn A.new.sock /run/lab/A.sock", SHORT)?;
        reach(a)?;
        for name in GUESTS {
            busy::follow(a, name, "A-new")?;
        }
        let replaced = busy::now(a)?;
        let xen_after = version(a)?;
        stage.done();

        let stage = progress.stage("start host VM B, for comparison");
        let b = Place {
            cpu: Place::of("A").cpu,
            ..Place::of("B")
        };
        topology.create_host_vm_at("B", System::Current, b)?;
        topology.wait_for_host_vm("B")?;
        wait_for_agent(topology, "B")?;
        for name in GUESTS {
            busy::follow(&topology.machine.b, name, "B")?;
        }
        stage.done();
        let stage = progress.stage("restart host VM A: vmbeam rejuvenate");
        let start = Instant::now();
        let arguments = format!("rejuvenate A --to B --config {NEW}");
        let rejuvenate = busy::upkeep(topology, &arguments)?;
        let rejuvenate_seconds = start.elapsed().as_secs_f64();
        stage.done();

        let stage = progress.stage("look at the guest VMs");
        reach(a)?;
        for name in GUESTS {
            busy::follow(a, name, "A-again")?;
        }
        let rejuvenated = busy::now(a)?;
        let guests = GUESTS
            .into_iter()
            .zip(before)
            .zip(replaced.into_iter().zip(rejuvenated))
            .map(|((name, before), after)| guest(name, before, after))
            .collect::<Result<Vec<_>>>()?;
        topology.machine.host.sh("xl destroy B", SHORT)?;
        let pages_again = Pages::look(topology)?;
        let guests_in_a = migrate::guests(a)?
            .iter()
            .filter(|(name, state)| GUESTS.contains(&name.as_str()) && !state.contains('p'))
            .count();
        stage.done();
        let steady = pages_before.of_host_vms();
        Ok(Self {
            accelerator: Accelerator::detect().name(),
            kernel_release: topology::kernel_release()?,
            xen_before,
            xen_after,
            new_host_vm_starts_with_mib: SMALL_MIB,
            replace_seconds,
            rejuvenate_seconds,
            peak_extra_mib: replace["peak_extra_mib"].as_u64().context("a peak")?,
            peak_seen_mib: peak(&pages_meanwhile)?,
            pages_relocated: relocated(&replace)?,
            steady_mib: steady / 256,
            guests_mib: GUEST_MIB * GUESTS.len() as u32,
            guest_errors: guests.iter().map(|g| g.errors).sum(),
            guests,
            pages: [pages_before, pages_after, pages_again],
            pages_meanwhile,
            replace,
            rejuvenate,
            guests_in_a,
        })
    }

    fn findings(&self) -> Vec<(&'static str, Result<()>)> {
        vec![
            (
                "the host VM that has the name has a newer guest hypervisor",
                self.another_hypervisor(),
            ),
            (
                "all guest VMs run in it, went on, and found their memory intact",
                self.guests_are_well(),
            ),
            (
                "as much of the host's memory is free as with `xl create`, to the page",
                self.memory_is_back(),
            ),
            (
                "memory of the guest VMs went over, and the host needed none for it",
                self.is_small(),
            ),
            ("pages were relocated", self.relocates()),
            ("a replacement is shorter than a restart", self.is_shorter()),
        ]
    }

    fn print(&self) {
        let row = |name: &str, value: String| println!("  {name:<44} {value:>24}");
        println!();
        println!(
            "Host VM A replaced under {} running guest VMs of {GUEST_MIB} MiB ({})",
            self.guests.len(),
            self.accelerator
        );
        println!();
        row(
            "guest hypervisor of A",
            format!("Xen {} -> {}", self.xen_before, self.xen_after),
        );
        row(
            "vmbeam replace, vmbeam rejuvenate",
            format!(
                "{:.0} s, {:.0} s",
                self.replace_seconds, self.rejuvenate_seconds
            ),
        );
        row(
            "  host's memory besides, at most",
            format!("{} MiB", self.peak_extra_mib),
        );
        row(
            "    as seen from outside",
            format!("{} MiB", self.peak_seen_mib),
        );
        row("  pages relocated", self.pages_relocated.to_string());
        row("  memory of A", format!("{} MiB", self.steady_mib));
        row(
            "  memory of the guest VMs",
            format!("{} MiB", self.guests_mib),
        );
        let [before, after, again] = &self.pages;
        row(
            "  free pages of the host, before and after",
            format!("{}, {}", before.free, after.free),
        );
        row("    with a host VM of `xl create`", again.free.to_string());
        for guest in &self.guests {
            let [there, back] = guest.rejuvenate_gap_seconds;
            row(
                &format!("{}: longest gaps that it saw", guest.name),
                format!(
                    "{:.1} s; {there:.1}, {back:.1} s",
                    guest.replace_gap_seconds
                ),
            );
        }
        row("errors of guest VMs", self.guest_errors.to_string());
        println!();
    }
}

impl Report {
    fn another_hypervisor(&self) -> Result<()> {
        ensure!(
            self.xen_before.starts_with(images::OLD_XEN) && self.xen_after.starts_with("4.20"),
            "A had Xen {} and has {}",
            self.xen_before,
            self.xen_after
        );
        Ok(())
    }

    fn guests_are_well(&self) -> Result<()> {
        ensure!(self.guest_errors == 0, "{} errors", self.guest_errors);
        ensure!(
            self.guests_in_a == GUESTS.len(),
            "{} guest VMs run in A",
            self.guests_in_a
        );
        self.guests.iter().try_for_each(Guest::went_on)
    }

    fn memory_is_back(&self) -> Result<()> {
        let [before, after, again] = &self.pages;
        // Of the old one, which is of another release, the hypervisor may keep another number
        // of pages for itself.
        ensure!(
            after.domains.len() == 2
                && again.domains.len() == 2
                && after.free == again.free
                && after.of_host_vms() == again.of_host_vms()
                && before.all().abs_diff(after.all()) <= OTHER_RELEASE,
            "before {before:?}, after {after:?}, by xl {again:?}"
        );
        Ok(())
    }

    fn is_small(&self) -> Result<()> {
        let Some(starts_with) = SMALL_MIB else {
            return Ok(());
        };
        let most = u64::from(starts_with) + PEAK_BEYOND_MIB;
        println!(
            "    {} MiB more were in use, {} by its own count; at most {most}",
            self.peak_seen_mib, self.peak_extra_mib
        );
        ensure!(
            self.peak_seen_mib.max(self.peak_extra_mib) <= most,
            "{} MiB: {:?}",
            self.peak_seen_mib,
            self.pages_meanwhile
        );
        Ok(())
    }

    fn relocates(&self) -> Result<()> {
        ensure!(
            SMALL_MIB.is_none() || self.pages_relocated > 0,
            "no page was: {}",
            self.replace["moved"]
        );
        Ok(())
    }

    fn is_shorter(&self) -> Result<()> {
        println!(
            "    {:.0} s against {:.0} s: {:.0} %",
            self.replace_seconds,
            self.rejuvenate_seconds,
            self.replace_seconds / self.rejuvenate_seconds * 100.0
        );
        ensure!(
            self.replace_seconds < self.rejuvenate_seconds,
            "{:.0} s against {:.0} s",
            self.replace_seconds,
            self.rejuvenate_seconds
        );
        Ok(())
    }
}
