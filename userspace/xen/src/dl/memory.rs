// SPDX-License-Identifier: GPL-2.0-only

//! The memory of guests: which frames it is in, and what is in them.

use super::Xen;
use crate::domain_info::DomainInfo;
use crate::error::Error;
use crate::pages::{Frames, Page, PageRun, Special, PAGE_SIZE};
use crate::sys;
use nix::errno::Errno;
use nix::libc;
use std::ffi::{c_int, c_long, c_uint, c_ulong, c_void};
use std::mem::size_of;
use std::ptr::NonNull;
use tracing::debug;

/// Frames that are mapped at once.
const MAP_BATCH: usize = 1024;
/// Runs of pages that are listed at most: a guest can say what it likes of the order of its pages,
/// and this is four times what can move.
const MOST_RUNS: usize = 1 << 22;
/// Pages that the largest guest that can move may be spread over.
const MOST_PFNS: u64 = 1 << 32;

/// First number that no page of a guest of so many pages has, which may have `most` KiB. It can give
/// its pages odd numbers, within reason: this many times its size leaves room for holes, and it may
/// have given back all but a little of what it can have at most.
fn pfn_end(pages: u64, most: Option<u64>) -> u64 {
    let most = most.map_or(0, |kib| (kib / 4).saturating_mul(2).min(MOST_PFNS));
    pages.saturating_mul(4).max(1 << 20).max(most)
}

impl Xen {
    /// The pages of a PV guest, in ascending order of pfn.
    pub fn pages(&self, domid: u32) -> Result<Vec<PageRun>, Error> {
        let info = self.domain(domid)?;
        if info.hvm {
            return Err(Error::Unsupported(format!(
                "guest {domid} is not a PV guest; only the frames of PV guests can be listed"
            )));
        }
        let frames = self.frames(&info)?;
        let special = self.special(&info, &frames)?;
        debug!(
            domid,
            frames = frames.count(),
            ?special,
            "read the guest's frames"
        );
        Ok(frames.classify(&special))
    }

    /// Every frame of a guest.
    fn frames(&self, info: &DomainInfo) -> Result<Frames, Error> {
        let m2p = M2p::map(self)?;
        let most = self
            .store_read(&format!("/local/domain/{}/memory/static-max", info.domid))
            .and_then(|kib| kib.trim().parse().ok());
        let pfn_end = pfn_end(info.pages, most);
        let mut frames = Frames::new();
        let mut gfns = Vec::with_capacity(sys::PFN_TYPE_BATCH);
        let mut pfns = Vec::with_capacity(sys::PFN_TYPE_BATCH);
        let end = m2p.len();
        for gfn in 0..end {
            // Most frames of others are told apart without a hypercall. It is read once: guests
            // write there.
            let pfn = m2p.get(gfn);
            if pfn < pfn_end {
                gfns.push(gfn as u64);
                pfns.push(pfn);
            }
            if gfns.len() < sys::PFN_TYPE_BATCH && gfn + 1 < end || gfns.is_empty() {
                continue;
            }
            let mut types = gfns.clone();
            // SAFETY: the array has as many elements as the count says.
            let rc = unsafe {
                (self.ctrl.xc_get_pfn_type_batch)(
                    self.xch.as_ptr(),
                    info.domid,
                    types.len() as c_uint,
                    types.as_mut_ptr(),
                )
            };
            if rc != 0 {
                return Err(Error::last("xc_get_pfn_type_batch"));
            }
            for ((gfn, pfn), ty) in gfns.drain(..).zip(pfns.drain(..)).zip(types) {
                // "Not a page of this domain".
                if ty & sys::PFINFO_LTAB_MASK != sys::PFINFO_XTAB {
                    frames.push(gfn, pfn, ty);
                }
            }
            if frames.runs() > MOST_RUNS {
                return Err(Error::Unsupported(format!(
                    "the memory of guest {} is in more than {MOST_RUNS} pieces, by what it says itself; its frames cannot be listed",
                    info.domid
                )));
            }
            if frames.count() >= info.pages {
                break;
            }
        }
        Ok(frames)
    }

