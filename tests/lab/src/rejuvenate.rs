// SPDX-License-Identifier: GPL-2.0-only

//! The maintenance job: the guest hypervisor of host VM A is replaced by a newer one
//! under three running guest VMs, by `vmbeam rejuvenate`.

use std::time::Instant;

use anyhow::ensure;
use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use crate::busy;
use crate::busy::beats;
use crate::busy::upkeep;
use crate::busy::Beat;
use crate::busy::GUESTS;
use crate::busy::GUEST_MIB;
use crate::busy::START;
use crate::channel::Channel;
use crate::images;
use crate::machine::Accelerator;
use crate::migrate;
use crate::monitor;
use crate::product;
use crate::progress::Progress;
use crate::tally::Tally;
use crate::topology;
use crate::topology::System;
use crate::topology::Topology;
use crate::topology::SHORT;
use crate::upkeep;

/// The group.
pub const NAME: &str = "rejuvenate";
/// Configuration of host VM A after the job, in the host management VM.
const NEXT: &str = "/etc/xen/A-next.cfg";

/// One guest VM in the report.
#[derive(Debug, Serialize)]
struct Guest {
    name: &'static str,
    /// Before the job, in A.
    before: Beat,
    /// After it, in A again.
    after: Beat,
    same_boot: bool,
    /// The longest time between two beats of its heart, as it saw it.
    longest_gap_seconds: f64,
    /// The same in each host VM that it came to; the gap of a migration is seen after it.
    gap_in_b_seconds: f64,
    gap_in_a_again_seconds: f64,
    /// Whether each of its checks, in all host VMs, found its memory intact.
    memory_intact: bool,
    checks_seen: usize,
}

/// `build/report/rejuvenate.json`.
#[derive(Debug, Serialize)]
pub struct Report {
    accelerator: &'static str,
    kernel_release: String,
    xen_before: String,
    xen_after: String,
    guest_mib: u32,
    guests: Vec<Guest>,
    rejuvenate_seconds: f64,
    /// The report of `vmbeam rejuvenate`.
    job: Value,
    guests_in_a: usize,
    guests_in_b: usize,
}

pub(crate) fn version(vm: &Channel) -> Result<String> {
    Ok(vm.sh("xl info xen_version", SHORT)?.trim().to_owned())
}

fn guest(name: &'static str, before: Beat, after: Beat) -> Result<Guest> {
    let longest = |beats: &[Beat]| beats.iter().map(|b| b.gap_ms).max().unwrap_or(0) as f64 / 1e3;
    let (in_a, bad_a) = beats(name, "A")?;
    let (in_b, bad_b) = beats(name, "B")?;
    let (again, bad_again) = beats(name, "A-again")?;
    Ok(Guest {
        name,
        same_boot: before.boot == after.boot
            && in_a
                .iter()
                .chain(&in_b)
                .chain(&again)
                .all(|b| b.boot == before.boot),
        longest_gap_seconds: after.longest_ms as f64 / 1e3,
        gap_in_b_seconds: longest(&in_b),
        gap_in_a_again_seconds: longest(&again),
        memory_intact: !(bad_a || bad_b || bad_again),
        checks_seen: in_a.len() + in_b.len() + again.len(),
        before,
        after,
    })
}

impl Guest {
    fn never_started_again(&self) -> Result<()> {
        ensure!(self.same_boot, "{} was started again", self.name);
        ensure!(
            self.after.round > self.before.round,
            "{} counts {} after {}",
            self.name,
            self.after.round,
            self.before.round
        );
        // A heart that beats in B has at least the gap of one beat.
        ensure!(
            self.gap_in_b_seconds > 0.0 && self.gap_in_a_again_seconds > 0.0,
            "{} did not run in B and in A again",
            self.name
        );
        Ok(())
    }

    fn intact(&self) -> Result<()> {
        ensure!(self.memory_intact, "{}'s memory was wrong", self.name);
        Ok(())
    }
}

impl upkeep::Report for Report {
    const NAME: &str = NAME;

    /// Bring it up: the old guest hypervisor in A, the current one in B.
    fn boot(progress: &Progress) -> Result<Topology> {
        let topology = upkeep::boot_host(progress)?;
        topology.start_host_vms_with([System::Old, System::Current], progress)?;
        product::wait_for_agents(&topology)?;
        Ok(topology)
    }

