// SPDX-License-Identifier: GPL-2.0-only

//! What whoever follows the daemon is told.

use crate::guest::GuestRef;
use crate::job::{JobKind, JobOutcome, JobReport};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What sort of thing has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// The daemon is followed from here on: what was before is not known.
    Following,
    /// A job has begun.
    JobBegins,
    /// A job does something else than before.
    JobStep,
    /// A job has ended.
    JobEnds,
    /// Something that a person should know, as in the daemon's log.
    Warning,
    /// The agent of a host VM can be talked to.
    AgentAppears,
    /// It cannot any more.
    AgentDisappears,
    /// Somebody begins to work on a host VM.
    MaintenanceBegins,
    /// Nobody does any more.
    MaintenanceEnds,
    /// Events are missing here: they were not read fast enough.
    Dropped,
}

/// Something that has happened. What it does not have to do with is empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// When: milliseconds since the beginning of 1970, UTC.
    pub time_ms: u64,
    /// What.
    pub event: EventKind,
    /// Number of the job that it is about.
    pub job: Option<u64>,
    /// What sort of job.
    pub kind: Option<JobKind>,
    /// The job's source.
    pub from: Option<GuestRef>,
    /// The job's destination.
    pub to: Option<GuestRef>,
    /// How the job has ended, if it has.
    pub outcome: Option<JobOutcome>,
    /// The host VM that it is about.
    pub host_vm: Option<String>,
    /// The same for a person.
    pub text: Option<String>,
    /// How many events are missing here.
    pub dropped: u64,
}

impl Event {
    /// One that is about nothing yet.
    pub fn new(time_ms: u64, event: EventKind) -> Self {
        Self {
            time_ms,
            event,
            job: None,
            kind: None,
            from: None,
            to: None,
            outcome: None,
            host_vm: None,
            text: None,
            dropped: 0,
        }
    }

    /// It is about a job, as that is now.
    pub fn about(self, job: &JobReport) -> Self {
        Self {
            job: Some(job.id),
            kind: Some(job.kind),
            from: Some(job.from.clone()),
            to: Some(job.to.clone()),
            outcome: job.outcome,
            text: Some(job.phase.clone()),
            ..self
        }
    }
}
