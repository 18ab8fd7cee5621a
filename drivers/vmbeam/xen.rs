// SPDX-License-Identifier: GPL-2.0-only

//! The hypercall, as a safe function, and what it names.

use kernel::prelude::*;

use crate::{
    mode::Mode,
    xen_abi::{
        SwapFrames,
        SwapRun,
        SwapStats,
        LAST_DOMID,
        SWAP_CHECK,
        SWAP_NR_STATS,
        SWAP_UNMAP,
        SWAP_VERSION,
        XENMEM_SWAP_FRAMES, //
    },
};

extern "C" {
    fn vmbeam_is_initial_domain() -> bool;
    fn vmbeam_memory_op(cmd: c_uint, arg: *mut c_void) -> c_int;
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
    /// What the hypervisor calls the two for ever; 0 for whichever has the number.
    pub(crate) ids: [u64; 2],
}

impl Domains {
    /// Whether a domain is in both.
    pub(crate) fn share(&self, other: &Self) -> bool {
        self.ids.iter().any(|id| other.ids.contains(id))
    }

    /// A request about them, when so many frames have gone over with none in return already.
    pub(crate) fn request(self, what: What, mode: Mode, moved: u64) -> SwapFrames {
        let [id_a, id_b] = self.ids;

        SwapFrames {
            domid_a: self.a.0,
            domid_b: self.b.0,
            flags: mode.swap_flags()
                | match what {
                    What::Bind => SWAP_CHECK | SWAP_UNMAP,
                    What::Check => SWAP_CHECK,
                    What::CheckUndo => SWAP_CHECK | mode.undo_flags(),
                    What::Swap => 0,
                    What::Undo => mode.undo_flags(),
                },
            version: SWAP_VERSION,
            id_a,
            id_b,
            to_a: if mode == Mode::ToA { moved } else { 0 },
            to_b: if mode == Mode::ToB { moved } else { 0 },
            ..SwapFrames::default()
        }
    }
}

/// What is asked of the hypervisor.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// Report what a swap would do, and ask the device models of both domains to give up
    /// the mappings that they merely keep in stock: frames in these would be refused. They do
    /// so a moment later.
    Bind,
    /// Report what a swap would do.
    Check,
    /// Report what [`Self::Undo`] would do.
    CheckUndo,
    /// Swap.
    Swap,
    /// Undo what a swap did, in the opposite mode.
    Undo,
}

impl What {
    /// Whether it may change something.
    pub(crate) fn swaps(self) -> bool {
        matches!(self, Self::Swap | Self::Undo)
    }
}

/// Issue the hypercall. What `request` says about the arrays is replaced.
pub(crate) fn memory_op(
    request: &mut SwapFrames,
    runs: &[SwapRun],
    status: &mut [i32],
    stats: &mut SwapStats,
) -> c_int {
    let pairs = total(runs);
    let (Ok(nr_runs), Ok(room)) = (u32::try_from(runs.len()), u64::try_from(status.len())) else {
        return EINVAL.to_errno();
    };
    if pairs > room {
        return EINVAL.to_errno();
    }
    request.nr_runs = nr_runs;
    request.nr_pairs = pairs;
    // CAST: Handles are addresses in 64 bits.
    request.runs = runs.as_ptr() as u64;
    request.status = status.as_mut_ptr() as u64;
    request.stats = core::ptr::from_mut(stats) as u64;
    request.nr_stats = SWAP_NR_STATS as u32;

    // SAFETY:
    // - `request` is the argument that this sub-operation expects, and is ours for the call.
    // - `runs` names `nr_runs` initialised structures, which the hypervisor only reads.
    // - `status` names at least `nr_pairs` elements, as checked above, which are exclusively
    //   ours and valid with any value. The hypervisor writes no more than `nr_pairs` of them.
    // - `stats` names `nr_stats` counters, which are exclusively ours and valid with any value.
    // - The hypervisor keeps none of these addresses beyond the call.
    // - Neither frame list can name a frame of this kernel: the hypervisor refuses the domain
    //   that it runs in.
    unsafe {
        vmbeam_memory_op(
            XENMEM_SWAP_FRAMES,
            core::ptr::from_mut(request).cast::<c_void>(),
        )
    }
}

/// Pairs in `runs`.
fn total(runs: &[SwapRun]) -> u64 {
    runs.iter()
        .fold(0u64, |sum, run| sum.saturating_add(u64::from(run.nr)))
}

/// The error that the hypervisor means with the answer to a whole request, one that the uAPI
/// header documents.
pub(crate) fn call_error(ret: c_int) -> Error {
    let error = pair_error(ret);

    if [ENOSYS, ENOEXEC].contains(&error) {
        // No such operation, or one with another interface than ours.
        EOPNOTSUPP
    } else if [EADDRINUSE, EMLINK, EAGAIN, ENOTEMPTY].contains(&error) {
        // A mode of the domain: altp2m, memory sharing, paging, or devices of its own.
        EBUSY
    } else if error == EADDRNOTAVAIL {
        // Another domain has the number now, so the one that is meant is gone.
        ESRCH
    } else if error == EACCES {
        // This is how a security module of the hypervisor says no.
        EPERM
    } else if [ESRCH, EPERM, ENXIO, EBUSY, ENOMEM, EOPNOTSUPP].contains(&error) {
        error
    } else {
        EIO
    }
}

/// The error that the hypervisor means with the status of a pair, which is not 0. Its numbers are
/// those of Linux on x86.
pub(crate) fn pair_error(status: c_int) -> Error {
    // The kernel would log a number that cannot be an errno, each time.
    if (-MAX_ERRNO..0).contains(&status) {
        Error::from_errno(status)
    } else {
        EIO
    }
}

/// The largest errno there can be, as in `linux/err.h`.
const MAX_ERRNO: c_int = 4095;

/// Whether this kernel runs the management VM of a Xen host, which is what may exchange
/// memory of others.
pub(crate) fn is_initial_domain() -> bool {
    // SAFETY: It takes nothing and reads what has been known since boot.
    unsafe { vmbeam_is_initial_domain() }
}

/// Whether there is a hypervisor that implements the swap of frames. Nothing is put before
/// it, so that this is also what a debug build decides by.
pub(crate) fn implements_swap() -> bool {
    // INVARIANT: 0 is an ordinary number.
    let dom0 = DomId(0);
    let (a, b, ids) = (dom0, dom0, [0; 2]);
    let mut request = Domains { a, b, ids }.request(What::Check, Mode::Swap, 0);
    let ret = memory_op(&mut request, &[], &mut [], &mut SwapStats::default());

    // A domain with itself is refused, so any answer other than "no such operation" is a yes.
    call_error(ret) != EOPNOTSUPP
}
