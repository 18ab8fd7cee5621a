// SPDX-License-Identifier: GPL-2.0-only

//! A model of the hypervisor and of its domains, for machines that have none.
//!
//! A frame is a number, its contents, and the status that a swap of it gets. The
//! model keeps to the contract of `Documentation/hypercall.rst`.

use core::ffi::c_int;

use kernel::prelude::*;

use crate::{
    xen,
    xen_abi::{
        SwapFrames,
        SwapRun,
        SwapStats,
        LAST_DOMID,
        SWAP_CHECK,
        SWAP_UNMAP,
        SWAP_VERSION, //
    },
};

/// Most frames in one domain, and of one request.
pub(crate) const MAX_FRAMES: u64 = 1 << 21;

/// Most domains at a time.
const MAX_DOMAINS: usize = 64;

kernel::sync::global_lock! {
    // SAFETY: The module calls `debug::init()` before its device exists, and nothing else leads
    // here.
    pub(crate) unsafe(uninit) static MOCK: Mutex<Domains> = Domains::new();
}

#[derive(Clone, Copy, Default)]
struct Frame {
    contents: u64,
    /// 0 for plain memory, or why a swap of it is refused. Positive: so it is until the
    /// device model is asked to give up what it keeps mapped in stock.
    status: i32,
}

struct Domain {
    id: u32,
    /// A number that no other domain ever has.
    unique: u64,
    /// 0, or why all swaps with it fail.
    refuse: i32,
    frames: KVVec<Frame>,
}

impl Domain {
    fn stretch(&mut self, first: u64, nr: u64) -> Result<&mut [Frame]> {
        let first = usize::try_from(first)?;
        let end = first.checked_add(usize::try_from(nr)?).ok_or(EINVAL)?;

        self.frames.get_mut(first..end).ok_or(EINVAL)
    }

    fn give_up_stock(&mut self) {
        for frame in &mut self.frames {
            frame.status = frame.status.min(0);
        }
    }

    fn frame(&self, gfn: u64) -> Option<Frame> {
        self.frames.get(usize::try_from(gfn).ok()?).copied()
    }

    fn set_contents(&mut self, gfn: u64, contents: u64) {
        let index = usize::try_from(gfn).unwrap_or(usize::MAX);
        if let Some(frame) = self.frames.get_mut(index) {
            frame.contents = contents;
        }
    }
}

/// All domains.
pub(crate) struct Domains {
    list: KVec<Domain>,
    last_id: u32,
    last_unique: u64,
}

/// Whether the model is used: where no hypervisor has the hypercall.
pub(crate) fn active() -> bool {
    !xen::implements_swap()
}

impl Domains {
    /// None.
    pub(crate) const fn new() -> Self {
        Self {
            list: KVec::new(),
            last_id: 0,
            last_unique: 0,
        }
    }

    fn find(&mut self, id: u32) -> Result<&mut Domain> {
        self.list.iter_mut().find(|d| d.id == id).ok_or(ESRCH)
    }

    /// A new domain with `nr` frames, and this number or any.
    pub(crate) fn create(&mut self, wanted: u32, nr: u64, refuse: i32) -> Result<u32> {
        if nr > MAX_FRAMES || wanted > LAST_DOMID {
            return Err(EINVAL);
        }
        if self.list.len() >= MAX_DOMAINS {
            return Err(ENOSPC);
        }
        let id = match wanted {
            0 => self.free_id(),
            _ if self.find(wanted).is_ok() => return Err(EEXIST),
            _ => wanted,
        };
        let unique = self.last_unique.saturating_add(1);
        let frames = KVVec::from_elem(Frame::default(), usize::try_from(nr)?, GFP_KERNEL)?;
        let domain = Domain {
            id,
            unique,
            refuse,
            frames,
        };
        self.list.push(domain, GFP_KERNEL)?;
        self.last_unique = unique;
        Ok(id)
    }

    /// A number that no domain has. One that was in use is taken late, as by Xen.
    fn free_id(&mut self) -> u32 {
        loop {
            self.last_id = if self.last_id >= LAST_DOMID {
                1
            } else {
                self.last_id.saturating_add(1)
            };
            if self.find(self.last_id).is_err() {
                return self.last_id;
            }
        }
    }

