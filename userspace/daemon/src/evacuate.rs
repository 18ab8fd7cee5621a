// SPDX-License-Identifier: GPL-2.0-only

//! All guests of a host VM move, one after the other, by a job that needs nobody who waits for
//! it: clients only watch. It has a file ([`Record`]), and a daemon that is started again goes
//! on with it.

use crate::boot;
use crate::client::failed;
use crate::evacuations::{Ended, Evacuation, Record};
use crate::exchange::{internal, refused, SwapError};
use crate::host_vm::HostVm;
use crate::jobs::Begun;
use crate::known::is_unread;
use crate::link::Link;
use crate::preflight::{is_alive, mib, plan};
use crate::shared::{spawn, Shared};
use crate::unsettled::Unsettled;
use std::collections::HashMap;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing::{info, warn};
use vmbeam_agent_protocol::{Guest, Uuid};
use vmbeam_control_protocol::{
    needed_mib, no_room, EvacuateReport, EvacuateRequest, Failure, FromDaemon, GuestMove, GuestRef,
    JobKind, JobOutcome, JobReport, MigrateRequest, MoveOutcome,
};

/// How often to look whether what is waited for has ended.
const LOOK: Duration = Duration::from_millis(50);
/// How long an agent may be away whose guests have to be known. It may be for ever.
const AWAY: Duration = Duration::from_secs(30);
/// Guests that move at a time. An agent has one port, one conversation, and one
/// move in it; a second one would only make both guests stand still for longer.
const AT_A_TIME: u32 = 1;
/// Who needs memory, when several guests move: while they do, the destination has
/// memory of its own for each.
const TOGETHER: &str = "all guests together need";

/// The guests of a host VM, and their UUIDs by their domids, as far as they are known.
type Listed = (Vec<Guest>, HashMap<u32, Uuid>);

/// Why it does not come to an end by itself.
enum Halt {
    /// It has failed as a whole.
    Failed(SwapError),
    /// The daemon is to stop: the next one goes on.
    Stopping,
}

impl From<SwapError> for Halt {
    fn from(e: SwapError) -> Self {
        Self::Failed(e)
    }
}

fn all_of(host_vm: &str) -> GuestRef {
    GuestRef {
        host_vm: host_vm.into(),
        guest: String::new(),
    }
}

/// How it ended, for the list of jobs.
fn outcome(record: &Record) -> String {
    let report = &record.report;
    match &record.ended {
        Some(Ended::Failed { message, .. }) => message.clone(),
        _ if report.dry_run => "dry run".into(),
        _ => format!(
            "{} of {} guests moved",
            report.count(MoveOutcome::Moved),
            report.guests.len()
        ),
    }
}

/// The same for programs.
fn sort(record: &Record) -> JobOutcome {
    let report = &record.report;
    let moved = report.count(MoveOutcome::Moved);
    match &record.ended {
        Some(Ended::Failed { failure, .. }) => (*failure).into(),
        _ if report.is_blocked() && moved == 0 => JobOutcome::Refused,
        _ if report.dry_run || moved == report.guests.len() => JobOutcome::Done,
        _ if moved > 0 || report.interrupted => JobOutcome::Incomplete,
        _ if report.count(MoveOutcome::Failed) > 0 => JobOutcome::Failed,
        _ => JobOutcome::RolledBack,
    }
}

/// What whoever watches is told at the end.
fn end(record: &Record) -> Option<FromDaemon> {
    Some(match record.ended.as_ref()? {
        Ended::Done => FromDaemon::Evacuated(Box::new(record.report.clone())),
        Ended::Failed { failure, message } => failed(*failure, message),
    })
}

impl Shared {
    /// Begin an evacuation; gives the number of the job.
    pub(crate) fn evacuate(self: &Arc<Self>, request: EvacuateRequest) -> Result<u64, SwapError> {
        self.pair(&request.from, &request.to)?;
        let (from, to) = (all_of(&request.from), all_of(&request.to));
        let Begun { id, .. } = self.jobs.begin(JobKind::Evacuate, from, to)?;
        let record = Record::new(id, request);
        let begun = record
            .write(&self.jobs.journal)
            .map_err(|e| format!("cannot write the journal: {e}"))
            .and_then(|()| self.conduct(record, false).map_err(|e| format!("{e:#}")));
        begun.map(|()| id).map_err(|why| {
            self.evacuations.forget(id);
            // It may be there all the same, and the next daemon would begin what is refused.
            let why = match Record::remove(&self.jobs.journal, id) {
                Ok(()) => why,
                Err(e) => {
                    format!("{why}; {e}; remove it, or the next vmbeamd begins what is refused")
                }
            };
            self.jobs.end(id, JobOutcome::Refused, why.clone());
            refused(why)
        })
    }

