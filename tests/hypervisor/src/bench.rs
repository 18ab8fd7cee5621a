// SPDX-License-Identifier: GPL-2.0-only

//! How long a swap of 1 GiB takes on this CPU, beside copying and beside a bare loop over
//! the same metadata. All in one run, in turns.

use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use anyhow::ensure;
use anyhow::Result;
use rand::seq::SliceRandom;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use crate::world;
use crate::xen::Args;
use crate::xen::Run;
use crate::xen::Xen;
use crate::xen::RESTART;

/// 4 KiB pairs of 1 GiB.
const PAIRS: usize = 1 << 18;
const ROUNDS: usize = 11;
const LIBRARY: &str = "build/harness/timed.so";

/// Frames of a side, in the order of the gfns.
struct Side {
    id: u16,
    mfns: Vec<u64>,
}

fn side(xen: &Xen, id: u16, mfns: Vec<u64>, order: u32) -> Result<Side> {
    xen.create(id, 0, 2048, false)?;
    for gfn in (0..PAIRS).step_by(1 << order) {
        xen.populate(id, gfn as u64, mfns[gfn], order)?;
    }
    Ok(Side { id, mfns })
}

fn swap(xen: &Xen, a: &Side, b: &Side) -> Result<f64> {
    let runs = [Run {
        gfn_a: 0,
        gfn_b: 0,
        nr: PAIRS as u32,
        pad: 0,
    }];
    let mut status = vec![1i32; PAIRS];
    let mut args = Args::new(xen, (a.id, b.id), false, &runs, &mut status);
    let start = Instant::now();
    let rc = loop {
        let rc = xen.swap(&mut args);
        if rc != RESTART {
            break rc;
        }
    };
    let time = start.elapsed().as_nanos() as f64;
    ensure!(
        rc == 0 && status.iter().all(|s| *s == 0),
        "the swap did not succeed: {rc}"
    );
    Ok(time)
}

/// What a swap cannot do without, as bare as it can be: for each pair read the counts and
/// owners of both frames, take both off their lists and put them on the other, write owners,
/// M2P and P2M. The tables are like Xen's: 32 bytes a frame, 8 bytes an entry, large pages.
struct Floor {
    frames: Vec<[u32; 8]>,
    m2p: Vec<u64>,
    p2m: [Vec<u64>; 2],
    tail: [u32; 2],
}

impl Floor {
    fn new(a: &Side, b: &Side, frames: usize) -> Self {
        let mut floor = Self {
            frames: huge(frames, [0; 8]),
            m2p: huge(frames, 0),
            p2m: [huge(PAIRS, 0), huge(PAIRS, 0)],
            tail: [0; 2],
        };
        for (which, side) in [a, b].into_iter().enumerate() {
            let mut previous = 0;
            for (gfn, mfn) in side.mfns.iter().enumerate() {
                floor.p2m[which][gfn] = *mfn;
                floor.m2p[*mfn as usize] = gfn as u64;
                floor.frames[*mfn as usize] = [0, previous, 1, 0, which as u32 + 1, 0, 0, 0];
                if previous != 0 {
                    floor.frames[previous as usize][0] = *mfn as u32;
                }
                previous = *mfn as u32;
            }
            floor.tail[which] = previous;
        }
        floor
    }

    fn relink(&mut self, mfn: u32, from: usize, to: usize) {
        let [next, previous, ..] = self.frames[mfn as usize];
        if next != 0 {
            self.frames[next as usize][1] = previous;
        } else {
            self.tail[from] = previous;
        }
        if previous != 0 {
            self.frames[previous as usize][0] = next;
        }
        let last = self.tail[to];
        if last != 0 {
            self.frames[last as usize][0] = mfn;
        }
        let frame = &mut self.frames[mfn as usize];
        frame[0] = 0;
        frame[1] = last;
        frame[4] = to as u32 + 1;
        self.tail[to] = mfn;
    }

    fn swap(&mut self) -> f64 {
        let start = Instant::now();
        for gfn in 0..PAIRS {
            let (a, b) = (self.p2m[0][gfn], self.p2m[1][gfn]);
            let (fa, fb) = (&self.frames[a as usize], &self.frames[b as usize]);
            if fa[2] != 1 || fb[2] != 1 || fa[4] != 1 || fb[4] != 2 {
                continue;
            }
            self.relink(a as u32, 0, 1);
            self.relink(b as u32, 1, 0);
            self.m2p[a as usize] = gfn as u64;
            self.m2p[b as usize] = gfn as u64;
            self.p2m[0][gfn] = b;
            self.p2m[1][gfn] = a;
        }
        black_box(&self.frames);
        start.elapsed().as_nanos() as f64
    }
}

/// A vector that asks for large pages before it is touched.
fn huge<T: Clone>(len: usize, value: T) -> Vec<T> {
    let mut v: Vec<T> = Vec::with_capacity(len);
    let start = (v.as_mut_ptr() as usize).next_multiple_of(1 << 21);
    let end = v.as_mut_ptr() as usize + len * size_of::<T>();
    if end > start {
        // SAFETY: advice about memory of the vector.
        unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_HUGEPAGE) };
    }
    v.resize(len, value);
    v
}

fn page(xen: &Xen, mfn: u64) -> *mut u8 {
    (xen.layout.direct_map + (mfn << 12)) as *mut u8
}

