// SPDX-License-Identifier: GPL-2.0-only

//! The hypervisor's swap in user space: tested on random sequences of operations, and
//! timed on the real CPU. See Documentation/hypervisor-harness.rst.

mod bench;
mod broken;
mod cases;
mod check;
mod counts;
mod keep;
mod moves;
mod others;
mod property;
mod scale;
mod steps;
mod swap;
mod world;
mod xen;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

/// Tests and times the hypervisor's swap in user space.
#[derive(Debug, Parser)]
enum Command {
    /// Run one sequence of random operations.
    Property {
        /// EPT instead of NPT.
        #[arg(long)]
        ept: bool,
        /// Domains with nested virtualization enabled.
        #[arg(long)]
        nested: bool,
        /// Seed of the sequence.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Number of operations.
        #[arg(long, default_value_t = 100_000)]
        ops: u64,
        /// The library to test.
        #[arg(long, default_value = "build/harness/tested.so")]
        library: PathBuf,
    },
    /// Run every kind of refusal, and 1 GiB entries.
    Cases {
        /// EPT instead of NPT.
        #[arg(long)]
        ept: bool,
        /// The library to test.
        #[arg(long, default_value = "build/harness/tested.so")]
        library: PathBuf,
    },
    /// Move frames to a domain that has nothing there yet.
    Moves {
        /// EPT instead of NPT.
        #[arg(long)]
        ept: bool,
        /// The library to test.
        #[arg(long, default_value = "build/harness/tested.so")]
        library: PathBuf,
    },
    /// Let entries not be written that always can be; for a library without assertions.
    Broken {
        /// EPT instead of NPT.
        #[arg(long)]
        ept: bool,
        /// The library to test.
        #[arg(long, default_value = "build/harness/timed.so")]
        library: PathBuf,
    },
    /// Everything that `make check` runs, as TAP.
    Check,
    /// Count the instructions of a swap, and compare with what is allowed.
    Counts,
    /// Time it, print a table and write build/report/bench-hv.json.
    Bench {
        /// Fail if a target is missed, which depends on the processor and its load.
        #[arg(long)]
        verdict: bool,
        /// EPT only, as a part of the report.
        #[arg(long)]
        ept: bool,
    },
    /// Time swaps of guests of one size, and print the seconds.
    Scale {
        /// The size in MiB.
        #[arg(long)]
        mib: u64,
        /// How the frames are mapped.
        #[arg(long)]
        entries: scale::Entries,
        /// How often.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::Property {
            ept,
            nested,
            seed,
            ops,
            library,
        } => {
            let options = property::Options {
                ept,
                nested,
                seed,
                ops,
            };
            check::catch_faults()?;
            let how = format!(
                "make hv-property SEED={seed} OPS={ops} ARGS='{}{}'",
                if ept { "--ept " } else { "" },
                if nested { "--nested" } else { "" }
            );
            world::with(|w| w.reproduce.clone_from(&how));
            match property::run(&library, &options) {
                Ok(total) => println!("# {ops} operations, {total:?}"),
                Err(e) => {
                    println!("# {e:#}");
                    world::die(&how);
                }
            }
            Ok(())
        }
        Command::Cases { ept, library } => {
            check::catch_faults()?;
            cases::run(&library, ept)
        }
        Command::Moves { ept, library } => {
            check::catch_faults()?;
            moves::run(&library, ept)
        }
        Command::Broken { ept, library } => {
            check::catch_faults()?;
            broken::run(&library, ept)
        }
        Command::Check => check::run(),
        Command::Counts => counts::run(),
        Command::Bench { verdict, ept } => {
            bench::run(ept)?;
            if verdict {
                bench::verdict()?;
            }
            Ok(())
        }
        Command::Scale {
            mib,
            entries,
            rounds,
        } => scale::run(mib, entries, rounds),
    }
}
