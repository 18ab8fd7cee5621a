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
//! - `file`: an open file; who may work on its session when; ioctl numbers.
//! - `args`: request structures and arrays in user memory.
//! - `session`: what the requests do. `add` and `exchange`: its larger parts.
//! - `records`: which sessions have pairs swapped, and what becomes of those whose file is
//!   gone half way.
//! - `alloc`: allocations.
//! - `xen`: the hypercall. `glue`: the rest of what the kernel crate lacks. All
//!   `unsafe` code is in these two.
//! - `debug`: in a debug build, a model of a hypervisor, and faults on request.
//! - `chunks`: memory for [`frames`].
//! - [`ledger`]: which pairs are swapped, and the loops that change it. It stands on [`pairs`]
//!   and [`frames`] and knows neither a kernel nor a hypervisor: `cargo test` in `rust/core`
//!   runs the same files.
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
mod chunks;
#[cfg(vmbeam_debug)]
mod debug;
mod exchange;
mod file;
mod records;
mod session;

#[path = "../../rust/kernel/glue.rs"]
mod glue;
#[path = "../../rust/kernel/xen.rs"]
mod xen;

#[path = "../../rust/core/src/frames.rs"]
pub mod frames;
#[path = "../../rust/core/src/ledger.rs"]
pub mod ledger;
#[path = "../../rust/core/src/names.rs"]
pub mod names;
#[path = "../../rust/core/src/pairs.rs"]
pub mod pairs;
#[path = "../../rust/core/src/uapi.rs"]
pub mod uapi;
#[path = "../../rust/core/src/xen_abi.rs"]
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
    _queue: glue::WorkQueue,
}

impl kernel::InPlaceModule for VmbeamModule {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        glue::init();

        try_pin_init!(Self {
            _: { usable()? },
            _queue: glue::WorkQueue::new()?,
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
    if cfg!(not(vmbeam_debug)) && !xen::is_initial_domain() {
        return Err(ENODEV);
    }
    // Not a reason to fail: a program can ask, and explain what is missing.
    if !xen::implemented() {
        pr_info!("this hypervisor does not implement the swap of frames\n");
    }
    Ok(())
}