    /// Go on with what an earlier daemon has begun, and know what it has ended.
    pub(crate) fn resume_evacuations(self: &Arc<Self>) -> anyhow::Result<()> {
        for mut record in Record::all(&self.jobs.journal) {
            if record.ended.is_none() && boot::is_another(&record.boot) {
                let EvacuateRequest { from, to, .. } = &record.request;
                let message = format!(
                    "the host was restarted while the guests of host VM {from} moved to {to}; see `vmbeam list` for where they are"
                );
                warn!(job = record.id, "{message}");
                let failure = Failure::Failed;
                record.ended = Some(Ended::Failed { failure, message });
                self.note(&record);
            }
            let running = record.ended.is_none();
            self.jobs.known(JobReport {
                id: record.id,
                from: all_of(&record.request.from),
                to: all_of(&record.request.to),
                phase: match running {
                    true => "starting".into(),
                    false => outcome(&record),
                },
                running,
                kind: JobKind::Evacuate,
                outcome: (!running).then(|| sort(&record)),
            });
            match end(&record) {
                Some(end) => self.evacuations.enter(record).end(Some(end)),
                None => self.conduct(record, true)?,
            }
        }
        Ok(())
    }

    /// Make what is known of it durable. Without that it is found out again by whoever goes on.
    fn note(&self, record: &Record) {
        if let Err(e) = record.write(&self.jobs.journal) {
            warn!(job = record.id, "cannot note how far an evacuation is: {e}");
        }
    }

    /// Nobody goes on with it in any case.
    fn forget_record(&self, id: u64) {
        if let Err(e) = Record::remove(&self.jobs.journal, id) {
            warn!(job = id, "{e}");
        }
    }

    /// In a thread of its own.
    fn conduct(self: &Arc<Self>, record: Record, again: bool) -> anyhow::Result<()> {
        let (shared, evacuation) = (self.clone(), self.evacuations.enter(record));
        spawn("evacuation", move || {
            let evacuate = || Evacuating::new(&shared, &evacuation).run(again);
            let result = catch_unwind(AssertUnwindSafe(evacuate))
                .unwrap_or_else(|_| Err(Halt::Failed(internal())));
            let mut record = evacuation.record();
            record.ended = match result {
                Ok(()) => Some(Ended::Done),
                // Nothing more was done because of that: the next daemon does it.
                Err(_) if shared.is_stopping() => None,
                Err(Halt::Failed(SwapError { failure, message })) => {
                    Some(Ended::Failed { failure, message })
                }
                Err(Halt::Stopping) => None,
            };
            let end = end(&record);
            if end.is_some() {
                shared.note(&record);
                shared.jobs.end(record.id, sort(&record), outcome(&record));
            } else {
                let goes_on = "vmbeamd goes on with it when it is started again";
                shared
                    .jobs
                    .end(record.id, JobOutcome::Suspended, goes_on.into());
            }
            drop(record);
            evacuation.end(end);
            for old in shared.evacuations.prune() {
                shared.forget_record(old);
            }
        })
    }

    /// Have a job end.
    pub(crate) fn abort(&self, id: u64) -> Result<(), String> {
        if let Some(upkeep) = self.upkeeps.find(id) {
            return self.stop_upkeep(&upkeep);
        }
        let Some(evacuation) = self.evacuations.find(id) else {
            return self.jobs.abort(id);
        };
        info!(job = id, "to be stopped");
        if evacuation.stop()? {
            let mut record = evacuation.record();
            record.stopping = true;
            self.note(&record);
        }
        Ok(())
    }

