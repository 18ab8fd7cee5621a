// SPDX-License-Identifier: GPL-2.0-only

//! What the driver should answer, worked out in the simplest way: a list of
//! pairs with a mark each. Written from the documentation, not from the driver.

mod world;

use nix::errno::Errno;
use vmbeam_uapi::sys;

pub use world::What;
pub use world::World;
pub use world::DOMAINS;
pub use world::FRAMES;
pub use world::HELD;

/// Limits that the documentation states.
pub const MAX_ADD_RUNS: u32 = 65536;
/// Pairs in one hypercall.
pub const BATCH_PAIRS: u64 = 4096;
const MAX_PAIRS: u64 = 1 << 28;
const GFN_LIMIT: u64 = 1 << 52;

/// What has become of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Home,
    Swapped,
    Refused,
    Back,
}

/// Two domains, by number and by the id that no other domain ever has.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    domids: [u32; 2],
    ids: [u64; 2],
}

/// One open file.
#[derive(Clone, Debug, Default)]
pub struct Session {
    bound: Option<Bound>,
    abandoned: bool,
    /// `BIND_*`
    mode: u32,
    /// Frames that went over alone, and came back so.
    went: u64,
    came: u64,
    /// Tells it from others.
    number: u64,
    runs: Vec<sys::Run>,
    marks: Vec<Mark>,
    merged: u64,
    cursor: usize,
    committing: bool,
    rolling_back: bool,
}

/// What a call should do: an error or none, and the fields that it writes.
#[derive(Debug)]
pub struct Answer<T> {
    /// `Ok`, or what the call fails with.
    pub result: Result<(), Errno>,
    /// The structure afterwards.
    pub out: T,
    /// The array of statuses afterwards, as far as it is written.
    pub status: Vec<i32>,
}

impl<T> Answer<T> {
    /// An error that leaves the structure like this.
    pub fn fail(errno: Errno, out: T) -> Self {
        Self {
            result: Err(errno),
            out,
            status: Vec::new(),
        }
    }
}

/// Where the caller's arrays can be read or written, in elements.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// The structure can be written.
    pub structure: bool,
    /// Elements of the array that can be accessed.
    pub elements: u64,
}

impl Session {
    fn domains(&self, world: &World) -> Result<(usize, usize), Errno> {
        let bound = self.bound.ok_or(Errno::EBADFD)?;
        world.domains(bound.domids, bound.ids)
    }

    fn pair(&self, number: usize) -> (u64, u64) {
        let mut left = number as u64;
        for run in &self.runs {
            if left < u64::from(run.nr) {
                return (run.gfn_a + left, run.gfn_b + left);
            }
            left -= u64::from(run.nr);
        }
        (u64::MAX, u64::MAX)
    }

    /// Pairs in the session.
    pub fn pairs(&self) -> u64 {
        self.marks.len() as u64
    }

    /// The cursor.
    pub fn cursor(&self) -> u64 {
        self.cursor as u64
    }

    /// Some pairs are swapped and some are not, and it matters.
    pub fn half_way(&self) -> bool {
        self.mode != sys::BIND_KEEP
            && matches!(self.state(), 3 | 5)
            && self.count(Mark::Swapped) > 0
    }

    /// A frame that is swapped now: `choose` is given how many there are.
    pub fn swapped_frame(
        &self,
        world: &World,
        choose: impl FnOnce(usize) -> usize,
    ) -> Option<(usize, u64)> {
        let (a, b) = self.domains(world).ok()?;
        let frames: Vec<_> = (0..self.cursor)
            .filter(|number| self.marks[*number] == Mark::Swapped)
            .flat_map(|number| {
                let pair = self.pair(number);
                [(a, pair.0), (b, pair.1)]
            })
            .collect();
        frames.get(choose(frames.len())).copied()
    }

    fn count(&self, mark: Mark) -> u64 {
        self.marks.iter().filter(|m| **m == mark).count() as u64
    }

    /// `sys::State` as a number.
    pub fn state(&self) -> u32 {
        let (all, none) = (self.cursor == self.marks.len(), self.cursor == 0);
        match (self.bound, self.committing, self.rolling_back) {
            (None, _, _) if self.abandoned => 7,
            (None, _, _) => 0,
            (_, false, false) if self.marks.is_empty() => 1,
            (_, false, false) => 2,
            (_, true, false) if !all => 3,
            (_, true, false) => 4,
            (_, _, true) if !none => 5,
            (_, _, true) => 6,
        }
    }

