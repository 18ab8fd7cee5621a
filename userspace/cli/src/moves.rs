// SPDX-License-Identifier: GPL-2.0-only

//! Jobs of the daemon that move all guests of a host VM, or some: begun, and followed to their
//! end even if the daemon is started again meanwhile. For `vmbeam evacuate`, `vmbeam watch` and
//! `vmbeam rejuvenate`, which is followed in the same way.

use crate::client::{Client, ClientError};
use crate::display::Display;
use crate::interrupt::Interrupt;
use crate::migrate::Json;
use crate::output;
use schemars::JsonSchema;
use serde::{Serialize, Serializer};
use std::path::Path;
use std::time::{Duration, Instant};
use vmbeam_control_protocol::{
    EvacuateReport, EvacuateRequest, FromDaemon, GuestMove, GuestRef, HostVmReport, JobKind,
    JobReport, Mode, MoveOutcome, PlanReport, ToDaemon,
};

/// How often to look whether the daemon has ended what it does, or is back.
const LOOK: Duration = Duration::from_secs(1);

/// Who needs memory, when several guests move: while they do, the destination has
/// memory of its own for each.
pub(crate) const TOGETHER: &str = "all guests together need";

/// What became of a guest, for a person.
pub(crate) fn text(outcome: MoveOutcome) -> &'static str {
    match outcome {
        MoveOutcome::Waiting => "not begun",
        MoveOutcome::Moved => "moved",
        MoveOutcome::Refused => "refused",
        MoveOutcome::PutBack => "put back",
        MoveOutcome::Failed => "FAILED",
        MoveOutcome::Gone => "not there any more",
    }
}

/// One line for a person.
pub(crate) fn print(moved: &GuestMove) {
    let times = moved.migration.as_ref().map_or(String::new(), |m| {
        format!(
            "  {:>9.3} s, down for {:.3} s, {} pages swapped{}, {} copied, {} sent",
            m.seconds.total,
            m.seconds.downtime,
            m.pages_swapped,
            match m.mode {
                Mode::Relocate => format!(" ({} of them given)", m.relocated),
                _ => String::new(),
            },
            m.pages_copied,
            m.pages_sent
        )
    });
    let (name, mib) = (output::name(&moved.guest), moved.mib);
    let outcome = text(moved.outcome);
    println!("  {name:<16} {mib:>6} MiB  {outcome}{times}");
    for reason in &moved.reasons {
        println!("    {reason}");
    }
}

/// A guest that was to move.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Moved<'a> {
    /// Its name.
    guest: &'a str,
    /// Its memory.
    mib: u64,
    /// What became of it.
    outcome: MoveOutcome,
    /// Why, if it did not move.
    reasons: &'a [String],
    /// How it moved, as `vmbeam migrate` prints it, if that is known.
    migration: Option<Json<'a>>,
}

/// The same as JSON, with migrations as `vmbeam migrate` prints them.
pub(crate) fn json<S: Serializer>(guests: &[GuestMove], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(guests.iter().map(|g| Moved {
        guest: &g.guest,
        mib: g.mib,
        outcome: g.outcome,
        reasons: &g.reasons,
        migration: g.migration.as_deref().map(Json::from),
    }))
}

/// How to move guests between two host VMs.
#[derive(Debug)]
pub(crate) struct Mover<'a> {
    pub(crate) socket: &'a Path,
    pub(crate) mode: Mode,
    /// Limit of one guest's move.
    pub(crate) timeout_seconds: Option<u32>,
    /// How long to wait for what the daemon is still doing, or for the daemon.
    pub(crate) wait_seconds: u32,
    pub(crate) interrupt: Interrupt,
}

fn touches(job: &JobReport, host_vm: &str) -> bool {
    // Without a name it may be about any.
    let is_of = |end: &GuestRef| [host_vm, ""].contains(&&*end.host_vm);
    // An upkeep waits for the others, and is not waited for.
    let moves = job.kind != JobKind::Left && !job.kind.is_upkeep();
    moves && (is_of(&job.from) || is_of(&job.to))
}

