// SPDX-License-Identifier: GPL-2.0-only

//! One migration, from the request to the report. What is to be done next is for the machine
//! to say ([`vmbeam_migration`]); this executes it, as long as a client waits.
//!
//! Everything up to the point of no return can fail, and is undone; everything behind it is
//! tried until it works. What does not come to an end here another job settles
//! ([`crate::settle`]), with the same machine and the same executor.

use crate::definitions::hold_start;
use crate::exchange::{internal, refused, SwapError};
use crate::execute::{Executor, Swapped, Work};
use crate::host_vm::HostVm;
use crate::job::Job;
use crate::journal::{Place, State};
use crate::limits::{seconds, Context, Limits};
use crate::link::Patience;
use crate::memory::Route;
use crate::preflight::{check, mib, Checked};
use crate::side::Side;
use crate::unsettled::Unsettled;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::time::{Duration, Instant};
use tracing::{info, warn};
use vmbeam_agent_protocol::GuestKind;
use vmbeam_control_protocol::{Failure, MigrateReport, MigrateRequest, Mode, Phase};
use vmbeam_migration::{Command, Event, Outcome, Side as Where, State as Machine, Step};
use vmbeam_xen::stream::Contents;

/// How long an agent may be away while a migration is undone or completed, before
/// that is left to the background.
const PATIENCE: Duration = Duration::from_secs(90);

/// What the toolstack says when the guest has other memory than was staged, because it
/// ballooned for example, or its P2M is elsewhere.
const CHANGED: [&str; 2] = [
    "memory changed while it was staged",
    "p2m generation count changed",
];

/// How a migration ended, or did not.
pub(crate) struct Finished<'a> {
    /// What to say.
    pub(crate) result: Result<MigrateReport, SwapError>,
    /// What is still to be brought to an end.
    pub(crate) unsettled: Option<Unsettled>,
    /// The agents: nobody else has them before somebody settles that.
    _held: Option<(Side<'a>, Side<'a>)>,
}

impl From<Result<MigrateReport, SwapError>> for Finished<'_> {
    fn from(result: Result<MigrateReport, SwapError>) -> Self {
        Self {
            result,
            unsettled: None,
            _held: None,
        }
    }
}

/// Migrate a guest. The pair of host VMs has been found to be allowed. A guest whose memory
/// changed at the wrong moment gets a second chance.
pub(crate) fn migrate<'a>(
    context: Context<'a>,
    host_vms: (&'a HostVm, &'a HostVm),
    request: &'a MigrateRequest,
) -> Finished<'a> {
    let finished = attempt(context, host_vms, request, true);
    match &finished {
        Finished {
            result: Err(e),
            unsettled: None,
            ..
        } if CHANGED.iter().any(|words| e.message.contains(words)) => {
            info!(guest = request.from.guest, "once more: {e}");
        }
        _ => return finished,
    }
    drop(finished);
    attempt(context, host_vms, request, false)
}

fn attempt<'a>(
    context: Context<'a>,
    host_vms: (&'a HostVm, &'a HostVm),
    request: &'a MigrateRequest,
    first: bool,
) -> Finished<'a> {
    let mut job = match Job::begin(context, host_vms, request) {
        Ok(job) => job,
        Err(error) => return Err(error).into(),
    };
    if request.dry_run {
        return job.dry_run().into();
    }
    if first && context.hooks.of(&request.from.guest).is_some() {
        (context.progress)(Phase::Hook, 0, 0);
        let ends = (&request.from, &*request.to);
        let before = context.hooks.before(context.job, ends, || job.go_on());
        if let Err(e) = before {
            return Err(e).into();
        }
    }
    // Its entry stays here until it has gone, and it may run elsewhere before that.
    if job.starts {
        if let Err(e) = hold_start(&mut job.exec.from) {
            return Err(refused(e).because(job.go_on())).into();
        }
    }
    if let Some(why) = job
        .report
        .unstaged
        .as_ref()
        .filter(|_| job.mode.is_external())
    {
        info!(
            guest = job.guest.name,
            "suspended from the beginning: {why}"
        );
    }
    match catch_unwind(AssertUnwindSafe(|| job.run())) {
        Ok(()) => job.finish(),
        Err(_) => job.panicked(),
    }
}

