// SPDX-License-Identifier: GPL-2.0-only

//! A host VM and the connection to its agent.

mod start;

use crate::config::{Domid, HostVmConfig};
use crate::driver::Driver;
use crate::events::Events;
use crate::identity::Source;
use crate::link::{Link, LinkError, Patience, Reading};
use crate::maintenance::Maintenance;
use crate::port;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tracing::{info, warn};
use vmbeam_agent_protocol::{Guest, Uuid};
use vmbeam_control_protocol::{AgentReport, AgentVersions, EventKind, Identity, Traffic};
use vmbeam_wire::VERSION;
use vmbeam_xen::command::run_while;

/// How often to look after an idle connection, or try for a new one.
const KEEP: Duration = Duration::from_secs(1);
/// How long an agent that was there before may take to say hello again.
const HELLO_PATIENCE: Duration = Duration::from_secs(30);

/// How long a job waits for another one that may only be asking something, as
/// `vmbeam list` does.
pub(crate) const ASKING: Duration = Duration::from_secs(10);
/// How long an agent that was just lost, as one is that restarts, is expected to be back.
const BACK: Duration = Duration::from_secs(5);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(50);

/// How long an agent may take to say which guests there are, when a person asks.
const SHOWN_WITHIN: Duration = Duration::from_secs(5);

/// How long a command of the host's toolstack may take that only asks something.
pub(crate) const ASK_XL: Duration = Duration::from_secs(30);

/// What is known about an agent.
#[derive(Clone, Debug)]
enum Agent {
    Connected(AgentVersions),
    Missing(String),
}

/// A host VM.
#[derive(Debug)]
pub struct HostVm {
    /// Its configuration.
    pub config: HostVmConfig,
    pub(crate) source: Source,
    pub(crate) driver: Arc<dyn Driver>,
    timeout: Duration,
    stop: Arc<AtomicBool>,
    slot: Mutex<Slot>,
    agent: Mutex<Agent>,
    /// When it was lost last.
    lost: Mutex<Option<Instant>>,
    /// How often an agent has answered at the beginning of a conversation, or was to forget what it
    /// had been told.
    conversations: AtomicU64,
    maintenance: Arc<Maintenance>,
    events: Arc<Events>,
}

/// Where the connection is.
#[derive(Debug)]
enum Slot {
    /// There is none.
    Empty,
    /// Nobody uses it.
    Idle(Box<Link>),
    /// A job has it.
    Busy,
}

/// A panic of one job must not take the others with it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The exclusive use of a host VM's agent.
#[derive(Debug)]
pub struct AgentGuard<'a> {
    vm: &'a HostVm,
    link: Option<Box<Link>>,
    /// The domain that it must be in, if that has been decided.
    domid: Option<u32>,
    /// Where it has proven to be.
    identity: Option<Identity>,
}

impl HostVm {
    /// A host VM whose agent is not connected yet.
    pub(crate) fn new(
        config: HostVmConfig,
        (source, driver): (Source, Arc<dyn Driver>),
        timeout: Duration,
        (stop, maintenance, events): (Arc<AtomicBool>, Arc<Maintenance>, Arc<Events>),
    ) -> Self {
        let agent = Mutex::new(Agent::Missing("not tried yet".into()));
        Self {
            config,
            source,
            driver,
            timeout,
            stop,
            slot: Mutex::new(Slot::Empty),
            agent,
            lost: Mutex::new(None),
            conversations: AtomicU64::new(0),
            maintenance,
            events,
        }
    }

    /// How long its agent, or what that runs, may be silent.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Its domid now.
    pub fn domid(&self) -> Result<u32, String> {
        self.domid_while(|| true)
    }

    /// The same, for as long as somebody wants to know it.
    pub(crate) fn domid_while(&self, wanted: impl Fn() -> bool) -> Result<u32, String> {
        let command = match &self.config.domid {
            Domid::Fixed(domid) => return Ok(*domid),
            Domid::Command(command) => command,
        };
        let name = &self.config.name;
        let (program, arguments) = command
            .split_first()
            .ok_or("no command to learn the domid")?;
        let shown = command.join(" ");
        let mut ask = Command::new(program);
        ask.args(arguments).arg(name).process_group(0);
        let out = run_while(&mut ask, ASK_XL, wanted)
            .map_err(|e| format!("cannot learn the domid of host VM {name}: `{shown}`: {e}"))?;
        if !out.status.success() {
            let why = out.err.lines().next().unwrap_or("it says nothing").trim();
            return Err(format!(
                "host VM {name} is not running, or cannot be found: `{shown}`: {why}"
            ));
        }
        out.out
            .trim()
            .parse()
            .map_err(|_| format!("`{shown} {name}` printed no domid: {:?}", out.out))
    }

