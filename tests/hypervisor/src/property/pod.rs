// SPDX-License-Identifier: GPL-2.0-only

//! Populate-on-demand: what a pair is if frames may be moved, and what counts with it.

use anyhow::ensure;
use anyhow::Result;
use rand::Rng;

use super::Test;
use super::ENTRY;
use super::WHOLE;
use crate::world::with;
use crate::world::Faults;
use crate::world::World;
use crate::world::DOMAINS;
use crate::world::GFNS;
use crate::world::NONE;
use crate::xen::Direction;
use crate::xen::Pod;
use crate::xen::Run;
use crate::xen::RAM_LOGDIRTY;

/// In place of a frame: populated on demand.
pub(super) const POD: u64 = u64::MAX - 1;
/// gfns that nothing but whole superpages is moved to.
const SPARE: u64 = WHOLE + 2 * ENTRY;
/// What a giver without debt gets into its cache.
const RESERVE: u64 = 128;

const EBUSY: i32 = -16;
const ENODATA: i32 = -61;
const ENOENT: i32 = -2;
const ENOSPC: i32 = -28;

/// What happens to a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is refused.
    Refused(i32),
    /// Frames are exchanged.
    Swap,
    /// The frame goes over.
    Move,
    /// The frame where it would go to is zeroed.
    Zero,
}

impl Fate {
    pub(super) fn status(self) -> i32 {
        match self {
            Self::Refused(status) => status,
            Self::Swap | Self::Move => 0,
            Self::Zero => ENODATA,
        }
    }
}

/// The state of a call in one direction.
#[derive(Debug)]
pub(super) struct Moving {
    to: Direction,
    giver: usize,
    receiver: usize,
    before: (Pod, Pod),
    limit: u64,
    pub(super) moved: u64,
    zeroed: u64,
}

impl Moving {
    pub(super) fn new(test: &Test, a: usize, b: usize, to: Direction) -> Self {
        let (giver, receiver) = if to == Direction::ToA { (b, a) } else { (a, b) };
        let before = (test.xen.pod(giver as u16), test.xen.pod(receiver as u16));
        Self {
            to,
            giver,
            receiver,
            before,
            limit: test.limit[receiver],
            moved: 0,
            zeroed: 0,
        }
    }

    /// Whether the receiver may have one more. What its cache will not need is no matter.
    fn has_room(&self) -> bool {
        let pod = &self.before.1;
        let moved = self.moved + 1;
        let excess = pod.cache.saturating_sub(pod.entries.saturating_sub(moved));
        pod.tot_pages + moved <= self.limit + excess
    }

    /// Note what a check says of a pair.
    pub(super) fn check(&mut self, fate: Fate) {
        self.moved += u64::from(fate == Fate::Move);
    }

    /// What is told as moved was, or would be.
    pub(super) fn verify_told(&self, told: &[u64]) -> Result<()> {
        let want = match self.to {
            Direction::None => [0, 0],
            Direction::ToA => [self.moved, 0],
            Direction::ToB => [0, self.moved],
        };
        ensure!(told == want, "{told:?} are told as moved, not {want:?}");
        Ok(())
    }

    /// What was counted is what was moved.
    pub(super) fn verify(&self, test: &Test, freed: u64) -> Result<()> {
        let (giver, receiver) = self.before;
        if self.to == Direction::None {
            ensure!(freed == 0, "{freed} frames were freed");
        }
        let debt = giver.entries > giver.cache;
        let reserve = if debt {
            0
        } else {
            RESERVE.saturating_sub(giver.entries)
        };
        let reserve = reserve.min(self.moved);
        let entries = receiver.entries - self.moved;
        let cache = receiver.cache.min(entries);
        let got = test.xen.pod(self.giver as u16);
        let want = Pod {
            tot_pages: giver.tot_pages - self.moved + reserve,
            cache: giver.cache + reserve,
            entries: giver.entries + self.moved,
            ..got
        };
        ensure!(got == want, "d{} gave: {got:?}, not {want:?}", self.giver);
        let got = test.xen.pod(self.receiver as u16);
        let want = Pod {
            tot_pages: receiver.tot_pages + self.moved - (receiver.cache - cache),
            cache,
            entries,
            ..got
        };
        ensure!(got == want, "d{} got: {got:?}, not {want:?}", self.receiver);
        ensure!(
            got.tot_pages <= test.limit[self.receiver].max(receiver.tot_pages),
            "d{}: {got:?} exceeds {}",
            self.receiver,
            test.limit[self.receiver]
        );
        Ok(())
    }
}

