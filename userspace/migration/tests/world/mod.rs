// SPDX-License-Identifier: GPL-2.0-only

//! What the machine acts on: two host VMs with a guest, memory, a driver, a journal, and
//! daemons that execute commands, well or not.

use vmbeam_migration::{
    decide, Command, Event, Memory, Outcome, Plan, Presence, Seen, Side, State, Step, Why,
};

/// Something that vmbeamd once did wrong. The model must find each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// None: as it is.
    None,
    /// Who asks for a domain in vain takes it for gone. (U2)
    FailedIsGone,
    /// Guests are looked for by their names, which cannot always be read. (U5)
    ByName,
    /// A journal that failed is taken for one that says what it said before. (U6)
    FailedIsUnwritten,
    /// A job that panics leaves its record to nobody. (U7)
    PanicOrphans,
    /// A second daemon reads the journal of one that runs. (U8)
    TwoDaemons,
    /// What is destroyed, or let run, is not ended before: a restore may still make it.
    NotEnded,
    /// A guest that is only to be staged is suspended at once.
    Impatient,
}

/// A guest in a host VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Guest {
    Absent,
    Paused,
    Runs,
}

/// A host VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Host {
    pub up: bool,
    pub guest: Guest,
}

/// Who works on the migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Daemon {
    /// It does not run; what is in the journal waits for the next.
    Down,
    /// It executes the command of this state.
    Runs(State),
    /// It runs, and does nothing about this migration.
    Idle,
}

/// How the execution of a command goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// It is done.
    Well,
    /// The same, with pages to be copied.
    WithCopies,
    /// Nothing is done, and that is said.
    Fails,
    /// It is done, but that is not learned: the port or the agent was lost, or the directory
    /// could not be made durable.
    Unheard,
    /// Nothing is done, but that is not known.
    Unclear,
    /// It is done after whoever waited for it gave up.
    Late,
    /// Half of it, and the driver cannot undo that.
    Tears,
    /// A domain is asked for in vain.
    Blind(Side),
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Happens {
    /// The daemon's command comes to an end.
    Command(usize, Way),
    /// The daemon dies, or (without the second) only its job does, with the command done
    /// like this.
    Dies(usize, Way, bool),
    /// A daemon starts.
    Starts(usize),
    /// What was late is done.
    Late,
    /// A host VM ends.
    Ends(Side),
    /// The guest shuts down by itself.
    ShutsDown(Side),
    /// A person lets the driver put the memory back.
    Recover,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub swaps: bool,
    /// The destination has a copy before the guest is suspended.
    pub stages: bool,
    pub copies: bool,
    pub source: Host,
    pub destination: Host,
    /// Where the memory is. If it is not swapped there are two of them, and that counts which
    /// the journal decides for: the other one is older than the disks.
    pub memory: Memory,
    /// The pages that are not swapped were copied.
    pub copied: bool,
    /// The driver keeps a record.
    pub half: bool,
    /// The guest ran at the source after its memory was looked at.
    pub written: bool,
    /// It has shut down.
    pub ended: bool,
    pub journal: Option<Step>,
    pub daemons: [Daemon; 2],
    /// A command on this side that is still going to be done.
    pub late: Option<(Side, Command)>,
    /// How many more things may go wrong.
    pub faults: u8,
    /// What was done that must never be.
    pub crime: Option<&'static str>,
}

impl World {
    pub fn new(swaps: bool, stages: bool, faults: u8) -> Self {
        let host = |guest| Host { up: true, guest };
        Self {
            swaps,
            stages,
            copies: false,
            source: host(Guest::Runs),
            destination: host(Guest::Absent),
            memory: Memory::Source,
            copied: false,
            half: false,
            written: false,
            ended: false,
            journal: None,
            daemons: [Daemon::Runs(State::new(swaps, stages)), Daemon::Down],
            late: None,
            faults,
            crime: None,
        }
    }

    pub fn host(&self, side: Side) -> Host {
        match side {
            Side::Source => self.source,
            Side::Destination => self.destination,
        }
    }

    fn host_mut(&mut self, side: Side) -> &mut Host {
        match side {
            Side::Source => &mut self.source,
            Side::Destination => &mut self.destination,
        }
    }

    /// Whether the guest has all its memory there.
    pub fn whole(&self, side: Side) -> bool {
        let here = self.host(side).guest != Guest::Absent;
        here && match side {
            Side::Source => self.memory == Memory::Source,
            // Of pages that were copied only the point of no return tells.
            Side::Destination => {
                let before = matches!(
                    self.journal,
                    Some(Step::Stage | Step::Stream | Step::Swap { .. })
                );
                let decided = !before;
                self.memory == Memory::Destination && (!self.copies || self.copied && decided)
            }
        }
    }

    /// A host VM has ended.
    pub fn gone(&self) -> bool {
        !self.source.up || !self.destination.up
    }

    pub fn runs(&self, side: Side) -> bool {
        self.host(side).guest == Guest::Runs
    }

    fn crime(&mut self, what: &'static str) {
        self.crime.get_or_insert(what);
    }

