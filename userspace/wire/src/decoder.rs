// SPDX-License-Identifier: GPL-2.0-only

//! Frames out of a stream of bytes.

use crate::frame::{
    parse, Frame, FrameError, Parsed, MAGIC, MAX_NOISE, MAX_PAYLOAD, PREVIOUS, VERSION,
};
use memchr::memmem;
use std::io::{ErrorKind, Read};

/// Largest payload that is waited for in search of the first frame: more than a greeting
/// has, or the error that is the answer to one.
pub const MAX_GREETING: usize = 8 << 10;

/// How much is read from a peer at once.
const READ_CHUNK: usize = 64 << 10;

/// Takes bytes in whatever pieces they come and gives back frames.
///
/// A serial port may hold the rest of a conversation that was cut off. A
/// decoder made by [`Decoder::resyncing`] therefore skips what is not a frame of at most
/// [`MAX_GREETING`] bytes, at most [`MAX_NOISE`] bytes of it, until [`Decoder::settle`]. From
/// then on, and from the start in a decoder made by [`Decoder::strict`], the first thing
/// that is not a frame is an error, after which the stream is of no use.
#[derive(Debug)]
pub struct Decoder {
    buf: Vec<u8>,
    search: Option<Search>,
    skipped: usize,
    /// The oldest version whose frames are taken.
    oldest: u16,
}

/// Where a frame may begin.
#[derive(Debug, Default)]
struct Search {
    /// Offsets in the buffer, in ascending order, of what may become one, and where it is to
    /// be looked at again: each is summed up once at most.
    possible: Vec<(usize, usize)>,
    /// No frame begins before this offset but at one of those.
    seen: usize,
}

impl Search {
    /// Look at what was added to the buffer.
    fn extend(&mut self, buf: &[u8]) {
        let new = memmem::find_iter(&buf[self.seen..], &MAGIC);
        self.possible.extend(new.map(|at| (self.seen + at, 0)));
        // The last bytes may be the beginning of a magic.
        self.seen = buf.len().saturating_sub(MAGIC.len() - 1).max(self.seen);
    }

    /// So many bytes at the start of the buffer are gone.
    fn advance(&mut self, bytes: usize) {
        self.possible.retain(|(at, _)| *at >= bytes);
        for (at, again) in &mut self.possible {
            *at -= bytes;
            *again = again.saturating_sub(bytes);
        }
        self.seen = self.seen.saturating_sub(bytes);
    }
}

impl Decoder {
    /// A decoder for a stream that starts with a frame.
    pub fn strict() -> Self {
        Self {
            buf: Vec::new(),
            search: None,
            skipped: 0,
            oldest: VERSION,
        }
    }

    /// A decoder for a stream that may start in the middle of something.
    pub fn resyncing() -> Self {
        Self {
            search: Some(Search::default()),
            ..Self::strict()
        }
    }

    /// The same for a peer that may speak [`PREVIOUS`].
    pub fn lenient() -> Self {
        Self {
            oldest: PREVIOUS,
            ..Self::resyncing()
        }
    }

