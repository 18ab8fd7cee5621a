// SPDX-License-Identifier: GPL-2.0-only

//! Framing.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic, `VMBm` |
//! | 4 | 2 | version of the protocol |
//! | 6 | 2 | kind: which message set the payload belongs to |
//! | 8 | 4 | length of what follows the first 28 bytes |
//! | 12 | 4 | request number; an answer repeats it |
//! | 16 | 8 | session, chosen by the side that connects; an answer repeats it |
//! | 24 | 4 | CRC-32 of the 24 bytes before and of all that follows |
//! | 28 | 4 | CRC-32 of the first 24 bytes |
//! | 32 | | payload |
//!
//! All numbers are little endian. The first 28 bytes are the same in every version,
//! so that a peer of another one can be told apart from noise. The second checksum came
//! with version 7: a length is believed, and a frame waited for, only if the header
//! is whole.

use crate::message::Message;

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"VMBm";
/// Version of the protocol that this code speaks.
pub const VERSION: u16 = 9;
/// The version before, which agents may speak that are to end what they have begun. Its frames
/// look the same, and what that needs of its messages is known.
pub const PREVIOUS: u16 = VERSION - 1;
/// The last version without a checksum of the header.
pub const OLD_VERSION: u16 = 6;
/// What all versions have in front, and what the length does not count.
const FIXED: usize = 28;
/// Size of the header.
pub const HEADER: usize = FIXED + 4;
/// Largest payload of one frame.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// How much noise is skipped in search of the first frame: more than the longest answer of
/// an earlier conversation, a frame list.
pub const MAX_NOISE: usize = 32 << 20;
/// One frame, its CRC checked, its payload not looked at yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Version of the protocol: [`VERSION`], or [`PREVIOUS`] from a decoder that accepts that.
    pub version: u16,
    /// Which message set the payload belongs to.
    pub kind: u16,
    /// Request that this is, or that it answers.
    pub request: u32,
    /// Session that this belongs to.
    pub session: u64,
    /// The encoded message.
    pub payload: Vec<u8>,
}

/// Why a stream of frames, or one frame, is not acceptable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The bytes at hand do not start a frame.
    #[error("not a VMBeam frame: it starts with {0:02x?}")]
    Magic([u8; 4]),
    /// A frame of another version of the protocol.
    #[error("the peer speaks version {0} of the protocol, this side version {VERSION}; install the same release on both")]
    Version(u16),
    /// The length field is beyond the limit.
    #[error("a message of {0} bytes; the most is {MAX_PAYLOAD}")]
    TooLong(u64),
    /// The checksum does not fit.
    #[error("a damaged message: its checksum does not fit")]
    Crc,
    /// No frame within the first [`MAX_NOISE`] bytes.
    #[error("no VMBeam frame within the first {MAX_NOISE} bytes")]
    Noise,
    /// The payload belongs to another message set.
    #[error("a message of kind {got}, expected kind {expected}")]
    Kind {
        /// Kind in the frame.
        got: u16,
        /// Kind that makes sense here.
        expected: u16,
    },
    /// The payload is not a message.
    #[error("a message that cannot be decoded: {0}")]
    Payload(String),
    /// The message breaks one of its own limits.
    #[error("an unacceptable message: {0}")]
    Message(String),
}

impl Frame {
    /// Decode the payload, all of it, and check the message's own limits.
    pub fn decode<M: Message>(&self) -> Result<M, FrameError> {
        if self.kind != M::KIND {
            return Err(FrameError::Kind {
                got: self.kind,
                expected: M::KIND,
            });
        }
        let (message, rest) = postcard::take_from_bytes::<M>(&self.payload)
            .map_err(|e| FrameError::Payload(e.to_string()))?;
        if !rest.is_empty() {
            return Err(FrameError::Payload(format!(
                "{} bytes too many",
                rest.len()
            )));
        }
        message.check().map_err(FrameError::Message)?;
        Ok(message)
    }
}

