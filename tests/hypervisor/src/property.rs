// SPDX-License-Identifier: GPL-2.0-only

//! Random sequences of swaps on a few domains, and what must hold after each.

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
use crate::xen::stat;
use crate::xen::Args;
use crate::xen::Run;
use crate::xen::Xen;
use crate::xen::ACCESS_RWX;
use crate::xen::RAM_LOGDIRTY;
use crate::xen::RAM_RW;
use crate::xen::RESTART;

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

/// 4 KiB frames come first, then a hole, then two 2 MiB entries, which do not stay whole for
/// long; then two that are only swapped in such a way that they can be made whole again.
const SMALL: u64 = 256;
const SUPER: u64 = 1024;
const WHOLE: u64 = 2048;
/// Frames of a 2 MiB entry.
const ENTRY: u64 = 512;
const FRAMES: u64 = 32768;
const UNTOUCHED: i32 = 0x5a5a;

const EBUSY: i32 = -16;
const EEXIST: i32 = -17;
const ENOENT: i32 = -2;
const ENOMEM: i32 = -12;

struct Test {
    xen: Xen,
    rng: ChaCha8Rng,
    /// What each domain has at each gfn.
    map: Vec<Vec<u64>>,
    /// Frames with a reference of somebody else, and the domain at that time.
    referenced: Vec<(u64, usize, u64)>,
    /// Domains in log-dirty mode, and gfns whose writes are to be noticed.
    logging: Vec<bool>,
    tracked: Vec<Vec<bool>>,
    /// What the last call says that it did, and the pairs that it swapped, as runs.
    last: Stats,
    moved: Vec<Run>,
    swapped: u64,
    refused: u64,
}

/// Counters of the result.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Stats {
    superpages: u64,
    writes: u64,
    splits: u64,
}

