// SPDX-License-Identifier: GPL-2.0-only

//! What `vmbeam rejuvenate` prints at its end.

use super::Args;
use crate::moves;
use serde::Serialize;
use vmbeam_wire::message::GuestMove;

/// Seconds of each step of this run.
#[derive(Debug, Default, Serialize)]
pub(super) struct Seconds {
    pub(super) preflight: f64,
    pub(super) evacuate: f64,
    pub(super) shutdown: f64,
    pub(super) create: f64,
    pub(super) boot: f64,
    pub(super) check: f64,
    #[serde(rename = "return")]
    pub(super) back: f64,
    pub(super) total: f64,
}

/// The one report at the end.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) host_vm: String,
    pub(super) to: String,
    pub(super) dry_run: bool,
    /// It goes on with what an earlier run began.
    pub(super) resumed: bool,
    /// The step that it ended in, or `done`.
    pub(super) step: &'static str,
    /// Why it did not get further.
    pub(super) error: Option<String>,
    pub(super) blockers: Vec<String>,
    pub(super) hypervisor_before: Option<String>,
    pub(super) hypervisor_after: Option<String>,
    pub(super) domid_before: Option<u32>,
    pub(super) domid_after: Option<u32>,
    /// The host VM did not shut down in time and was destroyed.
    pub(super) forced: bool,
    #[serde(serialize_with = "moves::json")]
    pub(super) evacuated: Vec<GuestMove>,
    #[serde(serialize_with = "moves::json")]
    pub(super) returned: Vec<GuestMove>,
    pub(super) interrupted: bool,
    pub(super) seconds: Seconds,
}

impl Report {
    pub(super) fn print(&self) {
        let unknown = || "unknown".to_owned();
        let before = self.hypervisor_before.clone().unwrap_or_else(unknown);
        let done = match self.step {
            "done" => "rejuvenated",
            _ if self.dry_run => "dry run, nothing was changed",
            _ => "NOT done",
        };
        println!("{}: {done}", self.host_vm);
        match &self.hypervisor_after {
            Some(after) => println!("  guest hypervisor {before} -> {after}"),
            None => println!("  guest hypervisor {before}"),
        }
        for (title, guests) in [
            (format!("  to {}:", self.to), &self.evacuated),
            ("  and back:".into(), &self.returned),
        ] {
            if !guests.is_empty() {
                println!("{title}");
                guests.iter().for_each(moves::print);
            }
        }
        if self.dry_run {
            return;
        }
        let s = &self.seconds;
        let how = if self.forced { " (destroyed)" } else { "" };
        for (step, seconds, note) in [
            ("checks", s.preflight, ""),
            ("evacuate", s.evacuate, ""),
            ("shutdown", s.shutdown, how),
            ("create", s.create, ""),
            ("boot", s.boot, ""),
            ("check", s.check, ""),
            ("return", s.back, ""),
            ("total", s.total, ""),
        ] {
            println!("  {step:<14} {seconds:>10.3} s{note}");
        }
    }
}

/// What the commands of a real run would be.
pub(super) fn print_steps(args: &Args, report: &Report) {
    let (xl, name) = (args.xl.display(), &args.host_vm);
    println!(
        "  would run        vmbeam evacuate {name} --to {}",
        report.to
    );
    println!(
        "                   {xl} shutdown -F DOMID, and after {} s {xl} destroy DOMID",
        args.shutdown_timeout
    );
    println!("                   {xl} create {}", args.config.display());
    println!("                   vmbeam migrate for each of these guests, back to {name}");
}
