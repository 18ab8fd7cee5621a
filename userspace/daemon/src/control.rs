// SPDX-License-Identifier: GPL-2.0-only

//! The daemon itself: its host VMs, its jobs, and the control socket.

use crate::boot;
use crate::client::{failed, Client, ClientError, CLIENT_TIMEOUT};
use crate::clock::clocks;
use crate::config::Config;
use crate::driver::{Driver, Pinned, Sessions};
use crate::evacuations::Evacuations;
use crate::events::Events;
use crate::exchange::SwapError;
use crate::execute::Work;
use crate::held::Held;
use crate::hooks::Hooks;
use crate::host_vm::{self, HostVm};
use crate::http::Server;
use crate::identity::Source;
use crate::jobs::{Begun, Jobs};
use crate::journal::{About, Journal};
use crate::known::expect;
use crate::maintenance::Maintenance;
use crate::memory::memories;
use crate::metrics::Metrics;
use crate::pauses::Pauses;
use crate::preflight::plan;
use crate::settle::ends;
use crate::shared::{spawn, Shared};
use crate::unsettled::Unsettled;
use crate::upkeeps::Upkeeps;
use crate::version::VERSION;
use crate::work::Left;
use anyhow::Context;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{info, warn};
use vmbeam_control_protocol::{
    CheckReport, DriverReport, EventKind, Failure, FromDaemon, GuestRef, HostVmReport, JobKind,
    ToDaemon,
};
use vmbeam_uapi::sys::FEATURE_SWAP;
use vmbeam_wire::Decoder;

/// Most command-line clients at once.
const MAX_CLIENTS: usize = 32;
/// How long somebody who only wants to see the guests waits for an agent that is busy.
const LISTING: Duration = Duration::from_secs(1);
/// How long a stop waits for jobs to end.
/// It is more than a job may take to end that is told to, and less than systemd waits
/// for (packaging/systemd/vmbeamd.service).
const STOP_PATIENCE: Duration = Duration::from_secs(150);

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    shared: Arc<Shared>,
}

impl Daemon {
    /// Listen on the control socket and connect to the agents, all of which can be asked for
    /// their domains at any time.
    pub fn start(config: Config, sessions: Arc<dyn Sessions>) -> anyhow::Result<Self> {
        let driver = Arc::new(Pinned::new(sessions));
        let sources = Source::all(&config, &*driver, false);
        Self::start_with(config, driver, sources, Arc::default())
    }

