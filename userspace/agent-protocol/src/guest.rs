// SPDX-License-Identifier: GPL-2.0-only

//! Guests, and what their host VM is like.

use crate::cpu::CpuFeatures;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What sort of guest it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum GuestKind {
    /// Paravirtualized: the only sort whose frames can be listed so far.
    Pv,
    /// Hardware virtual machine or PVH.
    Hvm,
}

/// What a guest is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
