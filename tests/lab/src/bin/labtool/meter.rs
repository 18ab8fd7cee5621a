// SPDX-License-Identifier: GPL-2.0-only

//! Something that a guest VM does again and again: how often, with which longest
//! interruption, and what went wrong first.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;
use std::time::SystemTime;

use anyhow::Result;

/// Counts of one activity. What went wrong once is never forgotten.
#[derive(Debug)]
pub struct Meter {
    done: AtomicU64,
    /// Since it was last asked for.
    gap_ms: AtomicU64,
    /// Since the start.
    longest_ms: AtomicU64,
    fault: OnceLock<String>,
}

/// From one time to the next.
#[derive(Debug)]
pub struct Ticks<'a> {
    meter: &'a Meter,
    last: SystemTime,
}

impl Meter {
    /// Nothing done yet.
    pub const fn new() -> Self {
        Meter {
            done: AtomicU64::new(0),
            gap_ms: AtomicU64::new(0),
            longest_ms: AtomicU64::new(0),
            fault: OnceLock::new(),
        }
    }

    /// Begin to count. By the wall clock: it goes on while a guest is suspended, as
    /// the hypervisors tell it, unlike the others.
    pub fn ticks(&self) -> Ticks<'_> {
        Ticks {
            meter: self,
            last: SystemTime::now(),
        }
    }

    /// How often it was done.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// The longest time between two times since this was last asked, in milliseconds.
    pub fn take_gap_ms(&self) -> u64 {
        self.gap_ms.swap(0, Ordering::Relaxed)
    }

    /// The longest time between two times since the start, in milliseconds.
    pub fn longest_ms(&self) -> u64 {
        self.longest_ms.load(Ordering::Relaxed)
    }

    /// What went wrong, if something did.
    pub fn fault(&self) -> Option<&str> {
        self.fault.get().map(String::as_str)
    }

    /// Do it in a thread of its own, for ever or until it fails.
    pub fn watch(&'static self, work: impl FnOnce(&'static Meter) -> Result<()> + Send + 'static) {
        thread::spawn(move || {
            if let Err(e) = work(self) {
                let _ = self.fault.set(format!("{e:#}"));
            }
        });
    }
}

impl Ticks<'_> {
    /// It was done once more.
    pub fn tick(&mut self) {
        let now = SystemTime::now();
        let gap = now.duration_since(self.last).unwrap_or_default();
        self.last = now;
        let gap = gap.as_millis() as u64;
        self.meter.done.fetch_add(1, Ordering::Relaxed);
        self.meter.gap_ms.fetch_max(gap, Ordering::Relaxed);
        self.meter.longest_ms.fetch_max(gap, Ordering::Relaxed);
    }
}

/// Wait until something can be had that comes later, or never.
pub fn wait_for<T>(mut get: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(value) = get() {
            return value;
        }
        thread::sleep(Duration::from_millis(200));
    }
}
