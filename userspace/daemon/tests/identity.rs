// SPDX-License-Identifier: GPL-2.0-only

//! An agent must be in the domain that its frames are taken for: sockets that are mixed up,
//! domids that are those of other host VMs, and who else may be at a port.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::peer::{assert_says, proxy};
use common::{agent, impostor, lock, request, uuid, World};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::Duration;
use vmbeam_agent_protocol::{FromAgent, ToAgent};
use vmbeam_control_protocol::{
    AgentReport, Failure, FromDaemon, Identity, MigrateRequest, Mode, ToDaemon,
};
use vmbeam_uapi::Mode as BindMode;
use vmbeam_wire::encode_old;
use vmbeamd::driver::{Driver, Pinned};

/// With a guest each in A and B; A is where `domid-A` says.
fn world() -> World {
    let mut w = World::new();
    let xl = w.dir.path().join("xl");
    std::fs::write(&xl, "#!/bin/sh\ncat \"${0%/*}/domid-$2\"\n").unwrap();
    std::fs::set_permissions(&xl, std::fs::Permissions::from_mode(0o755)).unwrap();
    w.domid_command = Some(xl);
    put(&w, "domid-A", "1");
    w
}

fn put(w: &World, name: &str, text: &str) {
    std::fs::write(w.dir.path().join(name), text).unwrap();
}

fn start(w: &mut World) {
    w.start();
    for name in ["A", "B"] {
        w.wait_agent(name, None);
    }
}

fn agents(w: &World) -> Vec<AgentReport> {
    match w.ask(&ToDaemon::Check) {
        FromDaemon::Check(report) => report.agents,
        other => panic!("{other:?}"),
    }
}

fn identity(w: &World, name: &str) -> Result<Identity, String> {
    let mut agents = agents(w).into_iter();
    agents
        .find(|a| a.host_vm == name)
        .unwrap()
        .identity
        .unwrap()
}

fn migration() -> MigrateRequest {
    MigrateRequest {
        from: request("A", "B").from,
        to: "B".into(),
        mode: Mode::Copy,
        dry_run: false,
        verify: false,
        timeout_seconds: None,
        max_downtime_ms: None,
    }
}

/// Whatever is asked for is refused with these words, before anything was done.
#[track_caller]
fn assert_refused(w: &World, words: &str) {
    let before = w.memory();
    for request in [
        ToDaemon::Swap(request("A", "B")),
        ToDaemon::Migrate(migration()),
        ToDaemon::Plan {
            from: "A".into(),
            to: "B".into(),
            mode: Mode::Swap,
        },
    ] {
        let FromDaemon::Error { failure, message } = w.ask(&request) else {
            panic!("{request:?} is done")
        };
        assert_eq!(failure, Failure::Refused, "{message}");
        assert_says(&message, words);
    }
    assert!(before == w.memory() && !w.paused("A") && !w.paused("B"));
}

#[track_caller]
fn assert_possible(w: &World) {
    let mut request = request("A", "B");
    request.dry_run = true;
    let answer = w.ask(&ToDaemon::Swap(request));
    assert!(matches!(answer, FromDaemon::Swapped(_)), "{answer:?}");
}

#[test]
fn a_host_vm_is_known_by_its_uuid() {
    let mut w = World::new();
    w.agents(&["A", "B"]);
    start(&mut w);
    let proven = |domid, name| {
        Ok(Identity {
            domid,
            uuid: uuid(name),
        })
    };
    assert_eq!(identity(&w, "A"), proven(1, "A"));
    assert_eq!(identity(&w, "B"), proven(2, "B"));
    assert_possible(&w);
}

/// Both are connected, and each swap would exchange memory of the wrong domains.
#[test]
fn crossed_sockets() {
    let mut w = World::new();
    agent(&w.socket("A"), w.hosts["B"].clone());
    agent(&w.socket("B"), w.hosts["A"].clone());
    start(&mut w);
    assert_refused(&w, "is in the host VM with UUID");
    let why = identity(&w, "A").unwrap_err();
    assert_says(
        &why,
        &format!("with UUID {}, but host VM A is domain 1", uuid("B")),
    );
    assert_says(&why, "it is in host VM B, domain 2: ");
    let FromDaemon::List(list) = w.ask(&ToDaemon::List) else {
        panic!()
    };
    // Nor are its guests shown as A's.
    assert_says(
        list[0].guests.as_ref().unwrap_err(),
        "is in the host VM with UUID",
    );
}

/// As after a restart of the host that started them in another order.
#[test]
fn swapped_domids() {
    let mut w = World::new();
    w.domids.insert("A".into(), 2);
    w.domids.insert("B".into(), 1);
    w.agents(&["A", "B"]);
    start(&mut w);
    assert_refused(&w, "host VM A is domain 2 with UUID");
}

