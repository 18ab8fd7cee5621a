// SPDX-License-Identifier: GPL-2.0-only

//! What the next daemon has to know of an evacuation, beside the records of migrations.

use crate::boot;
use crate::durable;
#[allow(
    unused_imports,
    reason = "fail_point!() is nothing in a daemon that is not tested"
)]
use crate::journal::injected;
use crate::journal::Journal;
use fail::fail_point;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tracing::warn;
use vmbeam_control_protocol::{EvacuateReport, EvacuateRequest, Failure};

/// Version of the files' format.
const VERSION: u32 = 1;
/// How the files are called, around their number.
const NAME: (&str, &str) = ("evacuation-", ".json");

/// How an evacuation came to its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Ended {
    /// The report says it.
    Done,
    /// As a whole, without a report.
    Failed { failure: Failure, message: String },
}

/// An evacuation.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    version: u32,
    /// Number of the job.
    pub(crate) id: u64,
    /// The host's boot id.
    pub(crate) boot: String,
    /// When it began, in seconds since 1970.
    begun: u64,
    pub(crate) request: EvacuateRequest,
    /// The report has the guests.
    pub(crate) planned: bool,
    /// Somebody wants it to stop.
    pub(crate) stopping: bool,
    /// What has been done.
    pub(crate) report: EvacuateReport,
    /// It is only kept to be asked for.
    pub(crate) ended: Option<Ended>,
}

fn file(journal: &Journal, id: u64) -> PathBuf {
    journal.dir().join(format!("{}{id}{}", NAME.0, NAME.1))
}

fn read(file: &Path) -> Result<Record, String> {
    let text = fs::read(file).map_err(|e| e.to_string())?;
    let record: Record = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    match record.version {
        VERSION => Ok(record),
        other => Err(format!(
            "version {other} of the format; this vmbeamd knows version {VERSION}"
        )),
    }
}

fn removed(file: &Path) -> io::Result<()> {
    fail_point!("evacuation-remove", |e| Err(injected(e)));
    fs::remove_file(file)
}

impl Record {
    pub(crate) fn new(id: u64, request: EvacuateRequest) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self {
            version: VERSION,
            id,
            boot: boot::id(),
            begun: now.map_or(0, |n| n.as_secs()),
            request,
            planned: false,
            stopping: false,
            report: EvacuateReport::default(),
            ended: None,
        }
    }

    /// Seconds since it began, as far as the clock tells.
    pub(crate) fn begun_ago(&self) -> f64 {
        let begun = SystemTime::UNIX_EPOCH + Duration::from_secs(self.begun);
        begun.elapsed().unwrap_or_default().as_secs_f64()
    }

    /// Those that there are, the oldest first.
    pub(crate) fn all(journal: &Journal) -> Vec<Self> {
        let entries = fs::read_dir(journal.dir()).into_iter().flatten().flatten();
        let is_one = |file: &PathBuf| {
            let name = file.file_name().and_then(|n| n.to_str());
            name.is_some_and(|n| n.starts_with(NAME.0) && n.ends_with(NAME.1))
        };
        let files = entries.map(|e| e.path()).filter(is_one);
        let mut records: Vec<_> = files
            .filter_map(|file| {
                read(&file)
                    .map_err(|e| {
                        warn!(
                            "an evacuation's record cannot be used: {}: {e}",
                            file.display()
                        )
                    })
                    .ok()
            })
            .collect();
        records.sort_by_key(|r| r.id);
        records
    }

    /// A dry run leaves nothing.
    pub(crate) fn write(&self, journal: &Journal) -> io::Result<()> {
        if self.request.dry_run {
            return Ok(());
        }
        durable::write(&file(journal, self.id), self)
    }

    pub(crate) fn remove(journal: &Journal, id: u64) -> Result<(), String> {
        let file = file(journal, id);
        match removed(&file) {
            // A dry run has none. What cannot be written says that before it looks.
            Err(e) if !matches!(file.try_exists(), Ok(false)) => Err(format!(
                "cannot remove the record of an evacuation, {}: {e}",
                file.display()
            )),
            _ => Ok(()),
        }
    }
}