    /// Whether the agent is in the host VM's domain: what has this domid, or the name.
    fn prove(&self, domid: Option<u32>, versions: &AgentVersions) -> Result<Identity, String> {
        let domid = domid.map_or_else(|| self.domid(), Ok)?;
        self.source.prove(&self.config, domid, &versions.host_vm)
    }

    /// Whether this host VM is the one that an agent says it is in; its domid if so.
    pub(crate) fn is_meant_by(&self, versions: &AgentVersions) -> Option<u32> {
        self.prove(None, versions).ok().map(|i| i.domid)
    }

    /// Whether the daemon is to stop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Connect, greet and look after the agent until the daemon stops.
    pub fn keep_connected(&self) {
        let mut last = None;
        while !self.stop.load(Ordering::Relaxed) {
            let renamed = self.is_renamed();
            let mut slot = lock(&self.slot);
            let missing = match &mut *slot {
                Slot::Empty => true,
                Slot::Busy => false,
                Slot::Idle(_) if renamed => {
                    *slot = Slot::Empty;
                    self.missing("the host VM has another name by now".into());
                    false
                }
                Slot::Idle(link) => match link.check_idle() {
                    Ok(()) => false,
                    Err(e) => {
                        warn!(host_vm = self.config.name, "agent dropped: {e}");
                        *slot = Slot::Empty;
                        self.lose(e.to_string());
                        false
                    }
                },
            };
            drop(slot);
            if missing {
                let failed = self.try_connect();
                if let Some(e) = failed.as_ref().filter(|_| failed != last) {
                    warn!(host_vm = self.config.name, "agent: {e}");
                }
                last = failed;
            }
            std::thread::sleep(KEEP);
        }
        let mut slot = lock(&self.slot);
        if matches!(*slot, Slot::Idle(_)) {
            *slot = Slot::Empty;
        }
    }

    /// Whether what replaces another host VM has got its name. Its port takes one connection at
    /// a time, which is that of the name then.
    fn is_renamed(&self) -> bool {
        self.config.replaces.is_some() && self.is_connected() && self.is_down()
    }

    /// Whether it is one that replaces another, and there is none now.
    pub(crate) fn is_spare(&self) -> bool {
        self.config.replaces.is_some() && !self.is_connected() && self.is_down()
    }

    /// Gives what went wrong after somebody had answered.
    fn try_connect(&self) -> Option<String> {
        let socket = self.config.socket.display();
        // What it was may still listen there.
        if self.config.replaces.is_some() && self.config.socket.exists() {
            if let Err(e) = self.domid() {
                self.missing(e);
                return None;
            }
        }
        // All sockets of the host are looked through for that.
        let taken = self.config.socket.exists() && port::is_taken(&self.config.socket);
        let mut link = match Link::connect(&self.config, self.timeout, self.stop.clone()) {
            Ok(link) => link,
            Err(e) => {
                self.missing(format!(
                    "cannot connect to {socket}: {e}; is the host VM running, with a virtio-serial port on this socket?"
                ));
                return None;
            }
        };
        self.missing(if taken {
            format!("somebody else is connected to {socket}, which takes one at a time; end it (`ss -xp | grep {socket}`): another vmbeamd, perhaps")
        } else {
            format!("{socket} is open, but nothing answers; is vmbeam-agent running in the management VM?")
        });
        // Not under the lock: this lasts until the management VM is up.
        match link.hello(None) {
            Ok(()) => {
                let versions = link.versions().clone();
                info!(host_vm = self.config.name, ?versions, "agent connected");
                self.connected(versions);
                self.conversations.fetch_add(1, Ordering::Relaxed);
                *lock(&self.slot) = Slot::Idle(Box::new(link));
                None
            }
            Err(LinkError::Stopping) => None,
            Err(e) => {
                self.missing(e.to_string());
                Some(e.to_string())
            }
        }
    }

    fn missing(&self, why: String) {
        let mut agent = lock(&self.agent);
        if let Agent::Connected(_) = &*agent {
            let kind = EventKind::AgentDisappears;
            self.events.host_vm(kind, &self.config.name, Some(&why));
        }
        *agent = Agent::Missing(why);
    }

