// SPDX-License-Identifier: GPL-2.0-only

//! Random sequences of swaps on a few domains. `call` has what must hold of each, `state` what
//! must hold between them, `pod` frames that are moved to where nothing is.

mod call;
mod pod;
mod state;

use std::path::Path;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Result;
use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::world;
use crate::world::with;
use crate::world::Faults;
use crate::world::DOMAINS;
use crate::world::GFNS;
use crate::world::NONE;
use crate::xen::Direction;
use crate::xen::Run;
use crate::xen::Xen;
use crate::xen::ACCESS_RWX;
use crate::xen::RAM_RW;

/// How to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// EPT instead of NPT.
    pub ept: bool,
    /// Domains with nested virtualization.
    pub nested: bool,
    /// Seed of everything random.
    pub seed: u64,
    /// Calls of the hypercall.
    pub ops: u64,
}

/// 4 KiB frames come first, then what is populated on demand and a hole, then two 2 MiB entries,
/// which do not stay whole for long; then two that are only swapped in such a way that they can be
/// made whole again, and as much that is populated on demand.
const SMALL: u64 = 256;
const SUPER: u64 = 1024;
const WHOLE: u64 = 2048;
/// Frames of a 2 MiB entry.
const ENTRY: u64 = 512;
const FRAMES: u64 = 32768;

struct Test {
    xen: Xen,
    rng: ChaCha8Rng,
    /// What each domain has at each gfn.
    map: Vec<Vec<u64>>,
    /// What is in the first word of each frame: its number, unless it was zeroed.
    contents: Vec<u64>,
    /// What each domain may have at most.
    limit: Vec<u64>,
    /// Whether the calls may move frames.
    moving: Direction,
    /// Frames with a reference of somebody else, and the domain at that time.
    referenced: Vec<(u64, usize, u64)>,
    /// Domains in log-dirty mode, and gfns whose writes are to be noticed.
    logging: Vec<bool>,
    tracked: Vec<Vec<bool>>,
    /// What the last call says that it did, and the pairs that it swapped, as runs.
    last: Stats,
    moved: Vec<Run>,
    total: Total,
}

/// Pairs of all calls.
#[derive(Debug, Default, Clone, Copy)]
pub struct Total {
    /// Swapped, moved ones included.
    pub swapped: u64,
    /// Of these, moved.
    pub moved: u64,
    /// Frames that were zeroed instead.
    pub zeroed: u64,
    /// All that were refused.
    pub refused: u64,
}

/// Counters of the result.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Stats {
    superpages: u64,
    writes: u64,
    splits: u64,
}

/// Run a sequence.
pub fn run(library: &Path, options: &Options) -> Result<Total> {
    let xen = Xen::load(library, FRAMES, options.ept, world::handle)?;
    xen.create(0, 2, 64, false)?;
    let mut test = Test {
        xen,
        rng: ChaCha8Rng::seed_from_u64(options.seed),
        map: vec![vec![NONE; GFNS]; DOMAINS + 1],
        contents: (0..FRAMES).collect(),
        limit: vec![u64::from(u32::MAX); DOMAINS + 1],
        moving: Direction::None,
        referenced: Vec::new(),
        logging: vec![false; DOMAINS + 1],
        tracked: vec![vec![false; GFNS]; DOMAINS + 1],
        last: Stats::default(),
        moved: Vec::new(),
        total: Total::default(),
    };
    test.populate(options.nested)?;
    let blocks = with(|w| w.allocated());
    for op in 0..options.ops {
        test.disturb()?;
        let result = match test.rng.random_range(0..128) {
            0 | 1 => test.whole(),
            2 => test.whole_move(),
            _ => test.operation(),
        };
        result
            .and_then(|()| if op % 512 == 0 { test.audit() } else { Ok(()) })
            .and_then(|()| {
                let now = with(|w| w.allocated());
                ensure!(now == blocks, "memory leak: {now} blocks, not {blocks}");
                match with(|w| w.violation.clone()) {
                    Some(what) => bail!("{what}"),
                    None => Ok(()),
                }
            })
            .map_err(|e| e.context(format!("operation {op} of seed {}", options.seed)))?;
    }
    test.audit()?;
    Ok(test.total)
}

