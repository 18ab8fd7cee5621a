// SPDX-License-Identifier: GPL-2.0-only

//! What sessions share: the contents of the frames, which of them are held, and
//! the records.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use nix::errno::Errno;
use vmbeam_uapi::sys;

use super::Access;
use super::Answer;
use super::Session;

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
    /// Their ids, as far as the driver has told them.
    pub ids: [Option<u64>; DOMAINS],
    /// Contents.
    pub frames: [Vec<u64>; DOMAINS],
    /// Frames that are held, by domain and gfn, and what their swap is refused with.
    pub held: BTreeMap<(usize, u64), Errno>,
    /// Why all swaps with a domain fail, if they do.
    pub refuses: [Option<Errno>; DOMAINS],
    records: Vec<(sys::Record, Session)>,
    last_id: u64,
    /// Sessions with pairs swapped, by number, and the ids of their domains.
    swapped: BTreeMap<u64, [u64; 2]>,
    sessions: u64,
    /// All ids of domains that were ever told.
    told: BTreeSet<u64>,
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
            ids: [None; DOMAINS],
            frames: std::array::from_fn(tags),
            held: BTreeMap::new(),
            refuses: [None; DOMAINS],
            records: Vec::new(),
            last_id: 0,
            swapped: BTreeMap::new(),
            sessions: 0,
            told: BTreeSet::new(),
        }
    }

    /// A domain has died, and another one came.
    pub fn replace(&mut self, index: usize, domid: u32) {
        self.domids[index] = domid;
        self.ids[index] = None;
        self.frames[index] = tags(index);
        self.held.retain(|(domain, _), _| *domain != index);
        self.refuses[index] = None;
    }

    /// Which of the domains these are, or what the hypervisor says to them. An id of 0 is
    /// that of any domain.
    pub fn domains(&self, domids: [u32; 2], ids: [u64; 2]) -> Result<(usize, usize), Errno> {
        let find = |domid: u32, id: u64| {
            if domid == 0 {
                return Err(Errno::EPERM);
            }
            let index = self.domids.iter().position(|d| *d == domid);
            let index = index.ok_or(Errno::ESRCH)?;
            if id != 0 && self.ids[index] != Some(id) {
                return Err(Errno::ESRCH);
            }
            self.refuses[index].map_or(Ok(index), Err)
        };
        Ok((find(domids[0], ids[0])?, find(domids[1], ids[1])?))
    }

    /// The driver has told the ids of two domains: whether they can be right.
    pub fn told(&mut self, domids: [u32; 2], ids: [u64; 2]) -> bool {
        domids.iter().zip(ids).all(|(domid, id)| {
            let Some(index) = self.domids.iter().position(|d| d == domid) else {
                return false;
            };
            let known = self.ids[index].replace(id);
            let new = id != 0 && self.told.insert(id);
            known.map_or(new, |known| known == id)
        })
    }

    /// A number for a session.
    pub fn number(&mut self) -> u64 {
        self.sessions += 1;
        self.sessions
    }

    /// Whether no session but this one has pairs of these domains swapped.
    pub fn free(&self, ids: [u64; 2], number: u64) -> Result<(), Errno> {
        let taken = self
            .swapped
            .iter()
            .any(|(other, theirs)| *other != number && theirs.iter().any(|id| ids.contains(id)));
        if taken {
            return Err(Errno::EBUSY);
        }
        Ok(())
    }

    /// A session has pairs of these domains swapped, or none any more.
    pub fn claim(&mut self, number: u64, ids: [u64; 2], swapped: bool) {
        if swapped {
            self.swapped.insert(number, ids);
        } else {
            self.swapped.remove(&number);
        }
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
                record.time = seen.time;
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

    /// `RECORD` of a file that is not bound.
    pub fn next(&self, arg: sys::Record, access: Access) -> Answer<sys::Record> {
        let next = self.records.iter().find(|(record, _)| record.id > arg.id);
        match next {
            None => Answer::fail(Errno::ENOENT, arg),
            Some(_) if !access.structure => Answer::fail(Errno::EFAULT, arg),
            Some((record, _)) => Answer {
                result: Ok(()),
                out: *record,
                status: Vec::new(),
            },
        }
    }
}
