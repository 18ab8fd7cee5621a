// SPDX-License-Identifier: GPL-2.0-only

//! A thin, safe layer over the Xen toolstack libraries of a management VM.
//!
//! The libraries are opened at run time, so that one program works with
//! whatever Xen 4.x the management VM has. Their interface is checked before
//! it is used: see [`Xen::open`].
//!
//! Which frame is behind which page of a PV guest is read from the guest
//! hypervisor's own machine-to-physical table, and who owns a frame from the
//! hypervisor itself. A guest's own table of frames is not used: a guest that
//! has never run has none, and it lies in guest memory, which after a swap is
//! the other guest's.
//!
//! Two sorts of pages that somebody else may write to cannot be told apart from
//! ordinary ones through these libraries: those that a guest has granted to a
//! backend, and those that the guest hypervisor writes to when an event arrives: the
//! `vcpu_info` and the event channels' own pages that it has registered. Pausing a guest
//! stops neither. One that was suspended has no use for what backends still write, and
//! [`Xen::raise_events`] makes its pages what they will be.

pub mod command;
mod dl;
pub mod domains;
pub mod pages;
pub mod stream;
pub mod sys;

pub use dl::Xen;
pub use pages::{Frames, PageKind, PageRun, Special};

use nix::errno::Errno;
use std::path::PathBuf;

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;

/// A page's bytes.
pub type Page = [u8; PAGE_SIZE];

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
    fn last(call: &'static str) -> Self {
        Self::Call {
            call,
            errno: Errno::last(),
        }
    }
}

/// What the hypervisor says about a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainInfo {
    /// Its number.
    pub domid: u32,
    /// Hardware virtual machine, not PV.
    pub hvm: bool,
    /// Being torn down.
    pub dying: bool,
    /// Has shut down, for this reason (`SHUTDOWN_*` of Xen).
    pub shutdown: Option<u8>,
    /// Paused by the toolstack.
    pub paused: bool,
    /// Pages that it owns.
    pub pages: u64,
    /// Pages that it may own.
    pub max_pages: u64,
    /// Frame of its shared info page.
    pub shared_info_frame: u64,
    /// Highest vCPU number, if it has vCPUs.
    pub max_vcpu: Option<u32>,
    /// The cpupool that it is in.
    pub cpupool: u32,
    /// Its UUID, which the toolstack gave it.
    pub uuid: [u8; 16],
}

impl From<&sys::DomainInfo> for DomainInfo {
    fn from(raw: &sys::DomainInfo) -> Self {
        Self {
            domid: raw.domain.into(),
            hvm: raw.flags & sys::DOMINF_HVM_GUEST != 0,
            dying: raw.flags & sys::DOMINF_DYING != 0,
            // Eight bits.
            shutdown: (raw.flags & sys::DOMINF_SHUTDOWN != 0).then_some(
                ((raw.flags >> sys::DOMINF_SHUTDOWN_SHIFT) & sys::DOMINF_SHUTDOWN_MASK) as u8,
            ),
            paused: raw.flags & sys::DOMINF_PAUSED != 0,
            pages: raw.tot_pages,
            max_pages: raw.max_pages,
            shared_info_frame: raw.shared_info_frame,
            uuid: raw.handle,
            max_vcpu: (raw.max_vcpu_id != u32::MAX).then_some(raw.max_vcpu_id),
            cpupool: raw.cpupool,
        }
    }
}
