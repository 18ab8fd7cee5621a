// SPDX-License-Identifier: GPL-2.0-only

//! The workload of a guest VM.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::bail;
use anyhow::Context;
use anyhow::Result;
use nix::sched::sched_getaffinity;
use nix::sched::sched_setaffinity;
use nix::sched::CpuSet;
use nix::unistd::Pid;

use crate::disk;
use crate::meter::Meter;
use crate::talk;

/// Words of a page.
const WORDS: usize = 512;

/// The word of the pattern at an index: SplitMix64, so that any word can be checked alone.
pub fn pattern(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// How often the heart beats.
const BEAT: Duration = Duration::from_millis(50);

static HEART: Meter = Meter::new();
static TALK: Meter = Meter::new();
static DISK: Meter = Meter::new();

#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Seed of the pattern.
    #[arg(long)]
    seed: u64,
    /// Memory that is left to the guest's kernel, in MiB.
    #[arg(long, default_value_t = 24)]
    spare: usize,
    /// Write another pattern after each check, and never rest.
    #[arg(long)]
    rewrite: bool,
    /// Address of a `labtool listen`, for when there is a network.
    #[arg(long)]
    talk_to: Option<String>,
    /// A disk to be written to, for when it is there.
    #[arg(long)]
    disk: Option<PathBuf>,
}

fn heart(meter: &Meter) -> Result<()> {
    let mut ticks = meter.ticks();
    loop {
        thread::sleep(BEAT);
        ticks.tick();
    }
}

/// What the other activities did, or what went wrong with one.
fn others() -> Result<String> {
    let mut text = String::new();
    for (name, meter) in [("talk", &TALK), ("disk", &DISK)] {
        if let Some(fault) = meter.fault() {
            bail!("{name}: {fault}");
        }
        if meter.done() > 0 {
            let (done, gap) = (meter.done(), meter.take_gap_ms());
            text += &format!(" {name}={done} {name}_gap_ms={gap}");
        }
    }
    Ok(text)
}

/// What the guest's kernel could still give away, in KiB.
fn available_kib() -> Result<usize> {
    std::fs::read_to_string("/proc/meminfo")?
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))
        .and_then(|l| l.trim().split(' ').next())
        .and_then(|kib| kib.parse().ok())
        .context("no MemAvailable in /proc/meminfo")
}

/// The calling thread.
const THIS: Pid = Pid::from_raw(0);

/// The CPUs that this guest has.
fn cpus() -> Result<Vec<usize>> {
    let set = sched_getaffinity(THIS)?;
    Ok((0..CpuSet::count())
        .filter(|cpu| set.is_set(*cpu).is_ok_and(|is| is))
        .collect())
}

/// Go on on this CPU. One that did not come back after a migration is refused.
fn run_on(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(THIS, &set).with_context(|| format!("CPU {cpu}"))
}

/// Fill most of the free memory, then check it for ever, on one CPU after the other; with `rewrite`
/// write another pattern after each time, so that there is always something that changes.
pub fn fill(arguments: Arguments) -> Result<()> {
    let seed = arguments.seed;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let boot = boot.trim();
    let available = available_kib()?;
    let pages = (available / 4).saturating_sub(arguments.spare * 256);
    if pages == 0 {
        bail!("only {available} KiB are free: give the guest VM more memory");
    }
    let mut memory: Vec<u64> = (0..(pages * WORDS) as u64)
        .map(|i| pattern(seed, i))
        .collect();
    println!("FILLED pages={pages} seed={seed}");
    HEART.watch(heart);
    if let Some(address) = arguments.talk_to {
        TALK.watch(move |meter| talk::talk(&address, meter));
    }
    if let Some(path) = arguments.disk {
        DISK.watch(move |meter| disk::work(&path, seed, meter));
    }

    let cpus = cpus()?;
    let mut seed = seed;
    for (round, cpu) in (1u64..).zip(cpus.iter().cycle()) {
        let moved = run_on(*cpu);
        let bad: Vec<usize> = memory
            .chunks(WORDS)
            .enumerate()
            .filter(|(page, words)| {
                words
                    .iter()
                    .enumerate()
                    .any(|(i, w)| *w != pattern(seed, (page * WORDS + i) as u64))
            })
            .map(|(page, _)| page)
            .collect();
        match (bad.first(), moved.and_then(|()| others())) {
            (None, Ok(others)) => println!(
                "CHECK {round} ok pages={pages} gap_ms={} longest_ms={} boot={boot} \
                 available_kib={} cpus={}{others}",
                HEART.take_gap_ms(),
                HEART.longest_ms(),
                available_kib()?,
                cpus.len(),
            ),
            (None, Err(e)) => println!("CHECK {round} BAD {e:#}"),
            (Some(first), _) => println!("CHECK {round} BAD pages={} first={first}", bad.len()),
        }
        if arguments.rewrite {
            seed = pattern(seed, round);
            for (i, word) in memory.iter_mut().enumerate() {
                *word = pattern(seed, i as u64);
            }
        } else {
            thread::sleep(Duration::from_secs(1));
        }
    }
    Ok(())
}
