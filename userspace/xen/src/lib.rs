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
mod domain_info;
pub mod domains;
mod error;
pub mod pages;
pub mod stream;
pub mod sys;

pub use dl::{CpuPolicy, Xen};
pub use domain_info::DomainInfo;
pub use error::Error;
pub use pages::{Frames, Page, PageKind, PageRun, Special, PAGE_SIZE};
