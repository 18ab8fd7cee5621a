// SPDX-License-Identifier: GPL-2.0-only

//! The daemon itself: its host VMs, its jobs, and the control socket.

use crate::client::{Client, ClientError, CLIENT_TIMEOUT};
use crate::config::Config;
use crate::driver::{Driver, Pinned, Sessions};
use crate::exchange::SwapError;
use crate::host_vm::{self, HostVm};
use crate::http::Server;
use crate::identity::Source;
use crate::journal::{Journal, Record};
use crate::metrics::Metrics;
use crate::migrate::{migrate, Context as MigrateContext, Finished};
use crate::preflight::plan;
use crate::recovery::{Settled, Settling};
use crate::side::Side;
use crate::swap::swap;
use anyhow::Context;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tracing::{info, warn};
use vmbeam_uapi::sys::FEATURE_SWAP;
use vmbeam_wire::message::{
    CheckReport, DriverReport, Failure, FromDaemon, GuestRef, HostVmReport, JobReport,
    MigrateRequest, Phase, SwapReport, SwapRequest, ToDaemon,
};
use vmbeam_wire::Decoder;

/// Most command-line clients at once.
const MAX_CLIENTS: usize = 32;
/// Jobs that are remembered.
const MAX_JOBS: usize = 32;
/// How long a stop waits for jobs to end.
/// It is more than a job may take to end that is told to, and less than systemd waits
/// for (packaging/systemd/vmbeamd.service).
const STOP_PATIENCE: Duration = Duration::from_secs(150);

/// What all threads share.
#[derive(Debug)]
struct Shared {
    config: Config,
    driver: Arc<dyn Driver>,
    host_vms: Vec<Arc<HostVm>>,
    jobs: Mutex<Vec<Job>>,
    journal: Journal,
    metrics: Metrics,
    clients: AtomicUsize,
    /// Clients that have asked for something, and have not got all of the answer.
    answering: AtomicUsize,
    stop: Arc<AtomicBool>,
    /// No client is served any more.
    closed: AtomicBool,
}

/// A job, going on or over.
#[derive(Debug)]
struct Job {
    report: JobReport,
    /// Set to end it, if it can be ended.
    cancel: Option<Arc<AtomicBool>>,
    /// It brings to an end what another job, or another daemon, has begun. Nobody
    /// else touches these guests.
    settles: bool,
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    shared: Arc<Shared>,
}

fn failed(failure: Failure, message: &impl ToString) -> FromDaemon {
    FromDaemon::Error {
        failure,
        message: message.to_string(),
    }
}

impl Daemon {
    /// Listen on the control socket and connect to the agents, all of which can be asked for
    /// their domains at any time.
    pub fn start(config: Config, sessions: Arc<dyn Sessions>) -> anyhow::Result<Self> {
        let driver = Arc::new(Pinned::new(sessions));
        let sources = Source::all(&config, &*driver, false);
        Self::start_with(config, driver, sources)
    }

