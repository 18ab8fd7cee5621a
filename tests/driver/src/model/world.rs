// SPDX-License-Identifier: GPL-2.0-only

//! What sessions share: the contents of the frames, which of them are held, and
//! the records.

use std::collections::BTreeMap;

use nix::errno::Errno;
use vmbeam_uapi::sys;

use super::Access;
use super::Answer;
use super::Session;
use super::MAX_SIZE;

/// Domains that sessions are bound to.
pub const DOMAINS: usize = 3;
/// Frames of each.
pub const FRAMES: u64 = 48;
/// A frame of each domain that is held all the time.
pub const HELD: u64 = 5;

/// What is behind the frames: `frames[domain][gfn]` names where the contents were
/// at first.
#[derive(Clone, Debug)]
pub struct World {
    /// Numbers of the domains.
    pub domids: [u32; DOMAINS],
    /// Contents.
    pub frames: [Vec<u64>; DOMAINS],
    /// Frames that are held, by domain and gfn, and what their swap is refused with.
    pub held: BTreeMap<(usize, u64), Errno>,
    /// Why all swaps with a domain fail, if they do.
    pub refuses: [Option<Errno>; DOMAINS],
    records: Vec<(sys::Record, Session)>,
    last_id: u64,
}

/// The contents of a frame before anything moved.
fn tag(domain: usize, gfn: u64) -> u64 {
    0x7a00_0000_0000_0000 | ((domain as u64) << 32) | gfn
}

fn tags(domain: usize) -> Vec<u64> {
    (0..FRAMES).map(|gfn| tag(domain, gfn)).collect()
}

impl World {
    /// Nothing has moved, and nothing is held.
    pub fn new(domids: [u32; DOMAINS]) -> Self {
        Self {
            domids,
            frames: std::array::from_fn(tags),
            held: BTreeMap::new(),
            refuses: [None; DOMAINS],
            records: Vec::new(),
            last_id: 0,
        }
    }

    /// A domain has died, and another one came.
    pub fn replace(&mut self, index: usize, domid: u32) {
        self.domids[index] = domid;
        self.frames[index] = tags(index);
        self.held.retain(|(domain, _), _| *domain != index);
        self.refuses[index] = None;
    }

    /// Which of the domains these are, or what the hypervisor says to them.
    pub fn domains(&self, domids: (u32, u32)) -> Result<(usize, usize), Errno> {
        let find = |domid: u32| {
            if domid == 0 {
                return Err(Errno::EPERM);
            }
            let index = self.domids.iter().position(|d| *d == domid);
            let index = index.ok_or(Errno::ESRCH)?;
            self.refuses[index].map_or(Ok(index), Err)
        };
        Ok((find(domids.0)?, find(domids.1)?))
    }

    /// Status that the hypervisor gives to a pair of two domains.
    pub fn status(&self, (a, b): (usize, usize), pair: (u64, u64)) -> i32 {
        // Both are looked up before either is taken hold of.
        if pair.0.max(pair.1) >= FRAMES {
            return -(Errno::ENOENT as i32);
        }
        let held = [(a, pair.0), (b, pair.1)]
            .iter()
            .find_map(|frame| self.held.get(frame));
        held.map_or(0, |error| -(*error as i32))
    }

    /// Swap a pair that can be swapped.
    pub fn swap(&mut self, (a, b): (usize, usize), pair: (u64, u64)) {
        let (x, y) = (pair.0 as usize, pair.1 as usize);
        let old = self.frames[a][x];
        self.frames[a][x] = self.frames[b][y];
        self.frames[b][y] = old;
    }

    /// Keep a session, under a number that is not known yet.
    pub fn keep(&mut self, session: Session, error: Errno) {
        self.records.push((session.record(error), session));
    }

    /// The records, and their sessions' domains are all alive.
    pub fn records(&self) -> impl Iterator<Item = (&sys::Record, bool)> {
        self.records
            .iter()
            .map(|(record, session)| (record, session.domains(self).is_ok()))
    }

    /// Compare with what the driver lists, and learn the numbers of new ones.
    pub fn learn(&mut self, seen: &[sys::Record]) -> bool {
        if seen.len() != self.records.len() {
            return false;
        }
        for ((record, _), seen) in self.records.iter_mut().zip(seen) {
            if record.id == 0 {
                // Never used before.
                if seen.id <= self.last_id {
                    return false;
                }
                record.id = seen.id;
                self.last_id = seen.id;
            }
            if record != seen {
                return false;
            }
        }
        true
    }

    /// Take a record away.
    pub fn take_record(&mut self, id: u64) -> Result<Session, Errno> {
        let found = self.records.iter().position(|(record, _)| record.id == id);
        let index = found.ok_or(Errno::ENOENT)?;
        Ok(self.records.remove(index).1)
    }

    /// `RECORDS`; the elements are records that can be written.
    pub fn list(&self, arg: sys::Records, access: Access) -> Answer<sys::Records> {
        if (arg.record_size as usize) < size_of::<sys::Record>() || arg.reserved != 0 {
            return Answer::fail(Errno::EINVAL, arg);
        }
        if arg.record_size > MAX_SIZE {
            return Answer::fail(Errno::E2BIG, arg);
        }
        let total = self.records.len() as u32;
        let nr = arg.nr.min(total);
        if access.elements < u64::from(nr) || !access.structure {
            return Answer::fail(Errno::EFAULT, arg);
        }
        Answer {
            result: Ok(()),
            out: sys::Records { nr, total, ..arg },
            status: Vec::new(),
        }
    }

    /// `FORGET`
    pub fn forget(&mut self, arg: sys::Forget) -> Answer<sys::Forget> {
        Answer {
            result: self.take_record(arg.id).map(drop),
            out: arg,
            status: Vec::new(),
        }
    }
}