/// Run a sequence; the number of pairs swapped and refused.
pub fn run(library: &Path, options: &Options) -> Result<(u64, u64)> {
    let xen = Xen::load(library, FRAMES, options.ept, world::handle)?;
    xen.create(0, 2, 64, false)?;
    let mut test = Test {
        xen,
        rng: ChaCha8Rng::seed_from_u64(options.seed),
        map: vec![vec![NONE; GFNS]; DOMAINS + 1],
        referenced: Vec::new(),
        logging: vec![false; DOMAINS + 1],
        tracked: vec![vec![false; GFNS]; DOMAINS + 1],
        last: Stats::default(),
        moved: Vec::new(),
        swapped: 0,
        refused: 0,
    };
    test.populate(options.nested)?;
    let blocks = with(|w| w.allocated());
    for op in 0..options.ops {
        test.disturb()?;
        let whole = test.rng.random_ratio(1, 64);
        let result = if whole {
            test.whole()
        } else {
            test.operation()
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
    Ok((test.swapped, test.refused))
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
        let names = ["domain lock", "page list lock"];
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

    fn tag(&self, mfn: u64) -> *mut u64 {
        (self.xen.layout.direct_map + (mfn << 12)) as *mut u64
    }

    /// Take and drop references of others, and change the mode, now and then.
    fn disturb(&mut self) -> Result<()> {
        if self.rng.random_ratio(1, 16) && self.referenced.len() < 24 {
            let id = self.rng.random_range(1..=DOMAINS);
            let gfn = self.gfn();
            let mfn = self.map[id][gfn as usize];
            if mfn != NONE && self.xen.get_page(mfn, id as u16) {
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
                self.tracked[id][gfn] = on && self.map[id][gfn] != NONE;
            }
        }
        Ok(())
    }

    fn gfn(&mut self) -> u64 {
        match self.rng.random_range(0..8) {
            0..5 => self.rng.random_range(0..SMALL),
            5..7 => SUPER + self.rng.random_range(0..1024),
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
        match self.rng.random_range(0..12) {
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
        let (done, clean) = self.call(a, b, &runs, check, faults, stop)?;
        let Some((map_a, map_b)) = before.filter(|_| clean && !check) else {
            return Ok(());
        };
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

    /// Pairs done, and whether none occurs twice and no copy failed.
    fn call(
        &mut self,
        a: usize,
        b: usize,
        runs: &[Run],
        check: bool,
        faults: Faults,
        stop: bool,
    ) -> Result<(u64, bool)> {
        let pairs: Vec<(usize, usize)> = runs
            .iter()
            .flat_map(|r| {
                (0..u64::from(r.nr)).map(|i| ((r.gfn_a + i) as usize, (r.gfn_b + i) as usize))
            })
            .collect();
        let mut seen = (vec![0u8; GFNS], vec![0u8; GFNS]);
        for (ga, gb) in &pairs {
            seen.0[*ga] = seen.0[*ga].saturating_add(1);
            seen.1[*gb] = seen.1[*gb].saturating_add(1);
        }
        let twice = |ga: usize, gb: usize| seen.0[ga] > 1 || seen.1[gb] > 1;
        let unique = pairs.iter().all(|(ga, gb)| !twice(*ga, *gb));

        let mut status = vec![UNTOUCHED; pairs.len()];
        let mut args = Args::new(&self.xen, (a as u16, b as u16), check, runs, &mut status);
        let copy = faults.copy;
        with(|w| {
            w.begin(Faults {
                copy: copy.filter(|_| unique),
                ..faults
            });
        });
        let rc = loop {
            let rc = self.xen.swap(&mut args);
            if rc != RESTART || stop {
                break rc;
            }
        };
        let done = args.done();
        let (fired, copy_fired, counts) = with(|w| {
            w.end();
            (w.faults.fired, w.faults.copy_fired, w.counts)
        });
        match rc {
            0 => ensure!(done == pairs.len() as u64, "returned 0 after {done} pairs"),
            RESTART => ensure!(stop && done < pairs.len() as u64, "restart at {done}"),
            -14 => ensure!(copy_fired, "-EFAULT without a fault"),
            -12 => ensure!(fired, "-ENOMEM without a fault"),
            _ => bail!("returned {rc}"),
        }
        for id in [a, b] {
            ensure!(
                !self.xen.residue(id as u16),
                "d{id}: something is left behind"
            );
        }

        self.last = Stats::default();
        self.moved.clear();
        let mut swapped = 0;
        for (i, &(ga, gb)) in pairs.iter().enumerate() {
            let reported = status[i];
            if copy_fired {
                // The list has no gfn twice, so the P2M tells what was done.
                let now = self.xen.lookup(a as u16, ga as u64).mfn;
                if now != self.map[a][ga] && !check {
                    self.exchange(a, b, ga, gb);
                    swapped += 1;
                }
                continue;
            }
            if i as u64 >= done {
                ensure!(
                    reported == UNTOUCHED,
                    "status of pair {i} written, {done} done"
                );
                continue;
            }
            let (ma, mb) = (self.map[a][ga], self.map[b][gb]);
            // What is at both gfns counts before who else uses the frames.
            let expected = if ma == NONE || mb == NONE {
                ENOENT
            } else if self.held(ma) || self.held(mb) {
                EBUSY
            } else {
                0
            };
            ensure!(
                reported == expected
                    || (reported == EEXIST && twice(ga, gb))
                    || (reported == ENOMEM && fired),
                "pair {i} (d{a} {ga:#x}, d{b} {gb:#x}): status {reported}, not {expected}"
            );
            if reported == 0 {
                swapped += 1;
                if !check {
                    self.exchange(a, b, ga, gb);
                    self.moved(ga as u64, gb as u64);
                }
            } else {
                self.refused += 1;
            }
        }
        self.swapped += swapped;
        if !copy_fired && !check {
            let got = args.stat(stat::SWAPPED);
            ensure!(got == swapped, "{got} reported as swapped, {swapped} were");
            let merges = args.stat(stat::MERGES_2M) + args.stat(stat::MERGES_1G);
            let told = args.stat(stat::TLB_FLUSHES);
            ensure!(
                told == counts.ipis,
                "{told} flushes reported, {} were",
                counts.ipis
            );
            // What was split in vain, for lack of memory, has to be flushed as well.
            let batches = args.stat(stat::BATCHES);
            let most = batches + merges + if fired { 2 * batches } else { 0 };
            ensure!(
                told <= most,
                "{told} flushes in {batches} batches, {merges} merges"
            );
            self.last = Stats {
                superpages: args.stat(stat::SUPERPAGES),
                writes: args.stat(stat::P2M_WRITES),
                splits: args.stat(stat::SPLITS_2M) + args.stat(stat::SPLITS_1G),
            };
            let written = self.last.writes + self.last.splits;
            ensure!(
                written == counts.writes,
                "{:?} reported, {} entries were written",
                self.last,
                counts.writes
            );
            let logging = u64::from(self.logging[a]) + u64::from(self.logging[b]);
            let dirtied = args.stat(stat::DIRTIED);
            ensure!(
                dirtied == swapped * logging,
                "{dirtied} frames reported as dirty, {swapped} pairs swapped"
            );
        }
        for &(ga, gb) in &pairs {
            self.verify(a, ga)?;
            self.verify(b, gb)?;
        }
        // A pair that was left out for lack of memory would be swapped the next time.
        Ok((done, unique && !fired))
    }

    /// Add a pair to what was swapped by this call.
    fn moved(&mut self, gfn_a: u64, gfn_b: u64) {
        if let Some(run) = self.moved.last_mut() {
            let nr = u64::from(run.nr);
            if run.gfn_a + nr == gfn_a && run.gfn_b + nr == gfn_b {
                run.nr += 1;
                return;
            }
        }
        self.moved.push(Run {
            gfn_a,
            gfn_b,
            nr: 1,
            pad: 0,
        });
    }

    fn held(&self, mfn: u64) -> bool {
        self.referenced.iter().any(|(m, ..)| *m == mfn)
    }

    fn exchange(&mut self, a: usize, b: usize, ga: usize, gb: usize) {
        let ma = self.map[a][ga];
        self.map[a][ga] = self.map[b][gb];
        self.map[b][gb] = ma;
        self.tracked[a][ga] = false;
        self.tracked[b][gb] = false;
    }

    /// P2M, M2P, owner, count and contents of one gfn.
    fn verify(&self, id: usize, gfn: usize) -> Result<()> {
        let want = self.map[id][gfn];
        let entry = self.xen.lookup(id as u16, gfn as u64);
        ensure!(
            entry.mfn == want,
            "d{id} gfn {gfn:#x}: P2M has {:#x}, not {want:#x}",
            entry.mfn
        );
        if want == NONE {
            return Ok(());
        }
        let frame = self.xen.frame(want);
        let l = &self.xen.layout;
        let kind = if self.tracked[id][gfn] {
            RAM_LOGDIRTY
        } else {
            RAM_RW
        };
        ensure!(
            entry.p2m_type == kind,
            "d{id} gfn {gfn:#x}: type {}, not {kind}",
            entry.p2m_type
        );
        ensure!(
            frame.gpfn == gfn as u64,
            "frame {want:#x}: M2P has {:#x}, not {gfn:#x}",
            frame.gpfn
        );
        ensure!(
            frame.owner as usize == id,
            "frame {want:#x}: owned by d{}, not d{id}",
            frame.owner as i32
        );
        let extra = self.referenced.iter().filter(|(m, ..)| *m == want).count() as u64;
        ensure!(
            frame.count_info == l.page_allocated | (1 + extra) && frame.type_info == 0,
            "frame {want:#x}: count {:#x}, type {:#x}",
            frame.count_info,
            frame.type_info
        );
        // SAFETY: a frame of the simulated machine.
        let tag = unsafe { *self.tag(want) };
        ensure!(tag == want, "frame {want:#x}: contents of {tag:#x}");
        Ok(())
    }

    /// All gfns, all lists, all counts; and no frame has two owners.
    fn audit(&self) -> Result<()> {
        for id in 1..=DOMAINS {
            for gfn in 0..GFNS {
                self.verify(id, gfn)?;
            }
            let mut owned: Vec<u64> = self.map[id]
                .iter()
                .copied()
                .filter(|m| *m != NONE)
                .collect();
            let mut listed = self.xen.list(id as u16, owned.len());
            owned.sort_unstable();
            listed.sort_unstable();
            ensure!(
                owned == listed,
                "d{id}: the page list is not what the domain owns"
            );
            ensure!(
                self.xen.tot_pages(id as u16) == owned.len() as u64,
                "d{id}: tot_pages"
            );
        }
        Ok(())
    }
}
