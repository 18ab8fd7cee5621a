// SPDX-License-Identifier: GPL-2.0-only

//! What can go wrong in a fake host VM.

/// What a fake toolstack is to do wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trouble {
    #[default]
    None,
    /// It is Debian's.
    Stock,
    /// Its guests have a CPU feature that no other host VM has.
    NewerCpu,
    /// A save stops half way.
    SaveFails,
    /// The same before the guest is suspended.
    StageFails,
    /// A save says nothing before the guest is suspended.
    StageHangs,
    /// A restore has no place for the guest's devices.
    NoBridge,
    /// The guest's memory changes after its pages were listed.
    Balloons,
    /// The same, but not a second time.
    BalloonsOnce,
    /// A page table becomes an ordinary page, and the other way round, when a guest is
    /// suspended.
    TablesMove,
    /// A save of an agent that was there before is still going on.
    Orphan,
    /// A guest that has been saved is unpaused by somebody.
    SaveRuns,
    /// A save never says anything.
    SaveHangs,
    /// A save dies and leaves the guest as it is.
    SaveDies,
    /// A disk does not answer what the guest asked it for.
    DiskBusy,
    /// The guest crashes while it is being saved.
    SaveCrashes,
    /// It restarts, or powers itself off, and its toolstack does what it is told to then.
    SaveReboots,
    SaveEnds,
    /// An event comes after all pages were read, unless it is pending by then; either
    /// way it changes the memory of the guest that was saved.
    LateEvent,
    /// A restore takes nothing for 7 seconds, once, and its agent does nothing else.
    RestoreSleeps,
    /// A restore takes nothing, for as long as this lasts.
    RestoreStalls,
    /// A restore fails when it has everything.
    RestoreFails,
    /// The restored guest cannot be let run, so many times.
    ResumeFails(u32),
    /// The same once, and then it takes for as long as this lasts.
    ResumeFailsAndHolds,
    ResumeHolds,
    /// What is left over cannot be destroyed, so many times.
    DestroyFails(u32),
    /// What is destroyed is torn down, and never gone.
    StaysDying,
}

impl Trouble {
    /// Whether it is this one now, counting down.
    pub fn strikes(&mut self, make: fn(u32) -> Self) -> bool {
        match *self {
            Self::ResumeFails(n) if make(n) == *self => {
                *self = if n > 1 { make(n - 1) } else { Self::None };
                true
            }
            Self::DestroyFails(n) if make(n) == *self => {
                *self = if n > 1 { make(n - 1) } else { Self::None };
                true
            }
            _ => false,
        }
    }
}
