// SPDX-License-Identifier: GPL-2.0-only

//! The only unsafe code of this crate, in six files: opening and calling the libraries.

mod clock;
mod handles;
mod memory;
mod reserve;

use handles::{EventChannelOp, Policy};

use crate::domain_info::DomainInfo;
use crate::error::Error;
use crate::sys;
use libloading::os::unix::{Library, Symbol};
use nix::errno::Errno;
use nix::libc;
use std::ffi::{c_char, c_int, c_uint, c_ulong, c_void, CStr, CString};
use std::mem::{size_of, MaybeUninit};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use tracing::info;

/// Where distributions put the libraries.
const DIRECTORIES: [&str; 6] = [
    "/usr/lib/x86_64-linux-gnu",
    "/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/local/lib64",
];
/// Where Debian puts the private ones of a version.
const VERSIONED: &str = "/usr/lib";

/// `XBT_NULL`: no transaction.
const XBT_NULL: u32 = 0;

/// Declare a table of functions of one library, each resolved by its name.
macro_rules! functions {
    ($table:ident { $($name:ident: fn($($arg:ty),*) -> $ret:ty,)* }) => {
        struct $table {
            $($name: Symbol<unsafe extern "C" fn($($arg),*) -> $ret>,)*
            // Dropped last: the symbols point into it.
            _library: Library,
        }

        impl $table {
            fn open(path: &Path) -> Result<Self, Error> {
                let failed = |e: libloading::Error| Error::Symbol {
                    library: path.to_owned(),
                    message: e.to_string(),
                };
                // SAFETY: the Xen libraries have no initialisers with demands
                // on the program that opens them.
                let library = unsafe { Library::new(path) }.map_err(failed)?;
                Ok(Self {
                    $(
                        // SAFETY: the prototype is that of the public header;
                        // structures behind pointers are checked before use.
                        $name: unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) }
                            .map_err(failed)?,
                    )*
                    _library: library,
                })
            }
        }
    };
}

mod grants;

functions!(Ctrl {
    xc_interface_open: fn(*mut c_void, *mut c_void, c_uint) -> *mut c_void,
    xc_interface_close: fn(*mut c_void) -> c_int,
    xc_version: fn(*mut c_void, c_int, *mut c_void) -> c_int,
    xc_domain_getinfolist: fn(*mut c_void, u32, c_uint, *mut c_void) -> c_int,
    xc_domain_pause: fn(*mut c_void, u32) -> c_int,
    xc_domain_unpause: fn(*mut c_void, u32) -> c_int,
    xc_maximum_ram_page: fn(*mut c_void, *mut c_ulong) -> c_int,
    xc_get_pfn_type_batch: fn(*mut c_void, u32, c_uint, *mut u64) -> c_int,
    xc_vcpu_getcontext: fn(*mut c_void, u32, u32, *mut c_void) -> c_int,
    xc_domain_get_pod_target: fn(*mut c_void, u32, *mut u64, *mut u64, *mut u64) -> c_int,
    xc_domain_set_pod_target: fn(*mut c_void, u32, u64, *mut u64, *mut u64, *mut u64) -> c_int,
    xc_physinfo: fn(*mut c_void, *mut c_void) -> c_int,
    xc_domain_get_tsc_info: fn(*mut c_void, u32, *mut u32, *mut u64, *mut u32, *mut u32) -> c_int,
    xc_availheap: fn(*mut c_void, c_int, c_int, c_int, *mut u64) -> c_int,
});

functions!(Guest {
    xc_map_m2p: fn(*mut c_void, c_ulong, c_int, *mut c_ulong) -> *mut u64,
    xc_cpu_policy_init: fn() -> *mut c_void,
    xc_cpu_policy_destroy: fn(*mut c_void) -> (),
    xc_cpu_policy_get_system: fn(*mut c_void, c_uint, *mut c_void) -> c_int,
    xc_cpu_policy_get_domain: fn(*mut c_void, u32, *mut c_void) -> c_int,
    xc_cpu_policy_get_size: fn(*mut c_void, *mut u32, *mut u32) -> c_int,
    xc_cpu_policy_serialise: fn(*mut c_void, *const c_void, *mut sys::CpuidLeaf, *mut u32, *mut sys::MsrEntry, *mut u32) -> c_int,
});

