// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam migrate`, `vmbeam abort` and `vmbeam forget --job`

use crate::client::{Client, ClientError, KNOWN};
use crate::display::Display;
use crate::exit;
use crate::interrupt::{signals, Going};
use crate::output;
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use vmbeam_control_protocol::{
    FromDaemon, JobKind, MigrateReport, MigrateRequest, MigrateSeconds, Mode, SwapCounts, ToDaemon,
};

/// The report of a migration.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Migration")]
pub(crate) struct Json<'a> {
    /// The guest.
    guest: &'a str,
    /// Host VM where it was.
    from: &'a str,
    /// Host VM where it is; after a dry run, where it would go.
    to: &'a str,
    /// How its memory got there.
    mode: Mode,
    /// Nothing was changed because nothing was to be.
    dry_run: bool,
    /// In a dry run, what is in the way.
    blockers: &'a [String],
    /// Its memory.
    guest_mib: u64,
    /// Pages that changed places; in a dry run, that may.
    pages_swapped: u64,
    /// Those of them without one in return.
    relocated: u64,
    /// Runs in which the pairs of their frames are listed: pages, frames in A and frames in B that follow each other.
    runs: u64,
    /// Pages that were not there at the source, so that they read as zeroes.
    pages_empty: u64,
    /// Pages whose contents were copied by the agents.
    pages_copied: u64,
    /// Pages whose contents were in the saved state; in a dry run, at least.
    pages_sent: u64,
    /// Pages that the hypervisor would not swap, by reason.
    pages_refused: &'a BTreeMap<String, u64>,
    /// Pages that were not swapped whose frames could not follow the others afterwards: each may
    /// have cost both host VMs a superpage.
    frames_left: u64,
    /// Pages found to be right at the destination.
    pages_verified: u64,
    /// Bytes of the saved state.
    stream_bytes: u64,
    /// Messages to and from both agents.
    wire_messages: u64,
    /// Their bytes.
    wire_bytes: u64,
    /// Those messages that were sent while the guest was suspended.
    wire_messages_suspended: u64,
    /// Their bytes.
    wire_bytes_suspended: u64,
    #[serde(flatten)]
    counts: SwapCounts,
    /// What could not be done after the guest ran, and is being tried again.
    pending: Option<&'a str>,
    /// Why the guest's copy was not made before the guest was suspended.
    unstaged: Option<&'a str>,
    /// What was not in the way.
    warnings: &'a [String],
    /// Seconds of the downtime, by what they went into.
    pause: BTreeMap<&'a str, f64>,
    /// What took how long.
    seconds: &'a MigrateSeconds,
}

impl<'a> From<&'a MigrateReport> for Json<'a> {
    fn from(r: &'a MigrateReport) -> Self {
        Self {
            guest: &r.from.guest,
            from: &r.from.host_vm,
            to: &r.to,
            mode: r.mode,
            dry_run: r.dry_run,
            blockers: &r.blockers,
            guest_mib: r.guest_mib,
            pages_swapped: r.pages_swapped,
            relocated: r.relocated,
            runs: r.runs,
            pages_empty: r.pages_empty,
            pages_copied: r.pages_copied,
            pages_sent: r.pages_sent,
            pages_refused: &r.pages_refused,
            frames_left: r.frames_left,
            pages_verified: r.pages_verified,
            stream_bytes: r.stream_bytes,
            wire_messages: r.traffic.messages,
            wire_bytes: r.traffic.bytes,
            wire_messages_suspended: r.traffic_suspended.messages,
            wire_bytes_suspended: r.traffic_suspended.bytes,
            counts: r.counts,
            pending: r.pending.as_deref(),
            unstaged: r.unstaged.as_deref(),
            warnings: &r.warnings,
            pause: r.pause.iter().map(|(p, ns)| (&**p, in_s(*ns))).collect(),
            seconds: &r.seconds,
        }
    }
}

