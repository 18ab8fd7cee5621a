// SPDX-License-Identifier: GPL-2.0-only

//! The fuzzer: sequences of ioctls over several sessions, most of them
//! meaningful, some of them mutated, each checked against the model.

use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use nix::errno::Errno;
use vmbeam_uapi::sys;

use crate::arena::Arena;
use crate::bare::Toolstack;
use crate::model::tag;
use crate::model::Access;
use crate::model::Answer;
use crate::model::Session;
use crate::model::World;
use crate::model::DOMAINS;
use crate::model::FRAMES;
use crate::model::HELD;
use crate::model::MAX_ADD_RUNS;
use crate::race;
use crate::report;
use crate::watch;
use crate::watch::Pulse;
use crate::watch::Watch;

/// The device.
pub const DEVICE: &str = "/dev/vmbeam";
/// Every so many sequences the contents of all frames are compared.
const LOOK: u64 = 512;
/// Sequences for each race of threads and processes.
const RACE: u64 = 256;

#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// How many sequences.
    #[arg(long)]
    sequences: u64,
    /// Seed of all of them.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only this sequence, to repeat a failure.
    #[arg(long)]
    only: Option<u64>,
}

/// An open file and what the model knows of it.
struct Open {
    file: File,
    model: Session,
}

struct Fuzzer {
    /// Where structures are.
    arena: Arena,
    /// Where arrays are.
    arrays: Arena,
    world: World,
    pulse: Pulse,
    rng: fastrand::Rng,
    refusals: std::collections::BTreeMap<i32, u64>,
}

/// Run the fuzzer; five results.
pub fn run(arguments: &Arguments) -> Result<()> {
    println!("1..5");
    watch::impatient()?;
    let toolstack = Toolstack::open()?;
    let domains: Vec<_> = (0..DOMAINS)
        .map(|_| toolstack.domain(FRAMES))
        .collect::<Result<_>>()?;
    for (index, domain) in domains.iter().enumerate() {
        domain
            .map(0, FRAMES as usize)?
            .write_tags(|gfn| tag(index, gfn as u64));
    }
    let held: Vec<_> = domains
        .iter()
        .map(|d| d.map(HELD, 1))
        .collect::<Result<_>>()?;
    let mut fuzzer = Fuzzer {
        arena: Arena::new()?,
        arrays: Arena::new()?,
        world: World::new(std::array::from_fn(|i| domains[i].domid)),
        pulse: Pulse::start(),
        rng: fastrand::Rng::with_seed(arguments.seed),
        refusals: Default::default(),
    };
    let look = |world: &World| -> Result<()> {
        for (index, domain) in domains.iter().enumerate() {
            let seen = domain.map(0, FRAMES as usize)?.tags();
            ensure!(
                seen == world.frames[index],
                "domain {index} holds {seen:x?}, not {:x?}",
                world.frames[index]
            );
        }
        Ok(())
    };
    // The first sequences fill caches that stay.
    let warm = 64.min(arguments.sequences);
    for number in 0..warm {
        fuzzer.sequence(arguments.seed, number)?;
        race::run(&mut fuzzer.world, &domains, number)?;
    }
    let mut watch = Watch::start()?;
    let mut all = || -> Result<()> {
        for number in warm..arguments.sequences {
            if arguments.only.is_some_and(|only| only != number) {
                continue;
            }
            let context = || format!("sequence {number} of seed {}", arguments.seed);
            fuzzer
                .sequence(arguments.seed, number)
                .with_context(context)?;
            if number % RACE == 0 {
                race::run(&mut fuzzer.world, &domains, number).with_context(context)?;
            }
            if number % LOOK == 0 {
                look(&fuzzer.world).with_context(context)?;
            }
        }
        look(&fuzzer.world)
    };
    let result = all();
    let calls = fuzzer.pulse.calls();
    println!(
        "# {} sequences, {calls} calls; refused: {:?}",
        arguments.sequences, fuzzer.refusals
    );
    drop(held);
    let good = [
        report(1, "the driver does what the model says", &result),
        report(
            2,
            "no warning of the kernel, no further taint",
            &watch.quiet(),
        ),
        report(3, "memory returns", &watch.memory()),
        report(4, "references to the module return", &watch.references()),
        report(
            5,
            "every errno of these calls was provoked",
            &missing(&fuzzer.refusals),
        ),
    ];
    ensure!(good.iter().all(|g| *g), "see above");
    Ok(())
}