    /// The same with a driver that has seen domains already, and where to learn the UUID of
    /// each host VM.
    pub fn start_with(
        config: Config,
        driver: Arc<dyn Driver>,
        sources: Vec<Source>,
    ) -> anyhow::Result<Self> {
        let (journal, records, unreadable) = Journal::open(&config.state_dir)
            .with_context(|| format!("cannot use {}", config.state_dir.display()))?;
        let listener = listen(&config.control_socket)?;
        for file in unreadable {
            warn!("a migration's record cannot be used: {file}");
        }
        let stop = Arc::new(AtomicBool::new(false));
        let host_vms: Vec<_> = config
            .host_vms
            .iter()
            .zip(sources)
            .map(|(c, source)| HostVm::new(c.clone(), source, config.agent_timeout, stop.clone()))
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
            jobs: Mutex::default(),
            journal,
            metrics: Metrics::default(),
            clients: AtomicUsize::new(0),
            answering: AtomicUsize::new(0),
            stop,
            closed: AtomicBool::new(false),
        });
        // Before anybody can ask for something else.
        for record in records {
            settle_in_background(&shared, record);
        }
        if let Some(at) = shared.config.metrics.clone() {
            let (server, scraped, stop) = (Server::new(at), shared.clone(), shared.stop.clone());
            let result = spawn("metrics", move || {
                server.run(&stop, move || scraped.scrape())
            });
            if let Err(e) = result {
                warn!("no metrics: {e:#}");
            }
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
        // What is being settled waits for agents, and goes on in the next daemon.
        let running = |j: &Job| j.report.running && !j.settles;
        let answering = || self.shared.answering.load(Ordering::Relaxed) > 0;
        while self.shared.jobs().iter().any(running) || answering() {
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
        self.shared.journal.close();
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(run)
        .context("cannot start a thread")?;
    Ok(())
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
            let _leaving = Counted(&serving.clients);
            if let Err(e) = serve(&serving, stream) {
                warn!("dropped a client: {e}");
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
fn serve(shared: &Arc<Shared>, mut stream: UnixStream) -> Result<(), ClientError> {
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
        ToDaemon::Check => FromDaemon::Check(shared.check()),
        ToDaemon::List => FromDaemon::List(shared.list()),
        ToDaemon::Status => {
            FromDaemon::Status(shared.jobs().iter().map(|j| j.report.clone()).collect())
        }
        ToDaemon::Swap(request) => match shared.swap(&request, &answer) {
            Ok(report) => FromDaemon::Swapped(Box::new(report)),
            Err(e) => failed(e.failure, &e.message),
        },
        ToDaemon::Migrate(request) => {
            let finished = shared.migrate(&request, &answer);
            if let Some(record) = finished.unsettled {
                settle_in_background(shared, record);
            }
            match finished.result {
                Ok(report) => FromDaemon::Migrated(Box::new(report)),
                Err(e) => failed(e.failure, &e.message),
            }
        }
        ToDaemon::Plan { from, to, mode } => {
            let planned = shared
                .pair(&from, &to)
                .and_then(|host_vms| plan(&*shared.driver, host_vms, mode));
            match planned {
                Ok(report) => FromDaemon::Plan(report),
                Err(e) => failed(e.failure, &e.message),
            }
        }
        ToDaemon::Abort { job } => match shared.abort(job) {
            Ok(()) => FromDaemon::Done,
            Err(why) => failed(Failure::Refused, &why),
        },
    };
    answer.send(&last)
}

/// How long one attempt to settle a migration waits for agents.
const ATTEMPT: Duration = Duration::from_secs(60);
/// How long to wait between attempts.
const AGAIN: Duration = Duration::from_secs(5);

/// Bring a migration to an end, however often that has to be tried.
fn settle_in_background(shared: &Arc<Shared>, record: Record) {
    let here = |host_vm: &str| GuestRef {
        host_vm: host_vm.into(),
        guest: record.guest.clone(),
    };
    let (from, to) = (here(&record.from.host_vm), here(&record.to.host_vm));
    let (id, _) = shared.begin("settling", from, to, true);
    let settling = shared.clone();
    let result = spawn("settle", move || settling.settle(id, record));
    if let Err(e) = result {
        shared.phase(id, format!("cannot be settled: {e:#}"), false);
    }
}

/// A panic is a bug, but must not leave a job that goes on for ever.
fn caught<T>(run: impl FnOnce() -> Result<T, SwapError>) -> Result<T, SwapError> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_or_else(|_| {
        Err(SwapError {
            failure: Failure::Failed,
            message: "internal error; see vmbeamd's log".into(),
        })
    })
}

impl Shared {
    fn jobs(&self) -> MutexGuard<'_, Vec<Job>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn scrape(&self) -> String {
        let agents = self.host_vms.iter();
        self.metrics
            .scrape(agents.map(|vm| (vm.config.name.clone(), vm.is_connected())))
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
        CheckReport {
            daemon_version: crate::VERSION.into(),
            protocol: vmbeam_wire::VERSION,
            driver,
            agents: host_vm::reports(&self.host_vms),
            pairs: self.config.pairs.iter().cloned().collect(),
        }
    }

    fn list(&self) -> Vec<HostVmReport> {
        let ask = |vm: &HostVm| HostVmReport {
            name: vm.config.name.clone(),
            domid: vm.domid(),
            guests: vm.agent().and_then(|mut agent| agent.guests_soon()),
        };
        host_vm::side_by_side(&self.host_vms, ask)
    }

    fn host_vm(&self, name: &str) -> Result<&HostVm, SwapError> {
        self.host_vms
            .iter()
            .find(|vm| vm.config.name == name)
            .map(|vm| &**vm)
            .ok_or_else(|| SwapError {
                failure: Failure::Refused,
                message: format!("there is no host VM named {name} in vmbeamd's configuration"),
            })
    }

    /// Two host VMs that may exchange memory, and whose guests nobody settles.
    fn pair(&self, a: &str, b: &str) -> Result<(&HostVm, &HostVm), SwapError> {
        let refuse = |message: String| {
            Err(SwapError {
                failure: Failure::Refused,
                message,
            })
        };
        let host_vms = (self.host_vm(a)?, self.host_vm(b)?);
        if a == b {
            return refuse(format!(
                "source and destination are both host VM {a}; name two host VMs"
            ));
        }
        if !self.config.allows(a, b) {
            return refuse(format!(
                "host VMs {a} and {b} may not swap; add a [[pair]] with between = [\"{a}\", \"{b}\"] to vmbeamd's configuration to allow it"
            ));
        }
        if self.stop.load(Ordering::Relaxed) {
            return refuse("vmbeamd is stopping".into());
        }
        let touched = |j: &Job| {
            let vms = [&j.report.from.host_vm, &j.report.to.host_vm];
            j.settles && j.report.running && vms.iter().any(|vm| *vm == a || *vm == b)
        };
        if let Some(job) = self.jobs().iter().find(|j| touched(j)) {
            return refuse(format!(
                "an earlier migration of {} to {} is still being brought to an end: {}",
                job.report.from, job.report.to.host_vm, job.report.phase
            ));
        }
        Ok(host_vms)
    }

    /// Shows progress in the list of jobs, and to a client.
    fn progress<'a>(&'a self, id: u64, client: &'a Client) -> impl Fn(Phase, u64, u64) + Sync + 'a {
        move |phase, done, total| {
            self.phase(id, phase.text().into(), true);
            client.show(&FromDaemon::Progress { phase, done, total });
        }
    }

    fn swap(&self, request: &SwapRequest, client: &Client) -> Result<SwapReport, SwapError> {
        let host_vms = self.pair(&request.from.host_vm, &request.to.host_vm)?;
        let (id, _) = self.begin("swap", request.from.clone(), request.to.clone(), false);
        let progress = self.progress(id, client);
        let result = caught(|| swap(&*self.driver, host_vms, request, &progress));
        let outcome = match &result {
            Ok(r) if r.dry_run => format!("dry run: {} pages can be swapped", r.pages_swapped),
            Ok(r) if r.mismatches > 0 => format!("{} pages do not match", r.mismatches),
            Ok(r) => format!("swapped {} pages", r.pages_swapped),
            Err(e) => e.message.clone(),
        };
        self.phase(id, outcome, false);
        result
    }

    fn migrate(&self, request: &MigrateRequest, client: &Client) -> Finished {
        let refused = |error| Finished {
            result: Err(error),
            unsettled: None,
        };
        let host_vms = match self.pair(&request.from.host_vm, &request.to) {
            Ok(host_vms) => host_vms,
            Err(e) => return refused(e),
        };
        let to = GuestRef {
            host_vm: request.to.clone(),
            guest: request.from.guest.clone(),
        };
        let (id, cancel) = self.begin("migrate", request.from.clone(), to, false);
        let _ = client.send(&FromDaemon::Job { id });
        let progress = self.progress(id, client);
        let context = MigrateContext {
            driver: &*self.driver,
            journal: &self.journal,
            progress: &progress,
            cancel: &cancel,
            stop: &self.stop,
        };
        let finished = caught(|| Ok(migrate(context, host_vms, request))).unwrap_or_else(refused);
        if !request.dry_run {
            self.metrics.migration(&finished.result);
        }
        let outcome = match &finished.result {
            Ok(r) if r.dry_run && r.blockers.is_empty() => "dry run: possible".into(),
            Ok(r) if r.dry_run => format!("dry run: {}", r.blockers.join("; ")),
            Ok(r) => format!(
                "migrated: {} pages swapped, {} copied, down for {:.3} s",
                r.pages_swapped, r.pages_copied, r.seconds.downtime
            ),
            Err(e) => e.message.clone(),
        };
        self.phase(id, outcome, false);
        finished
    }

    fn abort(&self, id: u64) -> Result<(), String> {
        let jobs = self.jobs();
        let job = jobs
            .iter()
            .find(|j| j.report.id == id)
            .ok_or_else(|| format!("there is no job {id}"))?;
        match &job.cancel {
            _ if !job.report.running => Err(format!("job {id} has ended")),
            Some(cancel) => {
                info!(job = id, "to be cancelled");
                cancel.store(true, Ordering::Relaxed);
                Ok(())
            }
            None => Err(format!("job {id} cannot be cancelled")),
        }
    }

    /// Try until a migration has come to an end, or the daemon stops.
    fn settle(&self, id: u64, mut record: Record) {
        let vms = (
            self.host_vm(&record.from.host_vm),
            self.host_vm(&record.to.host_vm),
        );
        let (Ok(from), Ok(to)) = vms else {
            let why = "its host VMs are not in the configuration any more";
            return self.phase(id, format!("cannot be settled: {why}"), false);
        };
        let (mut from, mut to) = (Side::later(from), Side::later(to));
        while !self.stop.load(Ordering::Relaxed) {
            let mut settling = Settling {
                driver: &*self.driver,
                journal: &self.journal,
                from: &mut from,
                to: &mut to,
                record: &mut record,
                deadline: Instant::now() + ATTEMPT,
            };
            let outcome = match settling.settle() {
                Ok(Settled::AtSource) => format!("undone: the guest runs in {}", from.name()),
                Ok(Settled::AtDestination) => format!("completed: the guest runs in {}", to.name()),
                Ok(Settled::Lost) => "the guest was lost with its host VM".into(),
                Err(why) => {
                    warn!(job = id, "cannot settle a migration yet: {why}");
                    self.phase(id, why, true);
                    std::thread::sleep(AGAIN);
                    continue;
                }
            };
            return self.phase(id, outcome, false);
        }
    }

    /// Enter a job; gives its number, and what cancels it.
    fn begin(
        &self,
        what: &str,
        from: GuestRef,
        to: GuestRef,
        settles: bool,
    ) -> (u64, Arc<AtomicBool>) {
        let mut jobs = self.jobs();
        let id = jobs.last().map_or(1, |j| j.report.id + 1);
        info!(job = id, %from, %to, "{what}");
        if jobs.len() >= MAX_JOBS {
            // The oldest that has ended; with few host VMs few can be running.
            let at = jobs.iter().position(|j| !j.report.running).unwrap_or(0);
            jobs.remove(at);
        }
        let cancel = Arc::<AtomicBool>::default();
        jobs.push(Job {
            report: JobReport {
                id,
                from,
                to,
                phase: "starting".into(),
                running: true,
            },
            cancel: (what == "migrate").then(|| cancel.clone()),
            settles,
        });
        (id, cancel)
    }

    fn phase(&self, id: u64, phase: String, running: bool) {
        if let Some(job) = self.jobs().iter_mut().find(|j| j.report.id == id) {
            if !running {
                info!(job = id, "{phase}");
            }
            job.report.phase = phase;
            job.report.running = running;
        }
    }
}
