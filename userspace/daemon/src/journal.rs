// SPDX-License-Identifier: GPL-2.0-only

//! What must be known about a migration after a crash: a small file for each, with a line for
//! every step that the next daemon has to know of, the last of which counts. A line is added
//! with one `fsync()`, since guests stand still for some of them.
//!
//! The directory is locked as long as it is open: two daemons would settle each other's
//! migrations.

mod lines;
mod pairs;

use crate::boot;
use crate::join::JoinedRun;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use vmbeam_agent_protocol::{Digest, Uuid};
use vmbeam_control_protocol::Mode;
use vmbeam_migration::Step;

use lines::{about, append, before, behind, file_pairs, line, prepare, read, remove, rename, sync};

#[allow(
    unused_imports,
    reason = "fail_point!() is nothing in a daemon that is not tested"
)]
pub(crate) use lines::injected;
pub use lines::{About, End, WriteError};
pub use pairs::{Filed, Pairs};

/// Version of the files' format.
const VERSION: u32 = 2;
/// How the files are called, around their number.
const NAME: (&str, &str) = ("migration-", ".json");
/// The same of those with pairs.
const PAIRS: &str = ".pairs";

/// A guest in a host VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Name of the host VM.
    pub host_vm: String,
    /// Domid that the host VM had: it has another when it was restarted, and
    /// then none of its guests is the one that is meant here.
    pub host_domid: u32,
    /// Domid of the guest in it, if it is known.
    pub guest: Option<u32>,
    /// UUID of the host VM, as far as it was known.
    #[serde(default)]
    pub host_uuid: Option<Uuid>,
    /// Which the hypervisor never gives to another domain; as far as it was known.
    #[serde(default)]
    pub host_id: Option<u64>,
    /// Pages that the host VM had before a relocation, as far as it was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pages: Option<u64>,
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
    /// The guest runs at the source, and has not been suspended.
    Stage,
    /// The guest is being saved and restored; its memory is at the source.
    Stream,
    /// Its memory is at the source or at the destination.
    Swap {
        /// What is swapped, all of it or nothing.
        pairs: Pairs,
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
            Self::Stage => Step::Stage,
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
    /// Its UUID, which it has on both sides, as far as it was known.
    #[serde(default)]
    pub guest_uuid: Option<Uuid>,
    /// How its memory gets there. That of a swap is not written: such records are as they
    /// ever were.
    #[serde(default, skip_serializing_if = "Mode::is_swap")]
    pub mode: Mode,
    /// Boot id of the host: nothing of this is there after another boot.
    #[serde(default)]
    pub boot: String,
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
    open: Mutex<Option<Open>>,
    next: AtomicU64,
}

/// A directory that may be changed.
#[derive(Debug)]
struct Open {
    /// Open and locked until it is closed, so that nothing has to be opened to make it durable.
    dir: Flock<File>,
    /// Where the lines end that count, in the files of records.
    ends: HashMap<u64, u64>,
}

/// A file of the journal that is of no use.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", file.display())]
pub struct Unreadable {
    /// Its number.
    pub id: u64,
    /// Which.
    pub file: PathBuf,
    /// Why.
    pub why: String,
    /// What it is about, if so much can be read.
    pub about: Option<About>,
}

