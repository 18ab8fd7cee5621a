// SPDX-License-Identifier: GPL-2.0-only

//! One call of the hypercall, and whether what it reports is what it did.

use anyhow::bail;
use anyhow::ensure;
use anyhow::Result;

use super::pod::Moving;
use super::Stats;
use super::Test;
use crate::world::with;
use crate::world::Faults;
use crate::world::GFNS;
use crate::xen::stat;
use crate::xen::Args;
use crate::xen::Run;
use crate::xen::RESTART;

/// What a status is before the call.
const UNTOUCHED: i32 = 0x5a5a;

const EEXIST: i32 = -17;
const ENOMEM: i32 = -12;

impl Test {
    /// Pairs done, and whether none occurs twice and no copy failed.
    pub(super) fn call(
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
        let mut args = Args::new(&self.xen, (a as u16, b as u16), check, runs, &mut status)
            .moving(self.moving);
        let mut moving = Moving::new(self, a, b, self.moving);
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
            let pair = (a, b, ga, gb);
            let fate = self.fate(pair, &moving);
            if copy_fired {
                // The list has no gfn twice, so the P2M tells what was done.
                if !check && self.was_done(pair, fate) {
                    self.apply(pair, fate, &mut moving);
                    swapped += u64::from(fate.status() == 0);
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
            let expected = fate.status();
            ensure!(
                reported == expected
                    || (reported == EEXIST && twice(ga, gb))
                    || (reported == ENOMEM && fired),
                "pair {i} (d{a} {ga:#x}, d{b} {gb:#x}): status {reported}, not {expected}"
            );
            if reported == expected && check {
                moving.check(fate);
            } else if reported == expected {
                self.apply(pair, fate, &mut moving);
            }
            if reported == 0 {
                swapped += 1;
                if !check {
                    self.moved(ga as u64, gb as u64);
                }
            } else {
                self.total.refused += 1;
            }
        }
        self.total.swapped += swapped;
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
            // Where frames go to types that are to change do so only when they get there.
            let most = most + if moving.moved > 0 { batches } else { 0 };
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
            let dirtied = args.stat(stat::DIRTIED);
            self.verify_dirty(&moving, dirtied, swapped)?;
        }
        if !copy_fired {
            moving.verify_told(args.to())?;
        }
        if !check {
            moving.verify(self, counts.freed)?;
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

    pub(super) fn exchange(&mut self, a: usize, b: usize, ga: usize, gb: usize) {
        let ma = self.map[a][ga];
        self.map[a][ga] = self.map[b][gb];
        self.map[b][gb] = ma;
        self.tracked[a][ga] = false;
        self.tracked[b][gb] = false;
    }
}
