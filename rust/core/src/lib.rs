// SPDX-License-Identifier: GPL-2.0-only

//! What the VMBeam driver and userspace share: the binary interfaces, and the
//! logic of a session that needs neither a kernel nor a hypervisor.
//!
//! The kernel module does not link this crate. It compiles the same files as
//! modules of its own (`#[path]`), so what `cargo test` proves here is what runs
//! there. Therefore nothing in them allocates, panics or is `unsafe`: callers
//! bring the memory.

#![no_std]

#[cfg(test)]
extern crate std;

pub mod frames;
pub mod ledger;
pub mod names;
pub mod pairs;
pub mod uapi;
pub mod xen_abi;
