// SPDX-License-Identifier: GPL-2.0-only

//! Rejuvenations and replacements of host VMs as jobs. To end and create host VMs takes the
//! host's toolstack, as root, with whatever a configuration names, and what that leaves behind
//! must outlive a restart of the daemon. So a process beside the daemon does it, with the rights
//! of whoever asked for it, and reports to the daemon, which has all that makes a job of it: its
//! number, its record, who watches it and who wants it to stop.

use crate::boot;
use crate::client::{failed, Client};
use crate::exchange::{refused, SwapError};
use crate::shared::{spawn, Shared};
use crate::upkeeps::{Ended, Record, Upkeep, View};
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};
use vmbeam_control_protocol::{
    Failure, FromDaemon, GuestRef, JobKind, JobOutcome, JobReport, UpkeepReport, UpkeepRequest,
};

/// How often to look whether a client is still there.
const LOOK: Duration = Duration::from_millis(500);
/// How long a process may take to come back to a daemon that was started again.
const BACK: Duration = Duration::from_secs(15);
/// Wishes to stop that make a difference.
const STOPS: u32 = 2;

fn all_of(host_vm: &str) -> GuestRef {
    GuestRef {
        host_vm: host_vm.into(),
        guest: String::new(),
    }
}

/// How it ended, for the list of jobs.
fn outcome(ended: &Ended) -> (JobOutcome, String) {
    match ended {
        Ended::Lost(why) => (JobOutcome::Failed, why.clone()),
        Ended::Reported(UpkeepReport { code, text, .. }) => {
            let outcome = match code {
                0 => JobOutcome::Done,
                3 => JobOutcome::Refused,
                4 => JobOutcome::RolledBack,
                5 => JobOutcome::Incomplete,
                _ => JobOutcome::Failed,
            };
            (outcome, text.clone())
        }
    }
}

fn none(id: u64) -> FromDaemon {
    let why = format!("there is no rejuvenation or replacement with number {id} that goes on");
    failed(Failure::Refused, &why)
}

impl Shared {
    /// A process begins one, unless another one does the same: gives the number of the job, and
    /// whether it is this process that does it.
    pub(crate) fn begin_upkeep(&self, request: &UpkeepRequest) -> Result<(u64, bool), SwapError> {
        if self.is_stopping() {
            return Err(refused("vmbeamd is stopping"));
        }
        let begin = || -> Result<Record, SwapError> {
            let (from, to) = (all_of(&request.host_vm), all_of(&request.to));
            let id = self.jobs.begin(request.kind, from, to)?.id;
            let record = Record::new(id, request.clone());
            record.write(&self.jobs.journal).map_err(|e| {
                let why = format!("cannot write the journal: {e}");
                Record::remove(&self.jobs.journal, id);
                self.jobs.end(id, JobOutcome::Refused, why.clone());
                refused(why)
            })?;
            Ok(record)
        };
        let (upkeep, is_new) = self.upkeeps.find_or(&request.host_vm, begin)?;
        let id = upkeep.id;
        if !is_new && upkeep.change(|v| v.record.request != *request) {
            return Err(refused(format!(
                "job {id} has to do with host VM {} already, and was told something else; `vmbeam watch {id}` follows it, `vmbeam abort {id}` stops it",
                request.host_vm
            )));
        }
        Ok((id, is_new))
    }

    /// Know what an earlier daemon knew. Processes that go on come back.
    pub(crate) fn resume_upkeeps(self: &Arc<Self>) -> anyhow::Result<()> {
        for mut record in Record::all(&self.jobs.journal) {
            let request = &record.request;
            if record.ended.is_none() && boot::is_another(&record.boot) {
                let why = format!(
                    "the host was restarted while host VM {} was {}; see `vmbeam list` for where its guests are",
                    request.host_vm,
                    match request.kind {
                        JobKind::Replace => "replaced",
                        _ => "rejuvenated",
                    }
                );
                warn!(job = record.id, "{why}");
                record.ended = Some(Ended::Lost(why));
                self.keep(&record);
            }
            let request = &record.request;
            let ended = record.ended.as_ref().map(outcome);
            let running = ended.is_none();
            let (outcome, phase) = match ended {
                Some((outcome, text)) => (Some(outcome), text),
                None => (None, "waiting for the process that does it".into()),
            };
            self.jobs.known(JobReport {
                id: record.id,
                from: all_of(&request.host_vm),
                to: all_of(&request.to),
                phase,
                running,
                kind: request.kind,
                outcome,
            });
            let upkeep = self.upkeeps.enter(record);
            if running {
                let shared = self.clone();
                spawn("upkeep", move || {
                    let same = |v: &View| v.present == 0 && !v.has_ended();
                    let present = upkeep.wait(BACK, same).present;
                    if present == 0 && !shared.is_stopping() {
                        shared.lose(&upkeep);
                    }
                })?;
            }
        }
        Ok(())
    }

