// SPDX-License-Identifier: GPL-2.0-only

//! Hypercalls and mappings of other domains' memory, through the kernel's privcmd
//! and gntdev. All unsafe code of the program is here.

use std::cell::RefCell;
use std::ffi::c_void;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use nix::errno::Errno;
use nix::libc;

/// Bytes of a page.
pub const PAGE: usize = 4096;

const fn ioctl(group: u8, number: u64, size: u64) -> u64 {
    (size << 16) | ((group as u64) << 8) | number
}

const PRIVCMD_HYPERCALL: u64 = ioctl(b'P', 0, 48);
const PRIVCMD_MMAPBATCH_V2: u64 = ioctl(b'P', 4, 32);
const GNTDEV_MAP: u64 = ioctl(b'G', 0, 24);
const GNTDEV_UNMAP: u64 = ioctl(b'G', 1, 16);

thread_local! {
    static PRIVCMD: RefCell<Option<File>> = const { RefCell::new(None) };
    static SCRATCH: RefCell<Option<Buffer>> = const { RefCell::new(None) };
}

fn open(path: &str) -> Result<File> {
    File::options()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open {path}"))
}

fn last_error() -> i64 {
    -i64::from(Errno::last_raw())
}

fn privcmd<T>(f: impl FnOnce(&File) -> Result<T>) -> Result<T> {
    PRIVCMD.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = Some(open("/dev/xen/privcmd")?);
        }
        f(slot.as_ref().context("privcmd")?)
    })
}

/// A hypercall with whatever arguments; negative results are error numbers.
///
/// # Safety
///
/// The hypervisor may write to whatever the arguments point to, without regard to
/// what the kernel would let this program write to.
pub unsafe fn hypercall(op: u64, args: [u64; 5]) -> Result<i64> {
    let mut call = [op, args[0], args[1], args[2], args[3], args[4]];
    privcmd(|file| {
        // SAFETY: the structure has the size that the number says.
        let rc = unsafe { libc::ioctl(file.as_raw_fd(), PRIVCMD_HYPERCALL, call.as_mut_ptr()) };
        Ok(if rc < 0 { last_error() } else { rc.into() })
    })
}

/// Pages that stay where they are, so that the hypervisor can reach them.
#[derive(Debug)]
pub struct Buffer {
    at: NonNull<c_void>,
    bytes: usize,
}

// SAFETY: memory without a thread of its own.
unsafe impl Send for Buffer {}
// SAFETY: shared access is through atomics or copies of integers.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// So many pages of zeroes.
    pub fn new(pages: usize) -> Result<Self> {
        let file = open("/dev/xen/hypercall")?;
        map(&file, pages * PAGE, libc::PROT_READ | libc::PROT_WRITE, 0).map(|at| Self {
            at,
            bytes: pages * PAGE,
        })
    }

    /// Address for a hypercall.
    pub fn address(&self) -> u64 {
        self.at.as_ptr() as u64
    }

    /// Its words.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: mapped as long as this lives, aligned, and any bits are a number.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr().cast(), self.bytes / 8) }
    }

    /// Copy bytes out.
    pub fn get(&self, offset: usize, to: &mut [u8]) {
        assert!(offset + to.len() <= self.bytes);
        // SAFETY: within the mapping, as just checked.
        unsafe {
            let from = self.at.as_ptr().cast::<u8>().add(offset);
            std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len());
        }
    }

    /// Copy bytes in.
    pub fn put(&self, offset: usize, from: &[u8]) {
        assert!(offset + from.len() <= self.bytes);
        // SAFETY: within the mapping, as just checked.
        unsafe {
            let to = self.at.as_ptr().cast::<u8>().add(offset);
            std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len());
        }
    }

    /// Make the page at this place inaccessible, or accessible again.
    pub fn protect(&self, page: usize, access: i32) {
        assert!((page + 1) * PAGE <= self.bytes);
        // SAFETY: a page of our own mapping, of which nobody has a reference.
        unsafe { libc::mprotect(self.at.as_ptr().byte_add(page * PAGE), PAGE, access) };
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: mapped by us, no reference can outlive this.
        unsafe { libc::munmap(self.at.as_ptr(), self.bytes) };
    }
}

fn map(file: &File, bytes: usize, access: i32, offset: i64) -> Result<NonNull<c_void>> {
    // SAFETY: a new mapping at an address that the kernel chooses.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            access,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            offset,
        )
    };
    ensure!(at != libc::MAP_FAILED, "mmap: {}", Errno::last());
    NonNull::new(at).context("mmap")
}

