// SPDX-License-Identifier: GPL-2.0-only

//! The hypercall of the model.

use kernel::prelude::*;

use super::{
    Frame,
    Model, //
};
use crate::xen_abi::{
    SwapFrames,
    SwapRun,
    SwapStats,
    SWAP_CHECK,
    SWAP_KEEP,
    SWAP_MAX_PAIRS,
    SWAP_MAX_RUNS,
    SWAP_TO_A,
    SWAP_TO_B,
    SWAP_UNDO,
    SWAP_UNMAP,
    SWAP_VERSION, //
};

/// A guest frame of a domain.
type Place = (u32, u64);

/// What is asked of all pairs.
#[derive(Clone, Copy)]
struct Asked {
    check: bool,
    keep: bool,
    /// Whether frames may go over alone: from B to A, or from A to B.
    to_a: bool,
    to_b: bool,
    undo: bool,
}

impl Asked {
    /// What a request asks of `runs`, which it does not name itself here.
    ///
    /// # Errors
    ///
    /// [`EINVAL`]: Xen would find fault with it, whatever domains it is about.
    fn read(request: &SwapFrames, runs: &[SwapRun]) -> Result<Self> {
        const KNOWN: u32 = SWAP_CHECK | SWAP_UNMAP | SWAP_KEEP | SWAP_TO_A | SWAP_TO_B | SWAP_UNDO;
        let flag = |flag| request.flags & flag != 0;
        let asked = Self {
            check: flag(SWAP_CHECK),
            keep: flag(SWAP_KEEP),
            to_a: flag(SWAP_TO_A),
            to_b: flag(SWAP_TO_B),
            undo: flag(SWAP_UNDO),
        };
        let modes = [asked.keep, asked.to_a, asked.to_b];
        let pairs = (runs.iter().map(|run| u64::from(run.nr))).fold(0, u64::saturating_add);

        if request.flags & !KNOWN != 0
            || modes.iter().filter(|mode| **mode).count() > 1
            || (asked.undo && !asked.to_a && !asked.to_b)
            || (flag(SWAP_UNMAP) && !asked.check)
            || (runs.is_empty() && !asked.check)
            || runs.len() > SWAP_MAX_RUNS
            || pairs > u64::try_from(SWAP_MAX_PAIRS)?
            || request.done > pairs
            || request.pad != 0
            || request.domid_a == request.domid_b
        {
            return Err(EINVAL);
        }
        Ok(asked)
    }
}

impl Model {
    /// The hypercall.
    pub(crate) fn hypercall(
        &mut self,
        request: &mut SwapFrames,
        runs: &[SwapRun],
        status: &mut [i32],
        stats: &mut SwapStats,
    ) -> c_int {
        match self.swap(request, runs, status, stats) {
            Ok(()) => 0,
            Err(error) => error.to_errno(),
        }
    }

    fn swap(
        &mut self,
        request: &mut SwapFrames,
        runs: &[SwapRun],
        status: &mut [i32],
        stats: &mut SwapStats,
    ) -> Result {
        let (a, b) = (u32::from(request.domid_a), u32::from(request.domid_b));

        if request.version != SWAP_VERSION {
            return Err(ENOEXEC);
        }
        let asked = Asked::read(request, runs)?;
        for (id, unique) in [(a, &mut request.id_a), (b, &mut request.id_b)] {
            if id == 0 {
                return Err(EPERM);
            }
            let domain = self.find(id)?;
            if *unique != 0 && *unique != domain.unique {
                return Err(EADDRNOTAVAIL);
            }
            *unique = domain.unique;
        }
        for id in [a, b] {
            let domain = self.find(id)?;
            if domain.refuse != 0 {
                return Err(Error::from_errno(domain.refuse));
            }
            if request.flags & SWAP_UNMAP != 0 {
                domain.give_up_stock();
            }
        }

        let mut status = status.iter_mut();
        for run in runs {
            for i in 0..u64::from(run.nr) {
                let slot = status.next().ok_or(EFAULT)?;
                let (a, b) = ((a, run.gfn_a + i), (b, run.gfn_b + i));
                *slot = match asked {
                    Asked { to_a: true, .. } => self.move_pair(b, a, asked, &mut request.to_a)?,
                    Asked { to_b: true, .. } => self.move_pair(a, b, asked, &mut request.to_b)?,
                    _ => self.swap_pair(a, b, asked)?,
                };
                request.done = request.done.saturating_add(1);
                if *slot == 0 && !asked.check {
                    stats.swapped = stats.swapped.saturating_add(1);
                    // Two entries that are removed, and two that are written.
                    stats.p2m_writes = stats.p2m_writes.saturating_add(4);
                }
            }
        }
        if stats.swapped > 0 {
            stats.batches = stats.batches.saturating_add(1);
            stats.tlb_flushes = stats.tlb_flushes.saturating_add(1);
        }
        Ok(())
    }

