// SPDX-License-Identifier: GPL-2.0-only

//! The fuzzer: sequences of ioctls over several sessions, most of them
//! meaningful, some of them mutated, each checked against the model.

mod calls;
mod malformed;
mod memory;
mod place;

use std::collections::BTreeMap;
use std::fs::File;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use nix::errno::Errno;
use vmbeam_uapi::sys;

use crate::arena::Arena;
use crate::device::DEVICE;
use crate::domains::Domain;
use crate::domains::Hold;
use crate::domains::Host;
use crate::model::Access;
use crate::model::Session;
use crate::model::World;
use crate::model::DOMAINS;
use crate::model::FRAMES;
use crate::model::HELD;
use crate::race;
use crate::report::report;
use crate::watch;
use crate::watch::Pulse;
use crate::watch::Watch;

/// Every so many sequences the contents of all frames are compared.
const LOOK: u64 = 512;
/// Sequences for each race of threads and processes.
const RACE: u64 = 256;
/// Sequences that fill caches which stay, each with a race.
const WARM: u64 = 64;

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

impl Open {
    fn new() -> Result<Self> {
        Ok(Self {
            file: File::options().read(true).write(true).open(DEVICE)?,
            model: Session::default(),
        })
    }
}

struct Fuzzer {
    host: Host,
    domains: Vec<Domain>,
    /// A frame of each domain that is held all the time, and others for a while.
    always: Vec<Hold>,
    holds: BTreeMap<(usize, u64), Hold>,
    /// Where structures are.
    arena: Arena,
    /// Where arrays are.
    arrays: Arena,
    /// For what is asked beside the sequence.
    control: File,
    world: World,
    pulse: Pulse,
    rng: fastrand::Rng,
    refusals: BTreeMap<i32, u64>,
    /// Half moves that were kept, and domains that died.
    kept: u64,
    died: u64,
}

/// Run the fuzzer; five results.
pub fn run(arguments: &Arguments) -> Result<()> {
    println!("1..5");
    watch::impatient()?;
    let mut fuzzer = Fuzzer::new(arguments.seed)?;
    for number in 0..WARM.min(arguments.sequences) {
        fuzzer.sequence(arguments.seed, number)?;
        race::run(&mut fuzzer.world, &fuzzer.domains, number)?;
    }
    let mut watch = Watch::start()?;
    let result = fuzzer.all(arguments);
    println!(
        "# {} sequences, {} calls; {} half moves kept, {} domains died; refused: {:?}",
        arguments.sequences,
        fuzzer.pulse.calls(),
        fuzzer.kept,
        fuzzer.died,
        fuzzer.refusals
    );
    let model = fuzzer.domains.iter().any(|d| d.of_model().is_some());
    let missing = missing(&fuzzer.refusals, model);
    let good = [
        report(1, "the driver does what the model says", &result),
        report(
            2,
            "no warning of the kernel, no further taint",
            &watch.quiet(),
        ),
        report(3, "memory returns", &watch.memory()),
        report(4, "references to the module return", &watch.references()),
        report(5, "every errno of these calls was provoked", &missing),
    ];
    ensure!(good.iter().all(|g| *g), "see above");
    Ok(())
}

/// The errnos of the documentation that single calls on these domains can get.
const ERRNOS: [Errno; 15] = [
    Errno::EBADF,
    Errno::ENOTTY,
    Errno::EFAULT,
    Errno::EINVAL,
    Errno::E2BIG,
    Errno::EOPNOTSUPP,
    Errno::EBADFD,
    Errno::ENOENT,
    Errno::ESRCH,
    Errno::EPERM,
    Errno::EBUSY,
    Errno::EOVERFLOW,
    Errno::EEXIST,
    Errno::ENOSPC,
    Errno::ESTALE,
];

/// And those that only the model's domains can be brought to, see [`MODES`].
const ERRNOS_OF_MODEL: [Errno; 3] = [Errno::ENXIO, Errno::ENOMEM, Errno::EIO];

/// What the hypervisor can say to a domain, and what the driver makes of it.
const MODES: [(Errno, Errno); 12] = [
    (Errno::EBUSY, Errno::EBUSY),
    (Errno::EADDRINUSE, Errno::EBUSY),
    (Errno::EMLINK, Errno::EBUSY),
    (Errno::EAGAIN, Errno::EBUSY),
    (Errno::ENOTEMPTY, Errno::EBUSY),
    (Errno::ENXIO, Errno::ENXIO),
    (Errno::ENOMEM, Errno::ENOMEM),
    (Errno::EPERM, Errno::EPERM),
    (Errno::EACCES, Errno::EPERM),
    (Errno::ENOEXEC, Errno::EOPNOTSUPP),
    (Errno::ENOSYS, Errno::EOPNOTSUPP),
    (Errno::EINVAL, Errno::EIO),
];

