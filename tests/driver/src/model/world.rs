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

/// What becomes of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Its frames change places.
    Swap,
    /// One goes over alone.
    Move,
    /// The other side reads zeroes, as this one does.
    Nothing,
    /// It stays as it is.
    Refuse(Errno),
}

impl What {
    /// The status of the pair.
    pub fn status(self) -> i32 {
        match self {
            Self::Swap | Self::Move => 0,
            Self::Nothing => -(Errno::ENODATA as i32),
            Self::Refuse(error) => -(error as i32),
        }
    }
}

/// Where frames go alone from and to, in a mode in which they may.
fn direction<T>(a: T, b: T, mode: u32) -> Option<(T, T)> {
    match mode {
        sys::BIND_TO_B => Some((a, b)),
        sys::BIND_TO_A => Some((b, a)),
        _ => None,
    }
}

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
    /// Frames that are populate-on-demand, by domain and gfn: their contents are 0.
    pub missing: BTreeSet<(usize, u64)>,
    /// How many pages each has, and may have.
    pub pages: [u64; DOMAINS],
    /// See there.
    pub limits: [u64; DOMAINS],
    /// Frames that are held, by domain and gfn, and what their swap is refused with.
    pub held: BTreeMap<(usize, u64), Errno>,
    /// Why all swaps with a domain fail, if they do.
    pub refuses: [Option<Errno>; DOMAINS],
    records: Vec<(sys::Record, Session)>,
    last_id: u64,
    /// Sessions with pairs swapped, by number, and the ids of their domains.
    swapped: BTreeMap<u64, [u64; 2]>,
    /// Those that are records, or were when a domain of theirs was gone already.
    pub idle: BTreeSet<u64>,
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
            missing: BTreeSet::new(),
            pages: [FRAMES; DOMAINS],
            limits: [u64::MAX; DOMAINS],
            held: BTreeMap::new(),
            refuses: [None; DOMAINS],
            records: Vec::new(),
            last_id: 0,
            swapped: BTreeMap::new(),
            idle: BTreeSet::new(),
            sessions: 0,
            told: BTreeSet::new(),
        }
    }

    /// A domain has died, and another one came.
    pub fn replace(&mut self, index: usize, domid: u32) {
        self.domids[index] = domid;
        self.ids[index] = None;
        self.frames[index] = tags(index);
        self.missing.retain(|(domain, _)| *domain != index);
        self.pages[index] = FRAMES;
        self.limits[index] = u64::MAX;
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
            Ok(index)
        };
        let (a, b) = (find(domids[0], ids[0])?, find(domids[1], ids[1])?);
        match self.refuses[a].or(self.refuses[b]) {
            Some(error) => Err(error),
            None => Ok((a, b)),
        }
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
        let taken = self.swapped.iter().any(|(other, theirs)| {
            // What can never be put back is in nobody's way.
            let waits = theirs.iter().all(|id| self.ids.contains(&Some(*id)));
            let waits = waits || !self.idle.contains(other);
            *other != number && waits && theirs.iter().any(|id| ids.contains(id))
        });
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

    /// What the hypervisor would do with a pair of two domains in a mode, when so many frames
    /// have been found before that would go over alone.
    pub fn look(&self, (a, b): (usize, usize), pair: (u64, u64), mode: u32, before: u64) -> What {
        // Both are looked up before either is taken hold of.
        if pair.0.max(pair.1) >= FRAMES {
            return What::Refuse(Errno::ENOENT);
        }
        let (a, b) = ((a, pair.0), (b, pair.1));
        let is_missing = |place| self.missing.contains(&place);
        let held = |places: &[(usize, u64)]| {
            let error = places.iter().find_map(|place| self.held.get(place));
            error.map(|error| What::Refuse(*error))
        };
        if let Some((from, to)) = direction(a, b, mode) {
            match (is_missing(from), is_missing(to)) {
                (true, true) => return What::Nothing,
                (true, false) => return held(&[to]).unwrap_or(What::Nothing),
                (false, true) if self.pages[to.0] + before >= self.limits[to.0] => {
                    return held(&[from]).unwrap_or(What::Refuse(Errno::ENOSPC));
                }
                (false, true) => return held(&[from]).unwrap_or(What::Move),
                (false, false) => (),
            }
        }
        if is_missing(a) || is_missing(b) {
            return What::Refuse(Errno::ENODATA);
        }
        held(&[a, b]).unwrap_or(What::Swap)
    }

    /// The hypervisor does that.
    pub fn deal(&mut self, domains: (usize, usize), pair: (u64, u64), mode: u32) -> What {
        let what = self.look(domains, pair, mode, 0);
        let (a, b) = ((domains.0, pair.0), (domains.1, pair.1));
        let (from, to) = direction(a, b, mode).unwrap_or((a, b));
        match what {
            What::Refuse(_) => (),
            What::Swap if mode == sys::BIND_KEEP => (),
            What::Swap => {
                let old = self.read(a);
                self.set(a, self.read(b));
                self.set(b, old);
            }
            What::Nothing => self.set(to, 0),
            What::Move => {
                self.set(to, self.read(from));
                self.missing.remove(&to);
                self.pages[to.0] += 1;
                self.depopulate(from);
            }
        }
        what
    }

    fn read(&self, (domain, gfn): (usize, u64)) -> u64 {
        self.frames[domain][gfn as usize]
    }

    fn set(&mut self, (domain, gfn): (usize, u64), contents: u64) {
        self.frames[domain][gfn as usize] = contents;
    }

    /// A domain has no memory there any more.
    pub fn depopulate(&mut self, place: (usize, u64)) {
        self.set(place, 0);
        if self.missing.insert(place) {
            self.pages[place.0] -= 1;
        }
    }

    /// It has again, and has written to it.
    pub fn populate(&mut self, place: (usize, u64), contents: u64) {
        self.set(place, contents);
        if self.missing.remove(&place) {
            self.pages[place.0] += 1;
        }
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
