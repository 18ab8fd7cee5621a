// SPDX-License-Identifier: GPL-2.0-only

//! Talking to one agent.

mod patience;
mod requests;
mod time;
mod uuids;

use crate::config::HostVmConfig;
use crate::version;
use patience::Deadline;
pub use patience::Patience;
pub(crate) use requests::{or_nothing, parts};
use std::hash::{BuildHasher, Hasher};
use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};
pub(crate) use time::Reading;
use vmbeam_agent_protocol::{answer, AgentErrorCode, FromAgent, ListError, ToAgent, Toolstack};
use vmbeam_control_protocol::{AgentVersions, Traffic};
use vmbeam_wire::{encode_as, encode_old, Decoder, FrameError, PREVIOUS, VERSION};

/// How often to look whether the daemon is to stop.
const TICK: Duration = Duration::from_millis(500);
/// What is written at once: a write to a peer that reads slowly blocks for about a tick
/// for each part of this size that the kernel takes.
const WRITE_PART: usize = 32 << 10;
/// How often to say hello to an agent that does not answer.
const HELLO_AGAIN: Duration = Duration::from_secs(15);
/// Answers of an earlier conversation that are passed over before the first one
/// of this.
const MAX_STALE: u32 = 100_000;

/// Why an agent did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The socket failed.
    #[error("its port failed: {0}")]
    Io(#[from] std::io::Error),
    /// It closed the port, or its host VM is gone.
    #[error("its port was closed")]
    Closed,
    /// It took too long.
    #[error("it did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// It is of another release.
    #[error("{0}")]
    Version(FrameError),
    /// It does not keep to the protocol.
    #[error("it broke the protocol and was dropped: {0}")]
    Frame(FrameError),
    /// It sent an answer that makes no sense.
    #[error("it broke the protocol and was dropped: {0}")]
    Protocol(String),
    /// It sent a frame list that is not acceptable.
    #[error("its frame list is not acceptable and it was dropped: {0}")]
    List(#[from] ListError),
    /// It reports an error.
    #[error("{message}")]
    Agent {
        /// What sort of failure.
        code: AgentErrorCode,
        /// The same for a person.
        message: String,
    },
    /// Nobody would wait for its answer.
    #[error("it was not asked any more")]
    Unasked,
    /// Another agent has taken its place.
    #[error("it was restarted")]
    Restarted,
    /// The daemon is to stop.
    #[error("vmbeamd is stopping")]
    Stopping,
}

impl From<FrameError> for LinkError {
    fn from(e: FrameError) -> Self {
        match e {
            FrameError::Version(_) => Self::Version(e),
            e => Self::Frame(e),
        }
    }
}

impl LinkError {
    /// Whether the conversation cannot go on.
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Agent { code, .. } => *code == AgentErrorCode::NoSession,
            Self::Stopping | Self::Unasked => false,
            _ => true,
        }
    }
}

/// A conversation with an agent.
#[derive(Debug)]
pub struct Link {
    stream: UnixStream,
    decoder: Decoder,
    session: u64,
    request: u32,
    /// Hello has been answered: from now on everything must fit.
    greeted: bool,
    /// It has been answered once in this conversation: the agent is of this version.
    known: bool,
    traffic: Traffic,
    timeout: Duration,
    stop: Arc<AtomicBool>,
    /// What is going on now is finished although the daemon is to stop.
    regardless: bool,
    patience: Patience,
    /// What the agent said about itself.
    versions: AgentVersions,
}

pub(crate) fn unexpected(answer: &FromAgent) -> LinkError {
    LinkError::Protocol(format!(
        "{} is not an answer to this request",
        answer.name()
    ))
}

impl Link {
    /// Open the socket of a host VM's port. Nothing is said yet.
    pub fn connect(
        vm: &HostVmConfig,
        timeout: Duration,
        stop: Arc<AtomicBool>,
    ) -> std::io::Result<Self> {
        let stream = UnixStream::connect(&vm.socket)?;
        stream.set_read_timeout(Some(TICK))?;
        stream.set_write_timeout(Some(TICK))?;
        // Any number that an earlier conversation is unlikely to have had.
        let session = std::collections::hash_map::RandomState::new()
            .build_hasher()
            .finish();
        Ok(Self {
            stream,
            decoder: Decoder::lenient(),
            session,
            request: 0,
            greeted: false,
            known: false,
            traffic: Traffic::default(),
            timeout,
            stop,
            regardless: false,
            patience: Patience::default(),
            versions: AgentVersions {
                protocol: VERSION,
                agent: String::new(),
                hypervisor: String::new(),
                toolstack: Toolstack::default(),
                memory_end: 0,
                host_vm: Err("it has not said hello yet".into()),
            },
        })
    }