/// The daemon is not there, or not there any more.
pub(crate) fn is_away(error: &ClientError) -> bool {
    matches!(
        error,
        ClientError::Connect { .. } | ClientError::Io(_) | ClientError::Closed
    )
}

/// Follow a job to its end. A daemon that is away is being started again, and goes on with the
/// job; one that was not reached yet is asked for it.
pub(crate) fn follow(
    socket: &Path,
    request: ToDaemon,
    wait: Duration,
    interrupt: Option<&Interrupt>,
) -> Result<FromDaemon, ClientError> {
    let mut request = request;
    let mut away_since: Option<Instant> = None;
    loop {
        let mut display = Display::new();
        let mut begun = None;
        let last = Client::connect(socket).and_then(|client| {
            client.ask(&request, |part| {
                away_since = None;
                match part {
                    FromDaemon::Job { id } => {
                        begun = Some(*id);
                        if let Some(interrupt) = interrupt {
                            interrupt.begun(*id);
                        }
                    }
                    FromDaemon::Moving {
                        guest,
                        to,
                        number,
                        of,
                    } => {
                        display.clear();
                        display = Display::new();
                        eprintln!("{guest} -> {to} ({number} of {of})");
                    }
                    FromDaemon::Said { line } => eprintln!("{line}"),
                    FromDaemon::Waiting { what } => eprintln!("vmbeam: waiting for {what}"),
                    FromDaemon::Progress { phase, done, total } => {
                        display.show(*phase, *done, *total);
                    }
                    _ => {}
                }
            })
        });
        display.clear();
        if let Some(job) = begun {
            request = ToDaemon::Watch { job };
        }
        let error = match last {
            Ok(last) => return Ok(last),
            Err(e) => e,
        };
        // Whether it was begun is not known without its number.
        let known = matches!(request, ToDaemon::Watch { .. })
            || matches!(error, ClientError::Connect { .. });
        if !is_away(&error) || !known {
            return Err(error);
        }
        if away_since.is_none() {
            match request {
                ToDaemon::Watch { job } => {
                    eprintln!(
                        "vmbeam: {error}; job {job} goes on when it is back, and is waited for"
                    )
                }
                _ => eprintln!("vmbeam: waiting for {error}"),
            }
        }
        let since = *away_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= wait || interrupt.is_some_and(Interrupt::is_wanted) {
            return Err(error);
        }
        std::thread::sleep(LOOK);
    }
}

impl Mover<'_> {
    fn ask(&self, request: &ToDaemon) -> Result<FromDaemon, ClientError> {
        Client::connect(self.socket)?.ask(request, |_| {})
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(self.wait_seconds.into())
    }

    /// Wait until no job has anything to do with these host VMs: another one, one
    /// that this program's predecessor began, or one that is being settled. A daemon
    /// that is away may be being restarted.
    pub(crate) fn wait_until_idle(&self, host_vms: [&str; 2]) -> Result<(), ClientError> {
        let deadline = Instant::now() + self.patience();
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
                        job.id,
                        job.from,
                        job.to.shown(),
                        job.phase
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
            FromDaemon::Plan(plan) => {
                for warning in &plan.warnings {
                    eprintln!("vmbeam: warning: {warning}");
                }
                Ok(plan)
            }
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

    /// Have these guests moved, until one does not get there.
    pub(crate) fn go(
        &self,
        guests: &[GuestMove],
        from: &str,
        to: &str,
    ) -> Result<EvacuateReport, ClientError> {
        let request = EvacuateRequest {
            from: from.into(),
            to: to.into(),
            only: Some(guests.iter().map(|g| g.guest.clone()).collect()),
            mode: self.mode,
            keep_going: false,
            dry_run: false,
            timeout_seconds: self.timeout_seconds,
            wait_seconds: self.wait_seconds,
        };
        let request = ToDaemon::Evacuate(request);
        let result = follow(self.socket, request, self.patience(), Some(&self.interrupt));
        self.interrupt.ended();
        match result? {
            FromDaemon::Evacuated(report) => Ok(*report),
            _ => Err(ClientError::Unexpected),
        }
    }
}
