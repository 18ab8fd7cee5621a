// SPDX-License-Identifier: GPL-2.0-only

//! The toolstack's program while it moves a guest.

use crate::error::HvError;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;
use tracing::{debug, warn};
use vmbeam_agent_protocol::AgentErrorCode;
use vmbeam_xen::command::{self, Collector};

/// How long a program may take to end that has been told to give up: it lets its guest run again,
/// or destroys what there is of it. libxl waits 60 s for a guest to notice that it shall suspend
/// itself before it withdraws that, and 60 s for one that has noticed.
const GIVE_UP: Duration = Duration::from_secs(150);

pub(super) fn failed(message: impl Into<String>) -> HvError {
    HvError {
        code: AgentErrorCode::Toolstack,
        message: message.into(),
    }
}

/// The last lines of what a program said, as one.
pub(super) fn last_words(text: &str) -> String {
    let lines: Vec<&str> = text
        .split(['\n', '\r'])
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    if lines.is_empty() {
        return "it says nothing".into();
    }
    lines[lines.len().saturating_sub(6)..].join("; ")
}

/// A program with one end of its state on a pipe.
#[derive(Debug)]
pub(super) struct Program {
    /// Its words, for a person.
    pub(super) what: String,
    /// It, unless it was killed.
    child: Option<Child>,
    said: Collector,
}

impl Program {
    /// Start `xl`, with this redirection of descriptors; gives the other ends of what is piped. It
    /// ignores SIGPIPE: when the other end is lost it has to put things right, not to die.
    pub(super) fn start(
        xl: &str,
        arguments: &[&str],
        redirection: &str,
        stdin: Stdio,
        stdout: Stdio,
    ) -> Result<(Self, Option<ChildStdin>, Option<ChildStdout>), HvError> {
        let what = format!("`xl {}`", arguments.join(" "));
        debug!("{what}");
        let script = format!("trap '' PIPE; exec {redirection}; exec \"$@\"");
        let mut child = Command::new("sh")
            .args(["-c", &script, "sh", xl])
            .args(arguments)
            .stdin(stdin)
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| failed(format!("cannot run {what}: {e}")))?;
        let said = Collector::new(child.stderr.take(), true);
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let child = Some(child);
        Ok((Self { what, child, said }, stdin, stdout))
    }

    /// Whether it has ended well; an error if it has ended otherwise.
    pub(super) fn ended(&mut self, limit: Duration) -> Result<bool, HvError> {
        let Some(child) = &mut self.child else {
            return Err(failed(format!("{} was killed", self.what)));
        };
        match command::wait(child, limit) {
            Ok(None) => Ok(false),
            Ok(Some(status)) if status.success() => Ok(true),
            Ok(Some(status)) => {
                self.said.settle();
                let words = last_words(&self.said.text());
                Err(failed(format!("{}: {status}: {words}", self.what)))
            }
            Err(e) => Err(failed(format!("{}: {e}", self.what))),
        }
    }

    /// It has done what it was started for: nobody waits for its end, but that is looked at.
    pub(super) fn leave(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let (what, said) = (self.what.clone(), std::mem::take(&mut self.said));
        std::thread::spawn(move || match child.wait() {
            Ok(status) if status.success() => {}
            Ok(status) => {
                said.settle();
                warn!("{what}: {status}: {}", last_words(&said.text()));
            }
            Err(e) => warn!("{what}: {e}"),
        });
    }

    /// Its pipe is closed: wait for its end, however that is, and do not wait
    /// for ever.
    pub(super) fn give_up(&mut self) -> Result<(), HvError> {
        self.give_up_within(GIVE_UP)
    }

    pub(super) fn give_up_within(&mut self, limit: Duration) -> Result<(), HvError> {
        match self.ended(limit) {
            Ok(true) => Ok(()),
            Err(e) => {
                debug!("given up: {e}");
                Ok(())
            }
            Ok(false) => {
                warn!("{} does not end and is killed", self.what);
                // What hangs in the kernel does not end by that: it is not waited for.
                let killed = self.child.take().map_or(Ok(()), command::kill);
                killed.map_err(|e| failed(format!("{}: {e}", self.what)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn what_does_not_give_up_is_killed_and_not_waited_for() {
        let started = Instant::now();
        let (mut program, input, _) =
            Program::start("cat", &["-"], "", Stdio::piped(), Stdio::null()).unwrap();
        program.give_up_within(Duration::from_millis(10)).unwrap();
        assert!(program.child.is_none());
        let e = program.ended(Duration::ZERO).unwrap_err();
        assert_eq!(e.message, "`xl -` was killed");
        program.give_up().unwrap();
        assert!(started.elapsed() < Duration::from_secs(50));
        drop(input);
    }

    #[test]
    fn the_last_words_are_short() {
        assert_eq!(last_words(" \n"), "it says nothing");
        assert_eq!(last_words("a\rb\n\nc\n"), "a; b; c");
        let many: Vec<String> = (0..100).map(|i| i.to_string()).collect();
        assert_eq!(last_words(&many.join("\n")), "94; 95; 96; 97; 98; 99");
    }
}
