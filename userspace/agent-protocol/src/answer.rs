// SPDX-License-Identifier: GPL-2.0-only

//! From an agent to the daemon.

use crate::bounds::{part, whole_pages, DIGESTS_PER_CHUNK, MAX_GUESTS};
use crate::definition::Definition;
use crate::guest::{AgentErrorCode, Facts, Guest, Toolstack};
use crate::list::{Excluded, FrameRun, MAX_PAGES};
use crate::preflight::{bounded, bounded_needs, Inspection, Need};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vmbeam_wire::message::{name, short, Message, MAX_NAME, MAX_TEXT};

/// XXH3, 128 bits, little endian, of the 4096 bytes of a page.
pub type Digest = [u8; 16];

/// From an agent to the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromAgent {
    /// The session has begun.
    Hello {
        /// Version of `vmbeam-agent`.
        agent_version: String,
        /// The guest hypervisor and its version.
        hypervisor: String,
        /// The toolstack and its version.
        toolstack: Toolstack,
        /// First frame number that the host VM does not have.
        memory_end: u64,
        /// The host VM's UUID as its firmware shows it, or why that cannot be read.
        host_vm: Result<Uuid, String>,
    },
    /// All guests except the management VM itself.
    Guests(Vec<Guest>),
    /// A part of a frame list, in ascending order of pfn.
    FramesChunk {
        /// Pages that may move.
        #[serde(with = "crate::packed")]
        runs: Vec<FrameRun>,
        /// Pages that may not.
        excluded: Vec<Excluded>,
        /// How many more runs of pages that may move follow in other parts, about; so that
        /// room for them is made once.
        more: u32,
    },
    /// The frame list is complete.
    FramesEnd {
        /// Pages of both sorts in all chunks.
        pages: u64,
    },
    /// Digests of consecutive pages.
    DigestChunk {
        /// First page.
        pfn: u64,
        /// One digest a page.
        digests: Vec<Digest>,
    },
    /// The guest is paused now.
    Paused {
        /// It was paused before.
        was_paused: bool,
    },
    /// The request has been carried out.
    Done,
    /// The request has not been carried out.
    Error {
        /// What sort of failure.
        code: AgentErrorCode,
        /// The same for a person.
        message: String,
    },
    /// An agent begins: whatever another one at this port was asked for will
    /// not be answered. The only message that nobody asks for; its request and
    /// session are 0.
    Started,
    /// Answer to [`crate::ToAgent::Facts`].
    Facts(Facts),
    /// A part of a guest that is being saved.
    Part {
        /// It; nothing if it was not there in time.
        #[serde(with = "crate::compressed")]
        data: Vec<u8>,
        /// The guest has been saved, and is paused.
        end: bool,
    },
    /// A part of a guest that is being restored was taken.
    Taken {
        /// Bytes of it.
        bytes: u32,
    },
    /// Answer to [`crate::ToAgent::Finish`].
    Restored {
        /// The guest, which is paused; nothing if it is not complete yet.
        guest: Option<u32>,
    },
    /// Contents of the pages that were asked for, one after the other.
    Pages {
        /// Whole pages.
        #[serde(with = "crate::compressed")]
        data: Vec<u8>,
    },
    /// Answer to [`crate::ToAgent::Inspect`].
    Inspected(Inspection),
    /// Answer to [`crate::ToAgent::Provide`]: those of them that are not there.
    Lacking(Vec<Need>),
    /// Answer to [`crate::ToAgent::Definition`].
    Definition(Definition),
    /// Answer to [`crate::ToAgent::Autostart`]: their names.
    Autostart(Vec<String>),
    /// Answer to [`crate::ToAgent::Staged`].
    Staged {
        /// The guest, once it has all its pages and devices, and waits for its state.
        guest: Option<u32>,
    },
    /// Answer to [`crate::ToAgent::Uuids`]: domid and UUID of each guest.
    Uuids(Vec<(u32, Uuid)>),
    /// Answer to [`crate::ToAgent::Time`].
    Time {
        /// Nanoseconds since 1970, UTC.
        nanoseconds: u64,
    },
    /// Answer to [`crate::ToAgent::MayDefine`]: what has a name that one of the files needs, each
    /// for a person. At most two.
    InTheWay(Vec<String>),
}

