// SPDX-License-Identifier: GPL-2.0-only

//! The only unsafe code of this crate: opening and calling the libraries.

use crate::{sys, DomainInfo, Error, Frames, Page, PageRun, Special, PAGE_SIZE};
use libloading::os::unix::{Library, Symbol};
use nix::errno::Errno;
use nix::libc;
use std::ffi::{c_char, c_int, c_long, c_uint, c_ulong, c_void, CStr, CString};
use std::mem::{size_of, MaybeUninit};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use tracing::{debug, info};

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

/// Frames that are mapped at once.
const MAP_BATCH: usize = 1024;
/// Pages that the largest guest that can move may be spread over.
const MOST_PFNS: u64 = 1 << 32;
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
});

functions!(Guest {
    xc_map_m2p: fn(*mut c_void, c_ulong, c_int, *mut c_ulong) -> *mut u64,
    xc_cpu_policy_init: fn() -> *mut c_void,
    xc_cpu_policy_destroy: fn(*mut c_void) -> (),
    xc_cpu_policy_get_system: fn(*mut c_void, c_uint, *mut c_void) -> c_int,
    xc_cpu_policy_get_domain: fn(*mut c_void, u32, *mut c_void) -> c_int,
    xc_cpu_policy_get_size: fn(*mut c_void, *mut u32, *mut u32) -> c_int,
    xc_cpu_policy_serialise: fn(*mut c_void, *const c_void, *mut sys::CpuidLeaf, *mut u32, *mut c_void, *mut u32) -> c_int,
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

    /// What CPUID tells a guest or, without one, what it can tell PV guests here.
    pub fn cpuid(&self, domid: Option<u32>) -> Result<Vec<sys::CpuidLeaf>, Error> {
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
        // SAFETY: room for as many leaves as the number says, which becomes that of those
        // written; without room for MSRs none are written.
        let rc = unsafe {
            (self.guest.xc_cpu_policy_serialise)(
                xch,
                to,
                leaves.as_mut_ptr(),
                &mut leaves_nr,
                std::ptr::null_mut(),
                &mut msrs_nr,
            )
        };
        if rc != 0 {
            return Err(Error::last("xc_cpu_policy_serialise"));
        }
        leaves.truncate(leaves_nr as usize);
        Ok(leaves)
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
        // A guest can give its pages odd numbers, within reason: this many times its size
        // leaves room for holes, and it may have given back all but a little of what it can
        // have at most, in KiB.
        let most = self
            .store_read(&format!("/local/domain/{}/memory/static-max", info.domid))
            .and_then(|kib| kib.trim().parse::<u64>().ok())
            .map_or(0, |kib| (kib / 4).saturating_mul(2).min(MOST_PFNS));
        let pfn_end = info.pages.saturating_mul(4).max(1 << 20).max(most);
        let mut frames = Frames::new();
        let mut gfns = Vec::with_capacity(sys::PFN_TYPE_BATCH);
        let end = m2p.len();
        for gfn in 0..end {
            // Most frames of others are told apart without a hypercall.
            if m2p.get(gfn) < pfn_end {
                gfns.push(gfn as u64);
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
            for (gfn, ty) in gfns.drain(..).zip(types) {
                // "Not a page of this domain".
                if ty & sys::PFINFO_LTAB_MASK != sys::PFINFO_XTAB {
                    frames.push(gfn, m2p.get(gfn as usize), ty);
                }
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

impl Drop for Xen {
    fn drop(&mut self) {
        // SAFETY: both handles are open and not used afterwards.
        unsafe {
            (self.foreign.xenforeignmemory_close)(self.fmem.as_ptr());
            (self.ctrl.xc_interface_close)(self.xch.as_ptr());
        }
    }
}

/// `event_channel_op`, with room for its argument.
struct EventChannelOp<'a> {
    xen: &'a Xen,
    handle: NonNull<c_void>,
    argument: NonNull<c_void>,
}

impl<'a> EventChannelOp<'a> {
    fn new(xen: &'a Xen) -> Result<Self, Error> {
        // SAFETY: a null logger means the default one.
        let handle = NonNull::new(unsafe { (xen.call.xencall_open)(std::ptr::null_mut(), 0) });
        let handle = handle.ok_or_else(|| Error::last("xencall_open"))?;
        // SAFETY: an open handle; the library gives memory that the hypervisor can use,
        // at the start of a page.
        let argument = unsafe { (xen.call.xencall_alloc_buffer)(handle.as_ptr(), PAGE_SIZE) };
        let Some(argument) = NonNull::new(argument) else {
            let e = Error::last("xencall_alloc_buffer");
            // SAFETY: `handle` is open and not used afterwards.
            unsafe { (xen.call.xencall_close)(handle.as_ptr()) };
            return Err(e);
        };
        Ok(Self {
            xen,
            handle,
            argument,
        })
    }

    /// Carry one out; gives its argument as it is afterwards.
    fn call<T: sys::EventChannelArgument>(&mut self, op: u32, argument: T) -> Result<T, Error> {
        const { assert!(size_of::<T>() <= PAGE_SIZE) };
        let at = self.argument.as_ptr().cast::<T>();
        // SAFETY: ours, large enough and aligned to a page; the hypervisor writes no more
        // than the structure, which is made of integers.
        unsafe {
            at.write(argument);
            let rc = (self.xen.call.xencall2)(
                self.handle.as_ptr(),
                sys::HYPERVISOR_EVENT_CHANNEL_OP,
                u64::from(op),
                at as u64,
            );
            if rc != 0 {
                return Err(Error::last("event_channel_op"));
            }
            Ok(at.read())
        }
    }
}

impl Drop for EventChannelOp<'_> {
    fn drop(&mut self) {
        // SAFETY: both were given by the library and are not used afterwards.
        unsafe {
            (self.xen.call.xencall_free_buffer)(self.handle.as_ptr(), self.argument.as_ptr());
            (self.xen.call.xencall_close)(self.handle.as_ptr());
        }
    }
}

/// Room for the library's idea of a CPU.
struct Policy<'a> {
    xen: &'a Xen,
    policy: NonNull<c_void>,
}

impl<'a> Policy<'a> {
    fn new(xen: &'a Xen) -> Result<Self, Error> {
        // SAFETY: no demands; null if there is no memory.
        let policy = NonNull::new(unsafe { (xen.guest.xc_cpu_policy_init)() });
        let policy = policy.ok_or_else(|| Error::last("xc_cpu_policy_init"))?;
        Ok(Self { xen, policy })
    }
}

impl Drop for Policy<'_> {
    fn drop(&mut self) {
        // SAFETY: made by xc_cpu_policy_init(), not used afterwards.
        unsafe { (self.xen.guest.xc_cpu_policy_destroy)(self.policy.as_ptr()) };
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
