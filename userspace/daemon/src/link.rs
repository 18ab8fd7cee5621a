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
    AgentErrorCode, AgentVersions, Digest, FromAgent, Guest, ToAgent, MAX_DIGEST_PAGES,
};
use vmbeam_wire::{encode, Decoder, FrameError, FrameList, FrameListBuilder, ListError, PfnRun};

/// How often to look whether the daemon is to stop.
const TICK: Duration = Duration::from_millis(500);
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

/// A conversation with an agent.
#[derive(Debug)]
pub struct Link {
    stream: UnixStream,
    decoder: Decoder,
    session: u64,
    request: u32,
    /// Hello has been answered: from now on everything must fit.
    greeted: bool,
    bytes: u64,
    timeout: Duration,
    stop: Arc<AtomicBool>,
    /// What the agent said about itself.
    versions: AgentVersions,
}

fn unexpected(answer: &FromAgent) -> LinkError {
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
        stream.set_write_timeout(Some(timeout))?;
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
            bytes: 0,
            timeout,
            stop,
            versions: AgentVersions {
                agent: String::new(),
                hypervisor: String::new(),
                memory_end: 0,
            },
        })
    }

    /// Bytes sent and received so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What the agent said about itself when it was greeted.
    pub fn versions(&self) -> &AgentVersions {
        &self.versions
    }

    fn send(&mut self, message: &ToAgent) -> Result<u32, LinkError> {
        self.request = self.request.wrapping_add(1);
        let bytes = encode(self.request, self.session, message)?;
        self.stream.write_all(&bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(self.request)
    }

    /// The next answer in this session, with its request number.
    fn receive(&mut self, deadline: Instant) -> Result<(u32, FromAgent), LinkError> {
        let mut stale = 0;
        let mut late = false;
        loop {
            while let Some(frame) = self.decoder.next_frame()? {
                if frame.session == self.session {
                    return Ok((frame.request, frame.decode()?));
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
            if self.stop.load(Ordering::Relaxed) {
                return Err(LinkError::Stopping);
            }
            if late {
                return Err(LinkError::Timeout(self.timeout));
            }
            match self.decoder.fill(&mut self.stream) {
                Ok(0) if self.decoder.is_mid_frame() => {
                    return Err(LinkError::Protocol(
                        "it stopped in the middle of a message".into(),
                    ));
                }
                Ok(0) => return Err(LinkError::Closed),
                Ok(n) => self.bytes += n as u64,
                Err(e) => match e.kind() {
                    ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut => {}
                    ErrorKind::ConnectionReset => return Err(LinkError::Closed),
                    _ => return Err(e.into()),
                },
            }
            // Also when something came: an agent must not hold us up with
            // single bytes.
            late = Instant::now() >= deadline;
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
            self.send(&ToAgent::Hello {
                daemon_version: crate::VERSION.into(),
            })?;
            match self.hello_answer(first, Instant::now() + HELLO_AGAIN) {
                Err(LinkError::Timeout(_)) => match patience {
                    Some(p) if started.elapsed() >= p => return Err(LinkError::Timeout(p)),
                    _ => {}
                },
                other => return other,
            }
        }
    }

    fn hello_answer(&mut self, first: u32, deadline: Instant) -> Result<(), LinkError> {
        loop {
            match self.receive(deadline)? {
                // The rest of what an agent said before it was restarted, or
                // an answer to one of several hellos.
                (request, _) if request.wrapping_sub(first) > u32::MAX / 2 => {}
                (
                    _,
                    FromAgent::Hello {
                        agent_version,
                        hypervisor,
                        memory_end,
                    },
                ) => {
                    self.versions = AgentVersions {
                        agent: agent_version,
                        hypervisor,
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
    fn ask(
        &mut self,
        message: &ToAgent,
        mut take: impl FnMut(FromAgent) -> Result<(), LinkError>,
    ) -> Result<FromAgent, LinkError> {
        let request = self.send(message)?;
        let mut late_hellos = 0;
        loop {
            let (number, answer) = self.receive(Instant::now() + self.timeout)?;
            if number != request {
                // A hello that was said again may be answered late.
                late_hellos += 1;
                if matches!(answer, FromAgent::Hello { .. }) && late_hellos < MAX_STALE {
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
                part => take(part)?,
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

    /// Let a guest run. Goes through although the daemon is stopping.
    pub fn unpause(&mut self, guest: u32) -> Result<(), LinkError> {
        let stop = std::mem::take(&mut self.stop);
        let answer = self.ask(&ToAgent::Unpause { guest }, |a| Err(unexpected(&a)));
        self.stop = stop;
        match answer? {
            FromAgent::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
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
            FromAgent::FramesChunk { runs, excluded } => {
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
        for part in parts(runs) {
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
        let received = self.receive(Instant::now());
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

/// Split into requests of at most [`DIGEST_REQUEST`] pages.
fn parts(runs: &[PfnRun]) -> Vec<Vec<PfnRun>> {
    let mut parts = Vec::new();
    let mut part = Vec::new();
    let mut room = DIGEST_REQUEST;
    for run in runs {
        let mut pfn = run.pfn;
        let mut left = u64::from(run.nr);
        while left > 0 {
            let take = left.min(room);
            // At most DIGEST_REQUEST.
            part.push(PfnRun {
                pfn,
                nr: take as u32,
            });
            pfn += take;
            left -= take;
            room -= take;
            if room == 0 {
                parts.push(std::mem::take(&mut part));
                room = DIGEST_REQUEST;
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
        let parts = parts(&runs);
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
