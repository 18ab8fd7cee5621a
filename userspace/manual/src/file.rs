// SPDX-License-Identifier: GPL-2.0-only

//! Writing what was made.

use anyhow::{Context, Result};
use std::path::Path;

/// Write a file into a directory, which need not be there.
pub(crate) fn write(directory: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    std::fs::create_dir_all(directory)
        .and_then(|()| std::fs::write(directory.join(name), bytes))
        .with_context(|| format!("cannot write {name} to {}", directory.display()))
}
