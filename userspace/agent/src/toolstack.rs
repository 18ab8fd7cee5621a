// SPDX-License-Identifier: GPL-2.0-only

//! What the agent needs of the toolstack: saving and restoring guests.
//!
//! Nothing here waits for long, so that the daemon is always answered: what
//! moves a guest's state takes and gives as much as there is within [`PAUSE`],
//! and the daemon asks again.

mod program;

use self::program::{failed, last_words, Program};
use crate::error::HvError;
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use std::fmt::Debug;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use vmbeam_agent_protocol::MAX_PART;
use vmbeam_xen::command;

/// The toolstack's program.
pub(crate) const XL: &str = "xl";
/// How long the daemon is made to wait when there is nothing to tell.
pub const PAUSE: Duration = Duration::from_secs(2);
/// How long a command may take that only asks, or changes one thing.
const COMMAND: Duration = Duration::from_secs(60);
/// A guest that is being saved.
pub trait Outgoing: Debug {
    /// Let the guest be suspended, if that was waited for.
    fn go(&mut self) -> Result<(), HvError>;
    /// The next part, if it comes soon; `end` with the last one.
    fn pull(&mut self) -> Result<(Vec<u8>, bool), HvError>;
    /// Give up, if it is not saved already, and wait for the program's end.
    fn abort(&mut self) -> Result<(), HvError>;
}

/// A guest that is being restored.
pub trait Incoming: Debug {
    /// Take some of a part, if that is possible soon.
    fn push(&mut self, data: &[u8]) -> Result<usize, HvError>;
    /// The guest's number, once it is made but for its state.
    fn staged(&mut self) -> Result<Option<u32>, HvError>;
    /// Whether the guest is complete. No more can be pushed.
    fn finish(&mut self) -> Result<bool, HvError>;
    /// Give up, if it is not restored already, and wait for the program's end.
    fn abort(&mut self) -> Result<(), HvError>;
}

/// Run `xl` with these arguments; gives what it printed.
pub fn xl(arguments: &[&str]) -> Result<String, HvError> {
    xl_within(arguments, COMMAND)
}

/// The same with another limit of time.
pub fn xl_within(arguments: &[&str], limit: Duration) -> Result<String, HvError> {
    run_within(XL, arguments, limit)
}

fn run_within(xl: &str, arguments: &[&str], limit: Duration) -> Result<String, HvError> {
    let what = format!("`xl {}`", arguments.join(" "));
    let output = command::run(Command::new(xl).args(arguments), limit)
        .map_err(|e| failed(format!("{what}: {e}")))?;
    if !output.status.success() {
        return Err(failed(format!("{what}: {}", last_words(&output.err))));
    }
    Ok(output.out)
}

/// Use a pipe without blocking, and let it hold much if the kernel allows it.
fn prepare_pipe(pipe: &impl AsFd) -> Result<(), HvError> {
    let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(MAX_PART as i32));
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        .map(|_| ())
        .map_err(|e| failed(format!("cannot prepare a pipe: {e}")))
}

/// Wait until a pipe can be used, but only until `deadline`.
fn ready_by(pipe: &impl AsFd, events: PollFlags, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    let mut fds = [PollFd::new(pipe.as_fd(), events)];
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    !left.is_zero() && poll(&mut fds, timeout).is_ok_and(|n| n > 0)
}

/// The descriptor of `--staged`: none of the first three, which are open anyway.
const GATE: &str = "3";
/// Lets `xl save --staged` go on.
const GO: &[u8] = b"g";
/// What `xl restore --staged` says when the guest is complete. It goes on then to become what
/// watches the guest, which the guest need not wait for.
const DONE: &[u8] = b"\ndone\n";

/// `xl save`.
#[derive(Debug)]
pub struct Save {
    program: Program,
    pipe: Option<ChildStdout>,
    /// What it reads [`GO`] from. If that is closed before, the guest is not suspended.
    gate: Option<ChildStdin>,
    /// It was let go on: what it writes now is short, in many pieces, and its end is waited for.
    last: bool,
}

impl Save {
    /// Begin to save a guest, which stays, paused.
    pub fn start(guest: u32, external: bool, staged: bool) -> Result<Self, HvError> {
        Self::with(XL, guest, external, staged)
    }

