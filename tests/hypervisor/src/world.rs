// SPDX-License-Identifier: GPL-2.0-only

//! What surrounds Xen's code while it is tested: the events that it causes, faults that
//! are injected, and a model of TLBs that are stale until they are flushed.

use std::alloc::Layout;
use std::cell::RefCell;
use std::collections::HashMap;

use crate::xen::event;
use crate::xen::text;

/// Domains of the test have the ids 1 to this.
pub const DOMAINS: usize = 4;
/// gfns of a domain that are used.
pub const GFNS: usize = 4096;
/// No frame.
pub const NONE: u64 = u64::MAX;
/// Bit of a CPU that has mapped a frame for a third domain.
const THIRD: u8 = 1 << 7;
/// That CPU in a mask: the last one.
const THIRD_CPU: u64 = 1 << 8;
/// The CPU of the caller, and those of the domains.
const ALL_CPUS: u64 = (1 << 9) - 1;
/// The hypervisor never allocates more than a page, as larger ones may not be had.
const PAGE: u64 = 4096;

/// Which of the next chances to fail is taken; `None`: none.
#[derive(Debug, Default, Clone, Copy)]
pub struct Faults {
    /// Number of the allocation that fails.
    pub alloc: Option<u32>,
    /// Number of the page table that cannot be allocated.
    pub table: Option<u32>,
    /// Number of the copy that faults.
    pub copy: Option<u32>,
    /// Number of the frame for a domain that cannot be had.
    pub frame: Option<u32>,
    /// How many frames for domains can be had.
    pub frames: Option<u32>,
    /// Number of the list of entries that cannot be written.
    pub leaves: Option<u32>,
    /// Number of the entry that cannot be written on its own.
    pub entry: Option<u32>,
    /// Preempt at each chance whose bit is set.
    pub preempt: u64,
    /// One of the above has happened.
    pub fired: bool,
    /// A copy has failed.
    pub copy_fired: bool,
}

/// Counts of one call.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    /// Rounds of IPIs.
    pub ipis: u64,
    /// Entries written.
    pub writes: u64,
    /// Continuations.
    pub continued: u64,
    /// Nested P2Ms flushed.
    pub nested: u64,
    /// Flushes of the IOMMU's TLB.
    pub iommu: u64,
    /// Rounds in which all caches were flushed.
    pub caches: u64,
    /// Frames that went back to the heap.
    pub freed: u64,
    /// Requests to device models to drop mappings.
    pub unmaps: u64,
    /// Domains crashed, where that is allowed.
    pub crashes: u64,
}

/// State of the surroundings.
#[derive(Debug, Default)]
pub struct World {
    /// The first thing that went wrong.
    pub violation: Option<String>,
    /// What is to fail.
    pub faults: Faults,
    /// What was counted.
    pub counts: Counts,
    /// Printed with a failure.
    pub reproduce: String,
    /// Where a frame's owner is noted, and what has to be there while P2Ms of nested guests
    /// or caches are flushed.
    pub probe: Option<(*const u32, u32)>,
    /// Where a frame's references are counted, how many there have to be while a domain's
    /// TLBs are flushed, those of its nested guests and its IOMMU included, and which domain.
    pub kept: Option<(*const u64, u64, u64)>,
    /// Where a domain's claim is noted, and what it is to be from the next round of IPIs on.
    pub stake: Option<(*mut u32, u32)>,
    /// A domain may be crashed.
    pub may_crash: bool,
    /// Watch P2M writes; off while domains are made.
    pub watch: bool,
    /// What each domain's entries lead to, from the writes.
    pub shadow: Vec<Vec<u64>>,
    mapped_by: Vec<u8>,
    stale: Vec<u8>,
    stale_list: Vec<u64>,
    held: Vec<u64>,
    /// Addresses of locks, by their use: domain and page list of each.
    pub lock_names: HashMap<u64, String>,
    chances: [u32; 7],
    blocks: HashMap<u64, Layout>,
}

thread_local! {
    /// The one world.
    pub static WORLD: RefCell<World> = RefCell::default();
}

/// Use the world for a moment.
pub fn with<T>(f: impl FnOnce(&mut World) -> T) -> T {
    WORLD.with(|w| f(&mut w.borrow_mut()))
}

