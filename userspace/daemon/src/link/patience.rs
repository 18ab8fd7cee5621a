// SPDX-License-Identifier: GPL-2.0-only

//! How long an answer is waited for.

use super::LinkError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An agent that is there answers within this time, if only that there is nothing yet. To
/// drop it earlier would take longer than to wait.
const GRACE: Duration = Duration::from_secs(5);

/// When nobody wants an answer any more. One that was asked for before is waited for 5 seconds all
/// the same; nothing is asked from then on.
#[derive(Clone, Debug, Default)]
pub struct Patience {
    /// Then,
    pub until: Option<Instant>,
    /// or when this is set.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl Patience {
    /// How long to wait for what may take this long, of somebody who is there.
    pub(crate) fn limit(&self, limit: Duration) -> Duration {
        self.until.map_or(limit, |until| {
            limit.min(until.saturating_duration_since(Instant::now()).max(GRACE))
        })
    }

    /// The same of what may be waited for in vain.
    pub(crate) fn at_most(&self, limit: Duration) -> Duration {
        self.until.map_or(limit, |until| {
            limit.min(until.saturating_duration_since(Instant::now()))
        })
    }

    /// Whether nobody waits any more.
    pub(crate) fn is_over(&self) -> bool {
        self.is_cancelled() || self.until.is_some_and(|until| Instant::now() >= until)
    }

    /// Whether nothing is asked any more. What can be cancelled ends with the daemon as well.
    pub(super) fn ends(&self, stopping: bool) -> bool {
        self.is_over() || stopping && self.cancel.is_some()
    }

    pub(super) fn is_cancelled(&self) -> bool {
        let set = |c: &Arc<AtomicBool>| c.load(Ordering::Relaxed);
        self.cancel.as_ref().is_some_and(set)
    }
}

/// When a request must be over, whatever the agent does meanwhile: take it slowly, answer
/// in many small parts, or say nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    at: Instant,
    /// The time that there was, for a person.
    pub(super) limit: Duration,
}

impl Deadline {
    pub(super) fn after(limit: Duration) -> Self {
        let at = Instant::now() + limit;
        Self { at, limit }
    }

    /// Nobody wants the answer any more.
    pub(super) fn cut(&mut self) {
        let grace = Self::after(GRACE);
        if grace.at < self.at {
            *self = grace;
        }
    }

    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.at
    }

    pub(super) fn check(&self) -> Result<(), LinkError> {
        if self.is_over() {
            return Err(LinkError::Timeout(self.limit));
        }
        Ok(())
    }
}
