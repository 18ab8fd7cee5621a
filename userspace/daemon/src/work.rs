// SPDX-License-Identifier: GPL-2.0-only

//! The jobs that a client asks for: entered, shown while they go on, and said how they ended.

use crate::client::Client;
use crate::exchange::{internal, SwapError};
use crate::jobs::Begun;
use crate::limits::Context;
use crate::migrate::migrate;
use crate::shared::Shared;
use crate::swap::swap;
use crate::unsettled::Unsettled;
use std::time::Instant;
use vmbeam_control_protocol::{
    FromDaemon, GuestRef, JobKind, JobOutcome, MigrateReport, MigrateRequest, Phase, SwapReport,
    SwapRequest,
};

/// What a job has left, and the job that is to settle it.
pub(crate) type Left = Option<(Begun, Unsettled)>;

/// A panic is a bug, but must not leave a job that goes on for ever.
fn caught<T>(run: impl FnOnce() -> Result<T, SwapError>) -> Result<T, SwapError> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_or_else(|_| Err(internal()))
}

/// How a migration has ended.
fn ended(result: &Result<MigrateReport, SwapError>) -> (JobOutcome, String) {
    match result {
        Ok(r) if r.dry_run && r.blockers.is_empty() => {
            (JobOutcome::Done, "dry run: possible".into())
        }
        Ok(r) if r.dry_run => (
            JobOutcome::Refused,
            format!("dry run: {}", r.blockers.join("; ")),
        ),
        Ok(r) => (
            JobOutcome::Done,
            format!(
                "migrated: {} pages swapped ({} relocated), {} copied, down for {:.3} s",
                r.pages_swapped, r.relocated, r.pages_copied, r.seconds.downtime
            ),
        ),
        Err(e) => (e.failure.into(), e.message.clone()),
    }
}

impl Shared {
    /// Shows progress in the list of jobs, and to whoever watches.
    fn progress<'a>(
        &'a self,
        id: u64,
        show: impl Fn(&FromDaemon) + Sync + 'a,
    ) -> impl Fn(Phase, u64, u64) + Sync + 'a {
        move |phase, done, total| {
            // That is not something that it does.
            if phase != Phase::Expected {
                self.jobs.phase(id, phase.text().into());
            }
            show(&FromDaemon::Progress { phase, done, total });
        }
    }

    pub(crate) fn swap(
        &self,
        request: &SwapRequest,
        client: &Client,
    ) -> Result<SwapReport, SwapError> {
        let host_vms = self.pair(&request.from.host_vm, &request.to.host_vm)?;
        let job = self
            .jobs
            .begin(JobKind::Swap, request.from.clone(), request.to.clone())?;
        let id = job.id;
        let progress = self.progress(id, |m| client.show(m));
        let result = caught(|| swap(&*self.driver, host_vms, request, &progress));
        let (outcome, text) = match &result {
            Ok(r) if r.dry_run => (
                JobOutcome::Done,
                format!("dry run: {} pages can be swapped", r.pages_swapped),
            ),
            Ok(r) if r.mismatches > 0 => (
                JobOutcome::Failed,
                format!("{} pages do not match", r.mismatches),
            ),
            Ok(r) => (
                JobOutcome::Done,
                format!("swapped {} pages", r.pages_swapped),
            ),
            Err(e) => (e.failure.into(), e.message.clone()),
        };
        self.jobs.end(id, outcome, text);
        result
    }

    /// Migrate a guest; also gives what is left to be settled, and the job that is to do that.
    pub(crate) fn migrate(
        &self,
        request: &MigrateRequest,
        told: impl FnOnce(&Begun),
        show: impl Fn(&FromDaemon) + Sync,
    ) -> (Result<MigrateReport, SwapError>, Left) {
        let from = request.from.clone();
        let to = GuestRef {
            host_vm: request.to.clone(),
            guest: from.guest.clone(),
        };
        let begun = self.pair(&from.host_vm, &to.host_vm).and_then(|host_vms| {
            let job = self
                .jobs
                .begin(JobKind::Migrate, from.clone(), to.clone())?;
            Ok((host_vms, job))
        });
        let (host_vms, job) = match begun {
            Ok(begun) => begun,
            Err(e) => return (Err(e), None),
        };
        let id = job.id;
        told(&job);
        let progress = self.progress(id, show);
        let context = Context {
            driver: &*self.driver,
            journal: &self.jobs.journal,
            progress: &progress,
            cancel: &job.cancel,
            stop: &self.stop,
            started: Instant::now(),
            pauses: &self.pauses,
            hooks: &self.hooks,
            autostart: self.config.autostart,
            job: id,
        };
        // Until somebody settles what is left it has the agents.
        let mut finished =
            caught(|| Ok(migrate(context, host_vms, request))).unwrap_or_else(|e| Err(e).into());
        if !request.dry_run {
            self.metrics.migration(&finished.result);
            if let Ok(report) = &finished.result {
                self.pauses.note(report);
            }
        }
        let (outcome, text) = ended(&finished.result);
        let Some(what) = finished.unsettled.take() else {
            if self.hooks.are_begun(&from, id) {
                progress(Phase::Hook, 0, 0);
                self.hooks.after(&from, Some(outcome));
            }
            self.jobs.end(id, outcome, text);
            return (finished.result, None);
        };
        let outcome = match outcome {
            JobOutcome::Done => outcome,
            _ => JobOutcome::HandedOver,
        };
        let settling = self.jobs.hand_over(id, outcome, text, from, to);
        (finished.result, Some((settling, what)))
    }
}