    /// Take a domain away.
    pub(crate) fn destroy(&mut self, id: u32) -> Result {
        self.find(id)?;
        self.list.retain(|domain| domain.id != id);
        if self.list.is_empty() {
            self.list = KVec::new();
        }
        Ok(())
    }

    /// Why swaps with the domain fail.
    pub(crate) fn refuse(&mut self, id: u32, status: i32) -> Result {
        self.find(id)?.refuse = status;
        Ok(())
    }

    /// Why swaps of some of its frames are refused.
    pub(crate) fn set_status(&mut self, id: u32, first: u64, nr: u64, status: i32) -> Result {
        for frame in self.find(id)?.stretch(first, nr)? {
            frame.status = status;
        }
        Ok(())
    }

    /// Write frames.
    pub(crate) fn write(&mut self, id: u32, first: u64, contents: &[u64]) -> Result {
        let frames = self
            .find(id)?
            .stretch(first, u64::try_from(contents.len())?)?;

        for (frame, contents) in frames.iter_mut().zip(contents) {
            frame.contents = *contents;
        }
        Ok(())
    }

    /// Read frames.
    pub(crate) fn read(&mut self, id: u32, first: u64, contents: &mut [u64]) -> Result {
        let frames = self
            .find(id)?
            .stretch(first, u64::try_from(contents.len())?)?;

        for (frame, contents) in frames.iter().zip(contents) {
            *contents = frame.contents;
        }
        Ok(())
    }

    /// The hypercall.
    pub(crate) fn memory_op(
        &mut self,
        request: &mut SwapFrames,
        runs: &[SwapRun],
        status: &mut [i32],
        stats: &mut SwapStats,
    ) -> c_int {
        match self.swap(request, runs, status, stats) {
            Ok(()) => 0,
            Err(error) => error.to_errno(),
        }
    }

    fn swap(
        &mut self,
        request: &mut SwapFrames,
        runs: &[SwapRun],
        status: &mut [i32],
        stats: &mut SwapStats,
    ) -> Result {
        let (a, b) = (u32::from(request.domid_a), u32::from(request.domid_b));
        let check = request.flags & SWAP_CHECK != 0;

        if request.version != SWAP_VERSION {
            return Err(ENOEXEC);
        }
        if a == b || (runs.is_empty() && !check) {
            return Err(EINVAL);
        }
        for (id, unique) in [(a, &mut request.id_a), (b, &mut request.id_b)] {
            if id == 0 {
                return Err(EPERM);
            }
            let domain = self.find(id)?;
            if *unique != 0 && *unique != domain.unique {
                return Err(EADDRNOTAVAIL);
            }
            if domain.refuse != 0 {
                return Err(Error::from_errno(domain.refuse));
            }
            *unique = domain.unique;
            if request.flags & SWAP_UNMAP != 0 {
                domain.give_up_stock();
            }
        }

        let mut status = status.iter_mut();
        for run in runs {
            for i in 0..u64::from(run.nr) {
                let slot = status.next().ok_or(EFAULT)?;
                *slot = self.swap_pair((a, run.gfn_a + i), (b, run.gfn_b + i), check)?;
                request.done = request.done.saturating_add(1);
                if *slot == 0 && !check {
                    stats.swapped = stats.swapped.saturating_add(1);
                    // Two entries that are removed, and two that are written.
                    stats.p2m_writes = stats.p2m_writes.saturating_add(4);
                }
            }
        }
        if stats.swapped > 0 {
            stats.batches = stats.batches.saturating_add(1);
            stats.tlb_flushes = stats.tlb_flushes.saturating_add(1);
        }
        Ok(())
    }

    fn swap_pair(&mut self, a: (u32, u64), b: (u32, u64), check: bool) -> Result<i32> {
        let frame_a = self.find(a.0)?.frame(a.1);
        let frame_b = self.find(b.0)?.frame(b.1);

        // Both are looked up before either is taken hold of.
        let (Some(frame_a), Some(frame_b)) = (frame_a, frame_b) else {
            return Ok(ENOENT.to_errno());
        };
        for frame in [frame_a, frame_b] {
            if frame.status != 0 {
                return Ok(-frame.status.saturating_abs());
            }
        }
        if !check {
            self.find(a.0)?.set_contents(a.1, frame_b.contents);
            self.find(b.0)?.set_contents(b.1, frame_a.contents);
        }
        Ok(0)
    }
}
