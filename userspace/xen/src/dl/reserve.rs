// SPDX-License-Identifier: GPL-2.0-only

//! Memory that nobody has yet: of the host, and what domains have for populate on demand.

use super::Xen;
use crate::error::Error;
use crate::pages::PAGE_SIZE;
use std::ffi::c_int;

impl Xen {
    /// Populate on demand, of an HVM domain: pages that it has for that, and places that may
    /// take one of them each.
    pub fn populate_on_demand(&self, domid: u32) -> Result<(u64, u64), Error> {
        let (mut pages, mut cache, mut entries) = (0, 0, 0);
        // SAFETY: the library writes three numbers.
        let rc = unsafe {
            (self.ctrl.xc_domain_get_pod_target)(
                self.xch.as_ptr(),
                domid,
                &mut pages,
                &mut cache,
                &mut entries,
            )
        };
        if rc == 0 {
            Ok((cache, entries))
        } else {
            Err(Error::last("xc_domain_get_pod_target"))
        }
    }

    /// Have a domain get so many pages in all: those that it lacks are for populate on demand.
    pub fn set_populate_on_demand(&self, domid: u32, pages: u64) -> Result<(), Error> {
        let null = std::ptr::null_mut;
        // SAFETY: the library writes numbers where it is given a place, and has none here.
        let rc = unsafe {
            (self.ctrl.xc_domain_set_pod_target)(
                self.xch.as_ptr(),
                domid,
                pages,
                null(),
                null(),
                null(),
            )
        };
        if rc == 0 {
            Ok(())
        } else {
            Err(Error::last("xc_domain_set_pod_target"))
        }
    }

    /// Pages that a domain could get: they are nobody's.
    pub fn free_pages(&self) -> Result<u64, Error> {
        /// Of any width, on any node.
        const ANY: [c_int; 3] = [0, 0, -1];
        let [from, to, node] = ANY;
        let mut bytes = 0;
        // SAFETY: the library writes a number.
        let rc = unsafe { (self.ctrl.xc_availheap)(self.xch.as_ptr(), from, to, node, &mut bytes) };
        if rc == 0 {
            Ok(bytes / PAGE_SIZE as u64)
        } else {
            Err(Error::last("xc_availheap"))
        }
    }
}
