// SPDX-License-Identifier: GPL-2.0-only

//! What stands for `debug.rs` in the driver that is installed: nothing between it and Xen.

use kernel::{
    alloc::AllocError,
    prelude::*, //
};

pub(crate) use crate::xen::memory_op;

/// Whether there is a model of a hypervisor for machines that have none.
pub(crate) const HAS_MODEL: bool = false;

/// Called for each allocation.
#[inline]
pub(crate) fn allocation() -> Result<(), AllocError> {
    Ok(())
}

/// An ioctl of this file, or `None`.
#[inline]
pub(crate) fn ioctl(_cmd: u32, _addr: usize) -> Option<Result<isize>> {
    None
}

/// To be called once, before anything else.
///
/// # Safety
///
/// None; a debug build has something to do.
#[inline]
pub(crate) unsafe fn init() {}