functions!(ForeignMemory {
    xenforeignmemory_open: fn(*mut c_void, c_uint) -> *mut c_void,
    xenforeignmemory_close: fn(*mut c_void) -> c_int,
    xenforeignmemory_map: fn(*mut c_void, u32, c_int, usize, *const u64, *mut c_int) -> *mut c_void,
    xenforeignmemory_unmap: fn(*mut c_void, *mut c_void, usize) -> c_int,
});

functions!(Call {
    xencall_open: fn(*mut c_void, c_uint) -> *mut c_void,
    xencall_close: fn(*mut c_void) -> c_int,
    xencall_alloc_buffer: fn(*mut c_void, usize) -> *mut c_void,
    xencall_free_buffer: fn(*mut c_void, *mut c_void) -> (),
    xencall2: fn(*mut c_void, c_uint, u64, u64) -> c_int,
});

functions!(Store {
    xs_open: fn(c_ulong) -> *mut c_void,
    xs_close: fn(*mut c_void) -> (),
    xs_read: fn(*mut c_void, u32, *const c_char, *mut c_uint) -> *mut c_void,
    xs_directory: fn(*mut c_void, u32, *const c_char, *mut c_uint) -> *mut *mut c_char,
});

/// What a guest hypervisor lets a guest see of the processor.
#[derive(Clone, Debug)]
pub struct CpuPolicy {
    /// By CPUID.
    pub leaves: Vec<sys::CpuidLeaf>,
    /// In model-specific registers.
    pub msrs: Vec<sys::MsrEntry>,
}

/// A connection to the hypervisor, its memory and xenstore.
pub struct Xen {
    ctrl: Ctrl,
    guest: Guest,
    foreign: ForeignMemory,
    call: Call,
    store: Store,
    xch: NonNull<c_void>,
    fmem: NonNull<c_void>,
    version: String,
    libraries: String,
}

impl std::fmt::Debug for Xen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Xen")
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// Files in `dir` that are `libxenctrl.so.4.N`, with their N.
fn candidates(dir: &Path) -> Vec<(u32, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter_map(|e| {
            let name = e.file_name();
            let minor = name
                .to_str()?
                .strip_prefix("libxenctrl.so.4.")?
                .parse()
                .ok()?;
            Some((minor, e.path()))
        })
        .collect()
}

/// The minor version of the hypervisor that runs, if the kernel tells.
fn running_minor() -> Option<u32> {
    let text = std::fs::read_to_string("/sys/hypervisor/version/minor").ok()?;
    text.trim().parse().ok()
}

impl Xen {
    /// Open the libraries that fit the hypervisor that runs.
    ///
    /// With several versions installed the one of the running hypervisor is
    /// tried first. One whose `xc_domaininfo_t` has another size than this
    /// program knows is refused.
    pub fn open() -> Result<Self, Error> {
        let mut dirs: Vec<PathBuf> = DIRECTORIES.iter().map(PathBuf::from).collect();
        if let Ok(entries) = std::fs::read_dir(VERSIONED) {
            for e in entries.filter_map(Result::ok) {
                if e.file_name()
                    .to_str()
                    .is_some_and(|n| n.starts_with("xen-4."))
                {
                    dirs.push(e.path().join("lib"));
                    dirs.push(e.path().join("lib/x86_64-linux-gnu"));
                }
            }
        }
        let running = running_minor();
        let mut found: Vec<_> = dirs.iter().flat_map(|d| candidates(d)).collect();
        // The running version first, then the newest.
        found.sort_by_key(|(minor, _)| (Some(*minor) != running, std::cmp::Reverse(*minor)));
        let mut reasons = Vec::new();
        for (minor, path) in found {
            match Self::open_version(&path, minor, &dirs) {
                Ok(xen) => {
                    info!(library = %path.display(), version = xen.version, "connected to Xen");
                    return Ok(xen);
                }
                Err(e) => reasons.push(format!("{}: {e}", path.display())),
            }
        }
        if reasons.is_empty() {
            reasons.push("none is installed".into());
        }
        Err(Error::NoLibraries(reasons.join("; ")))
    }

