// SPDX-License-Identifier: GPL-2.0-only

//! A session: two domains, the runs between them, and how far it has come.

use kernel::{
    current,
    prelude::*, //
};

use crate::{
    args::Arg,
    hypervisor::{
        self,
        Reply, //
    },
    ledger::{
        Batch,
        Counts,
        Ledger, //
    },
    memory::Charged,
    mode::Mode,
    pairs::{
        MAX_PAIRS,
        MAX_RUNS, //
    },
    places::Place,
    uapi,
    xen::{
        DomId,
        Domains,
        What, //
    },
};

/// Most runs in one `ADD`: its copy takes 1.5 MiB.
pub(crate) const MAX_ADD_RUNS: u32 = 1 << 16;

/// Most pairs in one hypercall. A signal waits for one hypercall at most.
pub(crate) const BATCH_PAIRS: u32 = 4096;

/// Most runs in one hypercall.
pub(crate) const BATCH_RUNS: usize = 512;

/// What comes with being bound to two domains.
pub(crate) struct Bound {
    /// The domains.
    pub(crate) domains: Domains,
    /// What is done with the pairs.
    pub(crate) mode: Mode,
    /// Buffers.
    pub(crate) batch: Batch<Charged>,
    /// The process that bound the session.
    pub(crate) pid: u32,
    /// Where the session can be kept.
    pub(crate) place: Place,
}

/// What hypercalls that swapped took.
#[derive(Clone, Copy, Default)]
pub(crate) struct Spent {
    /// How many there were.
    pub(crate) hypercalls: u64,
    pub(crate) tlb_flushes: u64,
    pub(crate) batches: u64,
    pub(crate) p2m_writes: u64,
    pub(crate) superpages: u64,
    pub(crate) splits: u64,
    pub(crate) merges: u64,
    /// Frames that commits had go over with none in return, and rollbacks come back.
    pub(crate) went: u64,
    pub(crate) came: u64,
}

impl Spent {
    /// Count one, of a commit or on the way back.
    pub(crate) fn add(&mut self, reply: &Reply, back: bool) {
        let stats = &reply.stats;
        let splits = stats.splits_2m.saturating_add(stats.splits_1g);
        let merges = stats.merges_2m.saturating_add(stats.merges_1g);

        for (sum, more) in [
            (&mut self.hypercalls, 1),
            (&mut self.tlb_flushes, stats.tlb_flushes),
            (&mut self.batches, stats.batches),
            (&mut self.p2m_writes, stats.p2m_writes),
            (&mut self.superpages, stats.superpages),
            (&mut self.splits, splits),
            (&mut self.merges, merges),
            (
                match back {
                    false => &mut self.went,
                    true => &mut self.came,
                },
                reply.moved,
            ),
        ] {
            *sum = sum.saturating_add(more);
        }
    }
}

/// The state of one open file.
#[derive(Default)]
pub(crate) struct Session {
    /// `None` until `BIND`, and after `ABANDON`.
    pub(crate) bound: Option<Bound>,
    /// Whether `ABANDON` came. Who was handed the file for two domains gets no others by that.
    pub(crate) abandoned: bool,
    /// Its pairs, and which of them are swapped.
    pub(crate) ledger: Ledger<Charged>,
    /// What it took.
    pub(crate) spent: Spent,
}

