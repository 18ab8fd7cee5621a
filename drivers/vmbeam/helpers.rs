// SPDX-License-Identifier: GPL-2.0-only

//! What the kernel crate has no function for: references to the own module, the kind of thread
//! that this is, and workqueues of a driver's own.

use kernel::{
    bindings,
    prelude::*,
    workqueue::Queue, //
};

extern "C" {
    fn vmbeam_pin_module();
    fn vmbeam_unpin_module();
    fn vmbeam_in_kthread() -> bool;
    fn vmbeam_workqueue_create() -> c_int;
    fn vmbeam_workqueue_destroy();
    fn vmbeam_workqueue_get() -> *const bindings::workqueue_struct;
}

/// Keeps the module from being unloaded. For file operations, which have the reference of
/// their open file besides.
pub(crate) struct ModuleRef(());

impl ModuleRef {
    /// Take a reference.
    pub(crate) fn get() -> Self {
        // SAFETY: This code runs, so the module is there.
        unsafe { vmbeam_pin_module() };
        Self(())
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: `get()` has taken the reference, and nothing else gives it back.
        unsafe { vmbeam_unpin_module() };
    }
}

/// Whether this is a thread of the kernel's own, in which nobody waits for one file only.
pub(crate) fn in_kthread() -> bool {
    // SAFETY: It takes nothing and reads a field of the current thread.
    unsafe { vmbeam_in_kthread() }
}

/// The driver's workqueue, for as long as this lives.
///
/// # Invariants
///
/// There is one of these at most, and the C side has a queue for as long as there is.
pub(crate) struct WorkQueue(());

impl WorkQueue {
    /// Make it.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], and [`EBUSY`] while there is one.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: May be called by any code that may sleep, as a module's `init` may.
        kernel::error::to_result(unsafe { vmbeam_workqueue_create() })?;
        // INVARIANT: The C side has made one, which it refuses to do when it has one.
        Ok(Self(()))
    }

    /// The queue.
    ///
    /// # Safety
    ///
    /// There must be a [`WorkQueue`], and it must outlive what is done with the result.
    pub(crate) unsafe fn get<'a>() -> &'a Queue {
        // SAFETY: By the type's invariant the C side has one, and by the contract of this function
        // for long enough.
        unsafe { Queue::from_raw(vmbeam_workqueue_get()) }
    }
}

impl Drop for WorkQueue {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant it is there, and nobody else destroys it. This waits for
        // what still runs in it.
        unsafe { vmbeam_workqueue_destroy() };
    }
}