/// The errnos of the documentation that single calls on these domains can get.
const ERRNOS: [Errno; 12] = [
    Errno::ENOTTY,
    Errno::EFAULT,
    Errno::EINVAL,
    Errno::E2BIG,
    Errno::EOPNOTSUPP,
    Errno::EBADFD,
    Errno::ESRCH,
    Errno::EPERM,
    Errno::EOVERFLOW,
    Errno::EEXIST,
    Errno::ENOSPC,
    Errno::ESTALE,
];

fn missing(seen: &std::collections::BTreeMap<i32, u64>) -> Result<()> {
    let missing: Vec<_> = ERRNOS
        .iter()
        .filter(|e| !seen.contains_key(&(**e as i32)))
        .collect();
    ensure!(missing.is_empty(), "never seen: {missing:?}");
    Ok(())
}

/// Where a structure is put.
struct Place {
    address: u64,
    /// It can be written.
    writable: bool,
}

impl Fuzzer {
    fn sequence(&mut self, seed: u64, number: u64) -> Result<()> {
        self.rng = fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number);
        let mut open: Vec<Open> = Vec::new();
        for step in 0..self.rng.usize(6..24) {
            if open.is_empty() || (open.len() < 3 && self.rng.u8(..) < 20) {
                let file = File::options().read(true).write(true).open(DEVICE)?;
                open.push(Open {
                    file,
                    model: Session::default(),
                });
            }
            let index = self.rng.usize(..open.len());
            let session = &mut open[index];
            self.step(session).with_context(|| format!("step {step}"))?;
            if self.rng.u8(..) < 8 {
                // A second descriptor of the same file, and the first one closed.
                session.file = session.file.try_clone()?;
            }
            if self.rng.u8(..) < 6 {
                let session = open.swap_remove(index);
                session.model.close(&mut self.world);
            }
        }
        for session in open {
            drop(session.file);
            session.model.close(&mut self.world);
        }
        Ok(())
    }

    fn call(&mut self, file: &File, request: u32, address: u64) -> Result<(), Errno> {
        // SAFETY: the kernel writes to the structure, which is in the arena or
        // at an address that is not mapped, and to the array that it names, for
        // which the same holds.
        let rc = unsafe { nix::libc::ioctl(file.as_raw_fd(), request.into(), address) };
        self.pulse.beat();
        let result = Errno::result(rc).map(drop);
        if let Err(errno) = result {
            *self.refusals.entry(errno as i32).or_default() += 1;
        }
        result
    }

    fn step(&mut self, open: &mut Open) -> Result<()> {
        self.arena.poison();
        self.arrays.poison();
        if self.rng.u8(..) < 40 {
            return self.malformed(&open.file);
        }
        // Mostly what makes sense in this state, else anything.
        let likely: &[u8] = match open.model.state() {
            0 => &[1],
            1 => &[2],
            2 => &[2, 2, 3, 4, 4],
            3 => &[3, 4, 4, 4, 6],
            4 => &[3, 6],
            5 => &[6],
            _ => &[3, 5],
        };
        let nr = match self.rng.u8(..) {
            ..200 => self.rng.choice(likely.iter().copied()).unwrap_or_default(),
            _ => self.rng.u8(..7),
        };
        match nr {
            0 => self.info(open),
            1 => self.open(open),
            2 => self.add(open),
            3 => self.prepare(open),
            4 => self.commit(open),
            5 => self.status(open),
            _ => self.rollback(open),
        }
    }

    /// Requests that must fail before the session is looked at.
    fn malformed(&mut self, file: &File) -> Result<()> {
        let sizes = [40u32, 16, 40, 48, 56, 80, 32];
        let nr = self.rng.u32(..7);
        let size = sizes[nr as usize];
        let request = |nr| (3 << 30) | (size << 16) | (0xbb << 8) | nr;
        let address = self.arena.start();
        let mut bytes = vec![0; 8192];
        let put = |bytes: &mut Vec<u8>, size: u32, flags: u32| {
            bytes[..4].copy_from_slice(&size.to_ne_bytes());
            bytes[4..8].copy_from_slice(&flags.to_ne_bytes());
        };
        put(&mut bytes, size, 0);
        let (request, address, expected) = match self.rng.u8(..9) {
            0 => {
                put(&mut bytes, self.rng.u32(..size), self.rng.u32(..));
                (request(nr), address, Errno::EINVAL)
            }
            1 => {
                let size = if self.rng.bool() {
                    self.rng.u32(4097..9000)
                } else {
                    self.rng.u32(4097..)
                };
                put(&mut bytes, size, 0);
                (request(nr), address, Errno::E2BIG)
            }
            2 => {
                // Larger than any structure of this interface will be soon.
                let tail = self.rng.u32(200..4096 - size);
                put(&mut bytes, size + tail, 0);
                bytes[self.rng.u32(size + 190..size + tail) as usize] = self.rng.u8(1..);
                (request(nr), address, Errno::E2BIG)
            }
            3 => {
                put(&mut bytes, size, self.rng.u32(1..));
                (request(nr), address, Errno::EOPNOTSUPP)
            }
            4 => (request(self.rng.u32(32..256)), address, Errno::ENOTTY),
            5 => {
                let kind = self.rng.u32(..0xb8);
                (
                    (3 << 30) | (size << 16) | (kind << 8) | nr,
                    address,
                    Errno::ENOTTY,
                )
            }
            6 => (request(nr), self.nowhere(), Errno::EFAULT),
            7 => (
                request(nr),
                self.arena.end() - u64::from(self.rng.u32(..size)),
                Errno::EFAULT,
            ),
            _ => {
                // Both of the size and of the flags: the size is looked at first.
                put(&mut bytes, 0, self.rng.u32(1..));
                (request(nr), address, Errno::EINVAL)
            }
        };
        self.arena.write(address, &bytes)?;
        let result = self.call(file, request, address);
        ensure!(
            result == Err(expected),
            "malformed {request:#x}: {result:?}, expected {expected:?}"
        );
        Ok(())
    }

    /// An address that cannot be accessed.
    fn nowhere(&mut self) -> u64 {
        let choices = [
            0,
            8,
            self.arena.end(),
            u64::MAX,
            u64::MAX - 4095,
            1 << 63,
            0x8000_0000_0000,
            0xffff_8880_0000_0000,
        ];
        self.rng.choice(choices).unwrap_or_default()
    }

    fn place(&mut self, length: usize) -> Place {
        let start = self.arena.start();
        let address = match self.rng.u8(..16) {
            0 => self.arena.read_only() + self.rng.u64(..64),
            1..4 => self.arena.end() - length as u64,
            4..6 => start + self.rng.u64(..4096),
            _ => start,
        };
        Place {
            address,
            writable: self.arena.writable(address, length),
        }
    }

    /// A place for an array of `room` elements, and how many of them fit.
    fn array(&mut self, room: u64, element: u64) -> (u64, u64) {
        let start = self.arrays.start();
        let end = self.arrays.end();
        match self.rng.u8(..16) {
            0 => (self.nowhere(), 0),
            1 => {
                let fit = self.rng.u64(..room.max(1));
                (end - fit * element, fit)
            }
            2..5 => (end - room * element, room),
            _ => (start, room),
        }
    }

    fn number(&mut self, usual: u64) -> u64 {
        match self.rng.u8(..24) {
            0 => self.rng.u64(..),
            1 => u64::MAX - self.rng.u64(..4),
            2 => 1 << self.rng.u32(..64),
            3 => usual.wrapping_add(1),
            4 => usual.wrapping_sub(1),
            _ => usual,
        }
    }

    /// Issue it, and compare the result and every byte of the structure.
    fn compare<T: Copy + PartialEq + std::fmt::Debug>(
        &mut self,
        file: &File,
        request: u32,
        place: &Place,
        arg: T,
        answer: &Answer<T>,
    ) -> Result<()> {
        self.arena.write(place.address, bytes(&arg))?;
        let result = self.call(file, request, place.address);
        let after = self.fetch::<T>(place.address)?;
        ensure!(
            result == answer.result && after == answer.out,
            "{arg:x?} at {:#x}: {result:?} {after:x?}, expected {:?} {:x?}",
            place.address,
            answer.result,
            answer.out
        );
        Ok(())
    }

    fn fetch<T: Copy>(&self, address: u64) -> Result<T> {
        let raw = self
            .arena
            .read(address, size_of::<T>())
            .context("not readable")?;
        // SAFETY: `raw` has the bytes of a structure that is made of integers.
        Ok(unsafe { raw.as_ptr().cast::<T>().read_unaligned() })
    }

    fn statuses(&self, address: u64, expected: &[i32]) -> Result<()> {
        let length = 4 * (expected.len() + 1);
        let raw = self
            .arrays
            .read(address, length)
            .or_else(|| self.arrays.read(address, length - 4));
        let seen: Vec<i32> = raw
            .context("not readable")?
            .chunks_exact(4)
            .map(|c| i32::from_ne_bytes([c[0], c[1], c[2], c[3]]))
            .collect();
        ensure!(
            seen.starts_with(expected),
            "statuses {seen:?}, expected {expected:?}"
        );
        // The element behind the last one is not touched.
        let behind = seen
            .get(expected.len())
            .copied()
            .unwrap_or(0xcccc_cccc_u32 as i32);
        ensure!(
            behind == 0xcccc_cccc_u32 as i32,
            "wrote {behind} behind the array"
        );
        Ok(())
    }

    fn info(&mut self, open: &Open) -> Result<()> {
        let place = self.place(size_of::<sys::Info>());
        let arg = sys::Info {
            size: 40,
            ..Default::default()
        };
        self.arena.write(place.address, bytes(&arg))?;
        let result = self.call(&open.file, sys::IOCTL_INFO, place.address);
        let expected = if place.writable {
            Ok(())
        } else {
            Err(Errno::EFAULT)
        };
        ensure!(
            result == expected,
            "INFO: {result:?}, expected {expected:?}"
        );
        if place.writable {
            let info: sys::Info = self.fetch(place.address)?;
            ensure!(info.max_add_runs == MAX_ADD_RUNS, "{info:?}");
        }
        Ok(())
    }

    fn open(&mut self, open: &mut Open) -> Result<()> {
        let place = self.place(size_of::<sys::Open>());
        let mut domid = || match self.rng.u8(..24) {
            0 => 0,
            1 => 0x7000,
            2 => 0x7ff0 + self.rng.u32(..16),
            3 => self.rng.u32(0x10000..),
            _ => self.world.domids[self.rng.usize(..DOMAINS)],
        };
        let (domid_a, domid_b) = (domid(), domid());
        // Which of two wrong domains is reported is not determined.
        if domid_a.min(domid_b) == 0 && domid_a.max(domid_b) == 0x7000 {
            return Ok(());
        }
        let arg = sys::Open {
            size: 16,
            flags: 0,
            domid_a,
            domid_b,
        };
        let answer = open.model.open(&self.world, arg);
        self.compare(&open.file, sys::IOCTL_OPEN, &place, arg, &answer)
    }

    fn run(&mut self) -> sys::Run {
        let mut gfn = || match self.rng.u8(..40) {
            0 => self.rng.u64(..),
            1 => (1 << 52) - self.rng.u64(..4),
            2..4 => self.rng.u64(FRAMES..2 * FRAMES),
            _ => self.rng.u64(..FRAMES),
        };
        let (gfn_a, gfn_b) = (gfn(), gfn());
        let nr = match self.rng.u16(..2000) {
            0..20 => self.rng.u32((1 << 28) + 1..),
            20..60 => 0,
            _ => self.rng.u32(1..6),
        };
        let reserved = if self.rng.u8(..) < 3 {
            self.rng.u32(1..)
        } else {
            0
        };
        sys::Run {
            gfn_a,
            gfn_b,
            nr,
            reserved,
        }
    }

    fn add(&mut self, open: &mut Open) -> Result<()> {
        let place = self.place(size_of::<sys::Add>());
        let nr = self.rng.u32(1..5);
        let runs: Vec<sys::Run> = (0..nr).map(|_| self.run()).collect();
        let (address, elements) = self.array(nr.into(), 24);
        for (run, at) in runs.iter().zip((address..).step_by(24)) {
            self.arrays.write(at, bytes(run))?;
        }
        let nr_runs = match self.rng.u8(..32) {
            0 => 0,
            1 => self.rng.u32(MAX_ADD_RUNS + 1..),
            _ => nr,
        };
        let arg = sys::Add {
            size: 40,
            flags: 0,
            runs: address,
            nr_runs,
            bad_run: 0xcccc_cccc,
            total_runs: 7,
            total_pairs: 7,
        };
        let readable = elements >= u64::from(nr);
        let access = Access {
            structure: place.writable,
            elements,
        };
        let answer = open.model.add(arg, readable.then_some(&runs[..]), access);
        self.compare(&open.file, sys::IOCTL_ADD, &place, arg, &answer)
    }

    fn prepare(&mut self, open: &mut Open) -> Result<()> {
        let place = self.place(size_of::<sys::Prepare>());
        let pairs = open.model.pairs();
        let usual = self.rng.u64(..=pairs.max(1) - 1);
        let first = self.number(usual);
        let nr = self.count(pairs.saturating_sub(first));
        let (status, elements) = self.wanted(if nr == 0 {
            pairs.saturating_sub(first)
        } else {
            nr
        });
        let arg = sys::Prepare {
            size: 48,
            flags: 0,
            first,
            nr,
            status,
            done: 7,
            refused: 7,
        };
        let access = Access {
            structure: place.writable,
            elements,
        };
        let answer = open.model.prepare(&self.world, arg, access);
        self.compare(&open.file, sys::IOCTL_PREPARE, &place, arg, &answer)?;
        if answer.result.is_ok() && status != 0 {
            self.statuses(status, &answer.status)?;
        }
        Ok(())
    }

    /// How many pairs to ask for, of those that are left.
    fn count(&mut self, left: u64) -> u64 {
        let usual = if self.rng.bool() {
            0
        } else {
            self.rng.u64(..=left.min(64))
        };
        self.number(usual)
    }

    /// An array of statuses, or none.
    fn wanted(&mut self, nr: u64) -> (u64, u64) {
        if self.rng.u8(..4) == 0 {
            return (0, 0);
        }
        // An impossible number of pairs is refused before the array matters.
        match self.array(nr.min(1024), 4) {
            (0, _) => (0, 0),
            (address, elements) => (address, elements),
        }
    }

    fn commit(&mut self, open: &mut Open) -> Result<()> {
        let place = self.place(size_of::<sys::Commit>());
        let cursor = open.model.cursor();
        let left = open.model.pairs() - cursor;
        let expected = self.number(cursor);
        let nr = self.count(left);
        let (status, elements) = self.wanted(if nr == 0 { left } else { nr });
        let arg = sys::Commit {
            size: 56,
            flags: 0,
            expected,
            nr,
            status,
            cursor: 7,
            swapped: 7,
            refused: 7,
        };
        let access = Access {
            structure: place.writable,
            elements,
        };
        let answer = open.model.commit(&mut self.world, arg, access);
        self.compare(&open.file, sys::IOCTL_COMMIT, &place, arg, &answer)?;
        if answer.result.is_ok() && status != 0 {
            self.statuses(status, &answer.status)?;
        }
        Ok(())
    }

    fn rollback(&mut self, open: &mut Open) -> Result<()> {
        let place = self.place(size_of::<sys::Rollback>());
        let expected = self.number(open.model.cursor());
        let arg = sys::Rollback {
            size: 32,
            flags: 0,
            expected,
            cursor: 7,
            swapped: 7,
        };
        let access = Access {
            structure: place.writable,
            elements: 0,
        };
        let answer = open.model.rollback(&mut self.world, arg, access);
        self.compare(&open.file, sys::IOCTL_ROLLBACK, &place, arg, &answer)
    }

    fn status(&mut self, open: &Open) -> Result<()> {
        let place = self.place(size_of::<sys::Status>());
        let arg = sys::Status {
            size: size_of::<sys::Status>() as u32,
            ..Default::default()
        };
        self.arena.write(place.address, bytes(&arg))?;
        let result = self.call(&open.file, sys::IOCTL_STATUS, place.address);
        let expected = if place.writable {
            Ok(())
        } else {
            Err(Errno::EFAULT)
        };
        ensure!(
            result == expected,
            "STATUS: {result:?}, expected {expected:?}"
        );
        if place.writable {
            let seen: sys::Status = self.fetch(place.address)?;
            let expected = open.model.status(seen);
            ensure!(seen == expected, "{seen:?}, expected {expected:?}");
        }
        Ok(())
    }
}

/// The bytes of a structure that is made of integers, without padding.
fn bytes<T: Copy>(value: &T) -> &[u8] {
    // SAFETY: every structure of the interface is without padding, which
    // vmbeam-uapi asserts, so all of its bytes are initialised.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}
