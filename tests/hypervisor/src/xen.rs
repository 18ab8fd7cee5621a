// SPDX-License-Identifier: GPL-2.0-only

//! The library with Xen's code, and the memory that it believes to run on.

mod pod;

use std::ffi::c_char;
use std::ffi::CStr;
use std::path::Path;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use libloading::Library;

/// `enum shim_event` in shim/shim.h.
pub mod event {
    #![allow(missing_docs)]
    pub const BUG: u32 = 1;
    pub const ALLOC: u32 = 2;
    pub const FREE: u32 = 3;
    pub const PTP_ALLOC: u32 = 4;
    pub const COPY_IN: u32 = 6;
    pub const COPY_OUT: u32 = 7;
    pub const PREEMPT: u32 = 8;
    pub const CONTINUE: u32 = 9;
    pub const FLUSH_DOMAIN: u32 = 10;
    pub const IPI: u32 = 11;
    pub const FLUSH_LINEAR: u32 = 12;
    pub const FLUSH_NESTED: u32 = 13;
    pub const WRITE: u32 = 14;
    pub const LOCK: u32 = 15;
    pub const UNLOCK: u32 = 16;
    pub const FRAME_FREED: u32 = 17;
    pub const CRASH: u32 = 18;
    pub const FRAME_ALLOC: u32 = 19;
    pub const UNMAP: u32 = 20;
    pub const SET_LEAVES: u32 = 21;
    pub const SET_ENTRY: u32 = 22;
    pub const FLUSH_IOMMU: u32 = 23;
    pub const FLUSH_CACHES: u32 = 24;
}

/// What the shim calls for every event.
pub type Handler = extern "C" fn(u32, u64, u64, u64, u64) -> u64;

type Function = usize;
type Enter = unsafe extern "C" fn(Function, u64, u64, u64, u64) -> i64;

/// `struct shim_layout`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct Layout {
    pub frames: u64,
    pub frames_size: u64,
    pub m2p: u64,
    pub m2p_size: u64,
    pub direct_map: u64,
    pub direct_map_size: u64,
    pub traps: u64,
    pub traps_size: u64,
    pub sizeof_page_info: u64,
    pub count_info_mask: u64,
    pub count_offset: u64,
    pub list_offset: u64,
    pub owner_offset: u64,
    pub page_allocated: u64,
    pub args_size: u64,
    pub version: u64,
    pub done_offset: u64,
    pub id_offset: u64,
    pub stats_offset: u64,
    pub nr_stats_offset: u64,
    pub nr_stats: u64,
    pub to_offset: u64,
}

/// `struct shim_entry`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Entry {
    pub mfn: u64,
    pub p2m_type: u32,
    pub order: u32,
    pub access: u32,
    pad: u32,
}

/// `struct shim_frame`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Frame {
    pub count_info: u64,
    pub type_info: u64,
    pub gpfn: u64,
    pub owner: u32,
    pad: u32,
}

/// `struct shim_pod`: populate-on-demand, and what counts with it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Pod {
    pub tot_pages: u64,
    pub cache: u64,
    pub entries: u64,
    pub max_guest: u64,
    pub claim: u64,
    pub references: u64,
}

/// Whether frames may be moved, and where to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// They are swapped only.
    #[default]
    None,
    /// To A.
    ToA,
    /// To B.
    ToB,
}

impl Direction {
    /// The one that undoes this.
    pub fn opposite(self) -> Self {
        match self {
            Self::None => Self::None,
            Self::ToA => Self::ToB,
            Self::ToB => Self::ToA,
        }
    }

    /// `XENMEM_SWAP_to_a`, `XENMEM_SWAP_to_b`.
    fn flag(self) -> u64 {
        match self {
            Self::None => 0,
            Self::ToA => 1 << 3,
            Self::ToB => 1 << 4,
        }
    }
}

/// A run of pairs, as in the public header.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Run {
    pub gfn_a: u64,
    pub gfn_b: u64,
    pub nr: u32,
    pub pad: u32,
}

/// Counters, by the numbers of the public header.
pub mod stat {
    #![allow(missing_docs)]
    pub const SWAPPED: usize = 0;
    pub const BATCHES: usize = 1;
    pub const TLB_FLUSHES: usize = 2;
    pub const NESTED_FLUSHES: usize = 3;
    pub const P2M_WRITES: usize = 4;
    pub const SUPERPAGES: usize = 5;
    pub const SPLITS_2M: usize = 6;
    pub const SPLITS_1G: usize = 7;
    pub const MERGES_2M: usize = 8;
    pub const MERGES_1G: usize = 9;
    pub const DIRTIED: usize = 10;
}

/// `SHIM_NESTED`.
pub const NESTED: u64 = 1;
/// `SHIM_ALTP2M`.
pub const ALTP2M: u64 = 8;

