// SPDX-License-Identifier: GPL-2.0-only

//! A record's file: a line for each step, of which the last one counts.

use super::{number, pairs, Record, NAME, VERSION};
use crate::join::JoinedRun;
use fail::fail_point;
use serde::Deserialize;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;
use vmbeam_agent_protocol::Digest;
use xxhash_rust::xxh3::xxh3_64;

/// Why the journal could not be changed.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct WriteError {
    /// The next daemon may find the new record, or the old one. Otherwise it finds the old one.
    pub perhaps: bool,
    /// What happened.
    error: io::Error,
}

pub(super) fn before(error: io::Error) -> WriteError {
    WriteError {
        perhaps: false,
        error,
    }
}

pub(super) fn behind(error: io::Error) -> WriteError {
    WriteError {
        perhaps: true,
        error,
    }
}

/// What a fail point is told: the number of an error. Only tests have fail points.
#[allow(
    dead_code,
    reason = "fail_point!() is nothing in a daemon that is not tested"
)]
pub(crate) fn injected(errno: Option<String>) -> io::Error {
    let number = errno.and_then(|e| e.parse().ok());
    io::Error::from_raw_os_error(number.unwrap_or(nix::libc::EIO))
}

/// A record as a line: with a checksum, since what was being written when the machine stopped
/// may be anything.
pub(super) fn line(record: &Record) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(record)?;
    line.extend(format!(" {:016x}\n", xxh3_64(&line)).into_bytes());
    Ok(line)
}

/// What is in a line, without its end and its checksum.
fn checked(line: &[u8]) -> Result<&[u8], String> {
    let (text, sum) = line.split_at(line.len().saturating_sub(17));
    if sum != format!(" {:016x}", xxh3_64(text)).as_bytes() {
        return Err("its checksum does not fit".into());
    }
    Ok(text)
}

/// The record of a line.
fn parse(line: &[u8]) -> Result<Record, String> {
    serde_json::from_slice(checked(line)?).map_err(|e| e.to_string())
}

/// What a file is about, which all of its lines say, whatever else is in them: those of another
/// version of the format as well.
#[derive(Debug, Default, Deserialize)]
pub struct About {
    /// Boot id of the host.
    #[serde(default)]
    pub boot: String,
    /// Name of the guest.
    pub guest: String,
    /// Source.
    pub from: End,
    /// Destination.
    pub to: End,
}

/// One of the two host VMs.
#[derive(Debug, Default, Deserialize)]
pub struct End {
    /// Its name.
    pub host_vm: String,
}

/// The same of a file that is of no use, if one of its lines is whole.
pub(super) fn about(file: &Path) -> Option<About> {
    let text = fs::read(file).ok()?;
    let mut whole = text.split(|b| *b == b'\n').filter_map(|l| checked(l).ok());
    whole.find_map(|line| serde_json::from_slice(line).ok())
}

/// What counts in a file, and where that ends. What follows the last line's end was never
/// complete.
pub(super) fn read(file: &Path) -> Result<(Record, u64), String> {
    let text = fs::read(file).map_err(|e| e.to_string())?;
    let Some(end) = text.iter().rposition(|b| *b == b'\n') else {
        return Err(format!(
            "it is of another version of the format; this vmbeamd knows version {VERSION}"
        ));
    };
    let last = text[..end].rsplit(|b| *b == b'\n').next();
    let record = parse(last.unwrap_or_default())?;
    if record.version != VERSION {
        return Err(format!(
            "version {} of the format; this vmbeamd knows version {VERSION}",
            record.version
        ));
    }
    if Some(record.id) != number(file, NAME.1) {
        return Err(format!("it holds the record of migration {}", record.id));
    }
    Ok((record, end as u64 + 1))
}

pub(super) fn rename(new: &Path, file: &Path) -> io::Result<()> {
    fail_point!("journal-rename", |e| Err(injected(e)));
    fs::rename(new, file)
}

/// That it is not there is as good.
pub(super) fn remove(file: &Path) -> io::Result<()> {
    fail_point!("journal-remove", |e| Err(injected(e)));
    match fs::remove_file(file) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Make a file durable, or a directory.
pub(super) fn sync(file: &File) -> io::Result<()> {
    fail_point!("journal-sync", |e| Err(injected(e)));
    file.sync_all()
}

/// Write a file, without being in anybody's way yet.
pub(super) fn prepare(new: &Path, line: &[u8]) -> io::Result<()> {
    fail_point!("journal-create", |e| Err(injected(e)));
    let mut out = File::create(new)?;
    out.write_all(line)?;
    fail_point!("journal-data", |e| Err(injected(e)));
    sync(&out)
}

/// Write the pairs of a migration that is not swapped yet.
pub(super) fn file_pairs(file: &Path, runs: &[JoinedRun]) -> io::Result<Digest> {
    fail_point!("journal-pairs", |e| Err(injected(e)));
    let out = File::create(file)?;
    let digest = pairs::encode(runs, &out)?;
    sync(&out)?;
    Ok(digest)
}

/// Add a line where the last one that counts ends.
pub(super) fn append(file: &Path, end: u64, line: &[u8]) -> Result<(), WriteError> {
    let open = || -> io::Result<File> {
        fail_point!("journal-create", |e| Err(injected(e)));
        let mut out = File::options().write(true).open(file)?;
        // One that failed.
        if out.metadata()?.len() > end {
            out.set_len(end)?;
        }
        out.seek(SeekFrom::Start(end))?;
        Ok(out)
    };
    let mut out = open().map_err(before)?;
    // A part of a line does not count.
    let mut add = || -> io::Result<()> {
        fail_point!("journal-data", |e| {
            out.write_all(&line[..line.len() / 2])?;
            Err(injected(e))
        });
        out.write_all(line)
    };
    add().map_err(before)?;
    sync(&out).map_err(behind)
}
