// SPDX-License-Identifier: GPL-2.0-only

//! Safe use of the device.

use crate::error::{Errno, Error, Op};
use crate::{raw, sys};
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;

/// What the driver can do, from [`Device::info`].
pub type Info = sys::Info;

/// An open `/dev/vmbeam` that is not bound to host VMs yet.
#[derive(Debug)]
pub struct Device {
    file: File,
}

/// A session: one pair of host VMs, a list of frames, and how far it is.
///
/// Dropping a session that never committed leaves no trace. Dropping one after a
/// complete commit leaves the frames where they are. Dropping one half way makes
/// the driver swap back, or keep a record: see [`Device::records`].
#[derive(Debug)]
pub struct Session {
    file: File,
    info: Info,
    ids: [u64; 2],
    mode: sys::Mode,
    pairs: u64,
    cursor: u64,
}

/// Result of a dry run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Pairs that were looked at.
    pub done: u64,
    /// Those of them that a commit would refuse now.
    pub refused: u64,
    /// Frames that would go over with none in return.
    pub moves: u64,
}

/// Result of one step of a commit or a rollback.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// The first pair that has not been dealt with; for a rollback, how many
    /// remain to be put back.
    pub cursor: u64,
    /// Pairs swapped or put back by this step.
    pub swapped: u64,
    /// Pairs refused by this step.
    pub refused: u64,
    /// Frames that a commit had go over with none in return. What a rollback has come back that
    /// way is in the session's status.
    pub moved: u64,
}

/// What the swaps of a session took: how the hypervisor did them. For people; lines that a
/// driver does not have are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Hypercalls that swapped.
    pub hypercalls: u64,
    /// TLB flushes that the hypervisor counted for them.
    pub tlb_flushes: u64,
    /// Entries of the P2Ms that it removed or wrote.
    pub p2m_writes: u64,
    /// Pairs of 2 MiB entries that it exchanged whole.
    pub superpages: u64,
    /// Larger entries that it split.
    pub splits: u64,
    /// Larger entries that it put together again.
    pub merges: u64,
}

impl Spent {
    /// From the lines of the file's `fdinfo`.
    fn parse(text: &str) -> Self {
        let of = |name: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(':'));
            let found = lines.find(|(key, _)| key.strip_prefix("vmbeam-") == Some(name));
            found
                .and_then(|(_, nr)| nr.trim().parse().ok())
                .unwrap_or(0)
        };
        Self {
            hypercalls: of("hypercalls"),
            tlb_flushes: of("tlb-flushes"),
            p2m_writes: of("p2m-writes"),
            superpages: of("superpages"),
            splits: of("splits"),
            merges: of("merges"),
        }
    }
}

/// Why runs were not taken, and which one was to blame if one was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}{}", .run.map_or(String::new(), |r| format!(", run {r}")))]
pub struct AddFailed {
    /// The error.
    pub error: Error,
    /// Index of the run in the slice given to [`Session::add`].
    pub run: Option<usize>,
}

fn fail(op: Op) -> impl Fn(Errno) -> Error {
    move |errno| Error { op, errno }
}

fn size_of<T>() -> u32 {
    std::mem::size_of::<T>() as u32
}

