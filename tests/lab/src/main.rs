// SPDX-License-Identifier: GPL-2.0-only

//! VMBeam's lab: the whole nested topology on one machine, and what runs in it.

mod bench;
mod bochs;
mod busy;
mod channel;
mod check;
mod coverage;
mod crossed;
mod definitions;
mod demo;
mod driver;
mod driver_mutants;
mod ept;
mod evacuate;
mod faults;
mod images;
mod installed;
mod lies;
mod load;
mod machine;
mod migrate;
mod migrations;
mod mock;
mod monitor;
mod moves;
mod open;
mod outside;
mod packaged;
mod pages;
mod paging;
mod paths;
mod product;
mod programs;
mod progress;
mod races;
mod rejuvenate;
mod relocate;
mod replace;
mod soak;
mod stock;
mod superpages;
mod tally;
mod toolstack;
mod topology;
mod tracing;
mod unprivileged;
mod upkeep;
mod workload;

use std::process::ExitCode;

use anyhow::Context;
use anyhow::Result;
use clap::Parser;

use crate::progress::Progress;
use crate::topology::Sizes;
use crate::topology::Topology;

#[derive(Parser)]
#[command(
    about = "Boot and drive VMBeam's nested lab",
    disable_help_subcommand = true
)]
enum Lab {
    /// Build the images of the lab's machines.
    Images,
    /// Swap a guest VM's memory between two nested systems, verify it, time it.
    Demo,
    /// Replace the guest hypervisor under three running guest VMs.
    Rejuvenate,
    /// Replace a host VM, and its guest hypervisor, under three running guest VMs.
    Replace,
    /// Measure swaps, the virtual network and migrations for the report.
    Bench(bench::Times),
    /// Run every test.
    Check {
        /// The long forms of those that have one.
        #[arg(long)]
        long: bool,
        /// Only these groups.
        groups: Vec<check::Group>,
    },
    /// Load a build of the driver in a plain VM and on the patched Xen, and try it.
    Load {
        /// The module.
        module: std::path::PathBuf,
    },
    /// Which lines of the driver the tests of the plain VM run.
    Coverage,
    /// Races, fuzzing and latency of the hypercall.
    Races {
        /// Arguments of the stress program.
        #[arg(
            allow_hyphen_values = true,
            default_value = races::ALONE
        )]
        arguments: String,
    },
    /// Hypervisors with a defect each, which the races must find.
    Mutants {
        /// Those that must be found on Intel's EPT, there.
        #[arg(long)]
        ept: bool,
        /// Only these.
        names: Vec<String>,
    },
    /// Drivers with a defect each, which their tests must find.
    DriverMutants {
        /// How many are tried at the same time.
        #[arg(long, default_value_t = driver_mutants::LANES)]
        lanes: usize,
        /// Only these.
        names: Vec<String>,
    },
    /// Boot the topology and leave it open to a person.
    Open,
    /// Boot the topology again and again and count the failures.
    Soak {
        /// How often.
        boots: u32,
    },
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("lab: error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    demo::process_start();
    let progress = Progress::new();
    let guest_mib = match std::env::var("GUEST_MIB") {
        Ok(text) if !text.is_empty() => text
            .parse()
            .with_context(|| format!("GUEST_MIB={text} is not a number"))?,
        _ => 256,
    };
    let sizes = Sizes::new(guest_mib)?;
    match Lab::parse() {
        Lab::Images => images::build().map(|()| true),
        Lab::Demo => {
            let (topology, _) = Topology::boot(sizes, &progress)?;
            let mut report = demo::run(&topology, &progress, 1)?;
            let migrated = demo::migrate(&topology, &progress, &mut report);
            report.write()?;
            report.print();
            let verdict = report.verdict().and(migrated);
            match &verdict {
                Ok(()) => println!("demo: everything verified; see build/report/demo.json"),
                Err(e) => println!("demo: FAILED: {e:#}"),
            }
            Ok(verdict.is_ok())
        }
        Lab::Rejuvenate => upkeep::demo::<rejuvenate::Report>(&progress),
        Lab::Replace => upkeep::demo::<replace::Report>(&progress),
        Lab::Bench(times) => bench::run(times, &progress),
        Lab::Check { long, groups } => check::run(&groups, long, sizes, &progress),
        Lab::Load { module } => {
            let mut tally = tally::Tally::default();
            load::run(&mut tally, &module, sizes, &progress);
            Ok(tally.close())
        }
        Lab::Coverage => {
            let mut tally = tally::Tally::default();
            coverage::run(&mut tally);
            Ok(tally.close())
        }
        Lab::Races { arguments } => Ok(races::run(&arguments, &progress)),
        Lab::Mutants { ept, names } => {
            if !ept {
                return races::mutants(&names, &progress);
            }
            let mut tally = tally::Tally::default();
            ept::mutants(&mut tally, &names, &progress);
            Ok(tally.close())
        }
        Lab::DriverMutants { lanes, names } => driver_mutants::run(&names, lanes),
        Lab::Open => open::run(sizes, &progress).map(|()| true),
        Lab::Soak { boots } => soak::run(boots, sizes, &progress),
    }
}
