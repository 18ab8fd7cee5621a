// SPDX-License-Identifier: GPL-2.0-only

//! What the next daemon has to know of an upkeep. How far it is, its own file says, which the
//! process that does it goes on with.

use crate::boot;
use crate::durable;
use crate::journal::Journal;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use tracing::warn;
use vmbeam_control_protocol::{UpkeepReport, UpkeepRequest};

/// Version of the files' format.
const VERSION: u32 = 1;
/// How the files are called, around their number.
const NAME: (&str, &str) = ("upkeep-", ".json");

/// How an upkeep came to its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Ended {
    /// The process says it.
    Reported(UpkeepReport),
    /// There is no such process any more.
    Lost(String),
}

/// An upkeep.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    version: u32,
    /// Number of the job.
    pub(crate) id: u64,
    /// The host's boot id.
    pub(crate) boot: String,
    pub(crate) request: UpkeepRequest,
    /// How often somebody wanted it to stop.
    pub(crate) stops: u32,
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

impl Record {
    pub(crate) fn new(id: u64, request: UpkeepRequest) -> Self {
        Self {
            version: VERSION,
            id,
            boot: boot::id(),
            request,
            stops: 0,
            ended: None,
        }
    }

    /// Those that there are, the oldest first.
    pub(crate) fn all(journal: &Journal) -> Vec<Self> {
        let entries = fs::read_dir(journal.dir()).into_iter().flatten().flatten();
        let is_one = |file: &PathBuf| {
            let name = file.file_name().and_then(|n| n.to_str());
            let number = name.and_then(|n| n.strip_prefix(NAME.0)?.strip_suffix(NAME.1));
            number.is_some_and(|n| n.parse::<u64>().is_ok())
        };
        let files = entries.map(|e| e.path()).filter(is_one);
        let mut records: Vec<_> = files
            .filter_map(|file| {
                read(&file)
                    .map_err(|e| {
                        warn!("an upkeep's record cannot be used: {}: {e}", file.display());
                    })
                    .ok()
            })
            .collect();
        records.sort_by_key(|r| r.id);
        records
    }

    pub(crate) fn write(&self, journal: &Journal) -> io::Result<()> {
        durable::write(&file(journal, self.id), self)
    }

    pub(crate) fn remove(journal: &Journal, id: u64) {
        match fs::remove_file(file(journal, id)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                warn!("cannot remove the record of an upkeep that has ended: {e}");
            }
            _ => {}
        }
    }
}
