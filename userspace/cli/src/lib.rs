// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam`: the command line. A library as well, so that the manual and the
//! completions are made from the same definition as the program.

#[macro_use]
mod output;

mod base;
mod check;
mod client;
mod display;
mod evacuate;
mod events;
mod exit;
mod init;
mod interrupt;
mod list;
mod maintenance;
mod memory;
mod migrate;
mod mode;
mod moves;
mod records;
mod rejuvenate;
mod replace;
mod restart;
mod schema;
mod status;
mod swap;
mod upkeep;
mod watch;
mod worker;

use clap::{CommandFactory, Parser, Subcommand};
use client::{Client, ClientError};
use mode::MemoryMode;
use records::driver;
use std::path::PathBuf;
use std::process::ExitCode;
use vmbeam_control_protocol::{GuestRef, MigrateRequest, SwapRequest};

/// Where the daemon listens unless told otherwise.
const CONTROL_SOCKET: &str = "/run/vmbeam/control.sock";

/// Moves guest VMs between the virtualization systems of one host by swapping
/// their memory instead of copying it.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused and nothing changed,
/// 4 failed half way and everything put back, 5 done in part: the same command
/// goes on, 6 done, but the result could not be printed. A reader that goes away
/// (`| head`) does not count.
#[derive(Debug, Parser)]
#[command(name = "vmbeam", version, max_term_width = 80)]
struct Args {
    /// Control socket of vmbeamd
    #[arg(long, value_name = "PATH", default_value = CONTROL_SOCKET, global = true)]
    socket: PathBuf,
    /// This is the process that does the work of a job
    #[arg(long, hide = true)]
    worker: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check that everything that a swap needs is there
    Check {
        /// The driver's device
        #[arg(long, value_name = "PATH", default_value = vmbeam_uapi::DEVICE_PATH)]
        device: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Write the daemon's configuration, for the host VMs that run
    ///
    /// Each running domain that has a port for an agent is one, and guests may move between
    /// any two of them. A file that exists is left alone.
    Init(init::Args),
    /// List the host VMs and their guests
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what the daemon is doing and has done, and half moves that are kept
    Status(status::Args),
    /// Show what happens, as it happens, until Ctrl-C
    ///
    /// Jobs that begin, each of their steps and how they end, warnings of vmbeamd's log, agents
    /// that come and go, and maintenance. Whoever reads slowly holds nothing up: what does not
    /// wait for it is counted. A vmbeamd that is restarted is waited for.
    Events {
        /// Print JSON, an object in each line
        #[arg(long)]
        json: bool,
    },
    /// Print the JSON Schema of what a command prints with --json
    Schema(schema::Args),
    /// List half moves that the driver could not put back when their program ended
    Records {
        /// The driver's device
        #[arg(long, value_name = "PATH", default_value = vmbeam_uapi::DEVICE_PATH)]
        device: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Put the pages of a half move back
    Recover {
        /// The driver's device
        #[arg(long, value_name = "PATH", default_value = vmbeam_uapi::DEVICE_PATH)]
        device: PathBuf,
        /// Number of the record
        id: u64,
    },
    /// Drop the record of a half move that cannot be put back any more, or give a job up
    Forget {
        /// The driver's device
        #[arg(long, value_name = "PATH", default_value = vmbeam_uapi::DEVICE_PATH)]
        device: PathBuf,
        /// Number of the record
        #[arg(required_unless_present = "job")]
        id: Option<u64>,
        /// Instead, have vmbeamd do nothing more about what this job settles, and say first
        /// what that means; or forget how an evacuation, a rejuvenation or a replacement ended
        #[arg(long, conflicts_with = "id")]
        job: Option<u64>,
        /// With --job: do it
        #[arg(long, requires = "job")]
        yes: bool,
    },
    /// Migrate a running guest to another host VM, without copying its memory
    ///
    /// The guest is suspended while that lasts, and goes on at the destination. If
    /// anything fails before it does, or on Ctrl-C, it goes on where it was.
    Migrate {
        /// Name of the guest
        guest: String,
        /// Host VM where it is
        #[arg(long, value_name = "HOST_VM")]
        from: String,
        /// Host VM where it is to go
        #[arg(long, value_name = "HOST_VM")]
        to: String,
        /// How its memory gets there
        #[arg(long, value_enum, default_value = "auto")]
        mode: MemoryMode,
        /// Only find out what would move, and what is in the way
        #[arg(long)]
        dry_run: bool,
        /// Compare every page that moves, which prolongs the downtime
        #[arg(long)]
        verify: bool,
        /// Give up, and let the guest go on where it was, after so many seconds
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u32>,
        /// The same when it has been suspended for so many milliseconds
        #[arg(long, value_name = "MS")]
        max_downtime: Option<u32>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Move all guests of a host VM to another one
    ///
    /// First lists all that is in the way of any guest, then migrates one after the
    /// other. This is a job of vmbeamd, which the command only watches: it goes on if the
    /// command is killed or its terminal is closed, and when vmbeamd is started again. Ctrl-C
    /// stops it after the guest that is moving, a second one cancels this guest's move, a
    /// third one only leaves. Each guest runs in one place all the time; the same command
    /// goes on with those that are left.
    Evacuate(evacuate::Args),
    /// Follow an evacuation, a rejuvenation or a replacement, and print its report at the end
    ///
    /// Any number of commands can do so, at any time. Ctrl-C ends this command, and not
    /// the job; `vmbeam abort` does that. The exit status is that of the command that began
    /// it.
    Watch(watch::Args),
    /// Restart a host VM, with another guest hypervisor, under its running guests
    ///
    /// Moves its guests to another host VM, shuts the host VM down, creates it again
    /// from FILE, waits for its agent, and moves these guests back. This is a job of vmbeamd,
    /// which the command only watches; a process that needs no terminal does the work. Ctrl-C
    /// stops between two steps; the same command goes on from there.
    Rejuvenate(rejuvenate::Args),
    /// Print what the hypervisor says of a domain's memory, as JSON: what vmbeamd runs
    ///
    /// Pages that it has and may have, and of these its reserve (`cache`) for places without
    /// a page (`entries`).
    Memory {
        /// The domain
        domid: u32,
        /// Before, give it pages of the host until it has a reserve of so many, or as many as
        /// there are places
        #[arg(long, value_name = "PAGES")]
        reserve: Option<u64>,
    },
    /// Replace a host VM by another one, with another guest hypervisor, under its running guests
    ///
    /// Creates a new host VM beside it from FILE, moves its guests there, once, gives the new
    /// one its name, its port and what starts it at boot, and ends the old one. If the new one
    /// does not come up, or cannot take the guests, it is removed, and the old one goes on.
    /// This is a job of vmbeamd as `vmbeam rejuvenate` is. Ctrl-C stops between two steps; the same command goes on from there, and --undo goes
    /// back.
    Replace(replace::Args),
    /// Say that somebody works on a host VM, or has done so, or which are worked on
    ///
    /// In a host VM in maintenance nothing is started when it boots, and no guest
    /// arrives; its guests can leave. That lasts until it is ended, whatever is
    /// restarted.
    Maintenance(maintenance::Args),
    /// Cancel a migration that has not passed the point of no return, or stop another job
    ///
    /// An evacuation stops after the guest that is moving, a rejuvenation or a replacement
    /// after the step that it is at; when it has been told so, once more cancels the guest's
    /// move.
    Abort {
        /// Number of the job, from `vmbeam status`
        job: u64,
    },
    /// Swap the memory of two guests
    ///
    /// Both guests are paused and stay so. Pages that may not move, such as page
    /// tables, are left out and counted.
    Swap {
        /// Guest whose memory is to move, as HOST_VM/GUEST
        #[arg(long, value_name = "GUEST")]
        from: GuestRef,
        /// Guest that it changes places with, as HOST_VM/GUEST
        #[arg(long, value_name = "GUEST")]
        to: GuestRef,
        /// Compare every page of both guests before and after
        #[arg(long)]
        verify: bool,
        /// Only find out which pages could be swapped; changes nothing
        #[arg(long)]
        dry_run: bool,
        /// In a dry run, write the frames that could be swapped to a file, as JSON
        #[arg(long, value_name = "FILE", requires = "dry_run")]
        runs: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

fn run(args: Args) -> Result<ExitCode, ClientError> {
    match args.command {
        Command::Check { device, json } => check::run(&args.socket, &device, json),
        Command::Init(args) => init::run(&args),
        Command::List { json } => list::list(Client::connect(&args.socket)?, json),
        Command::Status(status) => status::run(&args.socket, &status),
        Command::Schema(args) => schema::run(&args),
        Command::Events { json } => events::run(&args.socket, json),
        Command::Records { device, json } => Ok(driver(records::list(&device, json))),
        Command::Recover { device, id } => Ok(driver(records::recover(&device, id))),
        Command::Forget {
            device,
            id,
            job,
            yes,
        } => match (id, job) {
            (_, Some(job)) => migrate::dismiss(&args.socket, job, yes),
            (id, None) => Ok(driver(records::forget(&device, id.unwrap_or_default()))),
        },
        Command::Migrate {
            guest,
            from: host_vm,
            to,
            mode,
            dry_run,
            verify,
            timeout: timeout_seconds,
            max_downtime: max_downtime_ms,
            json,
        } => {
            let request = MigrateRequest {
                from: GuestRef { host_vm, guest },
                to,
                mode: mode.into(),
                dry_run,
                verify,
                timeout_seconds,
                max_downtime_ms,
            };
            migrate::run(&args.socket, request, json)
        }
        Command::Evacuate(evacuation) => evacuate::run(&args.socket, &evacuation),
        Command::Rejuvenate(rejuvenation) => {
            rejuvenate::run(&args.socket, &rejuvenation, args.worker)
        }
        Command::Memory { domid, reserve } => memory::print(domid, reserve),
        Command::Replace(replacement) => replace::run(&args.socket, &replacement, args.worker),
        Command::Maintenance(maintenance) => maintenance::run(&args.socket, &maintenance),
        Command::Watch(watch) => watch::run(&args.socket, &watch),
        Command::Abort { job } => migrate::abort(Client::connect(&args.socket)?, job),
        Command::Swap {
            from,
            to,
            verify,
            dry_run,
            runs,
            json,
        } => {
            let request = SwapRequest {
                from,
                to,
                verify,
                dry_run,
                list_runs: runs.is_some(),
            };
            swap::run(
                Client::connect(&args.socket)?,
                request,
                runs.as_deref(),
                json,
            )
        }
    }
}

/// What the command line accepts.
pub fn command() -> clap::Command {
    Args::command()
}

/// Do what the arguments of this process say.
pub fn main() -> ExitCode {
    let code = match run(Args::parse()) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("vmbeam: {e}");
            ExitCode::from(e.code())
        }
    };
    output::end(code)
}
