// SPDX-License-Identifier: GPL-2.0-only

//! Requests that are wrong in themselves.

use std::fs::File;

use anyhow::ensure;
use anyhow::Result;
use nix::errno::Errno;
use vmbeam_uapi::sys;

use super::Fuzzer;

const fn size<T: sys::Request>() -> (u32, u32) {
    (size_of::<T>() as u32, T::FIRST_SIZE as u32)
}

/// Of each structure, by the number of its ioctl: its size, and that of its first
/// version.
const SIZES: [(u32, u32); 11] = [
    size::<sys::Info>(),
    size::<sys::Bind>(),
    size::<sys::Add>(),
    size::<sys::Check>(),
    size::<sys::Commit>(),
    size::<sys::Status>(),
    size::<sys::Rollback>(),
    size::<sys::Cancel>(),
    size::<sys::Record>(),
    size::<sys::Adopt>(),
    size::<sys::Abandon>(),
];

impl Fuzzer {
    /// Requests that must fail before the session is looked at.
    pub(super) fn malformed(&mut self, file: &File) -> Result<()> {
        let nr = self.rng.u32(..SIZES.len() as u32);
        let (size, first_size) = SIZES[nr as usize];
        let request = |nr| sys::ioctl(0x80 + nr);
        let address = self.arena.start();
        let looks = [sys::IOCTL_INFO, sys::IOCTL_STATUS, sys::IOCTL_RECORD];
        if self.rng.u8(..32) == 0 && !looks.contains(&request(nr)) {
            let file = File::open(super::DEVICE)?;
            let result = self.call(&file, request(nr), address);
            ensure!(result == Err(Errno::EBADF), "read only: {result:?}");
            return Ok(());
        }
        let mut bytes = vec![0; 8192];
        let put = |bytes: &mut Vec<u8>, size: u32, flags: u32| {
            bytes[..4].copy_from_slice(&size.to_ne_bytes());
            bytes[4..8].copy_from_slice(&flags.to_ne_bytes());
        };
        put(&mut bytes, size, 0);
        let (request, address, expected) = match self.rng.u8(..9) {
            0 => {
                put(&mut bytes, self.rng.u32(..first_size), self.rng.u32(..));
                (request(nr), address, Errno::EINVAL)
            }
            1 => {
                let size = if self.rng.bool() {
                    self.rng.u32(4097..9000)
                } else {
                    self.rng.u32(4097..)
                };
                put(&mut bytes, size, 0);
                (request(nr), address, Errno::E2BIG)
            }
            2 => {
                // Larger than any structure of this interface will be soon.
                let tail = self.rng.u32(200..4096 - size);
                put(&mut bytes, size + tail, 0);
                bytes[self.rng.u32(size + 190..size + tail) as usize] = self.rng.u8(1..);
                (request(nr), address, Errno::E2BIG)
            }
            3 => {
                // One of them is known nowhere.
                put(&mut bytes, size, self.rng.u32(..) | (1 << 31));
                (request(nr), address, Errno::EOPNOTSUPP)
            }
            4 => (sys::ioctl(self.rng.u32(..0x80)), address, Errno::ENOTTY),
            5 => {
                let kind = self.rng.u32(..0xb8);
                (
                    (3 << 30) | (size << 16) | (kind << 8) | 0x80 | nr,
                    address,
                    Errno::ENOTTY,
                )
            }
            6 => (request(nr), self.nowhere(), Errno::EFAULT),
            7 => (
                request(nr),
                self.arena.end() - u64::from(self.rng.u32(..size)),
                Errno::EFAULT,
            ),
            _ => {
                // Both of the size and of the flags: the size is looked at first.
                put(&mut bytes, 0, self.rng.u32(1..));
                (request(nr), address, Errno::EINVAL)
            }
        };
        self.arena.write(address, &bytes)?;
        let result = self.call(file, request, address);
        ensure!(
            result == Err(expected),
            "malformed {request:#x}: {result:?}, expected {expected:?}"
        );
        Ok(())
    }
}
