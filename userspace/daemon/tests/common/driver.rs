// SPDX-License-Identifier: GPL-2.0-only

//! A driver that swaps their memory, and fails as it is told.

use super::*;

/// What the fake driver is to do wrong.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Refuse to open a session.
    pub open: Option<Errno>,
    /// Refuse the pair with this frame in A with this status.
    pub refuse: HashMap<u64, i32>,
    /// Somebody has these frames in A mapped once a guest of it was suspended.
    pub busy_when_suspended: Vec<u64>,
    /// Fail the commit once the cursor is here.
    pub fail_at: Option<u64>,
    /// Swap at most this many pairs a call.
    pub step: Option<u64>,
    /// Swap the wrong way at this frame in A.
    pub spoil: Option<u64>,
    /// Interrupt every other call.
    pub interrupt: bool,
    /// Panic in the middle of a commit.
    pub panic: bool,
    /// Say that the record of a half move is kept between domains 2 and 1.
    pub record: bool,
    /// It cannot relocate.
    pub old: bool,
    /// Domains that have died, and whose domid another one has.
    pub reused: HashSet<u32>,
    /// The same, and nobody has it.
    pub gone: HashSet<u32>,
}

/// A driver that swaps the memory of fake host VMs.
#[derive(Debug)]
pub struct FakeDriver {
    pub hosts: HashMap<u32, Host>,
    pub faults: Mutex<Faults>,
    /// The modes of its sessions so far.
    pub modes: Mutex<Vec<Mode>>,
    /// Pairs whose contents were to stay where they are.
    pub kept: Arc<Mutex<Vec<(u64, u64)>>>,
    /// Domains of which a session has pairs swapped: no other session can be bound to them.
    pub busy: Arc<Mutex<HashSet<u32>>>,
}

struct FakeSession {
    a: Host,
    b: Host,
    domids: (u32, u32),
    ids: [u64; 2],
    faults: Faults,
    mode: Mode,
    kept: Arc<Mutex<Vec<(u64, u64)>>>,
    busy: Arc<Mutex<HashSet<u32>>>,
    /// It is this one that has them swapped.
    swapped: bool,
    pairs: Vec<(u64, u64)>,
    refused: Vec<bool>,
    cursor: u64,
    calls: u64,
}

impl Sessions for FakeDriver {
    fn info(&self) -> Result<Info, Error> {
        Ok(Info {
            size: 40,
            features: match lock(&self.faults).old {
                true => FEATURE_SWAP,
                false => FEATURE_SWAP | FEATURE_KEEP | FEATURE_RELOCATE,
            },
            max_add_runs: 1000,
            batch_pairs: 512,
            max_runs: 1 << 20,
            max_pairs: 1 << 24,
            ..Default::default()
        })
    }

    fn open(
        &self,
        [domid_a, domid_b]: [u32; 2],
        expected: [u64; 2],
        mode: Mode,
    ) -> Result<Box<dyn DriverSession>, Error> {
        let faults = lock(&self.faults).clone();
        let failed = |errno| Error {
            op: Op::Bind,
            errno,
        };
        if let Some(errno) = faults.open {
            return Err(failed(errno));
        }
        let id = |domid| 100 + u64::from(domid) + 1000 * u64::from(faults.reused.contains(&domid));
        let ids = [id(domid_a), id(domid_b)];
        let find = |d| {
            let there = self.hosts.get(&d).filter(|_| !faults.gone.contains(&d));
            there.cloned().ok_or(failed(Errno::ESRCH))
        };
        for (domid, expected) in [domid_a, domid_b].into_iter().zip(expected) {
            // The management VM.
            if domid == 0 {
                return Err(failed(Errno::EPERM));
            }
            find(domid)?;
            if expected != 0 && expected != id(domid) {
                return Err(failed(Errno::ESRCH));
            }
        }
        let busy = |d: &u32| lock(&self.busy).contains(d);
        if [domid_a, domid_b].iter().any(busy) {
            return Err(failed(Errno::EBUSY));
        }
        lock(&self.modes).push(mode);
        Ok(Box::new(FakeSession {
            ids,
            mode,
            kept: self.kept.clone(),
            busy: self.busy.clone(),
            swapped: false,
            a: find(domid_a)?,
            b: find(domid_b)?,
            domids: (domid_a, domid_b),
            faults,
            pairs: Vec::new(),
            refused: Vec::new(),
            cursor: 0,
            calls: 0,
        }))
    }

    fn has_record(&self, domid_a: u32, domid_b: u32) -> Result<bool, Error> {
        let these = domid_a.min(domid_b) == 1 && domid_a.max(domid_b) == 2;
        Ok(lock(&self.faults).record && these)
    }
}

impl FakeSession {
    fn status_of(&self, pair: usize) -> i32 {
        let (a, b) = self.pairs[pair];
        if !lock(&self.a).memory.contains_key(&a) || !lock(&self.b).memory.contains_key(&b) {
            return -(Errno::ENOENT as i32);
        }
        if let Some(status) = self.faults.refuse.get(&a) {
            return *status;
        }
        let suspended = lock(&self.a).suspended > 0;
        if suspended && self.faults.busy_when_suspended.contains(&a) {
            return -(Errno::EBUSY as i32);
        }
        let there = (lock(&self.a).has(a), lock(&self.b).has(b));
        match (self.mode, there) {
            (Mode::ToB, (true, _)) | (Mode::ToA, (_, true)) | (_, (true, true)) => 0,
            _ => -(Errno::ENODATA as i32),
        }
    }

    /// Whether a frame would go over without one in return.
    fn moves(&self, pair: usize) -> bool {
        let (a, b) = self.pairs[pair];
        let both = lock(&self.a).has(a) && lock(&self.b).has(b);
        self.status_of(pair) == 0 && !both
    }