impl Test {
    fn populate(&mut self, nested: bool) -> Result<()> {
        with(|w| w.start(FRAMES as usize));
        for id in 1..=DOMAINS {
            self.xen.create(id as u16, u64::from(nested), 512, true)?;
            let base = id as u64 * 4096;
            for i in 0..SMALL {
                // Scattered: a step that is prime to the number.
                let mfn = base + i * 97 % SMALL;
                self.give(id, i, mfn, 0)?;
            }
            for i in 0..2 {
                self.give(id, SUPER + i * ENTRY, base + 1024 + i * ENTRY, 9)?;
                self.give(id, WHOLE + i * ENTRY, base + 2048 + i * ENTRY, 9)?;
            }
        }
        self.populate_on_demand()?;
        let names = ["domain lock", "page list lock", "pod lock"];
        for id in 1..=DOMAINS {
            for (lock, name) in self.xen.locks(id as u16).iter().zip(names) {
                with(|w| w.lock_names.insert(*lock, format!("d{id} {name}")));
            }
        }
        Ok(())
    }

    fn give(&mut self, id: usize, gfn: u64, mfn: u64, order: u32) -> Result<()> {
        self.xen.populate(id as u16, gfn, mfn, order)?;
        for i in 0..1 << order {
            self.map[id][(gfn + i) as usize] = mfn + i;
            with(|w| w.seed(id, gfn + i, mfn + i));
            // SAFETY: a frame of the simulated machine.
            unsafe { *self.tag(mfn + i) = mfn + i };
        }
        Ok(())
    }

    /// Take and drop references of others, and change the mode, now and then.
    fn disturb(&mut self) -> Result<()> {
        if self.rng.random_ratio(1, 16) && self.referenced.len() < 24 {
            let id = self.rng.random_range(1..=DOMAINS);
            let gfn = self.gfn();
            let mfn = self.map[id][gfn as usize];
            if mfn < pod::POD && self.xen.get_page(mfn, id as u16) {
                self.referenced.push((mfn, id, gfn));
            }
        }
        if self.rng.random_ratio(1, 20) && !self.referenced.is_empty() {
            let i = self.rng.random_range(0..self.referenced.len());
            let (mfn, ..) = self.referenced.swap_remove(i);
            self.xen.put_page(mfn);
        }
        if self.rng.random_ratio(1, 200) {
            let id = self.rng.random_range(1..=DOMAINS);
            let on = !self.logging[id];
            self.xen.log_dirty(id as u16, on)?;
            self.logging[id] = on;
            for gfn in 0..GFNS {
                self.tracked[id][gfn] = on && self.map[id][gfn] < pod::POD;
            }
        }
        if self.rng.random_ratio(1, 50) {
            self.disturb_pod()?;
        }
        Ok(())
    }

    fn gfn(&mut self) -> u64 {
        match self.rng.random_range(0..10) {
            0..5 => self.rng.random_range(0..SMALL),
            5..7 => SUPER + self.rng.random_range(0..1024),
            7..9 => self.rng.random_range(SMALL..SUPER),
            _ => self.rng.random_range(0..WHOLE),
        }
    }

    fn runs(&mut self) -> Vec<Run> {
        if self.rng.random_ratio(1, 200) {
            // Whole superpages.
            let nr = if self.rng.random() { ENTRY } else { 2 * ENTRY } as u32;
            return vec![Run {
                gfn_a: SUPER,
                gfn_b: SUPER,
                nr,
                pad: 0,
            }];
        }
        (0..self.rng.random_range(1..5))
            .map(|_| {
                let nr = self.rng.random_range(1..12);
                let limit = WHOLE - u64::from(nr);
                Run {
                    gfn_a: self.gfn().min(limit),
                    gfn_b: self.gfn().min(limit),
                    nr,
                    pad: 0,
                }
            })
            .collect()
    }

    fn faults(&mut self) -> Faults {
        let mut faults = Faults::default();
        match self.rng.random_range(0..14) {
            3 => faults.frame = Some(self.rng.random_range(0..3)),
            0 => faults.alloc = Some(self.rng.random_range(0..3)),
            1 => faults.table = Some(self.rng.random_range(0..3)),
            2 => faults.copy = Some(self.rng.random_range(0..12)),
            _ => {}
        }
        faults.preempt = self.rng.random();
        faults
    }

    fn domains(&mut self) -> (usize, usize) {
        let a = self.rng.random_range(1..=DOMAINS);
        let b = (a + self.rng.random_range(0..DOMAINS - 1)) % DOMAINS + 1;
        (a, b)
    }