impl FromAgent {
    /// Whether nothing follows this answer.
    pub fn is_last(&self) -> bool {
        !matches!(self, Self::FramesChunk { .. } | Self::DigestChunk { .. })
    }

    /// Name of the message, for errors.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "Hello",
            Self::Guests(_) => "Guests",
            Self::FramesChunk { .. } => "FramesChunk",
            Self::FramesEnd { .. } => "FramesEnd",
            Self::DigestChunk { .. } => "DigestChunk",
            Self::Paused { .. } => "Paused",
            Self::Done => "Done",
            Self::Error { .. } => "Error",
            Self::Started => "Started",
            Self::Facts(_) => "Facts",
            Self::Part { .. } => "Part",
            Self::Taken { .. } => "Taken",
            Self::Restored { .. } => "Restored",
            Self::Pages { .. } => "Pages",
            Self::Inspected(_) => "Inspected",
            Self::Lacking(_) => "Lacking",
            Self::Definition(_) => "Definition",
            Self::Autostart(_) => "Autostart",
            Self::Staged { .. } => "Staged",
            Self::Uuids(_) => "Uuids",
            Self::Time { .. } => "Time",
            Self::InTheWay(_) => "InTheWay",
        }
    }
}

impl Message for FromAgent {
    const KIND: u16 = 2;

    fn check(&self) -> Result<(), String> {
        match self {
            Self::Hello {
                agent_version,
                hypervisor,
                toolstack,
                host_vm,
                ..
            } => {
                short("a version", agent_version, MAX_NAME)?;
                if let Err(problem) = host_vm {
                    short("a problem", problem, MAX_NAME)?;
                }
                short("a version", hypervisor, MAX_NAME)?;
                short("a version", &toolstack.version, MAX_NAME)?;
                let problem = toolstack.problem.as_deref().unwrap_or_default();
                short("a problem", problem, MAX_TEXT)
            }
            Self::Guests(guests) => {
                if guests.len() > MAX_GUESTS {
                    return Err(format!("{} guests; the most is {MAX_GUESTS}", guests.len()));
                }
                guests
                    .iter()
                    .try_for_each(|g| name("a guest's name", &g.name))
            }
            Self::Uuids(uuids) if uuids.len() > MAX_GUESTS => {
                Err(format!("{} guests; the most is {MAX_GUESTS}", uuids.len()))
            }
            Self::FramesEnd { pages } if *pages > MAX_PAGES => {
                Err(format!("{pages} pages; the most is {MAX_PAGES}"))
            }
            // Parts without contents could go on for ever.
            Self::FramesChunk { runs, excluded, .. } if runs.is_empty() && excluded.is_empty() => {
                Err("a part of a frame list without runs".into())
            }
            Self::DigestChunk { digests, .. } if digests.is_empty() => {
                Err("a part of the digests without digests".into())
            }
            Self::DigestChunk { digests, .. } if digests.len() > DIGESTS_PER_CHUNK => Err(format!(
                "{} digests; the most is {DIGESTS_PER_CHUNK}",
                digests.len()
            )),
            Self::Error { message, .. } => short("an error", message, MAX_TEXT),
            Self::Facts(facts) => {
                let problem = facts.problem.as_deref().unwrap_or_default();
                short("a problem", problem, MAX_TEXT)
            }
            Self::Part { data, .. } => part(data),
            Self::Pages { data } => whole_pages(data).map(drop),
            Self::Inspected(inspection) => {
                bounded("problems", inspection.problems.iter().map(|p| &**p))?;
                bounded_needs(&inspection.needs)
            }
            Self::Lacking(needs) => bounded_needs(needs),
            Self::InTheWay(what) => bounded("problems", what.iter().map(|w| &**w)),
            Self::Definition(definition) => definition.check(),
            Self::Autostart(names) if names.len() > MAX_GUESTS => {
                Err(format!("{} guests; the most is {MAX_GUESTS}", names.len()))
            }
            Self::Autostart(names) => names.iter().try_for_each(|n| name("a guest's name", n)),
            _ => Ok(()),
        }
    }
}