/// Encode a message as one frame. Fails if it is larger than [`MAX_PAYLOAD`].
pub fn encode<M: Message>(request: u32, session: u64, message: &M) -> Result<Vec<u8>, FrameError> {
    encode_as(VERSION, request, session, message)
}

/// The same in a frame of this version, which is [`VERSION`] or [`PREVIOUS`].
pub fn encode_as<M: Message>(
    version: u16,
    request: u32,
    session: u64,
    message: &M,
) -> Result<Vec<u8>, FrameError> {
    let mut out = payload(message, HEADER)?;
    put_header(&mut out, M::KIND, version, request, session)?;
    let header = crc32fast::hash(&out[..24]);
    out[FIXED..HEADER].copy_from_slice(&header.to_le_bytes());
    seal(&mut out);
    Ok(out)
}

/// The same in a frame of [`OLD_VERSION`], of a message that was the same there. A peer
/// of that version answers nothing else, and its answer tells which it is.
pub fn encode_old<M: Message>(
    request: u32,
    session: u64,
    message: &M,
) -> Result<Vec<u8>, FrameError> {
    let mut out = payload(message, FIXED)?;
    put_header(&mut out, M::KIND, OLD_VERSION, request, session)?;
    seal(&mut out);
    Ok(out)
}

/// An encoded message behind so many bytes.
fn payload<M: Message>(message: &M, header: usize) -> Result<Vec<u8>, FrameError> {
    let out = postcard::to_extend(message, vec![0; header])
        .map_err(|e| FrameError::Payload(e.to_string()))?;
    if out.len() - header > MAX_PAYLOAD {
        return Err(FrameError::TooLong((out.len() - header) as u64));
    }
    Ok(out)
}

/// Fill in what all versions have in front, but for the checksum.
fn put_header(
    out: &mut [u8],
    kind: u16,
    version: u16,
    request: u32,
    session: u64,
) -> Result<(), FrameError> {
    let length = (out.len() - FIXED) as u64;
    let length = u32::try_from(length).map_err(|_| FrameError::TooLong(length))?;
    out[0..4].copy_from_slice(&MAGIC);
    out[4..6].copy_from_slice(&version.to_le_bytes());
    out[6..8].copy_from_slice(&kind.to_le_bytes());
    out[8..12].copy_from_slice(&length.to_le_bytes());
    out[12..16].copy_from_slice(&request.to_le_bytes());
    out[16..24].copy_from_slice(&session.to_le_bytes());
    Ok(())
}

/// Set the checksum of the whole.
fn seal(out: &mut [u8]) {
    let crc = checksum(out);
    out[24..FIXED].copy_from_slice(&crc.to_le_bytes());
}

fn checksum(frame: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&frame[..24]);
    crc.update(&frame[FIXED..]);
    crc.finalize()
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from(u32_at(b, at)) | (u64::from(u32_at(b, at + 4)) << 32)
}

/// What the bytes at the start of a slice are.
pub(crate) enum Parsed {
    /// The start of a frame that is not complete. It is to be judged again when so many
    /// bytes are there.
    Partial(usize),
    /// A frame of this many bytes.
    Whole(usize, Frame),
    /// A frame of another version, of this many bytes.
    Other(usize, u16),
}