impl Device {
    /// Open the device file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|e| Error {
                op: Op::OpenFile,
                errno: Errno::from_raw(e.raw_os_error().unwrap_or_default()),
            })?;
        Ok(Self { file })
    }

    /// Limits and features of the driver and the hypervisor.
    pub fn info(&self) -> Result<Info, Error> {
        let mut arg = sys::Info {
            size: size_of::<sys::Info>(),
            ..Default::default()
        };
        raw::info(&self.file, &mut arg).map_err(fail(Op::Info))?;
        Ok(arg)
    }

    /// Half moves that the driver could not put back when their program ended.
    pub fn records(&self) -> Result<Vec<sys::Record>, Error> {
        let mut records = Vec::new();
        let mut arg = sys::Record {
            size: size_of::<sys::Record>(),
            ..Default::default()
        };
        loop {
            match raw::record(&self.file, &mut arg) {
                Ok(()) => records.push(arg),
                Err(Errno::ENOENT) => return Ok(records),
                Err(errno) => return Err(fail(Op::Record)(errno)),
            }
        }
    }

    /// Continue the session of a record, in its mode.
    pub fn adopt(self, record: &sys::Record) -> Result<Session, Error> {
        let info = self.info()?;
        let mode = sys::Mode::from_flags(record.mode).ok_or(Error {
            op: Op::Adopt,
            errno: Errno::EOPNOTSUPP,
        })?;
        let mut arg = sys::Adopt {
            size: size_of::<sys::Adopt>(),
            id: record.id,
            ..Default::default()
        };
        raw::adopt(&self.file, &mut arg).map_err(fail(Op::Adopt))?;
        Ok(Session {
            file: self.file,
            info,
            ids: [record.id_a, record.id_b],
            mode,
            pairs: record.pairs,
            cursor: record.cursor,
        })
    }

    /// Bind the file to two host VMs, for good. An id is the one that the hypervisor
    /// never gives to another domain; 0 takes whichever domain has the domid. A mode that
    /// [`Device::info`] does not have among its features is refused with
    /// [`Errno::EOPNOTSUPP`].
    pub fn session(
        self,
        domids: [u32; 2],
        ids: [u64; 2],
        mode: sys::Mode,
    ) -> Result<Session, Error> {
        let info = self.info()?;
        let ([domid_a, domid_b], [id_a, id_b]) = (domids, ids);
        let mut arg = sys::Bind {
            size: size_of::<sys::Bind>(),
            flags: mode.flags(),
            domid_a,
            domid_b,
            id_a,
            id_b,
        };
        raw::bind(&self.file, &mut arg).map_err(fail(Op::Bind))?;
        Ok(Session {
            file: self.file,
            info,
            ids: [arg.id_a, arg.id_b],
            mode,
            pairs: 0,
            cursor: 0,
        })
    }
}

impl Session {
    /// The hypervisor's ids of the two host VMs, which no other domains ever have.
    pub fn ids(&self) -> [u64; 2] {
        self.ids
    }

    /// What it does with its pairs.
    pub fn mode(&self) -> sys::Mode {
        self.mode
    }

    /// Give the session up: its frames stay as they are, and nobody knows any more
    /// which of them are swapped.
    pub fn abandon(self) -> Result<(), Error> {
        let mut arg = sys::Abandon {
            size: size_of::<sys::Abandon>(),
            expected: self.status()?.cursor,
            ..Default::default()
        };
        raw::abandon(&self.file, &mut arg).map_err(fail(Op::Abandon))
    }

    /// Pairs in the session.
    pub fn pairs(&self) -> u64 {
        self.pairs
    }

    /// Append runs, in as many calls as the driver's limit makes necessary.
    ///
    /// A failure may leave the runs of earlier calls in the session; it cannot
    /// be committed by mistake because the caller sees the error.
    pub fn add(&mut self, runs: &[sys::Run]) -> Result<(), AddFailed> {
        let most = (self.info.max_add_runs as usize).max(1);
        for (nr, part) in runs.chunks(most).enumerate() {
            let mut arg = sys::Add {
                size: size_of::<sys::Add>(),
                bad_run: u32::MAX,
                ..Default::default()
            };
            raw::add(&self.file, &mut arg, part).map_err(|errno| {
                let bad = arg.bad_run as usize;
                AddFailed {
                    error: Error { op: Op::Add, errno },
                    run: (bad < part.len()).then_some(nr * most + bad),
                }
            })?;
            self.pairs = arg.total_pairs;
        }
        Ok(())
    }

