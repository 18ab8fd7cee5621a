// SPDX-License-Identifier: GPL-2.0-only

//! Stopping a process as soon as another one has printed something: what a shell does in
//! several milliseconds is too late for a state that lasts for a few.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use nix::sys::signal::kill;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// How often to look.
const LOOK: Duration = Duration::from_micros(100);

/// Whom to stop when.
#[derive(clap::Args)]
pub struct Arguments {
    /// The process that is stopped.
    #[arg(long)]
    stop: i32,
    /// The process that prints; once it has ended there is nothing to wait for.
    #[arg(long)]
    printer: i32,
    /// Where it prints to.
    #[arg(long)]
    file: PathBuf,
    /// What it has to print.
    #[arg(long)]
    text: String,
    /// How long after that, in milliseconds.
    #[arg(long, default_value_t = 0)]
    after: u64,
}

/// Wait, and stop it. What has been printed goes to standard output.
pub fn catch(arguments: &Arguments) -> Result<()> {
    let printed = || fs::read_to_string(&arguments.file).unwrap_or_default();
    while !printed().contains(&arguments.text) && runs(arguments.printer) {
        thread::sleep(LOOK);
    }
    thread::sleep(Duration::from_millis(arguments.after));
    kill(Pid::from_raw(arguments.stop), Signal::SIGSTOP)
        .with_context(|| format!("cannot stop process {}", arguments.stop))?;
    print!("{}", printed());
    Ok(())
}

/// Nobody may have waited for one that has ended.
fn runs(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