    fn with(xl: &str, guest: u32, external: bool, staged: bool) -> Result<Self, HvError> {
        let guest = guest.to_string();
        let mut arguments = vec!["save"];
        if external {
            arguments.push("--external-memory");
        }
        let (mut gate, mut redirection) = (Stdio::null(), "");
        if staged {
            arguments.extend(["--staged", GATE]);
            (gate, redirection) = (Stdio::piped(), "3<&0 </dev/null");
        }
        arguments.extend(["-p", &guest, "/proc/self/fd/1"]);
        let (program, gate, pipe) =
            Program::start(xl, &arguments, redirection, gate, Stdio::piped())?;
        if let Some(pipe) = &pipe {
            prepare_pipe(pipe)?;
        }
        Ok(Self {
            program,
            pipe,
            gate,
            last: false,
        })
    }
}

impl Outgoing for Save {
    fn go(&mut self) -> Result<(), HvError> {
        let Some(mut gate) = self.gate.take() else {
            return Err(failed("the guest was not to wait before it is suspended"));
        };
        self.last = true;
        // That it has ended is told by what it said.
        match gate.write_all(GO) {
            Err(e) if e.kind() != ErrorKind::BrokenPipe => {
                Err(failed(format!("{}: {e}", self.program.what)))
            }
            _ => Ok(()),
        }
    }

    fn pull(&mut self) -> Result<(Vec<u8>, bool), HvError> {
        let deadline = Instant::now() + PAUSE;
        let mut data = Vec::new();
        while let Some(pipe) = &mut self.pipe {
            let had = data.len();
            data.resize(MAX_PART, 0);
            let result = pipe.read(&mut data[had..]);
            data.truncate(had + result.as_ref().map_or(0, |n| *n));
            match result {
                Ok(0) => self.pipe = None,
                Ok(_) if data.len() == MAX_PART => return Ok((data, false)),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // What is there goes; nothing is waited for. While the guest is suspended a
                // question for each piece would take longer than to wait for all of them.
                Err(e) if e.kind() == ErrorKind::WouldBlock && !data.is_empty() && !self.last => {
                    return Ok((data, false));
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    if !ready_by(pipe, PollFlags::POLLIN, deadline) {
                        return Ok((data, false));
                    }
                }
                Err(e) => return Err(failed(format!("{}: {e}", self.program.what))),
            }
        }
        // The guest has been saved when the program says so, not before.
        let left = deadline.saturating_duration_since(Instant::now());
        let end = self.program.ended(left)?;
        Ok((data, end))
    }

    fn abort(&mut self) -> Result<(), HvError> {
        self.gate = None;
        self.pipe = None;
        self.program.give_up()
    }
}

/// `xl restore`.
#[derive(Debug)]
pub struct Restore {
    program: Program,
    pipe: Option<ChildStdin>,
    /// Where it says which guest it has made, and when that is complete.
    ready: Option<ChildStdout>,
    /// What it has said there.
    said: Vec<u8>,
}

impl Restore {
    /// Begin to restore a guest, which will be paused.
    pub fn start(external: bool, staged: bool) -> Result<Self, HvError> {
        Self::with(XL, external, staged)
    }

    fn with(xl: &str, external: bool, staged: bool) -> Result<Self, HvError> {
        let mut arguments = vec!["restore"];
        if external {
            arguments.push("--external-memory");
        }
        let (mut ready, mut redirection) = (Stdio::null(), "");
        if staged {
            arguments.extend(["--staged", GATE]);
            (ready, redirection) = (Stdio::piped(), "3>&1 >/dev/null");
        }
        arguments.extend(["-p", "/proc/self/fd/0"]);
        let (program, pipe, ready) =
            Program::start(xl, &arguments, redirection, Stdio::piped(), ready)?;
        if let Some(pipe) = &pipe {
            prepare_pipe(pipe)?;
        }
        if let Some(ready) = &ready {
            prepare_pipe(ready)?;
        }
        Ok(Self {
            program,
            pipe,
            ready,
            said: Vec::new(),
        })
    }
}

