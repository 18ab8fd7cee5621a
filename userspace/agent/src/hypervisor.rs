// SPDX-License-Identifier: GPL-2.0-only

//! What the agent needs of its guest hypervisor.

use crate::definitions::Files;
use crate::error::HvError;
use crate::gate::Gate;
use crate::toolstack::{Incoming, Outgoing};
use std::time::SystemTime;
use vmbeam_agent_protocol::{Facts, Guest, Inspection, Need, Toolstack, Uuid};
use vmbeam_xen::{Page, PageRun};

/// A guest hypervisor, as far as the agent uses it.
pub trait Hypervisor {
    /// Name and version.
    fn version(&self) -> String;
    /// The host VM that it runs in, or why that cannot be told.
    fn host_vm(&self) -> Result<Uuid, String>;
    /// The toolstack beside it.
    fn toolstack(&self) -> Toolstack;
    /// First frame number that this host VM does not have.
    fn memory_end(&self) -> Result<u64, HvError>;
    /// What time it is in the management VM.
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
    /// All guests.
    fn guests(&self) -> Result<Vec<Guest>, HvError>;
    /// Domid and UUID of each of them. None by default: then guests are known by their names.
    fn uuids(&self) -> Result<Vec<(u32, Uuid)>, HvError> {
        Ok(Vec::new())
    }
    /// Pause a guest; says whether it was paused already.
    fn pause(&self, guest: u32) -> Result<bool, HvError>;
    /// Let a guest run.
    fn unpause(&self, guest: u32) -> Result<(), HvError>;
    /// The pages of a guest, in ascending order of pfn and without overlaps.
    fn pages(&self, guest: u32) -> Result<Vec<PageRun>, HvError>;
    /// Show the contents of frames, in order.
    fn read(
        &self,
        guest: u32,
        gfns: &[u64],
        seen: &mut dyn FnMut(usize, &Page),
    ) -> Result<(), HvError>;
    /// Replace the contents of frames of a guest that does not run, in order.
    fn write(
        &self,
        guest: u32,
        gfns: &[u64],
        fill: &mut dyn FnMut(usize, &mut Page),
    ) -> Result<(), HvError>;
    /// What is in the way of moving a guest, and what it needs where it goes. With
    /// `external`, its ordinary pages do not travel.
    fn inspect(&self, guest: u32, external: bool) -> Result<Inspection, HvError>;
    /// Those of these things that are not here.
    fn lacking(&self, needs: &[Need]) -> Vec<Need>;
    /// What can be moved to or from here.
    fn facts(&self) -> Result<Facts, HvError>;
    /// Begin to save a guest, without the contents of ordinary pages if
    /// `external`. It stays, paused. With `staged`, it runs on until [`Outgoing::go`].
    fn save(&self, guest: u32, external: bool, staged: bool) -> Result<Box<dyn Outgoing>, HvError>;
    /// The process of a save that an agent before this one began, if it still runs.
    fn orphan(&self) -> Option<String>;
    /// Whether a guest that is there does nothing: it is paused, or has shut down.
    fn stands_still(&self, guest: u32) -> Result<bool, HvError>;
    /// Make every event of a guest pending that its management VM can raise: none that
    /// comes later changes the guest's memory then, and none that came while its memory
    /// was elsewhere is missed.
    fn raise_events(&self, guest: u32) -> Result<(), HvError>;
    /// Wait until nothing that a suspended guest has written is on its way to a disk.
    fn drain(&self, guest: u32) -> Result<(), HvError>;
    /// Begin to restore a guest of this name, paused. With `staged`, most of it is made before
    /// its state comes.
    fn restore(
        &self,
        name: &str,
        external: bool,
        staged: bool,
    ) -> Result<Box<dyn Incoming>, HvError>;
    /// Let a guest run, in whatever state a save has left it. One that has crashed or shut
    /// itself down meanwhile has nothing to be let do, and is left to the toolstack.
    fn resume(&self, guest: u32) -> Result<(), HvError>;
    /// Destroy a guest that does not run; not to be there is success.
    fn destroy(&self, guest: u32) -> Result<(), HvError>;
    /// What is written down of guests.
    fn files(&self) -> Result<Files, HvError>;
    /// What starts them at boot.
    fn gate(&self) -> Gate;
}
