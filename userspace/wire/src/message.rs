// SPDX-License-Identifier: GPL-2.0-only

//! What is said in frames.
//!
//! Each direction has a message set of its own. An answer carries the request
//! and session numbers of its question; the last answer to a question is the
//! one that [`FromAgent::is_last`] or [`FromDaemon::is_last`] says.

use crate::compressed;
use crate::cpu::CpuFeatures;
use crate::list::{Excluded, FrameRun, PfnRun, MAX_PAGES};
use crate::preflight::{bounded, bounded_needs, is_plain, Inspection, Need};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

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
/// Most bytes of a guest's saved state in one message.
pub const MAX_PART: usize = compressed::MOST;
/// Most pages whose contents one message carries or asks for.
pub const MAX_PAGES_PER_CHUNK: usize = compressed::MOST / PAGE;
/// Bytes of a page.
pub const PAGE: usize = 4096;

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

/// The name of a guest or of a host VM: one line that is what it looks like.
fn name(what: &str, s: &str) -> Result<(), String> {
    short(what, s, MAX_NAME)?;
    if !is_plain(s) {
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
    /// What can move to or from here? Answer: [`FromAgent::Facts`].
    Facts,
    /// Begin to save a guest. Answer: [`FromAgent::Done`], and then
    /// [`ToAgent::Pull`] until the end.
    Send {
        /// The guest's domid in its host VM.
        guest: u32,
        /// Leave the contents of ordinary pages out.
        external: bool,
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
    /// Migrate a guest. Answer: [`FromDaemon::Job`], any number of
    /// [`FromDaemon::Progress`], then [`FromDaemon::Migrated`].
    Migrate(MigrateRequest),
    /// Could all guests of a host VM migrate? Changes nothing. Answer:
    /// [`FromDaemon::Plan`].
    Plan {
        /// The host VM that is to be left.
        from: String,
        /// The host VM where its guests are to go.
        to: String,
        /// How their memory gets there.
        mode: Mode,
    },
    /// Cancel a migration. Answer: [`FromDaemon::Done`]; the job's own answer
    /// tells whether it was in time.
    Abort {
        /// Number of the job.
        job: u64,
    },
    /// Do nothing more about what a job settles. Answer: [`FromDaemon::Done`].
    Dismiss {
        /// Number of the job.
        job: u64,
    },
}

impl Message for ToDaemon {
    const KIND: u16 = 3;

    fn check(&self) -> Result<(), String> {
        match self {
            Self::Swap(r) => [&r.from, &r.to].iter().try_for_each(|g| {
                name("a host VM's name", &g.host_vm)?;
                name("a guest's name", &g.guest)
            }),
            Self::Migrate(r) => {
                name("a host VM's name", &r.from.host_vm)?;
                name("a guest's name", &r.from.guest)?;
                name("a host VM's name", &r.to)
            }
            Self::Plan { from, to, .. } => {
                name("a host VM's name", from)?;
                name("a host VM's name", to)
            }
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
    /// The configuration gives its domid, so it is not found any more when it was
    /// restarted.
    pub domid_fixed: bool,
    /// Versions, if the agent answers.
    pub connected: Option<AgentVersions>,
    /// Why it does not, otherwise.
    pub problem: Option<String>,
    /// Whether it is in the host VM that it is taken for, if it answers.
    pub identity: Option<Result<Identity, String>>,
}

/// A host VM, as its agent and the host's toolstack know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its domid.
    pub domid: u32,
    /// Its UUID.
    pub uuid: Uuid,
}

/// Versions that an agent tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentVersions {
    /// Version of `vmbeam-agent`.
    pub agent: String,
    /// The guest hypervisor and its version.
    pub hypervisor: String,
    /// The toolstack of the management VM.
    pub toolstack: Toolstack,
    /// First frame number that the host VM does not have.
    pub memory_end: u64,
    /// The host VM's UUID as its firmware shows it, or why that cannot be read.
    pub host_vm: Result<Uuid, String>,
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
    /// Version of the protocol that it speaks with agents.
    pub protocol: u16,
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
    /// Whether a migration is possible.
    Preflight,
    /// The guest is suspended and saved, and restored at the destination.
    Stream,
    /// Contents of pages that could not be swapped.
    Copy,
    /// The guest is let run at the destination.
    Resume,
    /// What is left at the source is destroyed.
    Destroy,
    /// The guest is given back to the source.
    Undo,
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
            Self::Preflight => "checking",
            Self::Stream => "saving",
            Self::Copy => "copying",
            Self::Resume => "resuming",
            Self::Destroy => "cleaning up",
            Self::Undo => "undoing",
        }
    }

    /// What progress is counted in.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Stream => "bytes",
            _ => "pages",
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
    /// What the commit took.
    pub counts: SwapCounts,
    /// What went to and came from both agents.
    pub traffic: Traffic,
}

