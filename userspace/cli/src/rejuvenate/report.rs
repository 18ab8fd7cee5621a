// SPDX-License-Identifier: GPL-2.0-only

//! What `vmbeam rejuvenate` prints at its end.

use super::Args;
use crate::evacuate::Begun;
use crate::moves;
use crate::upkeep::report::{self, Base, Seconds};
use crate::upkeep::Options;
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use vmbeam_control_protocol::GuestMove;

/// The report of `vmbeam rejuvenate`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Rejuvenation")]
pub(crate) struct Report {
    #[serde(flatten)]
    pub(super) base: Base,
    /// The guests, on their way to the other host VM.
    #[serde(serialize_with = "moves::json")]
    #[schemars(with = "Vec<moves::Moved<'static>>")]
    pub(super) evacuated: Vec<GuestMove>,
    /// The guests, on their way back.
    #[serde(serialize_with = "moves::json")]
    #[schemars(with = "Vec<moves::Moved<'static>>")]
    pub(super) returned: Vec<GuestMove>,
    /// What took how long, by step.
    #[schemars(with = "BTreeMap<String, f64>")]
    pub(super) seconds: Seconds,
    /// What the host VM is created from.
    #[serde(skip)]
    config: PathBuf,
}

/// What is printed: the report, or what was begun.
#[derive(JsonSchema)]
#[schemars(untagged, rename = "Rejuvenate")]
#[allow(dead_code, reason = "for the schema")]
pub(crate) enum Printed {
    Report(Box<Report>),
    Begun(Begun),
}

impl Report {
    pub(super) fn new(args: &Args) -> Self {
        Self {
            base: Base {
                host_vm: args.host_vm.clone(),
                dry_run: args.options.dry_run,
                ..Base::default()
            },
            evacuated: Vec::new(),
            returned: Vec::new(),
            seconds: Seconds::of(&[
                "preflight",
                "evacuate",
                "shutdown",
                "create",
                "boot",
                "check",
                "return",
            ]),
            config: args.config.clone(),
        }
    }

    /// What the commands of a real run would be.
    fn print_steps(&self, options: &Options) {
        let (xl, name) = (options.xl.display(), &self.base.host_vm);
        println!(
            "  would run        vmbeam evacuate {name} --to {}",
            self.base.to
        );
        println!(
            "                   {xl} shutdown -F DOMID, and after {} s {xl} destroy DOMID",
            options.shutdown_timeout
        );
        println!("                   {xl} create {}", self.config.display());
        println!("                   vmbeam migrate for each of these guests, back to {name}");
    }
}

impl report::Report for Report {
    fn parts(&mut self) -> (&mut Base, &mut Seconds) {
        (&mut self.base, &mut self.seconds)
    }

    fn print(&self, options: &Options) {
        self.base.print("rejuvenated");
        for (title, guests) in [
            (format!("  to {}:", self.base.to), &self.evacuated),
            ("  and back:".into(), &self.returned),
        ] {
            if !guests.is_empty() {
                println!("{title}");
                guests.iter().for_each(moves::print);
            }
        }
        self.base.print_seconds(&self.seconds, "shutdown");
        if self.base.dry_run {
            self.print_steps(options);
        }
    }
}
