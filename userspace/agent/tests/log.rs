// SPDX-License-Identifier: GPL-2.0-only

//! What the program has to say where nobody can read it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// It would be taken for a no, and no guest be started.
#[test]
fn who_waits_to_start_guests_waits_on_whatever_can_be_said() {
    let (reader, gone) = nix::unistd::pipe().unwrap();
    drop(reader);
    let full = File::create("/dev/full").unwrap();
    for stderr in [Stdio::from(gone), Stdio::from(full)] {
        let mut waits = Command::new(env!("CARGO_BIN_EXE_vmbeam-agent"))
            .arg("--may-start")
            .stderr(stderr)
            .spawn()
            .unwrap();
        // It says so when it begins.
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            assert_eq!(waits.try_wait().unwrap(), None);
            std::thread::sleep(Duration::from_millis(20));
        }
        waits.kill().unwrap();
        waits.wait().unwrap();
    }
}
