// SPDX-License-Identifier: GPL-2.0-only

//! A saved state, looked at closely enough to spoil it.

use std::collections::HashSet;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

/// The start of libxc's stream, behind what xl and libxl write: a marker and a name.
const LIBXC_START: &[u8; 12] = b"\xff\xff\xff\xff\xff\xff\xff\xffXENF";
/// Image header and domain header.
const LIBXC_HEADERS: usize = 24 + 16;
const END: u32 = 0;
const PAGE_DATA: u32 = 1;
const EXTERNAL_PAGES: u32 = 0x13;
const STAGED: u32 = 0x15;
/// A page's number and its type, in one word.
const PFN_MASK: u64 = (1 << 52) - 1;
const TYPE_SHIFT: u32 = 60;

/// Where things are in a saved state.
#[derive(Debug, Default)]
pub struct Layout {
    /// Offset, first page and length of each range of external pages.
    external: Vec<(usize, u64, u64)>,
    /// Pages whose contents are there.
    with_data: HashSet<u64>,
    /// How many contents are before the guest is suspended, and behind, if it is staged.
    ahead: usize,
    behind: usize,
    staged: bool,
}

impl Layout {
    /// Find them. What is wrong with a state is for others to find.
    pub fn of(state: &[u8]) -> Result<Self> {
        let libxc = state
            .windows(LIBXC_START.len())
            .position(|window| window == LIBXC_START)
            .context("the state has no stream of libxc")?;
        let mut layout = Self::default();
        let mut at = libxc + LIBXC_HEADERS;
        loop {
            let (kind, length) = (u32_at(state, at)?, u32_at(state, at + 4)? as usize);
            at += 8;
            match kind {
                END => break,
                PAGE_DATA => layout.page_data(state, at)?,
                STAGED => layout.staged = true,
                EXTERNAL_PAGES => {
                    for range in (at + 8..at + length).step_by(16) {
                        let (first, nr) = (u64_at(state, range)?, u64_at(state, range + 8)?);
                        layout.external.push((range, first, nr));
                    }
                }
                _ => {}
            }
            at += length.next_multiple_of(8);
        }
        ensure!(!layout.external.is_empty(), "no page is external");
        Ok(layout)
    }

    fn page_data(&mut self, state: &[u8], at: usize) -> Result<()> {
        for i in 0..u32_at(state, at)? as usize {
            let word = u64_at(state, at + 8 + 8 * i)?;
            // Ordinary pages and page tables of four levels, pinned or not.
            if (word >> TYPE_SHIFT) & 7 <= 4 {
                self.with_data.insert(word & PFN_MASK);
                match self.staged {
                    true => self.behind += 1,
                    false => self.ahead += 1,
                }
            }
        }
        Ok(())
    }

    /// Pages that are sent before a guest is suspended, and behind.
    pub fn around_gate(&self) -> Result<(usize, usize)> {
        ensure!(self.staged, "the state is not staged");
        Ok((self.ahead, self.behind))
    }

    /// What to write where, for a page that is in the state to be external as well.
    pub fn in_both(&self) -> Result<(usize, u64)> {
        self.external
            .iter()
            .find(|(_, first, nr)| self.with_data.contains(&(first + nr)))
            .map(|(offset, _, nr)| (offset + 8, nr + 1))
            .context("no page behind external ones is in the state")
    }

    /// The same for ranges of external pages that overlap.
    pub fn overlap(&self) -> Result<(usize, u64)> {
        let (offset, _, _) = self.external.get(1).context("one range only")?;
        Ok((*offset, self.external[0].1))
    }
}

fn u32_at(state: &[u8], at: usize) -> Result<u32> {
    let word = state.get(at..at + 4).context("the state is cut off")?;
    Ok(u32::from_le_bytes(word.try_into()?))
}

fn u64_at(state: &[u8], at: usize) -> Result<u64> {
    let word = state.get(at..at + 8).context("the state is cut off")?;
    Ok(u64::from_le_bytes(word.try_into()?))
}
