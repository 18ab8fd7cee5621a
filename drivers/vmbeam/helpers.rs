// SPDX-License-Identifier: GPL-2.0-only

//! What the kernel crate has bindings for and nothing that is safe: references to the own module,
//! the kind of thread that this is, and workqueues of a driver's own.

use core::ptr;
use kernel::{
    bindings,
    current,
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Full,
        Release, //
    },
    workqueue::Queue, //
};

/// `THIS_MODULE`. That of the kernel crate is in the module's root, which stands on this file.
fn this_module() -> *mut bindings::module {
    #[cfg(MODULE)]
    let module = &raw mut bindings::__this_module;
    #[cfg(not(MODULE))]
    let module = ptr::null_mut();
    module
}

/// Keeps the module from being unloaded. For file operations, which have the reference of
/// their open file besides.
pub(crate) struct ModuleRef(());

impl ModuleRef {
    /// Take a reference.
    pub(crate) fn get() -> Self {
        // SAFETY: This code runs, so the module is there.
        unsafe { bindings::__module_get(this_module()) };
        Self(())
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: `get()` has taken the reference, and nothing else gives it back.
        unsafe { bindings::module_put(this_module()) };
    }
}

/// Whether this is a thread of the kernel's own, in which nobody waits for one file only.
pub(crate) fn in_kthread() -> bool {
    let task = current!().as_ptr();

    // SAFETY: The current thread is there, and nobody but itself changes its flags.
    unsafe { (*task).flags & bindings::PF_KTHREAD != 0 }
}

/// The driver's workqueue, as long as there is a [`WorkQueue`].
static QUEUE: Atomic<*mut bindings::workqueue_struct> = Atomic::new(ptr::null_mut());

/// The driver's workqueue, for as long as this lives.
///
/// # Invariants
///
/// There is one of these at most, and [`QUEUE`] is a queue for as long as there is.
pub(crate) struct WorkQueue(());

impl WorkQueue {
    /// Make it.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], and [`EBUSY`] while there is one.
    pub(crate) fn new() -> Result<Self> {
        let (name, flags) = (c"vmbeam".as_char_ptr(), bindings::wq_flags_WQ_UNBOUND);
        // SAFETY: `name` is a format that has no arguments. May be called by any code that may
        // sleep, as a module's `init` may.
        let queue = unsafe { bindings::alloc_workqueue_noprof(name, flags, 0) };

        if queue.is_null() {
            return Err(ENOMEM);
        }
        if QUEUE.cmpxchg(ptr::null_mut(), queue, Full).is_err() {
            // SAFETY: It was just made, and nothing is in it.
            unsafe { bindings::destroy_workqueue(queue) };
            return Err(EBUSY);
        }
        // INVARIANT: There was none.
        Ok(Self(()))
    }

    /// The queue.
    ///
    /// # Safety
    ///
    /// There must be a [`WorkQueue`], and it must outlive what is done with the result.
    pub(crate) unsafe fn get<'a>() -> &'a Queue {
        // SAFETY: By the type's invariant it is one, and by the contract of this function for long
        // enough.
        unsafe { Queue::from_raw(QUEUE.load(Acquire)) }
    }
}

impl Drop for WorkQueue {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant it is there, and nobody else destroys it. This waits for
        // what still runs in it.
        unsafe { bindings::destroy_workqueue(QUEUE.load(Acquire)) };
        // Who makes the next one finds this one gone.
        QUEUE.store(ptr::null_mut(), Release);
    }
}
