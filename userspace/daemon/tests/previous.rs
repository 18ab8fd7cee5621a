// SPDX-License-Identifier: GPL-2.0-only

//! An agent of the version before ends what was begun, and does nothing else. What it says was
//! recorded with the real one, and is given in the frames that it speaks.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/moves.rs"]
mod moves;

use common::peer::{assert_says, reseal};
use common::{agent, impostor, lock, World};
use moves::{error, exchange, is_settled, left, migrate, request, swap_of};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vmbeam_agent_protocol::CpuFeatures;
use vmbeam_control_protocol::{Failure, FromDaemon, ToDaemon};
use vmbeam_wire::{PREVIOUS, VERSION};
use vmbeamd::journal::State;

/// Requests and answers, without their headers; the answer to nothing is that to all else.
const RECORDED: &str = include_str!("fixtures/agent-8.txt");
/// The first byte of a Hello, and of a request to let a guest run.
const HELLO: u8 = 0;
const RESUME: u8 = 15;

fn bytes(hex: &str) -> Vec<u8> {
    let digits = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(digits).collect()
}

fn recorded() -> HashMap<Vec<u8>, Vec<u8>> {
    let mut lines = RECORDED.lines().filter(|l| !l.starts_with('#'));
    let mut all = HashMap::new();
    while let (Some(request), Some(answer)) = (lines.next(), lines.next()) {
        let request = request.strip_prefix('>').unwrap().trim();
        let answer = answer.strip_prefix("< ").unwrap();
        all.insert(bytes(request), bytes(answer));
    }
    all
}

/// What it was asked for, in the order of that.
type Asked = Arc<Mutex<Vec<Vec<u8>>>>;

/// An agent that says what was recorded, in B.
fn previous(w: &World) -> Asked {
    let asked = Asked::default();
    let (recorded, seen) = (recorded(), asked.clone());
    impostor(&w.socket("B"), move |stream| loop {
        let mut header = [0; 28];
        if stream.read_exact(&mut header).is_err() {
            return;
        }
        let mut rest = vec![0; usize::from(u16::from_le_bytes([header[8], header[9]]))];
        stream.read_exact(&mut rest).unwrap();
        // Others it passes over.
        if header[4..6] != PREVIOUS.to_le_bytes() {
            continue;
        }
        let request = &rest[4..];
        let known = |known: &&Vec<u8>| {
            **known == request || request[0] == HELLO && known.first() == Some(&HELLO)
        };
        let at = recorded.keys().find(known).cloned().unwrap_or_default();
        let answer = &recorded[&at];
        let mut frame = header.to_vec();
        frame[6..8].copy_from_slice(&2u16.to_le_bytes());
        frame[8..12].copy_from_slice(&(answer.len() as u32 + 4).to_le_bytes());
        frame.extend([0; 4]);
        frame.extend(answer);
        reseal(&mut frame);
        lock(&seen).push(request.to_vec());
        if stream.write_all(&frame).is_err() {
            return;
        }
    });
    asked
}

#[test]
fn an_agent_of_the_version_before_ends_what_was_begun() {
    assert_eq!(
        (PREVIOUS, VERSION),
        (8, 9),
        "record a conversation of the last release"
    );
    let (mut w, _) = left(|w| {
        exchange(w, &swap_of(w));
        State::Resume
    });
    // The real agents of the world are at other sockets now.
    for name in ["A", "B"] {
        std::fs::remove_file(w.socket(name)).unwrap();
    }
    agent(&w.socket("A"), w.hosts["A"].clone());
    let asked = previous(&w);
    w.start();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_settled(&w) {
        assert!(Instant::now() < deadline, "{:?}", lock(&asked));
        std::thread::sleep(Duration::from_millis(20));
    }
    let resumed = lock(&asked).iter().filter(|r| r[0] == RESUME).count();
    assert_eq!(resumed, 1);
    assert!(lock(&w.hosts["A"]).guests.is_empty());
    // Nothing else is begun with it, and everybody is told why.
    let words = "speaks version 8 of the protocol, vmbeamd version 9: with it, only what was begun before is brought to an end";
    let (failure, message) = error(migrate(&w, "B", "A"));
    assert_eq!(failure, Failure::Refused);
    assert_says(&message, words);
    let mut dry = request("B", "A");
    dry.dry_run = true;
    assert_says(&error(w.ask(&ToDaemon::Migrate(dry))).1, words);
    let FromDaemon::Error { message, .. } = w.swap("B", "A") else {
        panic!()
    };
    assert_says(&message, words);
    assert_says(&w.wait_agent("B", Some("speaks version 8")), words);
    // Its guests are shown, with what it tells of their processor.
    let FromDaemon::List(list) = w.ask(&ToDaemon::List) else {
        panic!()
    };
    let guest = &list[1].guests.as_ref().unwrap()[0];
    assert_eq!((&*guest.name, guest.pages), ("guest", 1024));
    let features = guest.cpu.unwrap().missing_in(&CpuFeatures::default());
    let features: Vec<_> = features.iter().map(ToString::to_string).collect();
    assert_eq!(features, ["CPUID 0x7:0 ebx bit 5", "CPUID 0x7:1 ebx bit 5"]);
}
