// SPDX-License-Identifier: GPL-2.0-only

//! Small files that outlive the daemon.

#[allow(
    unused_imports,
    reason = "fail_point!() is nothing in a daemon that is not tested"
)]
use crate::journal::injected;
use fail::fail_point;
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
    fail_point!("durable-create", |e| Err(injected(e)));
    let mut out = fs::File::create(&new)?;
    fail_point!("durable-data", |e| Err(injected(e)));
    out.write_all(&serde_json::to_vec(what)?)?;
    out.sync_all()?;
    fail_point!("durable-rename", |e| Err(injected(e)));
    fs::rename(&new, file)?;
    fail_point!("durable-sync", |e| Err(injected(e)));
    match file.parent() {
        Some(dir) => fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}
