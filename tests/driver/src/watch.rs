// SPDX-License-Identifier: GPL-2.0-only

//! What the kernel says meanwhile: warnings, taint, memory that does not come
//! back, references to the module, calls that never end.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

/// Growth of one slab cache that is taken for noise. A leak of one object in a
/// hundred sequences is far above it in the long form.
const NOISE: u64 = 128;
/// How long a single call may take. Under emulation a hypercall for 4096 pairs
/// takes some ten milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// The state of the kernel at one time.
#[derive(Debug)]
pub struct Watch {
    log: File,
    taint: String,
    slabs: BTreeMap<String, u64>,
    vmalloc: u64,
    users: String,
}

impl Watch {
    /// Remember how things are now.
    pub fn start() -> Result<Self> {
        let mut log = fs::OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open("/dev/kmsg")?;
        records(&mut log);
        Ok(Self {
            log,
            taint: taint()?,
            slabs: slabs()?,
            vmalloc: vmalloc()?,
            users: users()?,
        })
    }

    /// No warning since, and not tainted any further.
    pub fn quiet(&mut self) -> Result<()> {
        let bad: Vec<String> = records(&mut self.log)
            .into_iter()
            .filter(|(level, text)| *level <= 4 && !is_expected(text))
            .map(|(_, text)| text)
            .collect();
        ensure!(bad.is_empty(), "the kernel warned:\n{}", bad.join("\n"));
        let now = taint()?;
        ensure!(now == self.taint, "taint went from {} to {now}", self.taint);
        Ok(())
    }

    /// Objects in slab caches, and vmalloc, are back to what they were.
    pub fn memory(&self) -> Result<()> {
        let now = if exact() { slabs()? } else { BTreeMap::new() };
        let grown: Vec<String> = now
            .iter()
            .filter_map(|(name, count)| {
                let before = self.slabs.get(name).copied().unwrap_or_default();
                (*count > before + NOISE).then(|| format!("{name}: {before} -> {count} objects"))
            })
            .collect();
        ensure!(
            grown.is_empty(),
            "memory did not return:\n{}",
            grown.join("\n")
        );
        let now = vmalloc()?;
        ensure!(
            now <= self.vmalloc + 256,
            "vmalloc went from {} to {now} KiB",
            self.vmalloc
        );
        Ok(())
    }

    /// As many references to the module as before.
    pub fn references(&self) -> Result<()> {
        let now = users()?;
        ensure!(
            now == self.users,
            "users of the module: {} -> {now}",
            self.users
        );
        Ok(())
    }
}

/// What the driver says, at a limited rate, when it keeps half a move.
fn is_expected(text: &str) -> bool {
    text.starts_with("vmbeam: record ") || text.starts_with("vmbeam_record_kept: ")
}

/// All records of the kernel log that were not read yet.
fn records(log: &mut File) -> Vec<(u32, String)> {
    let mut out = Vec::new();
    let mut buffer = [0; 8192];
    // One read gives one record, and fails when there is none.
    while let Ok(length) = log.read(&mut buffer) {
        if length == 0 {
            break;
        }
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if let Some((head, message)) = text.split_once(';') {
            let priority: u32 = head
                .split(',')
                .next()
                .and_then(|p| p.parse().ok())
                .unwrap_or_default();
            out.push((priority & 7, message.trim_end().to_owned()));
        }
    }
    out
}

fn taint() -> Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/tainted")?
        .trim()
        .to_owned())
}

fn users() -> Result<String> {
    Ok(fs::read_to_string("/sys/module/vmbeam/refcnt")
        .context("is vmbeam loaded?")?
        .trim()
        .to_owned())
}

/// Whether counts of objects are exact, which takes `slub_debug`: otherwise free
/// objects that wait in a processor's cache count as active.
fn exact() -> bool {
    fs::read_to_string("/sys/kernel/slab/kmalloc-64/sanity_checks")
        .is_ok_and(|text| text.trim() == "1")
}

/// Active objects of the caches that the driver can allocate from. Those of vmalloc
/// are not among them: its areas are given back late, in bulk, and the stacks of
/// this program's threads are such areas, too. Its pages are counted at once.
fn slabs() -> Result<BTreeMap<String, u64>> {
    let text = fs::read_to_string("/proc/slabinfo")?;
    let all: BTreeMap<String, u64> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next()?;
            let count = words.next()?.parse().ok()?;
            name.starts_with("kmalloc")
                .then_some((name.to_owned(), count))
        })
        .collect();
    ensure!(!all.is_empty(), "/proc/slabinfo has no kmalloc caches");
    Ok(all)
}

fn vmalloc() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find(|line| line.starts_with("VmallocUsed:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .context("no VmallocUsed in /proc/meminfo")
}

/// Counts calls, and ends the program when one does not return.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// Start to watch over the calls.
    pub fn start() -> Self {
        let pulse = Self::default();
        let seen = pulse.clone();
        thread::spawn(move || loop {
            let before = seen.calls();
            thread::sleep(PATIENCE);
            if seen.calls() == before {
                println!("Bail out! no call returned for {} s", PATIENCE.as_secs());
                for task in fs::read_dir("/proc/self/task")
                    .into_iter()
                    .flatten()
                    .flatten()
                {
                    let stack = fs::read_to_string(task.path().join("stack")).unwrap_or_default();
                    println!(
                        "# {}:\n# {}",
                        task.path().display(),
                        stack.replace('\n', "\n# ")
                    );
                }
                std::process::exit(1);
            }
        });
        pulse
    }

    /// A call returned.
    pub fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Ask for early notice of a task that hangs, where the kernel offers it.
pub fn impatient() -> Result<()> {
    for (name, value) in [("hung_task_timeout_secs", "20"), ("hung_task_panic", "1")] {
        let path = format!("/proc/sys/kernel/{name}");
        if let Err(e) = fs::write(&path, value) {
            bail!("{path}: {e}");
        }
    }
    Ok(())
}
