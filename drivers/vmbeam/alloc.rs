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

use crate::debug;

/// A value on the heap.
#[inline(never)]
pub(crate) fn boxed<T>(value: T) -> Result<KBox<T>, AllocError> {
    debug::allocation()?;
    KBox::new(value, GFP_KERNEL_ACCOUNT)
}

/// A list of `len` times `value`.
#[inline(never)]
pub(crate) fn list<T: Clone>(value: T, len: usize) -> Result<KVVec<T>, AllocError> {
    debug::allocation()?;
    KVVec::from_elem(value, len, GFP_KERNEL_ACCOUNT)
}

/// Make room for `more` elements.
#[inline(never)]
pub(crate) fn reserve<T>(list: &mut KVVec<T>, more: usize) -> Result<(), AllocError> {
    debug::allocation()?;
    list.reserve(more, GFP_KERNEL_ACCOUNT)
}

/// Put `value` at a place in `list`.
#[inline(never)]
pub(crate) fn insert<T>(list: &mut KVVec<T>, at: usize, value: T) -> Result<(), AllocError> {
    reserve(list, 1)?;
    list.insert_within_capacity(at, value).or(Err(AllocError))
}

/// Make a list this long, with elements of value 0 at its end.
#[inline(never)]
pub(crate) fn resize<T: Clone + Default>(
    list: &mut KVVec<T>,
    len: usize,
) -> Result<(), AllocError> {
    debug::allocation()?;
    list.resize(len, T::default(), GFP_KERNEL_ACCOUNT)
}

/// Drop what is beyond `len` elements.
#[inline(never)]
pub(crate) fn truncate<T>(list: &mut KVVec<T>, len: usize) {
    list.truncate(len);
}

/// Drop what is not to be kept.
#[inline(never)]
pub(crate) fn retain<T>(list: &mut KVVec<T>, keep: impl Fn(&T) -> bool) {
    list.retain(|element| keep(element));
}
