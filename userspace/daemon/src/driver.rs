// SPDX-License-Identifier: GPL-2.0-only

//! The driver, behind a trait so that the rest can be tested without one.

use std::collections::HashMap;
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tracing::warn;
use vmbeam_control_protocol::SwapCounts;
use vmbeam_uapi::{
    AddFailed, Checked, Device, Errno, Error, Info, Mode as BindMode, Op, Run, Session, Spent,
    Status, Step,
};

/// Something that opens sessions.
pub trait Driver: Debug + Send + Sync {
    /// Limits and features.
    fn info(&self) -> Result<Info, Error>;
    /// Bind a new session to two host VMs.
    fn open(
        &self,
        domid_a: u32,
        domid_b: u32,
        mode: BindMode,
    ) -> Result<Box<dyn DriverSession>, Error>;
    /// The same at the start of a job, when no other one uses these two: a domain that has died
    /// is forgotten, and the one that has its domid now is the one that is meant from now on.
    fn open_anew(&self, domid_a: u32, domid_b: u32) -> Result<Box<dyn DriverSession>, Error>;
    /// Whether there is a domain with this domid and, if one is given, this id of the
    /// hypervisor's. One that is dying still is.
    fn has(&self, domid: u32, id: Option<u64>) -> Result<bool, Error>;
    /// No other domain than this is meant by this domid, because a record says so; unless it was
    /// used already.
    fn expect(&self, domid: u32, id: u64);
    /// Whether the driver keeps the record of a half move between these two, in
    /// whichever order.
    fn has_record(&self, domid_a: u32, domid_b: u32) -> Result<bool, Error>;
}

/// Something that opens sessions with exactly the domains that are meant.
pub trait Sessions: Debug + Send + Sync {
    /// Limits and features.
    fn info(&self) -> Result<Info, Error>;
    /// Bind a new session to two host VMs. An id is the one that the hypervisor never
    /// gives to another domain; 0 takes whichever domain has the domid.
    fn open(
        &self,
        domids: [u32; 2],
        ids: [u64; 2],
        mode: BindMode,
    ) -> Result<Box<dyn DriverSession>, Error>;
    /// Whether the driver keeps the record of a half move between these two, in
    /// whichever order.
    fn has_record(&self, domid_a: u32, domid_b: u32) -> Result<bool, Error>;
}

/// A driver for which a domid is the domain that it was at the start of the job: one that has
/// died, and whose domid another one has, is not taken for that. Of a daemon that cannot ask the
/// host's toolstack any more, for as long as it runs.
#[derive(Debug)]
pub struct Pinned {
    sessions: Arc<dyn Sessions>,
    /// What has the domid of a domain that has died may become the one that is meant.
    renews: bool,
    /// The hypervisor's ids of the domains with these domids.
    ids: Mutex<HashMap<u32, u64>>,
}

impl Pinned {
    /// A driver that has seen no domain yet.
    pub fn new(sessions: Arc<dyn Sessions>) -> Self {
        Self {
            sessions,
            renews: true,
            ids: Mutex::default(),
        }
    }

    /// The same for a daemon that learns only once which host VM has which domid: no other
    /// domain is ever taken for it.
    pub fn for_ever(sessions: Arc<dyn Sessions>) -> Self {
        Self {
            renews: false,
            ..Self::new(sessions)
        }
    }