    /// Find the frames of a guest that have a special meaning.
    fn special(&self, info: &DomainInfo, frames: &Frames) -> Result<Special, Error> {
        let domid = info.domid;
        let frame = |node: &str| {
            self.store_read(&format!("/local/domain/{domid}/{node}"))
                .and_then(|v| v.trim().parse::<u64>().ok())
        };
        let xenstore = frame("store/ring-ref");
        let console = frame("console/ring-ref");

        // The domain builder puts the start information right before the
        // xenstore ring. Believe it only if the page says so itself.
        let candidate = xenstore
            .and_then(|gfn| frames.pfn_of(gfn))
            .and_then(|pfn| pfn.checked_sub(1))
            .and_then(|pfn| frames.gfn_of(pfn));
        let mut start_info = None;
        if let Some(gfn) = candidate {
            self.read_pages(domid, &[gfn], |_, page| {
                let at = sys::START_INFO_SHARED_INFO;
                let address = u64::from_le_bytes(std::array::from_fn(|i| page[at + i]));
                if page.starts_with(sys::START_INFO_MAGIC)
                    && address >> 12 == info.shared_info_frame
                {
                    start_info = Some(gfn);
                }
            })?;
        }

        let mut descriptors = Vec::new();
        for vcpu in 0..=info.max_vcpu.unwrap_or(0) {
            // Room to spare, 8-aligned: other versions may write more.
            let mut context = [0u64; 2048];
            const _: () = assert!(sys::VCPU_CONTEXT_SIZE <= 2048 * 8);
            // SAFETY: room for the structure.
            let rc = unsafe {
                (self.ctrl.xc_vcpu_getcontext)(
                    self.xch.as_ptr(),
                    domid,
                    vcpu,
                    context.as_mut_ptr().cast(),
                )
            };
            if rc != 0 {
                // A vCPU that was never brought up has no tables.
                continue;
            }
            let entries = context[sys::VCPU_CONTEXT_GDT_ENTS / 8];
            let used = entries.div_ceil(sys::GDT_ENTS_PER_FRAME).min(16) as usize;
            let first = sys::VCPU_CONTEXT_GDT_FRAMES / 8;
            descriptors.extend(&context[first..first + used]);
        }
        Ok(Special {
            xenstore,
            console,
            start_info,
            descriptors,
        })
    }

    /// Show the bytes of frames of a guest, in order, as they are now.
    ///
    /// `seen` gets the index into `gfns` and a copy of the page. A frame that
    /// is not there is an error.
    pub fn read_pages(
        &self,
        domid: u32,
        gfns: &[u64],
        mut seen: impl FnMut(usize, &Page),
    ) -> Result<(), Error> {
        self.visit_pages(domid, gfns, |i, page| page.map(|page| seen(i, page)))
    }

    /// Like [`Xen::read_pages`], but frames that are not there are passed over.
    pub fn read_present_pages(
        &self,
        domid: u32,
        gfns: &[u64],
        mut seen: impl FnMut(usize, &Page),
    ) -> Result<(), Error> {
        self.visit_pages(domid, gfns, |i, page| {
            if let Ok(page) = page {
                seen(i, page);
            }
            Ok(())
        })
    }

    /// Write frames of a guest, in order; `fill` gets the index into `gfns` and
    /// an empty page. The guest must not run meanwhile.
    pub fn write_pages(
        &self,
        domid: u32,
        gfns: &[u64],
        mut fill: impl FnMut(usize, &mut Page) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut page = [0u8; PAGE_SIZE];
        for (nr, part) in gfns.chunks(MAP_BATCH).enumerate() {
            let mut mapping = Mapping::new(self, domid, part, libc::PROT_READ | libc::PROT_WRITE)?;
            for i in 0..part.len() {
                page.fill(0);
                fill(nr * MAP_BATCH + i, &mut page)?;
                mapping.write(i, &page)?;
            }
        }
        Ok(())
    }

    fn visit_pages(
        &self,
        domid: u32,
        gfns: &[u64],
        mut seen: impl FnMut(usize, Result<&Page, Error>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut page = [0u8; PAGE_SIZE];
        for (nr, part) in gfns.chunks(MAP_BATCH).enumerate() {
            let mapping = Mapping::new(self, domid, part, libc::PROT_READ)?;
            for i in 0..part.len() {
                let copied = mapping.copy(i, &mut page);
                seen(nr * MAP_BATCH + i, copied.map(|()| &page))?;
            }
        }
        Ok(())
    }

    /// A copy of the hypervisor's machine-to-physical table, by frame number.
    pub fn machine_to_physical(&self) -> Result<Vec<u64>, Error> {
        let m2p = M2p::map(self)?;
        Ok((0..m2p.len()).map(|frame| m2p.get(frame)).collect())
    }
}

/// The hypervisor's machine-to-physical table, mapped read-only.
struct M2p {
    table: NonNull<u64>,
    len: usize,
    bytes: usize,
}

impl M2p {
    fn map(xen: &Xen) -> Result<Self, Error> {
        let end = xen.memory_end()?;
        let len = usize::try_from(end).map_err(|_| Error::Call {
            call: "xc_maximum_ram_page",
            errno: Errno::EOVERFLOW,
        })?;
        // SAFETY: the library maps the table for frames up to `end` and
        // returns its address; it need not tell the first frame of it.
        let table = unsafe {
            (xen.guest.xc_map_m2p)(
                xen.xch.as_ptr(),
                end as c_ulong,
                libc::PROT_READ,
                std::ptr::null_mut(),
            )
        };
        // The library says null or MAP_FAILED, depending on what failed.
        let Some(table) = NonNull::new(table).filter(|t| t.as_ptr() as c_long != -1) else {
            return Err(Error::last("xc_map_m2p"));
        };
        let bytes = (len * size_of::<u64>()).next_multiple_of(sys::M2P_CHUNK);
        Ok(Self { table, len, bytes })
    }