    /// What was sent and received so far.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// What the agent said about itself when it was greeted.
    pub fn versions(&self) -> &AgentVersions {
        &self.versions
    }

    fn send(&mut self, message: &ToAgent, deadline: &mut Deadline) -> Result<u32, LinkError> {
        self.request = self.request.wrapping_add(1);
        self.send_as(self.versions.protocol, message, deadline)?;
        Ok(self.request)
    }

    fn send_as(
        &mut self,
        version: u16,
        message: &ToAgent,
        deadline: &mut Deadline,
    ) -> Result<(), LinkError> {
        let bytes = encode_as(version, self.request, self.session, message)?;
        self.write(&bytes, deadline)
    }

    fn write(&mut self, bytes: &[u8], deadline: &mut Deadline) -> Result<(), LinkError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.stream.write(&rest[..rest.len().min(WRITE_PART)]) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(n) => rest = &rest[n..],
                Err(e) => match e.kind() {
                    ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut => {}
                    ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
                        return Err(LinkError::Closed);
                    }
                    _ => return Err(e.into()),
                },
            }
            if self.is_unwanted() {
                deadline.cut();
            }
            // Whoever took a part of a message gets no other one: this ends the
            // conversation.
            if !rest.is_empty() {
                deadline.check()?;
            }
        }
        self.traffic.messages += 1;
        self.traffic.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Whether nobody waits for an answer any more.
    fn is_unwanted(&self) -> bool {
        self.is_to_stop() || self.patience.is_cancelled()
    }

    fn is_to_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed) && !self.regardless
    }

    /// The next answer in this session, with its request number.
    fn receive(&mut self, deadline: &mut Deadline) -> Result<(u32, FromAgent), LinkError> {
        self.receive_any(deadline)
            .map(|(number, answer, _)| (number, answer))
    }

    /// The same with the version of its frame.
    fn receive_any(&mut self, deadline: &mut Deadline) -> Result<(u32, FromAgent, u16), LinkError> {
        let mut stale = 0;
        let mut late = false;
        loop {
            while let Some(frame) = self.decoder.next_frame()? {
                self.traffic.messages += 1;
                if frame.session == self.session {
                    return Ok((frame.request, answer(&frame)?, frame.version));
                }
                let started = frame.session == 0 && frame.decode() == Ok(FromAgent::Started);
                if self.greeted && started {
                    return Err(LinkError::Restarted);
                }
                // The port may still hold answers to the daemon before this
                // one, but only until the agent has seen our hello.
                stale += 1;
                if self.greeted || stale > MAX_STALE {
                    return Err(LinkError::Protocol(format!(
                        "an answer in session {:#x}, this is session {:#x}",
                        frame.session, self.session
                    )));
                }
            }
            if self.is_to_stop() {
                return Err(LinkError::Stopping);
            }
            if late {
                return Err(LinkError::Timeout(deadline.limit));
            }
            match self.decoder.fill(&mut self.stream) {
                Ok(0) if self.decoder.is_mid_frame() => {
                    return Err(LinkError::Protocol(
                        "it stopped in the middle of a message".into(),
                    ));
                }
                Ok(0) => return Err(LinkError::Closed),
                Ok(n) => self.traffic.bytes += n as u64,
                Err(e) => match e.kind() {
                    ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut => {}
                    ErrorKind::ConnectionReset => return Err(LinkError::Closed),
                    _ => return Err(e.into()),
                },
            }
            // Also when something came: an agent must not hold us up with
            // single bytes.
            if self.patience.is_cancelled() {
                deadline.cut();
            }
            late = deadline.is_over();
        }
    }

    /// Say hello until the agent answers or `patience` ends.
    ///
    /// Also done at the start of each job, because an agent that was restarted
    /// in between is a new one to us, which nothing but an answer can tell.
    pub fn hello(&mut self, patience: Option<Duration>) -> Result<(), LinkError> {
        let started = Instant::now();
        let first = self.request.wrapping_add(1);
        // A new agent's first words may follow the last ones of the old.
        self.greeted = false;
        loop {
            let mut deadline = Deadline::after(self.patience.limit(HELLO_AGAIN));
            let hello = ToAgent::Hello {
                daemon_version: version::VERSION.into(),
            };
            self.request = self.request.wrapping_add(1);
            if !self.known || self.versions.protocol != VERSION {
                // One of an old version answers only its own. Before ours, which it hangs
                // up at; in no session of ours, which one of this version would answer in.
                self.write(&encode_old(0, 0, &hello)?, &mut deadline)?;
                // One of the version before opens the session by this, and passes over ours.
                self.send_as(PREVIOUS, &hello, &mut deadline)?;
            }
            self.send_as(VERSION, &hello, &mut deadline)?;
            match self.hello_answer(first, &mut deadline) {
                Err(LinkError::Timeout(_)) => match patience {
                    Some(p) if started.elapsed() >= p => return Err(LinkError::Timeout(p)),
                    Some(_) if self.is_unwanted() => {
                        return Err(LinkError::Timeout(deadline.limit));
                    }
                    _ => {}
                },
                other => return other,
            }
        }
    }

    fn hello_answer(&mut self, first: u32, deadline: &mut Deadline) -> Result<(), LinkError> {
        loop {
            match self.receive_any(deadline)? {
                // The rest of what an agent said before it was restarted, or
                // an answer to one of several hellos.
                (request, _, _) if request.wrapping_sub(first) > u32::MAX / 2 => {
                    deadline.check()?;
                }
                (
                    _,
                    FromAgent::Hello {
                        agent_version,
                        hypervisor,
                        toolstack,
                        memory_end,
                        host_vm,
                    },
                    protocol,
                ) => {
                    self.versions = AgentVersions {
                        protocol,
                        agent: agent_version,
                        hypervisor,
                        toolstack,
                        memory_end,
                        host_vm,
                    };
                    self.known = true;
                    self.greeted = true;
                    self.decoder.settle();
                    return Ok(());
                }
                (_, FromAgent::Error { code, message }, _) => {
                    return Err(LinkError::Agent { code, message });
                }
                (_, other, _) => return Err(unexpected(&other)),
            }
        }
    }

    /// Ask, and hand every answer to `take` until the last one, which is
    /// returned.
    pub(crate) fn ask(
        &mut self,
        message: &ToAgent,
        take: impl FnMut(FromAgent) -> Result<(), LinkError>,
    ) -> Result<FromAgent, LinkError> {
        self.converse(message, take, self.timeout)
    }

    /// The same with a question that is answered at once, and only once.
    fn ask_within(&mut self, message: &ToAgent, limit: Duration) -> Result<FromAgent, LinkError> {
        let limit = limit.min(self.timeout);
        self.converse(message, |a| Err(unexpected(&a)), limit)
    }

    fn converse(
        &mut self,
        message: &ToAgent,
        mut take: impl FnMut(FromAgent) -> Result<(), LinkError>,
        limit: Duration,
    ) -> Result<FromAgent, LinkError> {
        // What was begun has a few seconds to end, but not each of many requests.
        if self.patience.ends(self.stop.load(Ordering::Relaxed)) {
            return Err(LinkError::Unasked);
        }
        let mut deadline = Deadline::after(self.patience.limit(limit));
        let request = self.send(message, &mut deadline)?;
        loop {
            let (number, answer) = self.receive(&mut deadline)?;
            if number != request {
                // A hello that was said again may be answered late.
                if matches!(answer, FromAgent::Hello { .. }) {
                    deadline.check()?;
                    continue;
                }
                return Err(LinkError::Protocol(format!(
                    "an answer to request {number}, this is request {request}"
                )));
            }
            match answer {
                FromAgent::Error { code, message } => {
                    return Err(LinkError::Agent { code, message });
                }
                last if last.is_last() => return Ok(last),
                // An answer may come in many parts; each has only what is left of the time.
                part => {
                    take(part)?;
                    if self.is_unwanted() {
                        deadline.cut();
                    }
                    deadline.check()?;
                }
            }
        }
    }

    /// Whether to go on although the daemon is to stop.
    pub fn set_regardless(&mut self, regardless: bool) {
        self.regardless = regardless;
    }

    /// How long answers are waited for from now on.
    pub fn set_patience(&mut self, patience: Patience) {
        self.patience = patience;
    }

    /// While nobody asks anything: whether the agent is still there. It has
    /// nothing to say now but late answers to hellos.
    pub fn check_idle(&mut self) -> Result<(), LinkError> {
        self.stream.set_nonblocking(true)?;
        let received = self.receive(&mut Deadline::after(Duration::ZERO));
        self.stream.set_nonblocking(false)?;
        match received {
            Err(LinkError::Timeout(_)) => Ok(()),
            Ok((_, FromAgent::Hello { .. })) => Ok(()),
            Ok((_, other)) => Err(LinkError::Protocol(format!(
                "{} without having been asked",
                other.name()
            ))),
            Err(e) => Err(e),
        }
    }
}
