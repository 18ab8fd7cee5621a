// SPDX-License-Identifier: GPL-2.0-only

//! Domains of the model of a hypervisor that a debug driver has: its extra ioctl,
//! `drivers/vmbeam/debug/vmbeam_debug.h`.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::rc::Rc;

use anyhow::Context;
use anyhow::Result;
use nix::errno::Errno;

use crate::device::DEVICE;

const OP_CREATE: u32 = 0;
const OP_DESTROY: u32 = 1;
const OP_REFUSE: u32 = 2;
const OP_STATUS: u32 = 3;
const OP_WRITE: u32 = 4;
const OP_READ: u32 = 5;
const OP_MODEL: u32 = 10;
const OP_DEPOPULATE: u32 = 11;
const OP_LIMIT: u32 = 12;
const OP_PAGES: u32 = 13;

/// `struct vmbeam_debug`; a test compares it with the header.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Request {
    op: u32,
    domid: u32,
    value: i32,
    reserved: u32,
    first: u64,
    nr: u64,
    ptr: u64,
}

/// `VMBEAM_IOCTL_DEBUG`
const IOCTL_DEBUG: u32 = (3 << 30) | ((size_of::<Request>() as u32) << 16) | (0xbc << 8);

/// The model.
#[derive(Debug)]
pub struct Mock {
    device: File,
}

impl Mock {
    /// Open it, if the driver uses one.
    pub fn open() -> Result<Option<Self>> {
        let device = File::options().read(true).write(true).open(DEVICE)?;
        let model = Self { device };
        let mut request = Request {
            op: OP_MODEL,
            ..Request::default()
        };
        // Only a debug driver knows the question.
        let asked = model.ask(&mut request).is_ok();
        Ok((asked && request.value != 0).then_some(model))
    }

    fn ask(&self, request: &mut Request) -> Result<(), Errno> {
        let fd = self.device.as_raw_fd();
        // SAFETY: the structure is the one that this ioctl takes; what `ptr` names
        // is an array of `nr` elements that outlives the call.
        let rc = unsafe { nix::libc::ioctl(fd, IOCTL_DEBUG.into(), std::ptr::from_mut(request)) };
        Errno::result(rc).map(drop)
    }

    /// A domain with `frames` frames from gfn 0 on, and this number or any if it is 0.
    pub fn domain(self: &Rc<Self>, domid: u32, frames: u64) -> Result<Domain> {
        let mut request = Request {
            op: OP_CREATE,
            domid,
            nr: frames,
            ..Request::default()
        };
        self.ask(&mut request).context("no domain in the model")?;
        Ok(Domain {
            mock: Rc::clone(self),
            domid: request.domid,
        })
    }

    fn set_status(&self, domid: u32, gfn: u64, status: i32) -> Result<(), Errno> {
        self.ask(&mut Request {
            op: OP_STATUS,
            domid,
            first: gfn,
            nr: 1,
            value: status,
            ..Request::default()
        })
    }
}

/// A domain of the model; it is taken away when this is dropped.
#[derive(Debug)]
pub struct Domain {
    mock: Rc<Mock>,
    /// Its number.
    pub domid: u32,
}

impl Drop for Domain {
    fn drop(&mut self) {
        // Nothing can be done if that fails.
        let _ = self.mock.ask(&mut Request {
            op: OP_DESTROY,
            domid: self.domid,
            ..Request::default()
        });
    }
}

impl Domain {
    /// The contents of frames `0..nr`.
    pub fn tags(&self, nr: u64) -> Result<Vec<u64>> {
        let mut tags = vec![0u64; nr as usize];
        self.mock.ask(&mut Request {
            op: OP_READ,
            domid: self.domid,
            nr,
            ptr: tags.as_mut_ptr() as u64,
            ..Request::default()
        })?;
        Ok(tags)
    }

