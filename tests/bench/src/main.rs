// SPDX-License-Identifier: GPL-2.0-only

//! Measures what needs no boot, and makes the report of everything that was measured.

mod chart;
mod clock;
mod environment;
mod guest;
mod lists;
mod memory;
mod native;
mod nested;
mod page;
mod pause;
mod report;
mod results;
mod scale;
mod section;
mod sections;
mod session;
mod stats;
mod units;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

/// Measure lists, make the report.
#[derive(Debug, Parser)]
enum Command {
    /// Frame lists of guest VMs of up to 256 GiB, through agent, protocol, daemon and driver.
    Lists {
        /// Only up to this many GiB.
        #[arg(long, default_value_t = 256)]
        most: u64,
        /// How often, for small ones.
        #[arg(long, default_value_t = 7)]
        rounds: usize,
    },
    /// The hypercall in user space, for guest VMs of up to 64 GiB.
    Scale {
        /// Only up to this many GiB.
        #[arg(long, default_value_t = 64)]
        most: u64,
        /// How often each.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// What is left in the pause of a staged migration, for guest VMs of up to 256 GiB.
    Pause {
        /// Only up to this many GiB.
        #[arg(long, default_value_t = 256)]
        most: u64,
        /// How often each.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// build/report/bench of everything that was measured before.
    Report {
        /// Instead, make the page of an earlier report anew, of its samples.
        #[arg(long, value_name = "DIRECTORY")]
        again: Option<PathBuf>,
    },
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::Lists { most, rounds } => lists::run(most, rounds),
        Command::Scale { most, rounds } => scale::run(most, rounds),
        Command::Pause { most, rounds } => pause::run(most, rounds),
        Command::Report { again: None } => report::run(),
        Command::Report { again: Some(dir) } => report::again(&dir),
    }
}