    /// Whole 2 MiB entries, exactly accounted for. What gets in between is undone, and the
    /// entries are put together again.
    fn whole(&mut self) -> Result<()> {
        let (a, b) = self.domains();
        let (nr, i, j) = if self.rng.random() {
            (2 * ENTRY, 0, 0)
        } else {
            (
                ENTRY,
                self.rng.random_range(0..2),
                self.rng.random_range(0..2),
            )
        };
        let mut run = Run {
            gfn_a: WHOLE + i * ENTRY,
            gfn_b: WHOLE + j * ENTRY,
            nr: nr as u32,
            pad: 0,
        };
        let check = self.rng.random_ratio(1, 8);
        let mut disturbed = false;
        let mut faults = Faults {
            preempt: self.rng.random(),
            ..Faults::default()
        };
        match self.rng.random_range(0..4) {
            // Somebody uses a frame.
            0 => {
                let gfn = run.gfn_a + self.rng.random_range(0..nr);
                let mfn = self.map[a][gfn as usize];
                disturbed = self.xen.get_page(mfn, a as u16);
                self.referenced.push((mfn, a, gfn));
            }
            // Only a part, so that the entries are split, if there is memory for that.
            kind @ 1..3 => {
                faults.table = (kind == 1).then(|| self.rng.random_range(0..2));
                let skip = self.rng.random_range(1..8);
                run.gfn_a += skip;
                run.gfn_b += skip;
                run.nr -= self.rng.random_range(skip as u32..nr as u32);
                disturbed = true;
            }
            _ => {}
        }
        let before = (self.map[a].clone(), self.map[b].clone());
        self.call(a, b, &[run], check, faults, disturbed)?;
        if !disturbed {
            let entries = if check { 0 } else { nr / ENTRY };
            let expected = Stats {
                superpages: entries,
                writes: 4 * entries,
                splits: 0,
            };
            ensure!(
                self.last == expected,
                "whole entries: {:?}, not {expected:?}",
                self.last
            );
            return Ok(());
        }
        if !self.moved.is_empty() {
            let runs = std::mem::take(&mut self.moved);
            self.call(a, b, &runs, false, Faults::default(), false)?;
            ensure!(
                (&self.map[a], &self.map[b]) == (&before.0, &before.1),
                "what was swapped in part is not restored"
            );
        }
        while let Some(k) = self.referenced.iter().position(|r| r.2 >= WHOLE) {
            self.xen.put_page(self.referenced.swap_remove(k).0);
        }
        for id in [a, b] {
            for gfn in [WHOLE, WHOLE + ENTRY] {
                if self.xen.lookup(id as u16, gfn).order == 0 {
                    // By the hypercall, unless each write to the entry has to be noticed.
                    ensure!(
                        self.logging[id] || faults.table.is_some(),
                        "d{id} gfn {gfn:#x}: was not put together again"
                    );
                    let mfn = self.map[id][gfn as usize];
                    self.xen
                        .write(id as u16, gfn, mfn, 9, RAM_RW.into(), ACCESS_RWX)?;
                    self.tracked[id][gfn as usize..(gfn + ENTRY) as usize].fill(false);
                }
            }
        }
        Ok(())
    }

    /// One call, with its continuations or without, and perhaps its undoing.
    fn operation(&mut self) -> Result<()> {
        let (a, b) = self.domains();
        let runs = self.runs();
        let check = self.rng.random_ratio(1, 10);
        let faults = self.faults();
        let stop = self.rng.random_ratio(1, 4);
        let before = self
            .rng
            .random_ratio(1, 4)
            .then(|| (self.map[a].clone(), self.map[b].clone()));
        let to = [
            Direction::None,
            Direction::None,
            Direction::ToA,
            Direction::ToB,
        ][self.rng.random_range(0..4)];
        self.moving = to;
        let result = self.call(a, b, &runs, check, faults, stop);
        self.moving = Direction::None;
        let (done, clean) = result?;
        let Some((map_a, map_b)) = before.filter(|_| clean && !check) else {
            return Ok(());
        };
        if to != Direction::None {
            // What has come back to the frame that it was in can go there again.
            let runs = std::mem::take(&mut self.moved);
            if !runs.is_empty() {
                self.moving = to.opposite();
                let result = self.call(a, b, &runs, false, Faults::default(), false);
                self.moving = Direction::None;
                result?;
                ensure!(
                    self.map[a] == map_a && self.map[b] == map_b,
                    "the opposite direction did not restore the state before"
                );
            }
            return Ok(());
        }
        // Swap the prefix back: everything is as it was.
        let mut left = done as u32;
        let mut prefix = Vec::new();
        for run in &runs {
            let nr = run.nr.min(left);
            if nr > 0 {
                prefix.push(Run { nr, ..*run });
            }
            left -= nr;
        }
        if !prefix.is_empty() {
            self.call(a, b, &prefix, false, Faults::default(), false)?;
            ensure!(
                self.map[a] == map_a && self.map[b] == map_b,
                "a rollback did not restore the state before"
            );
        }
        Ok(())
    }
}