fn in_s(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

fn print_dry_run(r: &MigrateReport) {
    println!("{} -> {}: dry run, nothing was changed", r.from, r.to);
    if r.mode == Mode::Relocate {
        println!("  mode            relocate");
    }
    println!("  memory          {} MiB", r.guest_mib);
    println!("  would swap      {} pages", r.pages_swapped);
    println!("  would send      at least {} pages", r.pages_sent);
    if let (true, Some(why)) = (r.mode.is_external(), &r.unstaged) {
        println!("  not staged      {why}");
    }
    if r.blockers.is_empty() {
        println!("  in the way      nothing");
    }
    for blocker in &r.blockers {
        println!("  in the way      {blocker}");
    }
    for warning in &r.warnings {
        println!("  warning         {warning}");
    }
}

fn print(r: &MigrateReport, verify: bool) {
    let s = &r.seconds;
    println!("{} -> {}: migrated", r.from, r.to);
    println!("  memory          {} MiB", r.guest_mib);
    println!(
        "  swapped         {} pages in {} runs",
        r.pages_swapped, r.runs
    );
    if r.mode == Mode::Relocate {
        println!("  of these given  {} pages", r.relocated);
        println!("  empty           {} pages", r.pages_empty);
    }
    println!("  sent            {} pages", r.pages_sent);
    println!("  copied          {} pages", r.pages_copied);
    for (reason, nr) in &r.pages_refused {
        println!("    {nr:>9} {}", reason.replace('_', " "));
    }
    if r.frames_left > 0 {
        println!("  frames left     {}", r.frames_left);
    }
    println!("  saved state     {} bytes", r.stream_bytes);
    println!(
        "  agent traffic   {} messages, {} bytes",
        r.traffic.messages, r.traffic.bytes
    );
    println!(
        "    in the pause  {} messages, {} bytes",
        r.traffic_suspended.messages, r.traffic_suspended.bytes
    );
    if verify {
        println!("  verified        {} pages", r.pages_verified);
    }
    for (name, seconds) in [
        ("checks", s.preflight),
        ("staging", s.stage),
        ("save, restore", s.stream),
        ("lists", s.lists),
        ("probes", s.probes),
        ("dry run", s.prepare),
        ("digests", s.digests),
        ("swap", s.swap),
        ("copy", s.copy),
        ("resume", s.resume),
        ("clean up", s.destroy),
        ("downtime", s.downtime),
        ("total", s.total),
    ] {
        println!("  {name:<14} {seconds:>10.3} s");
        if name == "downtime" {
            for (part, ns) in &r.pause {
                println!("    {part:<12} {:>10.3} s", in_s(*ns));
            }
        }
    }
    if let (true, Some(why)) = (r.mode.is_external(), &r.unstaged) {
        println!("  not staged      {why}");
    }
    for warning in &r.warnings {
        println!("  warning         {warning}");
    }
    if let Some(pending) = &r.pending {
        println!("  still to do     {pending}");
    }
}

/// On the first Ctrl-C, ask the daemon to cancel; on the second, only leave.
fn cancel_on_signal(going: Going) -> Result<(), ClientError> {
    let signals = signals()?;
    std::thread::spawn(move || {
        let _ = signals.wait();
        eprintln!("vmbeam: cancelling; once more to leave the job to vmbeamd");
        going.cancel();
        let _ = signals.wait();
        std::process::exit(exit::FAILED.into());
    });
    Ok(())
}

pub(crate) fn run(
    socket: &Path,
    request: MigrateRequest,
    json: bool,
) -> Result<ExitCode, ClientError> {
    let verify = request.verify;
    let dry_run = request.dry_run;
    let going = Going::new(socket);
    cancel_on_signal(going.clone())?;
    let mut display = Display::new();
    let last = Client::connect(socket)?.ask(&ToDaemon::Migrate(request), |part| match part {
        FromDaemon::Progress { phase, done, total } => display.show(*phase, *done, *total),
        FromDaemon::Job { id } => going.begun(*id),
        _ => {}
    });
    display.clear();
    let FromDaemon::Migrated(report) = last? else {
        return Err(ClientError::Unexpected);
    };
    if json {
        output::json(&Json::from(&*report))?;
    } else if dry_run {
        print_dry_run(&report);
    } else {
        print(&report, verify);
    }
    Ok(if report.blockers.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(exit::REFUSED)
    })
}

pub(crate) fn abort(client: Client, job: u64) -> Result<ExitCode, ClientError> {
    match client.ask(&ToDaemon::Abort { job }, |_| {})? {
        FromDaemon::Done => Ok(ExitCode::SUCCESS),
        _ => Err(ClientError::Unexpected),
    }
}

/// Have the daemon do nothing more about what a job settles, which a person must want.
pub(crate) fn dismiss(socket: &Path, job: u64, yes: bool) -> Result<ExitCode, ClientError> {
    let FromDaemon::Status(jobs) = Client::connect(socket)?.ask_soon(&ToDaemon::Status, KNOWN)?
    else {
        return Err(ClientError::Unexpected);
    };
    let known = jobs.into_iter().find(|j| j.id == job);
    let is_above = |kind: JobKind| kind == JobKind::Evacuate || kind.is_upkeep();
    if known.as_ref().is_some_and(|j| is_above(j.kind)) {
        return ask_to_forget(socket, job);
    }
    let Some(j) = known.filter(|j| j.running) else {
        return Err(ClientError::Refused(format!(
            "no job {job} is running; see `vmbeam status`"
        )));
    };
    let (guest, a, b) = (&j.from.guest, &j.from.host_vm, &j.to.host_vm);
    if a.is_empty() {
        eprintln!(
            "vmbeam: job {job} is about a guest that is not known: {}",
            j.phase
        );
        eprintln!(
            "vmbeam: once it is forgotten, the record is lost, and guests move again. If one of them is in two host VMs (`vmbeam list`), let at most one of the two run, and only one that is whole; destroy the other"
        );
    } else {
        eprintln!(
            "vmbeam: job {job} is about guest {guest} of {a}, on its way to {b}: {}",
            j.phase
        );
        eprintln!(
            "vmbeam: once it is forgotten, vmbeamd does nothing more about guest {guest}. What there is of it in {a} and in {b} stays as it is, mostly paused, and the record of where its memory is gets lost. Let at most one of the two run, and only one that is whole; destroy the other"
        );
    }
    if !yes {
        return Err(ClientError::Refused(format!(
            "nothing was changed; to forget job {job} all the same, add --yes"
        )));
    }
    ask_to_forget(socket, job)
}

fn ask_to_forget(socket: &Path, job: u64) -> Result<ExitCode, ClientError> {
    match Client::connect(socket)?.ask(&ToDaemon::Dismiss { job }, |_| {})? {
        FromDaemon::Done => Ok(ExitCode::SUCCESS),
        _ => Err(ClientError::Unexpected),
    }
}