    /// `BIND`, up to the point where the domains' ids are told.
    pub fn may_bind(&self, world: &World, arg: sys::Bind) -> Result<(), Errno> {
        let one_mode = sys::Mode::from_flags(arg.flags).is_some();
        if !one_mode || arg.domid_a >= 0x7ff0 || arg.domid_b >= 0x7ff0 || arg.domid_a == arg.domid_b
        {
            return Err(Errno::EINVAL);
        }
        if self.state() != 0 {
            return Err(Errno::EBADFD);
        }
        let (a, b) = world.domains([arg.domid_a, arg.domid_b], [arg.id_a, arg.id_b])?;
        let ids = [a, b].map(|index| world.ids[index].unwrap_or_default());
        world.free(ids, self.number)
    }

    /// `BIND` has succeeded and told these ids.
    pub fn bind(&mut self, world: &mut World, arg: sys::Bind) {
        self.bound = Some(Bound {
            domids: [arg.domid_a, arg.domid_b],
            ids: [arg.id_a, arg.id_b],
        });
        self.mode = arg.flags;
        self.number = world.number();
    }

    /// An ioctl has ended: others may be kept out now, or no longer.
    fn note(&self, world: &mut World) {
        if let Some(bound) = self.bound {
            world.claim(self.number, bound.ids, self.count(Mark::Swapped) > 0);
        }
    }

    /// `ABANDON`
    pub fn abandon(
        &mut self,
        world: &mut World,
        arg: sys::Abandon,
        access: Access,
    ) -> Answer<sys::Abandon> {
        let Some(bound) = self.bound else {
            return Answer::fail(Errno::EBADFD, arg);
        };
        if arg.expected != self.cursor() {
            return self.stale(arg, access.structure, |arg, cursor| arg.cursor = cursor);
        }
        if !access.structure {
            return Answer::fail(Errno::EFAULT, arg);
        }
        world.claim(self.number, bound.ids, false);
        let cursor = self.cursor();
        *self = Self {
            abandoned: true,
            ..Self::default()
        };
        Answer {
            result: Ok(()),
            out: sys::Abandon { cursor, ..arg },
            status: Vec::new(),
        }
    }

    /// `ADD`; `runs` are those that can be read.
    pub fn add(
        &mut self,
        arg: sys::Add,
        runs: Option<&[sys::Run]>,
        access: Access,
    ) -> Answer<sys::Add> {
        let result = self.take(arg.nr_runs, runs);
        let mut out = arg;
        if access.structure {
            out.bad_run = match result {
                Err((_, Some(index))) => index,
                _ => arg.nr_runs,
            };
            out.total_runs = self.merged;
            out.total_pairs = self.pairs();
        }
        let result = match result {
            Err((errno, _)) => Err(errno),
            Ok(()) if !access.structure => Err(Errno::EFAULT),
            Ok(()) => Ok(()),
        };
        Answer {
            result,
            out,
            status: Vec::new(),
        }
    }

    fn take(&mut self, nr: u32, runs: Option<&[sys::Run]>) -> Result<(), (Errno, Option<u32>)> {
        if nr == 0 {
            return Err((Errno::EINVAL, None));
        }
        if nr > MAX_ADD_RUNS {
            return Err((Errno::E2BIG, None));
        }
        if self.bound.is_none() || self.committing || self.rolling_back {
            return Err((Errno::EBADFD, None));
        }
        let new = runs.ok_or((Errno::EFAULT, None))?;
        for (index, run) in (0u32..).zip(new) {
            if run.nr == 0 || run.reserved != 0 {
                return Err((Errno::EINVAL, Some(index)));
            }
            let beyond = |gfn: u64| {
                gfn.checked_add(u64::from(run.nr))
                    .is_none_or(|end| end > GFN_LIMIT)
            };
            if beyond(run.gfn_a) || beyond(run.gfn_b) {
                return Err((Errno::EOVERFLOW, Some(index)));
            }
        }
        let more: u64 = new.iter().map(|run| u64::from(run.nr)).sum();
        if self.pairs() + more > MAX_PAIRS {
            return Err((Errno::ENOSPC, None));
        }
        let overlap =
            |x: u64, nx: u32, y: u64, ny: u32| x < y + u64::from(ny) && y < x + u64::from(nx);
        for (index, run) in new.iter().enumerate() {
            let taken = self.runs.iter().chain(&new[..index]).any(|old| {
                overlap(run.gfn_a, run.nr, old.gfn_a, old.nr)
                    || overlap(run.gfn_b, run.nr, old.gfn_b, old.nr)
            });
            if taken {
                return Err((Errno::EEXIST, Some(index as u32)));
            }
        }
        for run in new {
            let follows = self.runs.last().is_some_and(|last| {
                last.gfn_a + u64::from(last.nr) == run.gfn_a
                    && last.gfn_b + u64::from(last.nr) == run.gfn_b
            });
            self.merged += u64::from(!follows);
            self.runs.push(*run);
        }
        self.marks
            .resize(self.marks.len() + more as usize, Mark::Home);
        Ok(())
    }

