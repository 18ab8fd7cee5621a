// SPDX-License-Identifier: GPL-2.0-only

//! What must hold of the domains and their frames between calls.

use anyhow::ensure;
use anyhow::Result;

use super::pod::POD;
use super::Test;
use crate::world::DOMAINS;
use crate::world::GFNS;
use crate::world::NONE;
use crate::xen::ON_DEMAND;
use crate::xen::RAM_LOGDIRTY;
use crate::xen::RAM_RW;

impl Test {
    pub(super) fn tag(&self, mfn: u64) -> *mut u64 {
        (self.xen.layout.direct_map + (mfn << 12)) as *mut u64
    }

    pub(super) fn held(&self, mfn: u64) -> bool {
        self.referenced.iter().any(|(m, ..)| *m == mfn)
    }

    /// P2M, M2P, owner, count and contents of one gfn.
    pub(super) fn verify(&self, id: usize, gfn: usize) -> Result<()> {
        let want = self.map[id][gfn];
        let entry = self.xen.lookup(id as u16, gfn as u64);
        let on_demand = entry.p2m_type == ON_DEMAND;
        ensure!(
            on_demand == (want == POD),
            "d{id} gfn {gfn:#x}: {entry:?}, not {want:#x}"
        );
        if on_demand {
            return Ok(());
        }
        ensure!(
            entry.mfn == want,
            "d{id} gfn {gfn:#x}: P2M has {:#x}, not {want:#x}",
            entry.mfn
        );
        if want == NONE {
            return Ok(());
        }
        let frame = self.xen.frame(want);
        let l = &self.xen.layout;
        let kind = if self.tracked[id][gfn] {
            RAM_LOGDIRTY
        } else {
            RAM_RW
        };
        ensure!(
            entry.p2m_type == kind,
            "d{id} gfn {gfn:#x}: type {}, not {kind}",
            entry.p2m_type
        );
        ensure!(
            frame.gpfn == gfn as u64,
            "frame {want:#x}: M2P has {:#x}, not {gfn:#x}",
            frame.gpfn
        );
        ensure!(
            frame.owner as usize == id,
            "frame {want:#x}: owned by d{}, not d{id}",
            frame.owner as i32
        );
        let extra = self.referenced.iter().filter(|(m, ..)| *m == want).count() as u64;
        ensure!(
            frame.count_info == l.page_allocated | (1 + extra) && frame.type_info == 0,
            "frame {want:#x}: count {:#x}, type {:#x}",
            frame.count_info,
            frame.type_info
        );
        // SAFETY: a frame of the simulated machine.
        let tag = unsafe { *self.tag(want) };
        let contents = self.contents[want as usize];
        ensure!(
            tag == contents,
            "frame {want:#x}: contents of {tag:#x}, not {contents:#x}"
        );
        Ok(())
    }

    /// All gfns, all lists, all counts; and no frame has two owners.
    pub(super) fn audit(&self) -> Result<()> {
        for id in 1..=DOMAINS {
            for gfn in 0..GFNS {
                self.verify(id, gfn)?;
            }
            let mut owned: Vec<u64> = self.map[id].iter().copied().filter(|m| *m < POD).collect();
            let mut listed = self.xen.list(id as u16, owned.len());
            owned.sort_unstable();
            listed.sort_unstable();
            ensure!(
                owned == listed,
                "d{id}: the page list is not what the domain owns"
            );
            let pod = self.xen.pod(id as u16);
            ensure!(
                pod.tot_pages == owned.len() as u64 + pod.cache,
                "d{id}: {pod:?}, {} are there",
                owned.len()
            );
            let entries = self.map[id].iter().filter(|m| **m == POD).count();
            ensure!(
                pod.entries == entries as u64 && pod.cache <= pod.entries,
                "d{id}: {pod:?}, {entries} are there"
            );
        }
        Ok(())
    }
}
