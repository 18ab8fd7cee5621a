// SPDX-License-Identifier: GPL-2.0-only

//! What the VMBeam driver and userspace share: the binary interfaces, and the
//! logic of a session that needs neither a kernel nor a hypervisor.
//!
//! The files are the driver's, in its directory: what `cargo test` proves here is what runs
//! in the kernel. Therefore nothing in them allocates, panics or is `unsafe`: callers
//! bring the memory.

#![no_std]

#[cfg(test)]
extern crate std;

#[path = "../../../drivers/vmbeam/frames.rs"]
pub mod frames;
#[path = "../../../drivers/vmbeam/ledger.rs"]
pub mod ledger;
#[path = "../../../drivers/vmbeam/mode.rs"]
pub mod mode;
#[path = "../../../drivers/vmbeam/names.rs"]
pub mod names;
#[path = "../../../drivers/vmbeam/pairs.rs"]
pub mod pairs;
#[path = "../../../drivers/vmbeam/uapi.rs"]
pub mod uapi;
#[path = "../../../drivers/vmbeam/xen_abi.rs"]
pub mod xen_abi;
