// SPDX-License-Identifier: GPL-2.0-only

//! The state machine of a migration, without anything that it acts on.
//!
//! A [`State`] is what is known, and which [`Command`] was given because of that. Whoever
//! executes commands gives the answer to [`State::step`], and gets the next state. There is
//! one machine: going on, undoing after a failure, and recovering after a crash are paths in
//! it, and a daemon that finds a record enters it at [`State::recovered`].
//!
//! Of a state nothing but its [`Step`] outlives the daemon. So the machine writes a step into
//! the journal before it does what somebody has to know of who only has the journal.
//!
//! `tests/model.rs` tries what can happen at every command (`make model`). In vmbeamd
//! `migrate.rs` and `settle.rs` execute what it says.

mod decide;
mod step;

pub use decide::{decide, Memory, Plan, Presence, Seen, Why};
pub use step::{Side, Step};

/// What is to be done next. Each is answered by an [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Make this what the journal says.
    Write(Step),
    /// Make all of the guest's copy at the destination that can be made while the guest runs,
    /// and find out all that can be found out then.
    Stage,
    /// Save the guest at the source and restore it at the destination, or what staging has left
    /// of that; it is paused on both sides then, and its memory still at the source.
    Stream,
    /// Find the pairs to be swapped, and pages that tell where the memory is.
    Prepare,
    /// Swap the pairs.
    Commit,
    /// Copy the pages that cannot be swapped, and verify all that was moved.
    Copy,
    /// Swap the pairs back.
    SwapBack,
    /// Find out what there is: see [`Seen`]. What makes no difference by [`decide()`] need not be
    /// known, and once the end is settled ([`State::settled`]), only the destination.
    Look,
    /// Have the agent end what it still does for the guest, and let the guest run.
    Resume(Side),
    /// Have the agent end what it still does for the guest, and destroy what there is of it.
    Destroy(Side),
    /// Remove the record.
    Remove,
    /// Not now: try again after a while, or when somebody has mended something.
    Wait(Why),
    /// Nothing: it has come to an end.
    End(Outcome),
}

/// How a migration has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The guest is at the source, as if nothing had happened.
    AtSource,
    /// It is at the destination.
    AtDestination,
    /// It died with a host VM, or was destroyed by somebody else.
    Lost,
}

/// The answer to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Done; for [`Command::Wait`], that the wait is over.
    Done,
    /// It failed, or nobody knows whether it was done. After [`Command::Write`] and
    /// [`Command::Remove`]: the journal says what it said before.
    Failed,
    /// The same, but the journal may say the one or the other.
    Perhaps,
    /// The pairs are found.
    Prepared {
        /// Pages are to be copied besides.
        copies: bool,
    },
    /// Some pairs are swapped and some are not, and that cannot be changed now.
    Torn,
    /// There is certainly no such guest.
    NoGuest,
    /// What [`Command::Look`] has found.
    Seen(Seen),
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Doing {
    // Going on.
    Beginning,
    Staging,
    /// Noting that the guest is going to be suspended, and the number of its copy.
    Suspending,
    Streaming,
    Preparing,
    /// Noting what is going to be swapped.
    Announcing {
        copies: bool,
    },
    Swapping,
    Copying,
    /// Writing the point of no return.
    Deciding,
    Resuming,
    /// Noting that it runs at the destination.
    Arriving,
    Cleaning,
    // Undoing.
    /// Perhaps the journal says that there is no return; it is told that there is.
    Doubting,
    SwappingBack,
    /// Noting that the memory is at the source again.
    Returned,
    /// Noting that the memory is torn.
    Tearing,
    /// Letting the guest run at the source.
    Returning,
    /// Destroying the copy at the destination, after that.
    Discarding(Outcome),
    // Finding out.
    /// Once the guest is where it belongs or is known to be lost, only the copy at the
    /// destination is looked for.
    Looking {
        settled: Option<Outcome>,
    },
    /// Writing the point of no return although the source is gone.
    Completing,
    Losing {
        side: Side,
        other_too: bool,
    },
    // The end.
    Removing(Outcome),
    Waiting(Why, Next),
    Ended(Outcome),
}

/// What to try after a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Next {
    Look { settled: Option<Outcome> },
    Doubt,
    Remove(Outcome),
}

/// A migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Its memory is swapped, and not in the stream.
    swaps: bool,
    /// Its copy is made before it is suspended.
    stages: bool,
    step: Step,
    doing: Doing,
}

impl State {
    /// A migration of a guest that runs at the source. With `swaps`, its memory is swapped;
    /// otherwise it is in the stream. With `stages`, its copy is made before it is suspended.
    pub fn new(swaps: bool, stages: bool) -> Self {
        Self {
            swaps,
            stages,
            step: match stages {
                true => Step::Stage,
                false => Step::Stream,
            },
            doing: Doing::Beginning,
        }
    }

