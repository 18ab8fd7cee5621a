// SPDX-License-Identifier: GPL-2.0-only

//! What can go wrong.

use nix::errno::Errno;
use std::path::PathBuf;

/// What can go wrong with the toolstack libraries.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No usable set of libraries.
    #[error("no Xen toolstack libraries for this hypervisor: {0}; install xen-utils of the version that runs (libxenctrl, libxenguest, libxenforeignmemory, libxencall, libxenstore)")]
    NoLibraries(String),
    /// A library lacks a function.
    #[error("{library}: {message}")]
    Symbol {
        /// Which library.
        library: PathBuf,
        /// What the dynamic loader says.
        message: String,
    },
    /// A library's structure is not the one that this program knows.
    #[error("the layout of {what} in the toolstack library is not known to this program ({got} bytes, expected {expected}); install a newer vmbeam-agent")]
    Layout {
        /// Which structure.
        what: &'static str,
        /// Its size in the library.
        got: usize,
        /// The size that this program knows.
        expected: usize,
    },
    /// A library call failed.
    #[error("{call} failed: {}", .errno.desc())]
    Call {
        /// Which function.
        call: &'static str,
        /// Its errno.
        errno: Errno,
    },
    /// No such guest.
    #[error("there is no guest with domid {0}")]
    NoDomain(u32),
    /// Not possible with this guest.
    #[error("{0}")]
    Unsupported(String),
}

impl Error {
    pub(crate) fn last(call: &'static str) -> Self {
        Self::Call {
            call,
            errno: Errno::last(),
        }
    }
}
