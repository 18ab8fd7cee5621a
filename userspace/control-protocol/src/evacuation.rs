// SPDX-License-Identifier: GPL-2.0-only

//! Moving all guests of a host VM: what is wanted, and what became of it.

use crate::report::MigrateReport;
use crate::request::Mode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vmbeam_agent_protocol::{Uuid, MAX_GUESTS};
use vmbeam_wire::message::name;

/// What an evacuation is to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvacuateRequest {
    /// The host VM that is to be left.
    pub from: String,
    /// The host VM where its guests are to go.
    pub to: String,
    /// Only these guests, in this order; otherwise all, in the order of their domids.
    pub only: Option<Vec<String>>,
    /// How their memory gets there.
    pub mode: Mode,
    /// Move whatever can be moved; otherwise begin only if nothing is in the way of any
    /// guest, and stop at the first that does not get there.
    pub keep_going: bool,
    /// Only find out what is in the way.
    pub dry_run: bool,
    /// For each guest, as [`MigrateRequest::timeout_seconds`](crate::MigrateRequest).
    pub timeout_seconds: Option<u32>,
    /// How long to wait for other jobs, and for agents when the daemon was started again.
    pub wait_seconds: u32,
}

impl EvacuateRequest {
    pub(crate) fn check(&self) -> Result<(), String> {
        name("a host VM's name", &self.from)?;
        name("a host VM's name", &self.to)?;
        let guests = self.only.as_deref().unwrap_or_default();
        if guests.len() > MAX_GUESTS {
            return Err(format!("{} guests; the most is {MAX_GUESTS}", guests.len()));
        }
        guests.iter().try_for_each(|g| name("a guest's name", g))
    }
}

/// What became of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MoveOutcome {
    /// Nothing yet; it is where it was.
    Waiting,
    /// It runs at the destination.
    Moved,
    /// It never left.
    Refused,
    /// Its move failed, and it runs where it was.
    PutBack,
    /// Its move failed, and is not at an end.
    Failed,
    /// It is in neither host VM any more.
    Gone,
}

/// A guest, and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuestMove {
    /// Its name.
    pub guest: String,
    /// Its UUID, as far as it is known.
    #[serde(default)]
    pub uuid: Option<Uuid>,
    /// Its memory.
    pub mib: u64,
    /// What became of it.
    pub outcome: MoveOutcome,
    /// Why, if it did not move.
    pub reasons: Vec<String>,
    /// How it moved. Not known of one that a daemon moved that has ended since.
    pub migration: Option<Box<MigrateReport>>,
}

impl GuestMove {
    /// One to which nothing has happened yet.
    pub fn new(guest: &str, mib: u64) -> Self {
        Self {
            guest: guest.into(),
            uuid: None,
            mib,
            outcome: MoveOutcome::Waiting,
            reasons: Vec::new(),
            migration: None,
        }
    }

    /// This became of it, and why.
    pub fn ended(&mut self, outcome: MoveOutcome, reason: String) {
        self.outcome = outcome;
        self.reasons.push(reason);
    }
}

/// Seconds that an evacuation took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EvacuateSeconds {
    /// Finding out whether it is possible.
    pub preflight: f64,
    /// The whole job, and what lay between two daemons.
    pub total: f64,
}

/// What an evacuation has done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EvacuateReport {
    /// The host VM that was to be left.
    pub from: String,
    /// The host VM where its guests were to go.
    pub to: String,
    /// Nothing was changed because nothing was to be.
    pub dry_run: bool,
    /// Guests that moved at once.
    pub parallel: u32,
    /// Why no guest can move.
    pub blockers: Vec<String>,
    /// What is not in the way, and somebody should look at.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Memory of all guests, in MiB.
    pub needed_mib: u64,
    /// Memory that the destination had for them, in MiB.
    pub free_mib: u64,
    /// The guests, in the order in which they move.
    pub guests: Vec<GuestMove>,
    /// It was stopped with guests left.
    pub interrupted: bool,
    /// Times.
    pub seconds: EvacuateSeconds,
}

impl EvacuateReport {
    /// Guests that came to this end.
    pub fn count(&self, outcome: MoveOutcome) -> usize {
        self.guests.iter().filter(|g| g.outcome == outcome).count()
    }

    /// Something is in the way of a guest, or of all.
    pub fn is_blocked(&self) -> bool {
        !self.blockers.is_empty() || self.count(MoveOutcome::Refused) > 0
    }
}
