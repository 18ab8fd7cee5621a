// SPDX-License-Identifier: GPL-2.0-only

//! Pages that a domain has granted.

use super::{Xen, DIRECTORIES};
use crate::error::Error;
use libloading::os::unix::{Library, Symbol};
use nix::libc::PROT_READ;
use std::ffi::{c_int, c_uint, c_void};
use std::path::Path;
use std::ptr::NonNull;

functions!(GrantTable {
    xengnttab_open: fn(*mut c_void, c_uint) -> *mut c_void,
    xengnttab_close: fn(*mut c_void) -> c_int,
    xengnttab_map_grant_ref: fn(*mut c_void, u32, u32, c_int) -> *mut c_void,
    xengnttab_unmap: fn(*mut c_void, *mut c_void, u32) -> c_int,
});

const LIBRARY: &str = "libxengnttab.so.1";

/// What can map them, opened when it is wanted.
struct Grants {
    table: GrantTable,
    handle: NonNull<c_void>,
}

impl Grants {
    fn open() -> Result<Self, Error> {
        let found = DIRECTORIES.iter().map(|d| Path::new(d).join(LIBRARY));
        let path = found.into_iter().find(|p| p.exists());
        let table = GrantTable::open(path.as_deref().unwrap_or(Path::new(LIBRARY)))?;
        // SAFETY: a null logger means the default one.
        let handle = unsafe { (table.xengnttab_open)(std::ptr::null_mut(), 0) };
        let handle = NonNull::new(handle).ok_or_else(|| Error::last("xengnttab_open"))?;
        Ok(Self { table, handle })
    }
}

impl Drop for Grants {
    fn drop(&mut self) {
        // SAFETY: open, and not used afterwards; nothing is mapped.
        unsafe { (self.table.xengnttab_close)(self.handle.as_ptr()) };
    }
}

impl Xen {
    /// Whether [`Xen::ring`] is possible at all.
    pub fn can_see_rings(&self) -> Result<(), Error> {
        Grants::open().map(drop)
    }

    /// How many requests the page of a ring says that were made, and how many of them
    /// answered (`req_prod` and `rsp_prod` of `struct *_sring`).
    pub fn ring(&self, domid: u32, reference: u32) -> Result<(u32, u32), Error> {
        let grants = Grants::open()?;
        let (table, handle) = (&grants.table, grants.handle.as_ptr());
        // SAFETY: an open handle; the library gives a page or null.
        let page = unsafe { (table.xengnttab_map_grant_ref)(handle, domid, reference, PROT_READ) };
        let page = NonNull::new(page).ok_or_else(|| Error::last("xengnttab_map_grant_ref"))?;
        let words = page.as_ptr().cast::<u32>();
        // SAFETY: a page, of which the first and the third word are read, once, whoever
        // writes to them; it is mapped until here.
        unsafe {
            let made = words.read_volatile();
            let answered = words.add(2).read_volatile();
            (table.xengnttab_unmap)(handle, page.as_ptr(), 1);
            Ok((made, answered))
        }
    }
}
