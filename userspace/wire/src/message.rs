// SPDX-License-Identifier: GPL-2.0-only

//! What is said in frames.
//!
//! Each direction has a message set of its own. An answer carries the request
//! and session numbers of its question; the last answer to a question is the
//! one that [`FromAgent::is_last`] or [`FromDaemon::is_last`] says.

use crate::list::{Excluded, FrameRun, PfnRun, MAX_PAGES};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most bytes of a name or a version.
pub const MAX_NAME: usize = 256;
/// Most bytes of an error's text.
pub const MAX_TEXT: usize = 4096;
/// Most pages that one [`ToAgent::Digest`] may ask for.
pub const MAX_DIGEST_PAGES: u64 = 64 << 10;
/// Most digests in one [`FromAgent::DigestChunk`].
pub const DIGESTS_PER_CHUNK: usize = 4096;
/// Most guests that one agent may list.
pub const MAX_GUESTS: usize = 1024;

/// XXH3, 128 bits, little endian, of the 4096 bytes of a page.
pub type Digest = [u8; 16];

/// One of the message sets.
pub trait Message: Serialize + DeserializeOwned {
    /// Number of the set in the frame's header.
    const KIND: u16;

    /// Check the limits that decoding alone does not.
    fn check(&self) -> Result<(), String>;
}

fn short(what: &str, s: &str, most: usize) -> Result<(), String> {
    if s.len() > most {
        return Err(format!("{what} of {} bytes; the most is {most}", s.len()));
    }
    if s.chars().any(|c| c.is_control() && c != '\n') {
        return Err(format!("{what} with control characters"));
    }
    Ok(())
}

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
}

impl Message for ToAgent {
    const KIND: u16 = 1;

    fn check(&self) -> Result<(), String> {
        match self {
            Self::Hello { daemon_version } => short("a version", daemon_version, MAX_NAME),
            Self::Digest { runs, .. } => {
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
                if pages > MAX_DIGEST_PAGES {
                    return Err(format!("{pages} pages; the most is {MAX_DIGEST_PAGES}"));
                }
                Ok(())
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
        /// First frame number that the host VM does not have.
        memory_end: u64,
    },
    /// All guests except the management VM itself.
    Guests(Vec<Guest>),
    /// A part of a frame list, in ascending order of pfn.
    FramesChunk {
        /// Pages that may move.
        runs: Vec<FrameRun>,
        /// Pages that may not.
        excluded: Vec<Excluded>,
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
                ..
            } => {
                short("a version", agent_version, MAX_NAME)?;
                short("a version", hypervisor, MAX_NAME)
            }
            Self::Guests(guests) => {
                if guests.len() > MAX_GUESTS {
                    return Err(format!("{} guests; the most is {MAX_GUESTS}", guests.len()));
                }
                guests
                    .iter()
                    .try_for_each(|g| short("a guest's name", &g.name, MAX_NAME))
            }
            Self::FramesEnd { pages } if *pages > MAX_PAGES => {
                Err(format!("{pages} pages; the most is {MAX_PAGES}"))
            }
            // Parts without contents could go on for ever.
            Self::FramesChunk { runs, excluded } if runs.is_empty() && excluded.is_empty() => {
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
            _ => Ok(()),
        }
    }
}

/// A guest, the way people name it: `A/guest`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GuestRef {
    /// Name of the host VM.
    pub host_vm: String,
    /// Name of the guest inside.
    pub guest: String,
}

impl std::fmt::Display for GuestRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.host_vm, self.guest)
    }
}

impl std::str::FromStr for GuestRef {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.split_once('/') {
            Some((host_vm, guest)) if !host_vm.is_empty() && !guest.is_empty() => Ok(Self {
                host_vm: host_vm.into(),
                guest: guest.into(),
            }),
            _ => Err("expected HOST_VM/GUEST, for example A/guest".into()),
        }
    }
}

/// What a swap is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwapRequest {
    /// Guest whose memory is to move.
    pub from: GuestRef,
    /// Guest that it changes places with.
    pub to: GuestRef,
    /// Compare every page before and after.
    pub verify: bool,
    /// Stop before anything changes.
    pub dry_run: bool,
    /// In a dry run, list the frames in [`SwapReport::run_list`].
    pub list_runs: bool,
}

/// Frames that follow each other in the guests and in both host VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwapRun {
    /// First page of the guests.
    pub pfn: u64,
    /// First frame in the source's host VM.
    pub gfn_a: u64,
    /// First frame in the destination's host VM.
    pub gfn_b: u64,
    /// How many.
    pub nr: u32,
}

/// From the command line to the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToDaemon {
    /// Device and agents. Answer: [`FromDaemon::Check`].
    Check,
    /// Host VMs and their guests. Answer: [`FromDaemon::List`].
    List,
    /// What is going on. Answer: [`FromDaemon::Status`].
    Status,
    /// Swap two guests. Answer: any number of [`FromDaemon::Progress`], then
    /// [`FromDaemon::Swapped`].
    Swap(SwapRequest),
}

impl Message for ToDaemon {
    const KIND: u16 = 3;

    fn check(&self) -> Result<(), String> {
        match self {
            Self::Swap(r) => [&r.from, &r.to].iter().try_for_each(|g| {
                short("a host VM's name", &g.host_vm, MAX_NAME)?;
                short("a guest's name", &g.guest, MAX_NAME)
            }),
            _ => Ok(()),
        }
    }
}

/// What the daemon knows about a host VM's agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentReport {
    /// Name of the host VM.
    pub host_vm: String,
    /// Its agent's socket.
    pub socket: String,
    /// Versions, if the agent answers.
    pub connected: Option<AgentVersions>,
    /// Why it does not, otherwise.
    pub problem: Option<String>,
}

