// SPDX-License-Identifier: GPL-2.0-only

//! Which guests are watched, for an agent that comes after this one: a file for each, empty, named
//! by the guest's number and UUID, of the time since when it has been.

use super::Id;
use crate::error::HvError;
use std::fs;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tracing::warn;
use vmbeam_agent_protocol::{AgentErrorCode, Uuid};

/// Gone with the next boot, as the guests are.
const NOTES: &str = "/run/vmbeam-agent/watched";

/// The directory of them.
#[derive(Clone, Debug)]
pub(super) struct Notes(PathBuf);

fn failed(path: &Path, e: &Error) -> HvError {
    HvError {
        code: AgentErrorCode::Toolstack,
        message: format!("{}: {e}", path.display()),
    }
}

/// The guest that a note is about.
fn guest_of(name: &str) -> Option<Id> {
    let (number, uuid) = name.split_once('-')?;
    let uuid = Uuid::try_parse(uuid).ok()?;
    Some((number.parse().ok()?, uuid.into_bytes()))
}

impl Notes {
    /// Those of this system.
    pub(super) fn system() -> Self {
        Self(NOTES.into())
    }

    #[cfg(test)]
    pub(super) fn at(dir: PathBuf) -> Self {
        Self(dir)
    }

    /// This guest has been watched for so long.
    pub(super) fn note(&self, (number, uuid): Id, since: Duration) -> Result<(), HvError> {
        let path = self.0.join(format!("{number}-{}", Uuid::from_bytes(uuid)));
        let noted = || {
            fs::create_dir_all(&self.0)?;
            let begun = SystemTime::now() - since;
            fs::File::create(&path)?.set_modified(begun)
        };
        noted().map_err(|e| failed(&path, &e))
    }

    /// Whatever has this number is not watched any more.
    pub(super) fn forget(&self, number: u32) -> Result<(), HvError> {
        for (path, guest) in self.paths()? {
            if guest.0 == number {
                fs::remove_file(&path).map_err(|e| failed(&path, &e))?;
            }
        }
        Ok(())
    }

    fn paths(&self) -> Result<Vec<(PathBuf, Id)>, HvError> {
        let entries = match fs::read_dir(&self.0) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|e| failed(&self.0, &e))?,
        };
        let mut paths = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| failed(&self.0, &e))?;
            let guest = entry.file_name().to_str().and_then(guest_of);
            paths.extend(guest.map(|guest| (entry.path(), guest)));
        }
        Ok(paths)
    }

    /// All guests that are watched, for at most so long, and how much of that is left of each.
    pub(super) fn all(&self, most: Duration) -> Vec<(Id, Duration)> {
        let paths = self.paths().unwrap_or_else(|e| {
            warn!("which guests the agent before this one watched is not known: {e}");
            Vec::new()
        });
        let left = |(path, guest): (PathBuf, Id)| {
            let begun = fs::metadata(path).and_then(|m| m.modified()).ok()?;
            // Of one that was set back meanwhile the clock says nothing.
            let since = begun.elapsed().unwrap_or_default();
            Some((guest, most.checked_sub(since).filter(|l| !l.is_zero())?))
        };
        paths.into_iter().filter_map(left).collect()
    }
}