impl<'a> Job<'a> {
    /// Everything that can be found out without touching the guest.
    fn begin(
        context: Context<'a>,
        host_vms: (&'a HostVm, &'a HostVm),
        request: &'a MigrateRequest,
    ) -> Result<Self, SwapError> {
        let started = Instant::now();
        (context.progress)(Phase::Preflight, 0, 0);
        let limits = Limits {
            context,
            request,
            started: context.started,
            suspended: None,
        };
        let go_on = &|| limits.go_on();
        let patience = limits.patience();
        let Checked {
            from,
            to,
            mode,
            mut memory,
            domids,
            ids,
            guest,
            uuid,
            blockers,
            unstaged,
            warnings,
            starts,
        } = check(context.driver, host_vms, request, (&patience, go_on))?;
        if !request.dry_run && !blockers.is_empty() {
            return Err(refused(blockers.join("; ")));
        }
        if !request.dry_run {
            memory.fill((from.vm, to.vm), domids, guest.pages, mode, go_on)?;
        }
        let mut report = MigrateReport {
            from: request.from.clone(),
            to: request.to.clone(),
            mode,
            dry_run: request.dry_run,
            blockers,
            guest_mib: mib(guest.pages),
            unstaged,
            warnings,
            ..MigrateReport::default()
        };
        report.seconds.preflight = seconds(started);
        let place = |vm: &Side<'_>, host_domid, guest, id: usize| Place {
            host_vm: vm.name().to_owned(),
            host_domid,
            guest,
            host_uuid: vm.uuid(),
            host_id: ids.map(|ids| ids[id]),
            pages: match mode {
                Mode::Relocate => memory.0[id].as_ref().ok().map(|m| m.pages),
                _ => None,
            },
        };
        let ends = (
            place(&from, domids.0, Some(guest.domid), 0),
            place(&to, domids.1, None, 1),
        );
        let stages = report.unstaged.is_none();
        let mut work = Work {
            machine: Machine::new(mode.is_external(), stages),
            record: context.journal.begin(&guest.name, ends.0, ends.1),
            moved: None,
        };
        if stages {
            work.record.state = State::Stage;
        }
        work.record.guest_uuid = uuid;
        work.record.mode = mode;
        let exec = Executor {
            driver: context.driver,
            journal: context.journal,
            from,
            to,
            swapped: Swapped::Back,
            was_away: false,
            idle: false,
            deadline: started,
            ended: false,
            filled: false,
            trouble: String::new(),
        };
        Ok(Self {
            context,
            request,
            exec,
            work,
            mode,
            route: Route::new(domids, mode),
            small: memory.small(),
            started: context.started,
            guest,
            starts: starts && context.autostart,
            pause: None,
            staged: None,
            begun: false,
            error: None,
            contents: Contents::default(),
            loaded: None,
            copies: Vec::new(),
            ahead: (Vec::new(), Vec::new()),
            empty: Vec::new(),
            stayed: Vec::new(),
            before: Vec::new(),
            report,
        })
    }

    /// What would move.
    fn dry_run(mut self) -> Result<MigrateReport, SwapError> {
        let domid = self.guest.domid;
        if self.guest.kind == GuestKind::Pv {
            let list = self
                .exec
                .from
                .talk(|l| l.frames(domid, |_| {}))
                .map_err(|e| refused(e).because(self.go_on()))?;
            let movable: u64 = list.runs().iter().map(|r| u64::from(r.nr)).sum();
            if self.mode.is_external() {
                self.report.pages_swapped = movable;
                self.report.pages_sent = list.pages() - movable;
            } else {
                self.report.pages_sent = list.pages();
            }
        }
        self.report.seconds.total = seconds(self.started);
        Ok(self.report)
    }

    /// Until it has come to an end, or cannot be gone on with now.
    fn run(&mut self) {
        loop {
            let machine = self.work.machine;
            match machine.command() {
                Command::Wait(_) | Command::End(_) => return,
                command => {
                    let event = self.execute(command);
                    self.work.machine = machine.step(event);
                    self.turn(machine);
                }
            }
        }
    }

    /// Execute a command of the machine; what leads forward must still be wanted.
    fn execute(&mut self, command: Command) -> Event {
        let machine = self.work.machine;
        let undoable = matches!(
            machine.reached(),
            Step::Stage | Step::Stream | Step::Swap { .. }
        );
        let wanted = match machine.is_forward() && undoable && command != Command::Remove {
            true => self.go_on(),
            false => Ok(()),
        };
        let done = wanted.and_then(|()| match command {
            Command::Stage => self.stage(),
            Command::Stream => self.stream(),
            Command::Prepare if self.staged.is_some() => self.confirm(),
            Command::Prepare => self.prepare(),
            Command::Commit => self.commit(),
            Command::Copy => self.copy_and_verify(),
            _ => self.settle(command),
        });
        match done {
            Ok(event) => event,
            Err(e) => {
                self.error.get_or_insert(e);
                Event::Failed
            }
        }
    }

    /// What other jobs may do as well.
    fn settle(&mut self, command: Command) -> Result<Event, SwapError> {
        let phase = match command {
            Command::Resume(Where::Destination) => Some(Phase::Resume),
            Command::Destroy(Where::Source) => Some(Phase::Destroy),
            _ => None,
        };
        if let Some(phase) = phase {
            (self.context.progress)(phase, 0, 0);
        }
        let started = Instant::now();
        let event = self.exec.execute(&mut self.work);
        if let Command::Write(_) = command {
            self.part("journal");
        }
        self.begun |= event != Event::Failed;
        match phase {
            Some(Phase::Resume) => {
                self.report.seconds.resume = seconds(started);
                if let Some(mut pause) = self.pause.take() {
                    pause.end("resume");
                    self.report.seconds.downtime = pause.seconds();
                    self.report.pause = pause.parts();
                    self.report.traffic_suspended = pause.traffic(self.exec.traffic());
                }
            }
            Some(Phase::Destroy) => self.report.seconds.destroy = seconds(started),
            _ => {}
        }
        let failed = matches!(event, Event::Failed | Event::Perhaps | Event::Torn);
        if failed && self.work.machine.is_forward() && self.work.machine.reached() != Step::Destroy
        {
            self.error
                .get_or_insert_with(|| refused(&self.exec.trouble));
        }
        Ok(event)
    }

    /// It may have left the way forward, or passed the point of no return.
    fn turn(&mut self, last: Machine) {
        let machine = self.work.machine;
        let undone = last.is_forward() && !machine.is_forward();
        let decided = machine.reached() == Step::Resume && last.reached() != Step::Resume;
        if !(undone || decided) {
            return;
        }
        if undone && last.reached() != Step::Resume {
            self.error = self.error.take().map(|e| e.because(self.go_on()));
            if let (true, Some(error)) = (self.begun, &self.error) {
                warn!(guest = self.guest.name, "undoing the migration: {error}");
                (self.context.progress)(Phase::Undo, 0, 0);
            }
        }
        self.exec.from.patience = Patience::default();
        self.exec.to.patience = Patience::default();
        self.exec.deadline = Instant::now() + PATIENCE;
    }

    /// Say how it has ended, or why not.
    fn finish(mut self) -> Finished<'a> {
        let (from, to) = (&self.request.from.host_vm, &self.request.to);
        let machine = self.work.machine;
        let error = self.error.take();
        let because = error
            .as_ref()
            .map_or_else(String::new, |e| e.message.clone());
        let fail = |failure, end: String| {
            let message = format!("{because}; {end}");
            Err(SwapError { failure, message })
        };
        let (result, settled) = match (machine.command(), error) {
            // There is nothing to undo.
            (Command::End(Outcome::AtSource), Some(e)) if !self.begun => (Err(e), true),
            (Command::End(Outcome::AtDestination), None) => {
                self.tidy();
                (Ok(()), true)
            }
            (Command::End(outcome), _) => {
                let (failure, end) = match outcome {
                    Outcome::AtSource => (Failure::RolledBack, self.exec.at_source(&self.work)),
                    Outcome::AtDestination => {
                        (Failure::Failed, format!("but the guest runs in {to}"))
                    }
                    Outcome::Lost => (Failure::Failed, self.exec.lost(&self.work)),
                };
                (fail(failure, end), true)
            }
            (Command::Wait(why), error) => {
                let why = self.exec.waits_for(&self.work, why);
                let result = match (machine.reached(), error) {
                    (Step::Destroy, None) => {
                        self.report.pending = Some(why);
                        Ok(())
                    }
                    (Step::Resume, _) => Err(SwapError {
                        failure: Failure::Failed,
                        message: format!(
                            "the guest's memory is in {to}, but it could not be let run there yet: {why}; vmbeamd goes on trying"
                        ),
                    }),
                    _ => {
                        let why = match machine.settled() {
                            Some(Outcome::AtSource) => format!(
                                "the guest runs in {from}, but a paused copy of it without memory may still be in {to}: {why}"
                            ),
                            _ => why,
                        };
                        fail(
                            Failure::Failed,
                            format!("undoing that is not complete, and is tried again: {why}"),
                        )
                    }
                };
                (result, false)
            }
            // It has not come to an end by itself.
            (_, _) => return self.panicked(),
        };
        self.report.seconds.total = seconds(self.started);
        self.report.traffic = self.exec.traffic();
        let result = result.map(|()| self.report);
        Finished {
            result,
            unsettled: (!settled).then(|| Unsettled::Known(Box::new(self.work))),
            _held: Some((self.exec.from, self.exec.to)),
        }
    }

    /// What the journal says is all that counts.
    fn panicked(self) -> Finished<'a> {
        Finished {
            result: Err(internal()),
            unsettled: Some(Unsettled::Written(self.work.record.id)),
            _held: Some((self.exec.from, self.exec.to)),
        }
    }
}