/// What went through ports of agents, both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Messages.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Traffic {
    /// This and that.
    pub fn and(self, other: Self) -> Self {
        Self {
            messages: self.messages + other.messages,
            bytes: self.bytes + other.bytes,
        }
    }

    /// This without what was there before.
    pub fn since(self, before: Self) -> Self {
        Self {
            messages: self.messages.saturating_sub(before.messages),
            bytes: self.bytes.saturating_sub(before.bytes),
        }
    }
}

/// What a swap took, as the driver and the hypervisor counted it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwapCounts {
    /// Hypercalls.
    pub hypercalls: u64,
    /// TLB flushes, one for each domain and batch.
    pub tlb_flushes: u64,
    /// Entries of a P2M that were written.
    pub p2m_writes: u64,
    /// Pairs of superpages that were exchanged whole.
    pub superpages: u64,
    /// Superpages that became smaller ones.
    pub splits: u64,
    /// Superpages that were made of smaller ones again.
    pub merges: u64,
}

/// How the memory of a migrating guest gets there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// By swapping it.
    #[default]
    Swap,
    /// By copying it, as an ordinary migration does. Only ever on request.
    Copy,
}

/// What a migration is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrateRequest {
    /// The guest, and the host VM where it is.
    pub from: GuestRef,
    /// The host VM where it is to go.
    pub to: String,
    /// How its memory gets there.
    pub mode: Mode,
    /// Only find out whether it is possible.
    pub dry_run: bool,
    /// Compare every page that moved.
    pub verify: bool,
    /// Give up before the point of no return after so many seconds.
    pub timeout_seconds: Option<u32>,
    /// Give up before the point of no return when the guest has been suspended
    /// for so long.
    pub max_downtime_ms: Option<u32>,
}

/// Seconds that each part of a migration took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MigrateSeconds {
    /// Finding out whether it is possible.
    pub preflight: f64,
    /// From the request to save until the guest exists twice.
    pub stream: f64,
    /// Frame lists of both guests, and joining them.
    pub lists: f64,
    /// Digests that the journal keeps.
    pub probes: f64,
    /// Loading the driver and the dry run.
    pub prepare: f64,
    /// The swap itself.
    pub swap: f64,
    /// Copying what could not be swapped.
    pub copy: f64,
    /// Digests for the comparison.
    pub digests: f64,
    /// Letting the guest run at the destination.
    pub resume: f64,
    /// Destroying what was left at the source.
    pub destroy: f64,
    /// From the request to save until the guest ran again. The guest itself
    /// stood still for a little less.
    pub downtime: f64,
    /// The whole job.
    pub total: f64,
}

/// Result of a migration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MigrateReport {
    /// The guest, and where it was.
    pub from: GuestRef,
    /// Where it is.
    pub to: String,
    /// How its memory got there.
    pub mode: Mode,
    /// Nothing was changed because nothing was to be.
    pub dry_run: bool,
    /// In a dry run, what is in the way.
    pub blockers: Vec<String>,
    /// Its memory.
    pub guest_mib: u64,
    /// Pages that changed places; in a dry run, that may.
    pub pages_swapped: u64,
    /// Pages whose contents were copied by the agents.
    pub pages_copied: u64,
    /// Pages whose contents were in the saved state; in a dry run, at least.
    pub pages_sent: u64,
    /// Pages that the hypervisor would not swap, by reason.
    pub pages_refused: BTreeMap<String, u64>,
    /// Pages found to be right at the destination.
    pub pages_verified: u64,
    /// Bytes of the saved state.
    pub stream_bytes: u64,
    /// All that went to and came from both agents.
    pub traffic: Traffic,
    /// What the swap took.
    pub counts: SwapCounts,
    /// What could not be done after the guest ran, and is being tried again.
    pub pending: Option<String>,
    /// Times.
    pub seconds: MigrateSeconds,
}

/// A sentence about too little memory in the host VM `to`, if it is too little for
/// what `who` says, for example `guest x needs`.
pub fn no_room(to: &str, who: &str, needed_mib: u64, free_mib: u64) -> Option<String> {
    (free_mib < needed_mib).then(|| {
        format!(
            "host VM {to} has {free_mib} MiB of free memory, and {who} {needed_mib} MiB; shut down guests there, or give the host VM more memory"
        )
    })
}