    /// Nothing more is done about what a job settles, or said about one that has ended.
    pub(crate) fn forget(&self, id: u64) -> Result<(), String> {
        if let Some(upkeep) = self.upkeeps.find(id) {
            return self.forget_upkeep(&upkeep);
        }
        match self.evacuations.find(id) {
            None => self.jobs.dismiss(id),
            Some(evacuation) if evacuation.has_ended() => {
                self.evacuations.forget(id);
                self.jobs.forget(id);
                self.forget_record(id);
                Ok(())
            }
            Some(_) => Err(format!(
                "job {id} still moves guests; `vmbeam abort` stops it"
            )),
        }
    }
}

/// One that goes on.
struct Evacuating<'a> {
    shared: &'a Arc<Shared>,
    job: &'a Evacuation,
    request: EvacuateRequest,
    patience: Duration,
}

impl<'a> Evacuating<'a> {
    fn new(shared: &'a Arc<Shared>, job: &'a Evacuation) -> Self {
        let request = job.record().request.clone();
        let patience = Duration::from_secs(request.wait_seconds.into());
        Self {
            shared,
            job,
            request,
            patience,
        }
    }

    fn ends(&self) -> [&str; 2] {
        [&self.request.from, &self.request.to]
    }

    /// `again`: another daemon has begun it.
    fn run(&self, again: bool) -> Result<(), Halt> {
        let started = Instant::now();
        let host_vms = self.shared.pair(&self.request.from, &self.request.to)?;
        if again {
            self.wait_until(
                || match (host_vms.0.is_connected(), host_vms.1.is_connected()) {
                    (true, true) => None,
                    (here, _) => Some(format!(
                        "the agent of host VM {}",
                        self.ends()[usize::from(here)]
                    )),
                },
            )?;
        }
        self.wait_until_idle()?;
        let planned = self.job.record().planned;
        match planned {
            false => self.plan(host_vms, started)?,
            true => self.find_out(host_vms)?,
        }
        let (all, go) = {
            let record = self.job.record();
            let guests = &record.report.guests;
            let fine =
                |g: &GuestMove| matches!(g.outcome, MoveOutcome::Waiting | MoveOutcome::Moved);
            let none = record.report.blockers.is_empty() && guests.iter().all(fine);
            let go = !self.request.dry_run && (self.request.keep_going || none);
            (guests.len(), go)
        };
        for at in (0..all).filter(|_| go) {
            let mut guest = self.job.record().report.guests[at].clone();
            if guest.outcome != MoveOutcome::Waiting {
                continue;
            }
            if self.job.is_stopped() {
                break;
            }
            self.tell(&guest.guest, at, all);
            self.move_one(host_vms, &mut guest)?;
            let outcome = guest.outcome;
            let mut record = self.job.record();
            record.report.guests[at] = guest;
            self.shared.note(&record);
            if outcome != MoveOutcome::Moved && !self.request.keep_going {
                break;
            }
        }
        let mut record = self.job.record();
        let begun = record.begun_ago();
        let report = &mut record.report;
        // Without guests that are left, a late wish to stop has not stopped anything.
        report.interrupted = self.job.is_stopped() && report.count(MoveOutcome::Moved) < all;
        report.seconds.total = match again {
            true => begun,
            false => started.elapsed().as_secs_f64(),
        };
        Ok(())
    }

    fn tell(&self, guest: &str, at: usize, all: usize) {
        let (from, to) = (&self.request.from, &self.request.to);
        let phase = format!("guest {guest} ({} of {all})", at + 1);
        self.shared.jobs.phase(self.job.id, phase);
        self.job.step(FromDaemon::Moving {
            guest: GuestRef {
                host_vm: from.clone(),
                guest: guest.into(),
            },
            to: to.clone(),
            // At most MAX_GUESTS.
            number: at as u32 + 1,
            of: all as u32,
        });
    }

    /// Wait until nothing is named any more that is waited for.
    fn wait_until(&self, what: impl FnMut() -> Option<String>) -> Result<(), Halt> {
        self.wait_within(self.patience, what)
    }

