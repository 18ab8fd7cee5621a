// SPDX-License-Identifier: GPL-2.0-only

//! A debug build's extra ioctl, `debug/vmbeam_debug.h`: a model of a hypervisor
//! where there is none, and faults on request everywhere.

use kernel::{
    ioctl::_IOWR,
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    },
};
use zerocopy::{
    FromZeros,
    IntoBytes, //
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes, //
};

use crate::{
    args, xen,
    xen_abi::{
        SwapFrames,
        SwapRun,
        SwapStats, //
    },
};

mod inject;
mod mock;

pub(crate) use inject::allocation;
use mock::MOCK;

/// Whether there is a model of a hypervisor for machines that have none.
pub(crate) const HAS_MODEL: bool = true;

/// The ioctl.
const IOCTL: u32 = _IOWR::<Request>(0xbc, 0);

const OP_CREATE: u32 = 0;
const OP_DESTROY: u32 = 1;
const OP_REFUSE: u32 = 2;
const OP_STATUS: u32 = 3;
const OP_WRITE: u32 = 4;
const OP_READ: u32 = 5;
const OP_FAIL_ALLOC: u32 = 6;
const OP_FAIL_CALL: u32 = 7;
const OP_SIGNAL: u32 = 8;
const OP_SLOW: u32 = 9;
const OP_MODEL: u32 = 10;
const OP_DEPOPULATE: u32 = 11;
const OP_LIMIT: u32 = 12;
const OP_PAGES: u32 = 13;
const OP_MACHINE: u32 = 14;
const OP_RESERVE: u32 = 15;
const OP_HOLD: u32 = 16;
const OP_HELD: u32 = 17;

/// `struct vmbeam_debug`
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable)]
struct Request {
    op: u32,
    domid: u32,
    value: i32,
    reserved: u32,
    first: u64,
    nr: u64,
    ptr: u64,
}

/// To be called once, before anything else.
///
/// # Safety
///
/// That is the whole of it.
pub(crate) unsafe fn init() {
    // SAFETY: Once, by the contract of this function.
    unsafe { MOCK.init() };
}

/// The hypercall, or what stands for it.
pub(crate) fn memory_op(
    request: &mut SwapFrames,
    runs: &[SwapRun],
    status: &mut [i32],
    stats: &mut SwapStats,
) -> c_int {
    inject::with_faults(request, runs, |request, runs| {
        if mock::active() {
            MOCK.lock().hypercall(request, runs, status, stats)
        } else {
            xen::memory_op(request, runs, status, stats)
        }
    })
}

/// An ioctl of this file, or `None`.
pub(crate) fn ioctl(cmd: u32, addr: usize) -> Option<Result<isize>> {
    (cmd == IOCTL).then(|| operate(addr))
}

fn operate(addr: usize) -> Result<isize> {
    let slice = || UserSlice::new(UserPtr::from_addr(addr), size_of::<Request>());
    let mut arg = Request::new_zeroed();
    slice().reader().read_slice(arg.as_mut_bytes())?;

    if arg.reserved != 0 {
        return Err(EINVAL);
    }
    let of_model = matches!(arg.op, 0..=OP_READ | OP_DEPOPULATE..=OP_RESERVE);
    if of_model && !mock::active() {
        return Err(EOPNOTSUPP);
    }
    match arg.op {
        OP_CREATE => arg.domid = MOCK.lock().create(arg.domid, arg.nr, arg.value)?,
        OP_DESTROY => MOCK.lock().destroy(arg.domid)?,
        OP_REFUSE => MOCK.lock().refuse(arg.domid, arg.value)?,
        OP_STATUS => {
            MOCK.lock()
                .set_status(arg.domid, arg.first, arg.nr, arg.value)?;
        }
        OP_WRITE => {
            let mut contents = buffer(arg.nr)?;
            args::read_array(arg.ptr, &mut contents)?;
            MOCK.lock().write(arg.domid, arg.first, &contents)?;
        }
        OP_READ => {
            let mut contents = buffer(arg.nr)?;
            MOCK.lock().read(arg.domid, arg.first, &mut contents)?;
            args::write_bytes(arg.ptr, 0, contents.as_bytes())?;
        }
        OP_FAIL_ALLOC => arg.nr = inject::fail_allocation(arg.nr),
        OP_FAIL_CALL => {
            arg.nr = inject::fail_call(arg.nr, arg.first, arg.value, arg.domid);
        }
        OP_SIGNAL => arg.nr = inject::signal(arg.nr, arg.value),
        OP_SLOW => inject::slow(arg.nr),
        OP_DEPOPULATE => MOCK.lock().depopulate(arg.domid, arg.first, arg.nr)?,
        OP_LIMIT => MOCK.lock().limit(arg.domid, arg.nr)?,
        OP_PAGES => (arg.nr, arg.first) = MOCK.lock().pages(arg.domid)?,
        OP_MACHINE => {
            let mut frames = buffer(arg.nr)?;
            MOCK.lock()
                .machine_frames(arg.domid, arg.first, &mut frames)?;
            args::write_bytes(arg.ptr, 0, frames.as_bytes())?;
        }
        OP_RESERVE => MOCK.lock().set_reserve(arg.nr),
        OP_MODEL => arg.value = mock::active().into(),
        OP_HOLD => arg.nr = inject::hold(arg.nr),
        OP_HELD => arg.value = inject::holds().into(),
        _ => return Err(EINVAL),
    }
    slice().writer().write_slice(arg.as_bytes())?;
    Ok(0)
}

/// Room for the contents of `nr` frames.
fn buffer(nr: u64) -> Result<KVVec<u64>> {
    if nr > mock::MAX_FRAMES {
        return Err(EINVAL);
    }
    Ok(KVVec::from_elem(
        0,
        usize::try_from(nr)?,
        GFP_KERNEL_ACCOUNT,
    )?)
}
