// SPDX-License-Identifier: GPL-2.0-only

//! Agents that are alive, and slow.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::peer::{assert_says, chunk, guests, hello, hello_of, request_of};
use common::{impostor, read_request, World};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{mpsc, Arc};
use std::time::{Duration, Instant};
use vmbeam_agent_protocol::{FromAgent, PfnRun, ToAgent};
use vmbeam_control_protocol::{FromDaemon, ToDaemon};
use vmbeam_wire::encode;
use vmbeamd::config::{Domid, HostVmConfig};
use vmbeamd::link::{Link, Patience};

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
            let answer = match request_of(&payload) {
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
    assert!(took < Duration::from_secs(120), "{took:?}");
}

/// Host VM B, whose agent is at this socket.
fn host_vm(socket: PathBuf) -> HostVmConfig {
    HostVmConfig {
        name: "B".into(),
        socket,
        domid: Domid::Fixed(2),
        memory: Vec::new(),
        list: Vec::new(),
        replaces: None,
    }
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
            for _ in 0..1000 {
                std::thread::sleep(Duration::from_millis(100));
                if sip > 0 && stream.read(&mut sipped).is_err() {
                    return;
                }
            }
        });
        let timeout = Duration::from_secs(2);
        let mut link = Link::connect(&host_vm(socket), timeout, Arc::default()).unwrap();
        link.hello(Some(Duration::from_secs(10))).unwrap();
        // Pages that compress to nothing would fit into the socket.
        let mut noise = 1u32;
        let data = (0..128 * 4096)
            .map(|_| {
                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (noise >> 24) as u8
            })
            .collect();
        let runs = [PfnRun { pfn: 0, nr: 128 }];
        let started = Instant::now();
        let e = link.write_pages(1, &runs, data).unwrap_err();
        assert_says(&e.to_string(), "did not answer within 2 s");
        assert!(started.elapsed() < Duration::from_secs(60), "{e}");
    }
}

/// An agent that says hello, and tells digests; it sets this, and says so, whenever it is asked for
/// some.
fn tells_digests(socket: &Path, end: Arc<AtomicBool>) -> mpsc::Receiver<()> {
    let (ask, asked) = mpsc::channel();
    impostor(socket, move |stream| {
        while let Some((request, session, payload)) = read_request(stream) {
            let mut answer = |message: &FromAgent| {
                let _ = stream.write_all(&encode(request, session, message).unwrap());
            };
            let Some(ToAgent::Digest { runs, .. }) = request_of(&payload) else {
                answer(&hello());
                continue;
            };
            end.store(true, Ordering::Relaxed);
            let _ = ask.send(());
            for run in runs {
                for pfn in (run.pfn..run.pfn + u64::from(run.nr)).step_by(1024) {
                    let digests = vec![[0; 16]; 1024];
                    answer(&FromAgent::DigestChunk { pfn, digests });
                }
            }
            answer(&FromAgent::Done);
        }
    });
    asked
}

/// What was asked for has a few seconds to end when nobody wants it any more; not each of many
/// requests.
#[test]
fn nothing_is_asked_any_more_once_nobody_wants_it() {
    for stops in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let vm = host_vm(dir.path().join("B.sock"));
        let (end, other) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let asked = tells_digests(&vm.socket, end.clone());
        let (cancel, stop) = match stops {
            true => (other, end),
            false => (end, other),
        };
        let mut link = Link::connect(&vm, Duration::from_secs(300), stop).unwrap();
        link.hello(Some(Duration::from_secs(30))).unwrap();
        link.set_regardless(true);
        let runs = [PfnRun {
            pfn: 0,
            nr: 48 << 10,
        }];
        let now = Some(Instant::now());
        for (until, cancel, requests) in [(None, Some(cancel), 1), (now, None, 0)] {
            link.set_patience(Patience { until, cancel });
            let told = link.digests(1, &runs, |_| {}).map(|digests| digests.len());
            assert_says(&told.unwrap_err().to_string(), "it was not asked any more");
            assert_eq!(asked.try_iter().count(), requests);
        }
        // It is there for what undoes.
        link.set_patience(Patience::default());
        let digests = link.digests(1, &runs, |_| {}).unwrap();
        assert_eq!(digests.len(), 48 << 10);
    }
}

/// `vmbeam list` shows the others in good time.
#[test]
fn one_that_is_silent_delays_the_list_of_nobody() {
    let mut w = World::new();
    w.timeout = 300;
    w.agents(&["B", "C", "D"]);
    w.start();
    for name in ["B", "C", "D"] {
        w.wait_agent(name, None);
    }
    // Greets once, and is silent then: whoever asks it anything more waits.
    let (greeted, greeting) = mpsc::channel();
    impostor(&w.socket("A"), move |stream| {
        if let Some((request, session, _)) = read_request(stream) {
            let _ = stream.write_all(&encode(request, session, &hello_of("A")).unwrap());
            let _ = greeted.send(());
        }
        std::thread::sleep(Duration::from_secs(200));
    });
    greeting.recv_timeout(Duration::from_secs(30)).unwrap();
    let started = Instant::now();
    let FromDaemon::List(list) = w.ask(&ToDaemon::List) else {
        panic!()
    };
    assert!(started.elapsed() < Duration::from_secs(100));
    let known: Vec<_> = list.iter().map(|vm| vm.guests.is_ok()).collect();
    assert_eq!(known, [false, true, true, true]);
}
