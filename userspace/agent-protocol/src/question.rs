// SPDX-License-Identifier: GPL-2.0-only

//! From the daemon to an agent.

use crate::bounds::{ascending, pages_of, part, MAX_DIGEST_PAGES, MAX_PAGES_PER_CHUNK};
use crate::definition::Definition;
use crate::list::PfnRun;
use crate::preflight::{bounded_needs, Need};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vmbeam_wire::message::{name, short, Message, MAX_NAME};

/// From the daemon to an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToAgent {
    /// Begin a session. Answer: [`crate::FromAgent::Hello`].
    Hello {
        /// Version of `vmbeamd`.
        daemon_version: String,
    },
    /// Which guests are there? Answer: [`crate::FromAgent::Guests`].
    ListGuests,
    /// Send a guest's frame list. Answer: any number of
    /// [`crate::FromAgent::FramesChunk`], then [`crate::FromAgent::FramesEnd`].
    Frames {
        /// The guest's domid in its host VM.
        guest: u32,
    },
    /// Send the digests of these pages. Answer: [`crate::FromAgent::DigestChunk`] in
    /// the order asked for, then [`crate::FromAgent::Done`].
    Digest {
        /// The guest's domid in its host VM.
        guest: u32,
        /// Pages, in ascending order.
        runs: Vec<PfnRun>,
    },
    /// Pause a guest. Answer: [`crate::FromAgent::Paused`].
    Pause {
        /// The guest's domid in its host VM.
        guest: u32,
    },
    /// Let a guest run. Answer: [`crate::FromAgent::Done`].
    Unpause {
        /// The guest's domid in its host VM.
        guest: u32,
    },
    /// What can move to or from here? Answer: [`crate::FromAgent::Facts`].
    Facts,
    /// Begin to save a guest. Answer: [`crate::FromAgent::Done`], and then
    /// [`ToAgent::Pull`] until the end.
    Send {
        /// The guest's domid in its host VM.
        guest: u32,
        /// Leave the contents of ordinary pages out.
        external: bool,
        /// Before the guest is suspended say which pages it has, and wait for [`ToAgent::Go`].
        staged: bool,
    },
    /// The next part of the guest that is being saved. Answer:
    /// [`crate::FromAgent::Part`], after a short while even if there is nothing.
    Pull,
    /// Begin to restore a guest. Answer: [`crate::FromAgent::Done`], and then
    /// [`ToAgent::Push`] and [`ToAgent::Finish`].
    Receive {
        /// Name that the guest will have.
        name: String,
        /// Expect a state without the contents of ordinary pages.
        external: bool,
        /// Make the guest, with its devices, from what is known of it before it is suspended.
        staged: bool,
    },
    /// The next part of the guest that is being restored. Answer:
    /// [`crate::FromAgent::Taken`], after a short while even if nothing was taken.
    Push {
        /// It.
        #[serde(with = "crate::compressed")]
        data: Vec<u8>,
    },
    /// There are no more parts. Answer: [`crate::FromAgent::Restored`], after a short
    /// while even if the guest is not complete; ask again then.
    Finish,
    /// Give up what [`ToAgent::Send`] or [`ToAgent::Receive`] began, if
    /// anything. Answer: [`crate::FromAgent::Done`] when its program has ended.
    Abort,
    /// The contents of these pages. Answer: [`crate::FromAgent::Pages`].
    ReadPages {
        /// The guest's domid in its host VM.
        guest: u32,
        /// Pages, in ascending order.
        runs: Vec<PfnRun>,
    },
    /// Replace the contents of these pages of a paused guest. Answer:
    /// [`crate::FromAgent::Done`].
    WritePages {
        /// The guest's domid in its host VM.
        guest: u32,
        /// Pages, in ascending order.
        runs: Vec<PfnRun>,
        /// Contents of all of them, one after the other.
        #[serde(with = "crate::compressed")]
        data: Vec<u8>,
    },
    /// Let a guest run whose saving ended, or did not. Answer:
    /// [`crate::FromAgent::Done`] when it does.
    Resume {
        /// The guest's domid in its host VM.
        guest: u32,
    },
    /// Destroy a guest that does not run. Answer: [`crate::FromAgent::Done`] when it is
    /// gone.
    Destroy {
        /// The guest's domid in its host VM.
        guest: u32,
    },
    /// What is in the way of moving this guest? Answer: [`crate::FromAgent::Inspected`].
    Inspect {
        /// The guest's domid in its host VM.
        guest: u32,
        /// Its ordinary pages are not to be in its saved state.
        external: bool,
    },
    /// Which of these are not there? Answer: [`crate::FromAgent::Lacking`].
    Provide {
        /// What a guest needs that is to come.
        needs: Vec<Need>,
    },
    /// What is written down of a guest? Answer: [`crate::FromAgent::Definition`].
    Definition {
        /// The guest's name.
        name: String,
    },
    /// Write this down of a guest that has come, whatever there was. Answer:
    /// [`crate::FromAgent::Done`] when it is durable.
    Define {
        /// The guest's name.
        name: String,
        /// What its last host VM had.
        definition: Definition,
    },
    /// A guest has left, and is written down elsewhere: put what is written down of it aside.
    /// Answer: [`crate::FromAgent::Done`] when nothing starts it here any more.
    Undefine {
        /// The guest's name.
        name: String,
    },
    /// Which guests are started when this host VM boots? Answer: [`crate::FromAgent::Autostart`].
    Autostart,
    /// Whether they may be. Answer: [`crate::FromAgent::Done`].
    MayStart {
        /// All of them, or none.
        allowed: bool,
    },
    /// How far is the guest that is being restored? Answer: [`crate::FromAgent::Staged`], after a
    /// short while even if it is not made yet; ask again then.
    Staged,
    /// Suspend the guest that is being saved, which waits for that, and go on. Answer: as that
    /// to [`ToAgent::Pull`].
    Go,
    /// The frames behind the pages that may not move, of the list that was sent last. Answer:
    /// as that to [`ToAgent::Frames`], with none that may not.
    Kept {
        /// The guest's domid in its host VM.
        guest: u32,
    },
    /// Which UUIDs have the guests? Answer: [`crate::FromAgent::Uuids`].
    Uuids,
    /// The guest that is restored next has this UUID. Answer: [`crate::FromAgent::Done`].
    Expect {
        /// It.
        uuid: Uuid,
    },
    /// What time is it? Answer: [`crate::FromAgent::Time`], at once.
    Time,
    /// Could this be written down of a guest that is to come? Answer:
    /// [`crate::FromAgent::InTheWay`].
    MayDefine {
        /// The guest's name.
        name: String,
        /// What its host VM has.
        definition: Definition,
    },
    /// What was said last of starting guests at boot holds no more: whoever wants to start them
    /// waits for the next [`ToAgent::MayStart`]. Answer: [`crate::FromAgent::Done`].
    HoldStart,
}

impl Message for ToAgent {
    const KIND: u16 = 1;

    fn check(&self) -> Result<(), String> {
        match self {
            Self::Hello { daemon_version } => short("a version", daemon_version, MAX_NAME),
            Self::Digest { runs, .. } => ascending(runs, MAX_DIGEST_PAGES),
            Self::ReadPages { runs, .. } => ascending(runs, MAX_PAGES_PER_CHUNK as u64),
            Self::WritePages { runs, data, .. } => pages_of(runs, data),
            Self::Push { data } => part(data),
            Self::Receive { name: guest, .. } => name("a guest's name", guest),
            Self::Provide { needs } => bounded_needs(needs),
            Self::Definition { name: guest } | Self::Undefine { name: guest } => {
                name("a guest's name", guest)
            }
            Self::Define {
                name: guest,
                definition,
            }
            | Self::MayDefine {
                name: guest,
                definition,
            } => {
                name("a guest's name", guest)?;
                definition.check()
            }
            _ => Ok(()),
        }
    }
}