    /// The same with a driver that has seen domains already, where to learn the UUID of each
    /// host VM, and what its log is told.
    pub fn start_with(
        config: Config,
        driver: Arc<dyn Driver>,
        sources: Vec<Source>,
        events: Arc<Events>,
    ) -> anyhow::Result<Self> {
        let (journal, records, unreadable) = Journal::open(&config.state_dir)
            .with_context(|| format!("cannot use {}", config.state_dir.display()))?;
        let maintenance = Arc::new(Maintenance::load(&config.state_dir)?);
        let hooks = Hooks::load(config.hooks.clone(), &config.state_dir)?;
        let pauses = Pauses::load(&config.state_dir);
        let listener = listen(&config.control_socket)?;
        let stop = Arc::new(AtomicBool::new(false));
        let host_vms: Vec<_> = config
            .host_vms
            .iter()
            .zip(sources)
            .map(|(c, source)| {
                let shared = (stop.clone(), maintenance.clone(), events.clone());
                let known = (source, driver.clone());
                HostVm::new(c.clone(), known, config.agent_timeout, shared)
            })
            .map(Arc::new)
            .collect();
        for vm in &host_vms {
            let vm = vm.clone();
            spawn(&format!("agent-{}", vm.config.name), move || {
                vm.keep_connected()
            })?;
        }
        let shared = Arc::new(Shared {
            config,
            driver,
            host_vms,
            maintenance,
            held: Held::default(),
            jobs: Jobs::new(journal, events.clone()),
            evacuations: Evacuations::default(),
            upkeeps: Upkeeps::default(),
            events,
            hooks,
            metrics: Metrics::default(),
            pauses,
            clients: AtomicUsize::new(0),
            answering: AtomicUsize::new(0),
            stop,
            closed: AtomicBool::new(false),
        });
        let mut recorded = Vec::new();
        let mut settle =
            |boot: &str, (from, to): (GuestRef, GuestRef), what| -> anyhow::Result<()> {
                let kind = match boot::is_another(boot) {
                    true => JobKind::Left,
                    false => JobKind::Settle,
                };
                recorded.push((from.clone(), to.clone()));
                let job = shared.jobs.begin(kind, from, to)?;
                let settling = shared.clone();
                spawn("settle", move || settling.settle(&job, what))
            };
        // Before anybody can ask for something else.
        for record in records {
            expect(&*shared.driver, &record);
            let (boot, ends) = (record.boot.clone(), ends(&record));
            let what = Unsettled::Known(Box::new(Work::recovered(record)));
            settle(&boot, ends, what)?;
        }
        // A guest may stand still because of it, and nobody else knows where its memory is.
        let is_known = unreadable.iter().all(|file| file.about.is_some());
        for file in unreadable {
            warn!("a migration's record cannot be used: {file}");
            let About {
                boot,
                guest,
                from,
                to,
            } = file.about.unwrap_or_default();
            let [from, to] = [from, to].map(|end| GuestRef {
                host_vm: end.host_vm,
                guest: guest.clone(),
            });
            settle(&boot, (from, to), Unsettled::Written(file.id))?;
        }
        // Of which guest one is left must not move meanwhile.
        if is_known {
            shared.resume_hooks(&recorded)?;
        }
        // They wait for those.
        shared.resume_evacuations()?;
        shared.resume_upkeeps()?;
        if let Some(at) = shared.config.metrics.clone() {
            let (server, scraped, stop) = (Server::new(at), shared.clone(), shared.stop.clone());
            let result = spawn("metrics", move || {
                server.run(&stop, move || scraped.scrape())
            });
            if let Err(e) = result {
                warn!("no metrics: {e:#}");
            }
        }
        if shared.config.autostart {
            let watching = shared.clone();
            spawn("autostart", move || watching.watch_autostart())?;
        }
        let accepting = shared.clone();
        spawn("control", move || accept(&accepting, &listener))?;
        info!(socket = %shared.config.control_socket.display(), "listening");
        Ok(Self { shared })
    }

