// SPDX-License-Identifier: GPL-2.0-only

//! How long a swap of 1 GiB takes on this CPU, beside copying and beside a bare loop over
//! the same metadata. All in one run, in turns.

use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use rand::seq::SliceRandom;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use crate::counts;
use crate::swap::handle;
use crate::swap::linear;
use crate::swap::now;
use crate::swap::request;
use crate::swap::Side;
use crate::swap::LIBRARY;
use crate::swap::PREEMPT;
use crate::xen::stat;
use crate::xen::Run;
use crate::xen::Xen;

/// 4 KiB pairs of 1 GiB.
const PAIRS: usize = 1 << 18;
const ROUNDS: usize = 11;
/// `XENMEM_SWAP_MAX_RUNS`.
const MAX_RUNS: usize = 1024;
/// Ratios of a run that `make bench-hv` gives a verdict on, and what they must not be beyond.
/// They depend on the processor and on what else it does, so no test asks for them. Those to
/// copying are the targets; those to the bare loop, whose targets are 2, have room for noise.
const TARGETS: [(&str, f64, bool); 4] = [
    ("contiguous_vs_copy", 40.0, true),
    ("scattered_vs_copy", 4.0, true),
    ("contiguous_vs_floor", 3.0, false),
    ("scattered_vs_floor", 3.0, false),
];
/// As many single pairs as the hypercall takes, with nothing in order: the worst batch.
fn anywhere(rng: &mut ChaCha8Rng) -> Vec<Run> {
    let mut gfns: [Vec<u64>; 2] = std::array::from_fn(|_| (0..PAIRS as u64).collect());
    gfns.iter_mut().for_each(|g| g.shuffle(rng));
    let pairs = gfns[0].iter().zip(&gfns[1]).take(MAX_RUNS);
    pairs
        .map(|(a, b)| Run {
            gfn_a: *a,
            gfn_b: *b,
            nr: 1,
            pad: 0,
        })
        .collect()
}

/// How long a swap takes that nobody preempts, in ns.
fn swap(xen: &Xen, a: &Side, b: &Side) -> Result<f64> {
    let mut time = 0.0;
    request(xen, a, b, &linear(PAIRS), |args| {
        let start = now();
        let rc = xen.swap(args);
        time += now() - start;
        rc
    })?;
    Ok(time)
}

/// How long each batch takes with all that comes before and after it, in us: preempt the
/// hypercall whenever that is possible.
fn one_by_one(xen: &Xen, a: &Side, b: &Side, runs: &[Run]) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    PREEMPT.set(true);
    let result = request(xen, a, b, runs, |args| {
        let start = now();
        let rc = xen.swap(args);
        times.push((now() - start) / 1000.0);
        rc
    });
    PREEMPT.set(false);
    result.map(|()| times)
}

/// What a swap cannot do without, as bare as it can be: for each pair read the counts and
/// owners of both frames, take both off their lists and put them on the other, write owners,
/// M2P and P2M. The tables are like Xen's: 32 bytes a frame, 8 bytes an entry, large pages.
/// Optionally counts are taken and given back atomically, which Xen has to do.
struct Floor {
    /// Frames that share a P2M entry.
    per_entry: usize,
    frames: Vec<[u32; 8]>,
    m2p: Vec<u64>,
    p2m: [Vec<u64>; 2],
    tail: [u32; 2],
}

