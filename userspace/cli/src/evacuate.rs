// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam evacuate`

use crate::client::{Client, ClientError};
use crate::exit;
use crate::interrupt::Interrupt;
use crate::mode::MemoryMode;
use crate::moves;
use crate::output;
use schemars::JsonSchema;
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use vmbeam_control_protocol::{
    EvacuateReport, EvacuateRequest, EvacuateSeconds, FromDaemon, GuestMove, MoveOutcome, ToDaemon,
};

/// How long to wait for other jobs, and for a daemon that is started again.
pub(crate) const WAIT: u32 = 600;

/// Options of `vmbeam evacuate`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Host VM that is to be left
    host_vm: String,
    /// Host VM where its guests are to go
    #[arg(long, value_name = "HOST_VM")]
    to: String,
    /// Guests that may move at once; of one host VM it is one so far, whatever is
    /// asked for
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=64))]
    parallel: u32,
    /// Begin only if nothing is in the way of any guest, and stop at the first that
    /// does not get there (the default)
    #[arg(long, conflicts_with = "keep_going")]
    stop_on_error: bool,
    /// Move whatever can be moved
    #[arg(long)]
    keep_going: bool,
    /// Only find out what is in the way
    #[arg(long)]
    dry_run: bool,
    /// How memory gets there
    #[arg(long, value_enum, default_value = "auto")]
    mode: MemoryMode,
    /// Give up a guest's move, and let it go on where it was, after so many seconds
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u32>,
    /// How long to wait for jobs of vmbeamd that are not at an end yet, and for vmbeamd
    /// if it is being restarted
    #[arg(long, value_name = "SECONDS", default_value_t = WAIT)]
    wait: u32,
    /// Print the number of the job, and leave it to vmbeamd: `vmbeam watch` follows it
    #[arg(long, conflicts_with = "dry_run")]
    detach: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The report of an evacuation.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Evacuation")]
pub(crate) struct Json<'a> {
    /// The host VM that was to be left.
    from: &'a str,
    /// The host VM where its guests were to go.
    to: &'a str,
    /// Nothing was changed because nothing was to be.
    dry_run: bool,
    /// Guests that moved at once.
    parallel: u32,
    /// Why no guest can move.
    blockers: &'a [String],
    /// What somebody should know, and what stops nothing.
    warnings: &'a [String],
    /// Memory of all guests.
    needed_mib: u64,
    /// Memory that the destination had for them.
    free_mib: u64,
    /// The guests, in the order in which they move.
    #[serde(serialize_with = "moves::json")]
    #[schemars(with = "Vec<moves::Moved<'static>>")]
    guests: &'a [GuestMove],
    /// It was stopped with guests left.
    interrupted: bool,
    /// What took how long.
    seconds: EvacuateSeconds,
}

/// A job that was only begun.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Begun {
    /// Its number.
    pub(crate) job: u64,
}

impl Begun {
    /// It is left to the daemon.
    pub(crate) fn print(&self, json: bool) -> Result<ExitCode, ClientError> {
        match json {
            true => output::json(self)?,
            false => println!("job {}", self.job),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What `vmbeam evacuate` prints: the report, or what was begun.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[allow(dead_code, reason = "for the schema")]
pub(crate) enum Printed<'a> {
    Report(Json<'a>),
    Begun(Begun),
}

impl<'a> From<&'a EvacuateReport> for Json<'a> {
    fn from(r: &'a EvacuateReport) -> Self {
        Self {
            from: &r.from,
            to: &r.to,
            dry_run: r.dry_run,
            parallel: r.parallel,
            blockers: &r.blockers,
            warnings: &r.warnings,
            needed_mib: r.needed_mib,
            free_mib: r.free_mib,
            guests: &r.guests,
            interrupted: r.interrupted,
            seconds: r.seconds,
        }
    }
}

fn exit_code(report: &EvacuateReport) -> u8 {
    let moved = report.count(MoveOutcome::Moved);
    if report.dry_run {
        match report.is_blocked() {
            true => exit::REFUSED,
            false => 0,
        }
    } else if moved == report.guests.len() {
        0
    } else if report.count(MoveOutcome::Failed) > 0 {
        exit::FAILED
    } else if moved > 0 || report.interrupted {
        exit::INCOMPLETE
    } else if report.count(MoveOutcome::PutBack) > 0 {
        exit::ROLLED_BACK
    } else {
        exit::REFUSED
    }
}

fn print(report: &EvacuateReport) {
    let EvacuateReport { from, to, .. } = report;
    let all = report.guests.len();
    if report.dry_run {
        println!("{from} -> {to}: dry run, nothing was changed");
    } else {
        let moved = report.count(MoveOutcome::Moved);
        println!("{from} -> {to}: {moved} of {all} guests moved");
    }
    println!(
        "  memory           {} MiB needed, {} MiB free in {to}",
        report.needed_mib, report.free_mib
    );
    for blocker in &report.blockers {
        println!("  in the way       {blocker}");
    }
    for warning in &report.warnings {
        println!("  warning          {warning}");
    }
    report.guests.iter().for_each(moves::print);
    println!("  checks           {:.3} s", report.seconds.preflight);
    println!("  total            {:.3} s", report.seconds.total);
}

/// Tell a person on standard error what to do next.
fn advise(report: &EvacuateReport, code: u8) {
    if report.dry_run || code == 0 {
        return;
    }
    if report.interrupted {
        eprintln!("vmbeam: stopped; the same command goes on with the guests that are left");
    } else if report.is_blocked() && report.count(MoveOutcome::Moved) == 0 {
        eprintln!(
            "vmbeam: nothing was changed; remove what is in the way, or use --keep-going to move the others"
        );
    } else {
        eprintln!(
            "vmbeam: not all guests moved; the same command goes on with those that are left"
        );
    }
}

pub(crate) fn end(report: &EvacuateReport, json: bool) -> Result<ExitCode, ClientError> {
    let code = exit_code(report);
    if json {
        output::json(&Json::from(report))?;
    } else {
        print(report);
    }
    advise(report, code);
    Ok(ExitCode::from(code))
}

pub(crate) fn run(socket: &Path, args: &Args) -> Result<ExitCode, ClientError> {
    if args.parallel > 1 {
        eprintln!("vmbeam: guests of one host VM move one at a time, not {} at once: an agent has one move at a time", args.parallel);
    }
    let request = ToDaemon::Evacuate(EvacuateRequest {
        from: args.host_vm.clone(),
        to: args.to.clone(),
        only: None,
        mode: args.mode.into(),
        keep_going: args.keep_going,
        dry_run: args.dry_run,
        timeout_seconds: args.timeout,
        wait_seconds: args.wait,
    });
    if args.detach {
        return detach(socket, &request, args.json);
    }
    let interrupt = Interrupt::catch(socket)?;
    let wait = Duration::from_secs(args.wait.into());
    match moves::follow(socket, request, wait, Some(&interrupt))? {
        FromDaemon::Evacuated(report) => end(&report, args.json),
        _ => Err(ClientError::Unexpected),
    }
}

/// Only begin it.
fn detach(socket: &Path, request: &ToDaemon, json: bool) -> Result<ExitCode, ClientError> {
    let FromDaemon::Job { id } = Client::connect(socket)?.first(request)? else {
        return Err(ClientError::Unexpected);
    };
    Begun { job: id }.print(json)
}