    fn start_guests(topology: &Topology, progress: &Progress) -> Result<()> {
        busy::start(topology, progress)?;
        // It has no console of them yet.
        GUESTS
            .into_iter()
            .try_for_each(|name| busy::follow(&topology.machine.b, name, "B"))
    }

    fn alone(tally: &mut Tally, topology: &Topology) {
        monitor::run(tally, topology, NAME);
    }

    fn run(topology: &Topology, progress: &Progress) -> Result<Self> {
        let (a, b) = (&topology.machine.a, &topology.machine.b);
        let xen_before = version(a)?;
        let before = busy::now(a)?;
        topology.machine.host.sh(
            &format!(
                "cat >{NEXT} <<'EOF'\n{}\nEOF\n",
                topology.host_vm_config("A", System::Current)
            ),
            SHORT,
        )?;

        let stage = progress.stage("replace the guest hypervisor of A: vmbeam rejuvenate");
        let start = Instant::now();
        let job = upkeep(topology, &format!("rejuvenate A --to B --config {NEXT}"))?;
        let rejuvenate_seconds = start.elapsed().as_secs_f64();
        stage.done();

        let stage = progress.stage("look at the guest VMs");
        topology::wait_ready(a, START, "host VM A", &["host-vm-A.log", "host.log"])?;
        for name in GUESTS {
            busy::follow(a, name, "A-again")?;
        }
        let after = busy::now(a)?;
        let guests = GUESTS
            .into_iter()
            .zip(before.into_iter().zip(after))
            .map(|(name, (before, after))| guest(name, before, after))
            .collect::<Result<Vec<_>>>()?;
        let guests_in_a = migrate::guests(a)?
            .iter()
            .filter(|(name, state)| GUESTS.contains(&name.as_str()) && !state.contains('p'))
            .count();
        let report = Report {
            accelerator: Accelerator::detect().name(),
            kernel_release: topology::kernel_release()?,
            xen_before,
            xen_after: version(a)?,
            guest_mib: GUEST_MIB,
            guests,
            rejuvenate_seconds,
            job,
            guests_in_a,
            guests_in_b: migrate::guests(b)?.len(),
        };
        stage.done();
        Ok(report)
    }

    fn findings(&self) -> Vec<(&'static str, Result<()>)> {
        vec![
            (
                "the guest hypervisor is a newer one",
                self.another_hypervisor(),
            ),
            (
                "all guest VMs run in A again, and only there",
                self.in_one_place(),
            ),
            (
                "each went to B, and none was started again",
                self.guests.iter().try_for_each(Guest::never_started_again),
            ),
            (
                "each found its memory intact all the time",
                self.guests.iter().try_for_each(Guest::intact),
            ),
        ]
    }

    fn print(&self) {
        let row = |name: &str, value: String| println!("  {name:<44} {value:>24}");
        println!();
        println!(
            "Guest hypervisor of A replaced under {} running guest VMs of {} MiB ({})",
            self.guests.len(),
            self.guest_mib,
            self.accelerator
        );
        println!();
        row(
            "guest hypervisor of A",
            format!("Xen {} -> {}", self.xen_before, self.xen_after),
        );
        row("guest VMs in A again", self.guests_in_a.to_string());
        for guest in &self.guests {
            row(
                &format!("{}: checks of its memory, all ok", guest.name),
                format!("{} -> {}", guest.before.round, guest.after.round),
            );
            row(
                "  longest gap that it saw in B, in A again",
                format!(
                    "{:.1} s, {:.1} s",
                    guest.gap_in_b_seconds, guest.gap_in_a_again_seconds
                ),
            );
        }
        row(
            "vmbeam rejuvenate",
            format!("{:.0} s", self.rejuvenate_seconds),
        );
        for (step, title) in [
            ("evacuate", "  guest VMs to B"),
            ("shutdown", "  shut down A"),
            ("create", "  create A"),
            ("boot", "  until A's agent answers"),
            ("return", "  guest VMs back to A"),
        ] {
            let seconds = self.job["seconds"][step].as_f64().unwrap_or(f64::NAN);
            row(title, format!("{seconds:.0} s"));
        }
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
        let done = &self.job["step"];
        ensure!(done == "done", "vmbeam rejuvenate ended in step {done}");
        Ok(())
    }

    fn in_one_place(&self) -> Result<()> {
        ensure!(
            self.guests_in_a == GUESTS.len() && self.guests_in_b == 0,
            "{} guest VMs run in A, {} are in B",
            self.guests_in_a,
            self.guests_in_b
        );
        Ok(())
    }
}
