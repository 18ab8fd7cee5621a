// SPDX-License-Identifier: GPL-2.0-only

//! Records what a daemon and an agent of this release say to each other, for tests of the
//! next one. `recorded/agent-6.bin` is that of protocol 6.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{lock, Host};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use vmbeam_wire::PfnRun;
use vmbeamd::config::{Domid, HostVmConfig};
use vmbeamd::link::Link;

/// Everything that a daemon asks an agent for; the answers, for comparison.
fn dialog(socket: &Path) -> Vec<String> {
    let vm = HostVmConfig {
        name: "A".into(),
        socket: socket.into(),
        domid: Domid::Fixed(1),
    };
    let mut link = Link::connect(&vm, Duration::from_secs(20), Arc::default()).unwrap();
    let mut said = Vec::new();
    link.hello(Some(Duration::from_secs(20))).unwrap();
    said.push(format!("{:?}", link.versions()));
    said.push(format!("{:?}", link.guests().unwrap()));
    said.push(format!("{:?}", link.facts().unwrap()));
    said.push(format!("{:?}", link.pause(1).unwrap()));
    said.push(format!("{:?}", link.frames(1, |_| {}).unwrap()));
    let runs = [PfnRun { pfn: 5, nr: 20 }, PfnRun { pfn: 40, nr: 1 }];
    said.push(format!("{:?}", link.digests(1, &runs, |_| {}).unwrap()));
    link.unpause(1).unwrap();
    link.save(1, true).unwrap();
    let mut stream = Vec::new();
    loop {
        let (data, end) = link.pull().unwrap();
        stream.extend(data);
        if end {
            break;
        }
    }
    said.push(format!("{:x}", xxhash_rust::xxh3::xxh3_128(&stream)));
    link.abort().unwrap();
    let few = [PfnRun { pfn: 0, nr: 3 }];
    let pages = link.read_pages(1, &few).unwrap();
    said.push(format!("{:x}", xxhash_rust::xxh3::xxh3_128(&pages)));
    link.write_pages(1, &few, pages).unwrap();
    link.resume(1).unwrap();
    link.restore("again", true).unwrap();
    let mut rest = &stream[..];
    while !rest.is_empty() {
        rest = &rest[link.push(rest).unwrap()..];
    }
    let new = link.finish().unwrap().unwrap();
    said.push(new.to_string());
    link.destroy(new).unwrap();
    said.push(format!("{:?}", link.pause(77).unwrap_err()));
    said
}

fn recording() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded/agent-6.bin")
}

fn small_host() -> Host {
    let host = common::host(0, 64, 3);
    lock(&host).trouble = common::Trouble::None;
    host
}

fn frame(stream: &mut UnixStream) -> Option<Vec<u8>> {
    let mut header = [0u8; 28];
    stream.read_exact(&mut header).ok()?;
    let length = u32::from_le_bytes(header[8..12].try_into().unwrap()) as usize;
    let mut frame = header.to_vec();
    frame.resize(28 + length, 0);
    stream.read_exact(&mut frame[28..]).ok()?;
    Some(frame)
}

/// Makes a recording, of this release.
#[test]
#[ignore = "only to make a new recording"]
fn record() {
    let dir = tempfile::tempdir().unwrap();
    let (real, tapped) = (dir.path().join("real"), dir.path().join("tapped"));
    common::agent(&real, small_host());
    let listener = UnixListener::bind(&tapped).unwrap();
    let tape = std::thread::spawn(move || {
        let (mut daemon, _) = listener.accept().unwrap();
        let mut agent = UnixStream::connect(&real).unwrap();
        let (mut d, mut a) = (daemon.try_clone().unwrap(), agent.try_clone().unwrap());
        let tape = Arc::new(std::sync::Mutex::new(Vec::new()));
        let other = tape.clone();
        let answers = std::thread::spawn(move || {
            while let Some(f) = frame(&mut a) {
                lock(&other).extend(&f);
                if d.write_all(&f).is_err() {
                    break;
                }
            }
        });
        while let Some(f) = frame(&mut daemon) {
            lock(&tape).extend(&f);
            agent.write_all(&f).unwrap();
        }
        agent.shutdown(std::net::Shutdown::Both).unwrap();
        answers.join().unwrap();
        let tape = lock(&tape).clone();
        tape
    });
    for line in dialog(&tapped) {
        println!("{line}");
    }
    let tape = tape.join().unwrap();
    std::fs::create_dir_all(recording().parent().unwrap()).unwrap();
    std::fs::write(recording(), tape).unwrap();
}
