// SPDX-License-Identifier: GPL-2.0-only

//! Peers that break the protocol, on purpose or not, against a real daemon and
//! a real agent: a clear error, and nobody else is affected.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{impostor, lock, read_request, World, MEMORY_END};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use vmbeam_wire::message::{
    AgentErrorCode, Failure, FromAgent, FromDaemon, Guest, GuestKind, GuestState, ToAgent,
    ToDaemon, Toolstack,
};
use vmbeam_wire::{encode, Decoder, Excluded, FrameRun, Reason};

/// Set the CRC of a frame that was tampered with, so that what was tampered
/// with is what is found.
fn reseal(frame: &mut [u8]) {
    let mut crc = crc32(&frame[..24], 0);
    crc = crc32(&frame[28..], crc);
    frame[24..28].copy_from_slice(&crc.to_le_bytes());
}

/// CRC-32, the slow way, independent of the code under test.
fn crc32(bytes: &[u8], start: u32) -> u32 {
    let mut crc = !start;
    for b in bytes {
        crc ^= u32::from(*b);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1));
        }
    }
    !crc
}

fn hello() -> FromAgent {
    FromAgent::Hello {
        agent_version: "0".into(),
        hypervisor: "Impostor".into(),
        toolstack: Toolstack::default(),
        memory_end: MEMORY_END,
    }
}

fn guests() -> FromAgent {
    FromAgent::Guests(vec![Guest {
        name: "guest".into(),
        domid: 1,
        state: GuestState::Running,
        pages: 100,
        kind: GuestKind::Pv,
        cpu: None,
    }])
}

/// Behave until the frame list is asked for, then write `raw(request, session)`
/// and hang up if it says so.
fn well_behaved_until_frames(
    stream: &mut UnixStream,
    raw: &dyn Fn(u32, u64) -> Vec<u8>,
    hang_up: bool,
) {
    while let Some((request, session, payload)) = read_request(stream) {
        let answer = match vmbeam_wire_decode(&payload) {
            Some(ToAgent::Hello { .. }) => hello(),
            Some(ToAgent::ListGuests) => guests(),
            Some(ToAgent::Pause { .. }) => FromAgent::Paused { was_paused: true },
            Some(ToAgent::Frames { .. }) => {
                let _ = stream.write_all(&raw(request, session));
                if hang_up {
                    return;
                }
                continue;
            }
            _ => FromAgent::Done,
        };
        if stream
            .write_all(&encode(request, session, &answer).unwrap())
            .is_err()
        {
            return;
        }
    }
}

/// Decode a request's payload through the real decoder.
fn vmbeam_wire_decode(payload: &[u8]) -> Option<ToAgent> {
    vmbeam_wire::Frame {
        kind: 1,
        request: 0,
        session: 0,
        payload: payload.to_vec(),
    }
    .decode()
    .ok()
}

fn chunk(request: u32, session: u64, runs: &[(u64, u64, u32)], excluded: &[(u64, u32)]) -> Vec<u8> {
    let runs = runs.iter().map(|(pfn, gfn, nr)| FrameRun {
        pfn: *pfn,
        gfn: *gfn,
        nr: *nr,
    });
    let excluded = excluded.iter().map(|(pfn, nr)| Excluded {
        pfn: *pfn,
        nr: *nr,
        reason: Reason::PageTable,
    });
    let m = FromAgent::FramesChunk {
        runs: runs.collect(),
        excluded: excluded.collect(),
        more: u32::MAX,
    };
    encode(request, session, &m).unwrap()
}

fn end(request: u32, session: u64, pages: u64) -> Vec<u8> {
    encode(request, session, &FromAgent::FramesEnd { pages }).unwrap()
}

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

#[track_caller]
fn assert_says(message: &str, expected: &str) {
    assert!(message.contains(expected), "{message}");
}

