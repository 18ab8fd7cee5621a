// SPDX-License-Identifier: GPL-2.0-only

//! A guest VM that consists of nothing but its frame list.

use std::cell::Cell;

use vmbeam_agent::definitions::Files;
use vmbeam_agent::gate::Gate;
use vmbeam_agent::toolstack::Incoming;
use vmbeam_agent::toolstack::Outgoing;
use vmbeam_agent::HvError;
use vmbeam_agent::Hypervisor;
use vmbeam_agent_protocol::{AgentErrorCode, Facts, Guest, Inspection, Need, Toolstack, Uuid};
use vmbeam_xen::Frames;
use vmbeam_xen::Page;
use vmbeam_xen::PageRun;
use vmbeam_xen::Special;

use crate::clock;

/// Of so many pages one is a page table, as in a guest that has been up for a while.
const PER_TABLE: u64 = 512;
/// Where tables are together, of so many blocks of that size one has another in it.
const BROKEN: u64 = 64;
/// `XEN_DOMCTL_PFINFO_L1TAB`.
const L1_TABLE: u64 = 1 << 28;
/// Frame of the first page.
const FIRST_GFN: u64 = 0x1_0000;

/// Where a guest has its page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tables {
    /// One at the end of each 2 MiB, so that each run of them is broken.
    Spread,
    /// At the end of its memory, and some that break a block each: as `bench pause` has them,
    /// and as Linux allocates most of them.
    Together,
}

/// Its shape, and where its frames are.
#[derive(Clone, Copy, Debug)]
pub struct Synthetic {
    /// Pages, a power of two.
    pub pages: u64,
    /// Pages that follow each other in the guest and in its host VM, a power of two.
    pub run: u64,
    /// Odd; decides the order of the runs.
    pub order: u64,
    /// Where its page tables are.
    pub tables: Tables,
}

impl Synthetic {
    /// First frame number that its host VM does not have.
    pub fn memory_end(&self) -> u64 {
        FIRST_GFN + self.pages
    }

    /// What the guest hypervisor says about its frames, in ascending order of gfn:
    /// gfn, pfn, type. Without divisions, which would take longer than what is measured.
    pub fn frames(&self) -> impl Iterator<Item = (u64, u64, u64)> + use<> {
        let Self {
            pages,
            run,
            order,
            tables,
        } = *self;
        // All but some in each so many pages, and the others from here on.
        let (each, first) = match tables {
            Tables::Spread => (PER_TABLE, pages),
            Tables::Together => (BROKEN * PER_TABLE, pages - pages / PER_TABLE),
        };
        let within_each = each - 1;
        let shift = run.trailing_zeros();
        let (within, blocks) = (run - 1, (pages >> shift) - 1);
        (0..pages).map(move |i| {
            // Multiplying by an odd number exchanges the runs' places.
            let block = (i >> shift).wrapping_mul(order) & blocks;
            let pfn = (block << shift) | (i & within);
            let is_last = pfn & (PER_TABLE - 1) == PER_TABLE - 1;
            let kind = if pfn >= first || (is_last && pfn & within_each < PER_TABLE) {
                L1_TABLE
            } else {
                0
            };
            (FIRST_GFN + i, pfn, kind)
        })
    }
}

/// A guest hypervisor with this one guest; remembers how long listing its pages took.
#[derive(Debug)]
pub struct Hv {
    guest: Synthetic,
    /// Seconds.
    pub seconds: Cell<f64>,
}

impl Hv {
    /// With this guest.
    pub fn new(guest: Synthetic) -> Self {
        Self {
            guest,
            seconds: Cell::default(),
        }
    }
}

fn unsupported<T>() -> Result<T, HvError> {
    Err(HvError {
        code: AgentErrorCode::Unsupported,
        message: "this guest is a list only".into(),
    })
}

impl Hypervisor for &Hv {
    fn version(&self) -> String {
        "a list".into()
    }

    fn host_vm(&self) -> Result<Uuid, String> {
        Err("there is none".into())
    }

    fn toolstack(&self) -> Toolstack {
        Toolstack::default()
    }

    fn memory_end(&self) -> Result<u64, HvError> {
        Ok(self.guest.memory_end())
    }

    fn guests(&self) -> Result<Vec<Guest>, HvError> {
        unsupported()
    }

    fn pause(&self, _: u32) -> Result<bool, HvError> {
        unsupported()
    }

    fn unpause(&self, _: u32) -> Result<(), HvError> {
        unsupported()
    }

    fn pages(&self, _: u32) -> Result<Vec<PageRun>, HvError> {
        let start = clock::now();
        let mut frames = Frames::new();
        for (gfn, pfn, ty) in self.guest.frames() {
            frames.push(gfn, pfn, ty);
        }
        let pages = frames.classify(&special());
        self.seconds.set(clock::now() - start);
        Ok(pages)
    }

    fn read(&self, _: u32, _: &[u64], _: &mut dyn FnMut(usize, &Page)) -> Result<(), HvError> {
        unsupported()
    }

    fn write(&self, _: u32, _: &[u64], _: &mut dyn FnMut(usize, &mut Page)) -> Result<(), HvError> {
        unsupported()
    }

    fn inspect(&self, _: u32, _: bool) -> Result<Inspection, HvError> {
        unsupported()
    }

    fn lacking(&self, _: &[Need]) -> Vec<Need> {
        Vec::new()
    }

    fn facts(&self) -> Result<Facts, HvError> {
        unsupported()
    }

    fn save(&self, _: u32, _: bool, _: bool) -> Result<Box<dyn Outgoing>, HvError> {
        unsupported()
    }

    fn orphan(&self) -> Option<String> {
        None
    }

    fn stands_still(&self, _: u32) -> Result<bool, HvError> {
        unsupported()
    }

    fn raise_events(&self, _: u32) -> Result<(), HvError> {
        unsupported()
    }

    fn drain(&self, _: u32) -> Result<(), HvError> {
        unsupported()
    }

    fn restore(&self, _: &str, _: bool, _: bool) -> Result<Box<dyn Incoming>, HvError> {
        unsupported()
    }

    fn resume(&self, _: u32) -> Result<(), HvError> {
        unsupported()
    }

    fn destroy(&self, _: u32) -> Result<(), HvError> {
        unsupported()
    }

    fn files(&self) -> Result<Files, HvError> {
        Files::system()
    }

    fn gate(&self) -> Gate {
        Gate::default()
    }
}

/// What every PV guest has.
fn special() -> Special {
    Special {
        xenstore: Some(FIRST_GFN + 3),
        console: Some(FIRST_GFN + 4),
        start_info: Some(FIRST_GFN + 5),
        descriptors: vec![FIRST_GFN + 6],
    }
}
