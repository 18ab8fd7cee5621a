// SPDX-License-Identifier: GPL-2.0-only

//! Reading along in what `xl save` writes: which pages it leaves to others, and
//! how much it carries itself.
//!
//! Three formats, one in the other: `xl`'s header with the domain's
//! configuration, libxl's records, and behind one of these libxc's stream.
//! Their specifications are in Xen's `docs/specs`. Only what is needed is
//! looked at; the restoring side checks everything.

use crate::pages::PAGE_SIZE;
use std::ops::Range;

const XL_MAGIC: &[u8; 32] = b"Xen saved domain, xl format\n \0 \r";
const XL_HEADER: usize = 48;
/// `SAVEFILE_BYTEORDER_VALUE`, as a little-endian machine writes it.
const XL_BYTE_ORDER: u32 = 0x0102_0304;
const LIBXL_MAGIC: &[u8; 8] = b"LibxlFmt";
const LIBXL_HEADER: usize = 16;
const LIBXL_END: u32 = 0;
const LIBXL_LIBXC_CONTEXT: u32 = 1;
const LIBXC_MARKER: u64 = u64::MAX;
/// Image header and domain header.
const LIBXC_HEADERS: usize = 24 + 16;
const LIBXC_END: u32 = 0;
const LIBXC_PAGE_DATA: u32 = 1;
const LIBXC_EXTERNAL_PAGES: u32 = 0x13;
const LIBXC_POPULATE_PAGES: u32 = 0x14;
const LIBXC_STAGED: u32 = 0x15;
const RECORD_HEADER: usize = 8;
/// libxc's own limit.
const MAX_RECORD: u32 = 128 << 20;
/// Most ranges, in one record and in all that are not neighbours: what a guest's frame list
/// may have as well.
const MAX_RANGES: u32 = 1 << 20;
/// Most pages of all ranges together.
const MAX_EXTERNAL: u64 = 1 << 26;
/// First page number that a range may not reach.
const END_OF_PFNS: u64 = 1 << 40;

/// Why it is not such a stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// A header is not what it should be.
    #[error("not what `xl save` writes: {0}")]
    Header(&'static str),
    /// A record is too long or too short.
    #[error("record {kind:#x} has {length} bytes")]
    Length {
        /// Type of the record.
        kind: u32,
        /// Its length.
        length: u32,
    },
    /// External pages are in more pieces than a frame list may have.
    #[error("more than {MAX_RANGES} ranges of external pages")]
    Ranges,
    /// Pages are empty, out of order, or beyond all bounds.
    #[error("pages {first:#x} + {nr:#x} are not acceptable here")]
    Range {
        /// First page.
        first: u64,
        /// How many.
        nr: u64,
    },
}

/// What is known after some of the stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Pages that the guest had before it was suspended, if that was said.
    pub populated: u64,
    /// All was said that can be before the guest is suspended.
    pub staged: bool,
    /// Pages whose contents are not in the stream, in ascending order.
    pub external: Vec<Range<u64>>,
    /// Pages whose contents are in the stream.
    pub data_pages: u64,
    /// Bytes seen.
    pub bytes: u64,
    /// The end was seen.
    pub complete: bool,
}

impl Contents {
    /// How many pages are left to others.
    pub fn external_pages(&self) -> u64 {
        self.external.iter().map(|r| r.end - r.start).sum()
    }
}

/// What the bytes that are being collected are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    XlHeader,
    LibxlHeader,
    LibxlRecord,
    LibxcHeaders,
    LibxcRecord,
    PageData { length: u32 },
    PopulatePages,
    ExternalPages,
    Nothing,
}

/// Takes the stream as it comes, in pieces of any size.
#[derive(Debug)]
pub struct Scanner {
    part: Part,
    /// Bytes that are to be collected before `part` can be looked at.
    want: usize,
    collected: Vec<u8>,
    /// Bytes to pass over before.
    skip: u64,
    /// Pages of all external ranges.
    external: u64,
    /// Where the ranges of populated pages end.
    populated_end: u64,
    contents: Contents,
}

