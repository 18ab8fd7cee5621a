// SPDX-License-Identifier: GPL-2.0-only

//! What `vmbeamd` and the agents of host VMs say to each other.
//!
//! The daemon asks by [`ToAgent`], an agent answers by [`FromAgent`]; the last answer to a
//! question is the one that [`FromAgent::is_last`] says. The crate `vmbeam-wire` carries
//! them. See [`list`] for frame lists, which are run-length coded.
//!
//! Nothing that a peer sends is trusted: counts are checked before anything is summed, and a
//! frame list is only handed out once it is known to be free of overlaps.

mod answer;
mod bounds;
mod compressed;
pub mod cpu;
pub mod definition;
mod guest;
pub mod list;
mod packed;
pub mod preflight;
mod previous;
mod question;

pub use answer::{Digest, FromAgent};
pub use bounds::{
    DIGESTS_PER_CHUNK, MAX_DIGEST_PAGES, MAX_GUESTS, MAX_PAGES_PER_CHUNK, MAX_PART, PAGE,
};
pub use cpu::CpuFeatures;
pub use definition::{Definition, Entry, File};
pub use guest::{AgentErrorCode, Facts, Guest, GuestKind, GuestState, Toolstack};
pub use list::{
    Excluded, FrameList, FrameListBuilder, FrameRun, ListError, PfnRun, Reason, MAX_PAGES,
    MAX_RUNS, RUNS_PER_CHUNK,
};
pub use preflight::{Inspection, Need, NeedKind};
pub use previous::answer;
pub use question::ToAgent;
pub use uuid::Uuid;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use vmbeam_wire::message::MAX_NAME;
    use vmbeam_wire::{encode, Decoder, Frame, FrameError, Message, VERSION};

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

        #[test]
        fn list_round_trip(runs in vec(any::<(u64, u64, u32)>(), 0..200)) {
            let runs: Vec<_> =
                runs.into_iter().map(|(pfn, gfn, nr)| FrameRun { pfn, gfn, nr }).collect();
            let m = FromAgent::FramesChunk { runs, excluded: vec![], more: 7 };
            let bytes = postcard::to_stdvec(&m).unwrap();
            prop_assert_eq!(postcard::from_bytes::<FromAgent>(&bytes).unwrap(), m);
        }

        #[test]
        fn hostile_payload_never_panics(payload in vec(any::<u8>(), 0..512), kind in 0u16..6) {
            let f = Frame { version: VERSION, kind, request: 1, session: 1, payload };
            let _ = f.decode::<ToAgent>();
            let _ = f.decode::<FromAgent>();
        }
    }
}
