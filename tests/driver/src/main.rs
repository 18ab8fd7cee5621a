// SPDX-License-Identifier: GPL-2.0-only

//! Tests of the driver that run beside it, in the host management VM: a fuzzer
//! with a model that knows the answers, loading and unloading, 32-bit callers.
//! Results are printed as TAP.

mod arena;
mod bare;
mod compat;
mod device;
mod domains;
mod fuzz;
mod memory;
mod mock;
mod model;
mod race;
mod records;
mod reload;
mod report;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

#[derive(Parser)]
#[command(about = "Tests of the driver that run beside it")]
enum Tests {
    /// Random sequences of ioctls, checked against a model.
    Fuzz(fuzz::Arguments),
    /// Load and unload the module again and again.
    Reload {
        /// The module.
        module: PathBuf,
        /// How often.
        times: u32,
    },
    /// See which memory cgroup the lists of a session are charged to.
    Memory,
    /// Make half moves and deal with them as an operator would.
    Records {
        /// The command line, `vmbeam`.
        vmbeam: PathBuf,
    },
    /// Run the same caller as a 64-bit and as a 32-bit program and compare.
    Compat {
        /// The 64-bit program.
        program64: PathBuf,
        /// The 32-bit program.
        program32: PathBuf,
    },
}

fn main() -> ExitCode {
    let result: Result<()> = match Tests::parse() {
        Tests::Fuzz(arguments) => fuzz::run(&arguments),
        Tests::Reload { module, times } => reload::run(&module, times),
        Tests::Memory => memory::run(),
        Tests::Records { vmbeam } => records::run(&vmbeam),
        Tests::Compat {
            program64,
            program32,
        } => compat::run(&program64, &program32),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            println!("Bail out! {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the C compiler takes this source; for tests that compare with headers.
#[cfg(test)]
fn compiles(source: &str) -> bool {
    use std::io::Write;
    use std::process::Command;
    use std::process::Stdio;

    let mut child = Command::new("cc")
        .args(["-fsyntax-only", "-x", "c", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(source.as_bytes())
        .unwrap();
    child.wait().unwrap().success()
}
