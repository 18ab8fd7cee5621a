// SPDX-License-Identifier: GPL-2.0-only

//! A model of the hypervisor and of its domains, for machines that have none.
//!
//! A guest frame has a machine frame with contents behind it, or is populate-on-demand, and has
//! the status that a swap of it gets. The model keeps to the contract of
//! `Documentation/hypercall.rst`. Its domains have no cache for populate-on-demand: what is populated
//! is a new frame. Of these caches it has only that the hypervisor can be out of memory for
//! them, which it tells when asked as well; Xen finds out when it is at it.

use kernel::prelude::*;

use crate::{
    xen,
    xen_abi::LAST_DOMID, //
};

mod swap;

/// Most frames in one domain, and of one request.
pub(crate) const MAX_FRAMES: u64 = 1 << 21;

/// Most domains at a time.
const MAX_DOMAINS: usize = 64;

kernel::sync::global_lock! {
    // SAFETY: The module calls `debug::init()` before its device exists, and nothing else leads
    // here.
    pub(crate) unsafe(uninit) static MOCK: Mutex<Model> = Model::new();
}

#[derive(Clone, Copy, Default)]
struct Frame {
    /// Which machine frame; 0 for populate-on-demand.
    machine: u64,
    /// 0 for populate-on-demand.
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
    /// Machine frames, and how many it may have.
    pages: u64,
    limit: u64,
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

    fn frame(&mut self, gfn: u64) -> Option<&mut Frame> {
        self.frames.get_mut(usize::try_from(gfn).ok()?)
    }
}

/// All domains.
pub(crate) struct Model {
    list: KVec<Domain>,
    last_id: u32,
    last_unique: u64,
    last_machine: u64,
    /// Pages that the hypervisor has for the caches of domains that give: it takes one for each
    /// frame that goes over alone.
    reserve: u64,
}

/// Whether the model is used: where no hypervisor has the hypercall.
pub(crate) fn active() -> bool {
    !xen::implements_swap()
}

impl Model {
    /// None.
    pub(crate) const fn new() -> Self {
        Self {
            list: KVec::new(),
            last_id: 0,
            last_unique: 0,
            last_machine: 0,
            reserve: u64::MAX,
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
        let mut frames = KVVec::from_elem(Frame::default(), usize::try_from(nr)?, GFP_KERNEL)?;
        for frame in &mut frames {
            frame.machine = self.new_machine();
        }
        let domain = Domain {
            id,
            unique,
            refuse,
            pages: nr,
            limit: u64::MAX,
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

    fn new_machine(&mut self) -> u64 {
        self.last_machine = self.last_machine.saturating_add(1);
        self.last_machine
    }

    /// Take a domain away.
    pub(crate) fn destroy(&mut self, id: u32) -> Result {
        self.find(id)?;
        self.list.retain(|domain| domain.id != id);
        if self.list.is_empty() {
            self.list = KVec::new();
            self.reserve = u64::MAX;
        }
        Ok(())
    }

    /// How many pages the hypervisor has from now on for those who give, until the last domain is
    /// gone.
    pub(crate) fn set_reserve(&mut self, pages: u64) {
        self.reserve = pages;
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

    /// Take the memory of some frames away: they are populate-on-demand from now on.
    pub(crate) fn depopulate(&mut self, id: u32, first: u64, nr: u64) -> Result {
        let domain = self.find(id)?;
        let mut pages = domain.pages;

        for frame in domain.stretch(first, nr)? {
            if frame.machine != 0 {
                pages = pages.saturating_sub(1);
            }
            (frame.machine, frame.contents) = (0, 0);
        }
        domain.pages = pages;
        Ok(())
    }

    /// How much memory it may have.
    pub(crate) fn limit(&mut self, id: u32, pages: u64) -> Result {
        self.find(id)?.limit = pages;
        Ok(())
    }

    /// How much it has, and how many frames are populate-on-demand.
    pub(crate) fn pages(&mut self, id: u32) -> Result<(u64, u64)> {
        let domain = self.find(id)?;
        let missing = domain.frames.iter().filter(|frame| frame.machine == 0);

        Ok((domain.pages, u64::try_from(missing.count())?))
    }

    /// Which machine frames are behind its frames.
    pub(crate) fn machine_frames(&mut self, id: u32, first: u64, out: &mut [u64]) -> Result {
        let nr = u64::try_from(out.len())?;

        for (frame, out) in self.find(id)?.stretch(first, nr)?.iter().zip(out) {
            *out = frame.machine;
        }
        Ok(())
    }

    /// Write frames, as a guest would: what is not populated is then.
    pub(crate) fn write(&mut self, id: u32, first: u64, contents: &[u64]) -> Result {
        let nr = u64::try_from(contents.len())?;
        let (mut machine, mut populated) = (self.last_machine, 0u64);
        let domain = self.find(id)?;

        for (frame, contents) in domain.stretch(first, nr)?.iter_mut().zip(contents) {
            if frame.machine == 0 {
                machine = machine.saturating_add(1);
                populated = populated.saturating_add(1);
                frame.machine = machine;
            }
            frame.contents = *contents;
        }
        domain.pages = domain.pages.saturating_add(populated);
        self.last_machine = machine;
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
}