#[test]
fn truncated_message() {
    let m = refused(|r, s| chunk(r, s, &[(0, 0, 10)], &[])[..30].to_vec(), true);
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
    assert_says(&m, "a message of 2097152 bytes");
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
            f[28] = 200;
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
    let greetings: [(&str, &[u8]); 2] = [
        ("no VMBeam frame", &[b'z'; 5 << 20]),
        ("port was closed", b""),
    ];
    for (expected, greeting) in greetings {
        let mut w = World::new();
        w.agents(&["A", "C", "D"]);
        impostor(&w.socket("B"), move |stream| {
            let _ = read_request(stream);
            let _ = stream.write_all(greeting);
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
            .map(|(pfn, nr)| vmbeam_wire::PfnRun { pfn, nr })
            .collect();
        let digest = encode(5, 5, &ToAgent::Digest { guest: 1, runs }).unwrap();
        assert_eq!(code(ask(&mut s, &digest)), AgentErrorCode::BadRequest);
    }
    // A message of the wrong set, whole: the agent says so and goes on.
    let wrong = encode(6, 5, &ToDaemon::Check).unwrap();
    assert_eq!(code(ask(&mut s, &wrong)), AgentErrorCode::BadRequest);
    assert!(matches!(ask(&mut s, &list), Some(FromAgent::Guests(_))));
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
    while !w.paused("A") {
        std::thread::sleep(Duration::from_millis(5));
    }
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
    version[4] = 9;
    reseal(&mut version);
    let mut length = good.clone();
    length[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let kind = encode(1, 1, &ToAgent::ListGuests).unwrap();
    for (raw, expected) in [
        (&b"hello there"[..], "not a VMBeam frame"),
        (&version, "version 9"),
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

// Agents that are alive, and slow.

/// A daemon between a real agent for A and an impostor for B that answers the request for
/// its list with one page a time, for ever; the time that a swap takes until it is refused.
fn dripping(request: u64) -> (World, Duration) {
    let mut w = World::new();
    w.timeout = request;
    w.agents(&["A"]);
    impostor(&w.socket("B"), |stream| {
        let drip = |stream: &mut UnixStream, request, session| {
            for i in 0.. {
                let part = chunk(request, session, &[(2 * i, i, 1)], &[]);
                if stream.write_all(&part).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(300));
            }
        };
        while let Some((request, session, payload)) = read_request(stream) {
            let answer = match vmbeam_wire_decode(&payload) {
                Some(ToAgent::Hello { .. }) => hello(),
                Some(ToAgent::ListGuests) => guests(),
                Some(ToAgent::Pause { .. }) => FromAgent::Paused { was_paused: true },
                Some(ToAgent::Frames { .. }) => return drip(stream, request, session),
                _ => FromAgent::Done,
            };
            let _ = stream.write_all(&encode(request, session, &answer).unwrap());
        }
    });
    w.start();
    w.wait_agent("A", None);
    w.wait_agent("B", None);
    let started = Instant::now();
    let FromDaemon::Error { message, .. } = w.swap("A", "B") else {
        panic!()
    };
    assert_says(&message, &format!("did not answer within {request} s"));
    assert!(!w.paused("A"));
    (w, started.elapsed())
}

#[test]
fn a_list_that_drips_ends_with_the_time_of_the_request() {
    let (_w, took) = dripping(2);
    assert!(took < Duration::from_secs(15), "{took:?}");
}

/// A peer that reads nothing, or a little now and then, does not hold up what is written
/// to it beyond the time of the request.
#[test]
fn a_peer_that_does_not_read_ends_with_the_time_of_the_request() {
    for sip in [0, 512] {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("B.sock");
        impostor(&socket, move |stream| {
            let Some((request, session, _)) = read_request(stream) else {
                return;
            };
            let _ = stream.write_all(&encode(request, session, &hello()).unwrap());
            let mut sipped = vec![0; sip];
            for _ in 0..200 {
                std::thread::sleep(Duration::from_millis(100));
                if sip > 0 && stream.read(&mut sipped).is_err() {
                    return;
                }
            }
        });
        let vm = vmbeamd::config::HostVmConfig {
            name: "B".into(),
            socket,
            domid: vmbeamd::config::Domid::Fixed(2),
        };
        let timeout = Duration::from_secs(2);
        let stop = std::sync::Arc::default();
        let mut link = vmbeamd::link::Link::connect(&vm, timeout, stop).unwrap();
        link.hello(Some(Duration::from_secs(10))).unwrap();
        // Pages that compress to nothing would fit into the socket.
        let mut noise = 1u32;
        let data = (0..128 * 4096)
            .map(|_| {
                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (noise >> 24) as u8
            })
            .collect();
        let runs = [vmbeam_wire::PfnRun { pfn: 0, nr: 128 }];
        let started = Instant::now();
        let e = link.write_pages(1, &runs, data).unwrap_err();
        assert_says(&e.to_string(), "did not answer within 2 s");
        assert!(started.elapsed() < Duration::from_secs(12), "{e}");
    }
}

/// `vmbeam list` shows the others in good time.
#[test]
fn one_that_is_silent_delays_the_list_of_nobody() {
    let mut w = World::new();
    w.timeout = 300;
    w.agents(&["B", "C", "D"]);
    // Greets once, and is silent then.
    impostor(&w.socket("A"), |stream| {
        if let Some((request, session, _)) = read_request(stream) {
            let _ = stream.write_all(&encode(request, session, &hello()).unwrap());
        }
        std::thread::sleep(Duration::from_secs(60));
    });
    w.start();
    for name in ["A", "B", "C", "D"] {
        w.wait_agent(name, None);
    }
    let started = Instant::now();
    let FromDaemon::List(list) = w.ask(&ToDaemon::List) else {
        panic!()
    };
    assert!(started.elapsed() < Duration::from_secs(20));
    let known: Vec<_> = list.iter().map(|vm| vm.guests.is_ok()).collect();
    assert_eq!(known, [false, true, true, true]);
}
