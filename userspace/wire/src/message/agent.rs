// SPDX-License-Identifier: GPL-2.0-only

//! Between the daemon and an agent.

use super::{
    name, short, Digest, Message, DIGESTS_PER_CHUNK, MAX_DIGEST_PAGES, MAX_GUESTS, MAX_NAME,
    MAX_PAGES_PER_CHUNK, MAX_PART, MAX_TEXT, PAGE,
};
use crate::cpu::CpuFeatures;
use crate::definition::Definition;
use crate::list::{Excluded, FrameRun, PfnRun, MAX_PAGES};
use crate::preflight::{bounded, bounded_needs, Inspection, Need};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// From the daemon to an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToAgent {
    /// Begin a session. Answer: [`FromAgent::Hello`].
    Hello {
        /// Version of `vmbeamd`.
        daemon_version: String,
    },
    /// Which guests are there? Answer: [`FromAgent::Guests`].
    ListGuests,
    /// Send a guest's frame list. Answer: any number of
    /// [`FromAgent::FramesChunk`], then [`FromAgent::FramesEnd`].
    Frames {
        /// The guest's domid in its host VM.
        guest: u32,
    },
    /// Send the digests of these pages. Answer: [`FromAgent::DigestChunk`] in
    /// the order asked for, then [`FromAgent::Done`].
    Digest {
        /// The guest's domid in its host VM.
        guest: u32,
        /// Pages, in ascending order.
        runs: Vec<PfnRun>,
    },
    /// Pause a guest. Answer: [`FromAgent::Paused`].
    Pause {
        /// The guest's domid in its host VM.
        guest: u32,
    },
    /// Let a guest run. Answer: [`FromAgent::Done`].
    Unpause {
        /// The guest's domid in its host VM.
        guest: u32,
    },
    /// What can move to or from here? Answer: [`FromAgent::Facts`].
    Facts,
    /// Begin to save a guest. Answer: [`FromAgent::Done`], and then
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
    /// [`FromAgent::Part`], after a short while even if there is nothing.
    Pull,
    /// Begin to restore a guest. Answer: [`FromAgent::Done`], and then
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
    /// [`FromAgent::Taken`], after a short while even if nothing was taken.
    Push {
        /// It.
        #[serde(with = "crate::compressed")]
        data: Vec<u8>,
    },
    /// There are no more parts. Answer: [`FromAgent::Restored`], after a short
    /// while even if the guest is not complete; ask again then.
    Finish,
    /// Give up what [`ToAgent::Send`] or [`ToAgent::Receive`] began, if
    /// anything. Answer: [`FromAgent::Done`] when its program has ended.
    Abort,
    /// The contents of these pages. Answer: [`FromAgent::Pages`].
    ReadPages {
        /// The guest's domid in its host VM.
        guest: u32,
        /// Pages, in ascending order.
        runs: Vec<PfnRun>,
    },
    /// Replace the contents of these pages of a paused guest. Answer:
    /// [`FromAgent::Done`].
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
    /// [`FromAgent::Done`] when it does.
    Resume {
        /// The guest's domid in its host VM.
        guest: u32,
    },
    /// Destroy a guest that does not run. Answer: [`FromAgent::Done`] when it is
    /// gone.
    Destroy {
        /// The guest's domid in its host VM.
        guest: u32,
    },
    /// What is in the way of moving this guest? Answer: [`FromAgent::Inspected`].
    Inspect {
        /// The guest's domid in its host VM.
        guest: u32,
        /// Its ordinary pages are not to be in its saved state.
        external: bool,
    },
    /// Which of these are not there? Answer: [`FromAgent::Lacking`].
    Provide {
        /// What a guest needs that is to come.
        needs: Vec<Need>,
    },
    /// What is written down of a guest? Answer: [`FromAgent::Definition`].
    Definition {
        /// The guest's name.
        name: String,
    },
    /// Write this down of a guest that has come, whatever there was. Answer:
    /// [`FromAgent::Done`] when it is durable.
    Define {
        /// The guest's name.
        name: String,
        /// What its last host VM had.
        definition: Definition,
    },
    /// A guest has left, and is written down elsewhere: put what is written down of it aside.
    /// Answer: [`FromAgent::Done`] when nothing starts it here any more.
    Undefine {
        /// The guest's name.
        name: String,
    },
    /// Which guests are started when this host VM boots? Answer: [`FromAgent::Autostart`].
    Autostart,
    /// Whether they may be. Answer: [`FromAgent::Done`].
    MayStart {
        /// All of them, or none.
        allowed: bool,
    },
    /// How far is the guest that is being restored? Answer: [`FromAgent::Staged`], after a
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
    /// Which UUIDs have the guests? Answer: [`FromAgent::Uuids`].
    Uuids,
    /// The guest that is restored next has this UUID. Answer: [`FromAgent::Done`].
    Expect {
        /// It.
        uuid: Uuid,
    },
}