    /// Write frames from this one on.
    pub fn write_tags(&self, first: u64, tags: &[u64]) -> Result<()> {
        self.mock.ask(&mut Request {
            op: OP_WRITE,
            domid: self.domid,
            first,
            nr: tags.len() as u64,
            ptr: tags.as_ptr() as u64,
            ..Request::default()
        })?;
        Ok(())
    }

    /// From now on a frame is populate-on-demand.
    pub fn depopulate(&self, gfn: u64) -> Result<()> {
        self.mock.ask(&mut Request {
            op: OP_DEPOPULATE,
            domid: self.domid,
            first: gfn,
            nr: 1,
            ..Request::default()
        })?;
        Ok(())
    }

    /// How many pages it may have.
    pub fn limit(&self, pages: u64) -> Result<()> {
        self.mock.ask(&mut Request {
            op: OP_LIMIT,
            domid: self.domid,
            nr: pages,
            ..Request::default()
        })?;
        Ok(())
    }

    /// How many it has.
    pub fn pages(&self) -> Result<u64> {
        let mut request = Request {
            op: OP_PAGES,
            domid: self.domid,
            ..Request::default()
        };
        self.mock.ask(&mut request)?;
        Ok(request.nr)
    }

    /// From now on all swaps with it fail with `status`, or no longer if that is 0.
    pub fn refuse(&self, status: i32) -> Result<()> {
        self.mock.ask(&mut Request {
            op: OP_REFUSE,
            domid: self.domid,
            value: status,
            ..Request::default()
        })?;
        Ok(())
    }

    /// From now on swaps of this frame get `status`, until the result is dropped.
    pub fn hold(&self, gfn: u64, status: i32) -> Result<Hold> {
        self.mock.set_status(self.domid, gfn, status)?;
        Ok(Hold {
            mock: Rc::clone(&self.mock),
            domid: self.domid,
            gfn,
        })
    }
}

/// A frame that cannot be swapped.
#[derive(Debug)]
pub struct Hold {
    mock: Rc<Mock>,
    domid: u32,
    gfn: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Fails when the domain is gone, and then it does not matter.
        let _ = self.mock.set_status(self.domid, self.gfn, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The layout and the numbers against the header.
    #[test]
    fn mirrors_the_header() {
        let header = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../drivers/vmbeam/debug/vmbeam_debug.h"
        );
        let asserts = [
            ("sizeof(struct vmbeam_debug)", size_of::<Request>()),
            (
                "offsetof(struct vmbeam_debug, value)",
                std::mem::offset_of!(Request, value),
            ),
            (
                "offsetof(struct vmbeam_debug, first)",
                std::mem::offset_of!(Request, first),
            ),
            (
                "offsetof(struct vmbeam_debug, ptr)",
                std::mem::offset_of!(Request, ptr),
            ),
            ("VMBEAM_IOCTL_DEBUG", IOCTL_DEBUG as usize),
            ("VMBEAM_DEBUG_CREATE", OP_CREATE as usize),
            ("VMBEAM_DEBUG_DESTROY", OP_DESTROY as usize),
            ("VMBEAM_DEBUG_REFUSE", OP_REFUSE as usize),
            ("VMBEAM_DEBUG_STATUS", OP_STATUS as usize),
            ("VMBEAM_DEBUG_WRITE", OP_WRITE as usize),
            ("VMBEAM_DEBUG_READ", OP_READ as usize),
            ("VMBEAM_DEBUG_MODEL", OP_MODEL as usize),
            ("VMBEAM_DEBUG_DEPOPULATE", OP_DEPOPULATE as usize),
            ("VMBEAM_DEBUG_LIMIT", OP_LIMIT as usize),
            ("VMBEAM_DEBUG_PAGES", OP_PAGES as usize),
        ]
        .map(|(text, value)| format!("_Static_assert(({text}) == {value}, \"layout\");\n"))
        .concat();
        assert!(crate::compiles(&format!(
            "#include <stddef.h>\n#include \"{header}\"\n{asserts}"
        )));
    }
}