    /// Make what is known of it durable. Without that the next daemon waits for its process.
    fn keep(&self, record: &Record) {
        if let Err(e) = record.write(&self.jobs.journal) {
            warn!(job = record.id, "cannot note how far an upkeep is: {e}");
        }
    }

    /// For as long as the process that does it does not hang up: it is told what is wanted.
    pub(crate) fn attend(&self, id: u64, process: &Client) -> Option<FromDaemon> {
        if self.is_stopping() {
            return None;
        }
        let upkeep = self.upkeeps.find(id);
        let Some(upkeep) = upkeep.filter(|u| {
            u.change(|v| {
                v.present += 1;
                !v.has_ended()
            })
        }) else {
            return Some(none(id));
        };
        let _ = process.send(&FromDaemon::Job { id });
        let mut told = 0;
        loop {
            let view = upkeep.wait(LOOK, |v| v.record.stops == told && !v.has_ended());
            let (stops, ended) = (view.record.stops, view.has_ended());
            drop(view);
            if ended {
                return Some(FromDaemon::Done);
            }
            if self.is_stopping() {
                let goes_on = "its process goes on, and comes back to the next vmbeamd";
                self.jobs.end(id, JobOutcome::Suspended, goes_on.into());
                return None;
            }
            if stops != told {
                told = stops;
                // That it is not there is seen next.
                let _ = process.send(&FromDaemon::Stop { times: stops });
            }
            if process.is_gone() {
                if upkeep.change(|v| {
                    v.present -= 1;
                    v.present == 0
                }) {
                    self.lose(&upkeep);
                }
                return None;
            }
        }
    }

    /// Nobody does it any more.
    fn lose(&self, upkeep: &Upkeep) {
        let why = "the process that did it has ended before it was done; see `vmbeam list` for where guests are, and give the same command again, which goes on";
        self.conclude(upkeep, Ended::Lost(why.into()));
    }

    fn conclude(&self, upkeep: &Upkeep, how: Ended) {
        upkeep.change(|v| {
            if !v.has_ended() {
                let (outcome, text) = outcome(&how);
                v.record.ended = Some(how);
                // Before anybody is told.
                self.keep(&v.record);
                self.jobs.end(upkeep.id, outcome, text);
            }
        });
        for old in self.upkeeps.prune() {
            Record::remove(&self.jobs.journal, old);
        }
    }

    /// Its process says this.
    pub(crate) fn said(&self, id: u64, line: String) -> FromDaemon {
        let Some(upkeep) = self.upkeeps.find(id) else {
            return none(id);
        };
        info!(job = id, "{line}");
        upkeep.change(|v| {
            if !v.has_ended() {
                self.jobs.phase(id, line.clone());
                v.say(line);
            }
        });
        FromDaemon::Done
    }

    /// Its process is at its end.
    pub(crate) fn reported(&self, id: u64, report: UpkeepReport) -> FromDaemon {
        let Some(upkeep) = self.upkeeps.find(id) else {
            return none(id);
        };
        self.conclude(&upkeep, Ended::Reported(report));
        FromDaemon::Done
    }

    /// Somebody wants it to stop.
    pub(crate) fn stop_upkeep(&self, upkeep: &Upkeep) -> Result<(), String> {
        upkeep.change(|v| {
            if v.has_ended() {
                return Err(format!("job {} has ended", upkeep.id));
            }
            if v.record.stops < STOPS {
                v.record.stops += 1;
                self.keep(&v.record);
            }
            Ok(())
        })
    }

    /// How it ended is of no interest any more.
    pub(crate) fn forget_upkeep(&self, upkeep: &Upkeep) -> Result<(), String> {
        let id = upkeep.id;
        if !upkeep.change(|v| v.has_ended()) {
            return Err(format!(
                "job {id} still works on a host VM; `vmbeam abort` stops it"
            ));
        }
        self.upkeeps.forget(id);
        self.jobs.forget(id);
        Record::remove(&self.jobs.journal, id);
        Ok(())
    }

    /// Show a client how a job is getting on, until it has ended: gives how. Nothing if the
    /// client has gone, or the daemon stops.
    pub(crate) fn watch(&self, id: u64, client: &Client) -> Option<FromDaemon> {
        let Some(upkeep) = self.upkeeps.find(id) else {
            return self.evacuations.watch(id, client);
        };
        if self.is_stopping() {
            // It was told the rest by the connection that it had.
            return None;
        }
        let mut seen = 0;
        loop {
            let view = upkeep.wait(LOOK, |v| v.said == seen && !v.has_ended());
            let (new, ended) = (view.since(seen), view.record.ended.clone());
            seen = view.said;
            drop(view);
            for line in new {
                client.send(&FromDaemon::Said { line }).ok()?;
            }
            match ended {
                Some(Ended::Reported(report)) => return Some(FromDaemon::Ended(Box::new(report))),
                Some(Ended::Lost(why)) => return Some(failed(Failure::Failed, &why)),
                None if client.is_gone() || self.is_stopping() => return None,
                None => {}
            }
        }
    }
}