fn copy(xen: &Xen, a: &Side, b: &Side, both: bool) -> f64 {
    let mut bounce = [0u8; 4096];
    let start = Instant::now();
    for (ma, mb) in a.mfns.iter().zip(&b.mfns) {
        let (pa, pb) = (page(xen, *ma), page(xen, *mb));
        // SAFETY: different frames of the simulated machine, and a page of our own.
        unsafe {
            if both {
                std::ptr::copy_nonoverlapping(pa, bounce.as_mut_ptr(), 4096);
                std::ptr::copy_nonoverlapping(pb, pa, 4096);
                std::ptr::copy_nonoverlapping(bounce.as_ptr(), pb, 4096);
            } else {
                std::ptr::copy_nonoverlapping(pa, pb, 4096);
            }
        }
    }
    black_box(&bounce);
    start.elapsed().as_nanos() as f64
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Everything, in turns; the table, and build/report/bench-hv.json.
pub fn run() -> Result<()> {
    let pairs = PAIRS as u64;
    let frames = 6 * pairs + 65_536;
    let xen = Xen::load(Path::new(LIBRARY), frames, false, world::handle_little)?;
    xen.create(0, 2, 64, false)?;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    // Frame 0 ends lists.
    let base = 512;
    let linear = |n: u64| (base + n * pairs..base + (n + 1) * pairs).collect::<Vec<_>>();
    let mut mixed: Vec<u64> = (base + 2 * pairs..base + 4 * pairs).collect();
    mixed.shuffle(&mut rng);
    let second = mixed.split_off(PAIRS);
    let contiguous = (side(&xen, 1, linear(0), 0)?, side(&xen, 2, linear(1), 0)?);
    let scattered = (side(&xen, 3, mixed, 0)?, side(&xen, 4, second, 0)?);
    let large = (side(&xen, 5, linear(4), 9)?, side(&xen, 6, linear(5), 9)?);
    let mut floors = (
        Floor::new(&contiguous.0, &contiguous.1, frames as usize),
        Floor::new(&scattered.0, &scattered.1, frames as usize),
    );
    for side in [&contiguous.0, &contiguous.1, &scattered.0, &scattered.1] {
        for mfn in &side.mfns {
            // SAFETY: a frame of the simulated machine.
            unsafe { page(&xen, *mfn).write_bytes(*mfn as u8, 4096) };
        }
    }

    let mut times: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for round in 0..=ROUNDS {
        let results = [
            ("contiguous", swap(&xen, &contiguous.0, &contiguous.1)?),
            ("contiguous, floor", floors.0.swap()),
            (
                "contiguous, by copying",
                copy(&xen, &contiguous.0, &contiguous.1, true),
            ),
            (
                "contiguous, memcpy one way",
                copy(&xen, &contiguous.0, &contiguous.1, false),
            ),
            ("scattered", swap(&xen, &scattered.0, &scattered.1)?),
            ("scattered, floor", floors.1.swap()),
            (
                "scattered, by copying",
                copy(&xen, &scattered.0, &scattered.1, true),
            ),
            ("2 MiB entries", swap(&xen, &large.0, &large.1)?),
        ];
        // The first round warms up. In the second a first swap has split the 2 MiB entries,
        // if it splits.
        if round > 0 {
            for (name, time) in results {
                times.entry(name).or_default().push(time / PAIRS as f64);
            }
        }
    }

    println!("1 GiB, medians of {ROUNDS} rounds, ns per pair of 4 KiB frames");
    println!("{:28} {:>9} {:>9} {:>9}", "", "median", "least", "most");
    let mut medians = BTreeMap::new();
    for (name, values) in &mut times {
        let m = median(values);
        println!(
            "{name:28} {m:9.1} {:9.1} {:9.1}",
            values[0],
            values[values.len() - 1]
        );
        medians.insert(*name, m);
    }
    let c = medians["contiguous"];
    let s = medians["scattered"];
    let report = json!({
        "pairs": PAIRS,
        "rounds": ROUNDS,
        "cpu": cpu(),
        "contiguous_ns_per_pair": c,
        "scattered_ns_per_pair": s,
        "superpage_ns_per_pair": medians["2 MiB entries"],
        "contiguous_vs_copy": medians["contiguous, by copying"] / c,
        "scattered_vs_copy": medians["scattered, by copying"] / s,
        "superpage_vs_copy": medians["contiguous, by copying"] / medians["2 MiB entries"],
        "contiguous_vs_floor": c / medians["contiguous, floor"],
        "scattered_vs_floor": s / medians["scattered, floor"],
        "times": times,
    });
    for key in [
        "contiguous_vs_copy",
        "scattered_vs_copy",
        "superpage_vs_copy",
        "contiguous_vs_floor",
        "scattered_vs_floor",
    ] {
        println!("{key:28} {:9.2}", report[key].as_f64().unwrap_or_default());
    }
    fs::create_dir_all("build/report")?;
    fs::write(
        "build/report/bench-hv.json",
        serde_json::to_string_pretty(&report)?,
    )?;
    Ok(())
}

fn cpu() -> String {
    fs::read_to_string("/proc/cpuinfo")
        .unwrap_or_default()
        .lines()
        .find_map(|l| l.strip_prefix("model name")?.split_once(": "))
        .map_or_else(String::new, |(_, name)| name.to_owned())
}