/// A guest in [`FromDaemon::Plan`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedGuest {
    /// It.
    pub guest: Guest,
    /// Why it cannot migrate, for each reason a sentence.
    pub blockers: Vec<String>,
}

/// What is in the way of a host VM's guests, all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanReport {
    /// Why no guest can. Not that memory is too little for all of them: whether all
    /// are to move is for others to say.
    pub blockers: Vec<String>,
    /// The guests, in the order of their domids.
    pub guests: Vec<PlannedGuest>,
    /// Memory of all guests, in MiB.
    pub needed_mib: u64,
    /// Memory that the destination has for them, in MiB.
    pub free_mib: u64,
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
    /// The request is this job from now on.
    Job {
        /// Its number.
        id: u64,
    },
    /// A migration is complete, or would be possible.
    Migrated(Box<MigrateReport>),
    /// What is in the way of a host VM's guests.
    Plan(PlanReport),
    /// What was asked for has been noted.
    Done,
}

impl FromDaemon {
    /// Whether nothing follows this answer.
    pub fn is_last(&self) -> bool {
        !matches!(self, Self::Progress { .. } | Self::Job { .. })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::Decoder;
    use crate::frame::{encode, FrameError};
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// Through a frame and back, with all checks.
    fn pass<M: Message + Clone>(message: &M) -> Result<M, FrameError> {
        let mut decoder = Decoder::strict();
        decoder.push(&encode(1, 1, message)?);
        match decoder.next_frame()? {
            Some(frame) => frame.decode(),
            None => Err(FrameError::Noise),
        }
    }

    #[test]
    fn what_is_too_much_is_refused() {
        let big = |n| vec![0u8; n];
        assert!(pass(&ToAgent::Push {
            data: big(MAX_PART)
        })
        .is_ok());
        assert!(pass(&ToAgent::Push {
            data: big(MAX_PART + 1)
        })
        .is_err());
        let part = |n| FromAgent::Part {
            data: big(n),
            end: false,
        };
        assert!(pass(&part(MAX_PART)).is_ok());
        assert!(pass(&part(MAX_PART + 1)).is_err());
        let write = |runs: &[(u64, u32)], n| ToAgent::WritePages {
            guest: 1,
            runs: runs
                .iter()
                .map(|(pfn, nr)| PfnRun { pfn: *pfn, nr: *nr })
                .collect(),
            data: big(n),
        };
        const MOST: u32 = MAX_PAGES_PER_CHUNK as u32;
        let all = MAX_PAGES_PER_CHUNK * PAGE;
        assert!(pass(&write(&[(0, MOST)], all)).is_ok());
        assert!(pass(&write(&[(0, 1), (5, MOST - 1)], all)).is_ok());
        for (runs, n) in [
            (&[][..], 0),
            (&[(0, 1)], PAGE - 1),
            (&[(0, 1)], 2 * PAGE),
            (&[(0, MOST + 1)], all + PAGE),
            (&[(u64::MAX, 1)], PAGE),
            (&[(5, 1), (0, 1)], 2 * PAGE),
        ] {
            assert!(pass(&write(runs, n)).is_err(), "{runs:?} {n}");
        }
        let name = |n| ToAgent::Receive {
            name: "x".repeat(n),
            external: true,
        };
        assert!(pass(&name(MAX_NAME)).is_ok());
        assert!(pass(&name(MAX_NAME + 1)).is_err());
        let facts = |text: &str| {
            FromAgent::Facts(Facts {
                problem: Some(text.into()),
                ..Facts::default()
            })
        };
        assert!(pass(&facts("old")).is_ok());
        assert!(pass(&facts("\x1b[2J")).is_err());
    }

    proptest! {
        /// Runs are taken if they are in order and few enough, and only then.
        #[test]
        fn page_runs_are_checked(runs in vec((0u64..1000, 0u32..200), 0..6)) {
            let mut next = 0;
            let mut good = true;
            for (pfn, nr) in &runs {
                good &= *nr > 0 && *pfn >= next;
                next = pfn + u64::from(*nr);
            }
            let pages: u64 = runs.iter().map(|r| u64::from(r.1)).sum();
            let runs: Vec<PfnRun> = runs.iter().map(|(pfn, nr)| PfnRun { pfn: *pfn, nr: *nr }).collect();
            let read = ToAgent::ReadPages { guest: 1, runs: runs.clone() };
            prop_assert_eq!(pass(&read).is_ok(), good && pages <= MAX_PAGES_PER_CHUNK as u64);
            let digest = ToAgent::Digest { guest: 1, runs };
            prop_assert_eq!(pass(&digest).is_ok(), good);
        }
    }
}
