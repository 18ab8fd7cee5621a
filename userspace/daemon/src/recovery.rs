// SPDX-License-Identifier: GPL-2.0-only

//! Bringing a migration to an end that did not get there by itself: its job
//! failed, or the daemon died. One procedure for both.
//!
//! It is decided from what the journal says, which host VMs still run, and where
//! the memory is. See "Who does what when somebody dies" in
//! Documentation/migration.rst.

use crate::driver::Driver;
use crate::exchange::{add, commit, roll_back};
use crate::join::JoinedRun;
use crate::journal::{Journal, Place, Probe, Record, State};
use crate::side::Side;
use std::time::Instant;
use tracing::{info, warn};
use vmbeam_uapi::NOT_ATTEMPTED;
use vmbeam_wire::message::Digest;
use vmbeam_wire::PfnRun;

/// Where the memory of a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Where it was.
    Source,
    /// Where it was to go.
    Destination,
    /// Some of it there and some here.
    Torn,
    /// The probes do not tell.
    Unknown,
}

/// What to decide from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Situation {
    /// The journal's state.
    pub state: Step,
    /// The source's host VM is the one that it was.
    pub source_up: bool,
    /// The same for the destination's.
    pub destination_up: bool,
    /// Where the memory is; of interest in [`Step::Swap`].
    pub memory: Memory,
    /// Pages remain to be copied after a swap.
    pub copies: bool,
}

/// [`State`] without what goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// [`State::Stream`]
    Stream,
    /// [`State::Swap`]
    Swap,
    /// [`State::Resume`]
    Resume,
    /// [`State::Destroy`]
    Destroy,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Give the guest back to the source.
    Undo {
        /// Its memory first.
        swap_back: bool,
    },
    /// Let it run at the destination, and destroy what is at the source.
    Forward,
    /// It died with a host VM: destroy what is left of it.
    Lost,
    /// Nothing can be done without a person.
    Stuck,
}

/// Decide.
pub fn decide(s: Situation) -> Plan {
    match (s.state, s.source_up, s.destination_up, s.memory) {
        (Step::Stream, true, _, _) => Plan::Undo { swap_back: false },
        (Step::Stream, false, _, _) => Plan::Lost,
        (Step::Swap, false, false, _) => Plan::Lost,
        (Step::Swap, _, _, Memory::Unknown) => Plan::Stuck,
        // The driver may still put it together.
        (Step::Swap, true, true, Memory::Torn) => Plan::Stuck,
        (Step::Swap, true, _, Memory::Source) => Plan::Undo { swap_back: false },
        (Step::Swap, true, true, Memory::Destination) => Plan::Undo { swap_back: true },
        (Step::Swap, false, true, Memory::Destination) if !s.copies => Plan::Forward,
        (Step::Swap, ..) => Plan::Lost,
        (Step::Resume, _, true, _) => Plan::Forward,
        (Step::Resume, _, false, _) => Plan::Lost,
        (Step::Destroy, ..) => Plan::Forward,
    }
}

/// What a digest at the source (or at the destination) says.
fn vote(probe: &Probe, digest: &Digest, at_source: bool) -> Memory {
    let (here, there) = if at_source {
        (Memory::Source, Memory::Destination)
    } else {
        (Memory::Destination, Memory::Source)
    };
    // The source's page is `source`; where that is found, there is the memory.
    if *digest == probe.source {
        here
    } else if *digest == probe.destination {
        there
    } else {
        Memory::Unknown
    }
}

/// A page may have been written to by a hypervisor meanwhile and tell nothing;
/// contradictions are another matter.
fn count(votes: &[Memory]) -> Memory {
    let source = votes.contains(&Memory::Source);
    let destination = votes.contains(&Memory::Destination);
    match (source, destination) {
        (true, false) => Memory::Source,
        (false, true) => Memory::Destination,
        (true, true) => Memory::Torn,
        (false, false) => Memory::Unknown,
    }
}

/// How a migration ended after all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The guest runs at the source.
    AtSource,
    /// The guest runs at the destination.
    AtDestination,
    /// It died with a host VM.
    Lost,
}

/// A host VM counts as gone only if that is known.
fn is_up(side: &Side<'_>, place: &Place) -> Result<bool, String> {
    side.vm.still_runs(place.host_domid)
}

/// What is needed to bring a migration to an end.
#[derive(Debug)]
pub(crate) struct Settling<'a, 'b> {
    pub(crate) driver: &'a dyn Driver,
    pub(crate) journal: &'a Journal,
    pub(crate) from: &'a mut Side<'b>,
    pub(crate) to: &'a mut Side<'b>,
    pub(crate) record: &'a mut Record,
    /// How long agents may be away.
    pub(crate) deadline: Instant,
}

