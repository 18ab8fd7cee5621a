// SPDX-License-Identifier: GPL-2.0-only

//! Moving one guest after the other, whatever happens to each: for `vmbeam
//! evacuate` and `vmbeam rejuvenate`.

use crate::client::{Client, ClientError};
use crate::display::Display;
use crate::interrupt::Interrupt;
use crate::migrate::Json;
use crate::output;
use serde::{Serialize, Serializer};
use std::path::Path;
use std::time::{Duration, Instant};
use vmbeam_wire::message::{
    Failure, FromDaemon, Guest, GuestRef, HostVmReport, JobReport, MigrateReport, MigrateRequest,
    Mode, PlanReport, ToDaemon,
};

/// How often to look whether the daemon has ended what it does.
const LOOK: Duration = Duration::from_secs(1);

/// Guests that move at a time. An agent has one port, one conversation, and one
/// move in it; a second one would only make both guests stand still for longer.
pub(crate) const AT_A_TIME: u32 = 1;

/// Who needs memory, when several guests move: while they do, the destination has
/// memory of its own for each.
pub(crate) const TOGETHER: &str = "all guests together need";

/// What became of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
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

impl Outcome {
    /// For a person.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Waiting => "not begun",
            Self::Moved => "moved",
            Self::Refused => "refused",
            Self::PutBack => "put back",
            Self::Failed => "FAILED",
            Self::Gone => "not there any more",
        }
    }
}

/// A guest, and what became of it.
#[derive(Debug, Serialize)]
pub(crate) struct Moved {
    pub(crate) guest: String,
    pub(crate) mib: u64,
    pub(crate) outcome: Outcome,
    /// Why, if it did not move.
    pub(crate) reasons: Vec<String>,
    #[serde(serialize_with = "as_migrate_prints_it")]
    pub(crate) migration: Option<Box<MigrateReport>>,
}

fn as_migrate_prints_it<S: Serializer>(
    report: &Option<Box<MigrateReport>>,
    to: S,
) -> Result<S::Ok, S::Error> {
    report.as_deref().map(Json::from).serialize(to)
}

impl Moved {
    pub(crate) fn new(guest: &str, mib: u64) -> Self {
        Self {
            guest: guest.into(),
            mib,
            outcome: Outcome::Waiting,
            reasons: Vec::new(),
            migration: None,
        }
    }

    pub(crate) fn of(guest: &Guest) -> Self {
        Self::new(&guest.name, guest.pages.div_ceil(256))
    }

    fn ended(&mut self, outcome: Outcome, reason: &impl ToString) {
        self.outcome = outcome;
        self.reasons.push(reason.to_string());
    }

    /// One line for a person.
    pub(crate) fn print(&self) {
        let times = self.migration.as_ref().map_or(String::new(), |m| {
            format!(
                "  {:>9.3} s, down for {:.3} s, {} pages swapped, {} copied, {} sent",
                m.seconds.total, m.seconds.downtime, m.pages_swapped, m.pages_copied, m.pages_sent
            )
        });
        let (name, mib) = (output::name(&self.guest), self.mib);
        let outcome = self.outcome.text();
        println!("  {name:<16} {mib:>6} MiB  {outcome}{times}");
        for reason in &self.reasons {
            println!("    {reason}");
        }
    }
}

/// How to move guests between two host VMs.
#[derive(Debug)]
pub(crate) struct Mover<'a> {
    pub(crate) socket: &'a Path,
    pub(crate) mode: Mode,
    /// Limit of one guest's move.
    pub(crate) timeout_seconds: Option<u32>,
    /// How long to wait for what the daemon is still doing.
    pub(crate) patience: Duration,
    pub(crate) interrupt: Interrupt,
}

fn touches(job: &JobReport, host_vm: &str) -> bool {
    job.from.host_vm == host_vm || job.to.host_vm == host_vm
}

