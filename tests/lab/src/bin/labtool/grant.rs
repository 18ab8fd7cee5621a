// SPDX-License-Identifier: GPL-2.0-only

//! A page that one domain grants and another one maps, by the kernel's devices for that.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::thread;

use anyhow::Context;
use anyhow::Result;
use nix::sys::mman::mmap;
use nix::sys::mman::MapFlags;
use nix::sys::mman::ProtFlags;

const PAGE: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);
const WRITABLE: u16 = 1;

/// `struct ioctl_gntalloc_alloc_gref`
#[repr(C)]
struct Alloc {
    domid: u16,
    flags: u16,
    count: u32,
    index: u64,
    reference: u32,
}

/// `struct ioctl_gntdev_map_grant_ref`
#[repr(C)]
struct Map {
    count: u32,
    pad: u32,
    index: u64,
    domid: u32,
    reference: u32,
}

/// Both are defined with the size, but without a direction.
const fn request(number: u64, size: usize) -> u64 {
    ((size as u64) << 16) | ((b'G' as u64) << 8) | number
}

nix::ioctl_readwrite_bad!(alloc_grant, request(5, size_of::<Alloc>()), Alloc);
nix::ioctl_readwrite_bad!(map_grant, request(0, size_of::<Map>()), Map);

/// Grant one page, and wait for the end.
pub fn share(domid: u16) -> Result<()> {
    let device = open("/dev/xen/gntalloc")?;
    let mut alloc = Alloc {
        domid,
        flags: WRITABLE,
        count: 1,
        index: 0,
        reference: 0,
    };
    // SAFETY: the structure is what this device expects for the request.
    unsafe { alloc_grant(device.as_raw_fd(), &mut alloc) }.context("cannot grant a page")?;
    println!("{}", alloc.reference);
    wait()
}

/// Map one page of the management VM, and wait for the end.
pub fn map(reference: u32) -> Result<()> {
    let device = open("/dev/xen/gntdev")?;
    let mut map = Map {
        count: 1,
        pad: 0,
        index: 0,
        domid: 0,
        reference,
    };
    // SAFETY: the structure is what this device expects for the request.
    unsafe { map_grant(device.as_raw_fd(), &mut map) }.context("no room for a grant")?;
    // SAFETY: the kernel chooses where, and nothing here makes use of it.
    unsafe {
        mmap(
            None,
            PAGE,
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            MapFlags::MAP_SHARED,
            &device,
            map.index as i64,
        )
    }
    .context("cannot map the grant")?;
    println!("MAPPED");
    wait()
}

fn open(device: &str) -> Result<File> {
    File::options()
        .read(true)
        .write(true)
        .open(device)
        .with_context(|| format!("cannot open {device}"))
}

fn wait() -> ! {
    loop {
        thread::park();
    }
}
