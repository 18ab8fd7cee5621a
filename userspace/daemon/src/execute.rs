// SPDX-License-Identifier: GPL-2.0-only

//! Executes the commands that every job about a migration may be given: to write the journal,
//! to find out what there is, and to bring the guest to an end in one place. Which command
//! is given is for the machine to say ([`vmbeam_migration`]).

use crate::definitions;
use crate::driver::{Driver, DriverSession};
use crate::exchange::{add, commit, refused, roll_back, take_empty, REGARDLESS};
use crate::journal::{Journal, Pairs, Place, Probe, Record, State, WriteError};
use crate::link::LinkError;
use crate::memory::{refill, Route};
use crate::probe::{count, vote};
use crate::side::Side;
use std::time::{Duration, Instant};
use tracing::{info, warn};
use vmbeam_agent_protocol::{AgentErrorCode, Guest, GuestState, PfnRun};
use vmbeam_control_protocol::{Failure, Mode, Traffic, MARGIN};
use vmbeam_migration::{
    decide, Command, Event, Memory, Plan, Presence, Seen, Side as Where, State as Machine, Step,
    Why,
};
use vmbeam_uapi::NOT_ATTEMPTED;

/// How long a guest that is to go on where it was waits for a reserve of its host VM. It is asked for
/// again once the guest runs.
const RESERVE: Duration = Duration::from_secs(5);

/// What is or was to be swapped. Not in the record of every state, but never forgotten.
#[derive(Clone, Debug)]
pub(crate) struct Moved {
    /// What is swapped, all of it or nothing.
    pub(crate) pairs: Pairs,
    /// Where to look. Empty if there is no difference.
    pub(crate) probes: Vec<Probe>,
}

/// A migration that has a record.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) machine: Machine,
    pub(crate) record: Record,
    pub(crate) moved: Option<Moved>,
}

impl Work {
    /// One of which only the journal is left.
    pub(crate) fn recovered(record: Record) -> Self {
        let moved = match &record.state {
            State::Swap { pairs, probes, .. } => Some(Moved {
                pairs: pairs.clone(),
                probes: probes.clone(),
            }),
            _ => None,
        };
        Self {
            machine: Machine::recovered(record.state.step()),
            record,
            moved,
        }
    }

    pub(crate) fn place(&self, side: Where) -> &Place {
        match side {
            Where::Source => &self.record.from,
            Where::Destination => &self.record.to,
        }
    }

    /// What the journal is to say of this step.
    fn state(&self, step: Step) -> Option<State> {
        Some(match step {
            Step::Stage => State::Stage,
            Step::Stream => State::Stream,
            Step::Swap { copies, torn } => {
                let Moved { pairs, probes } = self.moved.clone()?;
                State::Swap {
                    pairs,
                    probes,
                    copies,
                    torn,
                }
            }
            Step::Resume => State::Resume,
            Step::Destroy => State::Destroy,
        })
    }
}

/// What this job knows of the swap, and nobody else.
pub(crate) enum Swapped {
    /// Nothing: the memory itself has to be asked.
    Unknown,
    /// All was swapped, by this session.
    By(Box<dyn DriverSession>),
    /// Nothing is swapped, or everything was swapped back.
    Back,
    /// It could not be swapped back.
    Torn,
}

/// Executes commands.
pub(crate) struct Executor<'a> {
    pub(crate) driver: &'a dyn Driver,
    pub(crate) journal: &'a Journal,
    pub(crate) from: Side<'a>,
    pub(crate) to: Side<'a>,
    pub(crate) swapped: Swapped,
    /// Memory of the guest was at the destination for a while, and is back.
    pub(crate) was_away: bool,
    /// Neither agent does anything for the guest any more, as far as they said.
    pub(crate) idle: bool,
    /// How long agents may be away.
    pub(crate) deadline: Instant,
    /// The guest was not there any more when it was to go on at the source.
    pub(crate) ended: bool,
    /// The host VMs have the reserves that they get in the end, or cannot have them.
    pub(crate) filled: bool,
    /// Why the last command was not done.
    pub(crate) trouble: String,
}

