// SPDX-License-Identifier: GPL-2.0-only

//! What `vmbeam replace` prints at its end.

use super::memory::Memory;
use super::state::Size;
use super::Args;
use crate::evacuate::Begun;
use crate::moves;
use crate::upkeep::report::{self, Base, Seconds};
use crate::upkeep::Options;
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use vmbeam_control_protocol::{replacement_of, GuestMove};

/// The report of `vmbeam replace`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Replacement")]
pub(crate) struct Report {
    #[serde(flatten)]
    pub(super) base: Base,
    /// The guests, on their way to the new host VM.
    #[serde(serialize_with = "moves::json")]
    #[schemars(with = "Vec<moves::Moved<'static>>")]
    pub(super) moved: Vec<GuestMove>,
    /// On the way back, of one that is undone.
    #[serde(serialize_with = "moves::json")]
    #[schemars(with = "Vec<moves::Moved<'static>>")]
    pub(super) returned: Vec<GuestMove>,
    /// Memory of the new host VM when it starts, and at most.
    pub(super) new_mib: Option<Size>,
    /// Memory of the host that nobody had.
    pub(super) memory: Memory,
    /// The most that the replacement took of it.
    pub(super) peak_extra_mib: Option<u64>,
    /// What took how long, by step.
    #[schemars(with = "BTreeMap<String, f64>")]
    pub(super) seconds: Seconds,
    /// What the new host VM is created from.
    #[serde(skip)]
    config: Option<PathBuf>,
}

/// What is printed: the report, or what was begun.
#[derive(JsonSchema)]
#[schemars(untagged, rename = "Replace")]
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
                to: replacement_of(&args.host_vm),
                dry_run: args.options.dry_run,
                ..Base::default()
            },
            moved: Vec::new(),
            returned: Vec::new(),
            new_mib: None,
            memory: Memory::default(),
            peak_extra_mib: None,
            seconds: Seconds::of(&[
                "preflight",
                "create",
                "boot",
                "check",
                "move",
                "shutdown",
                "takeover",
                "undo",
            ]),
            config: args.config.clone(),
        }
    }

    /// What the commands of a real run would be.
    fn print_steps(&self, options: &Options) {
        let Base { host_vm, to, .. } = &self.base;
        let xl = options.xl.display();
        if let Some(config) = &self.config {
            println!(
                "  would run        {xl} create, of {} as {to}",
                config.display()
            );
        }
        let small = self.new_mib.filter(|size| size.is_small());
        if let Some(Size { most, .. }) = small {
            println!("                   {xl} mem-max DOMID {most}");
        }
        println!("                   vmbeam evacuate {host_vm} --to {to}");
        println!(
            "                   {xl} shutdown -F DOMID, and after {} s {xl} destroy DOMID",
            options.shutdown_timeout
        );
        println!("                   {xl} rename {to} {host_vm}");
        if let Some(Size { most, .. }) = small {
            println!("                   {xl} mem-set DOMID {most}");
        }
    }
}

impl report::Report for Report {
    fn parts(&mut self) -> (&mut Base, &mut Seconds) {
        (&mut self.base, &mut self.seconds)
    }

    fn print(&self, options: &Options) {
        self.base.print("replaced");
        for (title, guests) in [
            (format!("  to {}:", self.base.to), &self.moved),
            ("  and back:".into(), &self.returned),
        ] {
            if !guests.is_empty() {
                println!("{title}");
                guests.iter().for_each(moves::print);
            }
        }
        if let (Some(peak), false) = (self.peak_extra_mib, self.base.dry_run) {
            println!("  host's memory    at most {peak} MiB more than before");
        }
        self.base.print_seconds(&self.seconds, "shutdown");
        if self.base.dry_run {
            self.print_steps(options);
        }
    }
}