    fn connected(&self, versions: AgentVersions) {
        let mut agent = lock(&self.agent);
        if let Agent::Missing(_) = &*agent {
            let kind = EventKind::AgentAppears;
            self.events.host_vm(kind, &self.config.name, None);
        }
        *agent = Agent::Connected(versions);
    }

    /// The same of one that was there.
    fn lose(&self, why: String) {
        self.missing(why);
        *lock(&self.lost) = Some(Instant::now());
    }

    fn is_just_lost(&self) -> bool {
        lock(&self.lost).is_some_and(|at| at.elapsed() < BACK)
    }

    /// The exclusive use of the agent, if nobody else has it.
    pub fn agent(&self) -> Result<AgentGuard<'_>, String> {
        let mut slot = lock(&self.slot);
        match std::mem::replace(&mut *slot, Slot::Busy) {
            Slot::Idle(link) => Ok(AgentGuard {
                vm: self,
                link: Some(link),
                domid: None,
                identity: None,
            }),
            Slot::Busy => Err(format!(
                "host VM {} is busy with another job, and does one at a time; wait for it (`vmbeam status`), or cancel it (`vmbeam abort`)",
                self.config.name
            )),
            Slot::Empty => {
                *slot = Slot::Empty;
                let why = match &*lock(&self.agent) {
                    Agent::Missing(why) => why.clone(),
                    Agent::Connected(_) => "it was just lost".into(),
                };
                Err(format!(
                    "the agent of host VM {} is not there: {why}",
                    self.config.name
                ))
            }
        }
    }

    /// The same, but whoever only asks the agent something has a while to end, and an agent that
    /// was just lost one to come back.
    pub fn agent_soon(&self) -> Result<AgentGuard<'_>, String> {
        self.agent_within(ASKING)
    }

    /// The same within less.
    pub fn agent_within(&self, limit: Duration) -> Result<AgentGuard<'_>, String> {
        let deadline = Instant::now() + limit;
        loop {
            let waits = match *lock(&self.slot) {
                Slot::Busy => true,
                Slot::Empty => self.is_just_lost(),
                Slot::Idle(_) => false,
            };
            if !waits || Instant::now() >= deadline {
                return self.agent();
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Whether its agent is connected.
    pub fn is_connected(&self) -> bool {
        matches!(*lock(&self.agent), Agent::Connected(_))
    }

    /// Whether somebody works on it.
    pub(crate) fn is_in_maintenance(&self) -> bool {
        self.maintenance.has(&self.config.name)
    }

    /// For a person. Asks the host's toolstack.
    pub fn report(&self) -> AgentReport {
        let (connected, problem) = match lock(&self.agent).clone() {
            Agent::Connected(versions) => match outdated(&self.config.name, &versions) {
                None => (Some(versions), None),
                problem => (None, problem),
            },
            Agent::Missing(why) => (None, Some(why)),
        };
        let identity = connected.as_ref().map(|v| self.prove(None, v));
        AgentReport {
            host_vm: self.config.name.clone(),
            socket: self.config.socket.display().to_string(),
            domid_fixed: matches!(self.config.domid, Domid::Fixed(_)),
            connected,
            problem,
            identity,
        }
    }
}

/// Why an agent is of no use but to end what was begun, if so.
fn outdated(host_vm: &str, versions: &AgentVersions) -> Option<String> {
    (versions.protocol != VERSION).then(|| {
        format!(
            "the agent of host VM {host_vm} speaks version {} of the protocol, vmbeamd version {VERSION}: with it, only what was begun before is brought to an end; install the same release in its management VM",
            versions.protocol
        )
    })
}

/// Asks of all host VMs at once, so that one that is silent delays only itself.
pub(crate) fn side_by_side<T: Send>(
    host_vms: &[Arc<HostVm>],
    ask: impl Fn(&HostVm) -> T + Sync,
) -> Vec<T> {
    std::thread::scope(|s| {
        let asked: Vec<_> = host_vms.iter().map(|vm| s.spawn(|| ask(vm))).collect();
        asked.into_iter().filter_map(|a| a.join().ok()).collect()
    })
}

/// Those that there should be.
pub(crate) fn expected(host_vms: &[Arc<HostVm>]) -> Vec<Arc<HostVm>> {
    let spare = side_by_side(host_vms, HostVm::is_spare);
    let all = host_vms.iter().cloned().zip(spare);
    all.filter_map(|(vm, spare)| (!spare).then_some(vm))
        .collect()
}

/// All agents; of one that is not where it should be, where it is.
pub(crate) fn reports(host_vms: &[Arc<HostVm>]) -> Vec<AgentReport> {
    let host_vms = &*expected(host_vms);
    let mut reports = side_by_side(host_vms, HostVm::report);
    for report in &mut reports {
        let (Some(versions), Some(Err(why))) = (&report.connected, &mut report.identity) else {
            continue;
        };
        let others = host_vms.iter().map(|vm| (vm, &vm.config.name));
        for (vm, name) in others.filter(|(_, name)| **name != report.host_vm) {
            if let Some(domid) = vm.is_meant_by(versions) {
                why.push_str(&format!(
                    "; it is in host VM {name}, domain {domid}: {} is the socket of {name}",
                    report.socket
                ));
            }
        }
    }
    reports
}

impl AgentGuard<'_> {
    /// Name of the host VM.
    pub fn name(&self) -> &str {
        &self.vm.config.name
    }

    /// Its domid now, which is that of its domain until the agent is let go.
    pub fn domid(&mut self) -> Result<u32, String> {
        let domid = self.vm.domid()?;
        self.expect(domid);
        Ok(domid)
    }

    /// The domain that the agent must be in when it is greeted next.
    pub(crate) fn expect(&mut self, domid: u32) {
        self.domid = Some(domid);
    }

    /// What was sent and received so far.
    pub fn traffic(&self) -> Traffic {
        self.link
            .as_ref()
            .map(|link| link.traffic())
            .unwrap_or_default()
    }

    /// Whether the conversation can go on.
    pub fn is_connected(&self) -> bool {
        self.link.is_some()
    }

    /// Talk to the agent. An error that leaves the conversation of no use
    /// drops it; the agent can come back on a new one.
    pub fn with<T>(
        &mut self,
        talk: impl FnOnce(&mut Link) -> Result<T, LinkError>,
    ) -> Result<T, String> {
        let result = match self.link.as_mut() {
            Some(link) => talk(link),
            None => Err(LinkError::Closed),
        };
        result.map_err(|e| {
            self.failed(&e);
            format!("agent of host VM {}: {e}", self.name())
        })
    }

    /// Greet the agent again, at the start of a job, and have it prove where it is.
    pub fn greet(&mut self) -> Result<(), String> {
        self.greet_within(HELLO_PATIENCE)
    }

    /// The same at the start of what has not been begun, for which an agent of the version before
    /// does not know enough.
    pub(crate) fn greet_anew(&mut self, patience: Patience) -> Result<(), String> {
        let limit = patience.limit(HELLO_PATIENCE);
        self.with(|link| {
            link.set_patience(patience);
            Ok(())
        })?;
        self.greet_within(limit)?;
        match self
            .link
            .as_ref()
            .and_then(|l| outdated(self.name(), l.versions()))
        {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }

    fn greet_within(&mut self, limit: Duration) -> Result<(), String> {
        let versions = self.with(|link| {
            link.hello(Some(limit))?;
            Ok(link.versions().clone())
        })?;
        let proof = self.vm.prove(self.domid, &versions);
        self.vm.connected(versions);
        self.identity = Some(proof?);
        Ok(())
    }

    /// The host VM's UUID, once the agent has proven to be in it.
    pub(crate) fn uuid(&self) -> Option<Uuid> {
        self.identity.map(|i| i.uuid)
    }

    /// Greet it for a person who waits: not for as long as a job would.
    fn greet_soon(&mut self) -> Result<(), String> {
        self.with(|link| {
            link.set_patience(Patience {
                until: Some(Instant::now() + SHOWN_WITHIN),
                cancel: None,
            });
            Ok(())
        })?;
        self.greet_within(SHOWN_WITHIN)
    }

    /// The guests, for a person who waits.
    pub fn guests_soon(&mut self) -> Result<Vec<Guest>, String> {
        self.greet_soon()?;
        self.with(Link::guests)
    }

    /// What its clock shows, the same.
    pub(crate) fn time_soon(&mut self) -> Result<Option<Reading>, String> {
        self.greet_soon()?;
        self.with(Link::time)
    }

    fn failed(&mut self, error: &LinkError) {
        if error.is_fatal() {
            warn!(host_vm = self.name(), "agent dropped: {error}");
            self.link = None;
            self.vm.lose(error.to_string());
        }
    }
}

impl Drop for AgentGuard<'_> {
    fn drop(&mut self) {
        if let Some(link) = &mut self.link {
            link.set_regardless(false);
            link.set_patience(Patience::default());
        }
        *lock(&self.vm.slot) = self.link.take().map_or(Slot::Empty, Slot::Idle);
    }
}
