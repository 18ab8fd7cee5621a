// SPDX-License-Identifier: GPL-2.0-only

//! How long guests stood still, for those that are to move next: a move that would take longer
//! than may be is not begun. That outlives the daemon, since the first move after its start is as
//! long as any.

use crate::durable;
use crate::exchange::{Progress, SwapError};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tracing::warn;
use vmbeam_control_protocol::{Failure, MigrateReport, MigrateRequest, Phase};

/// What a GiB more costs in the pause (`bench pause`).
const PER_GIB: Duration = Duration::from_millis(4);
/// Pages of a GiB.
const GIB: u64 = 1 << 18;

/// The file, in the directory of the journal.
const FILE: &str = "pauses.json";

/// The last pause between each two host VMs.
#[derive(Debug)]
pub(crate) struct Pauses {
    file: PathBuf,
    last: Mutex<Vec<Pause>>,
}

/// One of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Pause {
    /// Host VMs.
    from: String,
    to: String,
    /// Pages of the guest.
    pages: u64,
    /// Milliseconds.
    took_ms: u64,
    /// Its copy was made before.
    staged: bool,
}

impl Pauses {
    /// What the last daemon knew. Not to know it is no reason to move nothing.
    pub(crate) fn load(dir: &Path) -> Self {
        let file = dir.join(FILE);
        let last = durable::read(&file).unwrap_or_else(|e| {
            warn!(
                "{}: {e}; how long guests stood still is not known until one has moved",
                file.display()
            );
            Vec::new()
        });
        let last = Mutex::new(last);
        Self { file, last }
    }

    /// A guest has moved.
    pub(crate) fn note(&self, report: &MigrateReport) {
        let pause = Pause {
            from: report.from.host_vm.clone(),
            to: report.to.clone(),
            pages: report.pages_swapped + report.pages_copied + report.pages_sent,
            // Some seconds. Who wants digests waits for them, and the next one may not want any.
            took_ms: ((report.seconds.downtime - report.seconds.digests) * 1e3).ceil() as u64,
            staged: report.unstaged.is_none(),
        };
        self.change(|last| {
            last.retain(|p| (&p.from, &p.to, p.staged) != (&pause.from, &pause.to, pause.staged));
            last.push(pause);
        });
    }

    /// A move is not begun because of one of these two. That was one pause, which may have had a
    /// reason of its own: the next one is tried.
    fn forget(&self, from: &str, to: &str) {
        self.change(|last| {
            last.retain(|p| ![(from, to), (to, from)].contains(&(&*p.from, &*p.to)));
        });
    }

    fn change(&self, how: impl FnOnce(&mut Vec<Pause>)) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        how(&mut last);
        if let Err(e) = durable::write(&self.file, &*last) {
            warn!(
                "cannot note how long a guest stood still in {}: {e}",
                self.file.display()
            );
        }
    }

    /// How long one of so many pages will stand still, if the last one between these two, in
    /// whichever direction, moved in the same way.
    fn expected(&self, from: &str, to: &str, pages: u64, staged: bool) -> Option<Duration> {
        let pauses = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |from: &str, to: &str| {
            let mut all = pauses.iter();
            all.find(|p| p.from == from && p.to == to && p.staged == staged)
        };
        let last = of(from, to).or_else(|| of(to, from))?;
        let more = pages.saturating_sub(last.pages) as f64 / GIB as f64;
        let took = Duration::from_millis(last.took_ms);
        Some(took + PER_GIB.mul_f64(more))
    }

    /// Say how long the guest will stand still, if that is known, and refuse what is too long.
    /// It has so many pages.
    pub(crate) fn affordable(
        &self,
        request: &MigrateRequest,
        pages: u64,
        staged: bool,
        progress: Progress<'_>,
    ) -> Result<(), SwapError> {
        let (from, to) = (&request.from.host_vm, &request.to);
        let Some(expected) = self.expected(from, to, pages, staged) else {
            return Ok(());
        };
        // Some seconds.
        let expected = expected.as_millis() as u64;
        progress(Phase::Expected, expected, 0);
        match request.max_downtime_ms {
            Some(limit) if expected > limit.into() => {
                self.forget(from, to);
                Err(SwapError {
                    failure: Failure::RolledBack,
                    message: format!(
                        "the guest would be suspended for about {expected} ms, more than the {limit} ms of --max-downtime; if it is asked for again, that is tried"
                    ),
                })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmbeam_control_protocol::GuestRef;

    /// A GiB stood still for two seconds on its way from B to A.
    fn moved() -> MigrateReport {
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
        report
    }

    #[test]
    fn what_is_expected_is_what_was() {
        let dir = tempfile::tempdir().unwrap();
        let pauses = Pauses::load(dir.path());
        let expected = |pages, staged| pauses.expected("A", "B", pages, staged);
        assert_eq!(expected(GIB, true), None);
        let mut report = moved();
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
        // Neither digests nor a move of another kind say anything of it.
        report.seconds.downtime = 61.0;
        report.seconds.digests = 60.0;
        pauses.note(&report);
        report.unstaged = Some(String::new());
        report.seconds.digests = 0.0;
        pauses.note(&report);
        assert_eq!(expected(GIB, true), Some(Duration::from_secs(1)));
        assert_eq!(expected(GIB, false), Some(Duration::from_secs(61)));
        // It refuses once.
        pauses.forget("B", "A");
        assert_eq!(expected(GIB, true), None);
    }

    #[test]
    fn what_the_last_daemon_knew_counts() {
        let dir = tempfile::tempdir().unwrap();
        let expected = || Pauses::load(dir.path()).expected("A", "B", GIB, true);
        Pauses::load(dir.path()).note(&moved());
        assert_eq!(expected(), Some(Duration::from_secs(2)));
        // One that cannot be read is as good as none, and is replaced.
        std::fs::write(dir.path().join(FILE), "[{").unwrap();
        assert_eq!(expected(), None);
        Pauses::load(dir.path()).note(&moved());
        assert_eq!(expected(), Some(Duration::from_secs(2)));
        // Nor does it matter if none can be written.
        let pauses = Pauses::load(&dir.path().join("none"));
        pauses.note(&moved());
        assert_eq!(
            pauses.expected("A", "B", GIB, true),
            Some(Duration::from_secs(2))
        );
    }
}
