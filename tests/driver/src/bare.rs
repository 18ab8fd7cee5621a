// SPDX-License-Identifier: GPL-2.0-only

//! Bare domains: memory and no guest kernel.

use std::ffi::c_int;
use std::ffi::c_uint;
use std::ffi::c_ulong;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::ptr::NonNull;
use std::rc::Rc;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use libloading::os::unix::Library;
use libloading::os::unix::Symbol;

/// Words of a page.
const WORDS: usize = 512;

/// `struct xen_domctl_createdomain` of Xen 4.20; a test compares it with the header.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CreateDomain {
    ssidref: u32,
    handle: [u8; 16],
    flags: u32,
    iommu_opts: u32,
    max_vcpus: u32,
    max_evtchn_port: u32,
    max_grant_frames: i32,
    max_maptrack_frames: i32,
    grant_opts: u32,
    altp2m_opts: u32,
    vmtrace_size: u32,
    cpupool_id: u32,
    emulation_flags: u32,
    misc_flags: u32,
}

/// `XEN_DOMCTL_CDF_hvm | XEN_DOMCTL_CDF_hap`
const HVM_HAP: u32 = 0b11;
/// `XEN_X86_EMU_LAPIC`
const EMU_LAPIC: u32 = 1;

type CreateFn = unsafe extern "C" fn(*mut c_void, *mut u32, *mut CreateDomain) -> c_int;
type PopulateFn =
    unsafe extern "C" fn(*mut c_void, u32, c_ulong, c_uint, c_uint, *mut u64) -> c_int;
type MapFn =
    unsafe extern "C" fn(*mut c_void, u32, c_int, usize, *const u64, *mut c_int) -> *mut c_void;

/// The toolstack libraries, opened at run time.
pub struct Toolstack {
    xch: NonNull<c_void>,
    fmem: NonNull<c_void>,
    create: Symbol<CreateFn>,
    set_max: Symbol<unsafe extern "C" fn(*mut c_void, u32, u64) -> c_int>,
    populate: Symbol<PopulateFn>,
    destroy: Symbol<unsafe extern "C" fn(*mut c_void, u32) -> c_int>,
    map: Symbol<MapFn>,
    unmap: Symbol<unsafe extern "C" fn(*mut c_void, *mut c_void, usize) -> c_int>,
    // Dropped last: the symbols point into them.
    _libraries: [Library; 2],
}

impl std::fmt::Debug for Toolstack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Toolstack").finish_non_exhaustive()
    }
}

fn library(name: &str) -> Result<Library> {
    // SAFETY: the Xen libraries have no initialisers with demands on the
    // program that opens them.
    unsafe { Library::new(name) }.with_context(|| format!("cannot open {name}"))
}

/// Look a function up.
///
/// # Safety
///
/// `T` must be the function's type in the public header.
unsafe fn symbol<T>(library: &Library, name: &str) -> Result<Symbol<T>> {
    // SAFETY: the caller vouches for the type.
    unsafe { library.get(name.as_bytes()) }.with_context(|| format!("no function {name}"))
}

impl Toolstack {
    /// Open the libraries of the Xen that the lab runs.
    pub fn open() -> Result<Self> {
        let ctrl = library("libxenctrl.so.4.20")?;
        let foreign = library("libxenforeignmemory.so.1")?;
        type OpenCtrl = unsafe extern "C" fn(*mut c_void, *mut c_void, c_uint) -> *mut c_void;
        type OpenForeign = unsafe extern "C" fn(*mut c_void, c_uint) -> *mut c_void;
        // SAFETY: the types are those of xenctrl.h and xenforeignmemory.h, and
        // null loggers mean the default ones.
        let (xch, fmem) = unsafe {
            (
                symbol::<OpenCtrl>(&ctrl, "xc_interface_open")?(null_mut(), null_mut(), 0),
                symbol::<OpenForeign>(&foreign, "xenforeignmemory_open")?(null_mut(), 0),
            )
        };
        // SAFETY: the types of the fields are those of the headers.
        unsafe {
            Ok(Self {
                xch: NonNull::new(xch).context("xc_interface_open")?,
                fmem: NonNull::new(fmem).context("xenforeignmemory_open")?,
                create: symbol(&ctrl, "xc_domain_create")?,
                set_max: symbol(&ctrl, "xc_domain_setmaxmem")?,
                populate: symbol(&ctrl, "xc_domain_populate_physmap_exact")?,
                destroy: symbol(&ctrl, "xc_domain_destroy")?,
                map: symbol(&foreign, "xenforeignmemory_map")?,
                unmap: symbol(&foreign, "xenforeignmemory_unmap")?,
                _libraries: [ctrl, foreign],
            })
        }
    }