impl Test {
    /// What has to become of a pair.
    pub(super) fn fate(&self, pair: (usize, usize, usize, usize), moving: &Moving) -> Fate {
        let (a, b, ga, gb) = pair;
        let (ma, mb) = (self.map[a][ga], self.map[b][gb]);
        let busy = |mfn| {
            if self.held(mfn) {
                Some(Fate::Refused(EBUSY))
            } else {
                None
            }
        };
        let (gives, takes) = if moving.to == Direction::ToA {
            (mb, ma)
        } else {
            (ma, mb)
        };
        match (moving.to, gives, takes) {
            (Direction::None, _, _) => match (ma, mb) {
                // What is at both gfns counts before who else uses the frames.
                (NONE, _) => Fate::Refused(ENOENT),
                (POD, _) => Fate::Refused(ENODATA),
                (_, NONE) => Fate::Refused(ENOENT),
                (_, POD) => Fate::Refused(ENODATA),
                _ => busy(ma).or(busy(mb)).unwrap_or(Fate::Swap),
            },
            (_, NONE, _) | (_, _, NONE) => Fate::Refused(ENOENT),
            (_, POD, POD) => Fate::Refused(ENODATA),
            (_, POD, mfn) => busy(mfn).unwrap_or(Fate::Zero),
            (_, mfn, POD) if !moving.has_room() => busy(mfn).unwrap_or(Fate::Refused(ENOSPC)),
            (_, mfn, POD) => busy(mfn).unwrap_or(Fate::Move),
            _ => busy(ma).or(busy(mb)).unwrap_or(Fate::Swap),
        }
    }

    /// Whether a pair was dealt with after all, by the look of it.
    pub(super) fn was_done(&self, pair: (usize, usize, usize, usize), fate: Fate) -> bool {
        let (a, b, ga, gb) = pair;
        let changed = |id: usize, gfn: usize| {
            self.map[id][gfn] < POD
                && self.xen.lookup(id as u16, gfn as u64).mfn != self.map[id][gfn]
        };
        match fate {
            Fate::Swap | Fate::Move => changed(a, ga) || changed(b, gb),
            Fate::Zero => {
                let (id, gfn) = if self.map[a][ga] < POD {
                    (a, ga)
                } else {
                    (b, gb)
                };
                // It may have been zero before.
                let clean = self.tracked[id][gfn]
                    && self.xen.lookup(id as u16, gfn as u64).p2m_type == RAM_LOGDIRTY;
                // SAFETY: a frame of the simulated machine.
                !clean && unsafe { *self.tag(self.map[id][gfn]) == 0 }
            }
            Fate::Refused(_) => false,
        }
    }

    /// Note what a call did to a pair.
    pub(super) fn apply(
        &mut self,
        pair: (usize, usize, usize, usize),
        fate: Fate,
        moving: &mut Moving,
    ) {
        let (a, b, ga, gb) = pair;
        match fate {
            Fate::Swap => self.exchange(a, b, ga, gb),
            Fate::Move => {
                // A frame and nothing change places.
                self.exchange(a, b, ga, gb);
                moving.moved += 1;
                self.total.moved += 1;
            }
            Fate::Zero => {
                let mfn = self.map[a][ga].min(self.map[b][gb]);
                self.contents[mfn as usize] = 0;
                // As if the domain had written to it.
                let (id, gfn) = if moving.receiver == a {
                    (a, ga)
                } else {
                    (b, gb)
                };
                self.tracked[id][gfn] = false;
                moving.zeroed += 1;
                self.total.zeroed += 1;
            }
            Fate::Refused(_) => {}
        }
    }

    /// Entries to be populated, frames to do that with, and limits.
    pub(super) fn populate_on_demand(&mut self) -> Result<()> {
        for id in 1..=DOMAINS {
            for (gfn, order) in [(512, 9), (SPARE, 9), (SPARE + ENTRY, 9)] {
                self.xen.pod_mark(id as u16, gfn, order)?;
                self.map[id][gfn as usize..(gfn + ENTRY) as usize].fill(POD);
            }
            for gfn in 256..384 {
                self.xen.pod_mark(id as u16, gfn, 0)?;
                self.map[id][gfn as usize] = POD;
            }
            let pod = self.xen.pod(id as u16);
            // None, few, more than the reserve, all.
            let cache = [0, 40, 200, pod.entries][id - 1];
            self.xen.pod_target(id as u16, pod.tot_pages + cache)?;
        }
        Ok(())
    }

