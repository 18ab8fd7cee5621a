// SPDX-License-Identifier: GPL-2.0-only

//! Allocations, all of them: charged to the memory cgroup of the caller, and made
//! to fail one by one in a debug build.
//!
//! The functions are not inlined, so that the kernel's vector code, which has
//! checks that can panic in theory, is found nowhere else in the driver's object
//! file: `scripts/style.sh` looks for such checks in the rest.

use kernel::{
    alloc::AllocError,
    prelude::*, //
};

use crate::{
    chunks::Frames,
    ledger::Memory, //
};

/// Where the debug build decides whether the next allocation fails.
#[inline]
pub(crate) fn may_fail() -> Result<(), AllocError> {
    #[cfg(vmbeam_debug)]
    crate::debug::inject::allocation()?;
    Ok(())
}

/// A value on the heap.
#[inline(never)]
pub(crate) fn boxed<T>(value: T) -> Result<KBox<T>, AllocError> {
    may_fail()?;
    KBox::new(value, GFP_KERNEL_ACCOUNT)
}

/// A list of `len` times `value`.
#[inline(never)]
pub(crate) fn list<T: Clone>(value: T, len: usize) -> Result<KVVec<T>, AllocError> {
    may_fail()?;
    KVVec::from_elem(value, len, GFP_KERNEL_ACCOUNT)
}

/// Make room for `more` elements.
#[inline(never)]
pub(crate) fn reserve<T>(list: &mut KVVec<T>, more: usize) -> Result<(), AllocError> {
    may_fail()?;
    list.reserve(more, GFP_KERNEL_ACCOUNT)
}

/// Put `value` at a place in `list`.
#[inline(never)]
pub(crate) fn insert<T>(list: &mut KVVec<T>, at: usize, value: T) -> Result<(), AllocError> {
    let mut last = value;

    reserve(list, 1)?;
    for slot in list.iter_mut().skip(at) {
        core::mem::swap(slot, &mut last);
    }
    list.push(last, GFP_KERNEL_ACCOUNT)
}

/// The memory of a ledger.
#[derive(Default)]
pub(crate) struct Charged;

impl Memory for Charged {
    type Error = Error;
    type List<T: Clone + Default> = KVVec<T>;
    type Frames = Frames;

    #[inline(never)]
    fn grow<T: Clone + Default>(list: &mut KVVec<T>, len: usize) -> Result {
        may_fail()?;
        Ok(list.resize(len, T::default(), GFP_KERNEL_ACCOUNT)?)
    }

    #[inline(never)]
    fn truncate<T: Clone + Default>(list: &mut KVVec<T>, len: usize) {
        list.truncate(len);
    }
}