    fn open_version(ctrl_path: &Path, minor: u32, dirs: &[PathBuf]) -> Result<Self, Error> {
        let ctrl = Ctrl::open(ctrl_path)?;
        let beside = |name: &str| {
            ctrl_path
                .parent()
                .into_iter()
                .chain(dirs.iter().map(PathBuf::as_path))
                .map(|d| d.join(name))
                .find(|p| p.exists())
                .unwrap_or_else(|| name.into())
        };
        let guest = Guest::open(&beside(&format!("libxenguest.so.4.{minor}")))?;
        let foreign = ForeignMemory::open(&beside("libxenforeignmemory.so.1"))?;
        let call = Call::open(&beside("libxencall.so.1"))?;
        let store = Store::open(&beside("libxenstore.so.4"))
            .or_else(|_| Store::open(&beside("libxenstore.so.3.0")))?;

        // SAFETY: null loggers mean the default ones.
        let xch =
            unsafe { (ctrl.xc_interface_open)(std::ptr::null_mut(), std::ptr::null_mut(), 0) };
        let Some(xch) = NonNull::new(xch) else {
            return Err(Error::last("xc_interface_open"));
        };
        // SAFETY: a null logger means the default one.
        let fmem = unsafe { (foreign.xenforeignmemory_open)(std::ptr::null_mut(), 0) };
        let Some(fmem) = NonNull::new(fmem) else {
            let e = Error::last("xenforeignmemory_open");
            // SAFETY: `xch` is open and not used afterwards.
            unsafe { (ctrl.xc_interface_close)(xch.as_ptr()) };
            return Err(e);
        };
        let mut xen = Self {
            ctrl,
            guest,
            foreign,
            call,
            store,
            xch,
            fmem,
            version: String::new(),
            libraries: format!("libxenctrl 4.{minor}"),
        };
        xen.version = xen.read_version()?;
        xen.check_layout()?;
        Ok(xen)
    }

    /// Version of the hypervisor, for example `Xen 4.20.2`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Version of the libraries, for example `libxenctrl 4.20`.
    pub fn libraries(&self) -> &str {
        &self.libraries
    }

    fn read_version(&self) -> Result<String, Error> {
        // SAFETY: XENVER_version takes no argument.
        let v = unsafe {
            (self.ctrl.xc_version)(self.xch.as_ptr(), sys::XENVER_VERSION, std::ptr::null_mut())
        };
        if v < 0 {
            return Err(Error::last("xc_version"));
        }
        let mut extra = [0u8; 64];
        // SAFETY: XENVER_extraversion writes 16 bytes.
        let rc = unsafe {
            (self.ctrl.xc_version)(
                self.xch.as_ptr(),
                sys::XENVER_EXTRAVERSION,
                extra.as_mut_ptr().cast(),
            )
        };
        let extra = if rc < 0 {
            &[][..]
        } else {
            extra.split(|b| *b == 0).next().unwrap_or(&[])
        };
        let extra: String = String::from_utf8_lossy(extra)
            .chars()
            .filter(|c| c.is_ascii_graphic())
            .collect();
        Ok(format!("Xen {}.{}{extra}", v >> 16, v & 0xffff))
    }

    /// Learn the size of `xc_domaininfo_t` in the library: it copies exactly
    /// one of them into a buffer that is filled with two different patterns in
    /// turn, and what keeps both was not written.
    fn check_layout(&self) -> Result<(), Error> {
        let expected = size_of::<sys::DomainInfo>();
        let mut written = [false; 4096];
        for fill in [0xa5u8, 0x5a] {
            // 8-aligned, as the structure is.
            let mut buffer = [u64::from_ne_bytes([fill; 8]); 512];
            // SAFETY: room for one structure, of a size far beyond plausible.
            let n = unsafe {
                (self.ctrl.xc_domain_getinfolist)(
                    self.xch.as_ptr(),
                    0,
                    1,
                    buffer.as_mut_ptr().cast(),
                )
            };
            if n != 1 {
                return Err(Error::last("xc_domain_getinfolist"));
            }
            let bytes = buffer.iter().flat_map(|w| w.to_ne_bytes());
            for (w, b) in written.iter_mut().zip(bytes) {
                *w |= b != fill;
            }
        }
        let got = written.iter().rposition(|w| *w).map_or(0, |at| at + 1);
        if got != expected {
            return Err(Error::Layout {
                what: "xc_domaininfo_t",
                got,
                expected,
            });
        }
        Ok(())
    }