impl Mover<'_> {
    fn ask(&self, request: &ToDaemon) -> Result<FromDaemon, ClientError> {
        Client::connect(self.socket)?.ask(request, |_| {})
    }

    /// Wait until no job has anything to do with these host VMs: another one, one
    /// that this program's predecessor began, or one that is being settled. A daemon
    /// that is away may be being restarted.
    pub(crate) fn wait_until_idle(&self, host_vms: [&str; 2]) -> Result<(), ClientError> {
        let deadline = Instant::now() + self.patience;
        let mut told = false;
        loop {
            let (problem, says) = match self.ask(&ToDaemon::Status) {
                Ok(FromDaemon::Status(jobs)) => {
                    let busy = jobs
                        .into_iter()
                        .find(|j| j.running && host_vms.iter().any(|vm| touches(j, vm)));
                    let Some(job) = busy else { return Ok(()) };
                    let says = format!(
                        "job {}, {} -> {}: {}",
                        job.id, job.from, job.to.host_vm, job.phase
                    );
                    (ClientError::Busy(says.clone()), says)
                }
                Ok(_) => return Err(ClientError::Unexpected),
                Err(e) => {
                    let says = e.to_string();
                    (e, says)
                }
            };
            if Instant::now() >= deadline || self.interrupt.is_wanted() {
                return Err(problem);
            }
            if !told {
                eprintln!("vmbeam: waiting for {says}");
                told = true;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// What is in the way.
    pub(crate) fn plan(&self, from: &str, to: &str) -> Result<PlanReport, ClientError> {
        let (from, to, mode) = (from.into(), to.into(), self.mode);
        match self.ask(&ToDaemon::Plan { from, to, mode })? {
            FromDaemon::Plan(plan) => Ok(plan),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// All host VMs and their guests.
    pub(crate) fn list(&self) -> Result<Vec<HostVmReport>, ClientError> {
        match self.ask(&ToDaemon::List)? {
            FromDaemon::List(host_vms) => Ok(host_vms),
            _ => Err(ClientError::Unexpected),
        }
    }

    fn has(&self, host_vm: &str, guest: &str) -> Result<bool, ClientError> {
        let guests = self
            .list()?
            .into_iter()
            .find(|vm| vm.name == host_vm)
            .map_or(Ok(Vec::new()), |vm| vm.guests);
        match guests {
            Ok(guests) => Ok(guests.iter().any(|g| g.name == guest)),
            Err(message) => Err(ClientError::Daemon {
                failure: Failure::Failed,
                message,
            }),
        }
    }

    fn migrate(&self, guest: &str, from: &str, to: &str) -> Result<FromDaemon, ClientError> {
        let request = MigrateRequest {
            from: GuestRef {
                host_vm: from.into(),
                guest: guest.into(),
            },
            to: to.into(),
            mode: self.mode,
            dry_run: false,
            verify: false,
            timeout_seconds: self.timeout_seconds,
            max_downtime_ms: None,
        };
        let mut display = Display::new();
        let last =
            Client::connect(self.socket)?.ask(&ToDaemon::Migrate(request), |part| match part {
                FromDaemon::Progress { phase, done, total } => display.show(*phase, *done, *total),
                FromDaemon::Job { id } => self.interrupt.begun(*id),
                _ => {}
            });
        display.clear();
        self.interrupt.ended();
        last
    }

    /// Move a guest, and find out what became of it whatever happens.
    pub(crate) fn go(&self, moved: &mut Moved, from: &str, to: &str) {
        if let Err(e) = self.wait_until_idle([from, to]) {
            return moved.ended(Outcome::Refused, &e);
        }
        let error = match self.migrate(&moved.guest, from, to) {
            Ok(FromDaemon::Migrated(report)) => {
                moved.outcome = Outcome::Moved;
                moved.reasons.extend(report.pending.clone());
                moved.migration = Some(report);
                return;
            }
            Ok(_) => ClientError::Unexpected,
            Err(e) => e,
        };
        match error {
            ClientError::Daemon {
                failure: Failure::Refused,
                message,
            } => moved.ended(Outcome::Refused, &message),
            ClientError::Daemon {
                failure: Failure::RolledBack,
                message,
            } => moved.ended(Outcome::PutBack, &message),
            // The daemon goes on with it, or the next daemon does.
            e => {
                moved.ended(Outcome::Failed, &e);
                moved.outcome = self.where_is(&moved.guest, from, to).unwrap_or_else(|e| {
                    moved.reasons.push(e.to_string());
                    Outcome::Failed
                });
            }
        }
    }

    /// What became of a guest whose move did not end before our eyes.
    fn where_is(&self, guest: &str, from: &str, to: &str) -> Result<Outcome, ClientError> {
        self.wait_until_idle([from, to])?;
        Ok(match (self.has(from, guest)?, self.has(to, guest)?) {
            (true, false) => Outcome::PutBack,
            (false, true) => Outcome::Moved,
            _ => Outcome::Failed,
        })
    }
}
