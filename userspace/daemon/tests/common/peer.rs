// SPDX-License-Identifier: GPL-2.0-only

//! What peers say that break the protocol, or keep to it until they do not.

use super::{impostor, read_request, uuid, FakeHypervisor, Host, MEMORY_END};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use vmbeam_agent::Agent;
use vmbeam_agent_protocol::{
    Excluded, FrameRun, FromAgent, Guest, GuestKind, GuestState, Reason, ToAgent, Toolstack,
};
use vmbeam_wire::encode;

/// Set the checksums of a frame that was tampered with, so that what was tampered
/// with is what is found.
pub fn reseal(frame: &mut [u8]) {
    let header = crc32(&frame[..24], 0);
    frame[28..32].copy_from_slice(&header.to_le_bytes());
    let crc = crc32(&frame[28..], header);
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

/// What the agent of B says.
pub fn hello() -> FromAgent {
    hello_of("B")
}

pub fn hello_of(host_vm: &str) -> FromAgent {
    FromAgent::Hello {
        host_vm: Ok(uuid(host_vm)),
        agent_version: "0".into(),
        hypervisor: "Impostor".into(),
        toolstack: Toolstack::default(),
        memory_end: MEMORY_END,
    }
}

pub fn guests() -> FromAgent {
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
pub fn well_behaved_until_frames(
    stream: &mut UnixStream,
    raw: &dyn Fn(u32, u64) -> Vec<u8>,
    hang_up: bool,
) {
    while let Some((request, session, payload)) = read_request(stream) {
        let answer = match request_of(&payload) {
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
pub fn request_of(payload: &[u8]) -> Option<ToAgent> {
    vmbeam_wire::Frame {
        version: vmbeam_wire::VERSION,
        kind: 1,
        request: 0,
        session: 0,
        payload: payload.to_vec(),
    }
    .decode()
    .ok()
}

pub fn chunk(
    request: u32,
    session: u64,
    runs: &[(u64, u64, u32)],
    excluded: &[(u64, u32)],
) -> Vec<u8> {
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

pub fn end(request: u32, session: u64, pages: u64) -> Vec<u8> {
    encode(request, session, &FromAgent::FramesEnd { pages }).unwrap()
}

/// A real agent of this host behind somebody who sees each request first, and whether it was
/// dealt with already, in whatever way.
pub fn proxy(
    socket: &Path,
    host: Host,
    deal: impl Fn(&ToAgent, &mut UnixStream, (u32, u64)) -> bool + Send + 'static,
) {
    impostor(socket, move |daemon| {
        daemon.set_read_timeout(None).unwrap();
        let (mut to_agent, mut agent) = UnixStream::pair().unwrap();
        let host = host.clone();
        std::thread::spawn(move || {
            let _ = Agent::new(FakeHypervisor(host)).serve(&mut agent);
        });
        let (mut answers, mut back) = (to_agent.try_clone().unwrap(), daemon.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut answers, &mut back));
        while let Some((request, session, payload)) = read_request(daemon) {
            let message = request_of(&payload).unwrap();
            if !deal(&message, daemon, (request, session)) {
                let _ = to_agent.write_all(&encode(request, session, &message).unwrap());
            }
        }
        let _ = to_agent.shutdown(std::net::Shutdown::Both);
    });
}

/// A message has this in it.
#[track_caller]
pub fn assert_says(message: &str, expected: &str) {
    assert!(message.contains(expected), "{message}");
}
