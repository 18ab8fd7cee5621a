// SPDX-License-Identifier: GPL-2.0-only

//! Bringing a migration to an end that did not get there by itself: its job failed, or the
//! daemon died. It is tried again and again, until a person dismisses it.
//! What hooks the last daemon has left is run as well.

use crate::boot;
use crate::exchange::internal;
use crate::execute::{Executor, Swapped, Work};
use crate::jobs::Begun;
use crate::journal::Record;
use crate::known::expect;
use crate::shared::{spawn, Shared};
use crate::side::Side;
use crate::unsettled::Unsettled;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::warn;
use vmbeam_control_protocol::{GuestRef, JobKind, JobOutcome};
use vmbeam_migration::{Command, Event, Outcome};

/// How long one attempt to settle a migration waits for agents.
const ATTEMPT: Duration = Duration::from_secs(60);
/// How long to wait after the first attempt, and at most. What can be settled is soon, and what
/// waits for a person does not fill the log.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How often to look whether it is dismissed, or the daemon stops.
const LOOK: Duration = Duration::from_millis(50);

/// Source and destination of the guest of a record.
pub(crate) fn ends(record: &Record) -> (GuestRef, GuestRef) {
    let here = |host_vm: &str| GuestRef {
        host_vm: host_vm.into(),
        guest: record.guest.clone(),
    };
    (here(&record.from.host_vm), here(&record.to.host_vm))
}

/// One that has come to an end, and as a person is told.
type End = (JobOutcome, String);

impl Shared {
    /// Run what the last daemon has left, but for what a record is about (`recorded`): that is
    /// settled first.
    pub(crate) fn resume_hooks(
        self: &Arc<Self>,
        recorded: &[(GuestRef, GuestRef)],
    ) -> anyhow::Result<()> {
        for (from, to) in self.hooks.left() {
            if recorded.iter().any(|(source, _)| *source == from) {
                continue;
            }
            // One that others wait for, as its guest must not move meanwhile.
            let job = self.jobs.begin(JobKind::Settle, from.clone(), to)?;
            let shared = self.clone();
            spawn("hook", move || {
                let doing = "running a hook that vmbeamd has left when it ended";
                shared.jobs.phase(job.id, doing.into());
                shared.hooks.after(&from, None);
                let end = "the hook after the move was run";
                shared.jobs.end(job.id, JobOutcome::Done, end.into());
            })?;
        }
        Ok(())
    }

    /// Try until a migration has come to an end, or the daemon stops.
    pub(crate) fn settle(&self, job: &Begun, mut what: Unsettled) {
        let (id, mut pause) = (job.id, PAUSE.0);
        let dismissed = || job.cancel.load(Ordering::Relaxed);
        while !self.is_stopping() {
            let leaves = dismissed();
            let attempt = match leaves {
                true => self.dismiss(&what),
                false => catch_unwind(AssertUnwindSafe(|| self.attempt(job, &mut what)))
                    .unwrap_or_else(|_| {
                        what = Unsettled::Written(what.id());
                        Err(internal().message)
                    }),
            };
            match attempt {
                Ok((outcome, text)) => {
                    if let Some(report) = self.jobs.report(id) {
                        self.hooks.after(&report.from, Some(outcome));
                    }
                    return self.jobs.end(id, outcome, text);
                }
                Err(why) => {
                    warn!(job = id, "cannot settle a migration yet: {why}");
                    self.jobs.phase(id, why);
                }
            }
            let again = Instant::now() + pause;
            while Instant::now() < again && !self.is_stopping() && leaves == dismissed() {
                std::thread::sleep(LOOK);
            }
            pause = PAUSE.1.min(2 * pause);
        }
    }

    /// Its record goes, and that is all.
    fn dismiss(&self, what: &Unsettled) -> Result<End, String> {
        if let Unsettled::Known(work) = what {
            let Record {
                guest, from, to, ..
            } = &work.record;
            let state = work.machine.reached();
            warn!(guest, ?from, ?to, ?state, "a record is dismissed");
        }
        self.jobs
            .journal
            .remove(what.id())
            .map_err(|e| format!("cannot remove the journal's record: {e}"))?;
        let end = "dismissed: vmbeamd does nothing more about this guest";
        Ok((JobOutcome::Dismissed, end.into()))
    }

    /// Do what can be done now. An error means: not everything.
    fn attempt(&self, job: &Begun, what: &mut Unsettled) -> Result<End, String> {
        if let Unsettled::Written(id) = what {
            match self.jobs.journal.read(*id)? {
                Some(record) => {
                    expect(&*self.driver, &record);
                    *what = Unsettled::Known(Box::new(Work::recovered(record)));
                }
                None => {
                    let end = "nothing was begun, or it has ended";
                    return Ok((JobOutcome::Failed, end.into()));
                }
            }
        }
        let Unsettled::Known(work) = what else {
            return Err(internal().message);
        };
        if boot::is_another(&work.record.boot) {
            let why = "the host was restarted since, with whatever this is about: nothing is done; `vmbeam forget --job` removes the record";
            return Err(why.into());
        }
        let (from, to) = (&work.record.from, &work.record.to);
        let (Ok(a), Ok(b)) = (self.host_vm(&from.host_vm), self.host_vm(&to.host_vm)) else {
            let why = "its host VMs are not in the configuration any more";
            return Err(format!("cannot be settled: {why}"));
        };
        let side = |vm, domid| Side::later(vm, domid, job.cancel.clone());
        let mut executor = Executor {
            driver: &*self.driver,
            journal: &self.jobs.journal,
            from: side(a, from.host_domid),
            to: side(b, to.host_domid),
            swapped: Swapped::Unknown,
            was_away: false,
            idle: false,
            deadline: Instant::now() + ATTEMPT,
            ended: false,
            filled: false,
            trouble: String::new(),
        };
        // The wait is over.
        if let Command::Wait(_) = work.machine.command() {
            work.machine = work.machine.step(Event::Done);
        }
        loop {
            match work.machine.command() {
                Command::End(outcome) => {
                    return Ok(match outcome {
                        Outcome::AtSource => (
                            JobOutcome::RolledBack,
                            format!("undone: {}", executor.at_source(work)),
                        ),
                        Outcome::AtDestination => (
                            JobOutcome::Done,
                            format!("completed: the guest runs in {}", executor.to.name()),
                        ),
                        Outcome::Lost => (JobOutcome::Failed, executor.lost(work)),
                    });
                }
                Command::Wait(why) => return Err(executor.waits_for(work, why)),
                _ => {
                    let event = executor.execute(work);
                    work.machine = work.machine.step(event);
                }
            }
            if self.is_stopping() || job.cancel.load(Ordering::Relaxed) {
                return Err("it is to be ended in the middle".into());
            }
        }
    }
}