/// `SHIM_UNIQUE_ID`.
pub const UNIQUE_ID: u64 = 0x5eed_0000_0000;

/// The hypercall's argument, and after it the counters.
#[derive(Debug)]
#[repr(C, align(8))]
pub struct Args {
    words: [u64; 16],
    stats: [u64; 16],
    layout: Layout,
}

impl Args {
    /// A request for these runs.
    pub fn new(xen: &Xen, ids: (u16, u16), check: bool, runs: &[Run], status: &mut [i32]) -> Self {
        let mut a = [0u64; 16];
        a[0] = u64::from(ids.0) | (u64::from(ids.1) << 16) | (u64::from(check) << 32);
        a[1] = runs.len() as u64 | (xen.layout.version << 32);
        a[2] = runs.as_ptr() as u64;
        a[3] = status.as_mut_ptr() as u64;
        a[4] = status.len() as u64;
        a[xen.layout.nr_stats_offset as usize / 8] = xen.layout.nr_stats;
        Self {
            words: a,
            stats: [0; 16],
            layout: xen.layout,
        }
    }

    /// Add flags.
    pub fn set(&mut self, flags: u64) {
        self.words[0] |= flags << 32;
    }

    /// Pairs that were dealt with.
    pub fn done(&self) -> u64 {
        self.words[self.layout.done_offset as usize / 8]
    }

    /// Let frames be moved.
    pub fn moving(mut self, to: Direction) -> Self {
        self.words[0] |= to.flag() << 32;
        self
    }

    /// Set all flags.
    pub fn set_flags(&mut self, flags: u32) {
        self.words[0] = (self.words[0] & 0xffff_ffff) | (u64::from(flags) << 32);
    }

    /// Frames moved to A and to B.
    pub fn to(&mut self) -> &mut [u64] {
        let first = self.layout.to_offset as usize / 8;
        &mut self.words[first..first + 2]
    }

    /// A counter, of those in [`stat`].
    pub fn stat(&self, nr: usize) -> u64 {
        self.stats[nr]
    }

    /// The ids of the domains.
    pub fn ids(&mut self) -> &mut [u64] {
        let first = self.layout.id_offset as usize / 8;
        &mut self.words[first..first + 2]
    }

    /// The address that is passed to the hypercall.
    pub fn address(&mut self) -> u64 {
        self.words[self.layout.stats_offset as usize / 8] = self.stats.as_mut_ptr() as u64;
        self.words.as_mut_ptr() as u64
    }
}

/// Sub-operation of `memory_op`.
const SWAP_FRAMES: u64 = 48;

/// `XENMEM_SWAP_unmap`.
pub const UNMAP: u64 = 1 << 1;

/// `XENMEM_SWAP_keep`.
pub const KEEP: u64 = 1 << 2;

/// `XENMEM_SWAP_undo`.
pub const UNDO: u64 = 1 << 5;

/// `-ERESTART`: a continuation was made.
pub const RESTART: i64 = -85;

/// `p2m_ram_rw`.
pub const RAM_RW: u32 = 0;

/// `p2m_populate_on_demand`.
pub const ON_DEMAND: u32 = 6;

/// `p2m_map_foreign`.
pub const FOREIGN: u64 = 14;

/// `p2m_access_rwx`.
pub const ACCESS_RWX: u64 = 7;

/// `p2m_ram_logdirty`.
pub const RAM_LOGDIRTY: u32 = 2;

macro_rules! functions {
    ($($name:ident),*) => {
        #[derive(Debug)]
        struct Functions { $($name: Function),* }
        impl Functions {
            fn load(library: &Library) -> Result<Self> {
                Ok(Self { $($name: symbol(library, concat!("shim_", stringify!($name)))?),* })
            }
        }
    };
}

functions!(
    init,
    domain_create,
    populate,
    lookup,
    frame,
    list,
    get_page,
    put_page,
    locks,
    residue,
    write,
    log_dirty,
    track_vram,
    nested_write,
    nested_lookup,
    set_special,
    set_owner,
    set_device,
    set_iommu,
    mix_types,
    pod_mark,
    pod_target,
    pod_state,
    pod_touch,
    pod_decrease,
    set_limit,
    claim_field,
    memory_op
);

fn symbol(library: &Library, name: &str) -> Result<Function> {
    // SAFETY: only the address is taken; calls go through `Enter` with the
    // types of shim/api.c, where all of these have the same one.
    unsafe { library.get::<*const ()>(name.as_bytes()) }
        .map(|s| *s as usize)
        .with_context(|| format!("no {name} in the library"))
}

/// Xen's code, loaded.
#[derive(Debug)]
pub struct Xen {
    _library: Library,
    enter: Enter,
    f: Functions,
    /// Where Xen expects what.
    pub layout: Layout,
}