    /// What the machine is told that finds out. The side that makes no difference is not asked.
    fn seen(&self, state: State, way: Way, defect: Defect) -> Seen {
        let mut seen = Seen {
            source: Presence::Unknown,
            destination: Presence::Unknown,
            memory: Memory::Unknown,
            half: false,
            runs: false,
        };
        for side in asked(state) {
            self.look_at(*side, state, way, defect, &mut seen);
            match decide(state.reached(), seen) {
                Plan::Wait(Why::Presence(missing)) if missing != *side => {}
                _ => break,
            }
        }
        seen
    }

    fn look_at(&self, side: Side, state: State, way: Way, defect: Defect, seen: &mut Seen) {
        let swap = matches!(state.reached(), Step::Swap { .. }) && state.settled().is_none();
        let Host { up, guest } = self.host(side);
        let presence = match up && !(swap && guest == Guest::Absent) {
            _ if way == Way::Blind(side) && defect == Defect::FailedIsGone => Presence::Gone,
            _ if way == Way::Blind(side) => Presence::Unknown,
            true => Presence::Up,
            false => Presence::Gone,
        };
        // The pages of a copy that never ran still tell.
        let told = match side {
            Side::Source => !self.written,
            Side::Destination => !self.runs(side),
        };
        if swap && told && presence == Presence::Up {
            seen.memory = self.memory;
        }
        seen.half = swap && self.half;
        match side {
            Side::Source => {
                seen.source = presence;
                seen.runs = presence == Presence::Up && self.runs(side);
            }
            Side::Destination => seen.destination = presence,
        }
    }

    /// A command is executed.
    fn effect(&mut self, command: Command) -> Event {
        match command {
            Command::Write(step) => {
                self.journal = Some(step);
                match step {
                    Step::Stream if !self.swaps => self.memory = Memory::Source,
                    Step::Resume if !self.swaps => self.memory = Memory::Destination,
                    _ => {}
                }
            }
            Command::Remove => self.journal = None,
            Command::Stage => {
                if !self.runs(Side::Source) || !self.destination.up {
                    return Event::Failed;
                }
                self.destination.guest = Guest::Paused;
            }
            Command::Stream => {
                let empty = self.stages && self.destination.guest == Guest::Absent;
                if !self.runs(Side::Source) || !self.destination.up || empty {
                    return Event::Failed;
                }
                self.source.guest = Guest::Paused;
                self.destination.guest = Guest::Paused;
            }
            Command::Prepare => {
                return Event::Prepared {
                    copies: self.copies,
                }
            }
            Command::Commit | Command::SwapBack => {
                let (from, to) = match command {
                    Command::Commit => (Memory::Source, Memory::Destination),
                    _ => (Memory::Destination, Memory::Source),
                };
                let paused = |h: Host| h.up && h.guest != Guest::Absent;
                if !paused(self.source) || !paused(self.destination) || self.half {
                    return Event::Failed;
                }
                // The session knows that nothing was swapped.
                if self.memory == from {
                    self.memory = to;
                }
            }
            Command::Copy => {
                if !(self.source.up && self.destination.up) {
                    return Event::Failed;
                }
                self.copied = true;
            }
            Command::Resume(side) => match self.host(side) {
                Host { up: false, .. } => return Event::Failed,
                Host {
                    guest: Guest::Absent,
                    ..
                } => return Event::NoGuest,
                _ => {
                    self.host_mut(side).guest = Guest::Runs;
                    self.written |= side == Side::Source;
                }
            },
            Command::Destroy(side) => {
                let other = match side {
                    Side::Source => Side::Destination,
                    Side::Destination => Side::Source,
                };
                match self.host(side) {
                    Host { up: false, .. } => return Event::Failed,
                    Host { guest, .. } => {
                        // The agent asks that.
                        if guest == Guest::Runs {
                            return Event::Failed;
                        }
                        if self.whole(side) && !self.whole(other) && !self.ended {
                            self.crime("the only whole guest was destroyed");
                        }
                        self.host_mut(side).guest = Guest::Absent;
                    }
                }
            }
            Command::Look | Command::Wait(_) | Command::End(_) => {}
        }
        Event::Done
    }

    /// What was begun on this side is ended, done or not, before an agent does something new.
    fn end_late(&mut self, side: Side) {
        if self.late.is_some_and(|(at, _)| at == side) {
            self.late = None;
        }
    }

    /// Ways in which a command can end.
    pub fn ways(&self, command: Command) -> Vec<Way> {
        let good = match command {
            Command::Prepare if !self.copies => vec![Way::Well, Way::WithCopies],
            Command::End(_) => vec![],
            _ => vec![Way::Well],
        };
        let bad: &[Way] = match command {
            _ if self.faults == 0 => &[],
            Command::Write(_) | Command::Remove => &[Way::Fails, Way::Unheard, Way::Unclear],
            Command::Commit | Command::SwapBack => &[Way::Fails, Way::Tears],
            Command::Stage | Command::Stream => &[Way::Fails, Way::Unheard, Way::Late],
            Command::Resume(_) | Command::Destroy(_) => &[Way::Fails, Way::Unheard, Way::Late],
            Command::Prepare | Command::Copy => &[Way::Fails],
            Command::Look => &[
                Way::Fails,
                Way::Blind(Side::Source),
                Way::Blind(Side::Destination),
            ],
            Command::Wait(_) | Command::End(_) => &[],
        };
        good.into_iter().chain(bad.iter().copied()).collect()
    }

