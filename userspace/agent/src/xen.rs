// SPDX-License-Identifier: GPL-2.0-only

//! Xen as the guest hypervisor, with the toolstack and the files beside it.

use crate::definitions::Files;
use crate::disks;
use crate::error::HvError;
use crate::gate::Gate;
use crate::hypervisor::Hypervisor;
use crate::identity;
use crate::late::{self, WATCH};
use crate::names::told;
use crate::orphan::orphan;
use crate::preflight::{self, xenstore_domain, Size};
use crate::toolstack::{self, xl, xl_within, Incoming, Outgoing, Restore, Save};
use std::time::{Duration, Instant};
use tracing::{debug, info, warn};
use vmbeam_agent_protocol::{
    AgentErrorCode, CpuFeatures, Facts, Guest, GuestKind, GuestState, Inspection, Need, Toolstack,
    Uuid, MAX_RUNS,
};
use vmbeam_xen::sys::{CPUID_NO_SUBLEAF, SHUTDOWN_SUSPEND};
use vmbeam_xen::{CpuPolicy, DomainInfo, Page, PageRun, Xen};

/// How long a guest may take to run after it was told to.
const RESUME: Duration = Duration::from_secs(30);
/// How long a guest may take to be destroyed: all its memory is given back. Less than the
/// daemon waits for an answer.
const DESTROY: Duration = Duration::from_secs(240);
/// How often to look.
const LOOK: Duration = Duration::from_millis(100);

/// What a guest is called.
fn shown(name: Option<String>, domid: u32) -> String {
    name.and_then(told)
        .unwrap_or_else(|| format!("domain-{domid}"))
}

/// What is left to do for a guest that is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// It is going away.
    None,
    /// It has ended by itself.
    Ended,
    /// Have the toolstack bring it back from its suspension.
    Resume,
    /// Take the pause away.
    Unpause,
    /// Nothing: it runs.
    Done,
}

fn next(info: &DomainInfo) -> Next {
    match info {
        DomainInfo { dying: true, .. } => Next::None,
        DomainInfo {
            shutdown: Some(SHUTDOWN_SUSPEND),
            ..
        } => Next::Resume,
        DomainInfo {
            shutdown: Some(_), ..
        } => Next::Ended,
        DomainInfo { paused: true, .. } => Next::Unpause,
        _ => Next::Done,
    }
}

