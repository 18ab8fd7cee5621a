// SPDX-License-Identifier: GPL-2.0-only

//! The workload of a guest VM.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::SystemTime;

use anyhow::bail;
use anyhow::Context;
use anyhow::Result;

/// Words of a page.
const WORDS: usize = 512;

/// The word of the pattern at an index: SplitMix64, so that any word can be checked alone.
fn pattern(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// How often the heart beats.
const BEAT: Duration = Duration::from_millis(50);

/// The longest time between two beats since it was last asked for, in milliseconds.
static LONGEST_GAP: AtomicU64 = AtomicU64::new(0);

/// The same since the start.
static LONGEST_EVER: AtomicU64 = AtomicU64::new(0);

/// Beat for ever, and remember the longest gap. By the wall clock: it goes on while the
/// guest is suspended, as the hypervisors tell it, unlike the others.
fn heart() {
    let mut last = SystemTime::now();
    loop {
        thread::sleep(BEAT);
        let now = SystemTime::now();
        let gap = now.duration_since(last).unwrap_or_default();
        let gap = gap.as_millis() as u64;
        LONGEST_GAP.fetch_max(gap, Ordering::Relaxed);
        LONGEST_EVER.fetch_max(gap, Ordering::Relaxed);
        last = now;
    }
}

/// Fill most of the free memory, then check it for ever; with `rewrite` write another
/// pattern after each time, so that there is always something that changes.
pub fn fill(seed: u64, rewrite: bool) -> Result<()> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let boot = boot.trim();
    let meminfo = std::fs::read_to_string("/proc/meminfo")?;
    let available: usize = meminfo
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))
        .and_then(|l| l.trim().split(' ').next())
        .and_then(|kib| kib.parse().ok())
        .context("no MemAvailable in /proc/meminfo")?;
    // Leave the guest's kernel some room to breathe.
    let pages = (available / 4).saturating_sub(6 * 1024);
    if pages == 0 {
        bail!("only {available} KiB are free: give the guest VM more memory");
    }
    let mut memory: Vec<u64> = (0..(pages * WORDS) as u64)
        .map(|i| pattern(seed, i))
        .collect();
    println!("FILLED pages={pages} seed={seed}");
    thread::spawn(heart);

    let mut seed = seed;
    for round in 1u64.. {
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
        match bad.first() {
            None => println!(
                "CHECK {round} ok pages={pages} gap_ms={} longest_ms={} boot={boot}",
                LONGEST_GAP.swap(0, Ordering::Relaxed),
                LONGEST_EVER.load(Ordering::Relaxed)
            ),
            Some(first) => println!("CHECK {round} BAD pages={} first={first}", bad.len()),
        }
        if rewrite {
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
