// SPDX-License-Identifier: GPL-2.0-only

//! Host VMs that somebody works on: nothing is started in them when they boot, and no guest
//! arrives. That outlives the daemon.

use crate::durable;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The file, in the directory of the journal.
const FILE: &str = "maintenance.json";

/// Their names.
#[derive(Debug)]
pub(crate) struct Maintenance {
    file: PathBuf,
    names: Mutex<BTreeSet<String>>,
}

impl Maintenance {
    /// What the last daemon knew. To know nothing would be to start guests.
    pub(crate) fn load(dir: &Path) -> io::Result<Self> {
        let file = dir.join(FILE);
        let names = durable::read(&file).map_err(|e| {
            let why = format!(
                "{}: {e}; mend it, or remove it if no host VM is in maintenance",
                file.display()
            );
            io::Error::other(why)
        })?;
        let names = Mutex::new(names);
        Ok(Self { file, names })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn has(&self, host_vm: &str) -> bool {
        self.lock().contains(host_vm)
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.lock().iter().cloned().collect()
    }

    /// It is so when it is durable.
    pub(crate) fn set(&self, host_vm: &str, on: bool) -> io::Result<()> {
        let mut names = self.lock();
        let mut changed = names.clone();
        match on {
            true => changed.insert(host_vm.into()),
            false => changed.remove(host_vm),
        };
        durable::write(&self.file, &changed)?;
        *names = changed;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn maintenance_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let load = || Maintenance::load(dir.path());
        let first = load().unwrap();
        assert!(first.names().is_empty());
        for name in ["B", "A", "A"] {
            first.set(name, true).unwrap();
        }
        assert_eq!(load().unwrap().names(), ["A", "B"]);
        first.set("B", false).unwrap();
        let next = load().unwrap();
        assert!(next.has("A") && !next.has("B"));
        // What cannot be read is not nothing.
        fs::write(dir.path().join(FILE), "[\"A\"").unwrap();
        let e = load().unwrap_err().to_string();
        assert!(
            e.contains("maintenance.json") && e.contains("mend it"),
            "{e}"
        );
        // What could not be written is not so.
        fs::remove_dir_all(dir.path()).unwrap();
        assert!(next.set("A", false).is_err());
        assert!(next.has("A"));
    }
}