    /// A migration of which only the journal is left.
    pub fn recovered(step: Step) -> Self {
        Self {
            swaps: matches!(step, Step::Swap { .. }),
            stages: step == Step::Stage,
            step,
            doing: Doing::Looking { settled: None },
        }
    }

    /// How far it is.
    pub fn reached(&self) -> Step {
        self.step
    }

    /// Whether it has left the way forward: it is being undone, found out about, or lost.
    pub fn is_forward(&self) -> bool {
        use Doing::*;
        matches!(
            self.doing,
            Beginning
                | Staging
                | Suspending
                | Streaming
                | Preparing
                | Announcing { .. }
                | Swapping
                | Copying
                | Deciding
                | Resuming
                | Arriving
                | Cleaning
                | Removing(Outcome::AtDestination)
                | Ended(Outcome::AtDestination)
        )
    }

    /// What is certain of the guest's end, if only its copy at the destination is looked for, or
    /// that is waited for.
    pub fn settled(&self) -> Option<Outcome> {
        match self.doing {
            Doing::Looking { settled } | Doing::Waiting(_, Next::Look { settled }) => settled,
            _ => None,
        }
    }

    /// What is to be done now.
    pub fn command(&self) -> Command {
        match self.doing {
            Doing::Beginning if self.stages => Command::Write(Step::Stage),
            Doing::Beginning | Doing::Suspending | Doing::Returned => Command::Write(Step::Stream),
            Doing::Staging => Command::Stage,
            Doing::Streaming => Command::Stream,
            Doing::Preparing => Command::Prepare,
            Doing::Announcing { copies } => Command::Write(Step::Swap {
                copies,
                torn: false,
            }),
            Doing::Swapping => Command::Commit,
            Doing::Copying => Command::Copy,
            Doing::Deciding | Doing::Completing => Command::Write(Step::Resume),
            Doing::Resuming => Command::Resume(Side::Destination),
            Doing::Arriving => Command::Write(Step::Destroy),
            Doing::Cleaning => Command::Destroy(Side::Source),
            Doing::Doubting | Doing::Tearing => Command::Write(self.step),
            Doing::SwappingBack => Command::SwapBack,
            Doing::Returning => Command::Resume(Side::Source),
            Doing::Discarding(_) => Command::Destroy(Side::Destination),
            Doing::Looking { .. } => Command::Look,
            Doing::Losing { side, .. } => Command::Destroy(side),
            Doing::Removing(_) => Command::Remove,
            Doing::Waiting(why, _) => Command::Wait(why),
            Doing::Ended(outcome) => Command::End(outcome),
        }
    }

