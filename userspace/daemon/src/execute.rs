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
    Command, Event, Memory, Presence, Seen, Side as Where, State as Machine, Step, Why,
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
    fn presence(&mut self, work: &Work, side: Where) -> Presence {
        let place = work.place(side);
        match self.side(side).vm.is_still(place) {
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

    /// What there is, for the machine to decide from.
    fn look(&mut self, work: &Work) -> Result<Event, String> {
        let mut seen = Seen {
            source: self.presence(work, Where::Source),
            destination: self.presence(work, Where::Destination),
            memory: Memory::Unknown,
            half: false,
            runs: false,
        };
        if matches!(work.machine.reached(), Step::Swap { .. }) {
            let (a, b) = (work.record.from.host_domid, work.record.to.host_domid);
            // Nothing is left of either that the driver could have a record of.
            if (seen.source, seen.destination) != (Presence::Gone, Presence::Gone) {
                seen.half = self.driver.has_record(a, b).map_err(|e| e.to_string())?;
            }
            let here = self.state(work, Where::Source, &mut seen.source)?;
            self.state(work, Where::Destination, &mut seen.destination)?;
            seen.runs = here == Some(GuestState::Running);
            seen.memory = self.locate(work, seen.source, seen.destination)?;
        }
        info!(
            migration = work.record.id,
            guest = work.record.guest,
            state = ?work.machine.reached(),
            ?seen,
            "looked at a migration"
        );
        Ok(Event::Seen(seen))
    }

    /// The state of the guest on this side, unless it is certainly not there any more: that is
    /// as if its host VM were gone. It is known by its number and its UUID: a name can be changed,
    /// or may not be readable.
    fn state(
        &mut self,
        work: &Work,
        side: Where,
        presence: &mut Presence,
    ) -> Result<Option<GuestState>, String> {
        if *presence != Presence::Up {
            return Ok(None);
        }
        let state = match self.found(work, side) {
            Ok(guest) => guest.map(|g| g.state),
            // It may have ended meanwhile.
            Err(why) => match self.presence(work, side) {
                Presence::Gone => None,
                _ => return Err(why),
            },
        };
        if state.is_none() {
            *presence = Presence::Gone;
        }
        Ok(state)
    }

    /// Look where the memory is.
    fn locate(
        &mut self,
        work: &Work,
        source: Presence,
        destination: Presence,
    ) -> Result<Memory, String> {
        let Some(Moved { probes, .. }) = &work.moved else {
            return Ok(Memory::Unknown);
        };
        if probes.is_empty() {
            // The same on both sides: it need not be moved to be there.
            return Ok(match source {
                Presence::Up => Memory::Source,
                _ => Memory::Destination,
            });
        }
        let runs: Vec<PfnRun> = probes
            .iter()
            .map(|p| PfnRun { pfn: p.pfn, nr: 1 })
            .collect();
        let deadline = self.deadline;
        let mut votes = Vec::new();
        for (side, presence) in [(Where::Source, source), (Where::Destination, destination)] {
            let (Presence::Up, Some(guest)) = (presence, work.place(side).guest) else {
                continue;
            };
            let digests = self
                .side(side)
                .insist(deadline, |l| l.digests(guest, &runs, |_| {}))?;
            let at_source = side == Where::Source;
            votes.extend(
                probes
                    .iter()
                    .zip(digests)
                    .map(|(probe, (_, digest))| vote(probe, &digest, at_source)),
            );
        }
        Ok(count(&votes))
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
        match self.locate(work, Presence::Up, Presence::Up)? {
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