/// Versions that an agent tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentVersions {
    /// Version of `vmbeam-agent`.
    pub agent: String,
    /// The guest hypervisor and its version.
    pub hypervisor: String,
    /// First frame number that the host VM does not have.
    pub memory_end: u64,
}

/// Limits of the driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverReport {
    /// The hypervisor implements the swap.
    pub can_swap: bool,
    /// Most pairs that one hypercall is given.
    pub batch_pairs: u32,
    /// Most pairs in one session.
    pub max_pairs: u64,
}

/// Answer to [`ToDaemon::Check`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Version of `vmbeamd`.
    pub daemon_version: String,
    /// What the driver says, or what is wrong.
    pub driver: Result<DriverReport, String>,
    /// One for each configured host VM.
    pub agents: Vec<AgentReport>,
    /// Pairs of host VMs that may swap.
    pub pairs: Vec<(String, String)>,
}

/// One host VM in [`FromDaemon::List`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostVmReport {
    /// Name of the host VM.
    pub name: String,
    /// Its domid, or why it is not known.
    pub domid: Result<u32, String>,
    /// Its guests, or why they are not known.
    pub guests: Result<Vec<Guest>, String>,
}

/// A job in [`FromDaemon::Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobReport {
    /// Number of the job, from 1 on.
    pub id: u64,
    /// Source.
    pub from: GuestRef,
    /// Destination.
    pub to: GuestRef,
    /// What it is doing, or how it ended.
    pub phase: String,
    /// Still going on.
    pub running: bool,
}

/// What a swap is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Frame lists of both guests.
    Lists,
    /// Digests before the swap.
    DigestsBefore,
    /// Handing the list to the driver.
    Add,
    /// Dry run.
    Prepare,
    /// The swap itself.
    Commit,
    /// Digests after the swap.
    DigestsAfter,
    /// Putting back what was swapped.
    Rollback,
}

impl Phase {
    /// For a person.
    pub fn text(self) -> &'static str {
        match self {
            Self::Lists => "frame lists",
            Self::DigestsBefore => "digests before",
            Self::Add => "loading",
            Self::Prepare => "dry run",
            Self::Commit => "swapping",
            Self::DigestsAfter => "digests after",
            Self::Rollback => "swapping back",
        }
    }
}

/// Seconds that each part of a swap took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    /// Frame list of the source.
    pub list_from: f64,
    /// Frame list of the destination.
    pub list_to: f64,
    /// Both frame lists.
    pub lists: f64,
    /// Joining them.
    pub join: f64,
    /// Handing them to the driver.
    pub add: f64,
    /// The dry run.
    pub prepare: f64,
    /// The swap itself: the driver's commit calls and nothing else.
    pub commit: f64,
    /// Digests before and after.
    pub digests: f64,
    /// The whole job.
    pub total: f64,
}

/// Result of a swap.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SwapReport {
    /// Source.
    pub from: GuestRef,
    /// Destination.
    pub to: GuestRef,
    /// Nothing was changed because nothing was to be.
    pub dry_run: bool,
    /// Memory of the source guest.
    pub guest_mib: u64,
    /// Pages that either guest has: those swapped and those refused.
    pub pages_listed: u64,
    /// Pages that changed places; in a dry run, that would have.
    pub pages_swapped: u64,
    /// Pages that did not, by reason.
    pub pages_refused: BTreeMap<String, u64>,
    /// Some frames that the hypervisor refused: reason, frame in A, frame in B.
    pub refused_examples: Vec<(String, u64, u64)>,
    /// Swapped pages found to be right on both sides.
    pub pages_verified: u64,
    /// Pages that were not swapped and are unchanged, counted on each side.
    pub unmoved_verified: u64,
    /// Pages that are not what they should be.
    pub mismatches: u64,
    /// Some of them.
    pub mismatch_examples: Vec<u64>,
    /// Runs handed to the driver.
    pub runs: u64,
    /// What could be swapped, if the request asked for it.
    pub run_list: Vec<SwapRun>,
    /// Times.
    pub seconds: Seconds,
    /// Hypercalls that the commit took.
    pub hypercalls: u64,
    /// TLB flushes that the hypervisor counted for them.
    pub tlb_flushes: u64,
    /// Bytes that went to and came from both agents.
    pub wire_bytes: u64,
}

/// How a request ended that did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// Refused; nothing was changed.
    Refused,
    /// Failed half way; everything was put back.
    RolledBack,
    /// Failed.
    Failed,
}

/// From the daemon to the command line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromDaemon {
    /// What is there and what is missing.
    Check(CheckReport),
    /// Host VMs and guests.
    List(Vec<HostVmReport>),
    /// Jobs, the latest last.
    Status(Vec<JobReport>),
    /// How far a swap is.
    Progress {
        /// What it is doing.
        phase: Phase,
        /// Pages done.
        done: u64,
        /// Pages to do; 0 if not known.
        total: u64,
    },
    /// A swap is complete.
    Swapped(Box<SwapReport>),
    /// The request failed.
    Error {
        /// How badly.
        failure: Failure,
        /// The same for a person.
        message: String,
    },
}

impl FromDaemon {
    /// Whether nothing follows this answer.
    pub fn is_last(&self) -> bool {
        !matches!(self, Self::Progress { .. })
    }
}

impl Message for FromDaemon {
    const KIND: u16 = 4;

    fn check(&self) -> Result<(), String> {
        match self {
            Self::Error { message, .. } => short("an error", message, 4 * MAX_TEXT),
            _ => Ok(()),
        }
    }
}
