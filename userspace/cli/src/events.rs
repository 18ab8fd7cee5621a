// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam events`, and whatever else follows what happens in the daemon.

use crate::client::{Client, ClientError};
use crate::interrupt::signals;
use crate::moves::is_away;
use crate::output;
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signalfd::SignalFd;
use serde::Serialize;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::ExitCode;
use vmbeam_control_protocol::{Event, EventKind};

/// How often to look whether a daemon that was lost is back, in milliseconds.
const LOOK: u16 = 1000;

/// Why it is not waited any more.
enum Wake {
    /// The daemon has said something, or some time has passed.
    Up,
    /// Ctrl-C, or nobody reads what is printed.
    Over,
}

/// Wait until the daemon says something, or for a while if there is none.
fn wait(daemon: Option<BorrowedFd<'_>>, signals: &SignalFd) -> io::Result<Wake> {
    let stdout = io::stdout();
    loop {
        if output::is_lost() {
            return Ok(Wake::Over);
        }
        // Of a pipe it is said in any case that its reader has gone.
        let mut fds = vec![
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(stdout.as_fd(), PollFlags::empty()),
        ];
        fds.extend(daemon.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let limit = match daemon {
            Some(_) => PollTimeout::NONE,
            None => LOOK.into(),
        };
        match poll(&mut fds, limit) {
            // It was stopped, and goes on.
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(e.into()),
            Ok(_) => {}
        }
        let ends = fds[..2].iter().any(|fd| fd.any().unwrap_or(false));
        return Ok(if ends { Wake::Over } else { Wake::Up });
    }
}

/// Show what happens until somebody presses Ctrl-C, or nobody reads any more. `show` is given
/// all that there is at a time. A daemon that goes away is waited for.
pub(crate) fn follow(
    socket: &Path,
    mut show: impl FnMut(&[Event]) -> Result<(), ClientError>,
) -> Result<ExitCode, ClientError> {
    let signals = SignalFd::new(&signals()?).map_err(io::Error::from)?;
    let mut client = Client::connect(socket)?;
    loop {
        let lost = client.events(
            |fd| Ok(matches!(wait(Some(fd), &signals)?, Wake::Up)),
            &mut show,
        );
        match lost {
            Ok(()) => return Ok(ExitCode::SUCCESS),
            Err(e) if is_away(&e) => eprintln!("vmbeam: {e}; it is waited for"),
            Err(e) => return Err(e),
        }
        client = loop {
            if let Wake::Over = wait(None, &signals)? {
                return Ok(ExitCode::SUCCESS);
            }
            if let Ok(client) = Client::connect(socket) {
                break client;
            }
        };
    }
}

/// What a word of the protocol is for a person.
fn word(of: Option<impl Serialize>) -> String {
    let word = of.and_then(|of| serde_json::to_value(of).ok());
    let word = word.as_ref().and_then(serde_json::Value::as_str);
    word.unwrap_or_default().replace('_', " ")
}

/// One line for a person.
pub(crate) fn print(event: &Event) {
    let seconds = event.time_ms / 1000;
    let (hours, minutes, seconds) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let end = |end: &Option<_>| end.as_ref().map(ToString::to_string).unwrap_or_default();
    let about = match (event.job, &event.host_vm) {
        (Some(job), _) => format!("job {job}: "),
        (None, Some(name)) => format!("host VM {}: ", output::name(name)),
        (None, None) => String::new(),
    };
    let why = event
        .text
        .as_ref()
        .map_or(String::new(), |w| format!(": {w}"));
    let text = event.text.as_deref().unwrap_or_default();
    let what = match event.event {
        EventKind::Following => "following vmbeamd".into(),
        EventKind::JobBegins => format!(
            "begins: {} {} -> {}",
            word(event.kind),
            output::name(&end(&event.from)),
            output::name(&end(&event.to))
        ),
        EventKind::JobStep => text.into(),
        EventKind::JobEnds => format!("ends, {}{why}", word(event.outcome)),
        EventKind::Warning => format!("WARNING{why}"),
        EventKind::AgentAppears => "its agent is there".into(),
        EventKind::AgentDisappears => format!("its agent is gone{why}"),
        EventKind::MaintenanceBegins => "maintenance begins".into(),
        EventKind::MaintenanceEnds => "maintenance ends".into(),
        EventKind::Dropped => format!(
            "{} events are missing here, as they were not read fast enough",
            event.dropped
        ),
    };
    println!("{hours:02}:{minutes:02}:{seconds:02}Z  {about}{what}");
}

pub(crate) fn run(socket: &Path, json: bool) -> Result<ExitCode, ClientError> {
    follow(socket, |events| {
        for event in events {
            match json {
                true => output::json_line(event)?,
                false => print(event),
            }
        }
        Ok(())
    })
}
