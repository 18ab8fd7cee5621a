// SPDX-License-Identifier: GPL-2.0-only

//! Talking to one agent.

use crate::config::HostVmConfig;
use std::hash::{BuildHasher, Hasher};
use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmbeam_wire::message::{
    AgentErrorCode, AgentVersions, Digest, Facts, FromAgent, Guest, ToAgent, Toolstack, Traffic,
    MAX_DIGEST_PAGES, MAX_PART, PAGE,
};
use vmbeam_wire::{encode, Decoder, FrameError, FrameList, FrameListBuilder, ListError, PfnRun};

/// How often to look whether the daemon is to stop.
const TICK: Duration = Duration::from_millis(500);
/// What is written at once: a write to a peer that reads slowly blocks for about a tick
/// for each part of this size that the kernel takes.
const WRITE_PART: usize = 32 << 10;
/// How long an agent may take over what it answers within a few seconds.
const PROMPT: Duration = Duration::from_secs(60);
/// An agent that is there answers within this time, if only that there is nothing yet. To
/// drop it earlier would take longer than to wait.
const GRACE: Duration = Duration::from_secs(5);
/// How often to say hello to an agent that does not answer.
const HELLO_AGAIN: Duration = Duration::from_secs(15);
/// Answers of an earlier conversation that are passed over before the first one
/// of this.
const MAX_STALE: u32 = 100_000;
/// Pages that one request for digests asks for.
const DIGEST_REQUEST: u64 = 16 << 10;
const _: () = assert!(DIGEST_REQUEST <= MAX_DIGEST_PAGES);

/// Why an agent did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The socket failed.
    #[error("its port failed: {0}")]
    Io(#[from] std::io::Error),
    /// It closed the port, or its host VM is gone.
    #[error("its port was closed")]
    Closed,
    /// It was silent for too long.
    #[error("it did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// It does not keep to the protocol.
    #[error("it broke the protocol and was dropped: {0}")]
    Frame(#[from] FrameError),
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
    /// Another agent has taken its place.
    #[error("it was restarted")]
    Restarted,
    /// The daemon is to stop.
    #[error("vmbeamd is stopping")]
    Stopping,
}

impl LinkError {
    /// Whether the conversation cannot go on.
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Agent { code, .. } => *code == AgentErrorCode::NoSession,
            Self::Stopping => false,
            _ => true,
        }
    }
}

/// When nobody wants an answer any more. One is waited for 5 seconds all the same.
#[derive(Clone, Debug, Default)]
pub struct Patience {
    /// Then,
    pub until: Option<Instant>,
    /// or when this is set.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl Patience {
    /// How long to wait for what may take this long.
    fn limit(&self, limit: Duration) -> Duration {
        self.until.map_or(limit, |until| {
            limit.min(until.saturating_duration_since(Instant::now()).max(GRACE))
        })
    }

    fn is_cancelled(&self) -> bool {
        let set = |c: &Arc<AtomicBool>| c.load(Ordering::Relaxed);
        self.cancel.as_ref().is_some_and(set)
    }
}

/// When a request must be over, whatever the agent does meanwhile: take it slowly, answer
/// in many small parts, or say nothing.
#[derive(Clone, Copy, Debug)]
struct Deadline {
    at: Instant,
    /// The time that there was, for a person.
    limit: Duration,
}

impl Deadline {
    fn after(limit: Duration) -> Self {
        let at = Instant::now() + limit;
        Self { at, limit }
    }

    /// Nobody wants the answer any more.
    fn cut(&mut self) {
        let grace = Self::after(GRACE);
        if grace.at < self.at {
            *self = grace;
        }
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.at
    }