    /// Every domain, the management VM included.
    pub fn domains(&self) -> Result<Vec<DomainInfo>, Error> {
        const BATCH: usize = 64;
        let mut all = Vec::new();
        let mut first = 0;
        loop {
            let mut raw = [const { MaybeUninit::<sys::DomainInfo>::zeroed() }; BATCH];
            // SAFETY: room for BATCH structures, whose size has been checked.
            let n = unsafe {
                (self.ctrl.xc_domain_getinfolist)(
                    self.xch.as_ptr(),
                    first,
                    BATCH as c_uint,
                    raw.as_mut_ptr().cast(),
                )
            };
            let Ok(n) = usize::try_from(n) else {
                return Err(Error::last("xc_domain_getinfolist"));
            };
            for info in &raw[..n.min(BATCH)] {
                // SAFETY: made of integers, zeroed before the library wrote it.
                all.push(DomainInfo::from(unsafe { info.assume_init_ref() }));
            }
            match all.last() {
                Some(last) if n == BATCH => first = last.domid + 1,
                _ => return Ok(all),
            }
        }
    }

    /// One domain.
    pub fn domain(&self, domid: u32) -> Result<DomainInfo, Error> {
        self.domains()?
            .into_iter()
            .find(|d| d.domid == domid)
            .ok_or(Error::NoDomain(domid))
    }

    /// Pause a domain. Pauses add up.
    pub fn pause(&self, domid: u32) -> Result<(), Error> {
        // SAFETY: a plain call on an open handle.
        let rc = unsafe { (self.ctrl.xc_domain_pause)(self.xch.as_ptr(), domid) };
        if rc == 0 {
            Ok(())
        } else {
            Err(Error::last("xc_domain_pause"))
        }
    }

    /// Undo one pause.
    pub fn unpause(&self, domid: u32) -> Result<(), Error> {
        // SAFETY: a plain call on an open handle.
        let rc = unsafe { (self.ctrl.xc_domain_unpause)(self.xch.as_ptr(), domid) };
        if rc == 0 {
            Ok(())
        } else {
            Err(Error::last("xc_domain_unpause"))
        }
    }

    /// Raise every event of a domain whose other end is here; gives their number.
    ///
    /// An event that is pending already changes nothing in the domain's memory when it
    /// is raised again.
    pub fn raise_events(&self, domid: u32) -> Result<u64, Error> {
        let domid = u16::try_from(domid).map_err(|_| Error::NoDomain(domid))?;
        let mut hypercall = EventChannelOp::new(self)?;
        let mut raised = 0;
        for port in 1..=sys::LAST_EVENT_CHANNEL {
            let asked = hypercall.call(
                sys::EVTCHNOP_STATUS,
                sys::EventChannelStatus {
                    dom: domid,
                    port,
                    ..Default::default()
                },
            );
            let status = match asked {
                Ok(status) => status,
                // Behind the last port that the domain has.
                Err(Error::Call {
                    errno: Errno::EINVAL,
                    ..
                }) => break,
                Err(e) => return Err(e),
            };
            if status.status == sys::EVTCHNSTAT_INTERDOMAIN && status.remote_dom == 0 {
                hypercall.call(
                    sys::EVTCHNOP_SEND,
                    sys::EventChannelSend {
                        port: status.remote_port,
                    },
                )?;
                raised += 1;
            }
        }
        Ok(raised)
    }

    /// First frame number that this system does not have.
    pub fn memory_end(&self) -> Result<u64, Error> {
        let mut max: c_ulong = 0;
        // SAFETY: the library writes one unsigned long.
        let rc = unsafe { (self.ctrl.xc_maximum_ram_page)(self.xch.as_ptr(), &mut max) };
        if rc == 0 {
            Ok(max)
        } else {
            Err(Error::last("xc_maximum_ram_page"))
        }
    }

