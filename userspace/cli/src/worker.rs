// SPDX-License-Identifier: GPL-2.0-only

//! Rejuvenations and replacements as jobs of the daemon. The command begins a process of this
//! program that does the work, with the rights of whoever gave the command, and then it only
//! watches. That process has no terminal, reports to the daemon, and comes back to one that is
//! started again.

use crate::client::{Client, ClientError};
use crate::evacuate::Begun;
use crate::exit;
use crate::interrupt::{signals, Interrupt};
use crate::moves::{follow, is_away};
use crate::output;
use crate::upkeep::Options;
use nix::sys::signal::{kill, Signal};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, getpid, setsid};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};
use vmbeam_control_protocol::{FromDaemon, ToDaemon, UpkeepReport, UpkeepRequest};
use vmbeam_wire::message::MAX_TEXT;

/// How often to look whether a daemon that is away is back.
const LOOK: Duration = Duration::from_secs(1);

/// Do this as a job, unless it is to be none. `is_worker`: this is the process that does it.
pub(crate) fn run(
    socket: &Path,
    options: &Options,
    is_worker: bool,
    request: impl FnOnce() -> UpkeepRequest,
    here: impl FnOnce() -> Result<u8, ClientError>,
) -> Result<ExitCode, ClientError> {
    match is_worker {
        _ if options.is_here() => here().map(ExitCode::from),
        true => work(socket, options, request(), here),
        false => begin(socket, options),
    }
}

/// Have a process of its own do what this one was told, or watch one that does it already.
fn begin(socket: &Path, options: &Options) -> Result<ExitCode, ClientError> {
    // It inherits no blocked signal.
    let worker = std::env::current_exe().and_then(|program| {
        Command::new(program)
            .arg("--worker")
            .args(std::env::args_os().skip(1))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
    });
    let failed = |e| format!("cannot start the process that does it: {e}; --here does without");
    let mut worker = worker.map_err(|e| ClientError::Refused(failed(e)))?;
    let mut line = String::new();
    if let Some(said) = worker.stdout.take() {
        BufReader::new(said).read_line(&mut line)?;
    }
    let Ok(job) = line.trim().parse::<u64>() else {
        // It has said why.
        let code = worker.wait()?.code().and_then(|c| u8::try_from(c).ok());
        return Ok(ExitCode::from(code.unwrap_or(exit::FAILED)));
    };
    if options.detach {
        return Begun { job }.print(options.json);
    }
    let interrupt = Interrupt::catch(socket)?;
    interrupt.begun(job);
    let request = ToDaemon::Watch { job };
    match follow(socket, request, options.patience(), Some(&interrupt))? {
        FromDaemon::Ended(report) => Ok(ended(&report, options.json)),
        _ => Err(ClientError::Unexpected),
    }
}

/// Print how one has ended.
pub(crate) fn ended(report: &UpkeepReport, json: bool) -> ExitCode {
    output::print(if json { &report.json } else { &report.lines });
    ExitCode::from(report.code)
}

/// Who does it.
enum Doer {
    /// This process, as this job.
    This(u64),
    /// Another one, as that job.
    Other(u64),
}

