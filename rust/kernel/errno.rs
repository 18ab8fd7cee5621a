// SPDX-License-Identifier: GPL-2.0-only

//! Error codes that the kernel crate has since Linux 7.3.

#[cfg(not(vmbeam_before_7_3))]
pub(crate) use kernel::error::code::{
    EADDRINUSE,
    EBADFD,
    ECANCELED,
    ENOSYS,
    EOPNOTSUPP,
    ESTALE, //
};

#[cfg(vmbeam_before_7_3)]
mod before {
    use kernel::{
        bindings,
        error::Error, //
    };

    /// The error with the number `errno` of the C headers.
    const fn error(errno: u32) -> Error {
        assert!(errno != 0 && errno <= bindings::MAX_ERRNO);
        // CAST: at most `MAX_ERRNO`.
        let value = -(errno as i32);
        // SAFETY: In the kernels that this is compiled for, which are not going to change,
        // `Error` is a structure of one `NonZeroI32`, so it has the layout of that, and
        // `transmute()` compares the sizes. Its invariant holds, as checked above. The
        // function that it has for this purpose is private.
        unsafe { core::mem::transmute::<i32, Error>(value) }
    }

    pub(crate) const EADDRINUSE: Error = error(bindings::EADDRINUSE);
    pub(crate) const EBADFD: Error = error(bindings::EBADFD);
    pub(crate) const ECANCELED: Error = error(bindings::ECANCELED);
    pub(crate) const ENOSYS: Error = error(bindings::ENOSYS);
    pub(crate) const EOPNOTSUPP: Error = error(bindings::EOPNOTSUPP);
    pub(crate) const ESTALE: Error = error(bindings::ESTALE);
}
#[cfg(vmbeam_before_7_3)]
pub(crate) use before::*;