/// Reserve memory at a fixed address, with large pages where that is possible.
fn map(address: u64, size: u64) -> Result<()> {
    let huge = 2 << 20;
    let size = size.next_multiple_of(huge) as usize;
    // SAFETY: MAP_FIXED_NOREPLACE takes nothing away that is in use.
    let p = unsafe {
        libc::mmap(
            address as *mut _,
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE
                | libc::MAP_ANONYMOUS
                | libc::MAP_NORESERVE
                | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    ensure!(p as u64 == address, "cannot map {address:#x}");
    // SAFETY: our own mapping. Xen maps these areas with large pages as well.
    unsafe { libc::madvise(p, size, libc::MADV_HUGEPAGE) };
    Ok(())
}

impl Xen {
    /// Load a library and give it a machine of so many frames.
    pub fn load(path: &Path, frames: u64, ept: bool, handler: Handler) -> Result<Self> {
        // SAFETY: the library has no constructors.
        let library = unsafe { Library::new(path) }
            .with_context(|| format!("cannot load {}", path.display()))?;
        let f = Functions::load(&library)?;
        let enter = symbol(&library, "shim_enter")?;
        let facts = symbol(&library, "shim_layout")?;
        let mut layout = Layout::default();
        // SAFETY: the types are those in shim/api.c.
        let enter: Enter = unsafe { std::mem::transmute::<Function, Enter>(enter) };
        // SAFETY: as above; the structure is that of shim/shim.h.
        unsafe {
            std::mem::transmute::<usize, unsafe extern "C" fn(*mut Layout)>(facts)(&mut layout);
        }
        map(layout.frames, frames * layout.sizeof_page_info)?;
        map(layout.m2p, frames * 8)?;
        map(layout.direct_map, frames << 12)?;
        // SAFETY: pages of the library that hold nothing.
        let rc = unsafe {
            libc::mprotect(
                layout.traps as *mut _,
                layout.traps_size as usize,
                libc::PROT_NONE,
            )
        };
        ensure!(rc == 0, "cannot set the traps");
        // Per-CPU areas of the other CPUs.
        let areas = Box::leak(vec![0u64; 1 << 16].into_boxed_slice());
        let xen = Self {
            _library: library,
            enter,
            f,
            layout,
        };
        let rc = xen.call(
            xen.f.init,
            handler as usize as u64,
            frames,
            u64::from(ept),
            areas.as_ptr() as u64,
        );
        ensure!(rc == 0, "initialisation: {rc}");
        Ok(xen)
    }

    fn call(&self, f: Function, a: u64, b: u64, c: u64, d: u64) -> i64 {
        // SAFETY: every function of shim/api.c has this type.
        unsafe { (self.enter)(f, a, b, c, d) }
    }

    /// Create a domain; `flags` as in shim/shim.h.
    pub fn create(&self, id: u16, flags: u64, pool: u64, observe: bool) -> Result<()> {
        let rc = self.call(self.f.domain_create, id.into(), flags, pool, observe.into());
        ensure!(rc == 0, "domain {id}: {rc}");
        Ok(())
    }

    /// Give frames to a domain and map them.
    pub fn populate(&self, id: u16, gfn: u64, mfn: u64, order: u32) -> Result<()> {
        let rc = self.call(self.f.populate, id.into(), gfn, mfn, order.into());
        ensure!(rc == 0, "populate d{id} {gfn:#x}: {rc}");
        Ok(())
    }

    /// What a gfn leads to.
    pub fn lookup(&self, id: u16, gfn: u64) -> Entry {
        let mut entry = Entry::default();
        let p = std::ptr::from_mut(&mut entry) as u64;
        self.call(self.f.lookup, id.into(), gfn, p, 0);
        entry
    }

    /// The state of a frame.
    pub fn frame(&self, mfn: u64) -> Frame {
        let mut frame = Frame::default();
        let p = std::ptr::from_mut(&mut frame) as u64;
        self.call(self.f.frame, mfn, p, 0, 0);
        frame
    }

    /// The frames on a domain's list.
    pub fn list(&self, id: u16, max: usize) -> Vec<u64> {
        let mut out = vec![0; max + 1];
        let p = out.as_mut_ptr() as u64;
        let nr = self.call(self.f.list, id.into(), p, max as u64, 0);
        out.truncate((nr as usize).min(max + 1));
        out
    }

    /// Xen's `get_page()`; false if it refuses.
    pub fn get_page(&self, mfn: u64, id: u16) -> bool {
        self.call(self.f.get_page, mfn, id.into(), 0, 0) & 0xff != 0
    }

    /// Xen's `put_page()`.
    pub fn put_page(&self, mfn: u64) {
        self.call(self.f.put_page, mfn, 0, 0, 0);
    }

    /// Addresses of the locks: domain, page list, populate-on-demand, paging, nested P2M.
    pub fn locks(&self, id: u16) -> [u64; 5] {
        let mut locks = [0; 5];
        let p = locks.as_mut_ptr() as u64;
        self.call(self.f.locks, id.into(), p, 0, 0);
        locks
    }

    /// Did a call leave a lock, a flush or a count behind?
    pub fn residue(&self, id: u16) -> bool {
        self.call(self.f.residue, id.into(), 0, 0, 0) & 0xff != 0
    }

    /// Write an entry of any order, type and access.
    pub fn write(
        &self,
        id: u16,
        gfn: u64,
        mfn: u64,
        order: u64,
        kind: u64,
        access: u64,
    ) -> Result<()> {
        let how = order | (kind << 8) | (access << 16);
        let rc = self.call(self.f.write, id.into(), gfn, mfn, how);
        ensure!(rc == 0, "d{id} gfn {gfn:#x} cannot be written: {rc}");
        Ok(())
    }

    /// Make a frame one of Xen's own, or an ordinary one again.
    pub fn set_special(&self, mfn: u64, on: bool) {
        self.call(self.f.set_special, mfn, on.into(), 0, 0);
    }

    /// Let a frame belong to another domain.
    pub fn set_owner(&self, mfn: u64, id: u16) {
        self.call(self.f.set_owner, mfn, id.into(), 0, 0);
    }

    /// Assign a device to a domain, or take it away.
    pub fn set_device(&self, id: u16, on: bool) {
        self.call(self.f.set_device, id.into(), on.into(), 0, 0);
    }

    /// Let a domain have an IOMMU, or none; with `later` somebody else flushes its TLB.
    pub fn set_iommu(&self, id: u16, on: bool, later: bool) {
        self.call(self.f.set_iommu, id.into(), on.into(), later.into(), 0);
    }

    /// Let the 2 MiB around a gfn be of types for which no single entry will do.
    pub fn mix_types(&self, id: u16, gfn: u64) -> Result<()> {
        let rc = self.call(self.f.mix_types, id.into(), gfn, 0, 0);
        ensure!(rc == 0, "memory types of d{id}: {rc}");
        Ok(())
    }

    /// Which of these gfns were written since the last time, as a device model asks for a frame
    /// buffer; the first time all are. At most 64; with none they are not tracked any more.
    pub fn track_vram(&self, id: u16, gfn: u64, nr: u32) -> Result<u64> {
        let mut bitmap = 0u64;
        let p = std::ptr::from_mut(&mut bitmap) as u64;
        let rc = self.call(self.f.track_vram, id.into(), gfn, nr.into(), p);
        ensure!(rc == 0, "d{id} gfn {gfn:#x} cannot be tracked: {rc}");
        Ok(bitmap)
    }

    /// Enter or leave log-dirty mode.
    pub fn log_dirty(&self, id: u16, on: bool) -> Result<()> {
        let rc = self.call(self.f.log_dirty, id.into(), on.into(), 0, 0);
        ensure!(rc == 0, "log-dirty mode of d{id}: {rc}");
        Ok(())
    }

    /// Make an entry in one of a domain's P2Ms of nested guests.
    pub fn nested_write(&self, id: u16, which: u64, gfn: u64, mfn: u64) -> Result<()> {
        let rc = self.call(self.f.nested_write, id.into(), which, gfn, mfn);
        ensure!(rc == 0, "nested P2M {which} of d{id}: {rc}");
        Ok(())
    }

    /// The frame that such an entry leads to.
    pub fn nested_lookup(&self, id: u16, which: u64, gfn: u64) -> u64 {
        self.call(self.f.nested_lookup, id.into(), which, gfn, 0) as u64
    }

    /// Where the owner of a frame is noted.
    pub fn owner_field(&self, mfn: u64) -> *const u32 {
        let l = &self.layout;
        (l.frames + mfn * l.sizeof_page_info + l.owner_offset) as *const u32
    }

    /// The hypercall, to completion.
    pub fn complete(&self, args: &mut Args) -> i64 {
        loop {
            let rc = self.swap(args);
            if rc != RESTART {
                return rc;
            }
        }
    }

    /// The hypercall, once: `RESTART` means that it wants to be called again.
    pub fn swap(&self, args: &mut Args) -> i64 {
        i64::from(self.call(self.f.memory_op, SWAP_FRAMES, args.address(), 0, 0) as i32)
    }
}

/// Text that Xen's code passed.
pub fn text(address: u64) -> String {
    if address == 0 {
        return String::new();
    }
    // SAFETY: the shim passes strings that end with a zero.
    unsafe { CStr::from_ptr(address as *const c_char) }
        .to_string_lossy()
        .trim_end()
        .to_owned()
}
