// SPDX-License-Identifier: GPL-2.0-only

//! Memory that requests are made in: its end is followed by nothing, a part of
//! it is read-only, and what can be read or written is known.

use std::num::NonZeroUsize;

use anyhow::Result;
use nix::sys::mman::mmap_anonymous;
use nix::sys::mman::mprotect;
use nix::sys::mman::MapFlags;
use nix::sys::mman::ProtFlags;

const PAGE: usize = 4096;
/// Bytes that can be written.
const WRITABLE: usize = 16 * PAGE;

/// `[ writable | nothing | read-only | nothing ]`
#[derive(Debug)]
pub struct Arena {
    base: usize,
}

impl Arena {
    /// Map it. It stays until the program ends.
    pub fn new() -> Result<Self> {
        let length = NonZeroUsize::new(WRITABLE + 3 * PAGE).ok_or(nix::errno::Errno::EINVAL)?;
        // SAFETY: a new mapping at an address of the kernel's choice, and
        // protections of pages of that mapping only.
        let base = unsafe {
            let base = mmap_anonymous(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_PRIVATE,
            )?;
            mprotect(base.byte_add(WRITABLE), PAGE, ProtFlags::PROT_NONE)?;
            mprotect(base.byte_add(WRITABLE + PAGE), PAGE, ProtFlags::PROT_READ)?;
            mprotect(
                base.byte_add(WRITABLE + 2 * PAGE),
                PAGE,
                ProtFlags::PROT_NONE,
            )?;
            base
        };
        Ok(Self {
            base: base.as_ptr() as usize,
        })
    }

    /// Address of the first byte.
    pub fn start(&self) -> u64 {
        self.base as u64
    }

    /// Address right behind the last byte that can be written.
    pub fn end(&self) -> u64 {
        (self.base + WRITABLE) as u64
    }

    /// Address of the read-only page.
    pub fn read_only(&self) -> u64 {
        (self.base + WRITABLE + PAGE) as u64
    }

    /// Whether these bytes can be written.
    pub fn writable(&self, address: u64, length: usize) -> bool {
        within(address, length, self.start(), WRITABLE)
    }

    /// Whether these bytes can be read.
    pub fn readable(&self, address: u64, length: usize) -> bool {
        self.writable(address, length) || within(address, length, self.read_only(), PAGE)
    }

    /// Bytes that can be read.
    pub fn read(&self, address: u64, length: usize) -> Option<Vec<u8>> {
        let mut out = vec![0; length];
        if self.readable(address, length) {
            // SAFETY: these bytes are mapped, as just checked; only this thread
            // and the kernel, during its calls, use them.
            unsafe {
                std::ptr::copy_nonoverlapping(address as *const u8, out.as_mut_ptr(), length)
            };
            return Some(out);
        }
        None
    }

    /// Write as much of `bytes` as there is room for at `address`.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        let read_only = within(address, bytes.len(), self.read_only(), PAGE);
        if read_only {
            self.protect(ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
        }
        let room = if read_only {
            bytes.len()
        } else if self.writable(address, 0) {
            bytes.len().min((self.end() - address) as usize)
        } else {
            0
        };
        // SAFETY: `room` bytes from `address` on are mapped and writable.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, room) };
        if read_only {
            self.protect(ProtFlags::PROT_READ)?;
        }
        Ok(())
    }

    fn protect(&self, flags: ProtFlags) -> Result<()> {
        if let Some(page) = std::ptr::NonNull::new(self.read_only() as *mut std::ffi::c_void) {
            // SAFETY: this page belongs to the arena.
            unsafe { mprotect(page, PAGE, flags)? };
        }
        Ok(())
    }

    /// Fill everything that can be written with poison.
    pub fn poison(&self) {
        // SAFETY: the whole of it is mapped and writable.
        unsafe { std::ptr::write_bytes(self.base as *mut u8, 0xcc, WRITABLE) };
    }
}

fn within(address: u64, length: usize, start: u64, size: usize) -> bool {
    address
        .checked_sub(start)
        .and_then(|offset| offset.checked_add(length as u64))
        .is_some_and(|end| end <= size as u64)
}
