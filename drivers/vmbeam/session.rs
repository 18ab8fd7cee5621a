// SPDX-License-Identifier: GPL-2.0-only

//! A session: two domains, the runs between them, and how far it has come.

use kernel::prelude::*;

use crate::{
    args::Arg,
    pairs::{
        Run,
        MAX_PAIRS, //
    },
    progress::Progress,
    ranges::Range,
    uapi,
    xen::{
        self,
        DomId,
        Domains,
        Mode, //
    },
    xen_abi::SwapRun,
};

/// Most runs in one `ADD`: its copy and the two sorted lists of it take 3.5 MiB.
pub(crate) const MAX_ADD_RUNS: u32 = 1 << 16;

/// Most runs in one session: the three lists of them take 56 MiB, and twice that
/// when they have just been enlarged.
pub(crate) const MAX_RUNS: usize = 1 << 20;

/// Most pairs in one hypercall. A signal waits for one hypercall at most.
pub(crate) const BATCH_PAIRS: u32 = 4096;

/// Most runs in one hypercall.
pub(crate) const BATCH_RUNS: usize = 512;

/// What hypercalls need, allocated when the session is bound so that neither a
/// commit nor a rollback can fail for lack of memory.
pub(crate) struct Batch {
    /// [`BATCH_RUNS`] runs.
    pub(crate) runs: KVVec<SwapRun>,
    /// As many pair numbers, for batches that are not one stretch.
    pub(crate) firsts: KVVec<u32>,
    /// [`BATCH_PAIRS`] statuses.
    pub(crate) status: KVVec<i32>,
}

impl Batch {
    fn new() -> Result<Self> {
        Ok(Self {
            runs: KVVec::from_elem(SwapRun::default(), BATCH_RUNS, GFP_KERNEL_ACCOUNT)?,
            firsts: KVVec::from_elem(0, BATCH_RUNS, GFP_KERNEL_ACCOUNT)?,
            status: KVVec::from_elem(0, usize::try_from(BATCH_PAIRS)?, GFP_KERNEL_ACCOUNT)?,
        })
    }
}

/// What comes with being bound to two domains.
pub(crate) struct Bound {
    /// The domains.
    pub(crate) domains: Domains,
    /// Buffers.
    pub(crate) batch: Batch,
}

/// The state of one open file.
#[derive(Default)]
pub(crate) struct Session {
    /// `None` until `OPEN`.
    pub(crate) bound: Option<Bound>,
    /// The runs in the order of their pairs' numbers, merged.
    pub(crate) runs: KVVec<Run>,
    /// The frames in use in A and in B, sorted.
    pub(crate) used: [KVVec<Range>; 2],
    /// Pairs that a commit passed over; one bit each.
    pub(crate) refused: KVVec<u64>,
    /// Pairs that a rollback put back out of turn; one bit each.
    pub(crate) back: KVVec<u64>,
    /// The cursor and the counts.
    pub(crate) progress: Progress,
    /// Hypercalls issued to swap.
    pub(crate) hypercalls: u64,
    /// TLB flushes that they took.
    pub(crate) tlb_flushes: u64,
}

/// IOCTL: `INFO`: limits and features. Needs no session.
pub(crate) fn info(mut arg: Arg<uapi::Info>) -> Result {
    arg.value.features = if xen::implemented() {
        uapi::FEATURE_SWAP
    } else {
        0
    };
    arg.value.max_add_runs = MAX_ADD_RUNS;
    arg.value.batch_pairs = BATCH_PAIRS;
    arg.value.max_runs = u64::try_from(MAX_RUNS)?;
    arg.value.max_pairs = u64::from(MAX_PAIRS);
    arg.write()
}

impl Session {
    /// IOCTL: `OPEN`: bind the file to two domains.
    ///
    /// # Errors
    ///
    /// [`EINVAL`], [`EBADFD`], [`ENOMEM`], and those of [`xen::swap_frames`].
    pub(crate) fn open(&mut self, arg: Arg<uapi::Open>) -> Result {
        let domains = Domains {
            a: DomId::new(arg.value.domid_a)?,
            b: DomId::new(arg.value.domid_b)?,
        };

        if domains.a == domains.b {
            return Err(EINVAL);
        }
        if self.bound.is_some() {
            return Err(EBADFD);
        }

        let batch = Batch::new()?;
        xen::swap_frames(domains, Mode::Check, &[], &mut []).result?;
        self.bound = Some(Bound { domains, batch });
        Ok(())
    }

    /// IOCTL: `STATUS`: where the session stands.
    ///
    /// # Errors
    ///
    /// [`EFAULT`].
    pub(crate) fn status(&mut self, mut arg: Arg<uapi::Status>) -> Result {
        let out = &mut arg.value;

        (out.state, out.domid_a, out.domid_b) = match &self.bound {
            None => (uapi::STATE_UNBOUND, 0, 0),
            Some(bound) => (
                self.progress.state(),
                bound.domains.a.into(),
                bound.domains.b.into(),
            ),
        };
        out.reserved = 0;
        out.runs = u64::try_from(self.runs.len())?;
        out.pairs = self.progress.pairs().into();
        out.cursor = self.progress.cursor().into();
        out.swapped = self.progress.swapped().into();
        out.refused = self.progress.refused().into();
        out.hypercalls = self.hypercalls;
        out.tlb_flushes = self.tlb_flushes;
        arg.write()
    }
}
