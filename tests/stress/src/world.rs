// SPDX-License-Identifier: GPL-2.0-only

//! Domains whose frames can be told apart, and the audit of them.
//!
//! Every frame of a window has a number of its own in word 0. Every vCPU adds one
//! to a word of its own, and to one that vCPUs of other domains add to as well. As
//! frames take their contents along, the sums over all windows tell whether a
//! write was lost, and whether two domains could reach a frame at the same time.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::Ordering::Release;
use std::time::Duration;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::control;
use crate::domain::window;
use crate::domain::Domain;
use crate::mailbox;
use crate::swap::Outcome;
use crate::swap::Run;
use crate::swap::Swapper;
use crate::swap::CHECK;
use crate::xen::Foreign;

/// How long a vCPU may take to notice that it should stop.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Entries in a part of the M2P table.
const M2P_PART: usize = (2 << 20) / 8;

/// Word of the program's own `k`-th thread in every frame.
pub fn own_slot(k: usize) -> usize {
    32 + k
}

/// See [`World::state`].
#[derive(Debug, PartialEq, Eq)]
pub struct State {
    m2p: Vec<(u64, u64)>,
    numbers: Vec<Vec<u64>>,
    pages: Vec<u64>,
}

/// Some domains, their frames numbered.
#[derive(Debug)]
pub struct World {
    /// The domains.
    pub domains: Vec<Domain>,
    /// The frames of all windows, which stay the same ones.
    pub frames: Vec<u64>,
    pages: Vec<u64>,
}

impl World {
    /// So many domains with so many vCPUs and frames.
    pub fn new(domains: u64, vcpus: u32, nr: u64, large: bool) -> Result<Self> {
        let cpus = guest_cpus()?;
        let domains = (0..domains)
            .map(|i| Domain::new(i, vcpus, nr, large || i % 2 == 1, &cpus))
            .collect::<Result<Vec<_>>>()?;
        for (index, domain) in domains.iter().enumerate() {
            for part in domain.gfns().chunks(512) {
                let mapped = Foreign::all(domain.domid, part)?;
                for (i, gfn) in part.iter().enumerate() {
                    for word in mapped.frame(i) {
                        word.store(0, Relaxed);
                    }
                    mapped.frame(i)[0].store(number(index, gfn - domain.base), Relaxed);
                }
            }
        }
        let pages = domains.iter().map(Domain::pages).collect::<Result<_>>()?;
        let mut world = Self {
            domains,
            pages,
            frames: Vec::new(),
        };
        world.frames = world.m2p()?.into_values().collect();
        world.frames.sort_unstable();
        Ok(world)
    }

    /// Let vCPU 0 of each domain write to all of its window.
    pub fn write(&self) {
        for domain in 0..self.domains.len() {
            self.write_with(domain, 0);
        }
    }

    fn write_with(&self, index: usize, vcpu: u32) {
        let domain = &self.domains[index];
        let others: u64 = (0..self.domains.len())
            .filter(|i| *i != index)
            .map(|i| 0xf << slot(i, 0))
            .sum();
        domain.run(
            vcpu,
            mailbox::WRITE,
            &[
                domain.base << 12,
                domain.nr,
                slot(index, vcpu),
                mailbox::SHARED + u64::from(vcpu),
                others,
            ],
        );
    }

    /// Stop the writers and check that every write is where it belongs; gives how
    /// many there were.
    pub fn stop_writers(&self) -> Result<u64> {
        let mut writes = Vec::new();
        for (index, domain) in self.domains.iter().enumerate() {
            domain.wait(0, true, LIMIT)?;
            let [count, checks, wrong] =
                [0, 1, 2].map(|i| domain.mailbox(0).result[i].load(Relaxed));
            ensure!(
                wrong == 0,
                "{wrong} of {checks} times somebody else wrote to a frame of d{}",
                domain.domid
            );
            ensure!(count > 0, "d{} wrote nothing", domain.domid);
            writes.push((slot(index, 0) as usize, count));
        }
        let total = writes.iter().map(|w| w.1).sum();
        let sums = self.sums()?;
        for (word, count) in &writes {
            ensure!(
                sums[*word] == *count,
                "word {word}: {count} writes, {} are there",
                sums[*word]
            );
        }
        let shared = sums[mailbox::SHARED as usize];
        ensure!(
            shared == total,
            "{total} writes to words that domains share, {shared} are there: \
             two domains reached one frame at the same time"
        );
        Ok(total)
    }

