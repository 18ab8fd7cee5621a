// SPDX-License-Identifier: GPL-2.0-only

//! The jobs, and the journal of those that must not be forgotten: one thing, so that no record
//! is left to nobody.

use crate::events::Events;
use crate::exchange::{refused, SwapError};
use crate::journal::Journal;
use crate::numbers::Numbers;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tracing::info;
use vmbeam_control_protocol::{EventKind, GuestRef, JobKind, JobOutcome, JobReport};

/// Jobs that are remembered, if no more than that go on.
const MAX_JOBS: usize = 32;
/// How long a job may take to see that it is dismissed: an agent may have to answer first.
const DISMISSED: Duration = Duration::from_secs(45);
/// How often to look.
const LOOK: Duration = Duration::from_millis(20);

/// A job, going on or over.
#[derive(Debug)]
struct Job {
    report: JobReport,
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
    numbers: Numbers,
    events: Arc<Events>,
    pub(crate) journal: Journal,
}

impl Job {
    /// It may be about any host VM: nobody knows.
    fn is_of_all(&self) -> bool {
        self.report.from.host_vm.is_empty()
    }

    fn touches(&self, host_vms: [&str; 2]) -> bool {
        let vms = [&*self.report.from.host_vm, &*self.report.to.host_vm];
        let touches = self.is_of_all() || vms.iter().any(|vm| host_vms.contains(vm));
        self.report.running && touches
    }
}

/// It is about what another job has left, and ends when it is dismissed.
fn is_settling(kind: JobKind) -> bool {
    matches!(kind, JobKind::Settle | JobKind::Left)
}

/// No job settles anything in these host VMs.
fn free(table: &[Job], host_vms: [&str; 2]) -> Result<(), SwapError> {
    let settles = |j: &&Job| j.report.kind == JobKind::Settle && j.touches(host_vms);
    match table.iter().find(settles) {
        None => Ok(()),
        Some(job) if job.is_of_all() => Err(refused(format!(
            "an earlier migration, which may be of any host VM, is not at its end (job {}): {}",
            job.report.id, job.report.phase
        ))),
        Some(job) => Err(refused(format!(
            "an earlier migration of {} to {} is still being brought to an end: {}",
            job.report.from, job.report.to.host_vm, job.report.phase
        ))),
    }
}

/// No evacuation has to do with these host VMs: two would move guests there and back.
fn alone(table: &[Job], host_vms: [&str; 2]) -> Result<(), SwapError> {
    let evacuates = |j: &&Job| j.report.kind == JobKind::Evacuate && j.touches(host_vms);
    match table.iter().find(evacuates) {
        None => Ok(()),
        Some(Job { report, .. }) => Err(refused(format!(
            "job {0} moves the guests of host VM {1} to {2} already; `vmbeam watch {0}` follows it, `vmbeam abort {0}` stops it",
            report.id, report.from, report.to
        ))),
    }
}

impl Jobs {
    pub(crate) fn new(journal: Journal, events: Arc<Events>) -> Self {
        let table = Mutex::default();
        let numbers = Numbers::open(journal.dir());
        Self {
            table,
            numbers,
            events,
            journal,
        }
    }

    /// A job does this now, or has ended like this. Said under the lock, so that nobody sees
    /// its end before its last step.
    fn say(&self, table: &mut [Job], id: u64, outcome: Option<JobOutcome>, phase: String) {
        let Some(job) = table.iter_mut().find(|j| j.report.id == id) else {
            return;
        };
        let report = &mut job.report;
        let kind = match outcome {
            Some(_) => {
                info!(job = id, "{phase}");
                EventKind::JobEnds
            }
            // So far, and no further.
            None if report.phase == phase => return,
            None => EventKind::JobStep,
        };
        report.phase = phase;
        report.running = outcome.is_none();
        report.outcome = outcome;
        self.events.job(kind, report);
    }

    fn enter(&self, table: &mut Vec<Job>, kind: JobKind, from: GuestRef, to: GuestRef) -> Begun {
        let id = self.numbers.next();
        info!(job = id, %from, %to, ?kind, "a job begins");
        while table.len() >= MAX_JOBS {
            // The oldest that has ended. What goes on must be seen, and be in the way of others.
            let Some(at) = table.iter().position(|j| !j.report.running) else {
                break;
            };
            table.remove(at);
        }
        let report = JobReport {
            id,
            from,
            to,
            phase: "starting".into(),
            running: true,
            kind,
            outcome: None,
        };
        self.events.job(EventKind::JobBegins, &report);
        let cancel = Arc::<AtomicBool>::default();
        table.push(Job {
            report,
            cancel: cancel.clone(),
        });
        Begun { id, cancel }
    }

    /// Enter a job that an earlier daemon had.
    pub(crate) fn known(&self, report: JobReport) {
        self.numbers.at_least(report.id);
        if report.running {
            self.events.job(EventKind::JobBegins, &report);
        }
        let cancel = Arc::default();
        self.table().push(Job { report, cancel });
    }

    /// It is not spoken of any more.
    pub(crate) fn forget(&self, id: u64) {
        self.table().retain(|j| j.report.id != id);
    }

    /// What goes on in these host VMs, but for evacuations and upkeeps: those wait for it.
    pub(crate) fn busy(&self, host_vms: [&str; 2]) -> Option<JobReport> {
        let above = |kind: JobKind| kind == JobKind::Evacuate || kind.is_upkeep();
        let other = |kind| !above(kind) && kind != JobKind::Left;
        let moves = |j: &&Job| other(j.report.kind) && j.touches(host_vms);
        self.table().iter().find(moves).map(|j| j.report.clone())
    }

