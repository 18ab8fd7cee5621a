// SPDX-License-Identifier: GPL-2.0-only

//! The swap of frames, as a safe function.
//!
//! All `unsafe` code of the driver is in this file. It belongs into the kernel
//! crate; until then the driver compiles it as a module of its own.

use core::ffi::{
    c_int,
    c_uint,
    c_void, //
};

use kernel::prelude::*;

use crate::xen_abi::{
    SwapFrames,
    SwapRun,
    LAST_DOMID,
    SWAP_CHECK,
    XENMEM_SWAP_FRAMES, //
};

extern "C" {
    fn vmbeam_memory_op(cmd: c_uint, arg: *mut c_void) -> c_int;
    fn vmbeam_cond_resched();
}

/// The number of an ordinary domain.
///
/// # Invariants
///
/// At most [`LAST_DOMID`]: none of Xen's special numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct DomId(u16);

impl DomId {
    /// Check a number that came from outside.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] when no ordinary domain can have this number.
    pub(crate) fn new(id: u32) -> Result<Self> {
        if id > LAST_DOMID {
            return Err(EINVAL);
        }
        // INVARIANT: Just checked.
        Ok(Self(u16::try_from(id)?))
    }
}

impl From<DomId> for u32 {
    fn from(domid: DomId) -> u32 {
        u32::from(domid.0)
    }
}

/// The two domains of a session, which are not the same.
#[derive(Clone, Copy)]
pub(crate) struct Domains {
    /// First domain.
    pub(crate) a: DomId,
    /// Second domain.
    pub(crate) b: DomId,
}

/// What is asked of the hypervisor.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Report what a swap would do.
    Check,
    /// Swap.
    Swap,
}

/// What came of a request.
pub(crate) struct Reply {
    /// Pairs dealt with, counted from the first; their statuses are valid. Can
    /// be more than 0 although `result` is an error.
    pub(crate) done: usize,
    /// TLB flushes that it took.
    pub(crate) tlb_flushes: u64,
    /// Whether the hypervisor did all that was asked.
    pub(crate) result: Result,
}

/// Ask the hypervisor to swap, or to check, the pairs of `runs`. With no runs it
/// only checks the domains.
///
/// # Errors
///
/// In [`Reply::result`]: [`EOPNOTSUPP`] when there is no hypervisor that
/// implements the operation; [`ESRCH`], [`EPERM`], [`ENXIO`] and [`EBUSY`] as the
/// uAPI header explains them; [`ENOMEM`]; [`EIO`] for an answer that makes no sense.
pub(crate) fn swap_frames(
    domains: Domains,
    mode: Mode,
    runs: &[SwapRun],
    status: &mut [i32],
) -> Reply {
    let nothing = |error| Reply {
        done: 0,
        tlb_flushes: 0,
        result: Err(error),
    };
    let pairs = runs
        .iter()
        .fold(0u64, |sum, run| sum.saturating_add(u64::from(run.nr)));
    let (Ok(nr_runs), Ok(room)) = (u32::try_from(runs.len()), u64::try_from(status.len())) else {
        return nothing(EINVAL);
    };
    if pairs > room {
        return nothing(EINVAL);
    }

    let mut request = SwapFrames {
        domid_a: domains.a.0,
        domid_b: domains.b.0,
        flags: match mode {
            Mode::Check => SWAP_CHECK,
            Mode::Swap => 0,
        },
        nr_runs,
        // CAST: Handles are addresses in 64 bits.
        runs: runs.as_ptr() as u64,
        status: status.as_mut_ptr() as u64,
        nr_pairs: pairs,
        ..SwapFrames::default()
    };
    // SAFETY:
    // - `request` is the argument that this sub-operation expects, and is ours for the call.
    // - `runs` names `nr_runs` initialised structures, which the hypervisor only reads.
    // - `status` names at least `nr_pairs` elements, as checked above, which are exclusively
    //   ours and valid with any value. The hypervisor writes no more than `nr_pairs` of them,
    //   and keeps neither address beyond the call.
    // - Neither frame list can name a frame of this kernel: the hypervisor refuses the domain
    //   that it runs in.
    let ret = unsafe {
        vmbeam_memory_op(
            XENMEM_SWAP_FRAMES,
            core::ptr::from_mut(&mut request).cast::<c_void>(),
        )
    };

    Reply {
        done: usize::try_from(request.done.min(pairs)).unwrap_or(0),
        tlb_flushes: request.tlb_flushes,
        result: match ret {
            0 if request.done == pairs => Ok(()),
            0.. => Err(EIO),
            _ => Err(translate(ret)),
        },
    }
}

/// Make the answer of the hypervisor one that the uAPI header documents.
fn translate(ret: c_int) -> Error {
    let error = Error::from_errno(ret);

    if error == ENOSYS {
        EOPNOTSUPP
    } else if error == EACCES {
        // This is how a security module of the hypervisor says no.
        EPERM
    } else if [ESRCH, EPERM, ENXIO, EBUSY, ENOMEM, EOPNOTSUPP].contains(&error) {
        error
    } else {
        EIO
    }
}

/// Whether there is a hypervisor that implements the swap of frames.
pub(crate) fn implemented() -> bool {
    // INVARIANT: 0 is an ordinary number.
    let dom0 = DomId(0);
    // A domain with itself is refused before the hypervisor looks at anything
    // else, so any answer other than "no such operation" is a yes.
    let reply = swap_frames(Domains { a: dom0, b: dom0 }, Mode::Check, &[], &mut []);

    reply.result != Err(EOPNOTSUPP)
}

/// Let others run, between two requests.
pub(crate) fn cond_resched() {
    // SAFETY: May be called by any code that may sleep. It is only called by ioctl handlers,
    // which hold no spin lock.
    unsafe { vmbeam_cond_resched() };
}
