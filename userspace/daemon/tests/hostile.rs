// SPDX-License-Identifier: GPL-2.0-only

//! Agents that break the protocol, on purpose or not, against a real daemon: a clear
//! error, and nobody else is affected.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::peer::{
    assert_says, chunk, end, guests, hello, proxy, reseal, well_behaved_until_frames,
};
use common::{impostor, lock, read_request, World, MEMORY_END};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use vmbeam_agent_protocol::{AgentErrorCode, FromAgent, ToAgent};
use vmbeam_control_protocol::{Failure, FromDaemon, ToDaemon};
use vmbeam_wire::encode;

/// Host VM B is an impostor; what does a swap between A and B say, and does one
/// between C and D still work?
fn refused(raw: impl Fn(u32, u64) -> Vec<u8> + Send + 'static, hang_up: bool) -> String {
    refused_within(60, raw, hang_up)
}

fn refused_within(
    timeout: u64,
    raw: impl Fn(u32, u64) -> Vec<u8> + Send + 'static,
    hang_up: bool,
) -> String {
    let mut w = World::new();
    w.timeout = timeout;
    w.agents(&["A", "C", "D"]);
    impostor(&w.socket("B"), move |stream| {
        well_behaved_until_frames(stream, &raw, hang_up)
    });
    w.start();
    for name in ["A", "B", "C", "D"] {
        w.wait_agent(name, None);
    }
    let before = w.memory();
    let (answer, other) = std::thread::scope(|s| {
        let other = s.spawn(|| w.swap("C", "D"));
        (w.swap("A", "B"), other.join().unwrap())
    });
    let FromDaemon::Swapped(other) = other else {
        panic!("{other:?}")
    };
    assert_eq!((other.pages_swapped > 0, other.mismatches), (true, 0));
    let FromDaemon::Error { failure, message } = answer else {
        panic!("{answer:?}")
    };
    assert_eq!(failure, Failure::Refused, "{message}");
    assert!(message.contains("agent of host VM B"), "{message}");
    let after = w.memory();
    assert_eq!((&before["A"], &before["B"]), (&after["A"], &after["B"]));
    assert!(!w.paused("A"));
    // The impostor may come back, and be found out again.
    w.wait_agent("B", None);
    assert!(matches!(w.swap("A", "B"), FromDaemon::Error { .. }));
    message
}

#[test]
fn truncated_message() {
    let m = refused(|r, s| chunk(r, s, &[(0, 0, 10)], &[])[..34].to_vec(), true);
    assert_says(&m, "in the middle of a message");
}

#[test]
fn closed_without_an_answer() {
    assert_says(&refused(|_, _| Vec::new(), true), "port was closed");
}

#[test]
fn silent() {
    assert_says(
        &refused_within(3, |_, _| Vec::new(), false),
        "did not answer within 3 s",
    );
}

/// An agent that was killed and started again is not waited for.
#[test]
fn restarted() {
    let m = refused(|_, _| encode(0, 0, &FromAgent::Started).unwrap(), false);
    assert_says(&m, "it was restarted");
}

/// But the next job does not fail because it comes before the agent is back.
#[test]
fn one_that_was_just_restarted_comes_back() {
    let mut w = World::new();
    w.agents(&["A"]);
    let restarted = AtomicBool::new(false);
    proxy(
        &w.socket("B"),
        w.hosts["B"].clone(),
        move |message, daemon, _| {
            let now = matches!(message, ToAgent::Frames { .. })
                && !restarted.swap(true, Ordering::Relaxed);
            if now {
                let _ = daemon.write_all(&encode(0, 0, &FromAgent::Started).unwrap());
            }
            now
        },
    );
    w.start();
    w.wait_agent("A", None);
    w.wait_agent("B", None);
    let FromDaemon::Error { message, .. } = w.swap("A", "B") else {
        panic!("an agent that was restarted answered");
    };
    assert_says(&message, "it was restarted");
    let next = w.swap("A", "B");
    assert!(matches!(next, FromDaemon::Swapped(_)), "{next:?}");
}

#[test]
fn oversized_message() {
    let m = refused(
        |r, s| {
            let mut f = end(r, s, 0);
            f[8..12].copy_from_slice(&(2u32 << 20).to_le_bytes());
            f
        },
        false,
    );
    assert_says(&m, "a message of 2097148 bytes");
}

#[test]
fn wrong_version() {
    let m = refused(
        |r, s| {
            let mut f = end(r, s, 0);
            f[4] = 77;
            reseal(&mut f);
            f
        },
        false,
    );
    assert_says(&m, "speaks version 77");
}

#[test]
fn wrong_checksum() {
    let m = refused(
        |r, s| {
            let mut f = end(r, s, 0);
            f[24] ^= 1;
            f
        },
        false,
    );
    assert_says(&m, "checksum");
}

#[test]
fn garbage() {
    let m = refused(|_, _| (0..=255).cycle().take(100_000).collect(), false);
    assert_says(&m, "not a VMBeam frame");
}

#[test]
fn undecodable_payload() {
    let m = refused(
        |r, s| {
            let mut f = end(r, s, 1 << 20);
            f[32] = 200;
            reseal(&mut f);
            f
        },
        false,
    );
    assert_says(&m, "cannot be decoded");
}

#[test]
fn wrong_session() {
    assert_says(
        &refused(|r, s| end(r, s ^ 1, 0), false),
        "an answer in session",
    );
}

#[test]
fn wrong_request() {
    assert_says(
        &refused(|r, s| end(r + 5, s, 0), false),
        "an answer to request",
    );
}

