// SPDX-License-Identifier: GPL-2.0-only

//! The daemon itself: its host VMs, its jobs, and the control socket.

use crate::config::Config;
use crate::driver::Driver;
use crate::host_vm::HostVm;
use crate::swap::{swap, SwapError};
use anyhow::Context;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tracing::{info, warn};
use vmbeam_uapi::sys::FEATURE_SWAP;
use vmbeam_wire::message::{
    CheckReport, DriverReport, Failure, FromDaemon, HostVmReport, JobReport, SwapReport,
    SwapRequest, ToDaemon,
};
use vmbeam_wire::{encode, Decoder, FrameError};

/// Most command-line clients at once.
const MAX_CLIENTS: usize = 32;
/// How long a client may take to say what it wants.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Jobs that are remembered.
const MAX_JOBS: usize = 32;
/// How long a stop waits for jobs to end.
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// What all threads share.
#[derive(Debug)]
struct Shared {
    config: Config,
    driver: Arc<dyn Driver>,
    host_vms: Vec<Arc<HostVm>>,
    jobs: Mutex<Vec<JobReport>>,
    clients: AtomicUsize,
    stop: Arc<AtomicBool>,
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
    /// Listen on the control socket and connect to the agents.
    pub fn start(config: Config, driver: Arc<dyn Driver>) -> anyhow::Result<Self> {
        let listener = listen(&config.control_socket)?;
        let stop = Arc::new(AtomicBool::new(false));
        let host_vms: Vec<_> = config
            .host_vms
            .iter()
            .map(|c| Arc::new(HostVm::new(c.clone(), config.agent_timeout, stop.clone())))
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
            clients: AtomicUsize::new(0),
            stop,
        });
        let accepting = shared.clone();
        spawn("control", move || accept(&accepting, &listener))?;
        info!(socket = %shared.config.control_socket.display(), "listening");
        Ok(Self { shared })
    }

    /// Stop: take no more requests, and wait for the jobs to end. A job that
    /// has not begun to swap gives up; one that has goes on to the end.
    pub fn stop(self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // A last client, for the thread that accepts to see the flag.
        let _ = UnixStream::connect(&self.shared.config.control_socket);
        let _ = std::fs::remove_file(&self.shared.config.control_socket);
        let deadline = Instant::now() + STOP_PATIENCE;
        while self.shared.jobs().iter().any(|j| j.running) {
            if Instant::now() >= deadline {
                warn!("stopping although a job has not ended");
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
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
        if shared.stop.load(Ordering::Relaxed) {
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
            let _leaving = Leaving(serving.clone());
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

struct Leaving(Arc<Shared>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a client was dropped.
#[derive(Debug, thiserror::Error)]
enum ClientError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("it sent nothing complete within {} s", CLIENT_TIMEOUT.as_secs())]
    Slow,
}

/// A client's end of the socket, for answers from several threads.
struct Client {
    stream: Mutex<UnixStream>,
    request: u32,
    session: u64,
}

impl Client {
    fn send(&self, message: &FromDaemon) -> Result<(), ClientError> {
        let bytes = encode(self.request, self.session, message)?;
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(stream.write_all(&bytes)?)
    }
}

/// One request, its answers, and good-bye.
fn serve(shared: &Shared, mut stream: UnixStream) -> Result<(), ClientError> {
    stream.set_read_timeout(Some(CLIENT_TIMEOUT))?;
    stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
    let mut decoder = Decoder::strict();
    let deadline = Instant::now() + CLIENT_TIMEOUT;
    let mut answer = Client {
        stream: Mutex::new(stream.try_clone()?),
        request: 0,
        session: 0,
    };
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
    let last = match request {
        ToDaemon::Check => FromDaemon::Check(shared.check()),
        ToDaemon::List => FromDaemon::List(shared.list()),
        ToDaemon::Status => FromDaemon::Status(shared.jobs().clone()),
        ToDaemon::Swap(request) => match shared.swap(&request, &answer) {
            Ok(report) => FromDaemon::Swapped(Box::new(report)),
            Err(e) => failed(e.failure, &e.message),
        },
    };
    answer.send(&last)
}

impl Shared {
    fn jobs(&self) -> MutexGuard<'_, Vec<JobReport>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
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
            driver,
            agents: self.host_vms.iter().map(|vm| vm.report()).collect(),
            pairs: self.config.pairs.iter().cloned().collect(),
        }
    }

    fn list(&self) -> Vec<HostVmReport> {
        self.host_vms
            .iter()
            .map(|vm| HostVmReport {
                name: vm.config.name.clone(),
                domid: vm.domid(),
                guests: vm.agent().and_then(|mut agent| {
                    agent.greet()?;
                    agent.with(|l| l.guests())
                }),
            })
            .collect()
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

    fn swap(&self, request: &SwapRequest, client: &Client) -> Result<SwapReport, SwapError> {
        let (a, b) = (&request.from.host_vm, &request.to.host_vm);
        let host_vms = (self.host_vm(a)?, self.host_vm(b)?);
        if a == b {
            return Err(SwapError {
                failure: Failure::Refused,
                message: format!("both guests are in host VM {a}; name guests of two host VMs"),
            });
        }
        if !self.config.allows(a, b) {
            return Err(SwapError {
                failure: Failure::Refused,
                message: format!(
                    "host VMs {a} and {b} may not swap; add a [[pair]] with between = [\"{a}\", \"{b}\"] to vmbeamd's configuration to allow it"
                ),
            });
        }
        if self.stop.load(Ordering::Relaxed) {
            let message = "vmbeamd is stopping".into();
            return Err(SwapError {
                failure: Failure::Refused,
                message,
            });
        }
        let id = self.begin(request);
        let progress = |phase: vmbeam_wire::message::Phase, done, total| {
            self.phase(id, phase.text().into(), true);
            // The job goes on if its client is gone.
            let _ = client.send(&FromDaemon::Progress { phase, done, total });
        };
        // A job that panics is a bug, but must not stay "running" for ever.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            swap(&*self.driver, host_vms, request, &progress)
        }))
        .unwrap_or_else(|_| {
            Err(SwapError {
                failure: Failure::Failed,
                message: "internal error; see vmbeamd's log".into(),
            })
        });
        let outcome = match &result {
            Ok(r) if r.dry_run => format!("dry run: {} pages can be swapped", r.pages_swapped),
            Ok(r) if r.mismatches > 0 => format!("{} pages do not match", r.mismatches),
            Ok(r) => format!("swapped {} pages", r.pages_swapped),
            Err(e) => e.message.clone(),
        };
        info!(job = id, "{outcome}");
        self.phase(id, outcome, false);
        result
    }

    fn begin(&self, request: &SwapRequest) -> u64 {
        let mut jobs = self.jobs();
        let id = jobs.last().map_or(1, |j| j.id + 1);
        info!(job = id, from = %request.from, to = %request.to, "swap");
        if jobs.len() >= MAX_JOBS {
            // The oldest that has ended; with few host VMs few can be running.
            let at = jobs.iter().position(|j| !j.running).unwrap_or(0);
            jobs.remove(at);
        }
        jobs.push(JobReport {
            id,
            from: request.from.clone(),
            to: request.to.clone(),
            phase: "starting".into(),
            running: true,
        });
        id
    }

    fn phase(&self, id: u64, phase: String, running: bool) {
        if let Some(job) = self.jobs().iter_mut().find(|j| j.id == id) {
            job.phase = phase;
            job.running = running;
        }
    }
}