impl<'b> Settling<'_, 'b> {
    /// Do what can be done. An error means: not now. It may be tried again.
    pub(crate) fn settle(&mut self) -> Result<Settled, String> {
        let source_up = is_up(self.from, &self.record.from)?;
        let destination_up = is_up(self.to, &self.record.to)?;
        self.from.expect(self.record.from.host_domid);
        self.to.expect(self.record.to.host_domid);
        let (state, memory, copies) = match &self.record.state {
            State::Stream => (Step::Stream, Memory::Source, false),
            State::Resume => (Step::Resume, Memory::Destination, false),
            State::Destroy => (Step::Destroy, Memory::Destination, false),
            State::Swap {
                probes,
                copies,
                torn,
                ..
            } => {
                let (probes, copies, torn) = (probes.clone(), *copies, *torn);
                // Some is gone with a host VM, or the driver has not put it back:
                // wherever the probes are.
                let gone = torn && !(source_up && destination_up);
                let memory = if gone || self.is_recorded(source_up || destination_up)? {
                    Memory::Torn
                } else {
                    self.locate(&probes, source_up, destination_up)?
                };
                (Step::Swap, memory, copies)
            }
        };
        let situation = Situation {
            state,
            source_up,
            destination_up,
            memory,
            copies,
        };
        let plan = decide(situation);
        info!(
            migration = self.record.id,
            guest = self.record.guest,
            ?situation,
            ?plan,
            "settling"
        );
        let settled = match plan {
            Plan::Undo { swap_back } => {
                if swap_back {
                    self.swap_back()?;
                }
                self.undo(destination_up)?
            }
            Plan::Forward => {
                self.forward(source_up)?;
                Settled::AtDestination
            }
            Plan::Lost => {
                self.clean_up(source_up, destination_up)?;
                Settled::Lost
            }
            Plan::Stuck => {
                return Err(format!(
                    "it cannot be told where the memory of guest {} is; both halves of it stay paused in {} and {} (see `vmbeam records`)",
                    self.record.guest, self.record.from.host_vm, self.record.to.host_vm
                ));
            }
        };
        self.journal
            .remove(self.record.id)
            .map_err(|e| format!("cannot remove the journal's record: {e}"))?;
        Ok(settled)
    }

    fn write(&mut self, state: State) -> Result<(), String> {
        self.record.state = state;
        self.journal
            .write(self.record)
            .map_err(|e| format!("cannot write the journal: {e}"))
    }

    /// Whether the driver says that a swap of these host VMs is half done. It need
    /// not be asked if nothing is left of either.
    fn is_recorded(&self, any_up: bool) -> Result<bool, String> {
        let (a, b) = (self.record.from.host_domid, self.record.to.host_domid);
        Ok(any_up && self.driver.has_record(a, b).map_err(|e| e.to_string())?)
    }

    /// Look where the memory is.
    fn locate(
        &mut self,
        probes: &[Probe],
        source_up: bool,
        destination_up: bool,
    ) -> Result<Memory, String> {
        if probes.is_empty() {
            // The same on both sides: it need not be moved to be there.
            return Ok(Memory::Source);
        }
        let mut votes = Vec::new();
        for (side, place, up, at_source) in [
            (&mut *self.from, &self.record.from, source_up, true),
            (&mut *self.to, &self.record.to, destination_up, false),
        ] {
            let (true, Some(guest)) = (up, place.guest) else {
                continue;
            };
            let runs: Vec<PfnRun> = probes
                .iter()
                .map(|p| PfnRun { pfn: p.pfn, nr: 1 })
                .collect();
            let digests = side.insist(self.deadline, |l| l.digests(guest, &runs, |_| {}))?;
            votes.extend(
                probes
                    .iter()
                    .zip(digests)
                    .map(|(probe, (_, digest))| vote(probe, &digest, at_source)),
            );
        }
        Ok(count(&votes))
    }

    /// Swap the same pairs once more.
    fn swap_back(&mut self) -> Result<(), String> {
        let State::Swap { pairs, .. } = &self.record.state else {
            return Err("the journal does not say what was swapped".into());
        };
        let runs: Vec<JoinedRun> = pairs.iter().map(JoinedRun::from).collect();
        let pages: u64 = runs.iter().map(|r| u64::from(r.nr)).sum();
        let (a, b) = (self.record.from.host_domid, self.record.to.host_domid);
        let mut session = self.driver.open(a, b).map_err(|e| e.to_string())?;
        let quiet = &|_, _, _| {};
        add(&mut *session, &runs, quiet).map_err(|e| e.message)?;
        let mut status = vec![NOT_ATTEMPTED; pages as usize];
        commit(&mut *session, &mut status, quiet).map_err(|e| e.message)?;
        let refused = status.iter().filter(|s| **s != 0).count();
        if refused > 0 {
            let why = format!("{refused} pages cannot be swapped back now");
            return Err(roll_back(&mut *session, &why, quiet).message);
        }
        self.write(State::Stream)
    }

    /// The guest that a side has, if it is still there.
    fn guest(&mut self, source: bool) -> Result<Option<u32>, String> {
        let (side, place) = if source {
            (&mut *self.from, &self.record.from)
        } else {
            (&mut *self.to, &self.record.to)
        };
        let guests = side.insist(self.deadline, |l| l.guests())?;
        Ok(guests
            .into_iter()
            .find(|g| {
                g.name == self.record.guest && place.guest.is_none_or(|domid| g.domid == domid)
            })
            .map(|g| g.domid))
    }

    /// Let the guest run at the source, and then destroy its copy, which has never
    /// run and is let run by nobody: the guest need not wait for that.
    fn undo(&mut self, destination_up: bool) -> Result<Settled, String> {
        self.from.insist(self.deadline, |l| l.abort())?;
        let settled = match self.guest(true)? {
            Some(guest) => {
                self.from.insist(self.deadline, |l| l.resume(guest))?;
                Settled::AtSource
            }
            None => Settled::Lost,
        };
        if destination_up {
            self.destroy(false).map_err(|e| {
                format!(
                    "the guest runs in {}, but a paused copy of it without memory may still be in {}: {e}",
                    self.record.from.host_vm, self.record.to.host_vm
                )
            })?;
        }
        Ok(settled)
    }

    fn side(&mut self, source: bool) -> &mut Side<'b> {
        if source {
            self.from
        } else {
            self.to
        }
    }

    /// Destroy what a side has of the guest, if it has anything.
    fn destroy(&mut self, source: bool) -> Result<(), String> {
        let deadline = self.deadline;
        // Whoever still works on it is to stop that.
        self.side(source).insist(deadline, |l| l.abort())?;
        match self.guest(source)? {
            Some(guest) => self.side(source).insist(deadline, |l| l.destroy(guest)),
            None => Ok(()),
        }
    }

    fn forward(&mut self, source_up: bool) -> Result<(), String> {
        if self.record.state != State::Destroy {
            if self.record.state != State::Resume {
                self.write(State::Resume)?;
            }
            self.to.insist(self.deadline, |l| l.abort())?;
            // Not to be there means that it ran, and ended.
            match self.guest(false)? {
                Some(guest) => self.to.insist(self.deadline, |l| l.resume(guest))?,
                None => warn!(guest = self.record.guest, "the guest has ended meanwhile"),
            }
            self.write(State::Destroy)?;
        }
        if source_up {
            self.destroy(true)?;
        }
        Ok(())
    }

    fn clean_up(&mut self, source_up: bool, destination_up: bool) -> Result<(), String> {
        if source_up {
            self.destroy(true)?;
        }
        if destination_up {
            self.destroy(false)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::select;

    fn probe() -> Probe {
        Probe {
            pfn: 1,
            source: [1; 16],
            destination: [2; 16],
        }
    }

    #[test]
    fn memory_is_where_the_source_page_is() {
        let p = probe();
        assert_eq!(vote(&p, &[1; 16], true), Memory::Source);
        assert_eq!(vote(&p, &[2; 16], true), Memory::Destination);
        assert_eq!(vote(&p, &[1; 16], false), Memory::Destination);
        assert_eq!(vote(&p, &[2; 16], false), Memory::Source);
        assert_eq!(vote(&p, &[3; 16], false), Memory::Unknown);
    }

    #[test]
    fn contradictions_are_not_outvoted() {
        use Memory::*;
        assert_eq!(count(&[Source, Unknown, Source]), Source);
        assert_eq!(count(&[Destination, Unknown]), Destination);
        assert_eq!(count(&[Source, Source, Destination]), Torn);
        assert_eq!(count(&[]), Unknown);
    }

    proptest! {
        /// What must never happen, whatever the situation is.
        #[test]
        fn no_plan_lets_a_guest_run_where_its_memory_is_not(
            state in select(vec![Step::Stream, Step::Swap, Step::Resume, Step::Destroy]),
            source_up: bool,
            destination_up: bool,
            memory in select(vec![
                Memory::Source, Memory::Destination, Memory::Torn, Memory::Unknown,
            ]),
            copies: bool,
        ) {
            let s = Situation { state, source_up, destination_up, memory, copies };
            match decide(s) {
                Plan::Undo { swap_back } => {
                    prop_assert!(source_up);
                    // Behind the point of no return there is no way back.
                    prop_assert!(matches!(state, Step::Stream | Step::Swap));
                    if state == Step::Swap {
                        prop_assert!(matches!(memory, Memory::Source | Memory::Destination));
                        prop_assert_eq!(swap_back, memory == Memory::Destination);
                        prop_assert!(!swap_back || destination_up);
                    }
                }
                Plan::Forward => {
                    prop_assert!(state != Step::Stream);
                    prop_assert!(destination_up || state == Step::Destroy);
                    if state == Step::Swap {
                        // Only if nobody else can have it, and it is complete.
                        prop_assert!(!source_up && !copies && memory == Memory::Destination);
                    }
                }
                Plan::Lost => {
                    prop_assert!(!source_up || !destination_up);
                    // A guest whose memory is in a host VM that runs is not given up
                    // unless a part of it is in the other one.
                    let there = source_up && memory == Memory::Source
                        || destination_up && memory == Memory::Destination && !copies;
                    prop_assert!(state != Step::Swap || !there);
                }
                Plan::Stuck => {
                    let torn = memory == Memory::Torn && source_up && destination_up;
                    prop_assert!(torn || memory == Memory::Unknown);
                }
            }
        }
    }
}
