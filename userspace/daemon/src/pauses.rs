// SPDX-License-Identifier: GPL-2.0-only

//! How long guests stood still, for those that are to move next: a move that would take longer
//! than may be is not begun.

use crate::exchange::SwapError;
use crate::migrate::Job;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use vmbeam_control_protocol::{Failure, MigrateReport, Phase};

/// What a GiB more costs in the pause (`bench pause`).
const PER_GIB: Duration = Duration::from_millis(4);
/// Pages of a GiB.
const GIB: u64 = 1 << 18;

/// The last pause between each two host VMs since the daemon was started.
#[derive(Debug, Default)]
pub(crate) struct Pauses(Mutex<HashMap<[String; 2], Pause>>);

#[derive(Clone, Copy, Debug)]
struct Pause {
    pages: u64,
    took: Duration,
    staged: bool,
}

impl Pauses {
    /// A guest has moved.
    pub(crate) fn note(&self, report: &MigrateReport) {
        let pause = Pause {
            pages: report.pages_swapped + report.pages_copied + report.pages_sent,
            took: Duration::from_secs_f64(report.seconds.downtime),
            staged: report.unstaged.is_none(),
        };
        let key = [report.from.host_vm.clone(), report.to.clone()];
        let mut pauses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pauses.insert(key, pause);
    }

    /// How long one of so many pages will stand still, if the last one between these two, in
    /// whichever direction, moved in the same way.
    fn expected(&self, from: &str, to: &str, pages: u64, staged: bool) -> Option<Duration> {
        let pauses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |from: &str, to: &str| pauses.get(&[from.to_owned(), to.to_owned()]).copied();
        let last = of(from, to).or_else(|| of(to, from))?;
        let more = pages.saturating_sub(last.pages) as f64 / GIB as f64;
        (last.staged == staged).then(|| last.took + PER_GIB.mul_f64(more))
    }
}

impl Job<'_> {
    /// Say how long the guest will stand still, if that is known, and refuse what is too long.
    pub(crate) fn affordable(&self) -> Result<(), SwapError> {
        let (from, to) = (&self.request.from.host_vm, &self.request.to);
        let staged = self.report.unstaged.is_none();
        let pauses = self.context.pauses;
        let Some(expected) = pauses.expected(from, to, self.guest.pages, staged) else {
            return Ok(());
        };
        // Some seconds.
        let expected = expected.as_millis() as u64;
        (self.context.progress)(Phase::Expected, expected, 0);
        match self.request.max_downtime_ms {
            Some(limit) if expected > limit.into() => Err(SwapError {
                failure: Failure::RolledBack,
                message: format!(
                    "the guest would be suspended for about {expected} ms, more than the {limit} ms of --max-downtime"
                ),
            }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmbeam_control_protocol::GuestRef;

    #[test]
    fn what_is_expected_is_what_was() {
        let pauses = Pauses::default();
        let expected = |pages, staged| pauses.expected("A", "B", pages, staged);
        assert_eq!(expected(GIB, true), None);
        let mut report = MigrateReport {
            from: GuestRef {
                host_vm: "B".into(),
                guest: "g".into(),
            },
            to: "A".into(),
            pages_swapped: GIB,
            ..MigrateReport::default()
        };
        report.seconds.downtime = 2.0;
        pauses.note(&report);
        assert_eq!(expected(GIB, true), Some(Duration::from_secs(2)));
        assert_eq!(expected(3 * GIB, true), Some(Duration::from_millis(2008)));
        assert_eq!(expected(GIB / 2, true), Some(Duration::from_secs(2)));
        assert_eq!(expected(GIB, false), None);
        // The same direction counts more.
        report.from.host_vm = "A".into();
        report.to = "B".into();
        report.seconds.downtime = 1.0;
        pauses.note(&report);
        assert_eq!(expected(GIB, true), Some(Duration::from_secs(1)));
    }
}
