// SPDX-License-Identifier: GPL-2.0-only

//! A client's end of the control socket, for answers from several threads.

use nix::errno::Errno;
use nix::sys::socket::{recv, send, MsgFlags};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use vmbeam_control_protocol::{Failure, FromDaemon};
use vmbeam_wire::{encode, FrameError};

/// How long a client may take to say what it wants, and to take what it asked for.
pub(crate) const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a client was dropped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("it does not take its answers")]
    Gone,
    #[error("it sent nothing complete within {} s", CLIENT_TIMEOUT.as_secs())]
    Slow,
}

/// An answer that says so.
pub(crate) fn failed(failure: Failure, message: &impl ToString) -> FromDaemon {
    FromDaemon::Error {
        failure,
        message: message.to_string(),
    }
}

/// The socket, with the end of a message whose beginning it has taken.
#[derive(Debug)]
struct Outgoing {
    socket: UnixStream,
    rest: Vec<u8>,
}

impl Outgoing {
    /// Send what can be sent without waiting.
    fn push(&mut self) -> Result<(), Errno> {
        while !self.rest.is_empty() {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(self.socket.as_raw_fd(), &self.rest, flags) {
                Ok(n) => drop(self.rest.drain(..n)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.socket.write_all(&self.rest)?;
        self.rest.clear();
        self.socket.write_all(bytes)
    }
}

/// A client.
#[derive(Debug)]
pub(crate) struct Client {
    /// Empty once it does not take what is sent.
    stream: Mutex<Option<Outgoing>>,
    pub(crate) request: u32,
    pub(crate) session: u64,
}

impl Client {
    /// One that has not asked yet.
    pub(crate) fn new(socket: UnixStream) -> Self {
        let rest = Vec::new();
        Self {
            stream: Mutex::new(Some(Outgoing { socket, rest })),
            request: 0,
            session: 0,
        }
    }

    /// Send what it must have, and wait for it for a while.
    pub(crate) fn send(&self, message: &FromDaemon) -> Result<(), ClientError> {
        let encode = |message: &FromDaemon| encode(self.request, self.session, message);
        let bytes = match encode(message) {
            // It is not to wait for nothing.
            Err(e @ FrameError::TooLong(_)) => {
                let message = format!("the answer does not fit: {e}");
                encode(&failed(Failure::Failed, &message))?
            }
            bytes => bytes?,
        };
        let mut slot = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(stream) = &mut *slot else {
            return Err(ClientError::Gone);
        };
        let result = stream.write(&bytes);
        if result.is_err() {
            *slot = None;
        }
        Ok(result?)
    }

    /// Show how far it is, if there is room: a job, whose guest may be suspended, never
    /// waits for the person who looks at it. Whoever looks again sees what comes then.
    pub(crate) fn show(&self, message: &FromDaemon) {
        if let Ok(mut slot) = self.stream.try_lock() {
            self.hand(&mut slot, message);
        }
    }

    /// The same of what may be offered again: whether it has taken it.
    pub(crate) fn offer(&self, message: &FromDaemon) -> bool {
        let mut slot = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        self.hand(&mut slot, message)
    }

    fn hand(&self, slot: &mut Option<Outgoing>, message: &FromDaemon) -> bool {
        let Some(stream) = slot else { return false };
        let mut result = stream.push();
        let takes = result.is_ok() && stream.rest.is_empty();
        if takes {
            if let Ok(bytes) = encode(self.request, self.session, message) {
                stream.rest = bytes;
                result = stream.push();
            }
        }
        if result.is_err() {
            *slot = None;
        }
        takes
    }

    /// Whether it has hung up: it has nothing more to say, so an end is all that can come.
    pub(crate) fn is_gone(&self) -> bool {
        let slot = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Outgoing { socket, .. }) = &*slot else {
            return true;
        };
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        matches!(recv(socket.as_raw_fd(), &mut [0], flags), Ok(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use vmbeam_agent_protocol::{CpuFeatures, Guest, GuestKind, GuestState, MAX_GUESTS};
    use vmbeam_control_protocol::{HostVmReport, Phase};
    use vmbeam_wire::message::MAX_NAME;
    use vmbeam_wire::Decoder;

    fn progress(done: u64) -> FromDaemon {
        FromDaemon::Progress {
            phase: Phase::Stream,
            done,
            total: 0,
        }
    }

    #[test]
    fn nobody_waits_for_a_client_that_does_not_read_and_it_gets_its_answer() {
        let (here, mut there) = UnixStream::pair().unwrap();
        let client = Client::new(here);
        // More than any socket holds.
        for done in 0..100_000 {
            client.show(&progress(done));
        }
        let reader = std::thread::spawn(move || {
            let mut decoder = Decoder::strict();
            let mut seen = Vec::new();
            while decoder.fill(&mut there).unwrap() > 0 {
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push(frame.decode::<FromDaemon>().unwrap());
                }
            }
            seen
        });
        client.send(&FromDaemon::Done).unwrap();
        drop(client);
        let mut seen = reader.join().unwrap();
        assert_eq!(seen.pop(), Some(FromDaemon::Done));
        let nr = seen.len() as u64;
        assert!(nr > 0 && nr < 100_000, "{nr}");
        assert!(seen.into_iter().eq((0..nr).map(progress)));
    }

    #[test]
    fn an_answer_that_does_not_fit_is_an_error() {
        let guest = Guest {
            name: "x".repeat(MAX_NAME),
            domid: 7,
            state: GuestState::Running,
            pages: 1,
            kind: GuestKind::Pv,
            cpu: Some(CpuFeatures::default()),
        };
        let host_vm = |name: &str| HostVmReport {
            name: name.into(),
            domid: Ok(1),
            guests: Ok(vec![guest.clone(); MAX_GUESTS]),
            maintenance: false,
            held: None,
        };
        let list = FromDaemon::List(["A", "B", "C", "D"].map(host_vm).into());
        let (here, mut there) = UnixStream::pair().unwrap();
        let client = Client::new(here);
        client.send(&list).unwrap();
        let mut decoder = Decoder::strict();
        decoder.fill(&mut there).unwrap();
        let answer = decoder.next_frame().unwrap().unwrap();
        let FromDaemon::Error { message, .. } = answer.decode().unwrap() else {
            panic!()
        };
        assert!(message.contains("does not fit: a message of"), "{message}");
    }

    #[test]
    fn a_client_that_has_gone_is_not_written_to() {
        let (here, there) = UnixStream::pair().unwrap();
        let client = Client::new(here.try_clone().unwrap());
        assert!(!client.is_gone());
        drop(there);
        assert!(client.is_gone());
        client.show(&progress(1));
        assert!(matches!(
            client.send(&FromDaemon::Done),
            Err(ClientError::Gone)
        ));
        drop(client);
        assert_eq!((&here).read(&mut [0]).unwrap(), 0);
    }
}