impl Incoming for Restore {
    fn push(&mut self, data: &[u8]) -> Result<usize, HvError> {
        let deadline = Instant::now() + PAUSE;
        let mut done = 0;
        while done < data.len() {
            let Some(pipe) = &mut self.pipe else {
                return Err(failed("the end of the state was announced before"));
            };
            match pipe.write(&data[done..]) {
                Ok(n) => done += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    if !ready_by(pipe, PollFlags::POLLOUT, deadline) {
                        break;
                    }
                }
                Err(e) => return Err(self.broken(&e)),
            }
        }
        Ok(done)
    }

    fn staged(&mut self) -> Result<Option<u32>, HvError> {
        let deadline = Instant::now() + PAUSE;
        while self.lines() < 1 {
            match self.hear(deadline)? {
                Heard::Words => {}
                Heard::Nothing => return Ok(None),
                Heard::End => {
                    return match self.program.ended(PAUSE)? {
                        true => Err(failed(format!(
                            "{} has ended before it was given the guest",
                            self.program.what
                        ))),
                        false => Ok(None),
                    }
                }
            }
        }
        let text = String::from_utf8_lossy(&self.said);
        let line = text.lines().next().unwrap_or_default();
        line.parse()
            .map(Some)
            .map_err(|_| failed(format!("{} has made guest {line:?}", self.program.what)))
    }

    fn finish(&mut self) -> Result<bool, HvError> {
        self.pipe = None;
        let deadline = Instant::now() + PAUSE;
        loop {
            if self.said.ends_with(DONE) {
                self.program.leave();
                return Ok(true);
            }
            match self.hear(deadline)? {
                Heard::Words => {}
                Heard::Nothing => return Ok(false),
                Heard::End => break,
            }
        }
        self.program
            .ended(deadline.saturating_duration_since(Instant::now()))
    }

    fn abort(&mut self) -> Result<(), HvError> {
        self.pipe = None;
        self.program.give_up()
    }
}

/// What came of listening.
enum Heard {
    /// More was said.
    Words,
    /// Nothing for as long as that was waited for.
    Nothing,
    /// Nothing more will be said.
    End,
}

impl Restore {
    /// Whole lines that it has said.
    fn lines(&self) -> usize {
        self.said.iter().filter(|b| **b == b'\n').count()
    }

    /// Listen to what it says about the guest that it makes, until `deadline`.
    fn hear(&mut self, deadline: Instant) -> Result<Heard, HvError> {
        loop {
            let Some(ready) = &mut self.ready else {
                return Ok(Heard::End);
            };
            let mut part = [0; 32];
            match ready.read(&mut part) {
                Ok(0) => self.ready = None,
                Ok(n) => {
                    self.said.extend(&part[..n]);
                    return Ok(Heard::Words);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    if !ready_by(ready, PollFlags::POLLIN, deadline) {
                        return Ok(Heard::Nothing);
                    }
                }
                Err(e) => return Err(failed(format!("{}: {e}", self.program.what))),
            }
        }
    }

    /// The program does not read any more: its own words say why.
    fn broken(&mut self, e: &io::Error) -> HvError {
        self.pipe = None;
        match self.program.ended(PAUSE) {
            Err(why) => why,
            Ok(_) => failed(format!("{} does not read on: {e}", self.program.what)),
        }
    }
}

/// What a toolstack can do.
#[derive(Debug, PartialEq, Eq)]
pub struct Abilities {
    /// Why it cannot move guests, if so.
    pub problem: Option<String>,
    /// It can make a guest before that is suspended where it comes from.
    pub stages: bool,
}

/// What this toolstack can do, by its own words.
pub fn abilities() -> Abilities {
    abilities_of(|what| xl(&["help", what]).unwrap_or_default())
}

fn abilities_of(help: impl Fn(&str) -> String) -> Abilities {
    let all = ["save", "restore"].map(|what| (what, help(what)));
    let lacks = |option: &str| all.iter().find(|(_, text)| !text.contains(option));
    Abilities {
        problem: lacks("--external-memory").map(|(what, _)| {
            format!(
                "its toolstack lacks `xl {what} --external-memory`; install one with the patches of hypervisor-patches/toolstack"
            )
        }),
        stages: lacks("--staged").is_none(),
    }
}

