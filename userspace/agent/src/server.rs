// SPDX-License-Identifier: GPL-2.0-only

//! Answering the daemon.

use crate::definitions;
use crate::error::HvError;
use crate::hypervisor::Hypervisor;
use crate::list::frame_list;
use crate::transfer::Transfer;
use std::collections::hash_map::Entry;
use std::collections::HashMap;
use std::io::{BufWriter, Read, Write};
use std::time::{Instant, UNIX_EPOCH};
use tracing::{debug, info, warn};
use vmbeam_agent_protocol::{
    AgentErrorCode, Digest, FromAgent, PfnRun, ToAgent, Toolstack, Uuid, DIGESTS_PER_CHUNK, PAGE,
};
use vmbeam_wire::{encode, Decoder, Frame, FrameError, Message};
use vmbeam_xen::{PageKind, PageRun};
use xxhash_rust::xxh3::xxh3_128;

/// Pages that are mapped and hashed at once.
const DIGEST_BATCH: usize = 1024;

/// Why a conversation ended other than by the daemon closing it.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The stream failed.
    #[error("the port failed: {0}")]
    Io(#[from] std::io::Error),
    /// The daemon does not keep to the protocol.
    #[error("the daemon's side sent something unacceptable: {0}")]
    Frame(#[from] FrameError),
}

/// An agent: a hypervisor and what has to be remembered between requests.
#[derive(Debug)]
pub struct Agent<H> {
    hypervisor: H,
    /// Asked for once: that takes a while, and it is what this agent was started with.
    toolstack: Option<Toolstack>,
    session: Option<u64>,
    /// The pages of guests as listed in this session. Digests refer to them.
    pages: HashMap<u32, Vec<PageRun>>,
    /// The guest that is on its way, if there is one.
    transfer: Transfer,
    /// The UUID of the guest that is restored next, if the daemon knows it.
    expected: Option<Uuid>,
    /// The daemon has been told that an agent has started.
    announced: bool,
}

fn bad_request(message: String) -> HvError {
    HvError {
        code: AgentErrorCode::BadRequest,
        message,
    }
}

/// Bytes of answers that are written at once. A write to a serial port is a way to the
/// device model and back, whatever its size.
const WRITTEN_AT_ONCE: usize = 64 << 10;

/// Where the answers to one request go.
struct Answers<'a, S: Write> {
    stream: BufWriter<&'a mut S>,
    request: u32,
    session: u64,
}

impl<S: Write> Answers<'_, S> {
    /// One of them. It is on its way when [`Answers::end`] was called.
    fn send(&mut self, message: &FromAgent) -> Result<(), ServeError> {
        let encode = |message: &FromAgent| {
            message.check().map_err(FrameError::Message)?;
            encode(self.request, self.session, message)
        };
        // What the daemon does not take ends the conversation, and so would the next one.
        let bytes = encode(message).or_else(|e| {
            let message = format!("the answer ({}) cannot be sent: {e}", message.name());
            warn!("{message}");
            let code = AgentErrorCode::Hypervisor;
            encode(&FromAgent::Error { code, message })
        })?;
        self.stream.write_all(&bytes)?;
        Ok(())
    }

    fn end(&mut self) -> Result<(), ServeError> {
        self.stream.flush()?;
        Ok(())
    }
}

impl<H: Hypervisor> Agent<H> {
    /// An agent for this hypervisor.
    pub fn new(hypervisor: H) -> Self {
        Self {
            hypervisor,
            toolstack: None,
            session: None,
            pages: HashMap::new(),
            transfer: Transfer::default(),
            expected: None,
            announced: false,
        }
    }

    /// Talk to the daemon until it closes the stream.
    ///
    /// An error means that this conversation is beyond repair, not that the
    /// agent is: call again with the next one, or with the same port.
    pub fn serve<S: Read + Write>(&mut self, stream: &mut S) -> Result<(), ServeError> {
        let result = self.talk(stream);
        // The daemon that began it will not come back to it.
        self.transfer.abort();
        result
    }