/// Judge the start of `b`, whose payload may be of `most` bytes, and whose version is known from
/// `oldest` on. Errors as early as the bytes at hand allow.
pub(crate) fn parse(b: &[u8], most: usize, oldest: u16) -> Result<Parsed, FrameError> {
    let begun = b.len().min(MAGIC.len());
    if b[..begun] != MAGIC[..begun] {
        let mut start = [0; 4];
        start[..begun].copy_from_slice(&b[..begun]);
        return Err(FrameError::Magic(start));
    }
    if b.len() < FIXED {
        return Ok(Parsed::Partial(FIXED));
    }
    let version = u16_at(b, 4);
    let known = (oldest..=VERSION).contains(&version);
    let header = if known { HEADER } else { FIXED };
    if b.len() < header {
        return Ok(Parsed::Partial(header));
    }
    let total = FIXED + u32_at(b, 8) as usize;
    let length = total.checked_sub(header).ok_or(FrameError::Crc)?;
    if length > most {
        return Err(FrameError::TooLong(length as u64));
    }
    if known && crc32fast::hash(&b[..24]) != u32_at(b, FIXED) {
        return Err(FrameError::Crc);
    }
    if b.len() < total {
        // Of another version only the checksum of all tells it from noise.
        return Ok(Parsed::Partial(total));
    }
    let frame = &b[..total];
    if checksum(frame) != u32_at(frame, 24) {
        return Err(FrameError::Crc);
    }
    if !known {
        return Ok(Parsed::Other(total, version));
    }
    Ok(Parsed::Whole(
        total,
        Frame {
            version,
            kind: u16_at(frame, 6),
            request: u32_at(frame, 12),
            session: u64_at(frame, 16),
            payload: frame[HEADER..].to_vec(),
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::Decoder;
    use crate::message::sample::{Answer, Question};
    use proptest::prelude::*;

    fn hello(session: u64) -> Vec<u8> {
        encode(7, session, &Question::hello()).unwrap()
    }

    fn reseal(mut frame: Vec<u8>) -> Vec<u8> {
        let header = crc32fast::hash(&frame[..24]);
        frame[FIXED..HEADER].copy_from_slice(&header.to_le_bytes());
        seal(&mut frame);
        frame
    }

    #[test]
    fn trailing_bytes_in_a_payload_are_refused() {
        let mut bytes = hello(1);
        bytes.push(0);
        let length = (bytes.len() - FIXED) as u32;
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        let mut d = Decoder::strict();
        d.push(&reseal(bytes));
        let f = d.next_frame().unwrap().unwrap();
        assert!(matches!(
            f.decode::<Question>(),
            Err(FrameError::Payload(_))
        ));
    }

    #[test]
    fn a_message_beyond_the_limit_is_not_sent() {
        let m = Answer::Contents(vec![7; MAX_PAYLOAD]);
        assert!(matches!(encode(1, 1, &m), Err(FrameError::TooLong(_))));
    }

    proptest! {
        #[test]
        fn round_trip(request: u32, session: u64,
                      runs in proptest::collection::vec((any::<u64>(), 1u32..), 0..100),
                      cut in 1usize..50) {
            let message = Question::Pages(runs);
            let bytes = encode(request, session, &message).unwrap();
            let mut d = Decoder::strict();
            let mut got = None;
            for part in bytes.chunks(cut) {
                prop_assert!(got.is_none());
                d.push(part);
                got = d.next_frame().unwrap();
            }
            let f = got.unwrap();
            prop_assert_eq!((f.request, f.session), (request, session));
            let decoded = postcard::from_bytes::<Question>(&f.payload).unwrap();
            prop_assert_eq!(decoded, message);
        }

        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..4096), searching: bool) {
            let mut d = if searching { Decoder::resyncing() } else { Decoder::strict() };
            d.push(&noise);
            while let Ok(Some(f)) = d.next_frame() {
                let _ = f.decode::<Question>();
                let _ = f.decode::<Answer>();
            }
        }

        #[test]
        fn hostile_payload_never_panics(payload in proptest::collection::vec(any::<u8>(), 0..512), kind in 0u16..6) {
            let mut out = vec![0; HEADER];
            out.extend(payload);
            put_header(&mut out, kind, VERSION, 1, 1).unwrap();
            let bytes = reseal(out);
            let mut d = Decoder::strict();
            d.push(&bytes);
            let f = d.next_frame().unwrap().unwrap();
            let _ = f.decode::<Question>();
            let _ = f.decode::<Answer>();
        }
    }
}