    /// Sums of all words over all windows; also checks that each frame is there once.
    pub fn sums(&self) -> Result<Vec<u64>> {
        let mut sums = vec![0u64; 64];
        let mut seen = BTreeMap::new();
        for domain in &self.domains {
            for part in domain.gfns().chunks(512) {
                let mapped = Foreign::all(domain.domid, part)?;
                for (i, gfn) in part.iter().enumerate() {
                    for (sum, word) in sums.iter_mut().zip(mapped.frame(i)) {
                        *sum = sum.wrapping_add(word.load(Relaxed));
                    }
                    seen.insert(mapped.frame(i)[0].load(Relaxed), (domain.domid, *gfn));
                }
            }
        }
        for (index, domain) in self.domains.iter().enumerate() {
            for offset in 0..domain.nr {
                ensure!(
                    seen.contains_key(&number(index, offset)),
                    "frame {offset} of the domain that was d{} is nowhere",
                    domain.domid
                );
            }
        }
        Ok(sums)
    }

    /// The number in the frame at each gfn of a domain's window.
    pub fn numbers(&self, index: usize) -> Result<Vec<u64>> {
        let domain = &self.domains[index];
        numbers_at(domain.domid, &domain.gfns())
    }

    /// Swap runs of offsets into the windows, and tell the guests that it happens.
    pub fn swap(&self, swapper: &Swapper, x: usize, y: usize, runs: &[Run]) -> Result<Outcome> {
        let (a, b) = (&self.domains[x], &self.domains[y]);
        let runs: Vec<Run> = runs
            .iter()
            .map(|r| Run {
                a: a.base + r.a,
                b: b.base + r.b,
                nr: r.nr,
            })
            .collect();
        self.announced(|| swapper.call(a.domid, b.domid, 0, &runs))
    }

    /// Do what may swap frames, and tell the guests that it happens.
    pub fn announced<T>(&self, swap: impl FnOnce() -> T) -> T {
        let all = || self.domains.iter().flat_map(Domain::all);
        for m in all() {
            m.begun.fetch_add(1, Release);
        }
        let result = swap();
        for m in all() {
            m.ended.fetch_add(1, Release);
        }
        result
    }

    /// Where the frames of all windows are, from the hypervisor's M2P table: each gfn
    /// must be behind exactly one frame.
    fn m2p(&self) -> Result<HashMap<u64, u64>> {
        let end = window(self.domains.len() as u64);
        let mut found = HashMap::new();
        let table = vmbeam_xen::Xen::open()?.machine_to_physical()?;
        let parts = control::machphys_parts()?;
        let hole = |part: usize| part > 0 && parts.get(part) == parts.get(part - 1);
        for (mfn, gfn) in table.into_iter().enumerate() {
            if (window(0)..end).contains(&gfn) && !hole(mfn / M2P_PART) {
                let before = found.insert(gfn, mfn as u64);
                ensure!(
                    before.is_none(),
                    "frames {before:?} and {mfn:#x} are both at gfn {gfn:#x}"
                );
            }
        }
        for domain in &self.domains {
            let there = domain.gfns().iter().all(|g| found.contains_key(g));
            ensure!(
                there,
                "d{}: not every gfn is behind a frame in the M2P",
                domain.domid
            );
        }
        Ok(found)
    }

    /// What a refused call must not change: where the frames of both windows are, by
    /// their contents and by the M2P table, and how many pages there are.
    pub fn state(&self) -> Result<State> {
        let mut m2p: Vec<(u64, u64)> = self.m2p()?.into_iter().collect();
        m2p.sort_unstable();
        let both = 0..self.domains.len();
        Ok(State {
            m2p,
            numbers: both.map(|i| self.numbers(i)).collect::<Result<_>>()?,
            pages: self
                .domains
                .iter()
                .map(Domain::pages)
                .collect::<Result<_>>()?,
        })
    }