fn missing(seen: &BTreeMap<i32, u64>, model: bool) -> Result<()> {
    let more = ERRNOS_OF_MODEL.iter().filter(|_| model);
    let missing: Vec<_> = ERRNOS
        .iter()
        .chain(more)
        .filter(|e| !seen.contains_key(&(**e as i32)))
        .collect();
    ensure!(missing.is_empty(), "never seen: {missing:?}");
    Ok(())
}

impl Fuzzer {
    fn new(seed: u64) -> Result<Self> {
        let host = Host::open()?;
        let domains: Vec<_> = (0..DOMAINS)
            .map(|_| host.domain(FRAMES))
            .collect::<Result<_>>()?;
        let mut world = World::new(std::array::from_fn(|i| domains[i].domid()));
        let mut always = Vec::new();
        for (index, domain) in domains.iter().enumerate() {
            domain.write_tags(&world.frames[index])?;
            always.push(domain.hold(HELD, Errno::EBUSY)?);
            world.held.insert((index, HELD), Errno::EBUSY);
        }
        Ok(Self {
            host,
            domains,
            always,
            holds: BTreeMap::new(),
            arena: Arena::new()?,
            arrays: Arena::new()?,
            control: File::options().read(true).write(true).open(DEVICE)?,
            world,
            pulse: Pulse::start(),
            rng: fastrand::Rng::with_seed(seed),
            refusals: BTreeMap::new(),
            kept: 0,
            died: 0,
        })
    }

    fn all(&mut self, arguments: &Arguments) -> Result<()> {
        for number in WARM..arguments.sequences {
            if arguments.only.is_some_and(|only| only != number) {
                continue;
            }
            let context = || format!("sequence {number} of seed {}", arguments.seed);
            self.sequence(arguments.seed, number)
                .with_context(context)?;
            if number % RACE == 0 {
                race::run(&mut self.world, &self.domains, number / RACE).with_context(context)?;
            }
            if number % LOOK == 0 {
                self.look().with_context(context)?;
            }
        }
        self.look()
    }

    /// Every frame holds what the model says.
    fn look(&self) -> Result<()> {
        for (index, domain) in self.domains.iter().enumerate() {
            let (seen, expected) = (domain.tags()?, &self.world.frames[index]);
            ensure!(
                seen == *expected,
                "domain {index} holds {seen:x?}, not {expected:x?}"
            );
            if let Some(domain) = domain.of_model() {
                let (seen, expected) = (domain.pages()?, self.world.pages[index]);
                ensure!(
                    seen == expected,
                    "domain {index} has {seen} pages, not {expected}"
                );
            }
        }
        Ok(())
    }