    /// `CHECK`
    pub fn check(&self, world: &World, arg: sys::Check, access: Access) -> Answer<sys::Check> {
        let pairs = self.pairs();
        if pairs == 0 {
            return Answer::fail(Errno::EBADFD, arg);
        }
        let Some(nr) = stretch(arg.first, arg.nr, pairs).filter(|nr| *nr > 0) else {
            return Answer::fail(Errno::EINVAL, arg);
        };
        if arg.moves_before > arg.first {
            return Answer::fail(Errno::EINVAL, arg);
        }
        if !access.structure {
            return Answer::fail(Errno::EFAULT, arg);
        }
        // What was found out before an error counts, in whole batches.
        let domains = self.domains(world);
        let (done, result) = if let Err(error) = domains {
            (0, Err(error))
        } else if arg.status != 0 && access.elements < nr {
            (
                access.elements / BATCH_PAIRS * BATCH_PAIRS,
                Err(Errno::EFAULT),
            )
        } else {
            (nr, Ok(()))
        };
        let mut moves = arg.moves_before;
        // A call that got anywhere succeeds, unless memory was taken away.
        let status: Vec<i32> = (arg.first..arg.first + done)
            .filter_map(|i| {
                let what = world.look(domains.ok()?, self.pair(i as usize), self.mode, moves);
                moves += u64::from(what == What::Move);
                Some(what.status())
            })
            .collect();
        Answer {
            result,
            out: sys::Check {
                done,
                refused: status.iter().filter(|s| **s != 0).count() as u64,
                moves: moves - arg.moves_before,
                ..arg
            },
            status,
        }
    }

    /// `COMMIT`
    pub fn commit(
        &mut self,
        world: &mut World,
        arg: sys::Commit,
        access: Access,
    ) -> Answer<sys::Commit> {
        if !matches!(self.state(), 2 | 3) {
            return Answer::fail(Errno::EBADFD, arg);
        }
        if arg.expected != self.cursor() {
            return self.stale(arg, access.structure, |arg, cursor| arg.cursor = cursor);
        }
        let Some(nr) = stretch(self.cursor(), arg.nr, self.pairs()) else {
            return Answer::fail(Errno::EINVAL, arg);
        };
        let ids = self.bound.map(|bound| bound.ids).unwrap_or_default();
        if let Err(error) = world.free(ids, self.number) {
            return Answer::fail(error, arg);
        }
        if !access.structure {
            return Answer::fail(Errno::EFAULT, arg);
        }
        let nothing = sys::Commit {
            cursor: self.cursor(),
            swapped: 0,
            refused: 0,
            moved: 0,
            ..arg
        };
        // The first batch's statuses must be writable before anything moves.
        if arg.status != 0 && access.elements < nr.min(BATCH_PAIRS) {
            return Answer::fail(Errno::EFAULT, nothing);
        }
        let domains = match self.domains(world) {
            Ok(domains) => domains,
            Err(error) => {
                return Answer {
                    result: Err(error),
                    out: nothing,
                    status: Vec::new(),
                }
            }
        };
        // Further on the batch whose statuses cannot be written is the last.
        let told = access.elements / BATCH_PAIRS * BATCH_PAIRS;
        let (done, result) = if arg.status != 0 && access.elements < nr {
            (nr.min(told + BATCH_PAIRS), Err(Errno::EFAULT))
        } else {
            (nr, Ok(()))
        };
        let (mut status, before) = (Vec::new(), self.went);
        for _ in 0..done {
            let what = world.deal(domains, self.pair(self.cursor), self.mode);
            let result = what.status();
            self.went += u64::from(what == What::Move);
            self.marks[self.cursor] = if result == 0 {
                Mark::Swapped
            } else {
                Mark::Refused
            };
            self.cursor += 1;
            status.push(result);
        }
        self.committing = true;
        self.note(world);
        let swapped = status.iter().filter(|s| **s == 0).count() as u64;
        if result.is_err() {
            status.truncate(told as usize);
        }
        Answer {
            result,
            out: sys::Commit {
                cursor: self.cursor(),
                swapped,
                refused: done - swapped,
                moved: self.went - before,
                ..arg
            },
            status,
        }
    }

