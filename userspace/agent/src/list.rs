// SPDX-License-Identifier: GPL-2.0-only

//! A guest's frame list as messages.

use crate::error::HvError;
use vmbeam_agent_protocol::{
    AgentErrorCode, Excluded, FrameRun, FromAgent, ListError, Reason, MAX_PAGES, MAX_RUNS,
    RUNS_PER_CHUNK,
};
use vmbeam_xen::{PageKind, PageRun};

impl From<ListError> for HvError {
    fn from(e: ListError) -> Self {
        Self {
            code: AgentErrorCode::Hypervisor,
            message: format!("the guest's frames: {e}"),
        }
    }
}

/// The messages that carry a guest's list. Whether it is sound is for the daemon to judge,
/// which must not believe an agent anyway.
pub(crate) fn frame_list(
    pages: &[PageRun],
) -> Result<impl Iterator<Item = FromAgent> + use<'_>, ListError> {
    let movable = |p: &&PageRun| p.kind == PageKind::Ordinary;
    let nr_pages = pages.iter().map(|p| u64::from(p.nr)).sum();
    let nr_movable = pages.iter().filter(movable).count();
    if nr_pages > MAX_PAGES {
        return Err(ListError::TooManyPages);
    }
    if nr_movable.max(pages.len() - nr_movable) > MAX_RUNS {
        return Err(ListError::TooManyRuns);
    }
    let mut runs = pages.iter().filter(movable).map(|p| FrameRun {
        pfn: p.pfn,
        gfn: p.gfn,
        nr: p.nr,
    });
    let mut more = nr_movable;
    let movable = std::iter::from_fn(move || {
        let runs = chunk(&mut runs)?;
        more -= runs.len();
        Some(FromAgent::FramesChunk {
            runs,
            excluded: Vec::new(),
            // At most MAX_RUNS.
            more: more as u32,
        })
    });
    let mut gone = pages.iter().filter_map(|p| {
        Some(Excluded {
            pfn: p.pfn,
            nr: p.nr,
            reason: reason(p.kind)?,
        })
    });
    let excluded = std::iter::from_fn(move || {
        Some(FromAgent::FramesChunk {
            runs: Vec::new(),
            excluded: chunk(&mut gone)?,
            more: 0,
        })
    });
    let end = FromAgent::FramesEnd { pages: nr_pages };
    Ok(movable.chain(excluded).chain([end]))
}

/// What one message takes, if anything is left.
fn chunk<T>(items: &mut impl Iterator<Item = T>) -> Option<Vec<T>> {
    let first = items.next()?;
    let mut chunk = Vec::with_capacity(RUNS_PER_CHUNK);
    chunk.push(first);
    chunk.extend(items.take(RUNS_PER_CHUNK - 1));
    Some(chunk)
}

/// Why a page may not move, unless it may.
fn reason(kind: PageKind) -> Option<Reason> {
    match kind {
        PageKind::Ordinary => None,
        PageKind::PageTable => Some(Reason::PageTable),
        PageKind::XenstoreRing => Some(Reason::XenstoreRing),
        PageKind::ConsoleRing => Some(Reason::ConsoleRing),
        PageKind::StartInfo => Some(Reason::StartInfo),
        PageKind::Descriptors => Some(Reason::Descriptors),
        PageKind::Broken => Some(Reason::Broken),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmbeam_agent_protocol::FrameListBuilder;

    /// Pages whose frames do not follow each other, every third one a page table.
    fn scattered(nr: u64) -> Vec<PageRun> {
        let kind = |pfn| match pfn % 3 {
            0 => PageKind::PageTable,
            _ => PageKind::Ordinary,
        };
        (0..nr)
            .map(|pfn| PageRun {
                pfn,
                gfn: 2 * pfn,
                nr: 1,
                kind: kind(pfn),
            })
            .collect()
    }

    #[test]
    fn the_list_arrives() {
        let pages = scattered(3 * RUNS_PER_CHUNK as u64 + 1);
        let mut list = FrameListBuilder::new();
        let mut left = Vec::new();
        let mut announced = 0;
        for message in frame_list(&pages).unwrap() {
            match message {
                FromAgent::FramesChunk {
                    runs,
                    excluded,
                    more,
                } => {
                    left.push((runs.len(), more as usize, excluded.len()));
                    runs.into_iter().for_each(|r| list.push_run(r).unwrap());
                    let mut gone = excluded.into_iter();
                    gone.try_for_each(|e| list.push_excluded(e)).unwrap();
                }
                FromAgent::FramesEnd { pages } => announced = pages,
                other => panic!("{other:?}"),
            }
        }
        let full = RUNS_PER_CHUNK;
        let expected = [(full, full, 0), (full, 0, 0), (0, 0, full), (0, 0, 1)];
        assert_eq!(left, expected);
        let list = list.finish(announced).unwrap();
        assert_eq!(list.pages(), pages.len() as u64);
        assert!(list.runs().iter().all(|r| r.gfn == 2 * r.pfn));
        assert!(list.excluded().iter().all(|e| e.pfn % 3 == 0));
    }

    #[test]
    fn a_list_has_limits() {
        let most = MAX_RUNS as u64;
        let mut pages = scattered(most / 2 * 3 + 1);
        assert!(frame_list(&pages).is_ok());
        pages.extend(scattered(2));
        assert_eq!(frame_list(&pages).err(), Some(ListError::TooManyRuns));
        let huge = PageRun {
            nr: MAX_PAGES as u32 + 1,
            ..pages[0]
        };
        assert_eq!(frame_list(&[huge]).err(), Some(ListError::TooManyPages));
    }
}