impl Floor {
    fn new(a: &Side, b: &Side, frames: usize, per_entry: usize) -> Self {
        let mut floor = Self {
            per_entry,
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

    /// The reference count of a frame.
    fn count(&mut self, mfn: u64) -> &AtomicU32 {
        // SAFETY: aligned, and nobody else looks at it while the result lives.
        unsafe { AtomicU32::from_ptr(&raw mut self.frames[mfn as usize][2]) }
    }

    fn swap(&mut self, atomic: bool) -> f64 {
        let start = now();
        for first in (0..PAIRS).step_by(self.per_entry) {
            let (ma, mb) = (self.p2m[0][first], self.p2m[1][first]);
            for i in 0..self.per_entry as u64 {
                let (a, b) = (ma + i, mb + i);
                if atomic {
                    let taken = [a, b].map(|mfn| {
                        self.count(mfn)
                            .compare_exchange(1, 0, SeqCst, SeqCst)
                            .is_ok()
                    });
                    if taken != [true, true] {
                        continue;
                    }
                } else if self.frames[a as usize][2] != 1 || self.frames[b as usize][2] != 1 {
                    continue;
                }
                if self.frames[a as usize][4] != 1 || self.frames[b as usize][4] != 2 {
                    continue;
                }
                self.relink(a as u32, 0, 1);
                self.relink(b as u32, 1, 0);
                self.m2p[a as usize] = first as u64 + i;
                self.m2p[b as usize] = first as u64 + i;
                if atomic {
                    self.count(a).fetch_add(1, SeqCst);
                    self.count(b).fetch_add(1, SeqCst);
                }
            }
            self.p2m[0][first] = mb;
            self.p2m[1][first] = ma;
        }
        black_box(&self.frames);
        now() - start
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
    let start = now();
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
    now() - start
}

/// Median, least, most, and the value that 99 % are not above.
fn spread(values: &[f64]) -> [f64; 4] {
    let mut v = values.to_vec();
    v.sort_by(f64::total_cmp);
    [
        v[v.len() / 2],
        v[0],
        v[v.len() - 1],
        v[(v.len() * 99).div_ceil(100) - 1],
    ]
}

/// Where results go, and those of EPT until they are a part of the former.
const REPORT: &str = "build/report/bench-hv.json";
const REPORT_EPT: &str = "build/report/bench-hv-ept.json";

/// Everything with NPT or EPT, in turns; the table, and build/report/bench-hv.json. Xen's
/// areas are mapped once in a process, so EPT is another one.
pub fn run(ept: bool) -> Result<()> {
    if !ept {
        let status = Command::new(std::env::current_exe()?)
            .args(["bench", "--ept"])
            .status()?;
        ensure!(status.success(), "the bench with EPT failed");
    }
    println!("{}:", if ept { "EPT" } else { "\nNPT" });
    let pairs = PAIRS as u64;
    let frames = 6 * pairs + 65_536;
    let xen = Xen::load(Path::new(LIBRARY), frames, ept, handle)?;
    xen.create(0, 2, 64, false)?;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    // Frame 0 ends lists.
    let base = 512;
    let row = |n: u64| (base + n * pairs..base + (n + 1) * pairs).collect::<Vec<_>>();
    let mut mixed: Vec<u64> = (base + 2 * pairs..base + 4 * pairs).collect();
    mixed.shuffle(&mut rng);
    let second = mixed.split_off(PAIRS);
    // In order, but not where the hypercall would put them together as 2 MiB entries.
    let off = |n| row(n).iter().map(|mfn| mfn - 1).collect::<Vec<_>>();
    let small = (
        Side::new(&xen, 1, off(0), 0)?,
        Side::new(&xen, 2, off(1), 0)?,
    );
    let scattered = (
        Side::new(&xen, 3, mixed, 0)?,
        Side::new(&xen, 4, second, 0)?,
    );
    let large = (
        Side::new(&xen, 5, row(4), 9)?,
        Side::new(&xen, 6, row(5), 9)?,
    );
    let mut floors = [
        Floor::new(&large.0, &large.1, frames as usize, 512),
        Floor::new(&small.0, &small.1, frames as usize, 1),
        Floor::new(&scattered.0, &scattered.1, frames as usize, 1),
    ];
    let all = [
        ("contiguous", &large),
        ("4 KiB entries", &small),
        ("scattered", &scattered),
    ];
    for (_, (a, b)) in all {
        for mfn in a.mfns.iter().chain(&b.mfns) {
            // SAFETY: a frame of the simulated machine.
            unsafe { page(&xen, *mfn).write_bytes(*mfn as u8, 4096) };
        }
    }

    let mut times: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut batches: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for round in 0..=ROUNDS {
        for ((name, (a, b)), floor) in all.into_iter().zip(&mut floors) {
            let results = [
                ("", swap(&xen, a, b)?),
                (", bare loop", floor.swap(false)),
                (", bare loop, atomic", floor.swap(true)),
                (", by copying", copy(&xen, a, b, true)),
                (", memcpy one way", copy(&xen, a, b, false)),
            ];
            let single = one_by_one(&xen, a, b, &linear(PAIRS))?;
            // The first round warms up.
            if round == 0 {
                continue;
            }
            for (what, time) in results {
                let values = times.entry(format!("{name}{what}")).or_default();
                values.push(time / PAIRS as f64);
            }
            batches.entry(name).or_default().extend(single);
        }
        let (a, b) = &scattered;
        for _ in 0..16 {
            let runs = anywhere(&mut rng);
            let single = one_by_one(&xen, a, b, &runs)?;
            // Back again, for all rounds to be alike.
            request(&xen, a, b, &runs, |args| xen.swap(args))?;
            if round > 0 {
                batches
                    .entry("scattered, gfns as well")
                    .or_default()
                    .extend(single);
            }
        }
    }
    let instructions = counts::instructions(&xen, [&large, &small])?;
    let mut json = report(&times, &batches, &instructions);
    json["ipi_rounds_per_batch"] = flushes(&xen, &large.0, &large.1)?.into();
    if !ept {
        json["ept"] = serde_json::from_slice(&fs::read(REPORT_EPT)?)?;
        fs::remove_file(REPORT_EPT)?;
    }
    fs::create_dir_all("build/report")?;
    let path = if ept { REPORT_EPT } else { REPORT };
    fs::write(path, serde_json::to_string_pretty(&json)?)?;
    Ok(())
}

/// Rounds of IPIs that a batch takes, as the hypercall counts them.
fn flushes(xen: &Xen, a: &Side, b: &Side) -> Result<f64> {
    let (mut rounds, mut batches) = (0, 0);
    request(xen, a, b, &linear(PAIRS), |args| {
        let rc = xen.swap(args);
        rounds = args.stat(stat::TLB_FLUSHES);
        batches = args.stat(stat::BATCHES);
        rc
    })?;
    Ok(rounds as f64 / batches as f64)
}

/// Print what was measured against each target; an error if one was missed.
pub fn verdict() -> Result<()> {
    let json = fs::read(REPORT)?;
    let json: serde_json::Value = serde_json::from_slice(&json)?;
    println!();
    let mut missed = 0;
    for (key, bound, least) in TARGETS {
        let value = json[key].as_f64().context(key)?;
        let good = if least {
            value >= bound
        } else {
            value <= bound
        };
        missed += usize::from(!good);
        println!(
            "{key} is {value:.2}, at {} {bound}: {}",
            if least { "least" } else { "most" },
            if good { "met" } else { "MISSED" }
        );
    }
    ensure!(
        missed == 0,
        "{missed} targets were missed on this processor"
    );
    Ok(())
}

fn report(
    times: &BTreeMap<String, Vec<f64>>,
    batches: &BTreeMap<&str, Vec<f64>>,
    instructions: &counts::Counts,
) -> serde_json::Value {
    println!("1 GiB, {ROUNDS} rounds, ns per pair of 4 KiB frames");
    println!("{:34} {:>9} {:>9} {:>9}", "", "median", "least", "most");
    for (name, values) in times {
        let [median, least, most, _] = spread(values);
        println!("{name:34} {median:9.1} {least:9.1} {most:9.1}");
    }
    println!(
        "\n{:34} {:>9} {:>9} {:>9}",
        "ratio, per round", "median", "least", "most"
    );
    let ratio = |over: &str, under: &str| {
        let values: Vec<f64> = times[over]
            .iter()
            .zip(&times[under])
            .map(|(a, b)| a / b)
            .collect();
        let [median, least, most, _] = spread(&values);
        println!(
            "{:34} {median:9.2} {least:9.2} {most:9.2}",
            format!("{over} / {under}")
        );
        median
    };
    let mut json = json!({
        "pairs": PAIRS,
        "rounds": ROUNDS,
        "cpu": cpu(),
        "times": times,
    });
    for (key, name) in [
        ("contiguous", "contiguous"),
        ("small", "4 KiB entries"),
        ("scattered", "scattered"),
    ] {
        let with = |what: &str| format!("{name}, {what}");
        json[format!("{key}_ns_per_pair")] = spread(&times[name])[0].into();
        json[format!("{key}_vs_copy")] = ratio(&with("by copying"), name).into();
        json[format!("{key}_vs_memcpy")] = ratio(&with("memcpy one way"), name).into();
        json[format!("{key}_vs_floor")] = ratio(name, &with("bare loop")).into();
        json[format!("{key}_vs_atomic_floor")] = ratio(name, &with("bare loop, atomic")).into();
    }
    println!(
        "\n{:34} {:>9} {:>9} {:>9}",
        "one batch, us", "median", "99 %", "most"
    );
    for (name, values) in batches {
        let [median, _, most, p99] = spread(values);
        println!(
            "{name:34} {median:9.1} {p99:9.1} {most:9.1}   of {}",
            values.len()
        );
        json["batch_us"][*name] = json!({ "median": median, "p99": p99, "max": most });
    }
    println!();
    for (name, all) in counts::print(instructions) {
        json["instructions_per_pair"][name] = all.into();
    }
    json
}

fn cpu() -> String {
    fs::read_to_string("/proc/cpuinfo")
        .unwrap_or_default()
        .lines()
        .find_map(|l| l.strip_prefix("model name")?.split_once(": "))
        .map_or_else(String::new, |(_, name)| name.to_owned())
}