    fn wait_within(
        &self,
        limit: Duration,
        mut what: impl FnMut() -> Option<String>,
    ) -> Result<(), Halt> {
        let deadline = Instant::now() + limit;
        // Where its guests are has to be found out even of one that was to stop before.
        let stopped = self.job.is_stopped();
        let mut told = false;
        while let Some(what) = what() {
            if self.shared.is_stopping() {
                return Err(Halt::Stopping);
            }
            if Instant::now() >= deadline || self.job.is_stopped() && !stopped {
                return Err(Halt::Failed(SwapError {
                    failure: Failure::Failed,
                    message: format!(
                        "vmbeamd is not done yet: {what}; wait for it, or see its log (`vmbeam status` shows what it does)"
                    ),
                }));
            }
            if !told {
                let phase = format!("waiting for {what}");
                self.shared.jobs.phase(self.job.id, phase);
                self.job.step(FromDaemon::Waiting { what });
                told = true;
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Wait until no other job has anything to do with these host VMs.
    fn wait_until_idle(&self) -> Result<(), Halt> {
        self.wait_until(|| {
            let JobReport {
                id,
                from,
                to,
                phase,
                ..
            } = self.shared.jobs.busy(self.ends())?;
            Some(format!("job {id}, {from} -> {}: {phase}", to.shown()))
        })
    }

    /// Find out what is in the way.
    fn plan(&self, host_vms: (&HostVm, &HostVm), started: Instant) -> Result<(), Halt> {
        let mut plan = plan(&*self.shared.driver, host_vms, self.request.mode)?;
        let all = std::mem::take(&mut plan.guests);
        let mut needed = plan.needed_mib;
        let mut pages: u64 = all.iter().map(|p| p.guest.pages).sum();
        let wanted: Vec<_> = match &self.request.only {
            None => all.iter().map(|p| (&*p.guest.name, Some(p))).collect(),
            Some(only) => {
                let find = |name: &String| all.iter().find(|p| p.guest.name == *name);
                let wanted: Vec<_> = only.iter().map(|name| (&**name, find(name))).collect();
                let found = || wanted.iter().filter_map(|(_, p)| *p);
                needed = found().map(|p| needed_mib(p.guest.pages)).sum();
                pages = found().map(|p| p.guest.pages).sum();
                wanted
            }
        };
        let several = wanted.len() > 1;
        let guests = wanted.into_iter().map(|(name, planned)| {
            let mut guest = GuestMove::new(name, planned.map_or(0, |p| mib(p.guest.pages)));
            guest.uuid = planned.and_then(|p| p.uuid);
            match planned {
                None => guest.outcome = MoveOutcome::Gone,
                Some(p) if !p.blockers.is_empty() => {
                    guest.outcome = MoveOutcome::Refused;
                    guest.reasons.clone_from(&p.blockers);
                }
                Some(_) => {}
            }
            guest
        });
        let to = &self.request.to;
        let together = no_room(to, TOGETHER, needed, plan.free_mib);
        plan.blockers.extend(together);
        if let Some(memory) = plan.memory.filter(|_| several) {
            let reserve = memory.in_the_way(to, "all guests together", pages, plan.mode);
            plan.blockers.extend(reserve);
        }
        let mut record = self.job.record();
        record.report = EvacuateReport {
            from: self.request.from.clone(),
            to: to.clone(),
            dry_run: self.request.dry_run,
            parallel: AT_A_TIME,
            blockers: plan.blockers,
            warnings: plan.warnings,
            needed_mib: needed,
            free_mib: plan.free_mib,
            guests: guests.collect(),
            ..EvacuateReport::default()
        };
        record.report.seconds.preflight = started.elapsed().as_secs_f64();
        record.planned = true;
        self.shared.note(&record);
        Ok(())
    }

    /// Where the guests are that are in neither host VM's list of another daemon.
    fn find_out(&self, host_vms: (&HostVm, &HostVm)) -> Result<(), Halt> {
        let lists = self.lists(host_vms)?;
        let mut record = self.job.record();
        let waiting = record.report.guests.iter_mut();
        for guest in waiting.filter(|g| g.outcome == MoveOutcome::Waiting) {
            let moved = "it had moved when vmbeamd was started again";
            match lists.each_ref().map(|list| find(list, guest)) {
                // In both: for the next move to find out. What has its name may be another one.
                [Some(here), _] if !is_unread(here) => guest.guest.clone_from(&here.name),
                [Some(_), _] => {}
                [None, Some(_)] => guest.ended(MoveOutcome::Moved, moved.into()),
                [None, None] => guest.outcome = MoveOutcome::Gone,
            }
        }
        self.shared.note(&record);
        Ok(())
    }

    /// The guests of both; an agent that is away for a moment is waited for.
    fn lists(&self, (from, to): (&HostVm, &HostVm)) -> Result<[Listed; 2], Halt> {
        let ask = |vm: &HostVm| -> Result<Listed, String> {
            let mut agent = vm.agent_soon()?;
            Ok((agent.guests_soon()?, agent.with(Link::uuids)?))
        };
        let mut found = <[Listed; 2]>::default();
        self.wait_within(AWAY.min(self.patience), || {
            let asked = ask(from).and_then(|here| Ok([here, ask(to)?]));
            asked.map(|lists| found = lists).err()
        })?;
        Ok(found)
    }

    /// Have what a move has left brought to an end, without which no other guest moves.
    fn settle(&self, (settling, what): (Begun, Unsettled)) {
        let (shared, what) = (self.shared.clone(), Arc::new(Mutex::new(Some(what))));
        let settle = move || {
            let what = what.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(what) = what {
                shared.settle(&settling, what);
            }
        };
        if let Err(e) = spawn("settle", settle.clone()) {
            warn!("{e:#}");
            // What lacks threads may have left it.
            settle();
        }
    }

    /// Move a guest, and find out what became of it whatever happens.
    fn move_one(&self, host_vms: (&HostVm, &HostVm), guest: &mut GuestMove) -> Result<(), Halt> {
        match self.wait_until_idle() {
            Err(Halt::Failed(e)) => {
                guest.ended(MoveOutcome::Refused, e.message);
                return Ok(());
            }
            other => other?,
        }
        let request = MigrateRequest {
            from: GuestRef {
                host_vm: self.request.from.clone(),
                guest: guest.guest.clone(),
            },
            to: self.request.to.clone(),
            mode: self.request.mode,
            dry_run: false,
            verify: false,
            timeout_seconds: self.request.timeout_seconds,
            max_downtime_ms: None,
        };
        let shared = self.shared;
        let begun = |begun: &Begun| self.job.begun(&begun.cancel);
        let (result, left) = shared.migrate(&request, begun, |m| self.job.progress(m));
        self.job.over();
        if let Some(left) = left {
            self.settle(left);
        }
        let error = match result {
            Ok(report) => {
                guest.outcome = MoveOutcome::Moved;
                guest.reasons.extend(report.pending.clone());
                guest.migration = Some(Box::new(report));
                return Ok(());
            }
            // It moves again, by the next daemon, which looks first where it is.
            Err(_) if shared.is_stopping() => return Err(Halt::Stopping),
            Err(e) => e,
        };
        let outcome = match error.failure {
            Failure::Refused => MoveOutcome::Refused,
            Failure::RolledBack => MoveOutcome::PutBack,
            // Another job goes on with it.
            Failure::Failed => MoveOutcome::Failed,
        };
        guest.ended(outcome, error.message);
        if outcome != MoveOutcome::Failed {
            return Ok(());
        }
        let found = self.wait_until_idle().and_then(|()| self.lists(host_vms));
        match found {
            Ok(lists) => match lists.each_ref().map(|list| find(list, guest).is_some()) {
                [true, false] => guest.outcome = MoveOutcome::PutBack,
                [false, true] => guest.outcome = MoveOutcome::Moved,
                _ => {}
            },
            Err(Halt::Failed(e)) => guest.reasons.push(e.message),
            Err(Halt::Stopping) => return Err(Halt::Stopping),
        }
        Ok(())
    }
}

/// A guest among those of a host VM: by its UUID, or by its name where UUIDs are not known.
fn find<'a>((guests, uuids): &'a Listed, guest: &GuestMove) -> Option<&'a Guest> {
    let is_it = |g: &&Guest| match &guest.uuid {
        Some(uuid) if !uuids.is_empty() => uuids.get(&g.domid) == Some(uuid),
        _ => g.name == guest.guest,
    };
    guests.iter().filter(|g| is_alive(g)).find(is_it)
}
