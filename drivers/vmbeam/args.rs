// SPDX-License-Identifier: GPL-2.0-only

//! Request structures and arrays in user memory.

use kernel::{
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice,
        UserSliceReader, //
    },
};
use zerocopy::{
    FromBytes,
    IntoBytes, //
};

use crate::uapi::Request;

/// Largest structure that is looked at. Newer programs may have larger ones than
/// this driver, but not by this much.
const MAX_SIZE: usize = 4096;

/// A request structure: our copy, and where it came from.
pub(crate) struct Arg<T> {
    ptr: UserPtr,
    /// How much of it the caller has, which may be an older version.
    len: usize,
    /// What is looked at and written back, whatever the caller's has become since. 0 beyond `len`.
    pub(crate) value: T,
}

impl<T: Request> Arg<T> {
    /// Copy a structure in, whose first field is its size.
    ///
    /// # Errors
    ///
    /// - [`EFAULT`]: it cannot be read.
    /// - [`EINVAL`]: it is smaller than the first version.
    /// - [`E2BIG`]: it is larger than ours and the tail is not zero, or it is absurdly large.
    /// - [`EOPNOTSUPP`]: a flag that we do not know.
    pub(crate) fn read(ptr: UserPtr) -> Result<Self> {
        let first: u32 = UserSlice::new(ptr, size_of::<u32>()).reader().read()?;
        let size = usize::try_from(first)?;

        if size < T::FIRST_SIZE {
            return Err(EINVAL);
        }
        if size > MAX_SIZE {
            return Err(E2BIG);
        }

        let len = size.min(size_of::<T>());
        let mut reader = UserSlice::new(ptr, size).reader();
        let mut value = T::new_zeroed();
        reader.read_slice(value.as_mut_bytes().get_mut(..len).ok_or(EINVAL)?)?;
        require_zero(reader)?;
        // It was read again, and may be another one.
        first
            .write_to_prefix(value.as_mut_bytes())
            .or(Err(EINVAL))?;
        if value.flags() & !T::FLAGS != 0 {
            return Err(EOPNOTSUPP);
        }
        Ok(Self { ptr, len, value })
    }

    /// Copy the structure back out, as much of it as the caller has. A tail that we
    /// do not know stays as it is.
    ///
    /// # Errors
    ///
    /// [`EFAULT`]: it cannot be written.
    pub(crate) fn write(&self) -> Result {
        let bytes = self.value.as_bytes().get(..self.len).ok_or(EINVAL)?;

        UserSlice::new(self.ptr, bytes.len())
            .writer()
            .write_slice(bytes)
    }
}

fn require_zero(mut reader: UserSliceReader) -> Result {
    let mut chunk = [0u8; 64];

    while !reader.is_empty() {
        let len = reader.len().min(chunk.len());
        let Some(chunk) = chunk.get_mut(..len) else {
            break;
        };
        reader.read_slice(chunk)?;
        if chunk.iter().any(|byte| *byte != 0) {
            return Err(E2BIG);
        }
    }
    Ok(())
}

/// An address that a caller put into a `u64`.
fn user_ptr(addr: u64) -> Result<UserPtr> {
    Ok(UserPtr::from_addr(usize::try_from(addr).or(Err(EFAULT))?))
}

/// Fill `out` from the array at `addr`.
///
/// # Errors
///
/// [`EFAULT`]: it cannot be read.
pub(crate) fn read_array<T: FromBytes + IntoBytes>(addr: u64, out: &mut [T]) -> Result {
    let bytes = out.as_mut_bytes();

    UserSlice::new(user_ptr(addr)?, bytes.len())
        .reader()
        .read_slice(bytes)
}

/// The caller's array of statuses, or none if it does not want any.
#[derive(Clone, Copy)]
pub(crate) struct StatusArray {
    addr: u64,
}

impl StatusArray {
    /// The array at `addr`; 0 means that there is none.
    pub(crate) fn new(addr: u64) -> Self {
        Self { addr }
    }

    /// Find out whether the first `nr` elements can be written, and leave them as they are.
    ///
    /// # Errors
    ///
    /// [`EFAULT`]: they cannot.
    pub(crate) fn probe(&self, nr: u32) -> Result {
        let mut part = [0; 64];
        let mut at = 0;

        while self.addr != 0 && at < nr {
            let len = usize::try_from(nr.saturating_sub(at))?.min(part.len());
            let part = part.get_mut(..len).ok_or(EFAULT)?;
            read_array(self.address(at)?, part)?;
            self.write(at, part)?;
            at = at.saturating_add(u32::try_from(len)?);
        }
        Ok(())
    }

    fn address(&self, first: u32) -> Result<u64> {
        let offset = u64::from(first).checked_mul(u64::try_from(size_of::<i32>())?);
        let end = offset.and_then(|offset| self.addr.checked_add(offset));
        end.ok_or(EFAULT)
    }

    /// Write `status` to the elements from `first` on.
    ///
    /// # Errors
    ///
    /// [`EFAULT`]: they cannot be written.
    pub(crate) fn write(&self, first: u32, status: &[i32]) -> Result {
        if self.addr == 0 {
            return Ok(());
        }
        write_bytes(self.address(first)?, 0, status.as_bytes())
    }
}

/// Write `bytes` at `offset` from the address `addr`.
///
/// # Errors
///
/// [`EFAULT`]: they cannot be written.
pub(crate) fn write_bytes(addr: u64, offset: usize, bytes: &[u8]) -> Result {
    UserSlice::new(user_ptr(addr)?.wrapping_byte_add(offset), bytes.len())
        .writer()
        .write_slice(bytes)
}