impl Default for Scanner {
    fn default() -> Self {
        Self {
            part: Part::XlHeader,
            want: XL_HEADER,
            collected: Vec::new(),
            skip: 0,
            external: 0,
            populated_end: 0,
            contents: Contents::default(),
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

/// Records are padded to eight bytes.
fn padded(length: u32) -> u64 {
    u64::from(length).next_multiple_of(8)
}

impl Scanner {
    /// What is known so far.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Take the next bytes.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), StreamError> {
        self.contents.bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            if self.skip > 0 {
                // At most bytes.len().
                let n = self.skip.min(bytes.len() as u64) as usize;
                self.skip -= n as u64;
                bytes = &bytes[n..];
                continue;
            }
            if self.part == Part::Nothing {
                return Err(StreamError::Header("it goes on behind its end"));
            }
            let n = (self.want - self.collected.len()).min(bytes.len());
            self.collected.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            if self.collected.len() == self.want {
                let collected = std::mem::take(&mut self.collected);
                self.take(&collected)?;
            }
        }
        Ok(())
    }

    fn next(&mut self, part: Part, want: usize) {
        self.part = part;
        self.want = want;
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        match self.part {
            Part::XlHeader => {
                if &bytes[..32] != XL_MAGIC {
                    return Err(StreamError::Header("wrong magic"));
                }
                if u32_at(bytes, 32) != XL_BYTE_ORDER {
                    return Err(StreamError::Header("wrong byte order"));
                }
                self.skip = u64::from(u32_at(bytes, 44));
                self.next(Part::LibxlHeader, LIBXL_HEADER);
            }
            Part::LibxlHeader => {
                if &bytes[..8] != LIBXL_MAGIC {
                    return Err(StreamError::Header("no libxl stream"));
                }
                self.next(Part::LibxlRecord, RECORD_HEADER);
            }
            Part::LibxlRecord => match u32_at(bytes, 0) {
                LIBXL_END => {
                    self.contents.complete = true;
                    self.next(Part::Nothing, 0);
                }
                LIBXL_LIBXC_CONTEXT => self.next(Part::LibxcHeaders, LIBXC_HEADERS),
                kind => {
                    let length = checked(kind, u32_at(bytes, 4), 0)?;
                    self.skip = padded(length);
                }
            },
            Part::LibxcHeaders => {
                if u64_at(bytes, 0) != LIBXC_MARKER {
                    return Err(StreamError::Header("no libxc stream"));
                }
                self.next(Part::LibxcRecord, RECORD_HEADER);
            }
            Part::LibxcRecord => self.libxc_record(u32_at(bytes, 0), u32_at(bytes, 4))?,
            Part::PageData { length } => {
                let head = 8 + 8 * u64::from(u32_at(bytes, 0));
                let Some(pages) = u64::from(length).checked_sub(head) else {
                    return Err(StreamError::Length {
                        kind: LIBXC_PAGE_DATA,
                        length,
                    });
                };
                self.contents.data_pages += pages / PAGE_SIZE as u64;
                self.skip = padded(length) - 8;
                self.next(Part::LibxcRecord, RECORD_HEADER);
            }
            Part::PopulatePages => {
                self.populate_pages(bytes)?;
                self.next(Part::LibxcRecord, RECORD_HEADER);
            }
            Part::ExternalPages => {
                self.external_pages(bytes)?;
                self.next(Part::LibxcRecord, RECORD_HEADER);
            }
            Part::Nothing => {}
        }
        Ok(())
    }

    fn libxc_record(&mut self, kind: u32, length: u32) -> Result<(), StreamError> {
        match kind {
            LIBXC_END => self.next(Part::LibxlRecord, RECORD_HEADER),
            LIBXC_PAGE_DATA => {
                let length = checked(kind, length, 8)?;
                self.next(Part::PageData { length }, 8);
            }
            LIBXC_EXTERNAL_PAGES | LIBXC_POPULATE_PAGES => {
                let length = checked(kind, length, 24)?;
                if length > 8 + 16 * MAX_RANGES {
                    return Err(StreamError::Length { kind, length });
                }
                let part = match kind {
                    LIBXC_EXTERNAL_PAGES => Part::ExternalPages,
                    _ => Part::PopulatePages,
                };
                self.next(part, length as usize);
            }
            LIBXC_STAGED if length != 0 || self.contents.staged => {
                return Err(StreamError::Length { kind, length });
            }
            LIBXC_STAGED => self.contents.staged = true,
            _ => self.skip = padded(checked(kind, length, 0)?),
        }
        Ok(())
    }

    /// They are counted, and otherwise for those who populate.
    fn populate_pages(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        for (first, nr) in ranges(LIBXC_POPULATE_PAGES, bytes)? {
            let end = first.checked_add(nr).filter(|end| *end <= END_OF_PFNS);
            let pages = self.contents.populated.saturating_add(nr);
            match end {
                Some(end) if nr > 0 && first >= self.populated_end && pages <= MAX_EXTERNAL => {
                    self.populated_end = end;
                    self.contents.populated = pages;
                }
                _ => return Err(StreamError::Range { first, nr }),
            }
        }
        Ok(())
    }

    fn external_pages(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        for (first, nr) in ranges(LIBXC_EXTERNAL_PAGES, bytes)? {
            let from = self.contents.external.last().map_or(0, |r| r.end);
            let end = first.checked_add(nr).filter(|end| *end <= END_OF_PFNS);
            self.external = self.external.saturating_add(nr);
            match end {
                Some(end) if nr > 0 && first >= from && self.external <= MAX_EXTERNAL => {
                    // What follows on is one with it: a record has pages of one batch.
                    let known = self.contents.external.len();
                    match self.contents.external.last_mut() {
                        Some(last) if last.end == first => last.end = end,
                        _ if known >= MAX_RANGES as usize => return Err(StreamError::Ranges),
                        _ => self.contents.external.push(first..end),
                    }
                }
                _ => return Err(StreamError::Range { first, nr }),
            }
        }
        Ok(())
    }
}

/// First page and number of pages of each range of a record.
fn ranges(
    kind: u32,
    bytes: &[u8],
) -> Result<impl Iterator<Item = (u64, u64)> + use<'_>, StreamError> {
    let ranges = bytes[8..].chunks_exact(16);
    if !ranges.remainder().is_empty() || ranges.len() != u32_at(bytes, 0) as usize {
        return Err(StreamError::Length {
            kind,
            // From a 32-bit field.
            length: bytes.len() as u32,
        });
    }
    Ok(ranges.map(|range| (u64_at(range, 0), u64_at(range, 8))))
}