    /// Check P2M, M2P, owners, references and counts. `moved`: frames may have been
    /// given back and others taken.
    pub fn audit(&self, moved: bool) -> Result<&'static str> {
        let swapper = Swapper::new(self.domains[0].nr as usize)?;
        for (domain, pages) in self.domains.iter().zip(&self.pages) {
            domain.check_alive()?;
            let now = domain.pages()?;
            ensure!(
                now == *pages,
                "d{} had {pages} pages, has {now}",
                domain.domid
            );
            ensure!(
                now == domain.low + domain.nr,
                "d{} has pages that are at no gfn",
                domain.domid
            );
        }
        // For each gfn: there is RAM, owned by the domain, whose M2P entry leads back
        // to the gfn, and to which nobody has a reference but the domain.
        for pair in self.domains.windows(2) {
            let run = Run {
                a: pair[0].base,
                b: pair[1].base,
                nr: pair[0].nr as u32,
            };
            let checked = swapper.call(pair[0].domid, pair[1].domid, CHECK, &[run])?;
            let bad = checked.status.iter().position(|s| *s != 0);
            ensure!(
                checked.rc == 0 && bad.is_none(),
                "audit by dry run: {}, frame {bad:?}: {:?}",
                control::error(checked.rc),
                bad.map(|i| control::error(checked.status[i].into()))
            );
        }
        let mut frames: Vec<u64> = self.m2p()?.into_values().collect();
        frames.sort_unstable();
        ensure!(
            moved || frames == self.frames,
            "the frames of all windows are not those of the beginning"
        );
        let mut how = "P2M, M2P and owners by dry run and M2P table";
        for domain in &self.domains {
            if let Some(errors) = control::audit(domain.domid)? {
                ensure!(
                    errors == [0; 3],
                    "Xen's audit of d{}: orphans, M2P, P2M errors {errors:?}",
                    domain.domid
                );
                how = "P2M, M2P and owners by dry run, M2P table and Xen's own audit";
            }
        }
        Ok(how)
    }

    /// Destroy all.
    pub fn destroy(mut self) -> Result<()> {
        self.domains.iter_mut().try_for_each(Domain::destroy)
    }
}

/// The number in the frame at each of these gfns of a domain.
pub fn numbers_at(domid: u16, gfns: &[u64]) -> Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for part in gfns.chunks(512) {
        let mapped = Foreign::all(domid, part)?;
        numbers.extend((0..part.len()).map(|i| mapped.frame(i)[0].load(Relaxed)));
    }
    Ok(numbers)
}

fn number(domain: usize, offset: u64) -> u64 {
    mailbox::NUMBER | ((domain as u64 + 1) << 32) | offset
}

/// Word of a vCPU in every frame.
pub fn slot(domain: usize, vcpu: u32) -> u64 {
    mailbox::SLOT + 4 * domain as u64 + u64::from(vcpu)
}

/// CPUs that no vCPU of dom0 is bound to.
fn guest_cpus() -> Result<Vec<u32>> {
    let own = std::thread::available_parallelism()?.get() as u32;
    let cpus: Vec<u32> = (own..control::host()?.cpus).collect();
    ensure!(!cpus.is_empty(), "dom0 has all CPUs; guests need one");
    Ok(cpus)
}

/// Random runs within windows of `nr` frames: single frames, short ones, and 2 MiB
/// aligned on one or both sides. They may overlap.
pub fn random_runs(random: &mut fastrand::Rng, nr: u64) -> Vec<Run> {
    let mut runs = Vec::new();
    for _ in 0..random.usize(1..24) {
        let (mut align_a, mut align_b, mut length) = (1, 1, 1);
        match random.u8(0..8) {
            0..3 => {}
            3..6 => length = random.u64(1..64),
            6 => (align_a, length) = (512.min(nr), random.u64(1..nr.min(512))),
            _ => (align_a, align_b, length) = (512.min(nr), 512.min(nr), 512.min(nr)),
        }
        let end = nr - length;
        runs.push(Run {
            a: random.u64(0..=end) / align_a * align_a,
            b: random.u64(0..=end) / align_b * align_b,
            nr: length as u32,
        });
    }
    runs
}

/// Set when dropped, so that the threads of a test end however it ends.
#[derive(Debug)]
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Join a thread of a test.
pub fn join<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().ok().context("a thread panicked")?
}