    fn look(&mut self, place: Place) -> Result<Option<Frame>> {
        Ok(self.find(place.0)?.frame(place.1).copied())
    }

    /// A pair of a relocation: what may go over alone goes from `from` to `to`, where `moved`
    /// have gone before.
    fn move_pair(&mut self, from: Place, to: Place, asked: Asked, moved: &mut u64) -> Result<i32> {
        let (Some(giver), Some(receiver)) = (self.look(from)?, self.look(to)?) else {
            return Ok(ENOENT.to_errno());
        };

        match (giver.machine, receiver.machine) {
            (0, 0) => Ok(ENODATA.to_errno()),
            (0, _) if receiver.status != 0 => Ok(receiver.refusal()),
            (0, _) => {
                if !asked.check {
                    self.set(to, receiver.machine, 0)?;
                }
                Ok(ENODATA.to_errno())
            }
            (_, 0) if giver.status != 0 => Ok(giver.refusal()),
            (_, 0) => {
                // Those of this request are there already, but for a check.
                let before = if asked.check { *moved } else { 0 };
                if self.reserve <= before && !asked.undo {
                    return Ok(ENOMEM.to_errno());
                }
                let domain = self.find(to.0)?;
                if domain.pages.saturating_add(before) >= domain.limit {
                    return Ok(ENOSPC.to_errno());
                }
                *moved = moved.saturating_add(1);
                if !asked.check {
                    self.reserve = self.reserve.saturating_sub(1);
                    let domain = self.find(to.0)?;
                    domain.pages = domain.pages.saturating_add(1);
                    let domain = self.find(from.0)?;
                    domain.pages = domain.pages.saturating_sub(1);
                    self.set(to, giver.machine, giver.contents)?;
                    self.set(from, 0, 0)?;
                }
                Ok(0)
            }
            // What is wrong with A's frame is said first, wherever frames go.
            _ if asked.to_a => self.swap_pair(to, from, asked),
            _ => self.swap_pair(from, to, asked),
        }
    }

    fn swap_pair(&mut self, a: Place, b: Place, asked: Asked) -> Result<i32> {
        // Both are looked up before either is taken hold of.
        let (Some(frame_a), Some(frame_b)) = (self.look(a)?, self.look(b)?) else {
            return Ok(ENOENT.to_errno());
        };
        if frame_a.machine == 0 || frame_b.machine == 0 {
            return Ok(ENODATA.to_errno());
        }
        for frame in [frame_a, frame_b] {
            if frame.status != 0 {
                return Ok(frame.refusal());
            }
        }
        if !asked.check {
            let (mut in_a, mut in_b) = (frame_b.contents, frame_a.contents);
            if asked.keep {
                core::mem::swap(&mut in_a, &mut in_b);
            }
            self.set(a, frame_b.machine, in_a)?;
            self.set(b, frame_a.machine, in_b)?;
        }
        Ok(0)
    }

    fn set(&mut self, place: Place, machine: u64, contents: u64) -> Result {
        let frame = self.find(place.0)?.frame(place.1).ok_or(EFAULT)?;
        (frame.machine, frame.contents) = (machine, contents);
        Ok(())
    }
}

impl Frame {
    fn refusal(&self) -> i32 {
        -self.status.saturating_abs()
    }
}