    /// The giver has nothing: so has the receiver.
    fn empty(&self, pair: usize) {
        let (a, b) = self.pairs[pair];
        match self.mode {
            Mode::ToB => lock(&self.b).memory.insert(b, 0),
            Mode::ToA => lock(&self.a).memory.insert(a, 0),
            _ => None,
        };
    }

    fn exchange(&self, pair: usize) {
        let (a, b) = self.pairs[pair];
        if self.mode == Mode::Keep {
            return;
        }
        let (mut host_a, mut host_b) = (lock(&self.a), lock(&self.b));
        let (old_a, old_b) = (host_a.memory[&a], host_b.memory[&b]);
        let new_b = if self.faults.spoil == Some(a) {
            old_a + 1
        } else {
            old_a
        };
        host_a.memory.insert(a, old_b);
        host_b.memory.insert(b, new_b);
        let there = (host_a.has(a), host_b.has(b));
        if there != (true, true) {
            host_a.becomes(a, there.1);
            host_b.becomes(b, there.0);
        }
    }

    /// From now on it has pairs swapped, or none any more.
    fn claim(&mut self, swapped: bool) {
        let mut busy = lock(&self.busy);
        for domid in [self.domids.0, self.domids.1] {
            match swapped {
                true => drop(busy.insert(domid)),
                false if self.swapped => drop(busy.remove(&domid)),
                false => {}
            }
        }
        self.swapped = swapped;
    }

    fn interrupted(&mut self) -> bool {
        self.calls += 1;
        self.faults.interrupt && self.calls % 2 == 1
    }
}

/// What is half swapped is swapped back when nobody has the session any more.
impl Drop for FakeSession {
    fn drop(&mut self) {
        if self.cursor < self.pairs.len() as u64 {
            self.faults.interrupt = false;
            let _ = self.rollback();
        }
        self.claim(false);
    }
}

impl DriverSession for FakeSession {
    fn ids(&self) -> [u64; 2] {
        self.ids
    }

    fn add(&mut self, runs: &[Run]) -> Result<(), AddFailed> {
        for r in runs {
            let nr = u64::from(r.nr);
            self.pairs
                .extend((r.gfn_a..r.gfn_a + nr).zip(r.gfn_b..r.gfn_b + nr));
        }
        self.refused.resize(self.pairs.len(), false);
        if self.mode == Mode::Keep {
            lock(&self.kept).extend(&self.pairs);
        }
        Ok(())
    }

    fn prepare(&self, first: u64, moves_before: u64, status: &mut [i32]) -> Result<Checked, Error> {
        let before = || (0..first as usize).filter(|i| self.moves(*i)).count() as u64;
        // What a caller looks at out of turn is one pair.
        assert!((moves_before, status.len()) == (0, 1) || moves_before == before());
        let (mut refused, mut moves) = (0, 0);
        for (i, s) in status.iter_mut().enumerate() {
            *s = self.status_of(first as usize + i);
            refused += u64::from(*s < 0);
            moves += u64::from(self.moves(first as usize + i));
        }
        Ok(Checked {
            done: status.len() as u64,
            refused,
            moves,
        })
    }

    fn commit(&mut self, status: &mut [i32]) -> Result<Step, Error> {
        if self.interrupted() {
            return Err(Error {
                op: Op::Commit,
                errno: Errno::EINTR,
            });
        }
        let most = self
            .faults
            .step
            .unwrap_or(u64::MAX)
            .min(status.len() as u64);
        let mut step = Step {
            cursor: self.cursor,
            ..Default::default()
        };
        for s in status.iter_mut().take(most as usize) {
            if self.faults.fail_at == Some(self.cursor) {
                if step.cursor == self.cursor && step.swapped + step.refused == 0 {
                    return Err(Error {
                        op: Op::Commit,
                        errno: Errno::ESRCH,
                    });
                }
                break;
            }
            *s = self.status_of(self.cursor as usize);
            if *s == 0 {
                step.moved += u64::from(self.moves(self.cursor as usize));
                self.exchange(self.cursor as usize);
                step.swapped += 1;
            } else {
                if *s == -(Errno::ENODATA as i32) {
                    self.empty(self.cursor as usize);
                }
                self.refused[self.cursor as usize] = true;
                step.refused += 1;
            }
            self.cursor += 1;
            assert!(!self.faults.panic, "the driver panics, as it is told");
        }
        step.cursor = self.cursor;
        if step.swapped > 0 {
            self.claim(true);
        }
        Ok(step)
    }

    fn status(&self) -> Result<Status, Error> {
        Ok(Status {
            domid_a: self.domids.0,
            domid_b: self.domids.1,
            pairs: self.pairs.len() as u64,
            cursor: self.cursor,
            ..Default::default()
        })
    }

    fn spent(&self) -> Spent {
        Spent {
            hypercalls: self.calls,
            tlb_flushes: 2 * self.calls,
            ..Default::default()
        }
    }

    fn rollback(&mut self) -> Result<Step, Error> {
        if self.interrupted() {
            return Err(Error {
                op: Op::Rollback,
                errno: Errno::EINTR,
            });
        }
        let most = self.faults.step.unwrap_or(u64::MAX);
        let mut step = Step::default();
        while self.cursor > 0 && step.swapped < most {
            self.cursor -= 1;
            if !self.refused[self.cursor as usize] {
                self.exchange(self.cursor as usize);
                step.swapped += 1;
            }
        }
        step.cursor = self.cursor;
        if self.cursor == 0 {
            self.claim(false);
        }
        Ok(step)
    }
}
