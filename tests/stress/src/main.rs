// SPDX-License-Identifier: GPL-2.0-only

//! Races, latency and fuzzing of `XENMEM_swap_frames`, on domains of its own, in
//! the host management VM of a real hypervisor. Prints TAP; the exit status is 0
//! if all passed. Documentation/hypervisor-tests.rst says what each test does.

mod control;
mod domain;
mod emulated;
mod flask;
mod fuzz;
mod handover;
mod latency;
mod mailbox;
mod offline;
mod race;
mod races;
mod relocation;
mod swap;
mod world;
mod xen;

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use nix::sched::sched_setaffinity;
use nix::sched::CpuSet;
use nix::unistd::Pid;

use crate::race::Options;

#[derive(Parser)]
#[command(about = "Stress the hypervisor's swap of frames")]
struct Arguments {
    /// Seed of everything that is random; each test prints its own.
    #[arg(long, default_value_t = 1, value_parser = clap_num)]
    seed: u64,
    /// Seconds of each race.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Hypercalls of each fuzzer.
    #[arg(long, default_value_t = 100_000)]
    calls: u64,
    /// MiB that are swapped to measure latency.
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// Fail if a vCPU stalls for longer than a time, which wants a quiet machine. Without it
    /// the times are told, and what is compared are counts.
    #[arg(long)]
    bounds: bool,
    /// Only tests whose names contain this.
    #[arg(long, default_value = "")]
    only: String,
    /// No tests whose names contain this.
    #[arg(long)]
    skip: Option<String>,
    /// Test what FLASK says instead, which must be enforcing Xen's own policy; this file has
    /// the same without the permission of guests to swap with each other.
    #[arg(long)]
    flask: Option<PathBuf>,
}

fn clap_num(text: &str) -> Result<u64, std::num::ParseIntError> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    }
}

type Test<'a> = (&'a str, Box<dyn Fn(u64) -> Result<String> + 'a>);

/// A test must give back all memory that it took.
fn without_leak(test: &dyn Fn(u64) -> Result<String>, seed: u64) -> Result<String> {
    let before = control::settled_free()?;
    let text = test(seed)?;
    control::wait_free(before)?;
    Ok(text)
}

/// Make the hypervisor allocate what it keeps for good: among others a page for
/// each CPU of ours on which a grant is mapped.
fn warm_up() -> Result<()> {
    let round = |cpu, time| {
        thread::scope(|scope| {
            world::join(scope.spawn(|| {
                let mut set = CpuSet::new();
                set.set(cpu)?;
                sched_setaffinity(Pid::from_raw(0), &set)?;
                races::grants(Options { seed: 0, time })
            }))
        })
    };
    for cpu in 0..std::thread::available_parallelism()?.get() {
        // A busy machine may not come to map a grant in the short one.
        let [short, long] = [300, 5000].map(Duration::from_millis);
        round(cpu, short).or_else(|_| round(cpu, long))?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let time = Duration::from_secs(arguments.seconds);
    let mut tests: Vec<Test<'_>> = Vec::new();
    for (name, race) in races::RACES {
        tests.push((name, Box::new(move |seed| race(Options { seed, time }))));
    }
    let Arguments {
        calls, mib, bounds, ..
    } = arguments;
    tests.push((
        "fuzz: refused calls from dom0",
        Box::new(move |seed| fuzz::refused(seed, calls)),
    ));
    tests.push((
        "fuzz: mutated calls from dom0",
        // Most of these do something, so they take much longer.
        Box::new(move |seed| fuzz::mutated(seed, calls / 4)),
    ));
    tests.push((
        "fuzz: calls from unprivileged domains",
        Box::new(move |seed| fuzz::unprivileged(seed, calls)),
    ));
    tests.push((
        "latency: no vCPU stalls longer than a batch",
        Box::new(move |_| latency::run(mib, bounds)),
    ));
    let skipped = |name: &str| arguments.skip.as_ref().is_some_and(|s| name.contains(s));
    let flask = arguments.flask.is_some();
    if let Some(policy) = &arguments.flask {
        tests.clear();
        for (name, test) in flask::TESTS {
            tests.push((name, Box::new(move |_| test(policy))));
        }
    }
    tests.retain(|(name, _)| name.contains(&arguments.only) && !skipped(name));

    println!("1..{}", tests.len());
    // Its domains have no label.
    if let Some(e) = (!flask).then(warm_up).and_then(Result::err) {
        println!("Bail out! A first round of grants: {e:#}");
        return ExitCode::FAILURE;
    }
    let mut failed = false;
    for (i, (name, test)) in tests.iter().enumerate() {
        let seed = arguments
            .seed
            .wrapping_mul(1_000_003)
            .wrapping_add(i as u64);
        let start = Instant::now();
        // What FLASK has decided it keeps, on pages of the same heap.
        let result = match flask {
            true => test(seed),
            false => without_leak(test.as_ref(), seed),
        };
        let seconds = start.elapsed().as_secs_f64();
        let number = i + 1;
        match result {
            Ok(text) => {
                println!("# {text}");
                println!("ok {number} - {name} (seed {seed:#x}, {seconds:.1} s)");
            }
            Err(e) => {
                println!("# {e:#}");
                println!("not ok {number} - {name} (seed {seed:#x}, {seconds:.1} s)");
                failed = true;
            }
        }
    }
    ExitCode::from(u8::from(failed))
}
