// SPDX-License-Identifier: GPL-2.0-only

//! Framing.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic, `VMBm` |
//! | 4 | 2 | version of the protocol |
//! | 6 | 2 | kind: which message set the payload belongs to |
//! | 8 | 4 | length of the payload |
//! | 12 | 4 | request number; an answer repeats it |
//! | 16 | 8 | session, chosen by the side that connects; an answer repeats it |
//! | 24 | 4 | CRC-32 of the header before this field and of the payload |
//! | 28 | | payload |
//!
//! All numbers are little endian. The header is the same in every version, so
//! that a peer of another version can be told apart from noise.

use crate::message::Message;
use std::io::Read;

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"VMBm";
/// Version of the protocol that this code speaks.
pub const VERSION: u16 = 6;
/// Size of the header.
pub const HEADER: usize = 28;
/// Largest payload of one frame.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// How much noise is skipped in search of the first frame.
pub const MAX_NOISE: usize = 4 << 20;

/// How much is read from a peer at once.
const READ_CHUNK: usize = 64 << 10;

/// One frame, its CRC checked, its payload not looked at yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
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
    let out = postcard::to_extend(message, vec![0; HEADER])
        .map_err(|e| FrameError::Payload(e.to_string()))?;
    seal(out, M::KIND, VERSION, request, session)
}

/// Fill in the header of `out`, whose first [`HEADER`] bytes are reserved.
fn seal(
    mut out: Vec<u8>,
    kind: u16,
    version: u16,
    request: u32,
    session: u64,
) -> Result<Vec<u8>, FrameError> {
    let length = out.len() - HEADER;
    if length > MAX_PAYLOAD {
        return Err(FrameError::TooLong(length as u64));
    }
    out[0..4].copy_from_slice(&MAGIC);
    out[4..6].copy_from_slice(&version.to_le_bytes());
    out[6..8].copy_from_slice(&kind.to_le_bytes());
    out[8..12].copy_from_slice(&(length as u32).to_le_bytes());
    out[12..16].copy_from_slice(&request.to_le_bytes());
    out[16..24].copy_from_slice(&session.to_le_bytes());
    let crc = checksum(&out);
    out[24..28].copy_from_slice(&crc.to_le_bytes());
    Ok(out)
}

fn checksum(frame: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&frame[..24]);
    crc.update(&frame[HEADER..]);
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
enum Parsed {
    /// The start of a frame that is not complete.
    Partial,
    /// A frame of this many bytes.
    Whole(usize, Frame),
}

/// Judge the start of `b`. Errors as early as the bytes at hand allow.
fn parse(b: &[u8]) -> Result<Parsed, FrameError> {
    let known = b.len().min(MAGIC.len());
    if b[..known] != MAGIC[..known] {
        let mut start = [0; 4];
        start[..known].copy_from_slice(&b[..known]);
        return Err(FrameError::Magic(start));
    }
    if b.len() < HEADER {
        return Ok(Parsed::Partial);
    }
    let length = u32_at(b, 8) as usize;
    if length > MAX_PAYLOAD {
        return Err(FrameError::TooLong(length as u64));
    }
    let version = u16_at(b, 4);
    if version != VERSION && b.len() < HEADER + length {
        // Only a checksum that fits tells another version from noise.
        return Ok(Parsed::Partial);
    }
    let total = HEADER + length;
    if b.len() < total {
        return Ok(Parsed::Partial);
    }
    let frame = &b[..total];
    if checksum(frame) != u32_at(frame, 24) {
        return Err(FrameError::Crc);
    }
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    Ok(Parsed::Whole(
        total,
        Frame {
            kind: u16_at(frame, 6),
            request: u32_at(frame, 12),
            session: u64_at(frame, 16),
            payload: frame[HEADER..].to_vec(),
        },
    ))
}

/// Takes bytes in whatever pieces they come and gives back frames.
///
/// A serial port may hold the rest of a conversation that was cut off. A
/// decoder made by [`Decoder::resyncing`] therefore skips what is not a frame,
/// at most [`MAX_NOISE`] bytes of it, until [`Decoder::settle`]. From then on,
/// and from the start in a decoder made by [`Decoder::strict`], the first thing
/// that is not a frame is an error, after which the stream is of no use.
#[derive(Debug)]
pub struct Decoder {
    buf: Vec<u8>,
    searching: bool,
    skipped: usize,
}

impl Decoder {
    /// A decoder for a stream that starts with a frame.
    pub fn strict() -> Self {
        Self {
            buf: Vec::new(),
            searching: false,
            skipped: 0,
        }
    }

    /// A decoder for a stream that may start in the middle of something.
    pub fn resyncing() -> Self {
        Self {
            buf: Vec::new(),
            searching: true,
            skipped: 0,
        }
    }

