// SPDX-License-Identifier: GPL-2.0-only

//! What must be known about a migration after a crash: a small file for each,
//! written before every step that the next daemon has to know of.
//!
//! The directory is locked as long as it is open: two daemons would settle each other's
//! migrations.

use fail::fail_point;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use vmbeam_migration::Step;
use vmbeam_wire::message::{Digest, SwapRun};

/// Version of the files' format.
const VERSION: u32 = 1;
/// How the files are called, around their number.
const NAME: (&str, &str) = ("migration-", ".json");

/// A guest in a host VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Name of the host VM.
    pub host_vm: String,
    /// Domid that the host VM had: it has another when it was restarted, and
    /// then none of its guests is the one that is meant here.
    pub host_domid: u32,
    /// Domid of the guest in it, if it is known.
    pub guest: Option<u32>,
}

/// A page that tells where the memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// The page.
    pub pfn: u64,
    /// Its digest at the source before the swap.
    pub source: Digest,
    /// Its digest at the destination before the swap, which is another.
    pub destination: Digest,
}

/// How far a migration is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum State {
    /// The guest is being saved and restored; its memory is at the source.
    Stream,
    /// Its memory is at the source or at the destination.
    Swap {
        /// What is swapped, all of it or nothing.
        pairs: Vec<SwapRun>,
        /// Where to look. Empty if there is no difference.
        probes: Vec<Probe>,
        /// Pages that are to be copied besides.
        copies: bool,
        /// Some were swapped and could not be swapped back.
        #[serde(default)]
        torn: bool,
    },
    /// Behind the point of no return: to be let run at the destination.
    Resume,
    /// It runs at the destination; what is left at the source is to be destroyed.
    Destroy,
}

impl State {
    /// The same without what goes with it.
    pub fn step(&self) -> Step {
        match self {
            Self::Stream => Step::Stream,
            Self::Swap { copies, torn, .. } => Step::Swap {
                copies: *copies,
                torn: *torn,
            },
            Self::Resume => Step::Resume,
            Self::Destroy => Step::Destroy,
        }
    }
}

/// A migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    version: u32,
    /// Its number.
    pub id: u64,
    /// Name of the guest.
    pub guest: String,
    /// Source.
    pub from: Place,
    /// Destination.
    pub to: Place,
    /// How far it is.
    pub state: State,
}

/// The directory of the files.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    /// Open and locked until it is closed, so that nothing has to be opened to make it durable.
    lock: Mutex<Option<Flock<File>>>,
    next: AtomicU64,
}

/// A file of the journal that is of no use.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", file.display())]
pub struct Unreadable {
    /// Which.
    pub file: PathBuf,
    /// Why.
    pub why: String,
}

/// Why the journal could not be changed.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct WriteError {
    /// The next daemon may find the new record, or the old one. Otherwise it finds the old one.
    pub perhaps: bool,
    /// What happened.
    error: io::Error,
}

fn before(error: io::Error) -> WriteError {
    WriteError {
        perhaps: false,
        error,
    }
}

fn behind(error: io::Error) -> WriteError {
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
fn injected(errno: Option<String>) -> io::Error {
    let number = errno.and_then(|e| e.parse().ok());
    io::Error::from_raw_os_error(number.unwrap_or(nix::libc::EIO))
}

fn number(file: &Path) -> Option<u64> {
    file.file_name()?
        .to_str()?
        .strip_prefix(NAME.0)?
        .strip_suffix(NAME.1)?
        .parse()
        .ok()
}

fn read(file: &Path) -> Result<Record, String> {
    let text = fs::read(file).map_err(|e| e.to_string())?;
    let record: Record = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    if record.version != VERSION {
        return Err(format!(
            "version {} of the format; this vmbeamd knows version {VERSION}",
            record.version
        ));
    }
    if Some(record.id) != number(file) {
        return Err(format!("it holds the record of migration {}", record.id));
    }
    Ok(record)
}

impl Journal {
    /// Open the directory, make it if need be, and read what is in it.
    pub fn open(dir: &Path) -> io::Result<(Self, Vec<Record>, Vec<Unreadable>)> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
        let lock = Flock::lock(File::open(dir)?, FlockArg::LockExclusiveNonblock).map_err(
            |(_, e)| match e {
                nix::Error::EWOULDBLOCK => io::Error::other("another vmbeamd uses it"),
                e => e.into(),
            },
        )?;
        let mut records = Vec::new();
        let mut unreadable = Vec::new();
        let mut last = 0;
        for entry in fs::read_dir(dir)? {
            let file = entry?.path();
            let Some(id) = number(&file) else {
                continue;
            };
            last = last.max(id);
            match read(&file) {
                Ok(record) => records.push(record),
                Err(why) => unreadable.push(Unreadable { file, why }),
            }
        }
        records.sort_by_key(|r| r.id);
        let journal = Self {
            dir: dir.into(),
            lock: Mutex::new(Some(lock)),
            next: AtomicU64::new(last.saturating_add(1)),
        };
        Ok((journal, records, unreadable))
    }

    /// A new record. It is not written yet.
    pub fn begin(&self, guest: &str, from: Place, to: Place) -> Record {
        Record {
            version: VERSION,
            id: self.next.fetch_add(1, Ordering::Relaxed),
            guest: guest.into(),
            from,
            to,
            state: State::Stream,
        }
    }

    /// The directory, for files that are no records of migrations.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    fn file(&self, id: u64) -> PathBuf {
        self.dir.join(format!("{}{id}{}", NAME.0, NAME.1))
    }

    /// Change it, if it is still open.
    fn change(
        &self,
        change: impl FnOnce(&File) -> Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        match &*lock {
            Some(dir) => change(dir),
            None => Err(before(io::Error::other("vmbeamd is stopping"))),
        }
    }

    /// Make what is known durable. The file is the old one or the new one
    /// whenever the machine stops.
    pub fn write(&self, record: &Record) -> Result<(), WriteError> {
        self.change(|dir| {
            let file = self.file(record.id);
            let new = file.with_extension("new");
            let written = prepare(&new, record)
                .map_err(before)
                // One that says that it failed may have been done.
                .and_then(|()| rename(&new, &file).map_err(behind));
            if written.is_err() {
                let _ = fs::remove_file(&new);
            }
            written?;
            sync(dir).map_err(behind)
        })
    }

    /// A migration has ended.
    pub fn remove(&self, id: u64) -> Result<(), WriteError> {
        self.change(|dir| {
            remove(&self.file(id)).map_err(before)?;
            sync(dir).map_err(behind)
        })
    }

    /// Nothing is changed any more by this daemon: the next one may have it.
    pub fn close(&self) {
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What the next daemon would find of a migration.
    pub fn read(&self, id: u64) -> Result<Option<Record>, String> {
        let file = self.file(id);
        match file.exists() {
            true => read(&file).map(Some),
            false => Ok(None),
        }
    }
}