/// How much memory a new guest may have, in MiB.
pub fn free_mib() -> Result<u64, HvError> {
    let free = xl(&["info", "free_memory"])?;
    free.trim()
        .parse()
        .map_err(|_| failed(format!("`xl info free_memory` printed {free:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::Signal;
    use nix::unistd::Pid;
    use std::os::unix::fs::PermissionsExt;

    /// A program that plays `xl`, in a directory of its own.
    fn play(script: &str) -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("xl");
        let text = format!("#!/bin/sh\ncd {}\n{script}\n", dir.path().display());
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = path.to_str().unwrap().to_owned();
        (dir, path)
    }

    fn pull_all(save: &mut Save) -> Result<Vec<u8>, HvError> {
        let mut all = Vec::new();
        loop {
            let (data, end) = save.pull()?;
            assert!(data.len() <= MAX_PART);
            all.extend(data);
            if end {
                return Ok(all);
            }
        }
    }

    /// To destroy a guest takes as long as it has memory.
    #[test]
    fn a_command_that_is_slow_has_the_time_that_it_is_given() {
        let (dir, xl) = play("[ $1 = destroy ] && read -r word <slow && echo $word");
        let pipe = dir.path().join("slow");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let destroy = |limit| run_within(&xl, &["destroy", "7"], limit);
        let e = destroy(Duration::from_millis(100)).unwrap_err();
        assert!(e.message.starts_with("`xl destroy 7`: "), "{e}");
        let ends = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            std::fs::write(pipe, "gone\n").unwrap();
        });
        assert_eq!(destroy(Duration::from_secs(60)).unwrap(), "gone\n");
        ends.join().unwrap();
    }

    #[test]
    fn a_save_is_complete_when_its_program_says_so() {
        let (dir, xl) = play("echo \"$*\" >arguments; head -c 2000000 /dev/zero >$5; exit 0");
        let mut save = Save::with(&xl, 7, true, false).unwrap();
        assert_eq!(pull_all(&mut save).unwrap(), vec![0; 2_000_000]);
        let arguments = std::fs::read_to_string(dir.path().join("arguments")).unwrap();
        assert_eq!(arguments, "save --external-memory -p 7 /proc/self/fd/1\n");
        let (_dir, xl) = play("echo state; echo first >&2; echo no room >&2; exit 1");
        let mut save = Save::with(&xl, 7, false, false).unwrap();
        let e = pull_all(&mut save).unwrap_err();
        assert!(e.message.contains("first; no room"), "{e}");
    }

    #[test]
    fn a_save_that_is_given_up_can_put_things_right() {
        // Writes until that fails, and says so: SIGPIPE would kill it before.
        let (dir, xl) =
            play("while echo state; do :; done 2>/dev/null; echo done >resumed; exit 1");
        let mut save = Save::with(&xl, 7, true, false).unwrap();
        assert!(!save.pull().unwrap().1);
        save.abort().unwrap();
        assert!(dir.path().join("resumed").exists());
    }

    #[test]
    fn nobody_waits_for_long_for_a_save_that_hangs() {
        let (_dir, xl) = play("exec sleep 100");
        let mut save = Save::with(&xl, 7, true, false).unwrap();
        let started = Instant::now();
        assert_eq!(save.pull().unwrap(), (Vec::new(), false));
        assert!(started.elapsed() < Duration::from_secs(50));
        save.program
            .give_up_within(Duration::from_millis(10))
            .unwrap();
    }

    #[test]
    fn a_restore_takes_what_it_is_given() {
        let (dir, xl) = play("cat \"$4\" >state");
        let mut restore = Restore::with(&xl, true, false).unwrap();
        let state: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7) as u8).collect();
        let mut at = 0;
        while at < state.len() {
            at += restore
                .push(&state[at..(at + 100_000).min(state.len())])
                .unwrap();
        }
        while !restore.finish().unwrap() {}
        assert!(std::fs::read(dir.path().join("state")).unwrap() == state);
    }

    #[test]
    fn a_restore_that_fails_says_why() {
        let (_dir, xl) = play("head -c 10 >/dev/null; echo not enough memory >&2; exit 3");
        let mut restore = Restore::with(&xl, false, false).unwrap();
        let mut result = Ok(0);
        for _ in 0..100 {
            result = restore.push(&[1; 100_000]);
            if result.is_err() {
                break;
            }
        }
        let e = result.unwrap_err();
        assert!(e.message.contains("not enough memory"), "{e}");
        assert!(e.message.contains("exit status: 3"), "{e}");
    }

    #[test]
    fn a_staged_save_waits_at_its_gate() {
        let script = "echo \"$*\" >arguments; echo pages
            if [ \"$(head -c 1 <&$4)\" = g ]; then echo state; sleep 0.2; echo more; else echo runs >said; exit 1; fi";
        let (dir, xl) = play(script);
        let said = |name| std::fs::read_to_string(dir.path().join(name));
        let mut save = Save::with(&xl, 7, true, true).unwrap();
        let mut before = Vec::new();
        while before != b"pages\n" {
            before.extend(save.pull().unwrap().0);
        }
        save.go().unwrap();
        assert_eq!(save.pull().unwrap(), (b"state\nmore\n".into(), true));
        assert!(save.go().is_err());
        assert_eq!(
            said("arguments").unwrap(),
            "save --external-memory --staged 3 -p 7 /proc/self/fd/1\n"
        );
        // Given up before that, it has done nothing to the guest.
        let mut save = Save::with(&xl, 7, true, true).unwrap();
        save.abort().unwrap();
        assert_eq!(said("said").unwrap(), "runs\n");
    }

    #[test]
    fn a_staged_restore_says_which_guest_it_has_made() {
        let script = "echo \"$*\" >arguments; echo Parsing 3 things; head -c 5 >/dev/null
            printf 4 >&$4; sleep 0.1; echo 2 >&$4; cat >state; exit 0";
        let (dir, xl) = play(script);
        let mut restore = Restore::with(&xl, true, true).unwrap();
        assert_eq!(restore.staged().unwrap(), None);
        assert_eq!(restore.push(b"pages").unwrap(), 5);
        assert_eq!(restore.staged().unwrap(), Some(42));
        assert_eq!(restore.staged().unwrap(), Some(42));
        assert_eq!(restore.push(b"rest").unwrap(), 4);
        while !restore.finish().unwrap() {}
        let read = |name| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("state"), "rest");
        let expected = "restore --external-memory --staged 3 -p /proc/self/fd/0\n";
        assert_eq!(read("arguments"), expected);
        // One that says that the guest is complete need not have ended.
        let script = "echo 2 >&$4; cat >state; echo done >&$4; echo $$ >pid; exec sleep 1000";
        let (dir, xl) = play(script);
        let mut restore = Restore::with(&xl, true, true).unwrap();
        assert_eq!(restore.staged().unwrap(), Some(2));
        let started = Instant::now();
        while !restore.finish().unwrap() {}
        assert!(started.elapsed() < Duration::from_secs(500));
        let pid = || std::fs::read_to_string(dir.path().join("pid")).unwrap_or_default();
        while !pid().ends_with('\n') {}
        let pid = Pid::from_raw(pid().trim().parse().unwrap());
        nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
        // One that fails has not said so.
        let (_dir, xl) = play("echo 2 >&$4; cat >state; echo no memory >&2; exit 3");
        let mut restore = Restore::with(&xl, true, true).unwrap();
        assert_eq!(restore.staged().unwrap(), Some(2));
        let mut result = restore.finish();
        while let Ok(false) = result {
            result = restore.finish();
        }
        assert!(result.unwrap_err().message.contains("no memory"));
        // What it lacks it says instead.
        let (_dir, xl) = play("echo no bridge br7 >&2; exit 3");
        let mut restore = Restore::with(&xl, true, true).unwrap();
        let e = restore.staged().unwrap_err();
        assert!(e.message.contains("no bridge br7"), "{e}");
    }

    #[test]
    fn what_a_toolstack_can_do() {
        let with = |save: &'static str, restore: &'static str| {
            abilities_of(|what| match what {
                "save" => save.into(),
                _ => restore.into(),
            })
        };
        let both = "--external-memory --staged";
        assert_eq!(
            with(both, both),
            Abilities {
                problem: None,
                stages: true
            }
        );
        let old = with(both, "--external-memory");
        assert!(old.problem.is_none() && !old.stages);
        let problem = with("", both).problem.unwrap();
        assert!(problem.contains("lacks `xl save --external-memory`"));
    }
}