/// A hypercall whose argument is one structure, which is copied there and back.
pub fn call(op: u64, first: u64, argument: &mut [u8], second: bool) -> Result<i64> {
    SCRATCH.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = Some(Buffer::new(1)?);
        }
        let page = slot.as_ref().context("scratch")?;
        page.put(0, argument);
        let args = if second {
            [first, page.address(), 0, 0, 0]
        } else {
            [page.address(), 0, 0, 0, 0]
        };
        // SAFETY: the hypervisor writes to the structure only, and to buffers that
        // the caller has put into it.
        let rc = unsafe { hypercall(op, args) }?;
        page.get(0, argument);
        Ok(rc)
    })
}

/// Frames of a domain, mapped.
#[derive(Debug)]
pub struct Foreign {
    buffer: Buffer,
    errors: Vec<i32>,
}

impl Foreign {
    /// Map frames of a domain; those that fail are holes in the mapping.
    pub fn any(domid: u16, gfns: &[u64]) -> Result<Self> {
        privcmd(|file| {
            let bytes = gfns.len() * PAGE;
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let buffer = Buffer {
                at: map(file, bytes, access, 0)?,
                bytes,
            };
            let mut errors = vec![0i32; gfns.len()];
            let mut batch = [
                gfns.len() as u64 | (u64::from(domid) << 32),
                buffer.address(),
                gfns.as_ptr() as u64,
                errors.as_mut_ptr() as u64,
            ];
            // SAFETY: both arrays have as many elements as the structure says.
            let rc =
                unsafe { libc::ioctl(file.as_raw_fd(), PRIVCMD_MMAPBATCH_V2, batch.as_mut_ptr()) };
            ensure!(
                rc == 0 || Errno::last() == Errno::ENOENT,
                "mapping frames of d{domid}: {}",
                Errno::last()
            );
            Ok(Self { buffer, errors })
        })
    }

    /// Map frames of a domain, all or none.
    pub fn all(domid: u16, gfns: &[u64]) -> Result<Self> {
        let mapped = Self::any(domid, gfns)?;
        let bad = mapped.errors.iter().position(|e| *e != 0);
        ensure!(bad.is_none(), "d{domid}: frame {bad:?} cannot be mapped");
        Ok(mapped)
    }

    /// Is this one there?
    pub fn has(&self, index: usize) -> bool {
        self.errors[index] == 0
    }

    /// The words of a frame.
    pub fn frame(&self, index: usize) -> &[AtomicU64] {
        assert!(self.has(index), "a hole in a mapping");
        &self.buffer.words()[index * PAGE / 8..(index + 1) * PAGE / 8]
    }

    /// Copy bytes into consecutive frames, all of which are there.
    pub fn put(&self, offset: usize, from: &[u8]) {
        self.buffer.put(offset, from);
    }

    /// A structure at the start of a frame.
    ///
    /// # Safety
    ///
    /// It must consist of atomics only.
    pub unsafe fn shared<T>(&self, index: usize) -> &T {
        assert!(size_of::<T>() <= PAGE);
        let at = self.frame(index).as_ptr();
        // SAFETY: large enough, aligned to a page, and mapped as long as `self` is.
        unsafe { &*at.cast() }
    }
}

/// A frame that was granted to this domain, mapped.
#[derive(Debug)]
pub struct Granted {
    buffer: Option<Buffer>,
    device: File,
    index: u64,
}

impl Granted {
    /// Map one; an error if the granting domain's grant cannot be mapped now.
    pub fn new(domid: u16, reference: u32) -> Result<Self> {
        let device = open("/dev/xen/gntdev")?;
        let mut op = [1, 0, (u64::from(reference) << 32) | u64::from(domid)];
        // SAFETY: the structure has the size that the number says.
        let rc = unsafe { libc::ioctl(device.as_raw_fd(), GNTDEV_MAP, op.as_mut_ptr()) };
        ensure!(rc == 0, "gntdev: {}", Errno::last());
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let at = map(&device, PAGE, access, op[1] as i64)?;
        Ok(Self {
            buffer: Some(Buffer { at, bytes: PAGE }),
            device,
            index: op[1],
        })
    }

    /// Its words.
    pub fn words(&self) -> &[AtomicU64] {
        self.buffer.as_ref().map_or(&[], Buffer::words)
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        self.buffer = None;
        let mut op = [self.index, 1];
        // SAFETY: the structure has the size that the number says.
        unsafe { libc::ioctl(self.device.as_raw_fd(), GNTDEV_UNMAP, op.as_mut_ptr()) };
    }
}
