// SPDX-License-Identifier: GPL-2.0-only

//! What is said in frames.
//!
//! Each direction has a message set of its own. An answer carries the request
//! and session numbers of its question; the last answer to a question is the
//! one that [`FromAgent::is_last`] or [`FromDaemon::is_last`] says.

mod agent;
mod control;
mod evacuation;
mod memory;
mod report;

use crate::compressed;
use crate::preflight::is_plain;
use serde::de::DeserializeOwned;
use serde::Serialize;

pub use agent::{
    AgentErrorCode, Facts, FromAgent, Guest, GuestKind, GuestState, ToAgent, Toolstack,
};
pub use control::{Failure, FromDaemon, GuestRef, MigrateRequest, Mode, SwapRequest, ToDaemon};
pub use evacuation::*;
pub use memory::{HostMemory, HostVmMemory, MARGIN};
pub use report::*;

/// Most bytes of a name or a version.
pub const MAX_NAME: usize = 256;
/// Most bytes of an error's text.
pub const MAX_TEXT: usize = 4096;
/// Most pages that one [`ToAgent::Digest`] may ask for.
pub const MAX_DIGEST_PAGES: u64 = 64 << 10;
/// Most digests in one [`FromAgent::DigestChunk`].
pub const DIGESTS_PER_CHUNK: usize = 4096;
/// Most guests that one agent may list.
pub const MAX_GUESTS: usize = 1024;
/// Most bytes of a guest's saved state in one message.
pub const MAX_PART: usize = compressed::MOST;
/// Most pages whose contents one message carries or asks for.
pub const MAX_PAGES_PER_CHUNK: usize = compressed::MOST / PAGE;
/// Bytes of a page.
pub const PAGE: usize = 4096;

/// XXH3, 128 bits, little endian, of the 4096 bytes of a page.
pub type Digest = [u8; 16];

/// One of the message sets.
pub trait Message: Serialize + DeserializeOwned {
    /// Number of the set in the frame's header.
    const KIND: u16;

    /// Check the limits that decoding alone does not.
    fn check(&self) -> Result<(), String>;
}

fn short(what: &str, s: &str, most: usize) -> Result<(), String> {
    if s.len() > most {
        return Err(format!("{what} of {} bytes; the most is {most}", s.len()));
    }
    if s.chars().any(|c| c.is_control() && c != '\n') {
        return Err(format!("{what} with control characters"));
    }
    Ok(())
}

/// The name of a guest or of a host VM: one line that is what it looks like.
fn name(what: &str, s: &str) -> Result<(), String> {
    short(what, s, MAX_NAME)?;
    if !is_plain(s) {
        return Err(format!("{what} with control characters"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::Decoder;
    use crate::frame::{encode, FrameError};
    use crate::list::PfnRun;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// Through a frame and back, with all checks.
    fn pass<M: Message + Clone>(message: &M) -> Result<M, FrameError> {
        let mut decoder = Decoder::strict();
        decoder.push(&encode(1, 1, message)?);
        match decoder.next_frame()? {
            Some(frame) => frame.decode(),
            None => Err(FrameError::Noise),
        }
    }

    #[test]
    fn what_is_too_much_is_refused() {
        let big = |n| vec![0u8; n];
        assert!(pass(&ToAgent::Push {
            data: big(MAX_PART)
        })
        .is_ok());
        assert!(pass(&ToAgent::Push {
            data: big(MAX_PART + 1)
        })
        .is_err());
        let part = |n| FromAgent::Part {
            data: big(n),
            end: false,
        };
        assert!(pass(&part(MAX_PART)).is_ok());
        assert!(pass(&part(MAX_PART + 1)).is_err());
        let write = |runs: &[(u64, u32)], n| ToAgent::WritePages {
            guest: 1,
            runs: runs
                .iter()
                .map(|(pfn, nr)| PfnRun { pfn: *pfn, nr: *nr })
                .collect(),
            data: big(n),
        };
        const MOST: u32 = MAX_PAGES_PER_CHUNK as u32;
        let all = MAX_PAGES_PER_CHUNK * PAGE;
        assert!(pass(&write(&[(0, MOST)], all)).is_ok());
        assert!(pass(&write(&[(0, 1), (5, MOST - 1)], all)).is_ok());
        for (runs, n) in [
            (&[][..], 0),
            (&[(0, 1)], PAGE - 1),
            (&[(0, 1)], 2 * PAGE),
            (&[(0, MOST + 1)], all + PAGE),
            (&[(u64::MAX, 1)], PAGE),
            (&[(5, 1), (0, 1)], 2 * PAGE),
        ] {
            assert!(pass(&write(runs, n)).is_err(), "{runs:?} {n}");
        }
        let name = |n| ToAgent::Receive {
            name: "x".repeat(n),
            external: true,
            staged: true,
        };
        assert!(pass(&name(MAX_NAME)).is_ok());
        assert!(pass(&name(MAX_NAME + 1)).is_err());
        let facts = |text: &str| {
            FromAgent::Facts(Facts {
                problem: Some(text.into()),
                ..Facts::default()
            })
        };
        assert!(pass(&facts("old")).is_ok());
        assert!(pass(&facts("\x1b[2J")).is_err());
    }

    proptest! {
        /// Runs are taken if they are in order and few enough, and only then.
        #[test]
        fn page_runs_are_checked(runs in vec((0u64..1000, 0u32..200), 0..6)) {
            let mut next = 0;
            let mut good = true;
            for (pfn, nr) in &runs {
                good &= *nr > 0 && *pfn >= next;
                next = pfn + u64::from(*nr);
            }
            let pages: u64 = runs.iter().map(|r| u64::from(r.1)).sum();
            let runs: Vec<PfnRun> = runs.iter().map(|(pfn, nr)| PfnRun { pfn: *pfn, nr: *nr }).collect();
            let read = ToAgent::ReadPages { guest: 1, runs: runs.clone() };
            prop_assert_eq!(pass(&read).is_ok(), good && pages <= MAX_PAGES_PER_CHUNK as u64);
            let digest = ToAgent::Digest { guest: 1, runs };
            prop_assert_eq!(pass(&digest).is_ok(), good);
        }
    }
}