fn guest(xen: &Xen, info: &DomainInfo) -> Guest {
    Guest {
        name: shown(xen.name(info.domid), info.domid),
        domid: info.domid,
        state: match info {
            DomainInfo { dying: true, .. } => GuestState::Dying,
            DomainInfo {
                shutdown: Some(_), ..
            } => GuestState::Shutdown,
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
    let CpuPolicy { leaves, msrs } = xen.cpu_policy(domid)?;
    let cpuid = |leaf, subleaf| {
        let found = leaves
            .iter()
            .find(|l| l.leaf == leaf && (l.subleaf == subleaf || l.subleaf == CPUID_NO_SUBLEAF))?;
        Some([found.a, found.b, found.c, found.d])
    };
    let msr = |number| Some(msrs.iter().find(|m| m.idx == number)?.val);
    Ok(CpuFeatures::new(cpuid, msr))
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

/// Wait until nobody knows this guest any more. That it cannot be told is no such thing.
fn until_gone(
    domid: u32,
    limit: Duration,
    mut look: impl FnMut() -> Result<(), HvError>,
) -> Result<(), HvError> {
    let deadline = Instant::now() + limit;
    loop {
        match look() {
            Err(e) if e.code == AgentErrorCode::NoGuest => return Ok(()),
            Err(e) => return Err(e),
            Ok(()) if Instant::now() >= deadline => {
                return Err(HvError {
                    code: AgentErrorCode::Toolstack,
                    message: format!("guest {domid} does not go away"),
                })
            }
            Ok(()) => std::thread::sleep(LOOK),
        }
    }
}

/// Let a guest run, in whatever state a save has left it.
fn let_run(xen: &Xen, domid: u32) -> Result<(), HvError> {
    let deadline = Instant::now() + RESUME;
    let mut last = None;
    loop {
        let next = next(&find(xen, domid)?);
        // What was done has had no effect yet.
        if last.replace(next) == Some(next) {
            std::thread::sleep(LOOK);
        }
        match next {
            Next::None => {
                return Err(HvError {
                    code: AgentErrorCode::NoGuest,
                    message: format!("guest {domid} is being destroyed"),
                });
            }
            Next::Ended => {
                warn!(domid, "the guest has crashed or shut down by itself");
                return Ok(());
            }
            // Its save was killed. One that ends just now does the same,
            // and then this one fails.
            Next::Resume => match xl(&["resume", &domid.to_string()]) {
                Err(e) if Instant::now() >= deadline => return Err(e),
                _ => {}
            },
            Next::Unpause => Xen::unpause(xen, domid)?,
            Next::Done => return Ok(()),
        }
        if Instant::now() >= deadline {
            let state = match next {
                Next::Unpause => "paused",
                _ => "suspended",
            };
            return Err(HvError {
                code: AgentErrorCode::Toolstack,
                message: format!(
                    "guest {domid} cannot be made to run, and stays {state}; see `xl list`"
                ),
            });
        }
    }
}

/// Go on with what the agent before this one did for guests that may suspend themselves too late.
/// No request of the daemon may be answered before.
pub fn take_over() {
    WATCH.take_over(let_run);
}

impl Hypervisor for Xen {
    fn version(&self) -> String {
        Xen::version(self).into()
    }

    fn host_vm(&self) -> Result<Uuid, String> {
        identity::host_vm()
    }

    fn toolstack(&self) -> Toolstack {
        Toolstack {
            version: Xen::libraries(self).into(),
            problem: toolstack::abilities().problem,
        }
    }

    fn memory_end(&self) -> Result<u64, HvError> {
        Ok(Xen::memory_end(self)?)
    }

    fn guests(&self) -> Result<Vec<Guest>, HvError> {
        let xenstore = xenstore_domain(self).unwrap_or(0);
        Ok(self
            .domains()?
            .iter()
            .filter(|d| d.domid != 0 && d.domid != xenstore)
            .map(|d| guest(self, d))
            .collect())
    }

    fn uuids(&self) -> Result<Vec<(u32, Uuid)>, HvError> {
        let uuid = |d: &DomainInfo| (d.domid, Uuid::from_bytes(d.uuid));
        let domains = self.domains()?;
        Ok(domains.iter().filter(|d| d.domid != 0).map(uuid).collect())
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

    fn inspect(&self, domid: u32, external: bool) -> Result<Inspection, HvError> {
        let info = find(self, domid)?;
        // No more pieces than pages; to count them takes a while.
        let many = info.pages > MAX_RUNS as u64 && external && !info.hvm;
        let runs = match many {
            true => Some(Xen::pages(self, domid)?.len()),
            false => None,
        };
        let size = Size {
            pages: info.pages,
            runs,
        };
        let mut inspection = preflight::inspect(self, domid, info.cpupool, size);
        let unseen = disks::unseen(self, domid, || self.can_see_rings());
        inspection.problems.extend(unseen);
        if let Some(name) = self.name(domid).and_then(told) {
            let path = self.files()?.path_of(&name)?;
            preflight::definition(self, path.as_deref(), &mut inspection);
        }
        Ok(inspection)
    }

    fn lacking(&self, needs: &[Need]) -> Vec<Need> {
        let missing = |need: &&Need| !preflight::is_there(self, need);
        needs.iter().filter(missing).cloned().collect()
    }

    fn facts(&self) -> Result<Facts, HvError> {
        let abilities = toolstack::abilities();
        Ok(Facts {
            problem: abilities.problem,
            stages: abilities.stages,
            free_mib: toolstack::free_mib()?,
            cpu: features(self, None)?,
        })
    }

    fn save(&self, domid: u32, external: bool, staged: bool) -> Result<Box<dyn Outgoing>, HvError> {
        let id = (domid, find(self, domid)?.uuid);
        let begin = || Save::start(domid, external, staged);
        Ok(Box::new(WATCH.save(id, staged, let_run, begin)?))
    }

    fn orphan(&self) -> Option<String> {
        orphan()
    }

    fn stands_still(&self, domid: u32) -> Result<bool, HvError> {
        let info = find(self, domid)?;
        Ok(info.paused || info.shutdown.is_some())
    }

    fn raise_events(&self, domid: u32) -> Result<(), HvError> {
        find(self, domid)?;
        let events = Xen::raise_events(self, domid)?;
        info!(domid, events, "made its events pending");
        Ok(())
    }

    fn drain(&self, domid: u32) -> Result<(), HvError> {
        find(self, domid)?;
        disks::drain(self, domid, disks::DRAIN, |reference| {
            Ok(self.ring(domid, reference)?)
        })
    }

    fn restore(&self, _: &str, external: bool, staged: bool) -> Result<Box<dyn Incoming>, HvError> {
        Ok(Box::new(Restore::start(external, staged)?))
    }

    fn resume(&self, domid: u32) -> Result<(), HvError> {
        let info = find(self, domid)?;
        // An agent before this one may have asked it to suspend itself, and nobody waits for that.
        let asked = next(&info) == Next::Done || late::is_asked(self, domid);
        let left = WATCH.leave(domid).unwrap_or_else(|e| {
            // It is to run, whoever lets it.
            warn!(domid, "{e}");
            None
        });
        let result = let_run(self, domid);
        match (&result, left) {
            (Ok(()), Some(_)) => WATCH.begin((domid, info.uuid), let_run),
            (Ok(()), None) if asked => WATCH.begin((domid, info.uuid), let_run),
            (Err(_), Some(left)) => WATCH.resume(&left, let_run),
            (_, None) => {}
        }
        result
    }

    fn destroy(&self, domid: u32) -> Result<(), HvError> {
        match find(self, domid) {
            Err(e) if e.code == AgentErrorCode::NoGuest => return Ok(()),
            Err(e) => return Err(e),
            Ok(info) if info.paused || info.shutdown.is_some() || info.dying => {}
            Ok(_) => {
                return Err(HvError {
                    code: AgentErrorCode::BadRequest,
                    message: format!("guest {domid} runs; it is not destroyed"),
                });
            }
        }
        xl_within(&["destroy", &domid.to_string()], DESTROY)?;
        // Its memory is free when the hypervisor does not know it any more.
        until_gone(domid, RESUME, || find(self, domid).map(drop))
    }

    fn files(&self) -> Result<Files, HvError> {
        Files::system()
    }

    fn gate(&self) -> Gate {
        Gate::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_looked_at_is_not_gone() {
        let error = |code| HvError {
            code,
            message: String::new(),
        };
        let ends_by = |code| {
            let mut looks = 0;
            until_gone(7, RESUME, || {
                looks += 1;
                match looks {
                    1 => Ok(()),
                    _ => Err(error(code)),
                }
            })
        };
        assert!(ends_by(AgentErrorCode::NoGuest).is_ok());
        let e = ends_by(AgentErrorCode::Hypervisor).unwrap_err();
        assert_eq!(e.code, AgentErrorCode::Hypervisor);
        let e = until_gone(7, Duration::ZERO, || Ok(())).unwrap_err();
        assert!(e.message.contains("does not go away"), "{e}");
    }

    fn info() -> DomainInfo {
        DomainInfo {
            domid: 7,
            hvm: false,
            dying: false,
            shutdown: None,
            paused: false,
            max_pages: 0,
            pages: 1,
            shared_info_frame: 0,
            max_vcpu: Some(0),
            cpupool: 0,
            uuid: [0; 16],
        }
    }

    #[test]
    fn a_guest_that_has_ended_by_itself_is_not_resumed() {
        let shutdown = |reason| DomainInfo {
            shutdown: Some(reason),
            ..info()
        };
        assert_eq!(next(&info()), Next::Done);
        assert_eq!(next(&shutdown(SHUTDOWN_SUSPEND)), Next::Resume);
        // Powered off, rebooted, crashed, and what else there is or will be.
        for reason in [0, 1, 3, 4, 5, 99] {
            assert_eq!(next(&shutdown(reason)), Next::Ended, "{reason}");
        }
        let paused = DomainInfo {
            paused: true,
            ..info()
        };
        assert_eq!(next(&paused), Next::Unpause);
        let dying = DomainInfo {
            dying: true,
            ..shutdown(3)
        };
        assert_eq!(next(&dying), Next::None);
    }

    #[test]
    fn a_guest_without_a_name_is_called_by_its_number() {
        assert_eq!(shown(Some("gäst\u{202e}".into()), 7), "gäst");
        assert_eq!(shown(Some("\n".into()), 7), "domain-7");
        assert_eq!(shown(None, 7), "domain-7");
    }
}
