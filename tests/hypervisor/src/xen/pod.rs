// SPDX-License-Identifier: GPL-2.0-only

//! What concerns memory that is populated on demand, and limits.

use anyhow::ensure;
use anyhow::Result;

use super::Pod;
use super::Xen;

impl Xen {
    /// Let gfns be populated on demand.
    pub fn pod_mark(&self, id: u16, gfn: u64, order: u32) -> Result<()> {
        let rc = self.call(self.f.pod_mark, id.into(), gfn, order.into(), 0);
        ensure!(
            rc == 0,
            "d{id} gfn {gfn:#x} cannot be populated on demand: {rc}"
        );
        Ok(())
    }

    /// `XENMEM_set_pod_target`.
    pub fn pod_target(&self, id: u16, target: u64) -> Result<()> {
        let rc = self.call(self.f.pod_target, id.into(), target, 0, 0);
        ensure!(rc == 0, "d{id}: no target of {target}: {rc}");
        Ok(())
    }

    /// What a domain has of memory.
    pub fn pod(&self, id: u16) -> Pod {
        let mut pod = Pod::default();
        let p = std::ptr::from_mut(&mut pod) as u64;
        self.call(self.f.pod_state, id.into(), p, 0, 0);
        pod
    }

    /// Touch a gfn as a vCPU does; the frame that is there then.
    pub fn pod_touch(&self, id: u16, gfn: u64) -> u64 {
        self.call(self.f.pod_touch, id.into(), gfn, 0, 0) as u64
    }

    /// Let the balloon driver give a gfn back; how much of it populate-on-demand has taken.
    pub fn pod_decrease(&self, id: u16, gfn: u64, order: u32) -> u64 {
        self.call(self.f.pod_decrease, id.into(), gfn, order.into(), 0) as u64
    }

    /// Where it is noted how much a domain claims of the heap.
    pub fn claim_field(&self, id: u16) -> *mut u32 {
        self.call(self.f.claim_field, id.into(), 0, 0, 0) as *mut u32
    }

    /// Set what a domain may have at most, and what it claims of the heap.
    pub fn set_limit(&self, id: u16, max_pages: u64, claim: u64) {
        self.call(self.f.set_limit, id.into(), max_pages, claim, 0);
    }
}