    /// What CPUID and model-specific registers tell a guest or, without one, what they can tell
    /// PV guests here.
    pub fn cpu_policy(&self, domid: Option<u32>) -> Result<CpuPolicy, Error> {
        let xch = self.xch.as_ptr();
        let (mut leaves_nr, mut msrs_nr) = (0, 0);
        // SAFETY: the library writes both numbers.
        let rc = unsafe { (self.guest.xc_cpu_policy_get_size)(xch, &mut leaves_nr, &mut msrs_nr) };
        if rc != 0 {
            return Err(Error::last("xc_cpu_policy_get_size"));
        }
        let policy = Policy::new(self)?;
        let to = policy.policy.as_ptr();
        let (call, rc) = match domid {
            Some(domid) => {
                // SAFETY: both handles are open; the library writes the policy.
                let rc = unsafe { (self.guest.xc_cpu_policy_get_domain)(xch, domid, to) };
                ("xc_cpu_policy_get_domain", rc)
            }
            None => {
                let which = sys::CPU_POLICY_PV_MAX;
                // SAFETY: as above.
                let rc = unsafe { (self.guest.xc_cpu_policy_get_system)(xch, which, to) };
                ("xc_cpu_policy_get_system", rc)
            }
        };
        if rc != 0 {
            return Err(Error::last(call));
        }
        let mut leaves = vec![sys::CpuidLeaf::default(); leaves_nr as usize];
        let mut msrs = vec![sys::MsrEntry::default(); msrs_nr as usize];
        // SAFETY: room for as many leaves and registers as the numbers say, which become those
        // of what was written.
        let rc = unsafe {
            (self.guest.xc_cpu_policy_serialise)(
                xch,
                to,
                leaves.as_mut_ptr(),
                &mut leaves_nr,
                msrs.as_mut_ptr(),
                &mut msrs_nr,
            )
        };
        if rc != 0 {
            return Err(Error::last("xc_cpu_policy_serialise"));
        }
        leaves.truncate(leaves_nr as usize);
        msrs.truncate(msrs_nr as usize);
        Ok(CpuPolicy { leaves, msrs })
    }

    /// The value of a xenstore node, if there is one.
    pub fn store_read(&self, path: &str) -> Option<String> {
        let path = CString::new(path).ok()?;
        // SAFETY: flags 0 are the normal way to connect.
        let xs = NonNull::new(unsafe { (self.store.xs_open)(0) })?;
        let mut len: c_uint = 0;
        // SAFETY: `path` ends in a null byte; the library writes the length.
        let value = unsafe { (self.store.xs_read)(xs.as_ptr(), XBT_NULL, path.as_ptr(), &mut len) };
        let text = NonNull::new(value).map(|v| {
            // SAFETY: the library returns `len` bytes that we own.
            let bytes =
                unsafe { std::slice::from_raw_parts(v.as_ptr().cast::<u8>(), len as usize) };
            let text = String::from_utf8_lossy(bytes).into_owned();
            // SAFETY: allocated by malloc(), freed once, `bytes` is not used any more.
            unsafe { libc::free(v.as_ptr()) };
            text
        });
        // SAFETY: opened above, not used afterwards.
        unsafe { (self.store.xs_close)(xs.as_ptr()) };
        text
    }

    /// The names of the nodes below a node of xenstore; none if there is no such node.
    pub fn store_list(&self, path: &str) -> Vec<String> {
        let Ok(path) = CString::new(path) else {
            return Vec::new();
        };
        // SAFETY: flags 0 are the normal way to connect.
        let Some(xs) = NonNull::new(unsafe { (self.store.xs_open)(0) }) else {
            return Vec::new();
        };
        let mut nr: c_uint = 0;
        // SAFETY: `path` ends in a null byte; the library writes the number.
        let names =
            unsafe { (self.store.xs_directory)(xs.as_ptr(), XBT_NULL, path.as_ptr(), &mut nr) };
        let list = NonNull::new(names).map(|names| {
            // SAFETY: the library returns that many pointers to texts that end in a null
            // byte, all in one piece of memory that we own.
            let texts = unsafe { std::slice::from_raw_parts(names.as_ptr(), nr as usize) };
            let texts = texts
                .iter()
                // SAFETY: as above.
                .map(|text| unsafe { CStr::from_ptr(*text) })
                .map(|text| text.to_string_lossy().into_owned())
                .collect();
            // SAFETY: allocated by malloc(), freed once, not used any more.
            unsafe { libc::free(names.as_ptr().cast()) };
            texts
        });
        // SAFETY: opened above, not used afterwards.
        unsafe { (self.store.xs_close)(xs.as_ptr()) };
        list.unwrap_or_default()
    }

    /// A domain's name, from xenstore.
    pub fn name(&self, domid: u32) -> Option<String> {
        self.store_read(&format!("/local/domain/{domid}/name"))
    }
}

impl Drop for Xen {
    fn drop(&mut self) {
        // SAFETY: both handles are open and not used afterwards.
        unsafe {
            (self.foreign.xenforeignmemory_close)(self.fmem.as_ptr());
            (self.ctrl.xc_interface_close)(self.xch.as_ptr());
        }
    }
}
