// SPDX-License-Identifier: GPL-2.0-only

//! Talking to the daemon.

use crate::exit;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use vmbeam_control_protocol::{Event, Failure, FromDaemon, ToDaemon};
use vmbeam_wire::{encode, Decoder, FrameError};

/// How long the daemon may take over what it knows. It waits for nobody meanwhile.
pub(crate) const KNOWN: Duration = Duration::from_secs(10);

/// Why the daemon did not answer as hoped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("cannot reach vmbeamd at {}: {error}; {}", path.display(), advice(error))]
    Connect {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("lost the connection to vmbeamd: {0}; see its log")]
    Io(#[from] std::io::Error),
    #[error("vmbeamd has not answered within {} s: it may wait for the host's toolstack or its disk; see its log", .0.as_secs())]
    Silent(Duration),
    #[error("vmbeamd closed the connection without an answer; see its log")]
    Closed,
    #[error("vmbeamd answered with something unacceptable: {0}")]
    Frame(#[from] FrameError),
    #[error("vmbeamd gave an answer that does not fit the request")]
    Unexpected,
    #[error("{message}{}", consequence(*.failure))]
    Daemon { failure: Failure, message: String },
    #[error("vmbeamd is not done yet: {0}; wait for it, or see its log (`vmbeam status` shows what it does)")]
    Busy(String),
    #[error("cannot write {}: {error}", path.display())]
    Write {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("{0}")]
    Refused(String),
    #[error("cannot print the result: {0}")]
    Json(#[from] serde_json::Error),
}

fn advice(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => "run as root",
        _ => "is it running? `systemctl start vmbeamd` starts it, or `vmbeamd` without systemd",
    }
}

impl ClientError {
    /// The exit status that says so.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Refused(_)
            | Self::Daemon {
                failure: Failure::Refused,
                ..
            } => exit::REFUSED,
            Self::Daemon {
                failure: Failure::RolledBack,
                ..
            } => exit::ROLLED_BACK,
            _ => exit::FAILED,
        }
    }
}

fn consequence(failure: Failure) -> &'static str {
    match failure {
        Failure::Refused => " (refused; nothing was changed)",
        Failure::RolledBack => " (everything was put back)",
        Failure::Failed => "",
    }
}

/// A connection for one request.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
}

impl Client {
    pub(crate) fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|error| ClientError::Connect {
            path: path.into(),
            error,
        })?;
        Ok(Self { stream })
    }

    /// Ask; `part` sees every answer but the last, which is returned.
    pub(crate) fn ask(
        self,
        request: &ToDaemon,
        part: impl FnMut(&FromDaemon),
    ) -> Result<FromDaemon, ClientError> {
        self.ask_until(request, FromDaemon::is_last, part)
    }

    /// Ask what is answered at once, or not at all.
    pub(crate) fn ask_soon(
        self,
        request: &ToDaemon,
        limit: Duration,
    ) -> Result<FromDaemon, ClientError> {
        self.stream.set_read_timeout(Some(limit))?;
        self.ask(request, |_| {}).map_err(|e| match e {
            ClientError::Io(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                ClientError::Silent(limit)
            }
            e => e,
        })
    }

    /// Ask for no more than the first answer.
    pub(crate) fn first(self, request: &ToDaemon) -> Result<FromDaemon, ClientError> {
        self.ask_until(request, |_| true, |_| {})
    }

    /// Follow what happens, and show all that there is at a time, for as long as `wait` says that
    /// there is more.
    pub(crate) fn events(
        mut self,
        wait: impl Fn(BorrowedFd<'_>) -> std::io::Result<bool>,
        mut show: impl FnMut(&[Event]) -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        self.send(&ToDaemon::Events)?;
        let mut decoder = Decoder::strict();
        while wait(self.stream.as_fd())? {
            if decoder.fill(&mut self.stream)? == 0 {
                return Err(ClientError::Closed);
            }
            let mut new = Vec::new();
            while let Some(frame) = decoder.next_frame()? {
                match frame.decode::<FromDaemon>()? {
                    FromDaemon::Event(event) => new.push(event),
                    FromDaemon::Error { failure, message } => {
                        return Err(ClientError::Daemon { failure, message });
                    }
                    _ => return Err(ClientError::Unexpected),
                }
            }
            if !new.is_empty() {
                show(&new)?;
            }
        }
        Ok(())
    }

    fn send(&mut self, request: &ToDaemon) -> Result<(), ClientError> {
        let bytes = encode(1, u64::from(std::process::id()), request)?;
        Ok(self.stream.write_all(&bytes)?)
    }

    fn ask_until(
        mut self,
        request: &ToDaemon,
        is_last: impl Fn(&FromDaemon) -> bool,
        mut part: impl FnMut(&FromDaemon),
    ) -> Result<FromDaemon, ClientError> {
        self.send(request)?;
        let mut decoder = Decoder::strict();
        loop {
            while let Some(frame) = decoder.next_frame()? {
                match frame.decode::<FromDaemon>()? {
                    FromDaemon::Error { failure, message } => {
                        return Err(ClientError::Daemon { failure, message });
                    }
                    last if is_last(&last) => return Ok(last),
                    other => part(&other),
                }
            }
            if decoder.fill(&mut self.stream)? == 0 {
                return Err(ClientError::Closed);
            }
        }
    }
}