    /// Dry run over `status.len()` pairs from `first` on, in one call of the
    /// driver, which may stop early when a signal comes. One that goes on from others hands on
    /// the sum of their moves.
    pub fn check(
        &self,
        first: u64,
        moves_before: u64,
        status: &mut [i32],
    ) -> Result<Checked, Error> {
        let mut arg = sys::Check {
            size: size_of::<sys::Check>(),
            first,
            moves_before,
            ..Default::default()
        };
        raw::check(&self.file, &mut arg, status).map_err(fail(Op::Check))?;
        Ok(Checked {
            done: arg.done,
            refused: arg.refused,
            moves: arg.moves,
        })
    }

    /// Swap up to `status.len()` pairs from the cursor on, in one call of the
    /// driver. Returns as soon as it got anywhere: call again until the cursor
    /// is where it should be.
    pub fn commit(&mut self, status: &mut [i32]) -> Result<Step, Error> {
        let mut arg = sys::Commit {
            size: size_of::<sys::Commit>(),
            expected: self.cursor,
            cursor: self.cursor,
            ..Default::default()
        };
        raw::commit(&self.file, &mut arg, status).map_err(fail(Op::Commit))?;
        self.cursor = arg.cursor;
        Ok(Step {
            cursor: arg.cursor,
            swapped: arg.swapped,
            refused: arg.refused,
            moved: arg.moved,
        })
    }

    /// Where the session stands.
    pub fn status(&self) -> Result<sys::Status, Error> {
        status(&self.file)
    }

    /// What the session's swaps took so far.
    pub fn spent(&self) -> Result<Spent, Error> {
        let path = format!("/proc/self/fdinfo/{}", self.file.as_raw_fd());
        let text = std::fs::read_to_string(path).map_err(|e| Error {
            op: Op::Status,
            errno: Errno::from_raw(e.raw_os_error().unwrap_or_default()),
        })?;
        Ok(Spent::parse(&text))
    }

    /// A handle with which another thread can watch the session and end what it does.
    pub fn canceller(&self) -> Result<Canceller, Error> {
        let file = self.file.try_clone().map_err(|e| Error {
            op: Op::OpenFile,
            errno: Errno::from_raw(e.raw_os_error().unwrap_or_default()),
        })?;
        Ok(Canceller { file })
    }

    /// Put pairs before the cursor back, from the last to the first. Returns as
    /// soon as it got anywhere: call again until the cursor is 0.
    pub fn rollback(&mut self) -> Result<Step, Error> {
        // A commit that failed may have moved the cursor: ask, do not assume.
        self.cursor = self.status()?.cursor;
        let mut arg = sys::Rollback {
            size: size_of::<sys::Rollback>(),
            expected: self.cursor,
            cursor: self.cursor,
            ..Default::default()
        };
        raw::rollback(&self.file, &mut arg).map_err(fail(Op::Rollback))?;
        self.cursor = arg.cursor;
        Ok(Step {
            cursor: arg.cursor,
            swapped: arg.restored,
            ..Default::default()
        })
    }
}

fn status(file: &File) -> Result<sys::Status, Error> {
    let mut arg = sys::Status {
        size: size_of::<sys::Status>(),
        ..Default::default()
    };
    raw::status(file, &mut arg).map_err(fail(Op::Status))?;
    Ok(arg)
}

/// Watches a session from outside of the thread that uses it. It keeps the file
/// open: the driver swaps a half move back when both are gone.
#[derive(Debug)]
pub struct Canceller {
    file: File,
}

impl Canceller {
    /// Where the session stands, without waiting for what works on it.
    pub fn status(&self) -> Result<sys::Status, Error> {
        status(&self.file)
    }

    /// End the dry run, commit or rollback that works on the session now; that
    /// fails with [`Errno::ECANCELED`]. With [`Errno::ENOENT`] there was none.
    pub fn cancel(&self) -> Result<(), Error> {
        let mut arg = sys::Cancel {
            size: size_of::<sys::Cancel>(),
            ..Default::default()
        };
        raw::cancel(&self.file, &mut arg).map_err(fail(Op::Cancel))
    }
}