impl World {
    /// Note that something is wrong.
    pub fn fail(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// Begin to watch a machine of so many frames.
    pub fn start(&mut self, frames: usize) {
        self.shadow = vec![vec![NONE; GFNS]; DOMAINS + 1];
        self.mapped_by = vec![0; frames];
        self.stale = vec![0; frames];
        self.watch = true;
    }

    /// Begin a call.
    pub fn begin(&mut self, faults: Faults) {
        self.faults = faults;
        self.counts = Counts::default();
        self.chances = [0; 7];
    }

    /// The state at the end of a call that must hold.
    pub fn end(&mut self) {
        if !self.held.is_empty() {
            self.fail(format!("locks are held at the end: {:x?}", self.held));
        }
        let late: Vec<_> = self.stale_list.drain(..).collect();
        for mfn in late {
            // A flush may come when the P2M lock is dropped, but not later.
            if self.stale[mfn as usize] & !THIRD != 0 {
                self.fail(format!(
                    "frame {mfn:#x} is left in a TLB: {:#x}",
                    self.stale[mfn as usize]
                ));
            }
            self.stale[mfn as usize] = 0;
        }
    }

    /// Forget what may be in TLBs. NPT flushes at once when an entry is written outside of a
    /// swap, which is before its write is told of.
    pub fn settle(&mut self) {
        for mfn in self.stale_list.drain(..) {
            self.stale[mfn as usize] = 0;
        }
    }

    fn chance(&mut self, kind: usize, wanted: Option<u32>) -> bool {
        self.chances[kind] += 1;
        let hit = wanted == Some(self.chances[kind] - 1);
        self.faults.fired |= hit;
        hit
    }

    /// Enter what is mapped before the first call.
    pub fn seed(&mut self, id: usize, gfn: u64, mfn: u64) {
        self.shadow[id][gfn as usize] = mfn;
        self.mapped_by[mfn as usize] = id as u8;
    }

    fn write(&mut self, id: usize, gfn: u64, mfn: u64, order: u32) {
        self.counts.writes += 1;
        for i in 0..1u64 << order {
            let new = if mfn == NONE { NONE } else { mfn + i };
            let Some(slot) = self.shadow[id].get_mut((gfn + i) as usize) else {
                continue;
            };
            let old = std::mem::replace(slot, new);
            if old == new {
                continue;
            }
            if old != NONE {
                self.stale[old as usize] |= (1 << id) | THIRD;
                self.stale_list.push(old);
                if self.mapped_by[old as usize] == id as u8 {
                    self.mapped_by[old as usize] = 0;
                }
            }
            if new != NONE {
                let others = self.stale[new as usize] & !(1 << id);
                if others & !THIRD != 0 {
                    self.fail(format!(
                        "frame {new:#x} given to d{id} while in other TLBs ({others:#x})"
                    ));
                } else if others != 0 && self.stale[new as usize] & !(1 << id) == THIRD {
                    self.fail(format!(
                        "frame {new:#x} given to d{id} without flushing third parties"
                    ));
                }
                let by = self.mapped_by[new as usize];
                if by != 0 && usize::from(by) != id {
                    self.fail(format!("frame {new:#x} mapped by d{by} and d{id} at once"));
                }
                self.mapped_by[new as usize] = id as u8;
            }
        }
    }

    fn flush(&mut self, domains: u8) {
        for mfn in &self.stale_list {
            self.stale[*mfn as usize] &= !domains;
        }
    }

    /// TLBs of a domain are flushed; one of them.
    fn flush_kept(&mut self, id: u64, what: &str) {
        let Some((count, least, _)) = self.kept.filter(|kept| kept.2 == id) else {
            return;
        };
        // SAFETY: a field of the simulated machine's frame table.
        if unsafe { *count } < least {
            self.fail(format!("d{id} has a frame in {what} that nobody holds"));
        }
    }

    /// Nobody may have been given the frame that is looked at.
    fn flush_probe(&mut self, what: &str) {
        let Some((owner, old)) = self.probe else {
            return;
        };
        // SAFETY: a field of the simulated machine's frame table.
        if unsafe { *owner } != old {
            self.fail(format!("a frame was given away with {what}"));
        }
    }

    fn locked(&mut self, lock: u64) {
        if let Some(name) = self.lock_names.get(&lock) {
            if self.held.contains(&lock) {
                let name = format!("{name} is taken twice");
                return self.fail(name);
            }
            // Both of a kind are taken in the order of the domids.
            let later = self
                .held
                .iter()
                .filter_map(|l| self.lock_names.get(l))
                .find(|held| held[2..] == name[2..] && held[..2] > name[..2]);
            if let Some(held) = later {
                let what = format!("{name} is taken after {held}");
                self.fail(what);
            }
        }
        self.held.push(lock);
    }

    fn unlocked(&mut self, lock: u64) {
        match self.held.iter().rposition(|l| *l == lock) {
            Some(i) => {
                self.held.remove(i);
            }
            None => self.fail(format!("lock {lock:#x} dropped, but not held")),
        }
    }

    fn allocate(&mut self, size: u64, align: u64) -> u64 {
        if size > PAGE && self.watch {
            self.fail(format!("{size} bytes are allocated at once"));
        }
        if self.chance(0, self.faults.alloc) {
            return 0;
        }
        let Ok(layout) = Layout::from_size_align(size.max(1) as usize, align.max(16) as usize)
        else {
            return 0;
        };
        // SAFETY: the size isn't zero.
        let p = unsafe { std::alloc::alloc(layout) } as u64;
        self.blocks.insert(p, layout);
        p
    }

    fn free(&mut self, p: u64) {
        match self.blocks.remove(&p) {
            // SAFETY: allocated above with this layout.
            Some(layout) => unsafe { std::alloc::dealloc(p as *mut u8, layout) },
            None => self.fail(format!("{p:#x} freed, but not allocated")),
        }
    }

    /// Memory that Xen's code has and did not free.
    pub fn allocated(&self) -> usize {
        self.blocks.len()
    }
}

/// Leave at once: the state of Xen's code cannot be trusted any more.
pub fn die(reproduce: &str) -> ! {
    if !reproduce.is_empty() {
        println!("# to reproduce: {reproduce}");
    }
    std::process::exit(1)
}

/// The shim's events. Copies and flushes count, faults are injected.
pub extern "C" fn handle(kind: u32, a: u64, b: u64, c: u64, d: u64) -> u64 {
    if kind == event::BUG {
        let how = WORLD.with(|w| {
            w.try_borrow()
                .map(|w| w.reproduce.clone())
                .unwrap_or_default()
        });
        println!("# {} at {}:{c}", text(a), text(b));
        die(&how);
    }
    with(|w| {
        match kind {
            event::ALLOC => return w.allocate(a, b),
            event::FREE => w.free(a),
            event::PTP_ALLOC => return w.chance(1, w.faults.table).into(),
            event::COPY_IN | event::COPY_OUT => {
                let hit = w.chance(2, w.faults.copy);
                w.faults.copy_fired |= hit;
                return hit.into();
            }
            event::PREEMPT => {
                let n = w.chances[3];
                w.chances[3] += 1;
                return (w.faults.preempt >> (n % 64)) & 1;
            }
            event::CONTINUE => w.counts.continued += 1,
            event::FLUSH_DOMAIN => {
                w.flush(1 << a);
                w.flush_kept(a, "TLBs");
            }
            event::IPI => {
                w.counts.ipis += 1;
                if let Some((claim, pages)) = w.stake.take() {
                    // SAFETY: a field of a simulated domain.
                    unsafe { *claim = pages };
                }
            }
            event::FLUSH_LINEAR if a & THIRD_CPU != 0 => w.flush(THIRD),
            event::FLUSH_NESTED => {
                w.counts.nested += 1;
                w.flush_probe("a nested P2M in use");
                w.flush_kept(a, "TLBs of nested guests");
            }
            event::FLUSH_IOMMU => {
                w.counts.iommu += 1;
                w.flush_kept(a, "the IOMMU's TLB");
            }
            event::FLUSH_CACHES => {
                w.counts.caches += 1;
                w.flush_probe("contents in caches");
                if w.counts.ipis == 0 || a & ALL_CPUS != ALL_CPUS {
                    w.fail(format!(
                        "caches of {a:#x} are flushed, and some may be filled"
                    ));
                }
            }
            event::WRITE if w.watch => w.write(a as usize, b, c, d as u32 & 0xff),
            event::LOCK if w.watch => w.locked(a),
            event::UNLOCK if w.watch => w.unlocked(a),
            event::FRAME_ALLOC => {
                let nr = w.chances[4];
                let none = w.faults.frames.is_some_and(|left| nr >= left);
                return (w.chance(4, w.faults.frame) || none).into();
            }
            event::UNMAP => w.counts.unmaps += 1,
            event::SET_LEAVES => return w.chance(5, w.faults.leaves).into(),
            event::SET_ENTRY => return w.chance(6, w.faults.entry).into(),
            event::FRAME_FREED => {
                w.counts.freed += 1;
                if w.mapped_by.get(a as usize).is_some_and(|by| *by != 0) {
                    w.fail(format!("frame {a:#x} was freed and is mapped"));
                }
            }
            event::CRASH if w.may_crash => w.counts.crashes += 1,
            event::CRASH => w.fail(format!("d{a} was crashed")),
            _ => {}
        }
        0
    })
}

/// For the bench: memory only.
pub extern "C" fn handle_little(kind: u32, a: u64, b: u64, _c: u64, _d: u64) -> u64 {
    match kind {
        event::ALLOC => with(|w| w.allocate(a, b)),
        event::FREE => with(|w| {
            w.free(a);
            0
        }),
        event::BUG => {
            println!("# {} at {}", text(a), text(b));
            die("")
        }
        _ => 0,
    }
}
