// SPDX-License-Identifier: GPL-2.0-only

//! What starts guests at boot asks before it does: `vmbeam-agent --may-start`, a condition of
//! xendomains.service. Only the daemon on the host knows which guests live elsewhere by now,
//! so without an answer nothing is started, however long that takes.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the agent notes the daemon's answer: gone with the next boot.
const ANSWER: &str = "/run/vmbeam-agent/may-start";
/// How often to look.
const LOOK: Duration = Duration::from_millis(500);

/// The answer of the daemon.
#[derive(Clone, Debug)]
pub struct Gate(pub PathBuf);

impl Default for Gate {
    fn default() -> Self {
        Self(ANSWER.into())
    }
}

/// For whoever looks at what starts guests, if that can be told.
fn tell(words: &str) {
    let _ = writeln!(io::stderr(), "{words}");
}

impl Gate {
    /// Note it.
    pub fn answer(&self, allowed: bool) -> io::Result<()> {
        let dir = self.0.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(dir)?;
        let new = self.0.with_extension("new");
        fs::write(&new, if allowed { "yes\n" } else { "no\n" })?;
        fs::rename(new, &self.0)
    }

    /// There is none any more, until the next one comes.
    pub fn take_back(&self) -> io::Result<()> {
        match fs::remove_file(&self.0) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    fn read(&self) -> Option<bool> {
        match fs::read_to_string(&self.0).ok()?.trim() {
            "yes" => Some(true),
            "no" => Some(false),
            _ => None,
        }
    }

    /// Wait for the answer.
    pub fn wait(&self) -> bool {
        if self.read().is_none() {
            tell("vmbeam-agent: no guest is started before vmbeamd on the host has said that they may be");
        }
        loop {
            match self.read() {
                Some(true) => return true,
                Some(false) => {
                    tell("vmbeam-agent: this host VM is in maintenance, and starts no guests; after `vmbeam maintenance HOST_VM off` on the host, `systemctl start xendomains` does");
                    return false;
                }
                None => std::thread::sleep(LOOK),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_started_before_there_is_an_answer() {
        let dir = tempfile::tempdir().unwrap();
        let gate = Gate(dir.path().join("run/may-start"));
        let waiting = gate.clone();
        let waits = std::thread::spawn(move || waiting.wait());
        std::thread::sleep(3 * LOOK);
        assert!(!waits.is_finished());
        gate.answer(true).unwrap();
        assert!(waits.join().unwrap());
        for _ in 0..2 {
            gate.take_back().unwrap();
            assert_eq!(gate.read(), None);
        }
        gate.answer(false).unwrap();
        assert!(!gate.wait());
    }
}
