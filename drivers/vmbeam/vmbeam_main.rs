// SPDX-License-Identifier: GPL-2.0-only

//! VMBeam: exchange machine memory between two host VMs.
//!
//! `/dev/vmbeam` is the interface of a patched Xen that swaps the machine frames
//! behind two lists of guest frames. One open file is one *session*: it is bound
//! to a pair of domains for good, is given runs of frame pairs, and then swaps
//! them in batches, one hypercall each.
//!
//! Swapping a pair twice puts it back. So the one thing that must never be lost
//! or guessed is how far a session has come, and the whole driver is built around
//! that: the *cursor* lives here, is updated from the hypervisor's own count
//! after every hypercall, and a caller that is wrong about it changes nothing.
//!
//! The interface is documented in `include/uapi/linux/vmbeam.h` and in
//! `Documentation/userspace-api/vmbeam.rst`.
//!
//! # Layers
//!
//! None uses one that is above it.
//!
//! - `file`: an open file; ioctl numbers. `turns`: who may work on its session when.
//! - `records`: what becomes of sessions whose file is gone half way.
//! - `add`, `exchange`: the larger requests. `session`: the others, and what a session is.
//! - `places`: which sessions have pairs swapped.
//! - `memory`: memory for a ledger. `alloc`: allocations.
//! - `hypervisor`: what a session asks. `trace`: what can be seen of that.
//! - `debug`: in a debug build, a model of a hypervisor, and faults on request. Nothing else
//!   knows which build it is.
//! - `args`: request structures and arrays in user memory.
//! - `xen`: the hypercall. `helpers`: what the kernel crate has bindings for only.
//! - [`mode`]: what a session does with its pairs.
//! - [`ledger`]: which pairs are swapped, and the loops that change it. It stands on [`pairs`]
//!   and [`frames`] and knows neither a kernel nor a hypervisor: the same files are in a library
//!   of userspace, with property tests.
//!
//! # Limitations
//!
//! - A session's lists take up to about 250 MiB of kernel memory at the very
//!   largest (`MAX_RUNS` runs that do not merge, `MAX_PAIRS` pairs, frames in
//!   `MAX_CHUNKS` chunks, while an `ADD` runs), charged to the memory cgroup of the
//!   caller. A guest VM of 256 MiB whose frames are all apart takes 2 to 4 MiB.
//! - x86 only: elsewhere Xen does not have the hypercall.

use kernel::{
    miscdevice::{
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    prelude::*,
};

mod add;
mod alloc;
mod args;
#[cfg_attr(not(vmbeam_debug), path = "no_debug.rs")]
mod debug;
mod exchange;
mod file;
pub mod frames;
mod helpers;
mod hypervisor;
pub mod ledger;
mod memory;
pub mod mode;
pub mod names;
pub mod pairs;
mod places;
mod records;
mod session;
mod trace;
mod turns;
pub mod uapi;
mod xen;
pub mod xen_abi;

module! {
    type: VmbeamModule,
    name: "vmbeam",
    authors: ["VMBeam developers"],
    description: "Exchange machine memory between two host VMs",
    license: "GPL",
}

/// The loaded module: its device exists as long as this does.
#[pin_data]
struct VmbeamModule {
    #[pin]
    _device: MiscDeviceRegistration<file::Vmbeam>,
    // After the device, so that it is there for all of its files.
    _queue: helpers::WorkQueue,
}

impl kernel::InPlaceModule for VmbeamModule {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        // SAFETY: Once, and before there is a device: nothing but its files leads to these.
        unsafe {
            places::PLACES.init();
            records::RECORDS.init();
            debug::init();
        }

        try_pin_init!(Self {
            _: { usable()? },
            _queue: helpers::WorkQueue::new()?,
            _device <- MiscDeviceRegistration::register(MiscDeviceOptions { name: c"vmbeam" }),
        })
    }
}

/// Whether there is anything that the driver could do here.
///
/// # Errors
///
/// [`ENODEV`]: this is not the management VM of a Xen host, and there is no model of one.
fn usable() -> Result {
    if !debug::HAS_MODEL && !xen::is_initial_domain() {
        return Err(ENODEV);
    }
    // Not a reason to fail: a program can ask, and explain what is missing.
    if !hypervisor::implemented() {
        pr_info!("this hypervisor does not implement the swap of frames\n");
    }
    Ok(())
}