    /// `ROLLBACK`
    pub fn rollback(
        &mut self,
        world: &mut World,
        arg: sys::Rollback,
        access: Access,
    ) -> Answer<sys::Rollback> {
        if !matches!(self.state(), 3..=5) {
            return Answer::fail(Errno::EBADFD, arg);
        }
        if arg.expected != self.cursor() {
            return self.stale(arg, access.structure, |arg, cursor| arg.cursor = cursor);
        }
        if !access.structure {
            return Answer::fail(Errno::EFAULT, arg);
        }
        let before = self.cursor;
        let (swapped, end) = self.put_back(world);
        self.note(world);
        Answer {
            result: if self.cursor < before { Ok(()) } else { end },
            out: sys::Rollback {
                cursor: self.cursor(),
                restored: swapped,
                ..arg
            },
            status: Vec::new(),
        }
    }

    /// From the last pair to the first, until something is in the way. How many
    /// were put back, and what was in the way.
    fn put_back(&mut self, world: &mut World) -> (u64, Result<(), Errno>) {
        let mut swapped = 0;
        while let Some(number) = self.cursor.checked_sub(1) {
            if self.marks[number] == Mark::Swapped {
                let domains = match self.domains(world) {
                    Ok(domains) => domains,
                    Err(error) => return (swapped, Err(error)),
                };
                let mode = sys::Mode::from_flags(self.mode).unwrap_or_default();
                let what = world.deal(domains, self.pair(number), mode.opposite().flags());
                match what {
                    What::Refuse(error) => return (swapped, Err(error)),
                    What::Move => self.came += 1,
                    // Where nothing is left that could come back, zeroes do.
                    What::Swap | What::Nothing => (),
                }
                swapped += 1;
            }
            self.marks[number] = Mark::Back;
            self.cursor = number;
            self.rolling_back = true;
        }
        (swapped, Ok(()))
    }

    fn stale<T>(&self, mut arg: T, writable: bool, set: impl Fn(&mut T, u64)) -> Answer<T> {
        if !writable {
            return Answer::fail(Errno::EFAULT, arg);
        }
        set(&mut arg, self.cursor());
        Answer::fail(Errno::ESTALE, arg)
    }

    /// `STATUS`
    pub fn status(&self, arg: sys::Status) -> sys::Status {
        let [domid_a, domid_b] = self.bound.map(|b| b.domids).unwrap_or_default();
        let refused = self.count(Mark::Refused);
        sys::Status {
            state: self.state(),
            domid_a,
            domid_b,
            runs: self.merged,
            pairs: self.pairs(),
            cursor: self.cursor(),
            swapped: self.count(Mark::Swapped),
            refused,
            mode: self.mode,
            reserved: 0,
            moved: self.went.saturating_sub(self.came),
            ..arg
        }
    }

    /// `ADOPT`
    pub fn adopt(&mut self, world: &mut World, arg: sys::Adopt) -> Answer<sys::Adopt> {
        let result = if self.state() != 0 {
            Err(Errno::EBADFD)
        } else {
            world.take_record(arg.id).map(|session| *self = session)
        };
        if result.is_ok() && self.domains(world) != Err(Errno::ESRCH) {
            world.idle.remove(&self.number);
        }
        self.note(world);
        Answer {
            result,
            out: arg,
            status: Vec::new(),
        }
    }

    /// The file is closed for good: a half move is rolled back, or kept.
    pub fn close(mut self, world: &mut World) {
        let mut left = Ok(());
        if self.half_way() {
            left = self.put_back(world).1;
        }
        if let Some(bound) = self.bound {
            world.claim(self.number, bound.ids, left.is_err());
        }
        if let Err(error) = left {
            world.idle.insert(self.number);
            world.keep(self, error);
        }
    }

    /// How a record of this session reads, but for its id.
    fn record(&self, error: Errno) -> sys::Record {
        let [domid_a, domid_b] = self.bound.map(|b| b.domids).unwrap_or_default();
        let [id_a, id_b] = self.bound.map(|b| b.ids).unwrap_or_default();
        sys::Record {
            size: size_of::<sys::Record>() as u32,
            flags: 0,
            id: 0,
            domid_a,
            domid_b,
            id_a,
            id_b,
            time: 0,
            pid: std::process::id(),
            reserved: 0,
            state: self.state(),
            error: -(error as i32),
            runs: self.merged,
            pairs: self.pairs(),
            cursor: self.cursor(),
            swapped: self.count(Mark::Swapped),
            refused: self.count(Mark::Refused),
            mode: self.mode,
            reserved2: 0,
            moved: self.went.saturating_sub(self.came),
        }
    }
}

/// Pairs from `first` on that were asked for, 0 meaning all.
fn stretch(first: u64, nr: u64, pairs: u64) -> Option<u64> {
    let left = pairs.checked_sub(first)?;
    let nr = if nr == 0 { left } else { nr };
    (nr <= left).then_some(nr)
}