/// The number of a file with this at its end.
fn number(file: &Path, end: &str) -> Option<u64> {
    file.file_name()?
        .to_str()?
        .strip_prefix(NAME.0)?
        .strip_suffix(end)?
        .parse()
        .ok()
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
        let mut records: Vec<Record> = Vec::new();
        let mut unreadable = Vec::new();
        let mut ends = HashMap::new();
        let mut last = 0;
        for entry in fs::read_dir(dir)? {
            let file = entry?.path();
            if let Some(id) = number(&file, PAIRS) {
                // Of a migration that has ended.
                if !file.with_extension("json").exists() {
                    let _ = fs::remove_file(&file);
                }
                last = last.max(id);
            }
            let Some(id) = number(&file, NAME.1) else {
                continue;
            };
            last = last.max(id);
            match read(&file) {
                Ok((record, end)) => {
                    records.push(record);
                    ends.insert(id, end);
                }
                Err(why) => unreadable.push(Unreadable {
                    id,
                    about: about(&file),
                    file,
                    why,
                }),
            }
        }
        records.sort_by_key(|r| r.id);
        let journal = Self {
            dir: dir.into(),
            open: Mutex::new(Some(Open { dir: lock, ends })),
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
            guest_uuid: None,
            mode: Mode::Swap,
            boot: boot::id(),
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

    fn pairs_file(&self, id: u64) -> PathBuf {
        self.dir.join(format!("{}{id}{PAIRS}", NAME.0))
    }

    /// Change it, if it is still open.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut Open) -> Result<T, WriteError>,
    ) -> Result<T, WriteError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *open {
            Some(open) => change(open),
            None => Err(before(io::Error::other("vmbeamd is stopping"))),
        }
    }

    /// Make what is known durable. What counts is the old record or the new one whenever the
    /// machine stops.
    pub fn write(&self, record: &Record) -> Result<(), WriteError> {
        self.change(|open| {
            let file = self.file(record.id);
            let line = line(record).map_err(before)?;
            if let Some(end) = open.ends.get_mut(&record.id) {
                append(&file, *end, &line)?;
                *end += line.len() as u64;
                return Ok(());
            }
            let new = file.with_extension("new");
            let written = prepare(&new, &line)
                .map_err(before)
                // One that says that it failed may have been done.
                .and_then(|()| rename(&new, &file).map_err(behind));
            if written.is_err() {
                let _ = fs::remove_file(&new);
            }
            written?;
            sync(&open.dir).map_err(behind)?;
            open.ends.insert(record.id, line.len() as u64);
            Ok(())
        })
    }

    /// Make the pairs of a migration durable that is going to be written; gives the digest by
    /// which its record names them.
    pub fn file_pairs(&self, id: u64, runs: &[JoinedRun]) -> Result<Digest, WriteError> {
        self.change(|open| {
            let file = || {
                let digest = file_pairs(&self.pairs_file(id), runs)?;
                sync(&open.dir)?;
                Ok(digest)
            };
            file().map_err(before)
        })
    }

    /// All that is swapped by a migration.
    pub fn pairs(&self, id: u64, pairs: &Pairs) -> Result<Vec<JoinedRun>, String> {
        let file = self.pairs_file(id);
        let content = match pairs.filed {
            Some(_) => fs::read(&file).map_err(|e| e.to_string()),
            None => Ok(Vec::new()),
        };
        content
            .and_then(|content| pairs.resolve(&content))
            .map_err(|why| format!("cannot use {}: {why}", file.display()))
    }

    /// A migration has ended.
    pub fn remove(&self, id: u64) -> Result<(), WriteError> {
        self.change(|open| {
            remove(&self.file(id)).map_err(before)?;
            open.ends.remove(&id);
            sync(&open.dir).map_err(behind)?;
            // The next daemon does that as well.
            let _ = fs::remove_file(self.pairs_file(id));
            Ok(())
        })
    }

    /// Nothing is changed any more by this daemon: the next one may have it.
    pub fn close(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What the next daemon would find of a migration.
    pub fn read(&self, id: u64) -> Result<Option<Record>, String> {
        let file = self.file(id);
        match file.try_exists() {
            Ok(false) => Ok(None),
            _ => read(&file).map(|(record, _)| Some(record)).map_err(|why| {
                format!(
                    "cannot use {}: {why}; put back what was there, or look where its guest runs (`vmbeam list`), and see `vmbeam forget --job`",
                    file.display()
                )
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use vmbeam_control_protocol::SwapRun;

    fn place(host_vm: &str) -> Place {
        Place {
            host_vm: host_vm.into(),
            host_domid: 3,
            guest: Some(1),
            ..Place::default()
        }
    }

    fn swap() -> State {
        State::Swap {
            pairs: Pairs {
                pairs: vec![SwapRun {
                    pfn: 1,
                    gfn_a: 2,
                    gfn_b: 3,
                    nr: 4,
                }],
                filed: None,
            },
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
    fn the_mode_is_written_if_it_is_none_of_the_old_ones() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, ..) = Journal::open(dir.path()).unwrap();
        // As records have been before there were modes.
        let swap = journal.begin("guest", place("A"), place("B"));
        journal.write(&swap).unwrap();
        let text = fs::read_to_string(journal.file(swap.id)).unwrap();
        assert!(!text.contains("mode"), "{text}");
        let mut relocation = journal.begin("guest", place("A"), place("B"));
        relocation.mode = Mode::Relocate;
        journal.write(&relocation).unwrap();
        assert_eq!(journal.read(swap.id), Ok(Some(swap)));
        assert_eq!(journal.read(relocation.id), Ok(Some(relocation)));
    }

    #[test]
    fn a_write_that_was_cut_off_leaves_the_old_record() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, ..) = Journal::open(dir.path()).unwrap();
        let record = journal.begin("guest", place("A"), place("B"));
        journal.write(&record).unwrap();
        fs::write(journal.file(record.id).with_extension("new"), b"{\"ver").unwrap();
        // Nor does a part of a line count, whichever.
        let next = Record {
            state: State::Resume,
            ..record.clone()
        };
        let line = line(&next).unwrap();
        let whole = fs::read(journal.file(record.id)).unwrap();
        let mut journal = Some(journal);
        for part in 0..=line.len() {
            let text = [&whole, &line[..part]].concat();
            drop(journal.take());
            fs::write(dir.path().join("migration-1.json"), text).unwrap();
            let (again, records, unreadable) = Journal::open(dir.path()).unwrap();
            assert!(unreadable.is_empty(), "{unreadable:?}");
            let expected = if part < line.len() { &record } else { &next };
            assert_eq!(records, [expected.clone()]);
            // What is added follows what counts.
            again.write(&next).unwrap();
            assert_eq!(again.read(record.id), Ok(Some(next.clone())));
            journal = Some(again);
        }
    }

    #[test]
    fn pairs_go_with_their_record() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, ..) = Journal::open(dir.path()).unwrap();
        let record = journal.begin("guest", place("A"), place("B"));
        let run = JoinedRun {
            pfn: 1,
            gfn_a: 2,
            gfn_b: 3,
            nr: 4,
        };
        let digest = journal.file_pairs(record.id, &[run]).unwrap();
        journal.write(&record).unwrap();
        let mut pairs = Pairs {
            pairs: Vec::new(),
            filed: Some(Filed {
                digest,
                without: Vec::new(),
            }),
        };
        assert_eq!(journal.pairs(record.id, &pairs), Ok(vec![run]));
        pairs.filed.as_mut().unwrap().digest[0] ^= 1;
        let e = journal.pairs(record.id, &pairs).unwrap_err();
        assert!(e.contains("migration-1.pairs: it is damaged"), "{e}");
        journal.remove(record.id).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        // Or the next daemon removes them; their number is not given again.
        journal.file_pairs(7, &[run]).unwrap();
        drop(journal);
        let (journal, ..) = Journal::open(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(journal.begin("guest", place("A"), place("B")).id > 7);
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