    fn open_with(
        &self,
        domids: [u32; 2],
        ids: [u64; 2],
        mode: BindMode,
    ) -> Result<Box<dyn DriverSession>, Error> {
        // Device models take their time, and other pairs do not wait for them.
        let session = self.sessions.open(domids, ids, mode)?;
        self.known().extend(domids.into_iter().zip(session.ids()));
        Ok(session)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<u32, u64>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Driver for Pinned {
    fn info(&self) -> Result<Info, Error> {
        self.sessions.info()
    }

    fn open(
        &self,
        domid_a: u32,
        domid_b: u32,
        mode: BindMode,
    ) -> Result<Box<dyn DriverSession>, Error> {
        let domids = [domid_a, domid_b];
        let known = self.known();
        let ids = domids.map(|d| known.get(&d).copied().unwrap_or(0));
        drop(known);
        self.open_with(domids, ids, mode)
    }

    fn open_anew(&self, domid_a: u32, domid_b: u32) -> Result<Box<dyn DriverSession>, Error> {
        match self.renews {
            true => self.open_with([domid_a, domid_b], [0; 2], BindMode::Swap),
            false => self.open(domid_a, domid_b, BindMode::Swap),
        }
    }

    fn has(&self, domid: u32, id: Option<u64>) -> Result<bool, Error> {
        // A session is of two domains. Domain 0 is always there, and never taken: so much the
        // hypervisor says once it has found the other one.
        let ids = [id.unwrap_or(0), 0];
        match self.sessions.open([domid, 0], ids, BindMode::Swap) {
            Err(Error {
                op: Op::Bind,
                errno: Errno::ESRCH,
            }) => Ok(false),
            Ok(_)
            | Err(Error {
                op: Op::Bind,
                errno: Errno::EPERM,
            }) => Ok(true),
            Err(e) => Err(e),
        }
    }

    fn expect(&self, domid: u32, id: u64) {
        self.known().entry(domid).or_insert(id);
    }

    fn has_record(&self, domid_a: u32, domid_b: u32) -> Result<bool, Error> {
        self.sessions.has_record(domid_a, domid_b)
    }
}

/// A session. The methods are those of [`vmbeam_uapi::Session`].
pub trait DriverSession {
    /// The hypervisor's ids of the two host VMs, which no other domains ever have.
    fn ids(&self) -> [u64; 2];
    /// Append runs.
    fn add(&mut self, runs: &[Run]) -> Result<(), AddFailed>;
    /// Dry run over some pairs.
    fn prepare(&self, first: u64, moves_before: u64, status: &mut [i32]) -> Result<Checked, Error>;
    /// Swap some pairs from the cursor on.
    fn commit(&mut self, status: &mut [i32]) -> Result<Step, Error>;
    /// Where the session stands.
    fn status(&self) -> Result<Status, Error>;
    /// What its swaps took.
    fn spent(&self) -> Spent;
    /// Put some pairs back.
    fn rollback(&mut self) -> Result<Step, Error>;
}

/// `/dev/vmbeam`: every session is an open file of its own.
#[derive(Debug)]
pub struct DeviceDriver {
    path: PathBuf,
}

impl DeviceDriver {
    /// A driver whose device is at this path.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }
}

impl Sessions for DeviceDriver {
    fn info(&self) -> Result<Info, Error> {
        Device::open(&self.path)?.info()
    }

    fn open(
        &self,
        domids: [u32; 2],
        ids: [u64; 2],
        mode: BindMode,
    ) -> Result<Box<dyn DriverSession>, Error> {
        let device = Device::open(&self.path)?;
        Ok(Box::new(device.session(domids, ids, mode)?))
    }

    fn has_record(&self, domid_a: u32, domid_b: u32) -> Result<bool, Error> {
        let records = Device::open(&self.path)?.records()?;
        Ok(records
            .iter()
            .any(|r| [(domid_a, domid_b), (domid_b, domid_a)].contains(&(r.domid_a, r.domid_b))))
    }
}

impl DriverSession for Session {
    fn ids(&self) -> [u64; 2] {
        Session::ids(self)
    }

    fn add(&mut self, runs: &[Run]) -> Result<(), AddFailed> {
        Session::add(self, runs)
    }

    fn prepare(&self, first: u64, moves_before: u64, status: &mut [i32]) -> Result<Checked, Error> {
        Session::check(self, first, moves_before, status)
    }

    fn commit(&mut self, status: &mut [i32]) -> Result<Step, Error> {
        Session::commit(self, status)
    }

    fn status(&self) -> Result<Status, Error> {
        Session::status(self)
    }

    fn spent(&self) -> Spent {
        Session::spent(self).unwrap_or_else(|e| {
            warn!("the counts of a swap are missing in its report: {e}");
            Spent::default()
        })
    }

    fn rollback(&mut self) -> Result<Step, Error> {
        Session::rollback(self)
    }
}

/// The same for a report.
pub fn counts(spent: Spent) -> SwapCounts {
    SwapCounts {
        hypercalls: spent.hypercalls,
        tlb_flushes: spent.tlb_flushes,
        p2m_writes: spent.p2m_writes,
        superpages: spent.superpages,
        splits: spent.splits,
        merges: spent.merges,
    }
}
