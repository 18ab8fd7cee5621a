// SPDX-License-Identifier: GPL-2.0-only

//! A destination that is alive, but takes for ever: the limits of a migration and its
//! cancellation hold all the same, and the guest goes on where it was.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/moves.rs"]
mod moves;

use common::peer::{assert_says, chunk, proxy};
use common::{lock, wait_until, Trouble, World};
use moves::{error, is_settled, toolstack, BOTH};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmbeam_agent_protocol::{Digest, FromAgent, PfnRun, ToAgent};
use vmbeam_control_protocol::{Failure, FromDaemon, MigrateRequest, ToDaemon};
use vmbeam_uapi::Errno;
use vmbeam_wire::encode;

/// One page every so often; far below what an agent may take over a request.
const DRIP: Duration = Duration::from_secs(4);
/// A --timeout that is over only once the guest is suspended, on a busy machine as well.
const LIMIT: u32 = 5;
/// That, the time to wait for somebody who is there, and a busy machine.
const SOON: Duration = Duration::from_secs(25);
/// Longer than an agent is waited for that takes nothing.
const DEAF: Duration = Duration::from_secs(15);

/// What the agent of B does instead of its work, the first time that it is asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slow {
    /// Its lists come a page at a time, for ever.
    DripsFrames,
    /// The digests of what has arrived do.
    DripsDigests,
    /// It takes nothing of the guest's state.
    TakesNoState,
    /// It takes no pages that are copied.
    TakesNoPages,
    /// It does not tell what can be moved there.
    TellsNothing,
    /// Nothing: it works.
    Never,
}

impl Slow {
    /// Whether this is what it is asked for.
    fn begins(self, message: &ToAgent) -> bool {
        match (self, message) {
            (Self::DripsFrames, ToAgent::Frames { .. })
            | (Self::TakesNoState, ToAgent::Push { .. })
            | (Self::TakesNoPages, ToAgent::WritePages { .. })
            | (Self::TellsNothing, ToAgent::Facts) => true,
            // And not of a sample.
            (Self::DripsDigests, ToAgent::Digest { runs, .. }) => pages(runs) > 256,
            _ => false,
        }
    }

    fn deal(self, message: &ToAgent, daemon: &mut UnixStream, (request, session): (u32, u64)) {
        let mut drip = |part: &[u8]| {
            let goes = daemon.write_all(part).is_ok();
            std::thread::sleep(DRIP);
            goes
        };
        match (self, message) {
            (Self::DripsFrames, _) => {
                let mut parts = (0..).map(|i| chunk(request, session, &[(2 * i, i, 1)], &[]));
                while drip(&parts.next().unwrap()) {}
            }
            (_, ToAgent::Digest { runs, .. }) => {
                let pfns = runs.iter().flat_map(|r| r.pfn..r.pfn + u64::from(r.nr));
                let mut parts = pfns.map(|pfn| {
                    let digests = vec![Digest::default()];
                    encode(request, session, &FromAgent::DigestChunk { pfn, digests }).unwrap()
                });
                while drip(&parts.next().unwrap()) {}
            }
            (Self::TakesNoState | Self::TakesNoPages, _) => std::thread::sleep(DEAF),
            _ => {}
        }
    }
}

fn pages(runs: &[PfnRun]) -> u64 {
    runs.iter().map(|r| u64::from(r.nr)).sum()
}

/// Such a host VM B, A with a guest, and whether B has begun; with something changed before the
/// daemon starts.
fn world(slow: Slow, change: impl FnOnce(&mut World)) -> (World, Arc<AtomicBool>) {
    let mut w = World::new();
    w.timeout = 300;
    lock(&w.hosts["B"]).guests.clear();
    // Its lists are asked for while the guest is suspended.
    lock(&w.hosts["B"]).unstaged = true;
    let gfn = lock(&w.hosts["A"]).guests[&1].pages[200].gfn;
    lock(&w.driver.faults).refuse = [(gfn, -(Errno::EBUSY as i32))].into();
    w.agents(&["A"]);
    let begun = Arc::new(AtomicBool::new(false));
    let seen = begun.clone();
    proxy(
        &w.socket("B"),
        w.hosts["B"].clone(),
        move |message, daemon, ids| {
            let begins = slow.begins(message) && !seen.swap(true, Ordering::Relaxed);
            if begins {
                slow.deal(message, daemon, ids);
            }
            begins
        },
    );
    change(&mut w);
    w.start();
    w.wait_agent("A", None);
    w.wait_agent("B", None);
    (w, begun)
}

fn request(limits: (Option<u32>, Option<u32>)) -> MigrateRequest {
    MigrateRequest {
        verify: false,
        timeout_seconds: limits.0,
        max_downtime_ms: limits.1,
        ..moves::request("A", "B")
    }
}

/// A migration to such a host VM, brought to an end by a limit, or by a person once B has begun;
/// and why it ended.
fn ends(slow: Slow, limits: (Option<u32>, Option<u32>)) -> String {
    let (w, begun) = world(slow, |_| ());
    let before = lock(&w.hosts["A"]).memory.clone();
    let mut request = request(limits);
    request.verify = slow == Slow::DripsDigests;
    let message = std::thread::scope(|s| {
        let answer = s.spawn(|| w.ask(&ToDaemon::Migrate(request)));
        w.wait_paused("A");
        let suspended = Instant::now();
        if limits == (None, None) {
            cancel(&w, &begun);
        }
        while w.paused("A") {
            assert!(suspended.elapsed() < SOON, "{slow:?}: it stays suspended");
            std::thread::sleep(Duration::from_millis(5));
        }
        let (failure, message) = error(answer.join().unwrap());
        assert_ne!(failure, Failure::Refused, "{message}");
        message
    });
    assert!(
        before == lock(&w.hosts["A"]).memory,
        "its memory has changed"
    );
    wait_until("its copy in B is gone", || {
        lock(&w.hosts["B"]).guests.is_empty()
    });
    message
}