    fn talk<S: Read + Write>(&mut self, stream: &mut S) -> Result<(), ServeError> {
        let mut decoder = Decoder::resyncing();
        self.session = None;
        self.pages.clear();
        if !self.announced {
            stream.write_all(&encode(0, 0, &FromAgent::Started)?)?;
            stream.flush()?;
            self.announced = true;
        }
        loop {
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => {
                        self.request(&frame, stream)?;
                        if self.session == Some(frame.session) {
                            decoder.settle();
                        }
                    }
                    Ok(None) => break,
                    Err(e @ FrameError::Version(_)) => self.other_version(&e, stream)?,
                    Err(e) => return Err(e.into()),
                }
            }
            if decoder.fill(stream)? == 0 {
                if decoder.is_mid_frame() {
                    warn!("the daemon closed the port in the middle of a message");
                }
                return Ok(());
            }
        }
    }

    /// A daemon of another version is answered something that it knows that version by. One
    /// of this says hello to agents of the last version as well.
    fn other_version<S: Write>(
        &self,
        error: &FrameError,
        stream: &mut S,
    ) -> Result<(), ServeError> {
        debug!("{error}");
        if self.session.is_none() {
            let code = AgentErrorCode::BadRequest;
            let message = error.to_string();
            stream.write_all(&encode(0, 0, &FromAgent::Error { code, message })?)?;
            stream.flush()?;
        }
        Ok(())
    }

    fn request<S: Write>(&mut self, frame: &Frame, stream: &mut S) -> Result<(), ServeError> {
        let mut answers = Answers {
            stream: BufWriter::with_capacity(WRITTEN_AT_ONCE, stream),
            request: frame.request,
            session: frame.session,
        };
        self.answer(frame, &mut answers)?;
        answers.end()
    }

    fn answer<S: Write>(
        &mut self,
        frame: &Frame,
        answers: &mut Answers<'_, S>,
    ) -> Result<(), ServeError> {
        let message = match frame.decode::<ToAgent>() {
            Ok(m) => m,
            // A frame that arrived whole: the stream is fine, the request is not.
            Err(e) => {
                warn!("refused a request: {e}");
                let code = AgentErrorCode::BadRequest;
                return answers.send(&FromAgent::Error {
                    code,
                    message: e.to_string(),
                });
            }
        };
        let started = Instant::now();
        let result = match &message {
            ToAgent::Hello { daemon_version } => {
                info!(
                    daemon_version,
                    session = frame.session,
                    "the daemon says hello"
                );
                self.session = Some(frame.session);
                self.pages.clear();
                self.transfer.abort();
                self.expected = None;
                self.hello(answers)
            }
            _ if self.session != Some(frame.session) => {
                let code = AgentErrorCode::NoSession;
                let message = "this session is not open here; say hello first".into();
                Ok(Err(HvError { code, message }))
            }
            ToAgent::ListGuests => self.list(answers),
            ToAgent::Frames { guest } => self.frames(*guest, answers),
            ToAgent::Kept { guest } => self.kept(*guest, answers),
            ToAgent::Digest { guest, runs } => self.digest(*guest, runs, answers),
            ToAgent::Pause { guest } => match self.hypervisor.pause(*guest) {
                Ok(was_paused) => answers.send(&FromAgent::Paused { was_paused }).map(Ok),
                Err(e) => Ok(Err(e)),
            },
            ToAgent::Unpause { guest } => match self.hypervisor.unpause(*guest) {
                Ok(()) => answers.send(&FromAgent::Done).map(Ok),
                Err(e) => Ok(Err(e)),
            },
            ToAgent::ReadPages { guest, runs } => self.read_pages(*guest, runs, answers),
            ToAgent::WritePages { guest, runs, data } => {
                match self.write_pages(*guest, runs, data) {
                    Ok(()) => answers.send(&FromAgent::Done).map(Ok),
                    Err(e) => Ok(Err(e)),
                }
            }
            ToAgent::Inspect { guest, external } => {
                match self.hypervisor.inspect(*guest, *external) {
                    Ok(inspection) => answers.send(&FromAgent::Inspected(inspection)).map(Ok),
                    Err(e) => Ok(Err(e)),
                }
            }
            ToAgent::Provide { needs } => {
                let lacking = self.hypervisor.lacking(needs);
                answers.send(&FromAgent::Lacking(lacking)).map(Ok)
            }
            ToAgent::Definition { .. }
            | ToAgent::Define { .. }
            | ToAgent::Undefine { .. }
            | ToAgent::MayDefine { .. }
            | ToAgent::Autostart
            | ToAgent::MayStart { .. }
            | ToAgent::HoldStart => {
                let gate = self.hypervisor.gate();
                let files = self.hypervisor.files();
                match files.and_then(|files| definitions::request(&files, &gate, &message)) {
                    Ok(answer) => answers.send(&answer).map(Ok),
                    Err(e) => Ok(Err(e)),
                }
            }
            ToAgent::Uuids => match self.hypervisor.uuids() {
                Ok(uuids) => answers.send(&FromAgent::Uuids(uuids)).map(Ok),
                Err(e) => Ok(Err(e)),
            },
            ToAgent::Time => {
                let since = self.hypervisor.now().duration_since(UNIX_EPOCH);
                let nanoseconds = since.map_or(0, |t| t.as_nanos() as u64);
                answers.send(&FromAgent::Time { nanoseconds }).map(Ok)
            }
            ToAgent::Expect { uuid } => {
                self.expected = Some(*uuid);
                answers.send(&FromAgent::Done).map(Ok)
            }
            other => match self
                .transfer
                .request(&self.hypervisor, other, self.expected)
            {
                Ok(answer) => answers.send(&answer).map(Ok),
                Err(e) => Ok(Err(e)),
            },
        };
        debug!(seconds = started.elapsed().as_secs_f64(), "request done");
        match result? {
            Ok(()) => Ok(()),
            Err(e) => {
                warn!("a request failed: {e}");
                let message = e
                    .message
                    .chars()
                    .filter(|c| !c.is_control())
                    .take(1000)
                    .collect();
                answers.send(&FromAgent::Error {
                    code: e.code,
                    message,
                })
            }
        }
    }

    fn hello<S: Write>(
        &mut self,
        answers: &mut Answers<'_, S>,
    ) -> Result<Result<(), HvError>, ServeError> {
        let memory_end = match self.hypervisor.memory_end() {
            Ok(end) => end,
            Err(e) => return Ok(Err(e)),
        };
        // One that could not be asked, at boot say, or that lacks something, may be another one by now.
        let known = self.toolstack.take().filter(|t| t.problem.is_none());
        let toolstack = known.unwrap_or_else(|| self.hypervisor.toolstack());
        self.toolstack = Some(toolstack.clone());
        answers
            .send(&FromAgent::Hello {
                agent_version: env!("CARGO_PKG_VERSION").into(),
                hypervisor: self.hypervisor.version(),
                toolstack,
                memory_end,
                host_vm: self.hypervisor.host_vm(),
            })
            .map(Ok)
    }

    fn list<S: Write>(
        &self,
        answers: &mut Answers<'_, S>,
    ) -> Result<Result<(), HvError>, ServeError> {
        match self.hypervisor.guests() {
            Ok(guests) => answers.send(&FromAgent::Guests(guests)).map(Ok),
            Err(e) => Ok(Err(e)),
        }
    }

    fn frames<S: Write>(
        &mut self,
        guest: u32,
        answers: &mut Answers<'_, S>,
    ) -> Result<Result<(), HvError>, ServeError> {
        let pages = match self.hypervisor.pages(guest) {
            Ok(pages) => pages,
            Err(e) => return Ok(Err(e)),
        };
        match frame_list(&pages) {
            Ok(mut messages) => messages.try_for_each(|message| answers.send(&message))?,
            Err(e) => return Ok(Err(e.into())),
        }
        info!(guest, runs = pages.len(), "listed a guest's frames");
        self.pages.insert(guest, pages);
        Ok(Ok(()))
    }

    /// The frames behind the pages that may not move, in the list of this session.
    fn kept<S: Write>(
        &mut self,
        guest: u32,
        answers: &mut Answers<'_, S>,
    ) -> Result<Result<(), HvError>, ServeError> {
        let pages = match self.list_of(guest) {
            Ok(pages) => pages,
            Err(e) => return Ok(Err(e)),
        };
        let kept: Vec<PageRun> = pages
            .iter()
            .filter(|p| !matches!(p.kind, PageKind::Ordinary | PageKind::Broken))
            .map(|p| PageRun {
                kind: PageKind::Ordinary,
                ..*p
            })
            .collect();
        match frame_list(&kept) {
            Ok(mut messages) => messages.try_for_each(|message| answers.send(&message))?,
            Err(e) => return Ok(Err(e.into())),
        }
        Ok(Ok(()))
    }

    /// The list of this session, which is made if there is none.
    fn list_of(&mut self, guest: u32) -> Result<&mut Vec<PageRun>, HvError> {
        Ok(match self.pages.entry(guest) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(self.hypervisor.pages(guest)?),
        })
    }

    /// The frames behind some pages, from the list of this session.
    fn resolve(&mut self, guest: u32, runs: &[PfnRun]) -> Result<Vec<(u64, u64)>, HvError> {
        let pages = self.list_of(guest)?;
        let mut found = Vec::new();
        for run in runs {
            let mut pfn = run.pfn;
            let end = run.pfn + u64::from(run.nr);
            let first = pages.partition_point(|p| p.end() <= pfn);
            for part in &pages[first..] {
                if pfn == end || part.pfn > pfn || part.kind == PageKind::Broken {
                    break;
                }
                let stop = end.min(part.end());
                found.extend((pfn..stop).map(|n| (n, part.gfn + (n - part.pfn))));
                pfn = stop;
            }
            if pfn < end {
                return Err(bad_request(format!("guest {guest} has no page {pfn:#x}")));
            }
        }
        Ok(found)
    }

    fn digest<S: Write>(
        &mut self,
        guest: u32,
        runs: &[PfnRun],
        answers: &mut Answers<'_, S>,
    ) -> Result<Result<(), HvError>, ServeError> {
        let pages = match self.resolve(guest, runs) {
            Ok(pages) => pages,
            Err(e) => return Ok(Err(e)),
        };
        let mut chunk: (u64, Vec<Digest>) = (0, Vec::new());
        for batch in pages.chunks(DIGEST_BATCH) {
            let gfns: Vec<u64> = batch.iter().map(|p| p.1).collect();
            let mut digests: Vec<Digest> = Vec::with_capacity(gfns.len());
            let read = self.hypervisor.read(guest, &gfns, &mut |_, page| {
                digests.push(xxh3_128(page).to_le_bytes());
            });
            if let Err(e) = read {
                return Ok(Err(e));
            }
            for ((pfn, _), digest) in batch.iter().zip(digests) {
                let (first, so_far) = &mut chunk;
                let next = *first + so_far.len() as u64;
                if !so_far.is_empty() && (*pfn != next || so_far.len() == DIGESTS_PER_CHUNK) {
                    let digests = std::mem::take(so_far);
                    answers.send(&FromAgent::DigestChunk {
                        pfn: *first,
                        digests,
                    })?;
                }
                if so_far.is_empty() {
                    *first = *pfn;
                }
                so_far.push(digest);
            }
        }
        let (pfn, digests) = chunk;
        if !digests.is_empty() {
            answers.send(&FromAgent::DigestChunk { pfn, digests })?;
        }
        answers.send(&FromAgent::Done).map(Ok)
    }

    fn read_pages<S: Write>(
        &mut self,
        guest: u32,
        runs: &[PfnRun],
        answers: &mut Answers<'_, S>,
    ) -> Result<Result<(), HvError>, ServeError> {
        let pages = match self.resolve(guest, runs) {
            Ok(pages) => pages,
            Err(e) => return Ok(Err(e)),
        };
        let gfns: Vec<u64> = pages.iter().map(|p| p.1).collect();
        let mut data = Vec::with_capacity(gfns.len() * PAGE);
        let read = self.hypervisor.read(guest, &gfns, &mut |_, page| {
            data.extend_from_slice(page);
        });
        if let Err(e) = read {
            return Ok(Err(e));
        }
        answers.send(&FromAgent::Pages { data }).map(Ok)
    }

    /// `data` has as many pages as `runs`, as checked when it was decoded.
    fn write_pages(&mut self, guest: u32, runs: &[PfnRun], data: &[u8]) -> Result<(), HvError> {
        let pages = self.resolve(guest, runs)?;
        let gfns: Vec<u64> = pages.iter().map(|p| p.1).collect();
        self.hypervisor.write(guest, &gfns, &mut |i, page| {
            page.copy_from_slice(&data[i * PAGE..(i + 1) * PAGE]);
        })
    }
}