    /// Frames are populated, given back, and limits change.
    pub(super) fn disturb_pod(&mut self) -> Result<()> {
        with(|w| w.begin(Faults::default()));
        let id = self.rng.random_range(1..=DOMAINS);
        let pod = self.xen.pod(id as u16);
        match self.rng.random_range(0..4) {
            0 | 1 if pod.cache > 0 => {
                let gfn = self.rng.random_range(256..1024);
                if self.map[id][gfn as usize] == POD {
                    self.xen.pod_touch(id as u16, gfn);
                    self.resync(id)?;
                }
            }
            2 => {
                let gfn = self.rng.random_range(256..1024);
                let mfn = self.map[id][gfn as usize];
                if mfn == POD || (mfn != NONE && !self.held(mfn) && pod.entries > pod.cache) {
                    self.xen.pod_decrease(id as u16, gfn, 0);
                    self.resync(id)?;
                    // And what was given back is to be populated on demand once more.
                    self.xen.pod_mark(id as u16, gfn, 0)?;
                    self.map[id][gfn as usize] = POD;
                }
            }
            _ => {
                self.limit[id] = if self.rng.random() {
                    u64::from(u32::MAX)
                } else {
                    pod.tot_pages + self.rng.random_range(0..16)
                };
                self.xen.set_limit(id as u16, self.limit[id], 0);
            }
        }
        with(World::settle);
        Ok(())
    }

    /// Find out what populate-on-demand has done: frames came, and those with zeros went.
    fn resync(&mut self, id: usize) -> Result<()> {
        for gfn in 0..GFNS {
            let old = self.map[id][gfn];
            let new = match self.xen.lookup(id as u16, gfn as u64) {
                e if e.p2m_type == crate::xen::ON_DEMAND => POD,
                e => e.mfn,
            };
            if old == new {
                continue;
            }
            ensure!(old != NONE, "d{id} gfn {gfn:#x} is there all of a sudden");
            ensure!(
                old == POD || new == NONE || self.contents[old as usize] == 0,
                "d{id} gfn {gfn:#x}: contents are lost"
            );
            self.map[id][gfn] = new;
            self.tracked[id][gfn] = false;
            if new < POD {
                // SAFETY: a frame of the simulated machine. The domain writes to it.
                unsafe { *self.tag(new) = new };
                self.contents[new as usize] = new;
            }
        }
        Ok(())
    }

    /// Whole superpages go over and come back, exactly accounted for.
    pub(super) fn whole_move(&mut self) -> Result<()> {
        let (a, b) = self.domains();
        let to = if self.rng.random() {
            Direction::ToA
        } else {
            Direction::ToB
        };
        let n = self.rng.random_range(1..=2);
        let (gfn_a, gfn_b) = match to {
            Direction::ToA => (SPARE, WHOLE),
            _ => (WHOLE, SPARE),
        };
        let run = Run {
            gfn_a,
            gfn_b,
            nr: (n * ENTRY) as u32,
            pad: 0,
        };
        let receiver = if to == Direction::ToA { a } else { b };
        let limits = self.limit.clone();
        for id in [a, b] {
            self.limit[id] = u64::from(u32::MAX);
            self.xen.set_limit(id as u16, self.limit[id], 0);
        }
        let before = (self.map[a].clone(), self.map[b].clone());
        for (check, to) in [(true, to), (false, to), (false, to.opposite())] {
            let faults = Faults {
                preempt: self.rng.random(),
                ..Faults::default()
            };
            self.moving = to;
            self.call(a, b, &[run], check, faults, false)?;
            self.moving = Direction::None;
            let n = if check { 0 } else { n };
            ensure!(
                self.last.superpages == n && self.last.splits == 0 && self.last.writes == 3 * n,
                "to d{receiver}: {:?} of {n} superpages",
                self.last
            );
        }
        ensure!(
            (&self.map[a], &self.map[b]) == (&before.0, &before.1),
            "what was moved has not come back"
        );
        for id in [a, b] {
            self.limit[id] = limits[id];
            self.xen.set_limit(id as u16, self.limit[id], 0);
        }
        with(|w| w.begin(Faults::default()));
        Ok(())
    }

    /// What is told of frames that are marked as dirty.
    pub(super) fn verify_dirty(&self, moving: &Moving, dirtied: u64, swapped: u64) -> Result<()> {
        let sides = [moving.giver, moving.receiver];
        let logging = sides.into_iter().filter(|id| self.logging[*id]).count() as u64;
        let zeroed = u64::from(self.logging[moving.receiver]) * moving.zeroed;
        ensure!(
            dirtied == swapped * logging + zeroed,
            "{dirtied} frames reported as dirty, {swapped} pairs swapped, {zeroed} frames zeroed"
        );
        Ok(())
    }
}