/// Runs in ascending order, and not more pages than `most`.
fn ascending(runs: &[PfnRun], most: u64) -> Result<(), String> {
    let mut next = 0;
    let mut pages = 0;
    for r in runs {
        if r.nr == 0 || r.pfn < next {
            return Err(format!("page runs empty or out of order at {:#x}", r.pfn));
        }
        next = r
            .pfn
            .checked_add(u64::from(r.nr))
            .ok_or("page runs overflow")?;
        pages += u64::from(r.nr);
    }
    if pages > most {
        return Err(format!("{pages} pages; the most is {most}"));
    }
    Ok(())
}

/// Whole pages, at least one, and not too many; says how many.
fn whole_pages(data: &[u8]) -> Result<u64, String> {
    let pages = data.len() / PAGE;
    if data.len() % PAGE != 0 || pages == 0 || pages > MAX_PAGES_PER_CHUNK {
        return Err(format!(
            "{} bytes of pages; 1 to {MAX_PAGES_PER_CHUNK} whole pages are possible",
            data.len()
        ));
    }
    Ok(pages as u64)
}

/// Contents for exactly these runs.
fn pages_of(runs: &[PfnRun], data: &[u8]) -> Result<(), String> {
    ascending(runs, MAX_PAGES_PER_CHUNK as u64)?;
    let wanted: u64 = runs.iter().map(|r| u64::from(r.nr)).sum();
    let got = whole_pages(data)?;
    if got != wanted {
        return Err(format!("{got} pages of contents for {wanted} pages"));
    }
    Ok(())
}

fn part(data: &[u8]) -> Result<(), String> {
    if data.len() > MAX_PART {
        return Err(format!(
            "a part of {} bytes; the most is {MAX_PART}",
            data.len()
        ));
    }
    Ok(())
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
            } => {
                name("a guest's name", guest)?;
                definition.check()
            }
            _ => Ok(()),
        }
    }
}

/// What sort of guest it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestKind {
    /// Paravirtualized: the only sort whose frames can be listed so far.
    Pv,
    /// Hardware virtual machine or PVH.
    Hvm,
}

/// What a guest is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestState {
    /// Runs, or waits for something.
    Running,
    /// Paused by the toolstack.
    Paused,
    /// Has shut down or crashed, but still exists.
    Shutdown,
    /// Is being torn down.
    Dying,
}

/// A guest VM, as its guest hypervisor sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// Name, from xenstore.
    pub name: String,
    /// Domid in its host VM.
    pub domid: u32,
    /// What it is doing.
    pub state: GuestState,
    /// Pages that it has.
    pub pages: u64,
    /// What sort of guest it is.
    pub kind: GuestKind,
    /// What CPUID has told it, if that is known.
    pub cpu: Option<CpuFeatures>,
}

/// What can move to or from a host VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Why no guest can, if so.
    pub problem: Option<String>,
    /// Memory that new guests can have, in MiB.
    pub free_mib: u64,
    /// CPU features that a PV guest can have there.
    pub cpu: CpuFeatures,
    /// The toolstack can make a guest before it is suspended where it comes from.
    pub stages: bool,
}

/// Why an agent cannot do what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentErrorCode {
    /// Hello was not said in this session.
    NoSession,
    /// No such guest.
    NoGuest,
    /// Not possible with a guest of this kind.
    Unsupported,
    /// The guest hypervisor or its toolstack library failed.
    Hypervisor,
    /// The request makes no sense.
    BadRequest,
    /// The toolstack of the management VM failed, or did not end in time.
    Toolstack,
}

/// The toolstack of a guest management VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Toolstack {
    /// Its version.
    pub version: String,
    /// Why it cannot move guests, if so.
    pub problem: Option<String>,
}

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
    /// Answer to [`ToAgent::Facts`].
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
    /// Answer to [`ToAgent::Finish`].
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
    /// Answer to [`ToAgent::Inspect`].
    Inspected(Inspection),
    /// Answer to [`ToAgent::Provide`]: those of them that are not there.
    Lacking(Vec<Need>),
    /// Answer to [`ToAgent::Definition`].
    Definition(Definition),
    /// Answer to [`ToAgent::Autostart`]: their names.
    Autostart(Vec<String>),
    /// Answer to [`ToAgent::Staged`].
    Staged {
        /// The guest, once it has all its pages and devices, and waits for its state.
        guest: Option<u32>,
    },
    /// Answer to [`ToAgent::Uuids`]: domid and UUID of each guest.
    Uuids(Vec<(u32, Uuid)>),
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
            Self::Definition(definition) => definition.check(),
            Self::Autostart(names) if names.len() > MAX_GUESTS => {
                Err(format!("{} guests; the most is {MAX_GUESTS}", names.len()))
            }
            Self::Autostart(names) => names.iter().try_for_each(|n| name("a guest's name", n)),
            _ => Ok(()),
        }
    }
}