    /// A command is executed in this way; gives what the machine is told.
    pub fn execute(&mut self, state: State, way: Way, defect: Defect) -> Event {
        let command = state.command();
        if defect == Defect::Impatient && command == Command::Stage && self.runs(Side::Source) {
            self.source.guest = Guest::Paused;
        }
        if !matches!(way, Way::Well | Way::WithCopies) {
            self.faults -= 1;
        }
        if let Command::Resume(side) | Command::Destroy(side) = command {
            if defect != Defect::NotEnded {
                self.end_late(side);
            }
        }
        match (way, command) {
            (Way::WithCopies, _) => {
                self.copies = true;
                self.effect(command)
            }
            (_, Command::Look) if way == Way::Fails => Event::Failed,
            (_, Command::Look) => Event::Seen(self.seen(state, way, defect)),
            (Way::Well, _) => self.effect(command),
            (Way::Fails, Command::Resume(_)) if defect == Defect::ByName => Event::NoGuest,
            (Way::Fails, Command::Destroy(_)) if defect == Defect::ByName => Event::Done,
            // A save that fails has let the guest run again.
            (Way::Fails, _) => Event::Failed,
            (Way::Unheard, Command::Write(_) | Command::Remove) => {
                self.effect(command);
                unsure(command, defect)
            }
            (Way::Unclear, _) => unsure(command, defect),
            (Way::Unheard, _) => {
                self.effect(command);
                Event::Failed
            }
            (Way::Late, _) => {
                let side = match command {
                    Command::Resume(side) | Command::Destroy(side) => side,
                    _ => Side::Destination,
                };
                if command == Command::Stream && self.runs(Side::Source) {
                    self.source.guest = Guest::Paused;
                }
                // What is staged already can only be late to be complete.
                let made = command == Command::Stream && self.stages;
                self.late = Some((side, command)).filter(|_| !made);
                Event::Failed
            }
            (Way::Tears, _) => {
                let paused = |h: Host| h.up && h.guest == Guest::Paused;
                if self.half || !paused(self.source) || !paused(self.destination) {
                    return Event::Failed;
                }
                self.memory = Memory::Torn;
                self.half = true;
                match command {
                    // Told by the attempt to undo it.
                    Command::Commit => Event::Failed,
                    _ => Event::Torn,
                }
            }
            (Way::Blind(_), _) => Event::Failed,
        }
    }

    /// What was late is done now.
    pub fn late(&mut self) {
        match self.late.take() {
            Some((_, Command::Stage | Command::Stream)) => {
                if self.destination.up && self.destination.guest == Guest::Absent {
                    self.destination.guest = Guest::Paused;
                }
            }
            Some((_, command)) => {
                self.effect(command);
            }
            None => {}
        }
    }

    /// A host VM ends, with what is in it.
    pub fn end(&mut self, side: Side) {
        self.faults -= 1;
        *self.host_mut(side) = Host {
            up: false,
            guest: Guest::Absent,
        };
        self.end_late(side);
    }

    /// The guest shuts down; if it has nowhere to run, that is not its end.
    pub fn shut_down(&mut self, side: Side) {
        self.faults -= 1;
        self.ended = true;
        self.host_mut(side).guest = Guest::Absent;
    }

    /// A person has the driver put back what it could not.
    pub fn recover(&mut self) {
        self.half = false;
        self.memory = Memory::Source;
    }

    /// Nothing is to be done any more: what must be true?
    pub fn verdict(&self, outcome: Outcome) -> Option<&'static str> {
        let left = |side| self.host(side).guest == Guest::Paused;
        if self.journal.is_some() {
            return Some("it has ended, and its record is left");
        }
        if left(Side::Source) || left(Side::Destination) {
            return Some("it has ended, and a guest that is paused is left to nobody");
        }
        let at = |side| self.runs(side) || self.ended || !self.host(side).up;
        let good = match outcome {
            Outcome::AtSource => at(Side::Source),
            Outcome::AtDestination => at(Side::Destination),
            Outcome::Lost => {
                let gone = !self.source.up || !self.destination.up || self.ended;
                gone && !self.runs(Side::Source) && !self.runs(Side::Destination)
            }
        };
        (!good).then_some("it has not ended as it says")
    }
}

/// Whom vmbeamd asks, one after the other, as long as that makes a difference.
fn asked(state: State) -> &'static [Side] {
    match (state.settled(), state.reached()) {
        (Some(_), _) => &[Side::Destination],
        (None, Step::Resume) => &[Side::Destination, Side::Source],
        (None, _) => &[Side::Source, Side::Destination],
    }
}

/// A write of which nobody knows whether it can be seen.
fn unsure(command: Command, defect: Defect) -> Event {
    match defect {
        // What it did at other times was right.
        Defect::FailedIsUnwritten if command == Command::Write(Step::Resume) => Event::Failed,
        _ => Event::Perhaps,
    }
}
