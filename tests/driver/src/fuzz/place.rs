// SPDX-License-Identifier: GPL-2.0-only

//! Where structures and arrays are put, the call, and what it left there.

use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use nix::errno::Errno;

use super::Fuzzer;
use crate::model::Answer;

const POISON: i32 = 0xcccc_cccc_u32 as i32;

/// Where a structure is put.
pub(super) struct Place {
    pub(super) address: u64,
    /// It can be written.
    pub(super) writable: bool,
}

impl Fuzzer {
    pub(super) fn call(&mut self, file: &File, request: u32, address: u64) -> Result<(), Errno> {
        // SAFETY: the kernel writes to the structure, which is in the arena or
        // at an address that is not mapped, and to the array that it names, for
        // which the same holds.
        let rc = unsafe { nix::libc::ioctl(file.as_raw_fd(), request.into(), address) };
        self.pulse.beat();
        let result = Errno::result(rc).map(drop);
        if let Err(errno) = result {
            *self.refusals.entry(errno as i32).or_default() += 1;
        }
        result
    }

    /// An address that cannot be accessed.
    pub(super) fn nowhere(&mut self) -> u64 {
        let choices = [
            0,
            8,
            self.arena.end(),
            u64::MAX,
            u64::MAX - 4095,
            1 << 63,
            0x8000_0000_0000,
            0xffff_8880_0000_0000,
        ];
        self.rng.choice(choices).unwrap_or_default()
    }

    pub(super) fn place(&mut self, length: usize) -> Place {
        let start = self.arena.start();
        let address = match self.rng.u8(..16) {
            0 => self.arena.read_only() + self.rng.u64(..64),
            1..4 => self.arena.end() - length as u64,
            4..6 => start + self.rng.u64(..4096),
            _ => start,
        };
        Place {
            address,
            writable: self.arena.writable(address, length),
        }
    }

    /// A place for an array of `room` elements, and how many there really are.
    pub(super) fn array(&mut self, room: u64, element: u64) -> (u64, u64) {
        let (start, end) = (self.arrays.start(), self.arrays.end());
        let room = room.min((end - start) / element);
        let address = match self.rng.u8(..16) {
            0 => return (self.nowhere(), 0),
            1 => end - self.rng.u64(..room.max(1)) * element,
            2..5 => end - room * element,
            _ => start,
        };
        (address, (end - address) / element)
    }

    pub(super) fn number(&mut self, usual: u64) -> u64 {
        match self.rng.u8(..24) {
            0 => self.rng.u64(..),
            1 => u64::MAX - self.rng.u64(..4),
            2 => 1 << self.rng.u32(..64),
            3 => usual.wrapping_add(1),
            4 => usual.wrapping_sub(1),
            _ => usual,
        }
    }

    /// Issue it, and compare the result and every byte of the structure.
    pub(super) fn compare<T: Copy + Default + PartialEq + std::fmt::Debug>(
        &mut self,
        file: &File,
        request: u32,
        place: &Place,
        arg: T,
        answer: &Answer<T>,
    ) -> Result<()> {
        self.arena.write(place.address, bytes(&arg))?;
        let result = self.call(file, request, place.address);
        let after = self.fetch::<T>(place.address)?;
        ensure!(
            result == answer.result && after == answer.out,
            "{arg:x?} at {:#x}: {result:?} {after:x?}, expected {:?} {:x?}",
            place.address,
            answer.result,
            answer.out
        );
        Ok(())
    }

    pub(super) fn fetch<T: Copy + Default>(&self, address: u64) -> Result<T> {
        let raw = self.arena.read(address, size_of::<T>());
        Ok(structure(&raw.context("not readable")?))
    }

    /// The array of statuses begins with these; what follows is not touched if the
    /// call did not run into the end of it.
    pub(super) fn statuses<T>(&self, address: u64, answer: &Answer<T>) -> Result<()> {
        let expected = &answer.status;
        let length = 4 * (expected.len() + 1);
        let raw = self
            .arrays
            .read(address, length)
            .or_else(|| self.arrays.read(address, length - 4));
        let seen: Vec<i32> = raw
            .context("not readable")?
            .chunks_exact(4)
            .map(|c| i32::from_ne_bytes([c[0], c[1], c[2], c[3]]))
            .collect();
        ensure!(
            seen.starts_with(expected),
            "statuses {seen:?}, expected {expected:?}"
        );
        let behind = seen.get(expected.len()).copied().unwrap_or(POISON);
        ensure!(
            behind == POISON || answer.result == Err(Errno::EFAULT),
            "wrote {behind} behind the array"
        );
        Ok(())
    }
}

/// The bytes of a structure that is made of integers, without padding.
pub(super) fn bytes<T: Copy>(value: &T) -> &[u8] {
    // SAFETY: every structure of the interface is without padding, which
    // vmbeam-uapi asserts, so all of its bytes are initialised.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// The structure whose first bytes these are; the others are 0.
pub(super) fn structure<T: Copy + Default>(raw: &[u8]) -> T {
    let mut out = T::default();
    let len = raw.len().min(size_of::<T>());
    // SAFETY: `out` has at least `len` bytes, and any bytes will do for a structure
    // that is made of integers.
    unsafe { std::ptr::copy_nonoverlapping(raw.as_ptr(), (&raw mut out).cast(), len) };
    out
}
