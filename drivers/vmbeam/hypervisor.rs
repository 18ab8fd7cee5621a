// SPDX-License-Identifier: GPL-2.0-only

//! The hypervisor that a session deals with: Xen, or what a debug build puts before it.

use kernel::prelude::*;

use crate::{
    debug,
    mode::Mode,
    xen::{
        self,
        Domains,
        What, //
    },
    xen_abi::{
        SwapRun,
        SwapStats, //
    },
};

/// What came of a request.
pub(crate) struct Reply {
    /// Pairs dealt with, counted from the first, as the hypervisor says; their statuses are
    /// valid if it can be believed. Can be more than 0 although `result` is an error.
    pub(crate) done: u64,
    /// What it took.
    pub(crate) stats: SwapStats,
    /// Frames that went over with none in return, or would have, together with those before.
    pub(crate) moved: u64,
    /// The ids of the domains, valid if there is a `result`.
    pub(crate) ids: [u64; 2],
    /// Whether the hypervisor says that it did all that was asked.
    pub(crate) result: Result,
}

/// Ask the hypervisor to swap, or to check, the pairs of `runs`, when `moved` frames have gone
/// over with none in return already. With no runs it only checks the domains.
///
/// # Errors
///
/// In [`Reply::result`]: [`EOPNOTSUPP`] when there is no hypervisor that
/// implements the operation; [`ESRCH`], [`EPERM`], [`ENXIO`] and [`EBUSY`] as the
/// uAPI header explains them; [`ENOMEM`]; [`EIO`] for an answer that makes no sense.
pub(crate) fn swap_frames(
    domains: Domains,
    (what, mode, moved): (What, Mode, u64),
    runs: &[SwapRun],
    status: &mut [i32],
) -> Reply {
    let mut request = domains.request(what, mode, moved);
    let mut stats = SwapStats::default();
    let ret = debug::memory_op(&mut request, runs, status, &mut stats);

    Reply {
        done: request.done,
        stats,
        // A mode has one direction, and nothing is counted in the other.
        moved: request.to_a.saturating_add(request.to_b),
        ids: [request.id_a, request.id_b],
        result: match ret {
            0 => Ok(()),
            1.. => Err(EIO),
            _ => Err(xen::call_error(ret)),
        },
    }
}

/// Whether one of the domains is gone, for ever, as no other domain has its id. It is not noticed
/// where another one has its number that a policy of the hypervisor protects: that is asked first.
pub(crate) fn gone(domains: Domains) -> bool {
    let reply = swap_frames(domains, (What::Check, Mode::Swap, 0), &[], &mut []);

    reply.result == Err(ESRCH)
}

/// Whether frames can be swapped here.
pub(crate) fn implemented() -> bool {
    debug::HAS_MODEL || xen::implements_swap()
}