/// What an agent cannot say is an error, and it goes on.
#[test]
fn an_answer_that_is_not_fit_is_not_sent() {
    let mut w = World::new();
    w.agents(&["A"]);
    w.start();
    w.wait_agent("A", None);
    let name = |name: &str| lock(&w.hosts["A"]).guests.get_mut(&1).unwrap().name = name.into();
    let guests = || {
        let FromDaemon::List(list) = w.ask(&ToDaemon::List) else {
            panic!()
        };
        list.into_iter().find(|vm| vm.name == "A").unwrap().guests
    };
    name("a\u{202e}b");
    for _ in 0..2 {
        assert_says(&guests().unwrap_err(), "the answer (Guests) cannot be sent");
    }
    name("ab");
    assert_eq!(guests().unwrap()[0].name, "ab");
}

#[test]
fn answer_to_another_question() {
    assert_says(
        &refused(|r, s| encode(r, s, &guests()).unwrap(), false),
        "Guests is not an answer to this request",
    );
}

#[test]
fn overlapping_runs() {
    let m = refused(|r, s| chunk(r, s, &[(0, 0, 10), (5, 20, 10)], &[]), false);
    assert_says(&m, "overlap or are out of order at pfn 0x5");
    let m = refused(
        |r, s| [chunk(r, s, &[(0, 0, 10)], &[(9, 1)]), end(r, s, 11)].concat(),
        false,
    );
    assert_says(&m, "overlap or are out of order at pfn 0x9");
}

#[test]
fn one_frame_behind_two_pages() {
    let m = refused(
        |r, s| [chunk(r, s, &[(0, 50, 10), (20, 59, 1)], &[]), end(r, s, 11)].concat(),
        false,
    );
    assert_says(&m, "frame 0x3b is behind two pages");
}

#[test]
fn empty_and_overflowing_runs() {
    assert_says(
        &refused(|r, s| chunk(r, s, &[(7, 0, 0)], &[]), false),
        "an empty run at pfn 0x7",
    );
    let m = refused(|r, s| chunk(r, s, &[(u64::MAX - 3, 0, 10)], &[]), false);
    assert_says(&m, "beyond the last possible frame");
    let m = refused(|r, s| chunk(r, s, &[], &[]), false);
    assert_says(&m, "without runs");
}

#[test]
fn frames_beyond_the_host_vms_memory() {
    let m = refused(|r, s| chunk(r, s, &[(0, MEMORY_END - 5, 10)], &[]), false);
    assert_says(&m, "beyond the host VM's memory, which ends at 0x1000");
}

#[test]
fn count_that_does_not_fit() {
    let m = refused(
        |r, s| [chunk(r, s, &[(0, 0, 10)], &[]), end(r, s, 11)].concat(),
        false,
    );
    assert_says(&m, "10 pages were sent, 11 announced");
    assert_says(&refused(|r, s| end(r, s, u64::MAX), false), "the most is");
}

#[test]
fn endless_list() {
    let m = refused(
        |r, s| {
            let mut all = Vec::new();
            for i in 0..130u64 {
                let runs: Vec<_> = (0..8192)
                    .map(|n| ((i * 8192 + n) * 2, (n * 2) % 4000, 1))
                    .collect();
                all.extend(chunk(r, s, &runs, &[]));
            }
            all
        },
        false,
    );
    assert_says(&m, "more than 1048576 runs");
}

#[test]
fn an_error_is_passed_on() {
    let m = refused(
        |r, s| {
            let code = AgentErrorCode::Hypervisor;
            encode(
                r,
                s,
                &FromAgent::Error {
                    code,
                    message: "xc_map_m2p failed".into(),
                },
            )
            .unwrap()
        },
        false,
    );
    assert_says(&m, "agent of host VM B: xc_map_m2p failed");
}

/// An agent that never gets as far as a hello is reported, and does not hold up
/// anybody; when a good one takes its place, it is used.
#[test]
fn bad_greetings() {
    let greetings = [
        ("no VMBeam frame", vec![b'z'; 33 << 20]),
        ("port was closed", vec![]),
    ];
    for (expected, greeting) in greetings {
        let mut w = World::new();
        w.agents(&["A", "C", "D"]);
        impostor(&w.socket("B"), move |stream| {
            let _ = read_request(stream);
            let _ = stream.write_all(&greeting);
        });
        w.start();
        w.wait_agent("C", None);
        w.wait_agent("D", None);
        w.wait_agent("B", Some(expected));
        assert!(matches!(w.swap("C", "D"), FromDaemon::Swapped(_)));
        std::fs::remove_file(w.socket("B")).unwrap();
        w.agents(&["B"]);
        w.wait_agent("B", None);
        assert!(matches!(w.swap("A", "B"), FromDaemon::Swapped(_)));
    }
}

/// The rest of an earlier conversation in the port is passed over.
#[test]
fn stale_answers_before_the_hello() {
    let mut w = World::new();
    w.agents(&["A"]);
    impostor(&w.socket("B"), |stream| {
        while let Some((request, session, _)) = read_request(stream) {
            let old = chunk(request, session ^ 99, &[(0, 0, 10)], &[]);
            let _ = stream.write_all(&old[10..]);
            let _ = stream.write_all(&old);
            let _ = stream.write_all(&old[..20]);
            let _ = stream.write_all(&encode(request, session ^ 99, &FromAgent::Done).unwrap());
            let _ = stream.write_all(&encode(request, session, &hello()).unwrap());
        }
    });
    w.start();
    w.wait_agent("B", None);
}
