// SPDX-License-Identifier: GPL-2.0-only

//! From what the hypervisor says about frames to what may move.

use crate::sys;
use std::collections::BTreeMap;

/// What a page of a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// Ordinary memory.
    Ordinary,
    /// A page table of some level.
    PageTable,
    /// The ring shared with xenstored.
    XenstoreRing,
    /// The ring shared with the console daemon.
    ConsoleRing,
    /// The start information.
    StartInfo,
    /// Part of a vCPU's descriptor table.
    Descriptors,
    /// Faulty, or claimed by two frames.
    Broken,
}

/// A page of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestPage {
    /// Its number in the guest.
    pub pfn: u64,
    /// The frame behind it.
    pub gfn: u64,
    /// What it is.
    pub kind: PageKind,
}

/// Frames of a guest that have a special meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Special {
    /// Frame of the xenstore ring.
    pub xenstore: Option<u64>,
    /// Frame of the console ring.
    pub console: Option<u64>,
    /// Frame of the start information.
    pub start_info: Option<u64>,
    /// Frames of descriptor tables.
    pub descriptors: Vec<u64>,
}

/// Turn the frames of a guest, as `(gfn, pfn, type)`, into its pages in
/// ascending order of pfn.
///
/// The guest may change its entries in the machine-to-physical table, so two
/// frames can claim to be the same page: then neither is taken at its word.
pub fn classify(
    frames: impl IntoIterator<Item = (u64, u64, u64)>,
    special: &Special,
) -> Vec<GuestPage> {
    let mut pages = BTreeMap::new();
    for (gfn, pfn, ty) in frames {
        let kind = if ty & sys::PFINFO_LTAB_MASK == sys::PFINFO_BROKEN {
            PageKind::Broken
        } else if ty & sys::PFINFO_LTABTYPE_MASK != 0 {
            PageKind::PageTable
        } else if special.xenstore == Some(gfn) {
            PageKind::XenstoreRing
        } else if special.console == Some(gfn) {
            PageKind::ConsoleRing
        } else if special.start_info == Some(gfn) {
            PageKind::StartInfo
        } else if special.descriptors.contains(&gfn) {
            PageKind::Descriptors
        } else {
            PageKind::Ordinary
        };
        pages
            .entry(pfn)
            .and_modify(|p: &mut GuestPage| p.kind = PageKind::Broken)
            .or_insert(GuestPage { pfn, gfn, kind });
    }
    pages.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_pages_apart() {
        let special = Special {
            xenstore: Some(103),
            console: Some(104),
            start_info: Some(105),
            descriptors: vec![106],
        };
        let frames = [
            (110, 10, 0),
            (101, 1, 1 << 28),
            (102, 2, (4 << 28) | (1 << 31)),
            (103, 3, 0),
            (104, 4, 0),
            (105, 5, 0),
            (106, 6, 0),
            (107, 7, sys::PFINFO_BROKEN),
            (120, 10, 0),
            (100, 0, 0),
        ];
        let pages = classify(frames, &special);
        let kinds: Vec<_> = pages.iter().map(|p| (p.pfn, p.kind)).collect();
        use PageKind::*;
        assert_eq!(
            kinds,
            [
                (0, Ordinary),
                (1, PageTable),
                (2, PageTable),
                (3, XenstoreRing),
                (4, ConsoleRing),
                (5, StartInfo),
                (6, Descriptors),
                (7, Broken),
                (10, Broken),
            ]
        );
    }
}
