// SPDX-License-Identifier: GPL-2.0-only

//! A destination that is alive, but takes for ever: the limits of a migration and its
//! cancellation hold all the same, and the guest goes on where it was.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::peer::{assert_says, chunk, proxy};
use common::{lock, World};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vmbeam_agent_protocol::ToAgent;
use vmbeam_control_protocol::{Failure, FromDaemon, GuestRef, MigrateRequest, Mode, ToDaemon};

/// One page every so often; far below what an agent may take over a request.
const DRIP: Duration = Duration::from_secs(4);
/// A limit of a second, the time to wait for somebody who is there, and a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// What the agent of B does instead of its work, the first time that it is asked for it.
#[derive(Clone, Copy, Debug)]
enum Slow {
    /// It answers with a page at a time, for ever.
    Drips,
    /// It takes nothing that is sent, beginning with the guest's state.
    ReadsNothing,
    /// It does not tell what can be moved there.
    TellsNothing,
}

impl Slow {
    fn deal(
        self,
        message: &ToAgent,
        daemon: &mut UnixStream,
        (request, session): (u32, u64),
    ) -> bool {
        match (self, message) {
            (Self::Drips, ToAgent::Frames { .. }) => {
                for i in 0.. {
                    let part = chunk(request, session, &[(2 * i, i, 1)], &[]);
                    if daemon.write_all(&part).is_err() {
                        break;
                    }
                    std::thread::sleep(DRIP);
                }
                true
            }
            (Self::ReadsNothing, ToAgent::Push { .. }) => {
                std::thread::sleep(SOON);
                true
            }
            (Self::TellsNothing, ToAgent::Facts) => true,
            _ => false,
        }
    }
}

/// Such a host VM B, and A with a guest.
fn world(slow: Slow) -> World {
    let mut w = World::new();
    w.timeout = 300;
    lock(&w.hosts["B"]).guests.clear();
    // Its lists are asked for while the guest is suspended.
    lock(&w.hosts["B"]).unstaged = true;
    w.agents(&["A"]);
    let done = AtomicBool::new(false);
    proxy(
        &w.socket("B"),
        w.hosts["B"].clone(),
        move |message, daemon, ids| {
            !done.load(Ordering::Relaxed) && {
                let dealt = slow.deal(message, daemon, ids);
                done.store(dealt, Ordering::Relaxed);
                dealt
            }
        },
    );
    w.start();
    w.wait_agent("A", None);
    w.wait_agent("B", None);
    w
}

fn request(limits: (Option<u32>, Option<u32>)) -> MigrateRequest {
    MigrateRequest {
        from: GuestRef {
            host_vm: "A".into(),
            guest: "guest".into(),
        },
        to: "B".into(),
        mode: Mode::Swap,
        dry_run: false,
        verify: false,
        timeout_seconds: limits.0,
        max_downtime_ms: limits.1,
    }
}

/// A migration to such a host VM, which `end` brings to an end; and why it ended.
fn ends(slow: Slow, limits: (Option<u32>, Option<u32>), end: impl FnOnce(&World)) -> String {
    let w = world(slow);
    let before = lock(&w.hosts["A"]).memory.clone();
    let request = request(limits);
    let message = std::thread::scope(|s| {
        let answer = s.spawn(|| w.ask(&ToDaemon::Migrate(request)));
        while !w.paused("A") {
            std::thread::sleep(Duration::from_millis(5));
        }
        let suspended = Instant::now();
        end(&w);
        while w.paused("A") {
            assert!(suspended.elapsed() < SOON, "{slow:?}: it stays suspended");
            std::thread::sleep(Duration::from_millis(5));
        }
        match answer.join().unwrap() {
            FromDaemon::Error { failure, message } => {
                assert_ne!(failure, Failure::Refused, "{message}");
                message
            }
            other => panic!("{other:?}"),
        }
    });
    assert!(
        before == lock(&w.hosts["A"]).memory,
        "its memory has changed"
    );
    let deadline = Instant::now() + 2 * SOON;
    while !lock(&w.hosts["B"]).guests.is_empty() {
        assert!(Instant::now() < deadline, "its copy stays in B");
        std::thread::sleep(Duration::from_millis(50));
    }
    message
}

#[test]
fn a_timeout_holds_against_a_list_that_drips() {
    assert_says(
        &ends(Slow::Drips, (Some(1), None), |_| ()),
        "the --timeout: agent of host VM B",
    );
}

#[test]
fn a_max_downtime_holds_against_a_list_that_drips() {
    let message = ends(Slow::Drips, (None, Some(1000)), |_| ());
    assert_says(&message, "the --max-downtime: agent of host VM B");
}

#[test]
fn a_cancellation_holds_against_a_list_that_drips() {
    let message = ends(Slow::Drips, (None, None), cancel);
    assert_says(&message, "it was cancelled");
}

#[test]
fn a_timeout_holds_against_a_peer_that_reads_nothing() {
    let message = ends(Slow::ReadsNothing, (Some(1), None), |_| ());
    assert_says(&message, "the --timeout: agent of host VM B");
}

#[test]
fn a_max_downtime_holds_against_a_peer_that_reads_nothing() {
    let message = ends(Slow::ReadsNothing, (None, Some(1000)), |_| ());
    assert_says(&message, "the --max-downtime: agent of host VM B");
}

#[test]
fn a_cancellation_holds_against_a_peer_that_reads_nothing() {
    let message = ends(Slow::ReadsNothing, (None, None), cancel);
    assert_says(&message, "it was cancelled");
}

/// Before anything is begun as well: whoever waits is told, and nothing was done.
#[test]
fn a_timeout_and_a_cancellation_hold_in_preflight() {
    for limit in [Some(1), None] {
        let w = world(Slow::TellsNothing);
        let asked = Instant::now();
        let message = std::thread::scope(|s| {
            let answer = s.spawn(|| w.ask(&ToDaemon::Migrate(request((limit, None)))));
            if limit.is_none() {
                cancel(&w);
            }
            match answer.join().unwrap() {
                FromDaemon::Error { message, .. } => message,
                other => panic!("{other:?}"),
            }
        });
        assert!(asked.elapsed() < SOON);
        let why = match limit {
            Some(_) => "it was not done after 1 s, the --timeout: agent of host VM B",
            None => "it was cancelled: agent of host VM B",
        };
        assert_says(&message, why);
        assert_eq!(lock(&w.hosts["A"]).suspended, 0);
    }
}

/// When it drips for a while already.
fn cancel(w: &World) {
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(w.ask(&ToDaemon::Abort { job: 1 }), FromDaemon::Done);
}