    fn table(&self) -> MutexGuard<'_, Vec<Job>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn reports(&self) -> Vec<JobReport> {
        self.table().iter().map(|j| j.report.clone()).collect()
    }

    pub(crate) fn report(&self, id: u64) -> Option<JobReport> {
        self.reports().into_iter().find(|j| j.id == id)
    }

    /// Whether a stop has to wait. What is being settled waits for agents, and goes on in the
    /// next daemon; an upkeep goes on without any.
    pub(crate) fn are_running(&self) -> bool {
        let waits = |kind: JobKind| !is_settling(kind) && !kind.is_upkeep();
        let running = |j: &Job| j.report.running && waits(j.report.kind);
        self.table().iter().any(running)
    }

    /// Whether nothing is settled in these host VMs.
    pub(crate) fn free(&self, a: &str, b: &str) -> Result<(), SwapError> {
        free(&self.table(), [a, b])
    }

    /// Whether nothing is brought to an end in this host VM, and not all guests of one move.
    pub(crate) fn calm(&self, host_vm: &str) -> Result<(), SwapError> {
        let table = self.table();
        free(&table, [host_vm; 2])?;
        alone(&table, [host_vm; 2])
    }

    /// The number that was given last.
    pub(crate) fn last(&self) -> u64 {
        self.numbers.last()
    }

    /// A migration that goes on, or has begun since this number was given, and that this is true of.
    pub(crate) fn moves(&self, since: u64, of: impl Fn(&JobReport) -> bool) -> Option<JobReport> {
        let moves = |j: &&Job| {
            let JobReport {
                id, kind, running, ..
            } = j.report;
            kind == JobKind::Migrate && (running || id > since) && of(&j.report)
        };
        self.table().iter().find(moves).map(|j| j.report.clone())
    }

    /// Enter a job, unless an earlier one is in its way.
    pub(crate) fn begin(
        &self,
        kind: JobKind,
        from: GuestRef,
        to: GuestRef,
    ) -> Result<Begun, SwapError> {
        let mut table = self.table();
        let host_vms = [&*from.host_vm, &*to.host_vm];
        match kind {
            // Of a host VM there is one upkeep at a time: whoever enters it sees to that.
            JobKind::Settle | JobKind::Left | JobKind::Rejuvenate | JobKind::Replace => {}
            JobKind::Evacuate => alone(&table, host_vms)?,
            JobKind::Swap | JobKind::Migrate => free(&table, host_vms)?,
        }
        Ok(self.enter(&mut table, kind, from, to))
    }

    /// A job ends, and another one settles what it leaves: nobody comes in between.
    pub(crate) fn hand_over(
        &self,
        id: u64,
        outcome: JobOutcome,
        text: String,
        from: GuestRef,
        to: GuestRef,
    ) -> Begun {
        let mut table = self.table();
        self.say(&mut table, id, Some(outcome), text);
        self.enter(&mut table, JobKind::Settle, from, to)
    }

    pub(crate) fn phase(&self, id: u64, phase: String) {
        self.say(&mut self.table(), id, None, phase);
    }

    pub(crate) fn end(&self, id: u64, outcome: JobOutcome, text: String) {
        self.say(&mut self.table(), id, Some(outcome), text);
    }

    pub(crate) fn abort(&self, id: u64) -> Result<(), String> {
        let table = self.table();
        let job = find(&table, id)?;
        match job.report.kind {
            JobKind::Migrate => {
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
            if !is_settling(job.report.kind) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_comes_between_a_job_and_who_settles_what_it_leaves() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _, _) = Journal::open(dir.path()).unwrap();
        let jobs = Jobs::new(journal, Arc::default());
        let guest = |host_vm: &str| GuestRef {
            host_vm: host_vm.into(),
            guest: "guest".into(),
        };
        let begin = |kind, to: &str| jobs.begin(kind, guest("A"), guest(to));
        let moves = begin(JobKind::Migrate, "B").unwrap();
        let text = "it failed".to_owned();
        let settles = jobs.hand_over(
            moves.id,
            JobOutcome::HandedOver,
            text,
            guest("A"),
            guest("B"),
        );
        assert!(!jobs.report(moves.id).unwrap().running);
        for to in ["B", "C"] {
            let e = begin(JobKind::Swap, to).unwrap_err();
            assert!(e.message.contains("is still being brought to an end"));
        }
        jobs.end(settles.id, JobOutcome::Done, "it runs in A".into());
        begin(JobKind::Swap, "B").unwrap();
    }

    #[test]
    fn what_goes_on_is_not_forgotten_for_what_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _, _) = Journal::open(dir.path()).unwrap();
        let jobs = Jobs::new(journal, Arc::default());
        let begin = |kind, host_vm: &str| {
            let end = GuestRef {
                host_vm: host_vm.into(),
                guest: "guest".into(),
            };
            jobs.begin(kind, end.clone(), end)
        };
        let settles = begin(JobKind::Settle, "A").unwrap();
        let all = 2 * MAX_JOBS;
        let others: Vec<_> = (1..all)
            .map(|_| begin(JobKind::Left, "B").unwrap().id)
            .collect();
        assert_eq!(jobs.reports().len(), all);
        assert!(begin(JobKind::Swap, "A").is_err());
        for id in others {
            jobs.end(id, JobOutcome::Dismissed, "dismissed".into());
        }
        begin(JobKind::Swap, "B").unwrap();
        assert_eq!(jobs.reports().len(), MAX_JOBS);
        assert!(jobs.report(settles.id).is_some());
    }
}