    fn sequence(&mut self, seed: u64, number: u64) -> Result<()> {
        self.rng = fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number);
        let mut open: Vec<Open> = Vec::new();
        let mut death = (self.rng.u8(..64) == 0).then(|| self.rng.usize(2..20));
        for step in 0..self.rng.usize(6..24) {
            if open.is_empty() || (open.len() < 3 && self.rng.u8(..) < 20) {
                open.push(Open::new()?);
            }
            let index = self.rng.usize(..open.len());
            let session = &mut open[index];
            self.step(session).with_context(|| format!("step {step}"))?;
            if self.rng.u8(..) < 8 {
                // A second descriptor of the same file, and the first one closed.
                session.file = session.file.try_clone()?;
            }
            if self.rng.u8(..) < 32 {
                self.hold_or_release(&session.model)?;
            }
            if self.rng.u8(..) < 5 {
                self.change_mode()?;
            }
            if self.rng.u8(..) < 48 {
                self.change_memory(&session.model)?;
            }
            let close = if session.model.half_way() { 40 } else { 6 };
            if self.rng.u8(..) < close {
                let session = open.swap_remove(index);
                self.close(session)
                    .with_context(|| format!("step {step}"))?;
            }
            if death == Some(step) {
                death = None;
                self.replace_domain()?;
            }
        }
        if self.rng.bool() {
            self.release_all()?;
        }
        for session in open {
            self.close(session).context("the last close")?;
        }
        self.release_all()?;
        self.clean_up().context("records that are left")
    }

    /// Close a file for good, and look at the records that there are then.
    fn close(&mut self, session: Open) -> Result<()> {
        let before = self.world.records().count();
        drop(session.file);
        session.model.close(&mut self.world);
        self.pulse.beat();

        let mut found = Vec::new();
        let mut arg = sys::Record {
            size: size_of::<sys::Record>() as u32,
            ..Default::default()
        };
        while race::ioctl(&self.control, sys::IOCTL_RECORD, &mut arg).is_ok() {
            found.push(arg);
        }
        ensure!(
            self.world.learn(&found),
            "records: {found:x?}, expected {:x?}",
            self.world.records().collect::<Vec<_>>()
        );
        self.kept += (found.len() - before.min(found.len())) as u64;
        Ok(())
    }

    /// Nothing is held any more: records whose domains live can be rolled back, the
    /// others are abandoned.
    fn clean_up(&mut self) -> Result<()> {
        loop {
            let first = self.world.records().next();
            let Some((id, alive)) = first.map(|(record, alive)| (record.id, alive)) else {
                return Ok(());
            };
            let mut session = Open::new()?;
            let mut arg = sys::Adopt {
                size: 16,
                flags: 0,
                id,
            };
            race::ioctl(&session.file, sys::IOCTL_ADOPT, &mut arg).context("ADOPT")?;
            session.model.adopt(&mut self.world, arg).result?;
            if !alive || self.rng.u8(..4) == 0 {
                let mut arg = sys::Abandon {
                    size: 24,
                    flags: 0,
                    expected: session.model.cursor(),
                    cursor: 0,
                };
                race::ioctl(&session.file, sys::IOCTL_ABANDON, &mut arg).context("ABANDON")?;
                let access = Access {
                    structure: true,
                    elements: 0,
                };
                session.model.abandon(&mut self.world, arg, access).result?;
            }
            self.close(session)?;
        }
    }

    /// Have somebody take hold of a frame, or let go of one. Mostly of one that the
    /// session has swapped.
    fn hold_or_release(&mut self, session: &Session) -> Result<()> {
        let anywhere = (self.rng.usize(..DOMAINS), self.rng.u64(..FRAMES));
        let swapped = session.swapped_frame(&self.world, |nr| self.rng.usize(..nr.max(1)));
        let place = match swapped {
            Some(place) if self.rng.u8(..4) != 0 => place,
            _ => anywhere,
        };
        if place.1 == HELD {
            return Ok(());
        }
        if self.holds.remove(&place).is_some() {
            self.world.held.remove(&place);
            return Ok(());
        }
        let error = self.rng.choice(self.host.refusals()).copied();
        let error = error.unwrap_or(Errno::EBUSY);
        let hold = self.domains[place.0].hold(place.1, error)?;
        self.holds.insert(place, hold);
        self.world.held.insert(place, error);
        Ok(())
    }

    /// Nothing is in the way of a swap any more, but for what is held all the time.
    fn release_all(&mut self) -> Result<()> {
        self.populate_all()?;
        for place in std::mem::take(&mut self.holds).into_keys() {
            self.world.held.remove(&place);
        }
        for (domain, refuses) in self.domains.iter().zip(&mut self.world.refuses) {
            if refuses.take().is_some() {
                domain.refuse(None)?;
            }
        }
        Ok(())
    }

    /// A domain gets into a mode in which it cannot be swapped, or out of it.
    fn change_mode(&mut self) -> Result<()> {
        let index = self.rng.usize(..DOMAINS);
        let mode = match self.world.refuses[index] {
            Some(_) => None,
            None => self.rng.choice(MODES),
        };
        if self.domains[index].refuse(mode.map(|(returns, _)| returns))? {
            self.world.refuses[index] = mode.map(|(_, becomes)| becomes);
        }
        Ok(())
    }

    /// A domain dies under the sessions that are bound to it, and another one comes.
    fn replace_domain(&mut self) -> Result<()> {
        let index = self.rng.usize(..DOMAINS);
        self.holds.retain(|(domain, _), _| *domain != index);
        drop(self.always.remove(index));
        let old = self.domains.remove(index).domid();
        // Often with its number, as a toolstack that counts round would.
        let new = match self.rng.bool() {
            true => self.host.domain_as(old, FRAMES)?,
            false => self.host.domain(FRAMES)?,
        };
        self.always.insert(index, new.hold(HELD, Errno::EBUSY)?);
        self.world.replace(index, new.domid());
        self.world.held.insert((index, HELD), Errno::EBUSY);
        new.write_tags(&self.world.frames[index])?;
        self.domains.insert(index, new);
        self.died += 1;
        Ok(())
    }

    fn step(&mut self, open: &mut Open) -> Result<()> {
        self.arena.poison();
        self.arrays.poison();
        if self.rng.u8(..) < 40 {
            return self.malformed(&open.file);
        }
        // Mostly what makes sense in this state, else anything.
        let likely: &[u8] = match open.model.state() {
            0 if self.world.records().next().is_some() => &[1, 1, 8, 9, 9],
            0 => &[1],
            1 => &[2],
            2 => &[2, 2, 3, 4, 4],
            3 => &[3, 4, 4, 4, 6],
            4 => &[3, 6],
            5 => &[6],
            7 => &[1, 5, 9],
            _ => &[3, 5],
        };
        let nr = match self.rng.u8(..) {
            ..200 => self.rng.choice(likely.iter().copied()).unwrap_or_default(),
            _ => self.rng.u8(..11),
        };
        match nr {
            0 => self.info(open),
            1 => self.open(open),
            2 => self.add(open),
            3 => self.check(open),
            4 => self.commit(open),
            5 => self.status(open),
            6 => self.rollback(open),
            7 => self.cancel(open),
            8 => self.record(open),
            9 => self.adopt(open),
            _ => self.abandon(open),
        }
    }
}