/// IOCTL: `INFO`: limits and features. Needs no session.
pub(crate) fn info(mut arg: Arg<uapi::Info>) -> Result {
    arg.value.features = if hypervisor::implemented() {
        uapi::FEATURE_SWAP | uapi::FEATURE_KEEP | uapi::FEATURE_RELOCATE
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
    /// Whether it has been given its domains.
    pub(crate) fn is_bound(&self) -> bool {
        self.bound.is_some()
    }

    /// Whether it can be given domains: it has none, and never had.
    pub(crate) fn is_new(&self) -> bool {
        !self.is_bound() && !self.abandoned
    }

    /// IOCTL: `BIND`: bind the file to two domains.
    ///
    /// # Errors
    ///
    /// [`EINVAL`], [`EBADFD`], [`EBUSY`], [`ENOSPC`], [`ENOMEM`], [`EFAULT`], and those of
    /// [`hypervisor::swap_frames`].
    pub(crate) fn bind(&mut self, mut arg: Arg<uapi::Bind>) -> Result {
        let mut domains = Domains {
            a: DomId::new(arg.value.domid_a)?,
            b: DomId::new(arg.value.domid_b)?,
            ids: [arg.value.id_a, arg.value.id_b],
        };
        let mode = Mode::from_flags(arg.value.flags).ok_or(EINVAL)?;

        if domains.a == domains.b {
            return Err(EINVAL);
        }
        if !self.is_new() {
            return Err(EBADFD);
        }

        let batch = Batch::new(BATCH_RUNS, BATCH_PAIRS)?;
        let reply = hypervisor::swap_frames(domains, (What::Bind, mode, 0), &[], &mut []);
        reply.result?;
        if reply.ids.contains(&0) {
            return Err(EIO);
        }
        domains.ids = reply.ids;
        if mode.relocates() {
            // Of the two domains the hypervisor looks more closely at the one that gives. On the
            // way back, of which there may be need at any time, that is the other one.
            let back = (What::Check, mode.opposite(), 0);
            hypervisor::swap_frames(domains, back, &[], &mut []).result?;
        }
        let place = Place::take(domains)?;
        [arg.value.id_a, arg.value.id_b] = reply.ids;
        arg.write()?;
        self.bound = Some(Bound {
            domains,
            mode,
            batch,
            pid: u32::try_from(current!().tgid())?,
            place,
        });
        Ok(())
    }

    /// An ioctl is through: let others know whether pairs are swapped.
    pub(crate) fn note(&self) {
        if let Some(bound) = &self.bound {
            bound.place.note(self.ledger.may_be_swapped());
        }
    }

    /// IOCTL: `ABANDON`: give everything up that is known of the pairs, for good.
    ///
    /// # Errors
    ///
    /// [`EBADFD`], [`ESTALE`], [`EFAULT`].
    pub(crate) fn abandon(&mut self, mut arg: Arg<uapi::Abandon>) -> Result {
        if !self.is_bound() {
            return Err(EBADFD);
        }
        arg.value.cursor = self.view().status.cursor;
        arg.write()?;
        if arg.value.expected != arg.value.cursor {
            return Err(ESTALE);
        }
        *self = Self {
            abandoned: true,
            ..Self::default()
        };
        Ok(())
    }

    /// Where the session stands, for others to see.
    pub(crate) fn view(&self) -> View {
        match &self.bound {
            None if self.abandoned => View {
                status: uapi::Status {
                    state: uapi::STATE_ABANDONED,
                    ..uapi::Status::default()
                },
                ..View::default()
            },
            None => View::default(),
            Some(bound) => View::new(bound.domains, bound.mode, self.ledger.counts(), &self.spent),
        }
    }
}

/// What others see of a session.
#[derive(Clone, Copy, Default)]
pub(crate) struct View {
    /// For `STATUS`; all 0 for one that has not been bound.
    pub(crate) status: uapi::Status,
    /// What it took.
    pub(crate) spent: Spent,
}

impl View {
    /// Of a session that is bound.
    pub(crate) fn new(domains: Domains, mode: Mode, counts: Counts, spent: &Spent) -> Self {
        Self {
            status: uapi::Status {
                state: counts.state,
                domid_a: domains.a.into(),
                domid_b: domains.b.into(),
                runs: counts.runs.into(),
                pairs: counts.pairs.into(),
                cursor: counts.cursor.into(),
                swapped: counts.swapped.into(),
                refused: counts.refused.into(),
                mode: mode.flags(),
                // More come where the giver has let go of a frame that it got in a swap.
                moved: spent.went.saturating_sub(spent.came),
                ..uapi::Status::default()
            },
            spent: *spent,
        }
    }
}

const _: () = assert!(uapi::STATE_UNBOUND == 0);