    /// A paused HAP domain with `frames` frames from gfn 0 on, and this number. Xen
    /// chooses one when it is 0.
    pub fn domain(self: &Rc<Self>, domid: u32, frames: u64) -> Result<Domain> {
        let mut config = CreateDomain {
            flags: HVM_HAP,
            emulation_flags: EMU_LAPIC,
            max_vcpus: 1,
            max_grant_frames: 1,
            grant_opts: 1,
            ..CreateDomain::default()
        };
        let mut domid = domid;
        // SAFETY: both pointers are to live objects of the types that the
        // function takes.
        let rc = unsafe { (self.create)(self.xch.as_ptr(), &mut domid, &mut config) };
        ensure!(
            rc == 0,
            "xc_domain_create: {}",
            std::io::Error::last_os_error()
        );
        let domain = Domain {
            toolstack: Rc::clone(self),
            domid,
        };
        let mut gfns: Vec<u64> = (0..frames).collect();
        // SAFETY: `gfns` has as many elements as the call says.
        let rc = unsafe {
            (self.set_max)(self.xch.as_ptr(), domid, u64::MAX)
                | (self.populate)(self.xch.as_ptr(), domid, frames, 0, 0, gfns.as_mut_ptr())
        };
        ensure!(
            rc == 0,
            "no memory for a domain: {}",
            std::io::Error::last_os_error()
        );
        Ok(domain)
    }
}

/// A bare domain; it is destroyed when this is dropped.
#[derive(Debug)]
pub struct Domain {
    toolstack: Rc<Toolstack>,
    /// Its number.
    pub domid: u32,
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: no pointers but the open handle.
        unsafe { (self.toolstack.destroy)(self.toolstack.xch.as_ptr(), self.domid) };
    }
}

impl Domain {
    /// Map frames `first..first + nr`.
    pub fn map(&self, first: u64, nr: usize) -> Result<Mapping> {
        let gfns: Vec<u64> = (first..).take(nr).collect();
        let prot = nix::libc::PROT_READ | nix::libc::PROT_WRITE;
        // SAFETY: `gfns` has `nr` elements; no array of errors is asked for.
        let address = unsafe {
            (self.toolstack.map)(
                self.toolstack.fmem.as_ptr(),
                self.domid,
                prot,
                nr,
                gfns.as_ptr(),
                null_mut(),
            )
        };
        let words = NonNull::new(address).with_context(|| {
            format!(
                "cannot map frame {first} of domain {}: {}",
                self.domid,
                std::io::Error::last_os_error()
            )
        })?;
        Ok(Mapping {
            toolstack: Rc::clone(&self.toolstack),
            words: words.cast(),
            nr,
        })
    }
}

/// Mapped frames. As long as this lives, none of them can be swapped.
#[derive(Debug)]
pub struct Mapping {
    toolstack: Rc<Toolstack>,
    words: NonNull<u64>,
    nr: usize,
}

impl Mapping {
    /// The first word of each frame.
    pub fn tags(&self) -> Vec<u64> {
        (0..self.nr)
            // SAFETY: the mapping has `nr` pages, and nobody else writes to them:
            // the domain has no CPU that runs.
            .map(|i| unsafe { self.words.add(i * WORDS).read_volatile() })
            .collect()
    }

    /// Write the first word of each frame.
    pub fn write_tags(&mut self, tag: impl Fn(usize) -> u64) {
        for i in 0..self.nr {
            // SAFETY: as above, and the mapping is writable.
            unsafe { self.words.add(i * WORDS).write_volatile(tag(i)) };
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is what `xenforeignmemory_map` returned.
        unsafe {
            (self.toolstack.unmap)(
                self.toolstack.fmem.as_ptr(),
                self.words.as_ptr().cast(),
                self.nr,
            )
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// The layout against the installed header, if there is one.
    #[test]
    fn mirrors_the_header() {
        if !Path::new("/usr/include/xen/domctl.h").exists() {
            eprintln!("skipped: libxen-dev is not installed");
            return;
        }
        let asserts = [
            (
                "sizeof(struct xen_domctl_createdomain)",
                size_of::<CreateDomain>(),
            ),
            (
                "offsetof(struct xen_domctl_createdomain, flags)",
                std::mem::offset_of!(CreateDomain, flags),
            ),
            (
                "offsetof(struct xen_domctl_createdomain, grant_opts)",
                std::mem::offset_of!(CreateDomain, grant_opts),
            ),
            (
                "offsetof(struct xen_domctl_createdomain, arch.emulation_flags)",
                std::mem::offset_of!(CreateDomain, emulation_flags),
            ),
            ("XEN_DOMCTL_CDF_hvm | XEN_DOMCTL_CDF_hap", HVM_HAP as usize),
            ("XEN_X86_EMU_LAPIC", EMU_LAPIC as usize),
        ]
        .map(|(text, value)| format!("_Static_assert(({text}) == {value}, \"layout\");\n"))
        .concat();
        assert!(crate::compiles(&format!(
            "#include <stddef.h>\n#include <xenctrl.h>\n{asserts}"
        )));
    }
}
