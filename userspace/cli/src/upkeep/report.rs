// SPDX-License-Identifier: GPL-2.0-only

//! What is printed at the end.

use super::Options;
use schemars::JsonSchema;
use serde::{Serialize, Serializer};

/// Seconds of each step of this run, in their order.
#[derive(Clone, Debug)]
pub(crate) struct Seconds(Vec<(&'static str, f64)>);

impl Seconds {
    pub(crate) fn of(steps: &[&'static str]) -> Self {
        let all = steps.iter().chain(&["total"]);
        Self(all.map(|step| (*step, 0.0)).collect())
    }

    pub(crate) fn set(&mut self, step: &str, seconds: f64) {
        if let Some(found) = self.0.iter_mut().find(|(name, _)| *name == step) {
            found.1 = seconds;
        }
    }

    fn print(&self, forced: Option<&str>) {
        for (step, seconds) in &self.0 {
            let note = match forced {
                Some(forced) if forced == *step => " (destroyed)",
                _ => "",
            };
            println!("  {step:<14} {seconds:>10.3} s{note}");
        }
    }
}

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.0.iter().copied())
    }
}

/// What both reports have.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(crate) struct Base {
    /// The host VM.
    pub(crate) host_vm: String,
    /// The host VM where its guests go.
    pub(crate) to: String,
    /// Nothing was changed because nothing was to be.
    pub(crate) dry_run: bool,
    /// It goes on with what an earlier run began.
    pub(crate) resumed: bool,
    /// The step that it ended in, or `done`.
    pub(crate) step: &'static str,
    /// Why it did not get further.
    pub(crate) error: Option<String>,
    /// What is in the way.
    pub(crate) blockers: Vec<String>,
    /// The guest hypervisor, as it was.
    pub(crate) hypervisor_before: Option<String>,
    /// The guest hypervisor, as it is.
    pub(crate) hypervisor_after: Option<String>,
    /// The domid that the host VM had.
    pub(crate) domid_before: Option<u32>,
    /// The domid that it has.
    pub(crate) domid_after: Option<u32>,
    /// The host VM did not shut down in time and was destroyed.
    pub(crate) forced: bool,
    /// It was stopped by Ctrl-C.
    pub(crate) interrupted: bool,
}

impl Base {
    /// Its first lines; `done` says what was done if all was.
    pub(crate) fn print(&self, done: &str) {
        let unknown = || "unknown".to_owned();
        let before = self.hypervisor_before.clone().unwrap_or_else(unknown);
        let done = match self.step {
            "done" => done,
            "undone" => "undone",
            _ if self.dry_run => "dry run, nothing was changed",
            _ => "NOT done",
        };
        println!("{}: {done}", self.host_vm);
        match &self.hypervisor_after {
            Some(after) => println!("  guest hypervisor {before} -> {after}"),
            None => println!("  guest hypervisor {before}"),
        }
    }

    /// Its last ones; `ending` is the step that ends a host VM.
    pub(crate) fn print_seconds(&self, seconds: &Seconds, ending: &str) {
        if !self.dry_run {
            seconds.print(self.forced.then_some(ending));
        }
    }
}

/// The one report at the end.
pub(crate) trait Report: Serialize {
    fn parts(&mut self) -> (&mut Base, &mut Seconds);
    fn print(&self, options: &Options);
}