    fn len(&self) -> usize {
        self.len
    }

    fn get(&self, gfn: usize) -> u64 {
        assert!(gfn < self.len);
        // SAFETY: within the mapping, which covers `len` entries; the
        // hypervisor may change an entry at any time, hence volatile.
        unsafe { self.table.as_ptr().add(gfn).read_volatile() }
    }
}

impl Drop for M2p {
    fn drop(&mut self) {
        // SAFETY: the library mapped this many bytes here; nothing refers to them.
        unsafe { libc::munmap(self.table.as_ptr().cast(), self.bytes) };
    }
}

/// Frames of a guest, mapped.
struct Mapping<'a> {
    xen: &'a Xen,
    address: NonNull<c_void>,
    /// Per page, 0 or why it is not there.
    errors: Vec<c_int>,
}

impl<'a> Mapping<'a> {
    fn new(xen: &'a Xen, domid: u32, gfns: &[u64], access: c_int) -> Result<Self, Error> {
        let mut errors = vec![0 as c_int; gfns.len()];
        // SAFETY: both arrays have as many elements as the count says.
        let address = unsafe {
            (xen.foreign.xenforeignmemory_map)(
                xen.fmem.as_ptr(),
                domid,
                access,
                gfns.len(),
                gfns.as_ptr(),
                errors.as_mut_ptr(),
            )
        };
        let Some(address) = NonNull::new(address) else {
            return Err(Error::last("xenforeignmemory_map"));
        };
        Ok(Self {
            xen,
            address,
            errors,
        })
    }

    /// A page that failed is a hole in the mapping: never touch it.
    fn check(&self, index: usize) -> Result<(), Error> {
        assert!(index < self.errors.len());
        match self.errors[index] {
            0 => Ok(()),
            e => Err(Error::Call {
                call: "xenforeignmemory_map",
                errno: Errno::from_raw(e.abs()),
            }),
        }
    }

    /// Only for a mapping that was made with write access.
    fn write(&mut self, index: usize, page: &Page) -> Result<(), Error> {
        self.check(index)?;
        // SAFETY: the destination is within the mapping, the page is there and
        // writable, and no reference to it exists.
        unsafe {
            let to = self.address.as_ptr().cast::<u8>().add(index * PAGE_SIZE);
            std::ptr::copy_nonoverlapping(page.as_ptr(), to, PAGE_SIZE);
        }
        Ok(())
    }

    fn copy(&self, index: usize, page: &mut Page) -> Result<(), Error> {
        self.check(index)?;
        // SAFETY: the source is within the mapping and the page is there; the
        // guest may write to it meanwhile, which changes what is copied but
        // breaks nothing, because no reference to it is made.
        unsafe {
            let from = self.address.as_ptr().cast::<u8>().add(index * PAGE_SIZE);
            std::ptr::copy_nonoverlapping(from, page.as_mut_ptr(), PAGE_SIZE);
        }
        Ok(())
    }
}

impl Drop for Mapping<'_> {
    fn drop(&mut self) {
        // SAFETY: mapped by the library with this many pages; not used afterwards.
        unsafe {
            (self.xen.foreign.xenforeignmemory_unmap)(
                self.xen.fmem.as_ptr(),
                self.address.as_ptr(),
                self.errors.len(),
            )
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 18;

    /// A guest of 64 GiB that has given back all but 8 has pages of any number below 64 GiB.
    #[test]
    fn pages_of_a_guest_that_has_ballooned_down_are_looked_for() {
        assert!(pfn_end(8 * GIB, Some(64 * GIB * 4)) > 64 * GIB);
        assert!(pfn_end(GIB / 8, Some(64 * GIB * 4)) > 64 * GIB);
        // Without that, room for holes.
        assert_eq!(pfn_end(8 * GIB, None), 32 * GIB);
        assert_eq!(pfn_end(1, Some(0)), 4 * GIB);
        // What nobody can have costs nothing.
        assert_eq!(pfn_end(1, Some(u64::MAX)), MOST_PFNS);
        assert_eq!(pfn_end(u64::MAX, None), u64::MAX);
    }
}
