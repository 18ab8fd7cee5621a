// SPDX-License-Identifier: GPL-2.0-only

//! The only unsafe code of this crate: the ioctls themselves.

use crate::sys;
use nix::errno::Errno;
use nix::libc;
use std::fs::File;
use std::os::fd::AsRawFd;

/// A structure that one ioctl of the driver reads and writes.
///
/// # Safety
///
/// `NUMBER` must be the ioctl that takes exactly this structure, and every bit
/// pattern must be a valid value of it.
unsafe trait Argument {
    const NUMBER: u32;
}

macro_rules! argument {
    ($ty:ident, $number:ident) => {
        // SAFETY: the header pairs this ioctl with this structure, which is
        // made of integers only; the tests compare both with the header.
        unsafe impl Argument for sys::$ty {
            const NUMBER: u32 = sys::$number;
        }
    };
}

argument!(Info, IOCTL_INFO);
argument!(Bind, IOCTL_BIND);
argument!(Add, IOCTL_ADD);
argument!(Check, IOCTL_CHECK);
argument!(Commit, IOCTL_COMMIT);
argument!(Status, IOCTL_STATUS);
argument!(Rollback, IOCTL_ROLLBACK);
argument!(Cancel, IOCTL_CANCEL);
argument!(Record, IOCTL_RECORD);
argument!(Adopt, IOCTL_ADOPT);
argument!(Abandon, IOCTL_ABANDON);

/// Issue an ioctl whose structure holds no pointer, or null ones.
///
/// # Safety
///
/// Pointers inside `arg` must be null or valid for what the header says that
/// the kernel reads or writes there.
unsafe fn call<T: Argument>(file: &File, arg: &mut T) -> Result<(), Errno> {
    // SAFETY: `arg` is a live, exclusive reference to the structure that this
    // ioctl takes, and the caller vouches for the pointers inside.
    let rc = unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            T::NUMBER as libc::Ioctl,
            std::ptr::from_mut(arg),
        )
    };
    Errno::result(rc).map(drop)
}

pub(crate) fn info(file: &File, arg: &mut sys::Info) -> Result<(), Errno> {
    // SAFETY: the structure has no pointers.
    unsafe { call(file, arg) }
}

pub(crate) fn bind(file: &File, arg: &mut sys::Bind) -> Result<(), Errno> {
    // SAFETY: the structure has no pointers.
    unsafe { call(file, arg) }
}

pub(crate) fn status(file: &File, arg: &mut sys::Status) -> Result<(), Errno> {
    // SAFETY: the structure has no pointers.
    unsafe { call(file, arg) }
}

pub(crate) fn rollback(file: &File, arg: &mut sys::Rollback) -> Result<(), Errno> {
    // SAFETY: the structure has no pointers.
    unsafe { call(file, arg) }
}

pub(crate) fn cancel(file: &File, arg: &mut sys::Cancel) -> Result<(), Errno> {
    // SAFETY: the structure has no pointers.
    unsafe { call(file, arg) }
}

pub(crate) fn adopt(file: &File, arg: &mut sys::Adopt) -> Result<(), Errno> {
    // SAFETY: the structure has no pointers.
    unsafe { call(file, arg) }
}

pub(crate) fn abandon(file: &File, arg: &mut sys::Abandon) -> Result<(), Errno> {
    // SAFETY: the structure has no pointers.
    unsafe { call(file, arg) }
}

pub(crate) fn record(file: &File, arg: &mut sys::Record) -> Result<(), Errno> {
    // SAFETY: the structure has no pointers.
    unsafe { call(file, arg) }
}

/// `runs` overrides the pointer and count in `arg`.
pub(crate) fn add(file: &File, arg: &mut sys::Add, runs: &[sys::Run]) -> Result<(), Errno> {
    arg.runs = runs.as_ptr() as u64;
    arg.nr_runs = u32::try_from(runs.len()).map_err(|_| Errno::E2BIG)?;
    // SAFETY: the pointer and the count are those of a live slice that the
    // kernel only reads.
    unsafe { call(file, arg) }
}

/// `status` overrides the pointer and count in `arg`: one element a pair.
pub(crate) fn check(file: &File, arg: &mut sys::Check, status: &mut [i32]) -> Result<(), Errno> {
    // A count of 0 would mean "all", which the slice could not hold.
    if status.is_empty() {
        return Ok(());
    }
    arg.status = status.as_mut_ptr() as u64;
    arg.nr = status.len() as u64;
    // SAFETY: the kernel writes at most `nr` elements, which the slice has.
    unsafe { call(file, arg) }
}

/// `status` overrides the pointer and count in `arg`: one element a pair.
pub(crate) fn commit(file: &File, arg: &mut sys::Commit, status: &mut [i32]) -> Result<(), Errno> {
    if status.is_empty() {
        return Ok(());
    }
    arg.status = status.as_mut_ptr() as u64;
    arg.nr = status.len() as u64;
    // SAFETY: the kernel writes at most `nr` elements, which the slice has.
    unsafe { call(file, arg) }
}
