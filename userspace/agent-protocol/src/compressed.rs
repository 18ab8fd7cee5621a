// SPDX-License-Identifier: GPL-2.0-only

//! A guest's state and the contents of its pages as bytes: a Zstandard frame, or nothing for
//! nothing.
//!
//! Much of what a migration sends while the guest stands still are page tables. In the lab all of
//! it became about ten times smaller; and a serial port of a host VM is slow: the device model
//! maps and unmaps memory for each page that goes through it.

use serde::{Deserialize, Deserializer, Serializer};

/// The lowest of the ordinary levels.
const LEVEL: i32 = 1;
/// Most bytes that come out: of a part, and of the pages of one message.
pub(crate) const MOST: usize = 512 << 10;

pub(crate) fn serialize<S: Serializer>(data: &[u8], to: S) -> Result<S::Ok, S::Error> {
    if data.is_empty() {
        return to.serialize_bytes(data);
    }
    let bytes = zstd::bulk::compress(data, LEVEL).map_err(serde::ser::Error::custom)?;
    to.serialize_bytes(&bytes)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    let bytes = <&[u8]>::deserialize(from)?;
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    zstd::bulk::decompress(bytes, MOST).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FromAgent;
    use proptest::prelude::*;

    fn payload(data: Vec<u8>) -> Vec<u8> {
        postcard::to_stdvec(&FromAgent::Pages { data }).unwrap()
    }

    fn contents(payload: &[u8]) -> Option<Vec<u8>> {
        match postcard::from_bytes(payload).ok()? {
            FromAgent::Pages { data } => Some(data),
            _ => None,
        }
    }

    /// Entries for pages in runs of eight, as a page table of a guest has them.
    fn page_tables(pages: u64) -> Vec<u8> {
        (0..pages * 512)
            .flat_map(|i| (((i ^ (i / 8 * 0x1234)) << 12) | 0x8000_0000_0000_0067).to_le_bytes())
            .collect()
    }

    #[test]
    fn page_tables_become_small() {
        let data = page_tables(128);
        assert_eq!(data.len(), MOST);
        let sent = payload(data.clone());
        assert!(sent.len() < MOST / 3, "{} bytes", sent.len());
        assert_eq!(contents(&sent), Some(data));
    }

    #[test]
    fn not_more_comes_out_than_is_possible() {
        assert_eq!(contents(&payload(vec![0; MOST])).unwrap().len(), MOST);
        let bomb = payload(vec![0; MOST + 1]);
        assert!(bomb.len() < 100);
        assert_eq!(contents(&bomb), None);
        assert_eq!(contents(&payload(vec![0; 1 << 30])), None);
    }

    #[test]
    fn what_is_cut_off_is_refused() {
        let mut sent = payload(page_tables(1));
        // One byte less, and a length that says so.
        let length = sent.len() - 3;
        sent.pop();
        sent[1] = (length - 1) as u8 | 0x80;
        sent[2] = ((length - 1) >> 7) as u8;
        assert_eq!(contents(&sent), None);
    }

    proptest! {
        #[test]
        fn goes_there_and_back(data in prop::collection::vec(any::<u8>(), 0..5000)) {
            prop_assert_eq!(contents(&payload(data.clone())), Some(data));
        }

        #[test]
        fn anything_may_come(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            let mut sent = payload(Vec::new());
            sent.pop();
            sent.push(bytes.len() as u8 | 0x80);
            sent.push((bytes.len() >> 7) as u8);
            sent.extend(bytes);
            if let Some(data) = contents(&sent) {
                prop_assert!(data.len() <= MOST);
            }
        }
    }
}
