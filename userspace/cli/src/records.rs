// SPDX-License-Identifier: GPL-2.0-only

//! Half moves that the driver keeps: `vmbeam records`, `recover` and `forget`.

use crate::exit;
use schemars::JsonSchema;
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;
use vmbeam_uapi::sys::names;
use vmbeam_uapi::{Device, Errno, Error, Record, Session};

/// The exit status of something that was asked of the driver itself.
pub(crate) fn driver(result: Result<ExitCode, Error>) -> ExitCode {
    result.unwrap_or_else(|e| {
        eprintln!("vmbeam: {e}");
        ExitCode::from(exit::FAILED)
    })
}

/// A record as it is printed.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Record")]
pub(crate) struct Shown {
    /// Number of the record.
    id: u64,
    /// The two host VMs, by their domids.
    domains: [u32; 2],
    /// How pages were moving: swap, keep (frames alone), or to-b and to-a (relocation).
    mode: &'static str,
    /// What the driver was doing.
    state: &'static str,
    /// Pages that were to change places.
    pages: u64,
    /// Those that have, and are not back.
    pages_swapped: u64,
    /// Why they are not.
    reason: String,
}

impl From<&Record> for Shown {
    fn from(record: &Record) -> Self {
        Self {
            id: record.id,
            domains: [record.domid_a, record.domid_b],
            mode: names::mode(record.mode),
            state: names::state(record.state),
            pages: record.pairs,
            pages_swapped: record.swapped,
            reason: Errno::from_raw(record.error.wrapping_neg()).to_string(),
        }
    }
}

/// Print the records; nothing, or an empty list, if there are none.
pub(crate) fn list(device: &Path, json: bool) -> Result<ExitCode, Error> {
    let records = Device::open(device)?.records()?;
    let shown: Vec<_> = records.iter().map(Shown::from).collect();
    if json {
        println!("{}", serde_json::json!(shown));
        return Ok(ExitCode::SUCCESS);
    }
    for r in &shown {
        let [a, b] = r.domains;
        println!(
            "half a move: record {}, domains {a} and {b}, {}: {} of {} pages are still swapped: {}",
            r.id, r.mode, r.pages_swapped, r.pages, r.reason
        );
        println!(
            "  put back: `vmbeam recover {0}`; if a domain is gone: `vmbeam forget {0}`",
            r.id
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Put the pages of a record back.
pub(crate) fn recover(device: &Path, id: u64) -> Result<ExitCode, Error> {
    let mut session = adopt(device, id)?;
    loop {
        match session.rollback() {
            Ok(step) if step.cursor == 0 => break,
            Ok(_) => {}
            Err(e) if e.errno == Errno::EINTR => {}
            Err(e) => {
                let left = session.status()?.swapped;
                eprintln!("vmbeam: {left} pages remain swapped, under a new record: {e}");
                return Ok(ExitCode::from(exit::FAILED));
            }
        }
    }
    println!("everything was put back");
    Ok(ExitCode::SUCCESS)
}

/// Drop a record.
pub(crate) fn forget(device: &Path, id: u64) -> Result<ExitCode, Error> {
    adopt(device, id)?.abandon()?;
    Ok(ExitCode::SUCCESS)
}

/// Take the session of a record over.
fn adopt(device: &Path, id: u64) -> Result<Session, Error> {
    let device = Device::open(device)?;
    let records = device.records()?;
    // One that there is not is for the driver to refuse.
    let named = Record {
        id,
        ..Default::default()
    };
    let record = records.iter().find(|r| r.id == id).unwrap_or(&named);
    device.adopt(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_how_pages_were_moving() {
        let record = Record::default();
        let to_b = Record {
            mode: vmbeam_uapi::sys::Mode::ToB.flags(),
            ..record
        };
        let shown = [record, to_b].each_ref().map(Shown::from);
        assert_eq!(shown.each_ref().map(|s| s.mode), ["swap", "to-b"]);
    }
}
