// SPDX-License-Identifier: GPL-2.0-only

//! What the agent needs of its guest hypervisor.

use vmbeam_wire::message::{AgentErrorCode, Guest, GuestKind, GuestState, MAX_NAME};
use vmbeam_xen::{DomainInfo, GuestPage, Page, Xen};

/// Why the hypervisor did not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct HvError {
    /// What sort of failure.
    pub code: AgentErrorCode,
    /// The same for a person.
    pub message: String,
}

impl From<vmbeam_xen::Error> for HvError {
    fn from(e: vmbeam_xen::Error) -> Self {
        let code = match e {
            vmbeam_xen::Error::NoDomain(_) => AgentErrorCode::NoGuest,
            vmbeam_xen::Error::Unsupported(_) => AgentErrorCode::Unsupported,
            _ => AgentErrorCode::Hypervisor,
        };
        Self {
            code,
            message: e.to_string(),
        }
    }
}

/// A guest hypervisor, as far as the agent uses it.
pub trait Hypervisor {
    /// Name and version.
    fn version(&self) -> String;
    /// First frame number that this host VM does not have.
    fn memory_end(&self) -> Result<u64, HvError>;
    /// All guests.
    fn guests(&self) -> Result<Vec<Guest>, HvError>;
    /// Pause a guest; says whether it was paused already.
    fn pause(&self, guest: u32) -> Result<bool, HvError>;
    /// Let a guest run.
    fn unpause(&self, guest: u32) -> Result<(), HvError>;
    /// The pages of a guest, in ascending order of pfn.
    fn pages(&self, guest: u32) -> Result<Vec<GuestPage>, HvError>;
    /// Show the contents of frames, in order.
    fn read(
        &self,
        guest: u32,
        gfns: &[u64],
        seen: &mut dyn FnMut(usize, &Page),
    ) -> Result<(), HvError>;
}

fn guest(xen: &Xen, info: &DomainInfo) -> Guest {
    let name = xen
        .name(info.domid)
        .unwrap_or_else(|| format!("domain-{}", info.domid));
    let mut name: String = name.chars().filter(|c| !c.is_control()).collect();
    if name.len() > MAX_NAME {
        name = format!("domain-{}", info.domid);
    }
    Guest {
        name,
        domid: info.domid,
        state: match info {
            DomainInfo { dying: true, .. } => GuestState::Dying,
            DomainInfo { shutdown: true, .. } => GuestState::Shutdown,
            DomainInfo { paused: true, .. } => GuestState::Paused,
            _ => GuestState::Running,
        },
        pages: info.pages,
        kind: if info.hvm {
            GuestKind::Hvm
        } else {
            GuestKind::Pv
        },
    }
}

/// A guest by its number. The management VM is not a guest.
fn find(xen: &Xen, domid: u32) -> Result<DomainInfo, HvError> {
    if domid == 0 {
        return Err(HvError {
            code: AgentErrorCode::Unsupported,
            message: "the management VM itself is not a guest".into(),
        });
    }
    Ok(xen.domain(domid)?)
}

impl Hypervisor for Xen {
    fn version(&self) -> String {
        Xen::version(self).into()
    }

    fn memory_end(&self) -> Result<u64, HvError> {
        Ok(Xen::memory_end(self)?)
    }

    fn guests(&self) -> Result<Vec<Guest>, HvError> {
        Ok(self
            .domains()?
            .iter()
            .filter(|d| d.domid != 0)
            .map(|d| guest(self, d))
            .collect())
    }

    fn pause(&self, domid: u32) -> Result<bool, HvError> {
        // Pauses add up: a second one would need a second unpause.
        if find(self, domid)?.paused {
            return Ok(true);
        }
        Xen::pause(self, domid)?;
        Ok(false)
    }

    fn unpause(&self, domid: u32) -> Result<(), HvError> {
        find(self, domid)?;
        Ok(Xen::unpause(self, domid)?)
    }

    fn pages(&self, domid: u32) -> Result<Vec<GuestPage>, HvError> {
        find(self, domid)?;
        Ok(Xen::pages(self, domid)?)
    }

    fn read(
        &self,
        domid: u32,
        gfns: &[u64],
        seen: &mut dyn FnMut(usize, &Page),
    ) -> Result<(), HvError> {
        Ok(self.read_pages(domid, gfns, seen)?)
    }
}
