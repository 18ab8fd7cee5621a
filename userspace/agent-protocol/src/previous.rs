// SPDX-License-Identifier: GPL-2.0-only

//! What an agent of the version before says in other words: the daemon ends with it what was
//! begun. All else that it is asked for then is the same in both.

use crate::answer::FromAgent;
use crate::cpu::{CpuFeatures, WORDS_BEFORE};
use crate::guest::{Guest, GuestKind, GuestState};
use serde::{Deserialize, Serialize};
use vmbeam_wire::{Frame, FrameError, Message, PREVIOUS};

/// The number of `Guests` among the answers.
const GUESTS: u8 = 1;

/// A guest, as it was said then.
#[derive(Debug, Serialize, Deserialize)]
struct GuestBefore {
    name: String,
    domid: u32,
    state: GuestState,
    pages: u64,
    kind: GuestKind,
    cpu: Option<[u32; WORDS_BEFORE]>,
}

/// The answers up to the one that was another one.
#[derive(Debug, Serialize, Deserialize)]
enum Before {
    Hello,
    Guests(Vec<GuestBefore>),
}

impl Message for Before {
    const KIND: u16 = FromAgent::KIND;

    /// What is made of it is checked.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

impl From<GuestBefore> for Guest {
    fn from(guest: GuestBefore) -> Self {
        Self {
            name: guest.name,
            domid: guest.domid,
            state: guest.state,
            pages: guest.pages,
            kind: guest.kind,
            cpu: guest.cpu.map(CpuFeatures::of_version_before),
        }
    }
}

/// The answer in a frame, which is of this version or of the one before.
///
/// # Errors
///
/// As those of [`Frame::decode`].
pub fn answer(frame: &Frame) -> Result<FromAgent, FrameError> {
    if frame.version != PREVIOUS || frame.payload.first() != Some(&GUESTS) {
        return frame.decode();
    }
    match frame.decode()? {
        Before::Hello => frame.decode(),
        Before::Guests(guests) => {
            let guests = FromAgent::Guests(guests.into_iter().map(Guest::from).collect());
            guests.check().map_err(FrameError::Message)?;
            Ok(guests)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmbeam_wire::VERSION;

    fn said<M: Message>(version: u16, message: &M) -> Result<FromAgent, FrameError> {
        answer(&Frame {
            version,
            kind: FromAgent::KIND,
            request: 1,
            session: 1,
            payload: postcard::to_stdvec(message).unwrap(),
        })
    }

    fn guests(name: &str, word: u32) -> Before {
        Before::Guests(vec![GuestBefore {
            name: name.into(),
            domid: 7,
            state: GuestState::Running,
            pages: 9,
            kind: GuestKind::Pv,
            cpu: Some([word; WORDS_BEFORE]),
        }])
    }

    #[test]
    fn guests_of_the_version_before_have_fewer_words() {
        let Ok(FromAgent::Guests(told)) = said(PREVIOUS, &guests("guest", 0)) else {
            panic!()
        };
        assert_eq!((&*told[0].name, told[0].pages), ("guest", 9));
        assert_eq!(told[0].cpu, Some(CpuFeatures::default()));
        let Ok(FromAgent::Guests(more)) = said(PREVIOUS, &guests("guest", 5)) else {
            panic!()
        };
        let missing = more[0].cpu.unwrap().missing_in(&CpuFeatures::default());
        assert_eq!(missing.len(), 2 * WORDS_BEFORE);
        // It is checked as one of this version, and in no other is it one.
        assert!(said(PREVIOUS, &guests("a\nb", 0)).is_err());
        assert!(said(VERSION, &guests("guest", 0)).is_err());
        let now = FromAgent::Guests(told);
        assert_eq!(said(VERSION, &now), Ok(now.clone()));
        assert!(said(PREVIOUS, &now).is_err());
        // All else is the same.
        assert_eq!(said(PREVIOUS, &FromAgent::Done), Ok(FromAgent::Done));
    }
}