/// When B has begun.
fn cancel(w: &World, begun: &AtomicBool) {
    wait_until("B has begun", || begun.load(Ordering::Relaxed));
    assert_eq!(w.ask(&ToDaemon::Abort { job: 1 }), FromDaemon::Done);
}

fn timeout_holds_against(slow: Slow) {
    let message = ends(slow, (Some(LIMIT), None));
    assert_says(&message, "the --timeout: agent of host VM B");
}

fn max_downtime_holds_against(slow: Slow) {
    let message = ends(slow, (None, Some(1000)));
    assert_says(&message, "the --max-downtime: agent of host VM B");
}

fn cancellation_holds_against(slow: Slow) {
    assert_says(&ends(slow, (None, None)), "it was cancelled");
}

#[test]
fn a_timeout_holds_against_a_list_that_drips() {
    timeout_holds_against(Slow::DripsFrames);
}

#[test]
fn a_max_downtime_holds_against_a_list_that_drips() {
    max_downtime_holds_against(Slow::DripsFrames);
}

#[test]
fn a_cancellation_holds_against_a_list_that_drips() {
    cancellation_holds_against(Slow::DripsFrames);
}

#[test]
fn a_timeout_holds_against_a_peer_that_reads_nothing() {
    timeout_holds_against(Slow::TakesNoState);
}

#[test]
fn a_max_downtime_holds_against_a_peer_that_reads_nothing() {
    max_downtime_holds_against(Slow::TakesNoState);
}

#[test]
fn a_cancellation_holds_against_a_peer_that_reads_nothing() {
    cancellation_holds_against(Slow::TakesNoState);
}

/// Its memory is in B by then, and comes back.
#[test]
fn a_timeout_holds_against_digests_that_drip() {
    timeout_holds_against(Slow::DripsDigests);
}

#[test]
fn a_max_downtime_holds_against_digests_that_drip() {
    max_downtime_holds_against(Slow::DripsDigests);
}

#[test]
fn a_cancellation_holds_against_digests_that_drip() {
    cancellation_holds_against(Slow::DripsDigests);
}

#[test]
fn a_timeout_holds_against_a_peer_that_takes_no_pages() {
    timeout_holds_against(Slow::TakesNoPages);
}

#[test]
fn a_max_downtime_holds_against_a_peer_that_takes_no_pages() {
    max_downtime_holds_against(Slow::TakesNoPages);
}

#[test]
fn a_cancellation_holds_against_a_peer_that_takes_no_pages() {
    cancellation_holds_against(Slow::TakesNoPages);
}

/// Before anything is begun as well: whoever waits is told, and nothing was done.
#[test]
fn a_timeout_and_a_cancellation_hold_in_preflight() {
    for limit in [Some(LIMIT), None] {
        let (w, begun) = world(Slow::TellsNothing, |_| ());
        let asked = Instant::now();
        let message = std::thread::scope(|s| {
            let answer = s.spawn(|| w.ask(&ToDaemon::Migrate(request((limit, None)))));
            if limit.is_none() {
                cancel(&w, &begun);
            }
            error(answer.join().unwrap()).1
        });
        assert!(asked.elapsed() < SOON);
        // B, which was asked, or A, which was not any more.
        let why = match limit {
            Some(_) => "it was not done after 5 s, the --timeout: agent of host VM ",
            None => "it was cancelled: agent of host VM ",
        };
        assert_says(&message, why);
        assert_eq!(lock(&w.hosts["A"]).suspended, 0);
    }
}

/// The host's toolstack does not answer when the guest is to go on where it was: that host VM is
/// known by its agent, and the other one is not waited for.
#[test]
fn a_toolstack_that_hangs_keeps_no_guest_suspended() {
    // The agent of B stays, or is lost.
    for (slow, trouble) in [
        (Slow::Never, Trouble::SaveHangs),
        (Slow::TakesNoState, Trouble::None),
    ] {
        let (w, begun) = world(slow, |w| toolstack(w, BOTH));
        lock(&w.hosts["A"]).trouble = trouble;
        let hangs = w.dir.path().join("hangs");
        let message = std::thread::scope(|s| {
            let answer = s.spawn(|| w.ask(&ToDaemon::Migrate(request((None, None)))));
            w.wait_paused("A");
            std::fs::write(&hangs, "").unwrap();
            let suspended = Instant::now();
            begun.fetch_or(slow == Slow::Never, Ordering::Relaxed);
            cancel(&w, &begun);
            while w.paused("A") {
                assert!(suspended.elapsed() < SOON, "{slow:?}: it stays suspended");
                std::thread::sleep(Duration::from_millis(5));
            }
            if slow != Slow::Never {
                std::fs::remove_file(&hangs).unwrap();
            }
            let (failure, message) = error(answer.join().unwrap());
            assert_eq!(failure, Failure::RolledBack, "{message}");
            message
        });
        assert_says(&message, "it was cancelled");
        assert_says(&message, "; the guest runs in A");
        assert!(is_settled(&w) && lock(&w.hosts["B"]).guests.is_empty());
    }
}
