// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam status`

use crate::client::{Client, ClientError, KNOWN};
use crate::list::{row, table};
use crate::records::driver;
use crate::{events, maintenance, memory, output, records};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use vmbeam_control_protocol::{EventKind, FromDaemon, JobReport, ToDaemon};

/// Options of `vmbeam status`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The driver's device
    #[arg(long, value_name = "PATH", default_value = vmbeam_uapi::DEVICE_PATH)]
    device: PathBuf,
    /// Go on, and show each change, until Ctrl-C
    ///
    /// On a terminal the whole picture is drawn anew. Otherwise each change is a line, as of
    /// `vmbeam events`, which with --json is for programs.
    #[arg(long, conflicts_with = "json")]
    watch: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn jobs(socket: &Path) -> Result<Vec<JobReport>, ClientError> {
    match Client::connect(socket)?.ask_soon(&ToDaemon::Status, KNOWN)? {
        FromDaemon::Status(jobs) => Ok(jobs),
        _ => Err(ClientError::Unexpected),
    }
}

fn print(jobs: &[JobReport]) {
    if jobs.is_empty() {
        println!("No jobs since vmbeamd was started.");
        return;
    }
    let mut rows = vec![row(&["JOB", "FROM", "TO", "STATE"])];
    for j in jobs {
        rows.push(row(&[
            &j.id.to_string(),
            &j.from.to_string(),
            &j.to.to_string(),
            &format!("{}{}", if j.running { "running: " } else { "" }, j.phase),
        ]));
    }
    table(&rows);
}

/// All of it for a person, on a screen that is cleared before if that is wanted. What others have
/// to be asked for comes behind what the daemon knows: they may take their time.
fn picture(
    socket: &Path,
    device: &Path,
    memory: impl FnOnce() -> Vec<String>,
    anew: bool,
) -> Result<(), ClientError> {
    let jobs = jobs(socket)?;
    let maintained = maintenance::ask(socket).unwrap_or_default();
    if anew {
        output::clear();
    }
    print(&jobs);
    if let Some(line) = maintenance::line(&maintained) {
        println!("{line}");
    }
    for line in memory() {
        println!("{line}");
    }
    driver(records::list(device, false));
    Ok(())
}

fn watch(socket: &Path, device: &Path) -> Result<ExitCode, ClientError> {
    let terminal = io::stdout().is_terminal();
    let mut memory = Vec::new();
    events::follow(socket, |new| {
        let begins = new.iter().any(|e| e.event == EventKind::Following);
        // A program of the host's toolstack is run for it, so not for every step.
        let changes = new.iter().any(|e| e.event != EventKind::JobStep);
        if terminal || begins {
            let memory = || {
                if changes {
                    memory = memory::asked(socket);
                }
                memory.clone()
            };
            picture(socket, device, memory, terminal)?;
        }
        if !terminal {
            let changes = new.iter().filter(|e| e.event != EventKind::Following);
            changes.for_each(events::print);
        }
        Ok(())
    })
}

pub(crate) fn run(socket: &Path, args: &Args) -> Result<ExitCode, ClientError> {
    if args.watch {
        return watch(socket, &args.device);
    }
    if args.json {
        output::json(&jobs(socket)?)?;
    } else {
        picture(socket, &args.device, || memory::asked(socket), false)?;
    }
    Ok(ExitCode::SUCCESS)
}