    /// The peer has answered in this conversation: nothing of an earlier one can
    /// follow, so noise is an error from now on.
    pub fn settle(&mut self) {
        self.search = None;
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
        let got = loop {
            match source.read(&mut self.buf[old..]) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                got => break got,
            }
        };
        self.buf
            .truncate(old + got.as_ref().map_or(0, |n| (*n).min(READ_CHUNK)));
        got
    }

    /// The next frame, or `None` if more bytes are needed. A frame of another version is an
    /// error, and passed over.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.search.is_some() {
            return self.search();
        }
        if self.buf.is_empty() {
            return Ok(None);
        }
        match parse(&self.buf, MAX_PAYLOAD, self.oldest)? {
            Parsed::Partial(_) => Ok(None),
            Parsed::Whole(total, frame) => {
                self.buf.drain(..total);
                Ok(Some(frame))
            }
            Parsed::Other(total, version) => {
                self.buf.drain(..total);
                Err(FrameError::Version(version))
            }
        }
    }

    /// Find the first complete frame anywhere in the buffer. What looks like
    /// the start of one may be the torn end of an old conversation, so a
    /// complete frame behind it wins.
    fn search(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(search) = &mut self.search else {
            return Ok(None);
        };
        search.extend(&self.buf);
        let mut found = None;
        search.possible.retain_mut(|(at, again)| {
            if found.is_some() || self.buf.len() < *again {
                return true;
            }
            let (total, result) = match parse(&self.buf[*at..], MAX_GREETING, self.oldest) {
                Ok(Parsed::Partial(bytes)) => {
                    *again = *at + bytes;
                    return true;
                }
                Ok(Parsed::Whole(total, frame)) => (total, Ok(Some(frame))),
                Ok(Parsed::Other(total, version)) => (total, Err(FrameError::Version(version))),
                Err(_) => return false,
            };
            found = Some((*at, total, result));
            true
        });
        let (noise, taken, result) = found.unwrap_or_else(|| {
            let noise = search.possible.first().map_or(search.seen, |p| p.0);
            (noise, 0, Ok(None))
        });
        self.skipped += noise;
        self.buf.drain(..noise + taken);
        search.advance(noise + taken);
        if taken == 0 && self.skipped > MAX_NOISE {
            return Err(FrameError::Noise);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{encode, encode_as, encode_old, HEADER, OLD_VERSION};
    use crate::message::sample::{Answer, Question};
    use std::time::{Duration, Instant};

    fn hello(session: u64) -> Vec<u8> {
        encode(7, session, &Question::hello()).unwrap()
    }

    /// A read with a limit is cut short by a signal that is ignored, the end of a program say, if
    /// that comes while a thread is being made.
    #[test]
    fn a_signal_is_nothing_that_was_read() {
        struct Interrupts(u32);
        impl Read for Interrupts {
            fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
                self.0 += 1;
                match self.0 {
                    3 => (&hello(9)[..]).read(into),
                    _ => Err(ErrorKind::Interrupted.into()),
                }
            }
        }
        let mut d = Decoder::strict();
        assert_eq!(d.fill(&mut Interrupts(0)).unwrap(), hello(9).len());
        assert_eq!(d.next_frame().unwrap().unwrap().request, 7);
    }

    #[test]
    fn frames_of_the_version_before_are_for_those_that_want_them() {
        let old = encode_as(PREVIOUS, 7, 9, &Question::hello()).unwrap();
        let mut d = Decoder::lenient();
        for (bytes, version) in [(&old, PREVIOUS), (&hello(9), VERSION)] {
            d.push(bytes);
            let f = d.next_frame().unwrap().unwrap();
            assert_eq!((f.version, f.request), (version, 7));
            assert_eq!(f.decode::<Question>().unwrap(), Question::hello());
            d.settle();
        }
        for mut d in [Decoder::strict(), Decoder::resyncing()] {
            d.push(&old);
            assert_eq!(d.next_frame(), Err(FrameError::Version(PREVIOUS)));
        }
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
        assert_eq!(f.decode::<Question>().unwrap(), Question::hello());
        assert!(matches!(f.decode::<Answer>(), Err(FrameError::Kind { .. })));
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
            Err(FrameError::TooLong(u64::from(u32::MAX) - 4))
        );
    }

    #[test]
    fn other_version_is_named() {
        for mut d in [Decoder::strict(), Decoder::resyncing()] {
            let old = encode_old(1, 1, &Question::hello()).unwrap();
            d.push(&old[..20]);
            assert_eq!(d.next_frame(), Ok(None));
            d.push(&old[20..]);
            // It is passed over, and what follows can still be read.
            d.push(&hello(5));
            assert_eq!(d.next_frame(), Err(FrameError::Version(OLD_VERSION)));
            assert_eq!(d.next_frame().unwrap().unwrap().session, 5);
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

    /// What version 6 looks at: its checksum, over the same bytes. So its programs can name
    /// this version, and this one theirs.
    #[test]
    fn the_other_version_sees_a_frame_as_well() {
        let bytes = hello(5);
        let length = u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize;
        assert_eq!(bytes.len(), 28 + length);
        let mut crc = crc32fast::Hasher::new();
        crc.update(&bytes[..24]);
        crc.update(&bytes[28..]);
        assert_eq!(bytes[24..28], crc.finalize().to_le_bytes());
        // As a program of version 6 has sent it.
        let recorded = [
            0x56, 0x4d, 0x42, 0x6d, 6, 0, 1, 0, 3, 0, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0,
        ];
        let old = encode_old(7, 9, &Question::hello()).unwrap();
        assert_eq!(old[..24], recorded);
        assert_eq!(old[28..], [0, 1, b'1']);
    }

    #[test]
    fn resync_skips_a_torn_frame() {
        let big = encode(1, 1, &Answer::Contents(vec![7; 64 << 10])).unwrap();
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

    /// A header whose checksum fits, and that promises so many bytes of payload.
    fn promise(bytes: u32) -> Vec<u8> {
        let mut header = hello(1)[..24].to_vec();
        header[8..12].copy_from_slice(&(bytes + 4).to_le_bytes());
        let crc = crc32fast::hash(&header);
        header.extend([0; 4]);
        header.extend(crc.to_le_bytes());
        header
    }

    /// Of what never ends up as a frame, little is kept, and nothing is looked at again for
    /// each byte that follows.
    #[test]
    fn what_may_become_a_frame_costs_little() {
        for promised in [MAX_GREETING as u32, 1 << 20] {
            let mut d = Decoder::resyncing();
            let started = Instant::now();
            for _ in 0..(1 << 20) / HEADER {
                d.push(&promise(promised));
                assert_eq!(d.next_frame(), Ok(None));
                assert!(d.buf.len() <= HEADER + MAX_GREETING);
            }
            for _ in 0..1000 {
                d.push(b"V");
                assert_eq!(d.next_frame(), Ok(None));
            }
            d.push(&hello(5));
            assert_eq!(d.next_frame().unwrap().unwrap().session, 5);
            // Unoptimized, and beside others.
            assert!(started.elapsed() < Duration::from_secs(100));
        }
    }
}