fn checked(kind: u32, length: u32, least: u32) -> Result<u32, StreamError> {
    if (least..=MAX_RECORD).contains(&length) {
        Ok(length)
    } else {
        Err(StreamError::Length { kind, length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;

    fn record(kind: u32, body: &[u8]) -> Vec<u8> {
        let mut r = kind.to_le_bytes().to_vec();
        r.extend((body.len() as u32).to_le_bytes());
        r.extend(body);
        r.resize(r.len().next_multiple_of(8), 0);
        r
    }

    fn external(ranges: &[(u64, u64)]) -> Vec<u8> {
        pages(LIBXC_EXTERNAL_PAGES, ranges)
    }

    fn pages(kind: u32, ranges: &[(u64, u64)]) -> Vec<u8> {
        let mut body = (ranges.len() as u64).to_le_bytes().to_vec();
        for (first, nr) in ranges {
            body.extend(first.to_le_bytes());
            body.extend(nr.to_le_bytes());
        }
        record(kind, &body)
    }

    /// Two data pages and a pfn without data.
    fn page_data() -> Vec<u8> {
        let mut body = 3u64.to_le_bytes().to_vec();
        body.resize(8 + 3 * 8 + 2 * 4096, 0x13);
        record(LIBXC_PAGE_DATA, &body)
    }

    fn saved(libxc: &[Vec<u8>]) -> Vec<u8> {
        let mut s = XL_MAGIC.to_vec();
        for word in [XL_BYTE_ORDER, 3, 0, 13] {
            s.extend(word.to_le_bytes());
        }
        s.extend(b"configuration");
        s.extend(LIBXL_MAGIC);
        s.extend([0; 8]);
        s.extend(record(LIBXL_LIBXC_CONTEXT, &[]));
        s.extend(LIBXC_MARKER.to_le_bytes());
        s.extend([0; LIBXC_HEADERS - 8]);
        for r in libxc {
            s.extend(r);
        }
        s.extend(record(LIBXC_END, &[]));
        s.extend(record(2, b"emulator"));
        s.extend(record(LIBXL_END, &[]));
        s
    }

    fn scan(stream: &[u8], piece: usize) -> Result<Contents, StreamError> {
        let mut scanner = Scanner::default();
        for part in stream.chunks(piece) {
            scanner.feed(part)?;
        }
        Ok(scanner.contents().clone())
    }

    #[test]
    fn pieces_of_any_size_give_the_same() {
        let stream = saved(&[
            record(0x11, b"odd"),
            external(&[(1, 2), (3, 1)]),
            page_data(),
            external(&[(100, 50)]),
            page_data(),
        ]);
        for piece in [1, 7, 8, 4096, stream.len()] {
            let contents = scan(&stream, piece).unwrap();
            assert_eq!(contents.external, [1..4, 100..150]);
            assert_eq!(contents.external_pages(), 53);
            assert_eq!(contents.data_pages, 4);
            assert_eq!(contents.bytes, stream.len() as u64);
            assert!(contents.complete);
        }
    }

    #[test]
    fn what_is_staged_is_known_before_the_rest() {
        let staged = |ranges: &[(u64, u64)], marks: &[usize]| {
            let mut records = vec![pages(LIBXC_POPULATE_PAGES, ranges)];
            records.extend(marks.iter().map(|nr| record(LIBXC_STAGED, &vec![0; *nr])));
            records.extend([external(&[(1, 2)]), page_data()]);
            saved(&records)
        };
        let stream = staged(&[(0, 3), (512, 1024)], &[0]);
        let end = saved(&[]).len() - 8 - 16 - 8 + 8 + 8 + 32 + 8;
        for piece in [1, 4096] {
            let contents = scan(&stream, piece).unwrap();
            assert!(contents.complete && contents.staged);
            assert_eq!((contents.populated, contents.external_pages()), (1027, 2));
            assert!(!scan(&stream[..end - 1], piece).unwrap().staged);
            let half = scan(&stream[..end], piece).unwrap();
            assert!(half.staged && half.external.is_empty());
        }
        for (ranges, marks) in [
            (&[(0, 0)][..], &[0][..]),
            (&[(5, 2), (6, 1)], &[0]),
            (&[(0, MAX_EXTERNAL + 1)], &[0]),
            (&[(0, 1)], &[8]),
            (&[(0, 1)], &[0, 0]),
        ] {
            assert!(scan(&staged(ranges, marks), 4096).is_err(), "{ranges:?}");
        }
    }

    #[test]
    fn a_stream_that_is_cut_off_is_not_complete() {
        let stream = saved(&[external(&[(1, 2)]), page_data()]);
        for end in 0..stream.len() {
            assert!(!scan(&stream[..end], 4096).unwrap().complete, "{end}");
        }
    }

    proptest! {
        /// Whatever comes, the scanner ends with an answer, and what it says
        /// does not depend on the size of the pieces.
        #[test]
        fn anything_is_survived(
            ranges in vec((0u64..1 << 41, 0u64..1 << 41), 0..4),
            damage in vec((any::<Index>(), any::<u8>()), 0..4),
            piece in 1usize..5000,
        ) {
            let mut stream = saved(&[external(&ranges), page_data()]);
            for (at, byte) in damage {
                *at.get_mut(&mut stream) = byte;
            }
            let whole = scan(&stream, stream.len());
            if let Ok(contents) = &whole {
                prop_assert!(contents.external.windows(2).all(|w| w[0].end < w[1].start));
                prop_assert!(contents.external.iter().all(|r| r.start < r.end && r.end <= END_OF_PFNS));
            }
            prop_assert_eq!(whole, scan(&stream, piece));
        }
    }

    #[test]
    fn what_is_kept_of_a_stream_is_bounded() {
        let records = |step: u64, nr: u64| {
            let mut scanner = Scanner::default();
            let head = saved(&[]);
            let end = head.len() - 8 - 16 - 8;
            scanner.feed(&head[..end]).unwrap();
            (0..nr / 1024).try_for_each(|at| {
                let ranges: Vec<_> = (0..1024).map(|i| ((at * 1024 + i) * step, 1)).collect();
                scanner.feed(&external(&ranges))?;
                assert!(scanner.contents().external.len() <= MAX_RANGES as usize);
                Ok(())
            })
        };
        let most = u64::from(MAX_RANGES);
        assert_eq!(records(2, most), Ok(()));
        assert_eq!(records(2, most + 1024), Err(StreamError::Ranges));
        // Neighbours are one range, in whatever records they come.
        assert_eq!(records(1, 2 * most), Ok(()));
        let pages = |nr| scan(&saved(&[external(&[(0, nr)])]), 4096);
        assert!(pages(MAX_EXTERNAL).is_ok());
        assert!(matches!(
            pages(MAX_EXTERNAL + 1),
            Err(StreamError::Range { .. })
        ));
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let range = |ranges: &[(u64, u64)]| scan(&saved(&[external(ranges)]), 4096);
        assert!(matches!(range(&[(5, 0)]), Err(StreamError::Range { .. })));
        assert!(matches!(
            range(&[(5, 2), (6, 1)]),
            Err(StreamError::Range { .. })
        ));
        assert!(matches!(
            range(&[(u64::MAX, 2)]),
            Err(StreamError::Range { .. })
        ));
        assert!(matches!(
            range(&[(END_OF_PFNS, 1)]),
            Err(StreamError::Range { .. })
        ));
        assert!(matches!(range(&[]), Err(StreamError::Length { .. })));

        let mut short = external(&[(5, 1)]);
        short[8] = 2;
        let short = saved(&[short]);
        assert!(matches!(
            scan(&short, 4096),
            Err(StreamError::Length { .. })
        ));

        let mut long = saved(&[]);
        long.push(0);
        assert!(matches!(scan(&long, 4096), Err(StreamError::Header(_))));
        assert!(matches!(scan(&[0; 48], 4096), Err(StreamError::Header(_))));
    }
}
