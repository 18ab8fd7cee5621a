// SPDX-License-Identifier: GPL-2.0-only

//! What to do with a migration of which the journal, the host VMs and the memory itself tell
//! how far it is.

use crate::step::{Side, Step};

/// What is known of a host VM: the domain that it was when the migration began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Presence {
    /// It runs. In [`Step::Swap`]: and it has the guest.
    Up,
    /// It does certainly not: none of its guests is left, and none of their memory. In
    /// [`Step::Swap`]: or it has no such guest any more.
    Gone,
    /// Who was asked could not tell.
    Unknown,
}

/// Where the memory of a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Memory {
    /// Where it was.
    Source,
    /// Where it was to go.
    Destination,
    /// Some of it there and some here.
    Torn,
    /// The pages that were looked at do not tell.
    Unknown,
}

/// What was found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Seen {
    /// The source's host VM.
    pub source: Presence,
    /// The destination's.
    pub destination: Presence,
    /// Where the memory is, by the pages that tell; of interest in [`Step::Swap`] only, and
    /// [`Memory::Unknown`] otherwise.
    pub memory: Memory,
    /// The driver keeps the record of a half move between the two.
    pub half: bool,
    /// The guest runs at the source.
    pub runs: bool,
}

/// Why nothing can be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// The last command failed.
    Failed,
    /// It is not known whether this host VM still runs.
    Presence(Side),
    /// It cannot be told where the memory is.
    Memory,
    /// Some of the memory is here and some there; the driver may put it together.
    Torn,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Plan {
    /// Let the guest run at the source, and then destroy its copy.
    Undo,
    /// Give its memory back to the source, and then the same.
    SwapBack,
    /// Let it run at the destination, and destroy what is at the source.
    Forward,
    /// It died with a host VM: destroy what is left of it.
    Lost,
    /// Nothing, now.
    Wait(Why),
}

/// Decide. What is decided about a host VM that is [`Presence::Unknown`] is so whatever that is:
/// unless it is waited for, nobody has to ask.
pub fn decide(step: Step, seen: Seen) -> Plan {
    use Presence::{Gone, Unknown, Up};
    let wait = |side| Plan::Wait(Why::Presence(side));
    match (step, seen.source, seen.destination) {
        // What the destination has is an empty copy, and no hurry. To let run what was only
        // staged changes nothing, unless somebody has suspended it all the same.
        (Step::Stage | Step::Stream, Up, _) => Plan::Undo,
        (Step::Stage | Step::Stream, Gone, Unknown) => wait(Side::Destination),
        (Step::Stage | Step::Stream, Gone, _) => Plan::Lost,
        (Step::Stage | Step::Stream, Unknown, _) => wait(Side::Source),

        (Step::Swap { .. }, Gone, Gone) => Plan::Lost,
        (Step::Swap { copies, torn }, source, destination) => {
            match (where_it_is(seen), source, destination) {
                (Memory::Source, Up, _) if !torn || destination == Up || seen.runs => Plan::Undo,
                (_, Unknown, _) => wait(Side::Source),
                (_, _, Unknown) => wait(Side::Destination),
                // The driver has put it together before that host VM ended, or was told to
                // forget it.
                (_, Gone, _) | (_, _, Gone) if torn && !seen.half => Plan::Wait(Why::Torn),
                (Memory::Unknown, _, _) => Plan::Wait(Why::Memory),
                (Memory::Torn, Up, Up) => Plan::Wait(Why::Torn),
                (Memory::Destination, Up, Up) => Plan::SwapBack,
                (Memory::Destination, Gone, Up) if !copies => Plan::Forward,
                _ => Plan::Lost,
            }
        }

        (Step::Resume, _, Up) => Plan::Forward,
        (Step::Resume, Unknown, Gone) => wait(Side::Source),
        (Step::Resume, _, Gone) => Plan::Lost,
        (Step::Resume, _, Unknown) => wait(Side::Destination),

        (Step::Destroy, Unknown, _) => wait(Side::Source),
        (Step::Destroy, _, _) => Plan::Forward,
    }
}

/// What the pages that were looked at say, and what is known besides.
fn where_it_is(seen: Seen) -> Memory {
    match seen.memory {
        // Wherever the pages are that were looked at.
        _ if seen.half => Memory::Torn,
        // A guest that runs has written to them. It would not run without its memory.
        Memory::Unknown if seen.runs => Memory::Source,
        memory => memory,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So nobody waits for the answer of a host VM that makes no difference.
    #[test]
    fn what_is_not_known_makes_no_difference_unless_it_is_waited_for() {
        const ALL: [Presence; 3] = [Presence::Up, Presence::Gone, Presence::Unknown];
        const MEMORY: [Memory; 4] = [
            Memory::Source,
            Memory::Destination,
            Memory::Torn,
            Memory::Unknown,
        ];
        let swaps = [0, 1, 2, 3].map(|i| Step::Swap {
            copies: i & 1 != 0,
            torn: i & 2 != 0,
        });
        let others = [Step::Stage, Step::Stream, Step::Resume, Step::Destroy];
        for step in swaps.into_iter().chain(others) {
            for (memory, i) in MEMORY.iter().flat_map(|m| (0..4).map(move |i| (*m, i))) {
                let plan = |source, destination| {
                    let (half, runs) = (i & 1 != 0, i & 2 != 0);
                    let seen = Seen {
                        source,
                        destination,
                        memory,
                        half,
                        runs,
                    };
                    decide(step, seen)
                };
                for (known, any) in ALL.iter().flat_map(|a| ALL.map(move |b| (*a, b))) {
                    for (first, then) in [
                        (plan(known, Presence::Unknown), plan(known, any)),
                        (plan(Presence::Unknown, known), plan(any, known)),
                    ] {
                        assert!(matches!(first, Plan::Wait(_)) || first == then, "{step:?}");
                    }
                }
            }
        }
    }
}
