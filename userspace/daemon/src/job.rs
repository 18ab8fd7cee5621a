// SPDX-License-Identifier: GPL-2.0-only

//! A migration in progress: what is known of its guest, and what was made for it so far.

use crate::driver::DriverSession;
use crate::exchange::{refused, SwapError};
use crate::execute::{Executor, Work};
use crate::join::JoinedRun;
use crate::ledger::Ledger;
use crate::limits::{Context, Limits};
use crate::load::Loaded;
use crate::memory::Route;
use crate::relay::Relay;
use std::time::Instant;
use vmbeam_agent_protocol::{Digest, Guest, PfnRun};
use vmbeam_control_protocol::{MigrateReport, MigrateRequest, Mode};
use vmbeam_xen::stream::Contents;

/// A migration in progress.
pub(crate) struct Job<'a> {
    pub(crate) context: Context<'a>,
    pub(crate) request: &'a MigrateRequest,
    pub(crate) exec: Executor<'a>,
    pub(crate) work: Work,
    /// How the memory gets there.
    pub(crate) mode: Mode,
    pub(crate) route: Route,
    /// The destination lacks memory that its guest hypervisor believes it has, if that is
    /// known.
    pub(crate) small: Option<bool>,
    pub(crate) started: Instant,
    pub(crate) guest: Guest,
    /// Its host VM starts it at boot, as soon as it is told that it may.
    pub(crate) starts: bool,
    /// What it has been suspended for, if it may have been.
    pub(crate) pause: Option<Ledger>,
    /// What was made and found out before.
    pub(crate) staged: Option<Staged>,
    /// There is a record, or may be one.
    pub(crate) begun: bool,
    /// Why it is not gone on with.
    pub(crate) error: Option<SwapError>,
    /// What was in the stream.
    pub(crate) contents: Contents,
    /// A session that is to swap these.
    #[allow(clippy::type_complexity, reason = "two things, used once")]
    pub(crate) loaded: Option<(Box<dyn DriverSession>, Vec<JoinedRun>)>,
    /// Pages that cannot be swapped.
    pub(crate) copies: Vec<PfnRun>,
    /// Those of them that were read already, and what they have.
    pub(crate) ahead: (Vec<PfnRun>, Vec<u8>),
    /// Pages that are not there at the source.
    pub(crate) empty: Vec<PfnRun>,
    /// Pairs whose frames stay where they are, by now.
    pub(crate) stayed: Vec<JoinedRun>,
    /// Digests to compare with.
    pub(crate) before: Vec<(u64, Digest)>,
    pub(crate) report: MigrateReport,
}

/// What there is of a guest before it is suspended.
pub(crate) struct Staged {
    pub(crate) relay: Relay,
    /// What is in the journal's file: pairs that were not refused.
    pub(crate) pairs: Vec<JoinedRun>,
    /// Those of them that are not there at the source: nobody must look at them.
    pub(crate) empty: Vec<PfnRun>,
    /// The file's digest.
    pub(crate) digest: Digest,
    /// Pairs of pages that were none that may move then: page tables, mostly.
    pub(crate) others: Vec<JoinedRun>,
    /// Pairs that were refused.
    pub(crate) refused: Vec<JoinedRun>,
    /// How many pages are to be copied because of that. The destination's reserve bears them.
    pub(crate) copies: u64,
    /// What was found out since the guest was suspended.
    pub(crate) confirmed: Option<Confirmed>,
}

/// What is swapped, and what is not.
pub(crate) struct Confirmed {
    pub(crate) loaded: Loaded,
    pub(crate) copies: Vec<PfnRun>,
    /// Digests of some pages, at the source and at the destination.
    pub(crate) digests: [Vec<(u64, Digest)>; 2],
    /// What `copies` have, if it is little.
    pub(crate) contents: Vec<u8>,
}

impl<'a> Job<'a> {
    /// Whether to go on. Asked again and again before the point of no return.
    pub(crate) fn go_on(&self) -> Result<(), SwapError> {
        self.limits().go_on()
    }

    /// What decides that.
    pub(crate) fn limits(&self) -> Limits<'a> {
        Limits {
            context: self.context,
            request: self.request,
            started: self.started,
            suspended: self.pause.as_ref().map(Ledger::began),
        }
    }

    /// A part of the pause has ended, if there is one.
    pub(crate) fn part(&mut self, part: &'static str) {
        if let Some(pause) = &mut self.pause {
            pause.end(part);
        }
    }

    /// Have both agents' answers waited for as long as [`Job::go_on`] agrees.
    pub(crate) fn limit(&mut self) {
        let patience = self.limits().patience();
        self.exec.from.patience = patience.clone();
        self.exec.to.patience = patience;
    }

    /// The guest's number at the destination.
    pub(crate) fn there(&self) -> Result<u32, SwapError> {
        let there = self.work.record.to.guest;
        there.ok_or_else(|| refused("the guest's number is not known"))
    }
}