    fn check(&self) -> Result<(), LinkError> {
        if self.is_over() {
            return Err(LinkError::Timeout(self.limit));
        }
        Ok(())
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
            decoder: Decoder::resyncing(),
            session,
            request: 0,
            greeted: false,
            traffic: Traffic::default(),
            timeout,
            stop,
            regardless: false,
            patience: Patience::default(),
            versions: AgentVersions {
                agent: String::new(),
                hypervisor: String::new(),
                toolstack: Toolstack::default(),
                memory_end: 0,
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
        let bytes = encode(self.request, self.session, message)?;
        let mut rest = &bytes[..];
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
        Ok(self.request)
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
        let mut stale = 0;
        let mut late = false;
        loop {
            while let Some(frame) = self.decoder.next_frame()? {
                self.traffic.messages += 1;
                if frame.session == self.session {
                    return Ok((frame.request, frame.decode()?));
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
            let mut deadline = Deadline::after(HELLO_AGAIN);
            let hello = ToAgent::Hello {
                daemon_version: crate::VERSION.into(),
            };
            self.send(&hello, &mut deadline)?;
            match self.hello_answer(first, &mut deadline) {
                Err(LinkError::Timeout(_)) => match patience {
                    Some(p) if started.elapsed() >= p => return Err(LinkError::Timeout(p)),
                    _ => {}
                },
                other => return other,
            }
        }
    }

    fn hello_answer(&mut self, first: u32, deadline: &mut Deadline) -> Result<(), LinkError> {
        loop {
            match self.receive(deadline)? {
                // The rest of what an agent said before it was restarted, or
                // an answer to one of several hellos.
                (request, _) if request.wrapping_sub(first) > u32::MAX / 2 => deadline.check()?,
                (
                    _,
                    FromAgent::Hello {
                        agent_version,
                        hypervisor,
                        toolstack,
                        memory_end,
                    },
                ) => {
                    self.versions = AgentVersions {
                        agent: agent_version,
                        hypervisor,
                        toolstack,
                        memory_end,
                    };
                    self.greeted = true;
                    self.decoder.settle();
                    return Ok(());
                }
                (_, FromAgent::Error { code, message }) => {
                    return Err(LinkError::Agent { code, message });
                }
                (_, other) => return Err(unexpected(&other)),
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

    /// All guests of the host VM.
    pub fn guests(&mut self) -> Result<Vec<Guest>, LinkError> {
        match self.ask(&ToAgent::ListGuests, |a| Err(unexpected(&a)))? {
            FromAgent::Guests(guests) => Ok(guests),
            other => Err(unexpected(&other)),
        }
    }

    /// Pause a guest; says whether it was paused already.
    pub fn pause(&mut self, guest: u32) -> Result<bool, LinkError> {
        match self.ask(&ToAgent::Pause { guest }, |a| Err(unexpected(&a)))? {
            FromAgent::Paused { was_paused } => Ok(was_paused),
            other => Err(unexpected(&other)),
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

    /// Ask for something whose only answer is that it was done.
    fn demand(&mut self, message: &ToAgent) -> Result<(), LinkError> {
        match self.ask(message, |a| Err(unexpected(&a)))? {
            FromAgent::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Let a guest run. Goes through although the daemon is stopping.
    pub fn unpause(&mut self, guest: u32) -> Result<(), LinkError> {
        let regardless = std::mem::replace(&mut self.regardless, true);
        let result = self.demand(&ToAgent::Unpause { guest });
        self.regardless = regardless;
        result
    }

    /// What can move to or from there.
    pub fn facts(&mut self) -> Result<Facts, LinkError> {
        match self.ask(&ToAgent::Facts, |a| Err(unexpected(&a)))? {
            FromAgent::Facts(facts) => Ok(facts),
            other => Err(unexpected(&other)),
        }
    }

    /// Begin to save a guest.
    pub fn save(&mut self, guest: u32, external: bool) -> Result<(), LinkError> {
        self.demand(&ToAgent::Send { guest, external })
    }

    /// What there is of the guest that is being saved; true with the end.
    pub fn pull(&mut self) -> Result<(Vec<u8>, bool), LinkError> {
        match self.ask_within(&ToAgent::Pull, PROMPT)? {
            FromAgent::Part { data, end } => Ok((data, end)),
            other => Err(unexpected(&other)),
        }
    }

    /// Begin to restore a guest.
    pub fn restore(&mut self, name: &str, external: bool) -> Result<(), LinkError> {
        let name = name.to_owned();
        self.demand(&ToAgent::Receive { name, external })
    }

    /// Hand over the next bytes of it; says how many were taken.
    pub fn push(&mut self, data: &[u8]) -> Result<usize, LinkError> {
        let data = &data[..data.len().min(MAX_PART)];
        let message = ToAgent::Push {
            data: data.to_vec(),
        };
        match self.ask_within(&message, PROMPT)? {
            FromAgent::Taken { bytes } if bytes as usize <= data.len() => Ok(bytes as usize),
            other => Err(unexpected(&other)),
        }
    }

    /// All was pushed: the guest, once it is complete.
    pub fn finish(&mut self) -> Result<Option<u32>, LinkError> {
        match self.ask_within(&ToAgent::Finish, PROMPT)? {
            FromAgent::Restored { guest } => Ok(guest),
            other => Err(unexpected(&other)),
        }
    }

    /// Give up what is being saved or restored.
    pub fn abort(&mut self) -> Result<(), LinkError> {
        self.demand(&ToAgent::Abort)
    }

    /// Let a guest run, in whatever state its saving left it.
    pub fn resume(&mut self, guest: u32) -> Result<(), LinkError> {
        self.demand(&ToAgent::Resume { guest })
    }

    /// Destroy a guest that does not run.
    pub fn destroy(&mut self, guest: u32) -> Result<(), LinkError> {
        self.demand(&ToAgent::Destroy { guest })
    }

    /// The contents of some pages, one after the other.
    pub fn read_pages(&mut self, guest: u32, runs: &[PfnRun]) -> Result<Vec<u8>, LinkError> {
        let pages: usize = runs.iter().map(|r| r.nr as usize).sum();
        let runs = runs.to_vec();
        match self.ask(&ToAgent::ReadPages { guest, runs }, |a| Err(unexpected(&a)))? {
            FromAgent::Pages { data } if data.len() == pages * PAGE => Ok(data),
            other => Err(unexpected(&other)),
        }
    }

    /// Replace the contents of some pages.
    pub fn write_pages(
        &mut self,
        guest: u32,
        runs: &[PfnRun],
        data: Vec<u8>,
    ) -> Result<(), LinkError> {
        let runs = runs.to_vec();
        self.demand(&ToAgent::WritePages { guest, runs, data })
    }

    /// A guest's frame list, checked: in order, without overlaps, and within
    /// the memory that the agent says its host VM has.
    pub fn frames(
        &mut self,
        guest: u32,
        mut progress: impl FnMut(u64),
    ) -> Result<FrameList, LinkError> {
        let mut list = FrameListBuilder::within(self.versions.memory_end);
        let last = self.ask(&ToAgent::Frames { guest }, |answer| match answer {
            FromAgent::FramesChunk {
                runs,
                excluded,
                more,
            } => {
                list.expect(runs.len() + more as usize);
                runs.into_iter().try_for_each(|r| list.push_run(r))?;
                excluded
                    .into_iter()
                    .try_for_each(|e| list.push_excluded(e))?;
                progress(list.pages());
                Ok(())
            }
            other => Err(unexpected(&other)),
        })?;
        match last {
            FromAgent::FramesEnd { pages } => Ok(list.finish(pages)?),
            other => Err(unexpected(&other)),
        }
    }

    /// The digests of some pages, in the order asked for.
    pub fn digests(
        &mut self,
        guest: u32,
        runs: &[PfnRun],
        mut progress: impl FnMut(u64),
    ) -> Result<Vec<(u64, Digest)>, LinkError> {
        let mut all = Vec::new();
        for part in parts(runs, DIGEST_REQUEST) {
            let mut wanted = part
                .iter()
                .flat_map(|r| (0..u64::from(r.nr)).map(|i| r.pfn + i));
            let last = self.ask(
                &ToAgent::Digest {
                    guest,
                    runs: part.clone(),
                },
                |answer| {
                    let FromAgent::DigestChunk { pfn, digests } = answer else {
                        return Err(unexpected(&answer));
                    };
                    for (i, digest) in digests.into_iter().enumerate() {
                        if wanted.next() != pfn.checked_add(i as u64) {
                            return Err(LinkError::Protocol(format!(
                                "a digest of page {:#x}, which is not the next one asked for",
                                pfn.wrapping_add(i as u64)
                            )));
                        }
                        all.push((pfn + i as u64, digest));
                    }
                    progress(all.len() as u64);
                    Ok(())
                },
            )?;
            match last {
                FromAgent::Done if wanted.next().is_none() => {}
                FromAgent::Done => {
                    return Err(LinkError::Protocol("fewer digests than asked for".into()));
                }
                other => return Err(unexpected(&other)),
            }
        }
        Ok(all)
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

/// Split into requests of at most `most` pages.
pub(crate) fn parts(runs: &[PfnRun], most: u64) -> Vec<Vec<PfnRun>> {
    let mut parts = Vec::new();
    let mut part = Vec::new();
    let mut room = most;
    for run in runs {
        let mut pfn = run.pfn;
        let mut left = u64::from(run.nr);
        while left > 0 {
            let take = left.min(room);
            // At most run.nr.
            part.push(PfnRun {
                pfn,
                nr: take as u32,
            });
            pfn += take;
            left -= take;
            room -= take;
            if room == 0 {
                parts.push(std::mem::take(&mut part));
                room = most;
            }
        }
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_for_digests_are_bounded() {
        let runs = [
            PfnRun { pfn: 0, nr: 10 },
            PfnRun {
                pfn: 100,
                nr: 3 * DIGEST_REQUEST as u32,
            },
            PfnRun {
                pfn: 1 << 30,
                nr: 1,
            },
        ];
        let parts = parts(&runs, DIGEST_REQUEST);
        let sizes: Vec<u64> = parts
            .iter()
            .map(|p| p.iter().map(|r| u64::from(r.nr)).sum())
            .collect();
        assert_eq!(sizes, [DIGEST_REQUEST, DIGEST_REQUEST, DIGEST_REQUEST, 11]);
        let pages = |runs: &[PfnRun]| -> Vec<u64> {
            runs.iter()
                .flat_map(|r| (0..u64::from(r.nr)).map(|i| r.pfn + i))
                .collect()
        };
        assert_eq!(pages(&parts.concat()), pages(&runs));
    }
}
