// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam evacuate`

use crate::client::ClientError;
use crate::interrupt::Interrupt;
use crate::moves::{Moved, Mover, Outcome, AT_A_TIME, TOGETHER};
use crate::output;
use crate::{exit, MemoryMode};
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use vmbeam_wire::message::no_room;

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
    #[arg(long, value_name = "N", default_value_t = AT_A_TIME,
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
    /// How memory gets there: `copy` is for when the swap is not possible
    #[arg(long, value_enum, default_value = "swap")]
    mode: MemoryMode,
    /// Give up a guest's move, and let it go on where it was, after so many seconds
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u32>,
    /// How long to wait for jobs of vmbeamd that are not at an end yet
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    wait: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Seconds that an evacuation took.
#[derive(Debug, Default, Serialize)]
struct Seconds {
    preflight: f64,
    total: f64,
}

/// The one report at the end.
#[derive(Debug, Serialize)]
struct Report<'a> {
    from: &'a str,
    to: &'a str,
    dry_run: bool,
    /// Guests that moved at once.
    parallel: u32,
    /// Why no guest can move.
    blockers: Vec<String>,
    needed_mib: u64,
    free_mib: u64,
    guests: Vec<Moved>,
    interrupted: bool,
    seconds: Seconds,
}

impl Report<'_> {
    fn count(&self, outcome: Outcome) -> usize {
        self.guests.iter().filter(|g| g.outcome == outcome).count()
    }

    fn exit_code(&self) -> u8 {
        let moved = self.count(Outcome::Moved);
        if moved == self.guests.len() {
            0
        } else if self.count(Outcome::Failed) > 0 {
            exit::FAILED
        } else if moved > 0 || self.interrupted {
            exit::INCOMPLETE
        } else if self.count(Outcome::PutBack) > 0 {
            exit::ROLLED_BACK
        } else {
            exit::REFUSED
        }
    }

    fn print(&self) {
        let Self { from, to, .. } = self;
        let all = self.guests.len();
        if self.dry_run {
            println!("{from} -> {to}: dry run, nothing was changed");
        } else {
            let moved = self.count(Outcome::Moved);
            println!("{from} -> {to}: {moved} of {all} guests moved");
        }
        println!(
            "  memory           {} MiB needed, {} MiB free in {to}",
            self.needed_mib, self.free_mib
        );
        for blocker in &self.blockers {
            println!("  in the way       {blocker}");
        }
        for guest in &self.guests {
            guest.print();
        }
        println!("  checks           {:.3} s", self.seconds.preflight);
        println!("  total            {:.3} s", self.seconds.total);
    }
}

/// Tell a person on standard error what to do next.
fn advise(report: &Report<'_>, code: u8) {
    let blocked = !report.blockers.is_empty() || report.count(Outcome::Refused) > 0;
    if report.dry_run || code == 0 {
        return;
    }
    if report.interrupted {
        eprintln!("vmbeam: stopped; the same command goes on with the guests that are left");
    } else if blocked && report.count(Outcome::Moved) == 0 {
        eprintln!(
            "vmbeam: nothing was changed; remove what is in the way, or use --keep-going to move the others"
        );
    } else {
        eprintln!(
            "vmbeam: not all guests moved; the same command goes on with those that are left"
        );
    }
}

pub(crate) fn run(socket: &Path, args: &Args) -> Result<ExitCode, ClientError> {
    let started = Instant::now();
    let (from, to) = (&*args.host_vm, &*args.to);
    let mover = Mover {
        socket,
        mode: args.mode.into(),
        timeout_seconds: args.timeout,
        patience: Duration::from_secs(args.wait.into()),
        interrupt: Interrupt::catch(socket)?,
    };
    if args.parallel > AT_A_TIME {
        eprintln!("vmbeam: guests of one host VM move one at a time, not {} at once: an agent has one move at a time", args.parallel);
    }
    mover.wait_until_idle([from, to])?;
    let mut plan = mover.plan(from, to)?;
    let together = no_room(to, TOGETHER, plan.needed_mib, plan.free_mib);
    plan.blockers.extend(together);
    let mut report = Report {
        from,
        to,
        dry_run: args.dry_run,
        parallel: AT_A_TIME,
        blockers: plan.blockers,
        needed_mib: plan.needed_mib,
        free_mib: plan.free_mib,
        guests: Vec::new(),
        interrupted: false,
        seconds: Seconds {
            preflight: started.elapsed().as_secs_f64(),
            total: 0.0,
        },
    };
    for p in plan.guests {
        let mut moved = Moved::of(&p.guest);
        if !p.blockers.is_empty() {
            moved.outcome = Outcome::Refused;
            moved.reasons = p.blockers;
        }
        report.guests.push(moved);
    }
    let blocked = !report.blockers.is_empty() || report.count(Outcome::Refused) > 0;
    let go = !args.dry_run && (args.keep_going || !blocked);
    let all = report.guests.len();
    for (i, guest) in report.guests.iter_mut().enumerate().filter(|_| go) {
        if guest.outcome != Outcome::Waiting {
            continue;
        }
        if mover.interrupt.is_wanted() {
            break;
        }
        eprintln!("{from}/{} -> {to} ({} of {all})", guest.guest, i + 1);
        mover.go(guest, from, to);
        if guest.outcome != Outcome::Moved && !args.keep_going {
            break;
        }
    }
    // Without guests that are left, a late Ctrl-C has not stopped anything.
    report.interrupted = mover.interrupt.is_wanted() && report.count(Outcome::Moved) < all;
    report.seconds.total = started.elapsed().as_secs_f64();
    let code = if args.dry_run {
        if blocked {
            exit::REFUSED
        } else {
            0
        }
    } else {
        report.exit_code()
    };
    if args.json {
        output::json(&report)?;
    } else {
        report.print();
    }
    advise(&report, code);
    Ok(ExitCode::from(code))
}
