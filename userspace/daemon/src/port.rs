// SPDX-License-Identifier: GPL-2.0-only

//! The host's end of a host VM's serial port.

use std::path::Path;

/// Sockets of this network namespace, for everybody to read.
const SOCKETS: &str = "/proc/self/net/unix";

/// Whether whoever listens there has accepted a connection. A device model takes one at a
/// time; others wait, and are told nothing.
pub(crate) fn is_taken(socket: &Path) -> bool {
    has(socket, |state| state == "03")
}

/// Whether there is anybody: who listens, or who was connected to one that did.
pub(crate) fn is_open(socket: &Path) -> bool {
    has(socket, |_| true)
}

/// Whether there is a socket of this name in such a state. A connection has the address of whom it
/// was made to at that end. Its state is 03 once it is accepted, and 02 before; that of who listens
/// is 01.
fn has(socket: &Path, is_meant: impl Fn(&str) -> bool) -> bool {
    let table = std::fs::read_to_string(SOCKETS).unwrap_or_default();
    // It has the name by which it was made, and may have another one by a link.
    let made = socket.canonicalize();
    let made = made.as_deref().unwrap_or(socket);
    table.lines().any(|line| {
        let mut words = line.split_whitespace();
        let state = words.nth(5);
        let path = words.nth(1).map(Path::new);
        path == Some(made) && state.is_some_and(&is_meant)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::time::{Duration, Instant};

    #[test]
    fn connections_that_wait_are_not_accepted_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        assert!(!is_taken(&path) && is_open(&path));
        let waits = UnixStream::connect(&path).unwrap();
        assert!(!is_taken(&path));
        let accepted = listener.accept().unwrap();
        assert!(is_taken(&path));
        let other = dir.path().join("agent");
        assert!(!is_taken(&other) && !is_open(&other));
        let link = dir.path().join("link.sock");
        std::os::unix::fs::symlink("agent.sock", &link).unwrap();
        assert!(is_taken(&link));
        drop(accepted);
        // A program that another test is just starting may have it for a moment.
        let start = Instant::now();
        while is_taken(&path) {
            assert!(start.elapsed() < Duration::from_secs(30));
            std::thread::yield_now();
        }
        drop(waits);
    }
}
