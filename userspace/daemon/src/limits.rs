// SPDX-License-Identifier: GPL-2.0-only

//! What a migration is given besides its host VMs, and when it is not to be gone on with.

use crate::driver::Driver;
use crate::exchange::{Progress, SwapError};
use crate::hooks::Hooks;
use crate::journal::Journal;
use crate::link::Patience;
use crate::pauses::Pauses;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmbeam_control_protocol::{Failure, MigrateRequest};

/// What a migration needs besides the host VMs.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    /// The driver.
    pub driver: &'a dyn Driver,
    /// The journal.
    pub journal: &'a Journal,
    /// Told how far it is.
    pub progress: Progress<'a>,
    /// Somebody wants it to end.
    pub cancel: &'a Arc<AtomicBool>,
    /// The daemon is to stop.
    pub stop: &'a AtomicBool,
    /// When it was asked for.
    pub started: Instant,
    /// How long others stood still.
    pub pauses: &'a Pauses,
    /// What is run before.
    pub hooks: &'a Hooks,
    /// Whether host VMs are told that they may start guests at boot.
    pub autostart: bool,
    /// Its number as a job.
    pub job: u64,
}

pub(crate) fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

/// When a migration is not to be gone on with.
#[derive(Clone, Copy)]
pub(crate) struct Limits<'a> {
    pub(crate) context: Context<'a>,
    pub(crate) request: &'a MigrateRequest,
    pub(crate) started: Instant,
    pub(crate) suspended: Option<Instant>,
}

impl Limits<'_> {
    /// Whether to go on.
    pub(crate) fn go_on(&self) -> Result<(), SwapError> {
        let stop = |message: String| {
            Err(SwapError {
                failure: Failure::RolledBack,
                message,
            })
        };
        if self.context.cancel.load(Ordering::Relaxed) {
            return stop("it was cancelled".into());
        }
        if self.context.stop.load(Ordering::Relaxed) {
            return stop("vmbeamd is stopping".into());
        }
        let elapsed = self.started.elapsed();
        match self.request.timeout_seconds {
            Some(limit) if elapsed > Duration::from_secs(limit.into()) => {
                return stop(format!("it was not done after {limit} s, the --timeout"));
            }
            _ => {}
        }
        let down = self.suspended.map_or(Duration::ZERO, |s| s.elapsed());
        match self.request.max_downtime_ms {
            Some(limit) if down > Duration::from_millis(limit.into()) => stop(format!(
                "the guest was suspended for {limit} ms, the --max-downtime"
            )),
            _ => Ok(()),
        }
    }

    /// Agents' answers are waited for as long as [`Limits::go_on`] agrees.
    pub(crate) fn patience(&self) -> Patience {
        let seconds = self.request.timeout_seconds;
        let ms = self.request.max_downtime_ms.zip(self.suspended);
        let limits = [
            seconds.map(|s| self.started + Duration::from_secs(s.into())),
            ms.map(|(ms, suspended)| suspended + Duration::from_millis(ms.into())),
        ];
        Patience {
            until: limits.into_iter().flatten().min(),
            cancel: Some(self.context.cancel.clone()),
        }
    }
}
