// SPDX-License-Identifier: GPL-2.0-only

//! The part of VMBeam that runs in a guest management VM.
//!
//! The agent answers `vmbeamd`, which runs in the host management VM, over a
//! serial port of the host VM. It can name the frames of guests, pause them, read
//! and hash their pages, and save, restore and destroy them by way of the
//! toolstack.
//!
//! [`server`] is the protocol, [`transfer`] the part of it that moves a guest's
//! state, [`port`] the serial port, [`hypervisor`] what is needed of the guest
//! hypervisor, [`toolstack`] what is needed of the toolstack, [`surroundings`] what the
//! management VM tells of guests, [`definitions`] what is written down of them, [`gate`] what
//! starts them at boot.

pub mod args;
pub mod definitions;
mod disks;
mod error;
pub mod gate;
pub mod hypervisor;
mod identity;
mod late;
mod list;
mod names;
mod orphan;
pub mod port;
pub mod preflight;
mod restored;
pub mod server;
pub mod surroundings;
pub mod toolstack;
pub mod transfer;
mod xen;

pub use args::Args;
pub use error::HvError;
pub use hypervisor::Hypervisor;
pub use port::PORT_NAME;
pub use server::Agent;
pub use xen::take_over;
