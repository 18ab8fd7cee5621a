// SPDX-License-Identifier: GPL-2.0-only

//! Numbers of jobs. None is given twice, so that whoever comes back to a job after the daemon
//! was started again does not find another one.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use tracing::warn;

/// The file that has the last one.
const NAME: &str = "last-job";

/// Gives numbers.
#[derive(Debug)]
pub(crate) struct Numbers {
    file: PathBuf,
    last: AtomicU64,
}

impl Numbers {
    pub(crate) fn open(dir: &Path) -> Self {
        let file = dir.join(NAME);
        let last = fs::read_to_string(&file).ok();
        let last = last.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        Self {
            file,
            last: AtomicU64::new(last),
        }
    }

    /// The one that was given last.
    pub(crate) fn last(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }

    /// This one is taken.
    pub(crate) fn at_least(&self, number: u64) {
        self.last.fetch_max(number, Ordering::Relaxed);
    }

    /// The next one. Under the lock of the table of jobs, so the file never goes back. It is
    /// for the next daemon, not for the next boot, of which no job is left: so it is not made
    /// durable.
    pub(crate) fn next(&self) -> u64 {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let new = self.file.with_extension("new");
        let written =
            fs::write(&new, number.to_string()).and_then(|()| fs::rename(&new, &self.file));
        if let Err(e) = written {
            warn!("the next vmbeamd may give number {number} to another job: {e}");
        }
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_is_given_twice() {
        let dir = tempfile::tempdir().unwrap();
        let numbers = Numbers::open(dir.path());
        assert_eq!((numbers.next(), numbers.next()), (1, 2));
        let again = Numbers::open(dir.path());
        again.at_least(1);
        assert_eq!(again.next(), 3);
        again.at_least(7);
        assert_eq!(again.next(), 8);
        fs::write(dir.path().join(NAME), "what").unwrap();
        assert_eq!(Numbers::open(dir.path()).next(), 1);
    }
}
