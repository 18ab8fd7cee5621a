// SPDX-License-Identifier: GPL-2.0-only

//! What the agent needs of its guest hypervisor.

use crate::toolstack::{self, xl, Incoming, Outgoing, Restore, Save};
use std::time::{Duration, Instant};
use tracing::{debug, info};
use vmbeam_wire::message::{
    AgentErrorCode, Facts, Guest, GuestKind, GuestState, Toolstack, MAX_NAME,
};
use vmbeam_wire::CpuFeatures;
use vmbeam_xen::sys::CPUID_NO_SUBLEAF;
use vmbeam_xen::{DomainInfo, Page, PageRun, Xen};

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
    /// The toolstack beside it.
    fn toolstack(&self) -> Toolstack;
    /// First frame number that this host VM does not have.
    fn memory_end(&self) -> Result<u64, HvError>;
    /// All guests.
    fn guests(&self) -> Result<Vec<Guest>, HvError>;
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
    /// What can be moved to or from here.
    fn facts(&self) -> Result<Facts, HvError>;
    /// Begin to save a guest, without the contents of ordinary pages if
    /// `external`. It stays, paused.
    fn save(&self, guest: u32, external: bool) -> Result<Box<dyn Outgoing>, HvError>;
    /// Make every event of a guest pending that its management VM can raise: none that
    /// comes later changes the guest's memory then, and none that came while its memory
    /// was elsewhere is missed.
    fn raise_events(&self, guest: u32) -> Result<(), HvError>;
    /// Begin to restore a guest of this name, paused.
    fn restore(&self, name: &str, external: bool) -> Result<Box<dyn Incoming>, HvError>;
    /// Let a guest run, in whatever state a save has left it.
    fn resume(&self, guest: u32) -> Result<(), HvError>;
    /// Destroy a guest that does not run; not to be there is success.
    fn destroy(&self, guest: u32) -> Result<(), HvError>;
}

/// How long a guest may take to run after it was told to.
const RESUME: Duration = Duration::from_secs(30);
/// How often to look.
const LOOK: Duration = Duration::from_millis(100);

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
        // One that is going away has none any more.
        cpu: features(xen, Some(info.domid))
            .inspect_err(|e| debug!(domid = info.domid, "no CPU features: {e}"))
            .ok(),
    }
}

/// CPU features of a guest, or those that a PV guest can have.
fn features(xen: &Xen, domid: Option<u32>) -> Result<CpuFeatures, vmbeam_xen::Error> {
    let leaves = xen.cpuid(domid)?;
    Ok(CpuFeatures::new(|leaf, subleaf| {
        let found = leaves
            .iter()
            .find(|l| l.leaf == leaf && (l.subleaf == subleaf || l.subleaf == CPUID_NO_SUBLEAF))?;
        Some([found.a, found.b, found.c, found.d])
    }))
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

    fn toolstack(&self) -> Toolstack {
        Toolstack {
            version: Xen::libraries(self).into(),
            problem: toolstack::problem(),
        }
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

    fn pages(&self, domid: u32) -> Result<Vec<PageRun>, HvError> {
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

    fn write(
        &self,
        domid: u32,
        gfns: &[u64],
        fill: &mut dyn FnMut(usize, &mut Page),
    ) -> Result<(), HvError> {
        if !find(self, domid)?.paused {
            return Err(HvError {
                code: AgentErrorCode::BadRequest,
                message: format!("guest {domid} is not paused; its pages are not written"),
            });
        }
        Ok(self.write_pages(domid, gfns, |i, page| {
            fill(i, page);
            Ok(())
        })?)
    }

    fn facts(&self) -> Result<Facts, HvError> {
        Ok(Facts {
            problem: toolstack::problem(),
            free_mib: toolstack::free_mib()?,
            cpu: features(self, None)?,
        })
    }

    fn save(&self, domid: u32, external: bool) -> Result<Box<dyn Outgoing>, HvError> {
        find(self, domid)?;
        Ok(Box::new(Save::start(domid, external)?))
    }

    fn raise_events(&self, domid: u32) -> Result<(), HvError> {
        find(self, domid)?;
        let events = Xen::raise_events(self, domid)?;
        info!(domid, events, "made its events pending");
        Ok(())
    }

    fn restore(&self, _: &str, external: bool) -> Result<Box<dyn Incoming>, HvError> {
        Ok(Box::new(Restore::start(external)?))
    }

    fn resume(&self, domid: u32) -> Result<(), HvError> {
        let deadline = Instant::now() + RESUME;
        loop {
            let info = find(self, domid)?;
            match info {
                DomainInfo { dying: true, .. } => {
                    return Err(HvError {
                        code: AgentErrorCode::NoGuest,
                        message: format!("guest {domid} is being destroyed"),
                    });
                }
                // Its save was killed. One that ends just now does the same,
                // and then this one fails.
                DomainInfo { shutdown: true, .. } => match xl(&["resume", &domid.to_string()]) {
                    Err(e) if Instant::now() >= deadline => return Err(e),
                    _ => {}
                },
                DomainInfo { paused: true, .. } => Xen::unpause(self, domid)?,
                _ => return Ok(()),
            }
            if Instant::now() >= deadline {
                return Err(HvError {
                    code: AgentErrorCode::Toolstack,
                    message: format!("guest {domid} cannot be made to run: {info:?}"),
                });
            }
            std::thread::sleep(LOOK);
        }
    }

    fn destroy(&self, domid: u32) -> Result<(), HvError> {
        match find(self, domid) {
            Err(e) if e.code == AgentErrorCode::NoGuest => return Ok(()),
            Err(e) => return Err(e),
            Ok(info) if info.paused || info.shutdown || info.dying => {}
            Ok(_) => {
                return Err(HvError {
                    code: AgentErrorCode::BadRequest,
                    message: format!("guest {domid} runs; it is not destroyed"),
                });
            }
        }
        xl(&["destroy", &domid.to_string()])?;
        // Its memory is free when the hypervisor does not know it any more.
        let deadline = Instant::now() + RESUME;
        while find(self, domid).is_ok() {
            if Instant::now() >= deadline {
                return Err(HvError {
                    code: AgentErrorCode::Toolstack,
                    message: format!("guest {domid} does not go away"),
                });
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}