    /// Stop: begin no more jobs, and wait for those that there are to end. One that
    /// has not begun to swap gives up; one that has goes on to the end. Meanwhile
    /// clients are told so.
    pub fn stop(self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + STOP_PATIENCE;
        let answering = || self.shared.answering.load(Ordering::Relaxed) > 0;
        while self.shared.jobs.are_running() || answering() {
            if Instant::now() >= deadline {
                warn!("stopping although a job has not ended");
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.shared.closed.store(true, Ordering::Relaxed);
        // A last client, for the thread that accepts to see the flag.
        let _ = UnixStream::connect(&self.shared.config.control_socket);
        let _ = std::fs::remove_file(&self.shared.config.control_socket);
        // From here on the next daemon may have it.
        self.shared.jobs.journal.close();
    }
}

/// Make the control socket, for root only. A socket that nobody listens on is
/// left from an earlier run and is replaced.
fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    if UnixStream::connect(path).is_ok() {
        anyhow::bail!("another vmbeamd listens on {}", path.display());
    }
    let _ = std::fs::remove_file(path);
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot protect {}", path.display()))?;
    Ok(listener)
}

fn accept(shared: &Arc<Shared>, listener: &UnixListener) {
    for stream in listener.incoming() {
        if shared.closed.load(Ordering::Relaxed) {
            return;
        }
        let stream = match stream {
            Ok(stream) => stream,
            Err(e) => {
                warn!("cannot accept a client: {e}");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if shared.clients.fetch_add(1, Ordering::Relaxed) >= MAX_CLIENTS {
            shared.clients.fetch_sub(1, Ordering::Relaxed);
            warn!("too many clients at once; one was turned away");
            continue;
        }
        let serving = shared.clone();
        let result = spawn("client", move || {
            // Counted down even if serving panics.
            let leaving = Counted(&serving.clients);
            let mut unsettled = None;
            if let Err(e) = serve(&serving, stream, &mut unsettled) {
                warn!("dropped a client: {e}");
            }
            drop(leaving);
            // Here: one more thread might be one too many.
            if let Some((job, what)) = unsettled {
                serving.settle(&job, what);
            }
        });
        if let Err(e) = result {
            shared.clients.fetch_sub(1, Ordering::Relaxed);
            warn!("{e:#}");
        }
    }
}

/// Counts down whatever happens.
struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One request, its answers, and good-bye.
fn serve(
    shared: &Arc<Shared>,
    mut stream: UnixStream,
    unsettled: &mut Left,
) -> Result<(), ClientError> {
    stream.set_read_timeout(Some(CLIENT_TIMEOUT))?;
    stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
    let mut decoder = Decoder::strict();
    let deadline = Instant::now() + CLIENT_TIMEOUT;
    let mut answer = Client::new(stream.try_clone()?);
    let frame = loop {
        match decoder.next_frame() {
            Ok(Some(frame)) => break frame,
            Ok(None) => {}
            Err(e) => {
                // Tell, if the client still listens, and hang up.
                let _ = answer.send(&failed(Failure::Failed, &e));
                return Err(e.into());
            }
        }
        if Instant::now() >= deadline {
            return Err(ClientError::Slow);
        }
        match decoder.fill(&mut stream) {
            Ok(0) if decoder.is_mid_frame() => return Err(ClientError::Slow),
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Err(ClientError::Slow),
            Err(e) => return Err(e.into()),
        }
    };
    answer.request = frame.request;
    answer.session = frame.session;
    let request = match frame.decode::<ToDaemon>() {
        Ok(request) => request,
        Err(e) => {
            let _ = answer.send(&failed(Failure::Failed, &e));
            return Err(e.into());
        }
    };
    shared.answering.fetch_add(1, Ordering::Relaxed);
    let _answering = Counted(&shared.answering);
    let last = match request {
        ToDaemon::Evacuate(request) => match shared.evacuate(request) {
            Ok(job) => {
                let _ = answer.send(&FromDaemon::Job { id: job });
                match shared.evacuations.watch(job, &answer) {
                    Some(end) => end,
                    None => return Ok(()),
                }
            }
            Err(e) => failed(e.failure, &e.message),
        },
        ToDaemon::Watch { job } => match shared.watch(job, &answer) {
            Some(end) => end,
            None => return Ok(()),
        },
        ToDaemon::Work(request) => match shared.begin_upkeep(&request) {
            Ok((id, false)) => FromDaemon::Taken { id },
            Ok((job, true)) => match shared.attend(job, &answer) {
                Some(end) => end,
                None => return Ok(()),
            },
            Err(e) => failed(e.failure, &e.message),
        },
        ToDaemon::WorkOn { job } => match shared.attend(job, &answer) {
            Some(end) => end,
            None => return Ok(()),
        },
        ToDaemon::Say { job, line } => shared.said(job, line),
        ToDaemon::End { job, report } => shared.reported(job, report),
        ToDaemon::Events => match shared.events.show(&answer, || {
            shared.is_stopping() && !shared.jobs.are_running()
        }) {
            Some(end) => end,
            None => return Ok(()),
        },
        ToDaemon::Check => FromDaemon::Check(shared.check()),
        ToDaemon::List => FromDaemon::List(shared.list()),
        ToDaemon::Status => FromDaemon::Status(shared.jobs.reports()),
        ToDaemon::Swap(request) => match shared.swap(&request, &answer) {
            Ok(report) => FromDaemon::Swapped(Box::new(report)),
            Err(e) => failed(e.failure, &e.message),
        },
        ToDaemon::Migrate(request) => {
            let begun = |job: &Begun| {
                let _ = answer.send(&FromDaemon::Job { id: job.id });
            };
            let (result, left) = shared.migrate(&request, begun, |m| answer.show(m));
            *unsettled = left;
            match result {
                Ok(report) => FromDaemon::Migrated(Box::new(report)),
                Err(e) => failed(e.failure, &e.message),
            }
        }
        ToDaemon::Plan { from, to, mode } => {
            let planned = shared
                .pair(&from, &to)
                .and_then(|host_vms| shared.jobs.free(&from, &to).map(|()| host_vms))
                .and_then(|host_vms| plan(&*shared.driver, host_vms, mode));
            match planned {
                Ok(report) => FromDaemon::Plan(report),
                Err(e) => failed(e.failure, &e.message),
            }
        }
        ToDaemon::Abort { job } => done(shared.abort(job)),
        ToDaemon::Dismiss { job } => done(shared.forget(job)),
        ToDaemon::Memory => FromDaemon::Memory(memories(&shared.host_vms)),
        ToDaemon::Maintenance => FromDaemon::Maintenance(shared.maintenance.names()),
        ToDaemon::SetMaintenance { host_vm, on } => match shared.maintain(&host_vm, on) {
            Ok(()) => FromDaemon::Done,
            Err(e) => failed(e.failure, &e.message),
        },
    };
    answer.send(&last)
}

fn done(result: Result<(), String>) -> FromDaemon {
    match result {
        Ok(()) => FromDaemon::Done,
        Err(why) => failed(Failure::Refused, &why),
    }
}

impl Shared {
    fn scrape(&self) -> String {
        let agents = host_vm::expected(&self.host_vms).into_iter();
        let agents = agents.map(|vm| (vm.config.name.clone(), vm.is_connected()));
        self.metrics.scrape(agents, memories(&self.host_vms))
    }

    fn check(&self) -> CheckReport {
        let driver = self
            .driver
            .info()
            .map_err(|e| e.to_string())
            .map(|i| DriverReport {
                can_swap: i.features & FEATURE_SWAP != 0,
                batch_pairs: i.batch_pairs,
                max_pairs: i.max_pairs,
            });
        let pairs: Vec<_> = self.config.pairs.iter().cloned().collect();
        CheckReport {
            daemon_version: VERSION.into(),
            protocol: vmbeam_wire::VERSION,
            driver,
            agents: host_vm::reports(&self.host_vms),
            clocks: clocks(&self.host_vms, &pairs),
            pairs,
        }
    }

    fn list(&self) -> Vec<HostVmReport> {
        let ask = |vm: &HostVm| HostVmReport {
            name: vm.config.name.clone(),
            domid: vm.domid(),
            guests: vm
                .agent_within(LISTING)
                .and_then(|mut agent| agent.guests_soon()),
            maintenance: vm.is_in_maintenance(),
            held: self.held.get(&vm.config.name),
        };
        host_vm::side_by_side(&host_vm::expected(&self.host_vms), ask)
    }

    /// Somebody begins to work on a host VM, or has done so.
    fn maintain(&self, name: &str, on: bool) -> Result<(), SwapError> {
        let before = self.host_vm(name)?.is_in_maintenance();
        self.maintenance.set(name, on).map_err(|e| SwapError {
            failure: Failure::Failed,
            message: format!("cannot note the maintenance of host VM {name}: {e}"),
        })?;
        info!(host_vm = name, on, "maintenance");
        match (before, on) {
            (false, true) => self
                .events
                .host_vm(EventKind::MaintenanceBegins, name, None),
            (true, false) => self.events.host_vm(EventKind::MaintenanceEnds, name, None),
            _ => {}
        }
        Ok(())
    }
}
