// SPDX-License-Identifier: GPL-2.0-only

//! The jobs, and the journal of those that must not be forgotten: one thing, so that no record
//! is left to nobody.

use crate::exchange::{refused, SwapError};
use crate::journal::Journal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tracing::info;
use vmbeam_wire::message::{GuestRef, JobReport};

/// Jobs that are remembered.
const MAX_JOBS: usize = 32;
/// How long a job may take to see that it is dismissed: an agent may have to answer first.
const DISMISSED: Duration = Duration::from_secs(45);
/// How often to look.
const LOOK: Duration = Duration::from_millis(20);

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Swap,
    Migrate,
    /// It brings to an end what another job, or another daemon, has begun. Nobody
    /// else touches guests of these host VMs.
    Settle,
}

/// A job, going on or over.
#[derive(Debug)]
struct Job {
    report: JobReport,
    what: What,
    /// Set to cancel it, or to dismiss one that settles.
    cancel: Arc<AtomicBool>,
}

/// A job that was entered.
#[derive(Clone, Debug)]
pub(crate) struct Begun {
    pub(crate) id: u64,
    pub(crate) cancel: Arc<AtomicBool>,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Jobs {
    table: Mutex<Vec<Job>>,
    pub(crate) journal: Journal,
}

/// No job settles anything in these host VMs.
fn free(table: &[Job], host_vms: [&str; 2]) -> Result<(), SwapError> {
    let touched = |j: &&Job| {
        let vms = [&*j.report.from.host_vm, &*j.report.to.host_vm];
        j.what == What::Settle && j.report.running && vms.iter().any(|vm| host_vms.contains(vm))
    };
    match table.iter().find(touched) {
        None => Ok(()),
        Some(job) => Err(refused(format!(
            "an earlier migration of {} to {} is still being brought to an end: {}",
            job.report.from, job.report.to.host_vm, job.report.phase
        ))),
    }
}

fn enter(table: &mut Vec<Job>, what: What, from: GuestRef, to: GuestRef) -> Begun {
    let id = table.last().map_or(1, |j| j.report.id + 1);
    info!(job = id, %from, %to, ?what, "a job begins");
    if table.len() >= MAX_JOBS {
        // The oldest that has ended; with few host VMs few can be running.
        let at = table.iter().position(|j| !j.report.running).unwrap_or(0);
        table.remove(at);
    }
    let cancel = Arc::<AtomicBool>::default();
    table.push(Job {
        report: JobReport {
            id,
            from,
            to,
            phase: "starting".into(),
            running: true,
        },
        what,
        cancel: cancel.clone(),
    });
    Begun { id, cancel }
}

fn say(table: &mut [Job], id: u64, phase: String, running: bool) {
    if let Some(job) = table.iter_mut().find(|j| j.report.id == id) {
        if !running {
            info!(job = id, "{phase}");
        }
        job.report.phase = phase;
        job.report.running = running;
    }
}

impl Jobs {
    pub(crate) fn new(journal: Journal) -> Self {
        let table = Mutex::default();
        Self { table, journal }
    }

    fn table(&self) -> MutexGuard<'_, Vec<Job>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn reports(&self) -> Vec<JobReport> {
        self.table().iter().map(|j| j.report.clone()).collect()
    }

    /// Whether a stop has to wait. What is being settled waits for agents, and goes on in the
    /// next daemon.
    pub(crate) fn are_running(&self) -> bool {
        let running = |j: &Job| j.report.running && j.what != What::Settle;
        self.table().iter().any(running)
    }

    /// Whether nothing is settled in these host VMs.
    pub(crate) fn free(&self, a: &str, b: &str) -> Result<(), SwapError> {
        free(&self.table(), [a, b])
    }

    /// Enter a job, unless an earlier one is in its way.
    pub(crate) fn begin(
        &self,
        what: What,
        from: GuestRef,
        to: GuestRef,
    ) -> Result<Begun, SwapError> {
        let mut table = self.table();
        if what != What::Settle {
            free(&table, [&from.host_vm, &to.host_vm])?;
        }
        Ok(enter(&mut table, what, from, to))
    }

    /// A job ends, and another one settles what it leaves: nobody comes in between.
    pub(crate) fn hand_over(
        &self,
        id: u64,
        outcome: String,
        from: GuestRef,
        to: GuestRef,
    ) -> Begun {
        let mut table = self.table();
        say(&mut table, id, outcome, false);
        enter(&mut table, What::Settle, from, to)
    }

    pub(crate) fn phase(&self, id: u64, phase: String) {
        say(&mut self.table(), id, phase, true);
    }

    pub(crate) fn end(&self, id: u64, outcome: String) {
        say(&mut self.table(), id, outcome, false);
    }

    pub(crate) fn abort(&self, id: u64) -> Result<(), String> {
        let table = self.table();
        let job = find(&table, id)?;
        match job.what {
            What::Migrate => {
                info!(job = id, "to be cancelled");
                job.cancel.store(true, Ordering::Relaxed);
                Ok(())
            }
            _ => Err(format!("job {id} cannot be cancelled")),
        }
    }

    /// Nothing more is done about what a job settles, because a person says so.
    pub(crate) fn dismiss(&self, id: u64) -> Result<(), String> {
        {
            let table = self.table();
            let job = find(&table, id)?;
            if job.what != What::Settle {
                return Err(format!(
                    "job {id} does not settle anything; `vmbeam abort` cancels a migration"
                ));
            }
            info!(job = id, "to be dismissed");
            job.cancel.store(true, Ordering::Relaxed);
        }
        let deadline = Instant::now() + DISMISSED;
        while find(&self.table(), id).is_ok() {
            if Instant::now() >= deadline {
                return Err(format!(
                    "job {id} is not dismissed yet: an agent must answer first, or the journal cannot be written; see `vmbeam status`"
                ));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

/// A job that runs.
fn find(table: &[Job], id: u64) -> Result<&Job, String> {
    match table.iter().find(|j| j.report.id == id) {
        Some(job) if job.report.running => Ok(job),
        Some(_) => Err(format!("job {id} has ended")),
        None => Err(format!("there is no job {id}")),
    }
}
