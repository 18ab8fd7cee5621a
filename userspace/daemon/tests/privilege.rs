// SPDX-License-Identifier: GPL-2.0-only

//! What the daemon cannot do any more once it is another user. Whatever is tried here can
//! be done by root, which is tried as well; without root there is nothing to be seen.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use vmbeam_control_protocol::{FromDaemon, ToDaemon};
use vmbeam_wire::{encode, Decoder};

/// What the daemon runs to learn a domid tries what nobody but root may.
const ATTEMPTS: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
try() { name=$1; shift; "$@" >/dev/null 2>&1 && echo "$name" >>done; }
try read cat secret
try replace mv secret-2 secret-3
try write sh -c 'echo x >root/file'
try chown chown 0:0 mine
try chroot chroot / true
try signal kill -0 "$(cat pid)"
try setuid sh -c '[ "$(./id -u)" = 0 ]'
try groups sh -c 'id -G | tr " " "\n" | grep -x 0'
grep -E "^(Cap(Inh|Prm|Eff|Amb)|NoNewPrivs)" /proc/self/status >status
echo end >>done
echo 1
"#;

struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A directory with what is tried on.
fn stage() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    // Everybody may write here, but not take away what is somebody else's.
    mode(dir.path(), 0o1777);
    for file in ["secret", "secret-2", "pid"] {
        fs::write(at(file), std::process::id().to_string()).unwrap();
    }
    for file in ["secret", "secret-2"] {
        mode(&at(file), 0o600);
    }
    fs::create_dir(at("root")).unwrap();
    fs::write(at("mine"), "").unwrap();
    fs::copy("/usr/bin/id", at("id")).unwrap();
    mode(&at("id"), 0o4755);
    let attempts = at("attempts");
    fs::write(&attempts, ATTEMPTS).unwrap();
    mode(&attempts, 0o755);
    (dir, attempts)
}

fn done(dir: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(dir.join("done")).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// A daemon as `nobody`.
fn daemon(dir: &Path, (command, domid): (&str, &str), args: &[&str]) -> (Service, PathBuf) {
    let control = dir.join("run/c.sock");
    let base = dir.display();
    let config = dir.join("vmbeamd.toml");
    let text = format!(
        "[daemon]\ncontrol_socket = {control:?}\nstate_dir = \"{base}/state\"\n\
         device = \"/nonexistent/vmbeam\"\n{command}\n\
         [[host_vm]]\nname = \"A\"\nsocket = \"{base}/A.sock\"\n{domid}\n"
    );
    fs::write(&config, text).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_vmbeamd"))
        .arg("--config")
        .arg(&config)
        .args(["--user", "nobody"])
        .args(args)
        .spawn()
        .unwrap();
    (Service(child), control)
}

fn ask(control: &Path, request: &ToDaemon) -> FromDaemon {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut stream = loop {
        match UnixStream::connect(control) {
            Ok(stream) => break stream,
            Err(e) => assert!(Instant::now() < deadline, "{e}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    stream.write_all(&encode(1, 1, request).unwrap()).unwrap();
    let mut decoder = Decoder::strict();
    loop {
        if let Some(frame) = decoder.next_frame().unwrap() {
            return frame.decode().unwrap();
        }
        assert_ne!(decoder.fill(&mut stream).unwrap(), 0, "the daemon hung up");
    }
}

/// Where the project tests itself nothing is left out.
fn is_root() -> bool {
    let root = nix::unistd::Uid::effective().is_root();
    assert!(root || std::env::var_os("VMBEAM_IN_SYSROOT").is_none());
    root
}

#[test]
fn what_it_runs_can_do_nothing_that_takes_root() {
    if !is_root() {
        return;
    }
    // Each attempt succeeds for somebody.
    let (dir, attempts) = stage();
    assert!(Command::new(&attempts).status().unwrap().success());
    let all = [
        "chown", "chroot", "end", "groups", "read", "replace", "setuid", "signal", "write",
    ];
    assert!(done(dir.path()).iter().eq(all), "{:?}", done(dir.path()));

    let (dir, attempts) = stage();
    let command = format!("domid_command = [{attempts:?}]");
    let (_service, control) = daemon(dir.path(), (&command, ""), &["--seccomp", "off"]);
    let FromDaemon::List(host_vms) = ask(&control, &ToDaemon::List) else {
        panic!()
    };
    assert_eq!(host_vms[0].domid, Ok(1));
    assert!(
        done(dir.path()).iter().eq(["end"]),
        "{:?}",
        done(dir.path())
    );
    let status = fs::read_to_string(dir.path().join("status")).unwrap();
    let lines: Vec<_> = status.lines().collect();
    assert_eq!(lines.len(), 5, "{status}");
    for line in lines {
        let (what, value) = line.split_once(":\t").unwrap();
        let expected = match what {
            "NoNewPrivs" => "1",
            _ => "0000000000000000",
        };
        assert_eq!(value, expected, "{what}");
    }
}

#[test]
fn every_thread_has_given_up_everything() {
    if !is_root() {
        return;
    }
    let (dir, _) = stage();
    let (service, control) = daemon(dir.path(), ("", "domid = 1"), &["--seccomp", "kill"]);
    ask(&control, &ToDaemon::Status);
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let (uid, gid) = (nobody.uid.to_string(), nobody.gid.to_string());
    let four = |id: &str| [id; 4].join("\t");
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{}/task", service.0.id())).unwrap() {
        let Ok(status) = fs::read_to_string(task.unwrap().path().join("status")) else {
            continue;
        };
        threads += 1;
        let value = |what: &str| {
            let line = status.lines().find(|l| l.starts_with(what)).unwrap();
            line[what.len() + 1..].trim().to_owned()
        };
        assert_eq!((value("Uid"), value("Gid")), (four(&uid), four(&gid)));
        assert!(!value("Groups").split(' ').any(|g| g == "0"), "{status}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(value(set), "0000000000000000", "{set}");
        }
        assert_eq!((&*value("NoNewPrivs"), &*value("Seccomp")), ("1", "2"));
    }
    assert!(threads >= 3, "only {threads} threads");
    // It may still do what it has to when an agent comes and goes.
    let listener = UnixListener::bind(dir.path().join("A.sock")).unwrap();
    mode(&dir.path().join("A.sock"), 0o777);
    listener.set_nonblocking(true).unwrap();
    for _ in 0..2 {
        let deadline = Instant::now() + Duration::from_secs(30);
        while listener.accept().is_err() {
            assert!(Instant::now() < deadline, "it does not connect");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    ask(&control, &ToDaemon::Status);
}