/// Be the process that does it. Its number is all that it prints.
fn work(
    socket: &Path,
    options: &Options,
    request: UpkeepRequest,
    work: impl FnOnce() -> Result<u8, ClientError>,
) -> Result<ExitCode, ClientError> {
    // Before there is a thread. Ctrl-C on the terminal is for whoever watches.
    signals()?;
    let _ = setsid();
    let (begun, doer) = channel();
    let at = socket.to_owned();
    thread::spawn(move || attend(&at, request, &begun));
    let job = match doer.recv().unwrap_or(Err(ClientError::Unexpected))? {
        Doer::This(job) => job,
        Doer::Other(job) => {
            println!("{job}");
            return Ok(ExitCode::SUCCESS);
        }
    };
    println!("{job}");
    let (says, said) = channel();
    output::elsewhere(says);
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&nothing)
        .and_then(|()| dup2_stdout(&nothing))
        .and_then(|()| dup2_stderr(&nothing))
        .map_err(io::Error::from)?;
    let (at, patience) = (socket.to_owned(), options.patience());
    let teller = thread::spawn(move || tell(&at, job, &said, patience));
    let failed = |e: ClientError| {
        eprintln!("vmbeam: {e}");
        (e.code(), e.to_string())
    };
    let result = work().map_err(failed);
    let printed = output::back();
    let _ = teller.join();
    let (code, text) = match result {
        Ok(code) => (code, outcome(&printed.json)),
        Err(failed) => failed,
    };
    let report = UpkeepReport {
        code,
        text: bounded(&output::tame(&text)),
        lines: printed.lines,
        json: printed.json,
    };
    let end = |report| ask(socket, &ToDaemon::End { job, report }, patience);
    if let Err(ClientError::Frame(_)) = end(report.clone()) {
        // There are too many guests for one message.
        let _ = end(UpkeepReport {
            lines: String::new(),
            json: String::new(),
            ..report
        });
    }
    Ok(ExitCode::from(code))
}

/// What came of it, in a line.
fn outcome(json: &str) -> String {
    let report: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
    let word = |key| report[key].as_str();
    let step = word("step").unwrap_or_default();
    word("error").map_or(step.into(), |e| format!("{step}: {e}"))
}

fn bounded(text: &str) -> String {
    let mut ends = (0..=text.len().min(MAX_TEXT)).rev();
    let end = ends.find(|at| text.is_char_boundary(*at));
    text[..end.unwrap_or(0)].to_owned()
}

/// Let the daemon see that this process is there, for as long as it is, and hear what it wants.
fn attend(socket: &Path, request: UpkeepRequest, begun: &Sender<Result<Doer, ClientError>>) {
    let mut request = ToDaemon::Work(request);
    let mut seen = 0;
    loop {
        let mut job = None;
        let answer = Client::connect(socket).and_then(|client| {
            client.ask(&request, |part| match part {
                FromDaemon::Job { id } => {
                    job = Some(*id);
                    let _ = begun.send(Ok(Doer::This(*id)));
                }
                FromDaemon::Stop { times } => {
                    (seen..*times).for_each(interrupt);
                    seen = seen.max(*times);
                }
                _ => {}
            })
        });
        if let Some(job) = job {
            request = ToDaemon::WorkOn { job };
        }
        match (answer, &request) {
            (Ok(FromDaemon::Taken { id }), _) => {
                let _ = begun.send(Ok(Doer::Other(id)));
                return;
            }
            (Err(e), ToDaemon::WorkOn { .. }) if is_away(&e) => thread::sleep(LOOK),
            (Err(e), ToDaemon::Work(_)) => {
                let _ = begun.send(Err(e));
                return;
            }
            // Nobody would see what it does.
            (Err(_), _) => return interrupt(0),
            (Ok(_), _) => return,
        }
    }
}

/// As Ctrl-C does. One signal that has not been taken yet and another of the same number are one.
fn interrupt(before: u32) {
    let signal = [Signal::SIGINT, Signal::SIGTERM][usize::from(before % 2 == 1)];
    let _ = kill(getpid(), signal);
}

/// Ask the daemon; one that is away is waited for.
fn ask(socket: &Path, request: &ToDaemon, patience: Duration) -> Result<FromDaemon, ClientError> {
    let started = Instant::now();
    loop {
        match Client::connect(socket).and_then(|client| client.ask(request, |_| {})) {
            Err(e) if is_away(&e) && started.elapsed() < patience => thread::sleep(LOOK),
            other => return other,
        }
    }
}

/// Have the daemon tell whoever watches.
fn tell(socket: &Path, job: u64, said: &Receiver<String>, patience: Duration) {
    for line in said {
        let line = bounded(&line);
        if ask(socket, &ToDaemon::Say { job, line }, patience).is_err() {
            return;
        }
    }
}
