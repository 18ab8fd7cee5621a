// SPDX-License-Identifier: GPL-2.0-only

//! What the libraries give and want back.

use super::Xen;
use crate::error::Error;
use crate::pages::PAGE_SIZE;
use crate::sys;
use std::ffi::c_void;
use std::mem::size_of;
use std::ptr::NonNull;

/// `event_channel_op`, with room for its argument.
pub(super) struct EventChannelOp<'a> {
    xen: &'a Xen,
    handle: NonNull<c_void>,
    argument: NonNull<c_void>,
}

impl<'a> EventChannelOp<'a> {
    pub(super) fn new(xen: &'a Xen) -> Result<Self, Error> {
        // SAFETY: a null logger means the default one.
        let handle = NonNull::new(unsafe { (xen.call.xencall_open)(std::ptr::null_mut(), 0) });
        let handle = handle.ok_or_else(|| Error::last("xencall_open"))?;
        // SAFETY: an open handle; the library gives memory that the hypervisor can use,
        // at the start of a page.
        let argument = unsafe { (xen.call.xencall_alloc_buffer)(handle.as_ptr(), PAGE_SIZE) };
        let Some(argument) = NonNull::new(argument) else {
            let e = Error::last("xencall_alloc_buffer");
            // SAFETY: `handle` is open and not used afterwards.
            unsafe { (xen.call.xencall_close)(handle.as_ptr()) };
            return Err(e);
        };
        Ok(Self {
            xen,
            handle,
            argument,
        })
    }

    /// Carry one out; gives its argument as it is afterwards.
    pub(super) fn call<T: sys::EventChannelArgument>(
        &mut self,
        op: u32,
        argument: T,
    ) -> Result<T, Error> {
        const { assert!(size_of::<T>() <= PAGE_SIZE) };
        let at = self.argument.as_ptr().cast::<T>();
        // SAFETY: ours, large enough and aligned to a page; the hypervisor writes no more
        // than the structure, which is made of integers.
        unsafe {
            at.write(argument);
            let rc = (self.xen.call.xencall2)(
                self.handle.as_ptr(),
                sys::HYPERVISOR_EVENT_CHANNEL_OP,
                u64::from(op),
                at as u64,
            );
            if rc != 0 {
                return Err(Error::last("event_channel_op"));
            }
            Ok(at.read())
        }
    }
}

impl Drop for EventChannelOp<'_> {
    fn drop(&mut self) {
        // SAFETY: both were given by the library and are not used afterwards.
        unsafe {
            (self.xen.call.xencall_free_buffer)(self.handle.as_ptr(), self.argument.as_ptr());
            (self.xen.call.xencall_close)(self.handle.as_ptr());
        }
    }
}

/// Room for the library's idea of a CPU.
pub(super) struct Policy<'a> {
    xen: &'a Xen,
    pub(super) policy: NonNull<c_void>,
}

impl<'a> Policy<'a> {
    pub(super) fn new(xen: &'a Xen) -> Result<Self, Error> {
        // SAFETY: no demands; null if there is no memory.
        let policy = NonNull::new(unsafe { (xen.guest.xc_cpu_policy_init)() });
        let policy = policy.ok_or_else(|| Error::last("xc_cpu_policy_init"))?;
        Ok(Self { xen, policy })
    }
}

impl Drop for Policy<'_> {
    fn drop(&mut self) {
        // SAFETY: made by xc_cpu_policy_init(), not used afterwards.
        unsafe { (self.xen.guest.xc_cpu_policy_destroy)(self.policy.as_ptr()) };
    }
}