/// Whether there is the guest that was asked for.
fn known(answer: Result<(), LinkError>) -> Result<bool, LinkError> {
    match answer {
        Ok(()) => Ok(true),
        Err(LinkError::Agent {
            code: AgentErrorCode::NoGuest,
            ..
        }) => Ok(false),
        Err(e) => Err(e),
    }
}

fn presence_of(seen: &mut Seen, side: Where) -> &mut Presence {
    match side {
        Where::Source => &mut seen.source,
        Where::Destination => &mut seen.destination,
    }
}

/// Where the memory is, by what its pages say.
fn located(work: &Work, source: Presence, votes: &[Memory]) -> Memory {
    match &work.moved {
        // The same on both sides: it need not be moved to be there.
        Some(moved) if moved.probes.is_empty() => match source {
            Presence::Up => Memory::Source,
            _ => Memory::Destination,
        },
        _ => count(votes),
    }
}

impl<'a> Executor<'a> {
    pub(crate) fn side(&mut self, side: Where) -> &mut Side<'a> {
        match side {
            Where::Source => &mut self.from,
            Where::Destination => &mut self.to,
        }
    }

    /// What went through both agents' ports for this job.
    pub(crate) fn traffic(&self) -> Traffic {
        self.from.traffic().and(self.to.traffic())
    }

    /// Execute the machine's command. What moves a guest forward is not among those that are
    /// executed here.
    pub(crate) fn execute(&mut self, work: &mut Work) -> Event {
        let command = work.machine.command();
        let done = match command {
            Command::Write(step) => return self.write(work, step),
            Command::Remove => return self.remove(work),
            Command::SwapBack => self.swap_back(work),
            Command::Look => self.look(work),
            Command::Resume(side) => {
                let done = self.resume(work, side);
                // It does not stand still any more. Nor need there be anything to destroy.
                if done.is_ok() && side == Where::Source {
                    self.refill(work);
                }
                done
            }
            Command::Destroy(side) => {
                // The guest runs on. What is destroyed is scrubbed, which takes of the reserve.
                self.refill(work);
                self.destroy(work, side)
            }
            Command::Stage
            | Command::Stream
            | Command::Prepare
            | Command::Commit
            | Command::Copy => Err("a migration cannot be gone on with by another job".into()),
            Command::Wait(_) | Command::End(_) => Ok(Event::Done),
        };
        done.unwrap_or_else(|why| {
            warn!(
                migration = work.record.id,
                ?command,
                "not done in a migration: {why}"
            );
            self.trouble = why;
            Event::Failed
        })
    }

    /// What the machine waits for.
    pub(crate) fn waits_for(&self, work: &Work, why: Why) -> String {
        let Record {
            guest, from, to, ..
        } = &work.record;
        let (a, b) = (&from.host_vm, &to.host_vm);
        match why {
            Why::Failed | Why::Presence(_) => self.trouble.clone(),
            Why::Memory => format!(
                "it cannot be told where the memory of guest {guest} is; both halves of it stay paused in {a} and {b} (see `vmbeam records`)"
            ),
            Why::Torn => format!(
                "a part of the memory of guest {guest} is in {a} and a part in {b}; what there is of it stays paused (see `vmbeam records`)"
            ),
        }
    }

    fn written(&mut self, result: Result<(), (bool, String)>) -> Event {
        match result {
            Ok(()) => Event::Done,
            Err((perhaps, why)) => {
                warn!("{why}");
                self.trouble = why;
                match perhaps {
                    true => Event::Perhaps,
                    false => Event::Failed,
                }
            }
        }
    }

    fn write(&mut self, work: &mut Work, step: Step) -> Event {
        let Some(state) = work.state(step) else {
            self.trouble = "the journal does not say what was swapped".into();
            return Event::Failed;
        };
        work.record.state = state;
        let said = |e: WriteError| (e.perhaps, format!("cannot write the journal: {e}"));
        self.written(self.journal.write(&work.record).map_err(said))
    }

    fn remove(&mut self, work: &Work) -> Event {
        let said = |e: WriteError| {
            let why = format!("cannot remove the journal's record: {e}");
            (e.perhaps, why)
        };
        self.written(self.journal.remove(work.record.id).map_err(said))
    }

    /// Whether the domain runs that a host VM was.
    ///
    /// The host's toolstack may take a minute to tell, and a guest may stand still. So it is not
    /// asked while the agent's connection stands that has proven in this job to be in that domain.
    /// The domain's device model has the other end of it, and ends with the domain: no other one
    /// can ever answer on it, whatever number, name or UUID that has. A domain may end a moment
    /// later, as it may behind a list; what is asked of it fails then, and the next look finds the
    /// connection closed. And the guest can run elsewhere only if this host VM is taken for gone,
    /// which nothing but the toolstack's list or the hypervisor's number says. The hypervisor is
    /// always asked, which answers at once.
    fn presence(&mut self, work: &Work, side: Where) -> Presence {
        let place = work.place(side);
        let (domid, id) = (place.host_domid, place.host_id);
        let is_gone = matches!(self.driver.has(domid, id), Ok(false));
        let at = self.side(side);
        if !is_gone && at.is_surely(domid, place.host_uuid) {
            return Presence::Up;
        }
        match at.vm.is_still(place) {
            Ok(true) => Presence::Up,
            Ok(false) => Presence::Gone,
            Err(why) => {
                self.trouble = why;
                Presence::Unknown
            }
        }
    }

    pub(crate) fn guests(&mut self, side: Where) -> Result<Vec<Guest>, String> {
        let deadline = self.deadline;
        self.side(side).insist(deadline, |l| l.guests())
    }

    /// What there is, for the machine to decide from. The guest may stand still: who makes no
    /// difference is not waited for.
    fn look(&mut self, work: &Work) -> Result<Event, String> {
        let step = work.machine.reached();
        let sides: &[Where] = match (work.machine.settled(), step) {
            (Some(_), _) => &[Where::Destination],
            (None, Step::Resume) => &[Where::Destination, Where::Source],
            (None, _) => &[Where::Source, Where::Destination],
        };
        let mut seen = Seen {
            source: Presence::Unknown,
            destination: Presence::Unknown,
            memory: Memory::Unknown,
            half: false,
            runs: false,
        };
        let mut votes = Vec::new();
        for side in sides {
            self.look_at(work, *side, &mut seen, &mut votes)?;
            match decide(step, seen) {
                Plan::Wait(Why::Presence(missing)) if missing != *side => {}
                _ => break,
            }
        }
        info!(
            migration = work.record.id,
            guest = work.record.guest,
            state = ?step,
            ?seen,
            "looked at a migration"
        );
        Ok(Event::Seen(seen))
    }

    /// What there is on this side, which is not known if its agent cannot be asked. `votes` are what
    /// the pages say of both.
    fn look_at(
        &mut self,
        work: &Work,
        side: Where,
        seen: &mut Seen,
        votes: &mut Vec<Memory>,
    ) -> Result<(), String> {
        *presence_of(seen, side) = self.presence(work, side);
        let swapped =
            matches!(work.machine.reached(), Step::Swap { .. }) && work.machine.settled().is_none();
        // Nothing is left of one that is gone that the driver could have a record of.
        if !swapped || *presence_of(seen, side) != Presence::Up {
            return Ok(());
        }
        let (a, b) = (work.record.from.host_domid, work.record.to.host_domid);
        seen.half = self.driver.has_record(a, b).map_err(|e| e.to_string())?;
        match self.look_into(work, side) {
            Ok(Some((state, told))) => {
                seen.runs |= side == Where::Source && state == GuestState::Running;
                votes.extend(told);
            }
            // As if its host VM were gone.
            Ok(None) => *presence_of(seen, side) = Presence::Gone,
            Err(why) => {
                *presence_of(seen, side) = Presence::Unknown;
                self.trouble = why;
            }
        }
        seen.memory = located(work, seen.source, votes);
        Ok(())
    }

    /// The state of the guest on this side and what its pages say, unless it is certainly not there
    /// any more. It is known by its number and its UUID: a name can be changed, or may not be
    /// readable.
    fn look_into(
        &mut self,
        work: &Work,
        side: Where,
    ) -> Result<Option<(GuestState, Vec<Memory>)>, String> {
        let found = match self.found(work, side) {
            Ok(found) => found,
            // It may have ended meanwhile.
            Err(why) => match self.presence(work, side) {
                Presence::Gone => None,
                _ => return Err(why),
            },
        };
        match found {
            Some(guest) => Ok(Some((guest.state, self.votes(work, side)?))),
            None => Ok(None),
        }
    }

    /// What the pages of this side say of where the memory is.
    fn votes(&mut self, work: &Work, side: Where) -> Result<Vec<Memory>, String> {
        let (Some(Moved { probes, .. }), Some(guest)) = (&work.moved, work.place(side).guest)
        else {
            return Ok(Vec::new());
        };
        if probes.is_empty() {
            return Ok(Vec::new());
        }
        let runs: Vec<PfnRun> = probes
            .iter()
            .map(|p| PfnRun { pfn: p.pfn, nr: 1 })
            .collect();
        let deadline = self.deadline;
        let digests = self
            .side(side)
            .insist(deadline, |l| l.digests(guest, &runs, |_| {}))?;
        let at_source = side == Where::Source;
        let votes = probes.iter().zip(digests);
        Ok(votes
            .map(|(probe, (_, digest))| vote(probe, &digest, at_source))
            .collect())
    }

    /// Have the memory at the source again, if it is not, and a reserve for what does not come
    /// back: frames of zeroes that the hypervisor found at the destination meanwhile.
    fn swap_back(&mut self, work: &Work) -> Result<Event, String> {
        let event = self.put_back(work)?;
        if event == Event::Done && work.record.mode == Mode::Relocate {
            let Place {
                host_vm,
                host_domid,
                ..
            } = &work.record.from;
            // The guest goes on without it: there may be no debt, or enough for it. It is asked for
            // again once the guest runs.
            let until = Instant::now() + RESERVE;
            let go_on = || match Instant::now() < until {
                true => Ok(()),
                false => Err(refused("late")),
            };
            match self.from.vm.reserve(*host_domid, MARGIN, &go_on) {
                Ok(memory) => info!(host_vm, ?memory, "has its memory again"),
                Err(why) => warn!(host_vm, "may lack a reserve after what was undone: {why}"),
            }
        }
        Ok(event)
    }

    /// Give host VMs the reserves that they need after a relocation, or after one was undone.
    fn refill(&mut self, work: &Work) {
        let Record { from, to, .. } = &work.record;
        let filled = std::mem::replace(&mut self.filled, true);
        if !filled && work.record.mode == Mode::Relocate {
            let undone = work.machine.reached() != Step::Destroy;
            refill([(self.from.vm, from), (self.to.vm, to)], undone);
        }
    }

    fn put_back(&mut self, work: &Work) -> Result<Event, String> {
        match std::mem::replace(&mut self.swapped, Swapped::Unknown) {
            Swapped::Back => return Ok(Event::Done),
            Swapped::Torn => {
                self.trouble = "the driver could not swap everything back".into();
                return Ok(Event::Torn);
            }
            Swapped::By(mut session) => {
                self.was_away = true;
                let back = roll_back(&mut *session, "it is undone", &|_, _, _| {});
                return Ok(self.rolled_back(back.failure, back.message, Event::Done));
            }
            Swapped::Unknown => {}
        }
        let mut votes = self.votes(work, Where::Source)?;
        votes.extend(self.votes(work, Where::Destination)?);
        match located(work, Presence::Up, &votes) {
            Memory::Source => return Ok(Event::Done),
            Memory::Destination => {}
            Memory::Torn | Memory::Unknown => {
                return Err(self.waits_for(work, Why::Memory));
            }
        }
        self.was_away = true;
        let Some(Moved { pairs, .. }) = &work.moved else {
            return Err("the journal does not say what was swapped".into());
        };
        let runs = self.journal.pairs(work.record.id, pairs)?;
        let pages: u64 = runs.iter().map(|r| u64::from(r.nr)).sum();
        let (a, b) = (work.record.from.host_domid, work.record.to.host_domid);
        let Route { mode, .. } = Route::new((a, b), work.record.mode).back();
        let mut session = self.driver.open(a, b, mode).map_err(|e| e.to_string())?;
        let quiet = &|_, _, _| {};
        add(&mut *session, &runs, quiet, REGARDLESS).map_err(|e| e.message)?;
        let mut status = vec![NOT_ATTEMPTED; pages as usize];
        if let Err(e) = commit(&mut *session, &mut status, quiet, REGARDLESS) {
            return Ok(self.rolled_back(e.failure, e.message, Event::Failed));
        }
        take_empty(mode, &runs, &mut status);
        let refused = status.iter().filter(|s| **s != 0).count();
        if refused > 0 {
            let why = format!("{refused} pages cannot be swapped back now");
            let back = roll_back(&mut *session, &why, quiet);
            return Ok(self.rolled_back(back.failure, back.message, Event::Failed));
        }
        Ok(Event::Done)
    }

    fn rolled_back(&mut self, failure: Failure, message: String, good: Event) -> Event {
        self.trouble = message;
        match failure {
            Failure::Failed => Event::Torn,
            _ => good,
        }
    }

    fn resume(&mut self, work: &Work, side: Where) -> Result<Event, String> {
        let Some(guest) = work.place(side).guest else {
            return Err("the guest's number is not known".into());
        };
        let deadline = self.deadline;
        let there = self.is_there(work, side)?;
        // Whoever still works on it is to stop that.
        let idle = std::mem::take(&mut self.idle);
        let agent = self.side(side);
        if !idle {
            agent.insist(deadline, |l| l.abort())?;
        }
        match there && agent.insist(deadline, |l| known(l.resume(guest)))? {
            true => Ok(Event::Done),
            false => {
                let host_vm = &work.place(side).host_vm;
                warn!(guest = work.record.guest, host_vm, "the guest has ended");
                self.ended |= side == Where::Source;
                Ok(Event::NoGuest)
            }
        }
    }

    /// Destroy what a side has of the guest, if it has anything.
    fn destroy(&mut self, work: &Work, side: Where) -> Result<Event, String> {
        let deadline = self.deadline;
        self.side(side).insist(deadline, |l| l.abort())?;
        let guest = match self.swapped {
            // This job has made it.
            Swapped::By(_) | Swapped::Back if work.place(side).guest.is_some() => {
                work.place(side).guest
            }
            _ => self.found(work, side)?.map(|g| g.domid),
        };
        if let Some(guest) = guest {
            self.side(side)
                .insist(deadline, |l| known(l.destroy(guest)))?;
        }
        if side == Where::Source && work.machine.reached() == Step::Destroy {
            self.follow(work)?;
        }
        Ok(Event::Done)
    }

    /// What is written down of a guest that has moved goes after it, unless that is lost.
    fn follow(&mut self, work: &Work) -> Result<(), String> {
        let (guest, deadline) = (&work.record.guest, self.deadline);
        let moved = definitions::follow(guest, &mut self.from, &mut self.to, deadline);
        match moved {
            Err(why) if self.presence(work, Where::Destination) == Presence::Gone => {
                warn!(guest, "what is written down of the guest stays: {why}");
                Ok(())
            }
            moved => moved,
        }
    }

    /// Whether the guest that is to run is certainly the one that is meant. One that this job has
    /// swapped is not asked for again: it stands still meanwhile.
    fn is_there(&mut self, work: &Work, side: Where) -> Result<bool, String> {
        match self.swapped {
            Swapped::By(_) | Swapped::Back => Ok(true),
            _ => Ok(self.found(work, side)?.is_some()),
        }
    }
}
