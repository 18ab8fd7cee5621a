// SPDX-License-Identifier: GPL-2.0-only

//! What the daemon reports to the command line.

use crate::guest::GuestRef;
use crate::memory::HostMemory;
use crate::request::Mode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vmbeam_agent_protocol::{Guest, Toolstack, Uuid};

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
    /// Version of the protocol that it speaks.
    pub protocol: u16,
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

/// Answer to [`ToDaemon::Check`](crate::ToDaemon::Check).
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
    /// The clocks of those of them that there should be.
    pub clocks: Vec<((String, String), Clocks)>,
}

/// The clocks of a pair of host VMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Clocks {
    /// They show about the same time.
    Together,
    /// They do not: so much, and what to do about it.
    Apart(String),
    /// Why that is not known.
    Unknown(String),
}

/// A host VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostVmReport {
    /// Name of the host VM.
    pub name: String,
    /// Its domid, or why it is not known.
    pub domid: Result<u32, String>,
    /// Its guests, or why they are not known.
    pub guests: Result<Vec<Guest>, String>,
    /// Nothing is started there, and no guest arrives.
    pub maintenance: bool,
    /// Why its guests are not started although it has booted, if they are held back.
    pub held: Option<String>,
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
    /// The guest's copy is made at the destination while the guest runs.
    Stage,
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
    /// Not a part of it: for how many milliseconds the guest will be suspended.
    Expected,
    /// A program of the operator is run.
    Hook,
    /// The frame lists are there: the pairs are made of them, for the driver to be given.
    Pairs,
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
            Self::Stage => "staging",
            Self::Stream => "saving",
            Self::Copy => "copying",
            Self::Resume => "resuming",
            Self::Destroy => "cleaning up",
            Self::Undo => "undoing",
            Self::Expected => "expected pause",
            Self::Hook => "running a hook",
            Self::Pairs => "pairs",
        }
    }

    /// What progress is counted in.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Stage | Self::Stream => "bytes",
            Self::Expected => "ms",
            _ => "pages",
        }
    }
}

/// Seconds that each part of a swap took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

/// Seconds that each part of a migration took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MigrateSeconds {
    /// Finding out whether it is possible.
    pub preflight: f64,
    /// Making the guest's copy while the guest runs: all before it is suspended.
    pub stage: f64,
    /// From the request to suspend the guest until it exists twice, complete.
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
    /// From the request to suspend the guest until it ran again: the sum of `pause`. The guest itself stood still for a little less.
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
    /// Those of them that went over without one in return.
    #[serde(default)]
    pub relocated: u64,
    /// Pairs of frames that were swapped are listed in so many runs.
    #[serde(default)]
    pub runs: u64,
    /// Pages that were not there at the source, so that they read as zeroes, as they now do at
    /// the destination.
    #[serde(default)]
    pub pages_empty: u64,
    /// Pages whose contents were copied by the agents.
    pub pages_copied: u64,
    /// Pages whose contents were in the saved state; in a dry run, at least.
    pub pages_sent: u64,
    /// Pages that the hypervisor would not swap, by reason.
    pub pages_refused: BTreeMap<String, u64>,
    /// Pages that were not swapped whose frames could not follow the others afterwards, as something
    /// holds them: each may have cost both host VMs a superpage.
    #[serde(default)]
    pub frames_left: u64,
    /// Pages found to be right at the destination.
    pub pages_verified: u64,
    /// Bytes of the saved state.
    pub stream_bytes: u64,
    /// All that went to and came from both agents.
    pub traffic: Traffic,
    /// That of it which did while the guest was suspended.
    #[serde(default)]
    pub traffic_suspended: Traffic,
    /// What the swap took.
    pub counts: SwapCounts,
    /// What could not be done after the guest ran, and is being tried again.
    pub pending: Option<String>,
    /// Why the copy was not made before the guest was suspended, if it was not.
    pub unstaged: Option<String>,
    /// What is not in the way, and somebody should look at.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// What the guest was suspended for, in the order in which it began: parts of the pause,
    /// and their nanoseconds.
    pub pause: Vec<(String, u64)>,
    /// Times.
    pub seconds: MigrateSeconds,
}

/// What the host VM is called that is to replace one, until it has its name.
pub fn replacement_of(host_vm: &str) -> String {
    format!("{host_vm}.new")
}

/// What a guest of so many pages needs where it goes, in MiB, as libxl reckons it: a PV guest
/// takes 1 MiB besides, and the sum is even.
pub fn needed_mib(pages: u64) -> u64 {
    (pages.div_ceil(256) + 1).next_multiple_of(2)
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

/// A guest in [`FromDaemon::Plan`](crate::FromDaemon::Plan).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedGuest {
    /// It.
    pub guest: Guest,
    /// Its UUID, as far as it is known.
    pub uuid: Option<Uuid>,
    /// Why it cannot migrate, for each reason a sentence.
    pub blockers: Vec<String>,
}

/// What is in the way of a host VM's guests, all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanReport {
    /// Why no guest can. Not that memory is too little for all of them: whether all
    /// are to move is for others to say.
    pub blockers: Vec<String>,
    /// What is not in the way, and somebody should look at.
    pub warnings: Vec<String>,
    /// The guests, in the order of their domids.
    pub guests: Vec<PlannedGuest>,
    /// Memory of all guests, in MiB.
    pub needed_mib: u64,
    /// Memory that the destination has for them, in MiB.
    pub free_mib: u64,
    /// How their memory would get there.
    pub mode: Mode,
    /// What the destination has of the host's memory, if that is known.
    pub memory: Option<HostMemory>,
}