    /// The peer has answered in this conversation: nothing of an earlier one can
    /// follow, so noise is an error from now on.
    pub fn settle(&mut self) {
        self.searching = false;
    }

    /// Bytes of noise that were skipped so far.
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// Whether the stream stopped in the middle of a frame.
    pub fn is_mid_frame(&self) -> bool {
        !self.buf.is_empty()
    }

    /// Add bytes. Take all frames with [`Decoder::next_frame`] in between, so
    /// that the buffer never holds more than one unfinished frame.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
    }

    /// Read once from `source` and add what came. 0 is the end of the stream.
    pub fn fill(&mut self, source: &mut impl Read) -> std::io::Result<usize> {
        let old = self.buf.len();
        self.buf.resize(old + READ_CHUNK, 0);
        let got = source.read(&mut self.buf[old..]);
        self.buf
            .truncate(old + got.as_ref().map_or(0, |n| (*n).min(READ_CHUNK)));
        got
    }

    /// The next frame, or `None` if more bytes are needed.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.searching {
            return self.search();
        }
        if self.buf.is_empty() {
            return Ok(None);
        }
        match parse(&self.buf)? {
            Parsed::Partial => Ok(None),
            Parsed::Whole(total, frame) => {
                self.buf.drain(..total);
                Ok(Some(frame))
            }
        }
    }

    /// Find the first complete frame anywhere in the buffer. What looks like
    /// the start of one may be the torn end of an old conversation, so a
    /// complete frame behind it wins.
    fn search(&mut self) -> Result<Option<Frame>, FrameError> {
        let mut keep = self.buf.len();
        for at in 0..self.buf.len() {
            if self.buf[at] != MAGIC[0] {
                continue;
            }
            match parse(&self.buf[at..]) {
                Ok(Parsed::Partial) => keep = keep.min(at),
                Ok(Parsed::Whole(total, frame)) => {
                    self.skipped += at;
                    self.buf.drain(..at + total);
                    return Ok(Some(frame));
                }
                Err(e @ FrameError::Version(_)) => return Err(e),
                Err(_) => {}
            }
        }
        self.skipped += keep;
        self.buf.drain(..keep);
        if self.skipped + self.buf.len() > MAX_NOISE {
            return Err(FrameError::Noise);
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::list::{FrameRun, PfnRun};
    use crate::message::{FromAgent, ToAgent};
    use proptest::prelude::*;

    fn hello(session: u64) -> Vec<u8> {
        encode(
            7,
            session,
            &ToAgent::Hello {
                daemon_version: "1".into(),
            },
        )
        .unwrap()
    }

    fn reseal(mut frame: Vec<u8>) -> Vec<u8> {
        let crc = checksum(&frame);
        frame[24..28].copy_from_slice(&crc.to_le_bytes());
        frame
    }

    #[test]
    fn byte_by_byte() {
        let mut d = Decoder::strict();
        let bytes = hello(9);
        for b in &bytes[..bytes.len() - 1] {
            d.push(&[*b]);
            assert_eq!(d.next_frame(), Ok(None));
        }
        assert!(d.is_mid_frame());
        d.push(&bytes[bytes.len() - 1..]);
        let f = d.next_frame().unwrap().unwrap();
        assert_eq!((f.request, f.session), (7, 9));
        assert_eq!(
            f.decode::<ToAgent>().unwrap(),
            ToAgent::Hello {
                daemon_version: "1".into()
            }
        );
        assert!(matches!(
            f.decode::<FromAgent>(),
            Err(FrameError::Kind { .. })
        ));
        assert!(!d.is_mid_frame());
    }

    #[test]
    fn wrong_magic_fails_at_the_first_wrong_byte() {
        let mut d = Decoder::strict();
        d.push(b"VX");
        assert!(matches!(d.next_frame(), Err(FrameError::Magic(_))));
    }

    #[test]
    fn oversized_is_refused_before_it_is_buffered() {
        let mut bytes = hello(1);
        bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut d = Decoder::strict();
        d.push(&bytes[..HEADER]);
        assert_eq!(
            d.next_frame(),
            Err(FrameError::TooLong(u64::from(u32::MAX)))
        );
    }

    #[test]
    fn other_version_is_named() {
        for searching in [false, true] {
            let mut bytes = hello(1);
            bytes[4..6].copy_from_slice(&9u16.to_le_bytes());
            let mut d = if searching {
                Decoder::resyncing()
            } else {
                Decoder::strict()
            };
            d.push(&reseal(bytes));
            assert_eq!(d.next_frame(), Err(FrameError::Version(9)));
        }
    }

    #[test]
    fn damage_is_found() {
        let good = hello(1);
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 0x10;
            let mut d = Decoder::strict();
            d.push(&bytes);
            match d.next_frame() {
                Err(_) | Ok(None) => {}
                Ok(Some(f)) => panic!("byte {at} changed unnoticed: {f:?}"),
            }
        }
    }

    #[test]
    fn trailing_bytes_in_a_payload_are_refused() {
        let mut bytes = hello(1);
        bytes.push(0);
        let length = (bytes.len() - HEADER) as u32;
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        let mut d = Decoder::strict();
        d.push(&reseal(bytes));
        let f = d.next_frame().unwrap().unwrap();
        assert!(matches!(f.decode::<ToAgent>(), Err(FrameError::Payload(_))));
    }

    #[test]
    fn resync_skips_a_torn_frame() {
        let big = encode(
            1,
            1,
            &FromAgent::DigestChunk {
                pfn: 0,
                digests: vec![[7; 16]; 4096],
            },
        )
        .unwrap();
        // Torn at the start, and torn at the end: its header promises more than comes.
        for torn in [&big[1000..], &big[..1000]] {
            let mut d = Decoder::resyncing();
            d.push(torn);
            assert_eq!(d.next_frame(), Ok(None));
            d.push(&hello(5));
            assert_eq!(d.next_frame().unwrap().unwrap().session, 5);
            assert_eq!(d.skipped(), torn.len());
            // An old answer that is whole may come before another torn one.
            d.push(&torn[..500]);
            d.push(&hello(6));
            assert_eq!(d.next_frame().unwrap().unwrap().session, 6);
            d.settle();
            // From here on the stream must be clean.
            d.push(b"noise");
            assert!(d.next_frame().is_err());
        }
    }

    #[test]
    fn noise_is_bounded() {
        let mut d = Decoder::resyncing();
        let noise = vec![b'x'; 64 << 10];
        let mut pushed = 0;
        let e = loop {
            d.push(&noise);
            pushed += noise.len();
            match d.next_frame() {
                Ok(None) => assert!(pushed <= 2 * MAX_NOISE),
                Ok(Some(f)) => panic!("{f:?}"),
                Err(e) => break e,
            }
        };
        assert_eq!(e, FrameError::Noise);
    }

    #[test]
    fn a_message_beyond_the_limit_is_not_sent() {
        let m = FromAgent::DigestChunk {
            pfn: 0,
            digests: vec![[7; 16]; MAX_PAYLOAD / 16],
        };
        assert!(matches!(encode(1, 1, &m), Err(FrameError::TooLong(_))));
    }

    proptest! {
        #[test]
        fn round_trip(request: u32, session: u64, guest: u32,
                      runs in proptest::collection::vec((any::<u64>(), 1u32..), 0..100),
                      cut in 1usize..50) {
            let runs: Vec<_> = runs.into_iter().map(|(pfn, nr)| PfnRun { pfn, nr }).collect();
            let message = ToAgent::Digest { guest, runs };
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
            let decoded = postcard::from_bytes::<ToAgent>(&f.payload).unwrap();
            prop_assert_eq!(decoded, message);
        }

        #[test]
        fn list_round_trip(runs in proptest::collection::vec(any::<(u64, u64, u32)>(), 0..200)) {
            let runs: Vec<_> =
                runs.into_iter().map(|(pfn, gfn, nr)| FrameRun { pfn, gfn, nr }).collect();
            let m = FromAgent::FramesChunk { runs, excluded: vec![], more: 7 };
            let f = encode(0, 0, &m).unwrap();
            prop_assert_eq!(postcard::from_bytes::<FromAgent>(&f[HEADER..]).unwrap(), m);
        }

        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..4096), searching: bool) {
            let mut d = if searching { Decoder::resyncing() } else { Decoder::strict() };
            d.push(&noise);
            while let Ok(Some(f)) = d.next_frame() {
                let _ = f.decode::<ToAgent>();
                let _ = f.decode::<FromAgent>();
            }
        }

        #[test]
        fn hostile_payload_never_panics(payload in proptest::collection::vec(any::<u8>(), 0..512), kind in 0u16..6) {
            let mut out = vec![0; HEADER];
            out.extend(payload);
            let bytes = seal(out, kind, VERSION, 1, 1).unwrap();
            let mut d = Decoder::strict();
            d.push(&bytes);
            let f = d.next_frame().unwrap().unwrap();
            let _ = f.decode::<ToAgent>();
            let _ = f.decode::<FromAgent>();
            let _ = f.decode::<crate::message::ToDaemon>();
            let _ = f.decode::<crate::message::FromDaemon>();
        }
    }
}
