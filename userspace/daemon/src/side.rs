// SPDX-License-Identifier: GPL-2.0-only

//! One of the two host VMs of a migration: its agent may go and come back.

use crate::host_vm::{AgentGuard, HostVm, ASKING};
use crate::link::{Link, LinkError, Patience};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmbeam_agent_protocol::Uuid;
use vmbeam_control_protocol::Traffic;

/// How often to look whether an agent is back.
const LOOK: Duration = Duration::from_millis(250);
/// How often to look whether its host VM is.
const PRESENCE: Duration = Duration::from_secs(5);

/// A host VM in a job.
#[derive(Debug)]
pub(crate) struct Side<'a> {
    pub(crate) vm: &'a HostVm,
    agent: Option<AgentGuard<'a>>,
    /// The domain that it must be in, if that has been decided.
    domid: Option<u32>,
    /// It is not waited for when the daemon is to stop, or nobody wants it any more.
    leaves: bool,
    /// How long to wait for its answers.
    pub(crate) patience: Patience,
    /// That of conversations that are over.
    traffic: Traffic,
    /// That of the conversation before this job.
    before: Traffic,
}

impl<'a> Side<'a> {
    /// With the agent, which must be there, and idle soon.
    pub(crate) fn take(vm: &'a HostVm) -> Result<Self, String> {
        Self::take_within(vm, Patience::default())
    }

    /// The same, and it is talked to with this patience from the beginning.
    pub(crate) fn take_within(vm: &'a HostVm, patience: Patience) -> Result<Self, String> {
        let agent = vm.agent_within(patience.at_most(ASKING))?;
        Ok(Self {
            vm,
            leaves: false,
            traffic: Traffic::default(),
            before: agent.traffic(),
            agent: Some(agent),
            domid: None,
            patience,
        })
    }

    /// Without the agent yet: for [`Side::insist`]. Nobody waits for it once this is set.
    pub(crate) fn later(vm: &'a HostVm, domid: u32, cancel: Arc<AtomicBool>) -> Self {
        Self {
            vm,
            domid: Some(domid),
            leaves: true,
            agent: None,
            patience: Patience {
                until: None,
                cancel: Some(cancel),
            },
            traffic: Traffic::default(),
            before: Traffic::default(),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.vm.config.name
    }

    /// Its domid now, which is that of its domain from now on.
    pub(crate) fn domid(&mut self) -> Result<u32, String> {
        let domid = self.vm.domid_while(|| !self.patience.is_over())?;
        self.expect(domid);
        Ok(domid)
    }

    /// The domain that its agent must be in whenever it is greeted.
    pub(crate) fn expect(&mut self, domid: u32) {
        self.domid = Some(domid);
        if let Some(agent) = &mut self.agent {
            agent.expect(domid);
        }
    }

    /// The host VM's UUID, once its agent has proven to be in it.
    pub(crate) fn uuid(&self) -> Option<Uuid> {
        self.agent.as_ref().and_then(AgentGuard::uuid)
    }

    /// Whether its agent has proven in this job to be in this domain, and its connection, on which
    /// nobody else can answer, stands.
    pub(crate) fn is_surely(&mut self, domid: u32, uuid: Option<Uuid>) -> bool {
        let agent = self.agent.as_ref().filter(|agent| agent.is_connected());
        let proven = agent.and_then(AgentGuard::uuid);
        let same = proven.is_some() && proven == uuid && self.domid == Some(domid);
        same && self.talk(Link::check_idle).is_ok()
    }

    /// What this job sent and received.
    pub(crate) fn traffic(&self) -> Traffic {
        let now = self.agent.as_ref().map_or(self.before, AgentGuard::traffic);
        self.traffic.and(now.since(self.before))
    }

    /// Start afresh with the agent.
    pub(crate) fn greet(&mut self) -> Result<(), String> {
        let patience = self.patience.clone();
        match &mut self.agent {
            Some(agent) => agent.greet_anew(patience),
            None => Err(format!("the agent of host VM {} is gone", self.name())),
        }
    }

    /// Talk to the agent, once. Although the daemon is to stop, an answer is waited
    /// for: without it the agent could not be asked to undo what was begun.
    pub(crate) fn talk<T>(
        &mut self,
        talk: impl FnOnce(&mut Link) -> Result<T, LinkError>,
    ) -> Result<T, String> {
        let patience = self.patience.clone();
        match &mut self.agent {
            Some(agent) => agent.with(|link| {
                link.set_regardless(true);
                link.set_patience(patience);
                talk(link)
            }),
            None => Err(format!("the agent of host VM {} is gone", self.name())),
        }
    }

    /// Talk to the agent; if it is lost, wait until it is back and do it again.
    pub(crate) fn insist<T>(
        &mut self,
        deadline: Instant,
        mut talk: impl FnMut(&mut Link) -> Result<T, LinkError>,
    ) -> Result<T, String> {
        let mut looked: Option<Instant> = None;
        loop {
            let result = match self.agent {
                Some(_) => self.talk(&mut talk).map(Some),
                None => self.reconnect().map(|()| None),
            };
            let lost = self.agent.as_ref().is_none_or(|a| !a.is_connected());
            match result {
                Err(e) if lost && Instant::now() < deadline && !self.leave() => {
                    tracing::debug!("waiting for host VM {}: {e}", self.name());
                    self.release();
                    // Nor does the agent of one that is gone come back.
                    if looked.is_none_or(|at| at.elapsed() >= PRESENCE) {
                        self.still_there()?;
                        looked = Some(Instant::now());
                    }
                    std::thread::sleep(LOOK);
                }
                Err(e) => return Err(e),
                Ok(Some(value)) => return Ok(value),
                Ok(None) => {}
            }
        }
    }

    /// An agent that does not come back is waited for as long as its host VM may be there.
    fn still_there(&self) -> Result<(), String> {
        let Some(domid) = self.domid else {
            return Ok(());
        };
        match self.vm.still_runs(domid)? {
            true => Ok(()),
            false => Err(format!(
                "host VM {} is domain {domid} no longer",
                self.name()
            )),
        }
    }

    fn leave(&self) -> bool {
        let set = |c: &Arc<AtomicBool>| c.load(Ordering::Relaxed);
        self.leaves && (self.vm.is_stopping() || self.patience.cancel.as_ref().is_some_and(set))
    }

    fn release(&mut self) {
        self.traffic = self.traffic();
        self.before = Traffic::default();
        self.agent = None;
    }

    fn reconnect(&mut self) -> Result<(), String> {
        let mut agent = self.vm.agent()?;
        self.before = agent.traffic();
        if let Some(domid) = self.domid {
            agent.expect(domid);
        }
        agent.with(|link| {
            link.set_regardless(true);
            Ok(())
        })?;
        agent.greet()?;
        self.agent = Some(agent);
        Ok(())
    }
}
