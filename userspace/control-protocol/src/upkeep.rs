// SPDX-License-Identifier: GPL-2.0-only

//! Rejuvenations and replacements of host VMs: jobs whose work a process beside the daemon does.

use crate::job::JobKind;
use serde::{Deserialize, Serialize};
use vmbeam_wire::message::{name, short, MAX_TEXT};
use vmbeam_wire::MAX_PAYLOAD;

/// What a process is about to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpkeepRequest {
    /// [`JobKind::Rejuvenate`] or [`JobKind::Replace`].
    pub kind: JobKind,
    /// The host VM that is to be restarted or replaced.
    pub host_vm: String,
    /// Where its guests go.
    pub to: String,
    /// All that it was told. Whoever is told the same means the same job.
    pub arguments: String,
}

impl UpkeepRequest {
    pub(crate) fn check(&self) -> Result<(), String> {
        if !self.kind.is_upkeep() {
            return Err("what it does is no upkeep".into());
        }
        name("a host VM's name", &self.host_vm)?;
        name("a host VM's name", &self.to)?;
        short("arguments", &self.arguments, 4 * MAX_TEXT)
    }
}

/// How it has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpkeepReport {
    /// The exit status that says so.
    pub code: u8,
    /// The same for the list of jobs.
    pub text: String,
    /// The report for a person. Empty if there is none.
    pub lines: String,
    /// The same report for programs.
    pub json: String,
}

impl UpkeepReport {
    pub(crate) fn check(&self) -> Result<(), String> {
        short("an outcome", &self.text, 4 * MAX_TEXT)?;
        short("a report", &self.lines, MAX_PAYLOAD)?;
        short("a report", &self.json, MAX_PAYLOAD)
    }
}
