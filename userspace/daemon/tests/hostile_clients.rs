// SPDX-License-Identifier: GPL-2.0-only

//! Whoever talks to a real agent or to the control socket of a real daemon and makes no
//! sense, or does not listen.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::peer::{assert_says, reseal};
use common::{lock, World};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use vmbeam_agent_protocol::{AgentErrorCode, FromAgent, ToAgent};
use vmbeam_control_protocol::{Failure, FromDaemon, ToDaemon};
use vmbeam_wire::{encode, encode_old, Decoder};

// The agent's side.

fn agent_socket() -> (tempfile::TempDir, UnixStream) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    common::agent(&socket, common::host(0, 64, 3));
    let stream = UnixStream::connect(&socket).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    (dir, stream)
}

fn ask(stream: &mut UnixStream, raw: &[u8]) -> Option<FromAgent> {
    stream.write_all(raw).unwrap();
    let mut decoder = Decoder::strict();
    loop {
        while let Some(frame) = decoder.next_frame().unwrap() {
            // What a new agent says to the first one who listens.
            match frame.decode().unwrap() {
                FromAgent::Started => {}
                answer => return Some(answer),
            }
        }
        if decoder.fill(stream).unwrap() == 0 {
            return None;
        }
    }
}

#[test]
fn the_agent_refuses_what_makes_no_sense() {
    let (_dir, mut s) = agent_socket();
    let code = |answer| match answer {
        Some(FromAgent::Error { code, .. }) => code,
        other => panic!("{other:?}"),
    };
    let list = encode(1, 5, &ToAgent::ListGuests).unwrap();
    assert_eq!(code(ask(&mut s, &list)), AgentErrorCode::NoSession);
    let hello = encode(
        2,
        5,
        &ToAgent::Hello {
            daemon_version: "1".into(),
        },
    )
    .unwrap();
    assert!(matches!(ask(&mut s, &hello), Some(FromAgent::Hello { .. })));
    // Another session than the one that was opened.
    let other = encode(3, 6, &ToAgent::Frames { guest: 1 }).unwrap();
    assert_eq!(code(ask(&mut s, &other)), AgentErrorCode::NoSession);
    let none = encode(4, 5, &ToAgent::Frames { guest: 77 }).unwrap();
    assert_eq!(code(ask(&mut s, &none)), AgentErrorCode::NoGuest);
    for runs in [
        vec![(0, 0)],
        vec![(5, 2), (6, 2)],
        vec![(0, u32::MAX)],
        vec![(60, 10)],
    ] {
        let runs = runs
            .into_iter()
            .map(|(pfn, nr)| vmbeam_agent_protocol::PfnRun { pfn, nr })
            .collect();
        let digest = encode(5, 5, &ToAgent::Digest { guest: 1, runs }).unwrap();
        assert_eq!(code(ask(&mut s, &digest)), AgentErrorCode::BadRequest);
    }
    // A message of the wrong set, whole: the agent says so and goes on.
    let wrong = encode(6, 5, &ToDaemon::Check).unwrap();
    assert_eq!(code(ask(&mut s, &wrong)), AgentErrorCode::BadRequest);
    assert!(matches!(ask(&mut s, &list), Some(FromAgent::Guests(_))));
}

/// Its answer tells a daemon of the last version which this is; and a daemon of this version
/// says hello in both.
#[test]
fn the_agent_answers_a_daemon_of_the_last_version() {
    let (_dir, mut s) = agent_socket();
    let message = ToAgent::Hello {
        daemon_version: "1".into(),
    };
    let old = encode_old(2, 5, &message).unwrap();
    let Some(FromAgent::Error { message: text, .. }) = ask(&mut s, &old) else {
        panic!()
    };
    assert_says(&text, "the peer speaks version 6 of the protocol");
    let hello = encode(3, 5, &message).unwrap();
    let answer = ask(&mut s, &hello);
    assert!(matches!(answer, Some(FromAgent::Hello { .. })));
    // Later it is passed over.
    let list = encode(4, 5, &ToAgent::ListGuests).unwrap();
    let answer = ask(&mut s, &[old, list].concat());
    assert!(matches!(answer, Some(FromAgent::Guests(_))));
}

#[test]
fn the_agent_hangs_up_on_garbage_and_serves_the_next() {
    let (dir, mut s) = agent_socket();
    let hello = encode(
        2,
        5,
        &ToAgent::Hello {
            daemon_version: "1".into(),
        },
    )
    .unwrap();
    assert!(ask(&mut s, &hello).is_some());
    assert_eq!(ask(&mut s, b"GET / HTTP/1.0\r\n\r\n"), None);
    // The next one cuts off in the middle of a message.
    let mut s = UnixStream::connect(dir.path().join("agent.sock")).unwrap();
    s.write_all(&hello[..20]).unwrap();
    drop(s);
    let mut s = UnixStream::connect(dir.path().join("agent.sock")).unwrap();
    // Leftovers of an earlier conversation come first.
    let raw = [&hello[10..], &hello[..]].concat();
    assert!(matches!(ask(&mut s, &raw), Some(FromAgent::Hello { .. })));
}

// The control socket.

/// A client that asks and then does not read: its job goes on without it.
#[test]
fn a_client_that_does_not_read() {
    let mut w = World::new();
    w.agents(&["A", "B"]);
    w.start();
    w.wait_agent("A", None);
    w.wait_agent("B", None);
    // So many steps that its answers do not fit into the socket.
    lock(&w.driver.faults).step = Some(1);
    let mut stuck = UnixStream::connect(w.control()).unwrap();
    let request = ToDaemon::Swap(common::request("A", "B"));
    stuck.write_all(&encode(1, 1, &request).unwrap()).unwrap();
    let started = Instant::now();
    w.wait_paused("A");
    loop {
        let FromDaemon::Status(jobs) = w.ask(&ToDaemon::Status) else {
            panic!()
        };
        if !jobs[0].running {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(40), "{jobs:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn hostile_clients_of_the_control_socket() {
    let mut w = World::new();
    w.agents(&["A", "B"]);
    w.start();
    w.wait_agent("A", None);
    w.wait_agent("B", None);
    let good = encode(1, 1, &ToDaemon::Check).unwrap();
    let mut version = good.clone();
    version[4] = 99;
    reseal(&mut version);
    let mut length = good.clone();
    length[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let kind = encode(1, 1, &ToAgent::ListGuests).unwrap();
    for (raw, expected) in [
        (&b"hello there"[..], "not a VMBeam frame"),
        (&version, "version 99"),
        (&length, "the most is"),
        (&kind, "kind 1, expected kind 3"),
    ] {
        let mut s = UnixStream::connect(w.control()).unwrap();
        s.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        s.write_all(raw).unwrap();
        let mut answer = Vec::new();
        let _ = s.read_to_end(&mut answer);
        let mut d = Decoder::strict();
        d.push(&answer);
        let answer = d
            .next_frame()
            .unwrap()
            .unwrap()
            .decode::<FromDaemon>()
            .unwrap();
        let FromDaemon::Error {
            failure: Failure::Failed,
            message,
        } = answer
        else {
            panic!("{answer:?}")
        };
        assert_says(&message, expected);
    }
    // One that says half a word and stays must not keep others out.
    let mut slow: Vec<_> = (0..5)
        .map(|_| UnixStream::connect(w.control()).unwrap())
        .collect();
    for s in &mut slow {
        s.write_all(&good[..7]).unwrap();
    }
    assert!(matches!(w.swap("A", "B"), FromDaemon::Swapped(_)));
}
