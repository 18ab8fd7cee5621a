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

/// Enlarge `list` to `len` elements, the new ones being `value`.
#[inline(never)]
pub(crate) fn resize<T: Clone>(
    list: &mut KVVec<T>,
    len: usize,
    value: T,
) -> Result<(), AllocError> {
    may_fail()?;
    list.resize(len, value, GFP_KERNEL_ACCOUNT)
}

/// Enlarge `list` by `more` elements, for which there is room, have `fill` put
/// them to use, and drop those that it did not need.
#[inline(never)]
pub(crate) fn extend<T: Default + Clone>(
    list: &mut KVVec<T>,
    more: usize,
    fill: impl FnOnce(&mut [T], usize) -> usize,
) -> Result<(), AllocError> {
    let len = list.len();

    list.resize(len.saturating_add(more), T::default(), GFP_KERNEL_ACCOUNT)?;
    let filled = fill(list, len);
    list.truncate(filled);
    Ok(())
}
