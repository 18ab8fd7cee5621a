// SPDX-License-Identifier: GPL-2.0-only

//! The jobs of the daemon.

use crate::guest::GuestRef;
use crate::request::Failure;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A job of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JobReport {
    /// Number of the job, from 1 on.
    pub id: u64,
    /// Source.
    pub from: GuestRef,
    /// Destination.
    pub to: GuestRef,
    /// What it is doing, or how it ended.
    pub phase: String,
    /// Still going on.
    pub running: bool,
    /// What sort of job.
    pub kind: JobKind,
    /// How it has ended, if it has.
    pub outcome: Option<JobOutcome>,
}

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobKind {
    /// It swaps the memory of two guests.
    Swap,
    /// It migrates a guest.
    Migrate,
    /// It brings to an end what another job, or another daemon, has begun. Nobody
    /// else touches guests of these host VMs.
    Settle,
    /// It moves all guests of a host VM, each by a job of its own.
    Evacuate,
    /// It does nothing about what another boot of the host has left, and is in nobody's way.
    Left,
    /// It restarts a host VM under its guests, which move by jobs of their own.
    Rejuvenate,
    /// It puts another host VM in the place of one, whose guests move by jobs of their own.
    Replace,
}

impl JobKind {
    /// Whether a process beside the daemon does the work.
    pub fn is_upkeep(self) -> bool {
        matches!(self, Self::Rejuvenate | Self::Replace)
    }
}

/// How a job has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobOutcome {
    /// It has done what it was to do.
    Done,
    /// It has done a part of that.
    Incomplete,
    /// It was refused, and nothing was changed.
    Refused,
    /// It failed half way, and everything was put back.
    RolledBack,
    /// It failed.
    Failed,
    /// Another job brings to an end what it has begun.
    HandedOver,
    /// The next daemon goes on with it.
    Suspended,
    /// A person has given it up.
    Dismissed,
}

impl From<Failure> for JobOutcome {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused => Self::Refused,
            Failure::RolledBack => Self::RolledBack,
            Failure::Failed => Self::Failed,
        }
    }
}