/// Another domain has the number of one that has died, and even its UUID, as when a host VM with
/// a fixed domid is made anew: no job takes it for the one that it began with, and the next one
/// begins with it.
#[test]
fn a_reused_domid() {
    let mut w = World::new();
    w.agents(&["A"]);
    let driver = w.driver.clone();
    let meanwhile = std::sync::atomic::AtomicBool::new(true);
    proxy(&w.socket("B"), w.hosts["B"].clone(), move |m, _, _| {
        if matches!(m, ToAgent::Frames { .. }) && meanwhile.swap(false, Ordering::Relaxed) {
            lock(&driver.faults).reused.insert(1);
        }
        false
    });
    lock(&w.hosts["B"]).guests.clear();
    start(&mut w);
    let mut migration = migration();
    migration.mode = Mode::Swap;
    let before = w.memory();
    let FromDaemon::Error { failure, message } = w.ask(&ToDaemon::Migrate(migration.clone()))
    else {
        panic!()
    };
    assert_eq!(failure, Failure::Failed);
    assert_says(&message, "was destroyed and another has its domid");
    // What has the domid now has nothing to do with the guest, and nothing is done there.
    assert_says(&message, "lost with its host VM");
    assert!(before["A"] == w.memory()["A"]);
    lock(&w.hosts["A"]).guests.get_mut(&1).unwrap().paused = false;
    let answer = w.ask(&ToDaemon::Migrate(migration));
    assert!(matches!(answer, FromDaemon::Migrated(_)), "{answer:?}");
}

/// One that can ask only once which host VM has which domid takes no other domain for it.
#[test]
fn a_reused_domid_and_a_daemon_without_privileges() {
    let w = World::new();
    let driver = Pinned::for_ever(w.driver.clone());
    assert!(driver.open(1, 2, BindMode::Swap).is_ok() && driver.open_anew(1, 2).is_ok());
    lock(&w.driver.faults).reused.insert(1);
    assert!(driver.open_anew(1, 2).is_err() && driver.open(1, 2, BindMode::Swap).is_err());
    let driver = Pinned::new(w.driver.clone());
    assert!(driver.open(1, 2, BindMode::Swap).is_ok());
    lock(&w.driver.faults).reused.clear();
    assert!(driver.open(1, 2, BindMode::Swap).is_err());
    assert!(driver.open_anew(1, 2).is_ok() && driver.open(1, 2, BindMode::Swap).is_ok());
}

#[test]
fn a_host_vm_that_was_renamed_or_made_anew_meanwhile() {
    let mut w = world();
    w.agents(&["A", "B"]);
    start(&mut w);
    assert_possible(&w);
    std::fs::remove_file(w.dir.path().join("domid-A")).unwrap();
    assert_refused(&w, "host VM A is not running");
    // Another one has its name now, with an UUID of its own, and the agent of the old one is
    // still there.
    put(&w, "domid-A", "5");
    put(&w, "uuids", &format!("5 {}\n2 {}\n", uuid("N"), uuid("B")));
    assert_refused(&w, "host VM A is domain 5 with UUID");
    // Its own agent.
    lock(&w.hosts["A"]).uuid = uuid("N");
    assert_possible(&w);
    assert_eq!(identity(&w, "A").map(|i| i.uuid), Ok(uuid("N")));
    // The toolstack does not know the domain (any more).
    put(&w, "uuids", "");
    assert_refused(&w, "cannot learn the UUID of domain");
}

#[test]
fn an_agent_that_cannot_tell() {
    let mut w = World::new();
    lock(&w.hosts["B"]).uuid = Default::default();
    w.agents(&["A", "B"]);
    start(&mut w);
    assert_refused(&w, "cannot prove that it is in host VM B: there is no /sys");
}

/// A device model takes one client. Whoever comes second is told so, and served when the
/// first has gone.
#[test]
fn somebody_else_at_the_port() {
    let mut w = World::new();
    w.agents(&["A", "B"]);
    let other = UnixStream::connect(w.socket("B")).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    w.start();
    let problem = w.wait_agent("B", Some("somebody else is connected to"));
    assert_says(&problem, "`ss -xp | grep ");
    drop(other);
    w.wait_agent("B", None);
}

/// It hangs up at a message of this version, as those of the last one do.
#[test]
fn an_agent_of_an_old_version_is_named() {
    let mut w = World::new();
    w.agents(&["A"]);
    impostor(&w.socket("B"), |stream| loop {
        let mut header = [0; 28];
        if stream.read_exact(&mut header).is_err() || header[4..6] != [6, 0] {
            return;
        }
        let mut payload = vec![0; usize::from(header[8])];
        stream.read_exact(&mut payload).unwrap();
        // A Hello, whose first bytes have not changed.
        assert_eq!(payload[..2], [0, vmbeamd::VERSION.len() as u8]);
        let answer = encode_old(0, 0, &FromAgent::Done).unwrap();
        stream.write_all(&answer).unwrap();
    });
    w.start();
    let problem = w.wait_agent("B", Some("version 6 of the protocol"));
    assert_says(&problem, "install the same release on both");
}
