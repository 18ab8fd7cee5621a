// SPDX-License-Identifier: GPL-2.0-only

//! Small files that outlive the daemon.

use serde::de::DeserializeOwned;
use serde::Serialize;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::Path;

/// What is in a file; nothing if there is none.
pub(crate) fn read<T: DeserializeOwned + Default>(file: &Path) -> io::Result<T> {
    match fs::read(file) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(T::default()),
        Err(e) => Err(e),
    }
}

/// Put this there, or leave what is.
pub(crate) fn write(file: &Path, what: &impl Serialize) -> io::Result<()> {
    let new = file.with_extension("new");
    let mut out = fs::File::create(&new)?;
    out.write_all(&serde_json::to_vec(what)?)?;
    out.sync_all()?;
    fs::rename(&new, file)?;
    match file.parent() {
        Some(dir) => fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}