fn rename(new: &Path, file: &Path) -> io::Result<()> {
    fail_point!("journal-rename", |e| Err(injected(e)));
    fs::rename(new, file)
}

/// That it is not there is as good.
fn remove(file: &Path) -> io::Result<()> {
    fail_point!("journal-remove", |e| Err(injected(e)));
    match fs::remove_file(file) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn sync(dir: &File) -> io::Result<()> {
    fail_point!("journal-sync", |e| Err(injected(e)));
    dir.sync_all()
}

/// Write a file, without being in anybody's way yet.
fn prepare(new: &Path, record: &Record) -> io::Result<()> {
    fail_point!("journal-create", |e| Err(injected(e)));
    let mut out = File::create(new)?;
    out.write_all(&serde_json::to_vec(record)?)?;
    fail_point!("journal-data", |e| Err(injected(e)));
    out.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn place(host_vm: &str) -> Place {
        Place {
            host_vm: host_vm.into(),
            host_domid: 3,
            guest: Some(1),
        }
    }

    fn swap() -> State {
        State::Swap {
            pairs: vec![SwapRun {
                pfn: 1,
                gfn_a: 2,
                gfn_b: 3,
                nr: 4,
            }],
            probes: vec![Probe {
                pfn: 1,
                source: [1; 16],
                destination: [2; 16],
            }],
            copies: false,
            torn: false,
        }
    }

    #[test]
    fn what_is_written_is_read_and_what_is_removed_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("a/b");
        let (journal, none, _) = Journal::open(&dir).unwrap();
        assert!(none.is_empty());
        let mut first = journal.begin("guest", place("A"), place("B"));
        let second = journal.begin("other", place("B"), place("A"));
        journal.write(&first).unwrap();
        journal.write(&second).unwrap();
        first.state = swap();
        journal.write(&first).unwrap();
        let another = Journal::open(&dir).unwrap_err().to_string();
        assert!(another.contains("another vmbeamd uses it"), "{another}");
        drop(journal);
        let (again, records, unreadable) = Journal::open(&dir).unwrap();
        assert_eq!(records, [first.clone(), second.clone()]);
        assert!(unreadable.is_empty());
        // A number is not given twice.
        assert!(again.begin("third", place("A"), place("B")).id > second.id);
        again.remove(first.id).unwrap();
        again.remove(first.id).unwrap();
        drop(again);
        assert_eq!(Journal::open(&dir).unwrap().1, [second]);
    }

    #[test]
    fn a_write_that_was_cut_off_leaves_the_old_record() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, ..) = Journal::open(dir.path()).unwrap();
        let record = journal.begin("guest", place("A"), place("B"));
        journal.write(&record).unwrap();
        fs::write(journal.file(record.id).with_extension("new"), b"{\"ver").unwrap();
        drop(journal);
        let (_, records, unreadable) = Journal::open(dir.path()).unwrap();
        assert_eq!((records.len(), unreadable.len()), (1, 0));
    }

    proptest! {
        /// A damaged file is read as what it says or not at all, and does not
        /// hide the others.
        #[test]
        fn damage_is_survived(damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
            let dir = tempfile::tempdir().unwrap();
            let (journal, ..) = Journal::open(dir.path()).unwrap();
            let mut record = journal.begin("guest", place("A"), place("B"));
            record.state = swap();
            journal.write(&record).unwrap();
            let good = journal.begin("good", place("A"), place("B"));
            journal.write(&good).unwrap();
            let mut text = fs::read(journal.file(record.id)).unwrap();
            for (at, byte) in damage {
                *at.get_mut(&mut text) = byte;
            }
            fs::write(journal.file(record.id), text).unwrap();
            drop(journal);
            let (_, records, unreadable) = Journal::open(dir.path()).unwrap();
            prop_assert_eq!(records.len() + unreadable.len(), 2);
            prop_assert!(records.contains(&good));
        }
    }
}