    /// The state after this answer to the command. An answer that does not fit the command is
    /// one that nothing is learned from, as a failure is.
    #[must_use]
    pub fn step(self, event: Event) -> Self {
        match (self.doing, event) {
            (Doing::Beginning, Event::Done) if self.stages => self.to(Doing::Staging),
            (Doing::Beginning, Event::Done) => self.to(Doing::Streaming),
            // Nothing was done that the record would have to tell of.
            (Doing::Beginning, Event::Perhaps) => self.to(Doing::Removing(Outcome::AtSource)),
            (Doing::Beginning, _) => self.to(Doing::Ended(Outcome::AtSource)),

            (Doing::Staging, Event::Done) => self.to(Doing::Suspending),
            // Not before the journal says so.
            (Doing::Suspending, Event::Done) => self.reach(Step::Stream, Doing::Streaming),
            (Doing::Streaming, Event::Done) if self.swaps => self.to(Doing::Preparing),
            (Doing::Streaming, Event::Done) => self.to(Doing::Deciding),
            (Doing::Preparing, Event::Prepared { copies }) => self.to(Doing::Announcing { copies }),
            (Doing::Announcing { copies }, Event::Done) => {
                let torn = false;
                self.reach(Step::Swap { copies, torn }, Doing::Swapping)
            }
            // The memory is where it was, whatever the journal says.
            (Doing::Staging | Doing::Suspending | Doing::Streaming | Doing::Preparing, _)
            | (Doing::Announcing { .. }, _) => self.look(),

            (Doing::Swapping, Event::Done) => self.to(Doing::Copying),
            (Doing::Copying, Event::Done) => self.to(Doing::Deciding),
            (Doing::Swapping | Doing::Copying, _) => self.to(Doing::SwappingBack),

            (Doing::Deciding, Event::Done) => self.reach(Step::Resume, Doing::Resuming),
            (Doing::Deciding, Event::Perhaps) => self.to(Doing::Doubting),
            (Doing::Deciding, _) | (Doing::Doubting, Event::Done) => match self.step {
                Step::Swap { .. } => self.to(Doing::SwappingBack),
                _ => self.look(),
            },
            // Neither may run before one journal says so: not the one at the source, which
            // the next daemon may destroy, nor the one at the destination.
            (Doing::Doubting, _) => self.wait(Why::Failed, Next::Doubt),

            // Not to be there means that it ran, and has ended.
            (Doing::Resuming, Event::Done | Event::NoGuest) => {
                self.reach(Step::Destroy, Doing::Arriving)
            }
            // It runs: to be let run once more does no harm, should the journal say that.
            (Doing::Arriving, _) => self.to(Doing::Cleaning),
            (Doing::Cleaning, Event::Done) => self.to(Doing::Removing(Outcome::AtDestination)),
            (Doing::Resuming | Doing::Cleaning, _) => self.later(None),

            (Doing::SwappingBack, Event::Done) => self.reach(Step::Stream, Doing::Returned),
            (Doing::SwappingBack, Event::Torn) => {
                let copies = matches!(self.step, Step::Swap { copies: true, .. });
                self.reach(Step::Swap { copies, torn: true }, Doing::Tearing)
            }
            (Doing::SwappingBack, _) => self.later(None),
            // If the journal still says that it may have been swapped, the memory tells; and
            // if it is torn, the driver does.
            (Doing::Returned | Doing::Tearing, _) => self.look(),

            (Doing::Looking { settled: None }, Event::Seen(seen)) => self.found(seen),
            (Doing::Looking { settled: Some(end) }, Event::Seen(seen)) => {
                self.discard(seen.destination, end)
            }
            (Doing::Looking { settled }, _) => self.later(settled),

            // Not before the guest runs anybody waits for what can be said of the destination.
            (Doing::Returning, Event::Done) => self.look_after(Outcome::AtSource),
            (Doing::Returning, Event::NoGuest) => self.look_after(Outcome::Lost),
            (Doing::Returning, _) => self.later(None),
            (Doing::Discarding(end), Event::Done) => self.to(Doing::Removing(end)),
            (Doing::Discarding(end), _) => self.later(Some(end)),

            (Doing::Completing, Event::Done) => self.reach(Step::Resume, Doing::Resuming),
            (Doing::Completing, _) => self.later(None),
            (Doing::Losing { other_too, .. }, Event::Done) if other_too => self.to(Doing::Losing {
                side: Side::Destination,
                other_too: false,
            }),
            (Doing::Losing { .. }, Event::Done) => self.to(Doing::Removing(Outcome::Lost)),
            (Doing::Losing { .. }, _) => self.later(None),

            (Doing::Removing(end), Event::Done) => self.to(Doing::Ended(end)),
            (Doing::Removing(end), _) => self.wait(Why::Failed, Next::Remove(end)),
            (Doing::Waiting(_, next), _) => self.to(match next {
                Next::Look { settled } => Doing::Looking { settled },
                Next::Doubt => Doing::Doubting,
                Next::Remove(end) => Doing::Removing(end),
            }),
            (Doing::Ended(_), _) => self,
        }
    }

    fn to(self, doing: Doing) -> Self {
        Self { doing, ..self }
    }

    fn reach(self, step: Step, doing: Doing) -> Self {
        Self {
            step,
            doing,
            ..self
        }
    }

    fn look(self) -> Self {
        self.to(Doing::Looking { settled: None })
    }

    /// Only the copy at the destination is left to be looked for.
    fn look_after(self, end: Outcome) -> Self {
        self.to(Doing::Looking { settled: Some(end) })
    }

    fn wait(self, why: Why, next: Next) -> Self {
        self.to(Doing::Waiting(why, next))
    }

    fn later(self, settled: Option<Outcome>) -> Self {
        self.wait(Why::Failed, Next::Look { settled })
    }

    /// It is known what there is.
    fn found(self, seen: Seen) -> Self {
        match decide(self.step, seen) {
            Plan::Undo => self.to(Doing::Returning),
            Plan::SwapBack => self.to(Doing::SwappingBack),
            Plan::Forward => match self.step {
                Step::Destroy if seen.source == Presence::Up => self.to(Doing::Cleaning),
                Step::Destroy => self.to(Doing::Removing(Outcome::AtDestination)),
                Step::Resume => self.to(Doing::Resuming),
                Step::Stage | Step::Stream | Step::Swap { .. } => self.to(Doing::Completing),
            },
            Plan::Lost => {
                let destination = seen.destination == Presence::Up;
                match (seen.source == Presence::Up, destination) {
                    (true, other_too) => self.to(Doing::Losing {
                        side: Side::Source,
                        other_too,
                    }),
                    (false, true) => self.to(Doing::Losing {
                        side: Side::Destination,
                        other_too: false,
                    }),
                    (false, false) => self.to(Doing::Removing(Outcome::Lost)),
                }
            }
            Plan::Wait(why) => self.wait(why, Next::Look { settled: None }),
        }
    }

    /// The guest is settled; what the destination has of it may go.
    fn discard(self, destination: Presence, end: Outcome) -> Self {
        match destination {
            Presence::Up => self.to(Doing::Discarding(end)),
            Presence::Gone => self.to(Doing::Removing(end)),
            Presence::Unknown => {
                let settled = Some(end);
                self.wait(Why::Presence(Side::Destination), Next::Look { settled })
            }
        }
    }
}
