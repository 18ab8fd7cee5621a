// SPDX-License-Identifier: GPL-2.0-only

//! How much one message may carry.

use crate::compressed;
use crate::list::PfnRun;

/// Most pages that one [`crate::ToAgent::Digest`] may ask for.
pub const MAX_DIGEST_PAGES: u64 = 64 << 10;
/// Most digests in one [`crate::FromAgent::DigestChunk`].
pub const DIGESTS_PER_CHUNK: usize = 4096;
/// Most guests that one agent may list.
pub const MAX_GUESTS: usize = 1024;
/// Most bytes of a guest's saved state in one message.
pub const MAX_PART: usize = compressed::MOST;
/// Most pages whose contents one message carries or asks for.
pub const MAX_PAGES_PER_CHUNK: usize = compressed::MOST / PAGE;
/// Bytes of a page.
pub const PAGE: usize = 4096;

/// Runs in ascending order, and not more pages than `most`.
pub(crate) fn ascending(runs: &[PfnRun], most: u64) -> Result<(), String> {
    let mut next = 0;
    let mut pages = 0;
    for r in runs {
        if r.nr == 0 || r.pfn < next {
            return Err(format!("page runs empty or out of order at {:#x}", r.pfn));
        }
        next = r
            .pfn
            .checked_add(u64::from(r.nr))
            .ok_or("page runs overflow")?;
        pages += u64::from(r.nr);
    }
    if pages > most {
        return Err(format!("{pages} pages; the most is {most}"));
    }
    Ok(())
}

/// Whole pages, at least one, and not too many; says how many.
pub(crate) fn whole_pages(data: &[u8]) -> Result<u64, String> {
    let pages = data.len() / PAGE;
    if data.len() % PAGE != 0 || pages == 0 || pages > MAX_PAGES_PER_CHUNK {
        return Err(format!(
            "{} bytes of pages; 1 to {MAX_PAGES_PER_CHUNK} whole pages are possible",
            data.len()
        ));
    }
    Ok(pages as u64)
}

/// Contents for exactly these runs.
pub(crate) fn pages_of(runs: &[PfnRun], data: &[u8]) -> Result<(), String> {
    ascending(runs, MAX_PAGES_PER_CHUNK as u64)?;
    let wanted: u64 = runs.iter().map(|r| u64::from(r.nr)).sum();
    let got = whole_pages(data)?;
    if got != wanted {
        return Err(format!("{got} pages of contents for {wanted} pages"));
    }
    Ok(())
}

pub(crate) fn part(data: &[u8]) -> Result<(), String> {
    if data.len() > MAX_PART {
        return Err(format!(
            "a part of {} bytes; the most is {MAX_PART}",
            data.len()
        ));
    }
    Ok(())
}
