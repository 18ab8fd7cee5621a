// SPDX-License-Identifier: GPL-2.0-only

//! The small file with what must be known to go on, and nothing else tells.

use indicatif::HumanDuration;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};
use xxhash_rust::xxh3::xxh3_64;

/// Differs after each restart of the host.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

pub(crate) fn boot_id() -> Result<String, String> {
    fs::read_to_string(BOOT_ID)
        .map(|id| id.trim().to_owned())
        .map_err(|e| format!("{BOOT_ID}: {e}"))
}

/// In seconds since 1970.
pub(crate) fn now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |n| n.as_secs())
}

/// How long that is ago, for a person.
pub(crate) fn ago(begun: u64) -> String {
    let begun = SystemTime::UNIX_EPOCH + Duration::from_secs(begun);
    HumanDuration(begun.elapsed().unwrap_or_default()).to_string()
}

/// Tells one configuration from another.
pub(crate) fn digest(config: &Path) -> Result<u64, String> {
    fs::read(config)
        .map(|text| xxh3_64(&text))
        .map_err(|e| format!("{}: {e}", config.display()))
}

/// What is in the file, if there is one.
pub(crate) fn read<T: DeserializeOwned>(file: &Path, known: u32) -> Result<Option<T>, String> {
    /// What every version of the format has.
    #[derive(Deserialize)]
    struct Any {
        version: u32,
    }
    let text = match fs::read(file) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(format!("{}: {e}", file.display())),
    };
    if let Ok(Any { version }) = serde_json::from_slice(&text) {
        if version != known {
            return Err(format!(
                "{}: version {version} of the format, this vmbeam knows version {known}; use the vmbeam that wrote it",
                file.display()
            ));
        }
    }
    serde_json::from_slice(&text).map(Some).map_err(|e| {
        format!(
            "{}: {e}; move the guests back by `vmbeam migrate`, and remove the file",
            file.display()
        )
    })
}

fn cannot_write(file: &Path, e: &std::io::Error) -> String {
    format!("cannot write {}: {e}; see --state-dir", file.display())
}

/// Put this into the file, whole or not at all.
pub(crate) fn write(file: &Path, text: &[u8]) -> Result<(), String> {
    let write = || {
        let dir = file.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(dir)?;
        let new = file.with_extension("new");
        let mut out = File::create(&new)?;
        out.write_all(text)?;
        out.sync_all()?;
        fs::rename(&new, file)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|e| cannot_write(file, &e))
}

/// The same of what is to be read again.
pub(crate) fn note<T: Serialize>(file: &Path, what: &T) -> Result<(), String> {
    let text = serde_json::to_vec_pretty(what).map_err(|e| format!("{}: {e}", file.display()))?;
    write(file, &text)
}

/// What only one program may do at a time, until it drops this or ends; none if another one does.
pub(crate) fn turn(dir: &Path, name: &str) -> Result<Option<Flock<File>>, String> {
    let path = dir.join(format!("{name}.lock"));
    let failed = |e: std::io::Error| cannot_write(&path, &e);
    fs::create_dir_all(dir).map_err(failed)?;
    let file = File::create(&path).map_err(failed)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, e)) => Err(failed(e.into())),
    }
}
