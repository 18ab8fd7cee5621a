// SPDX-License-Identifier: GPL-2.0-only

//! Arbitrary calls of `XENMEM_swap_frames`.
//!
//! The caller's pointers are taken from a list and not from all numbers there are:
//! the hypervisor writes to wherever dom0's program says, its kernel's memory
//! included.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use anyhow::ensure;
use anyhow::Result;
use nix::libc;

use crate::control;
use crate::control::MEMORY_OP;
use crate::mailbox;
use crate::swap::Run;
use crate::swap::Swapper;
use crate::swap::CHECK;
use crate::swap::MAX_RUNS;
use crate::swap::NR_STATS;
use crate::swap::SWAP_FRAMES;
use crate::swap::TO_A;
use crate::swap::TO_B;
use crate::swap::UNDO;
use crate::swap::VERSION;
use crate::world::join;
use crate::world::random_runs;
use crate::world::StopOnDrop;
use crate::world::World;
use crate::world::LIMIT;
use crate::xen;
use crate::xen::PAGE;

const FRAMES: u64 = 512;
/// Calls between two looks at the state of the domains.
const GROUP: u64 = 5000;

/// Results by number, and in words.
#[derive(Default)]
struct Results(BTreeMap<i64, u64>);

impl Results {
    fn add(&mut self, rc: i64, count: u64) {
        *self.0.entry(rc).or_default() += count;
    }

    fn text(&self) -> String {
        let parts: Vec<String> = self
            .0
            .iter()
            .rev()
            .map(|(rc, n)| format!("{} {n}", control::error(*rc)))
            .collect();
        parts.join(", ")
    }
}

/// Addresses at which there is nothing that could be read or written.
fn nowhere(random: &mut fastrand::Rng) -> u64 {
    let list = [
        0,
        8,
        0x7fff_ffff_f000,
        0x8000_0000_0000,
        0x1234_5678_9abc_def0,
        // The hypervisor's own.
        0xffff_8000_0000_0000,
        0xffff_82d0_4000_0000,
        0xffff_87ff_ffff_fff8,
    ];
    list[random.usize(0..list.len())]
}

/// Calls that have to be refused as a whole must change nothing.
pub fn refused(seed: u64, calls: u64) -> Result<String> {
    let world = World::new(2, 1, FRAMES, false)?;
    let [a, b] = [0, 1].map(|i: usize| world.domains[i].domid);
    let swapper = Swapper::new(4 * PAGE)?;
    let mut random = fastrand::Rng::with_seed(seed);
    let mut results = Results::default();
    let mut state = world.state()?;
    for call in 0..calls {
        let runs: Vec<Run> = (0..random.usize(1..4))
            .map(|_| Run {
                a: world.domains[0].base + random.u64(0..FRAMES - 8),
                b: world.domains[1].base + random.u64(0..FRAMES - 8),
                nr: random.u32(1..8),
            })
            .collect();
        let pairs: u64 = runs.iter().map(|r| u64::from(r.nr)).sum();
        swapper.fill(a, b, random.u32(0..2), &runs, pairs);
        let mut argument = swapper.buffer.address();
        let put = |offset: usize, bytes: &[u8]| swapper.buffer.put(offset, bytes);
        let run = PAGE + 24 * random.usize(0..runs.len());
        match random.u8(0..24) {
            0 => argument = nowhere(&mut random),
            1 => put(16, &nowhere(&mut random).to_le_bytes()),
            2 => put(24, &nowhere(&mut random).to_le_bytes()),
            3 => put(8, &random.u32(MAX_RUNS as u32 + 1..).to_le_bytes()),
            4 => put(8, &0u32.to_le_bytes()),
            5 => put(32, &(pairs + random.u64(1..u64::MAX - pairs)).to_le_bytes()),
            6 => put(32, &random.u64(0..pairs).to_le_bytes()),
            7 => put(40, &(pairs + random.u64(1..u64::MAX - pairs)).to_le_bytes()),
            8 => put(
                4,
                &(random.u32(..) | (1 << random.u32(8..32))).to_le_bytes(),
            ),
            9 => put(
                12,
                &(random.u32(..) | (1 << random.u32(4..32))).to_le_bytes(),
            ),
            10 => put(2, &a.to_le_bytes()),
            11 => put(0, &random.u16(1000..).to_le_bytes()),
            12 => put(2, &0u16.to_le_bytes()),
            13 => put(0, &0x7ff0u16.to_le_bytes()),
            14 => put(run + 16, &0u32.to_le_bytes()),
            15 => put(run + 20, &random.u32(1..).to_le_bytes()),
            16 => put(run, &(u64::MAX - random.u64(0..1)).to_le_bytes()),
            17 => put(run + 16, &(random.u32(..) | (1 << 30)).to_le_bytes()),
            // Not the id of the domain, and counters.
            20 => put([48, 56][random.usize(0..2)], &random.u64(1..).to_le_bytes()),
            21 => put(64, &nowhere(&mut random).to_le_bytes()),
            22 => put(72, &random.u32(NR_STATS + 1..).to_le_bytes()),
            23 => put(76, &random.u32(1..).to_le_bytes()),
            // Runs and statuses that cross into a page that is not there.
            18 => {
                swapper.buffer.protect(2, libc::PROT_NONE);
                put(16, &(argument + 2 * PAGE as u64 - 8).to_le_bytes());
            }
            _ => {
                swapper.buffer.protect(2, libc::PROT_NONE);
                put(24, &(argument + 2 * PAGE as u64 - 2).to_le_bytes());
            }
        }
        // SAFETY: what the structure points to is in the buffer, or cannot be written to.
        let rc = unsafe { xen::hypercall(MEMORY_OP, [SWAP_FRAMES, argument, 0, 0, 0]) }?;
        swapper
            .buffer
            .protect(2, libc::PROT_READ | libc::PROT_WRITE);
        results.add(rc, 1);
        ensure!(
            rc < 0 && swapper.progress().1 == 0,
            "call {call} with seed {seed:#x} was not refused: {}",
            control::error(rc)
        );
        if (call + 1) % GROUP == 0 || call + 1 == calls {
            let now = world.state()?;
            ensure!(
                now == state,
                "one of the {GROUP} refused calls before {call} with seed {seed:#x} changed something"
            );
            state = now;
        }
    }
    unwritable_statuses(&world, &swapper)?;
    let how = world.audit(false)?;
    world.destroy()?;
    Ok(format!(
        "{calls} calls, all refused: {}; state unchanged; {how}",
        results.text()
    ))
}

/// That statuses cannot be written is found out after a batch. The progress must say
/// then what was done, so that the same call again undoes it.
fn unwritable_statuses(world: &World, swapper: &Swapper) -> Result<()> {
    const PAIRS: u64 = 64;
    let [x, y] = [0, 1].map(|i: usize| &world.domains[i]);
    let run = Run {
        a: x.base,
        b: y.base,
        nr: PAIRS as u32,
    };
    let before = [world.numbers(0)?, world.numbers(1)?];
    swapper.fill(x.domid, y.domid, 0, &[run], PAIRS);
    let page = swapper.buffer.address() + 2 * PAGE as u64;
    swapper.buffer.put(24, &page.to_le_bytes());
    swapper.buffer.protect(2, libc::PROT_READ);
    let rc = swapper.issue()?;
    swapper
        .buffer
        .protect(2, libc::PROT_READ | libc::PROT_WRITE);
    let (done, swapped) = swapper.progress();
    let mut after = [world.numbers(0)?, world.numbers(1)?];
    let [a, b] = &mut after;
    a[..PAIRS as usize].swap_with_slice(&mut b[..PAIRS as usize]);
    ensure!(
        rc == -i64::from(libc::EFAULT) && (done, swapped) == (PAIRS, PAIRS) && after == before,
        "statuses that cannot be written: {}, done {done}, swapped {swapped}, which is {}",
        control::error(rc),
        if after == before { "true" } else { "not true" }
    );
    let back = swapper.call(x.domid, y.domid, 0, &[run])?;
    ensure!(
        back.swapped == PAIRS && before == [world.numbers(0)?, world.numbers(1)?],
        "swapping back: {back:?}"
    );
    Ok(())
}

/// Any bit but the one that tells a window from the frames that a guest runs from.
fn any_bit(random: &mut fastrand::Rng) -> u64 {
    let window = crate::domain::window(0).trailing_zeros();
    1u64.rotate_left(random.u32(window + 1..window + 64))
}

/// Calls some of which are good, while another thread changes what they read.
pub fn mutated(seed: u64, calls: u64) -> Result<String> {
    let world = World::new(2, 1, FRAMES, false)?;
    world.write();
    let [a, b] = [0, 1].map(|i: usize| world.domains[i].domid);
    let swapper = Swapper::new(16 * PAGE)?;
    let mut random = fastrand::Rng::with_seed(seed);
    let mut results = Results::default();
    let (mut swapped, mut flips) = (0, 0u64);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let _stop = StopOnDrop(&stop);
        let (buffer, stop_ref) = (&swapper.buffer, &stop);
        let flipper = scope.spawn(move || -> Result<u64> {
            let mut random = fastrand::Rng::with_seed(!seed);
            let mut flips = 0;
            while !stop_ref.load(Relaxed) {
                // Anything but the pointers.
                let word = match random.u8(0..4) {
                    0 => [0, 1, 4, 5, 6, 7][random.usize(0..6)],
                    _ => PAGE / 8 + random.usize(0..72),
                };
                // And back, or hardly a call would come further than the version.
                let bit = any_bit(&mut random);
                buffer.words()[word].fetch_xor(bit, Relaxed);
                for _ in 0..random.u8(..) {
                    std::hint::spin_loop();
                }
                buffer.words()[word].fetch_xor(bit, Relaxed);
                flips += 1;
            }
            Ok(flips)
        });
        for call in 0..calls {
            let mut runs = random_runs(&mut random, FRAMES);
            runs.truncate(4);
            for run in &mut runs {
                run.a += world.domains[0].base;
                run.b += world.domains[1].base;
                run.nr = run.nr.min(8);
            }
            let pairs = runs.iter().map(|r| u64::from(r.nr)).sum();
            // All of it is RAM, so that relocations are swaps.
            let flags = [0, 0, 0, CHECK, TO_A, TO_B, TO_A | UNDO, UNDO][random.usize(0..8)];
            swapper.fill(a, b, flags, &runs, pairs);
            if random.bool() {
                let word = PAGE / 8 + random.usize(0..12);
                swapper.buffer.words()[word].fetch_xor(any_bit(&mut random), Relaxed);
            }
            let rc = world.announced(|| swapper.issue())?;
            results.add(rc, 1);
            swapped += swapper.progress().1.min(pairs);
            if call % 1000 == 0 {
                world.domains.iter().try_for_each(|d| d.check_alive())?;
            }
        }
        stop.store(true, Relaxed);
        flips = join(flipper)?;
        Ok(())
    })?;
    ensure!(swapped > 0, "no call was good");
    let writes = world.stop_writers()?;
    let how = world.audit(false)?;
    world.destroy()?;
    Ok(format!(
        "{calls} calls: {}; about {swapped} pairs swapped, {flips} bits flipped meanwhile, \
         {writes} writes by guests, none lost; {how}",
        results.text()
    ))
}

/// Calls by domains without privilege.
pub fn unprivileged(seed: u64, calls: u64) -> Result<String> {
    let world = World::new(3, 1, FRAMES, false)?;
    let before = world.state()?;
    let version = VERSION.into();
    let [a, b] = [0, 1].map(|i: usize| u64::from(world.domains[i].domid));
    // No caller may swap its own memory. For the third one, only its lack of privilege
    // is in the way.
    let each = calls.div_ceil(3);
    for (i, d) in world.domains.iter().enumerate() {
        let args = [seed.wrapping_add(i as u64), each, a, b, version];
        d.run(0, mailbox::FUZZ, &args);
    }
    let mut results = Results::default();
    for d in &world.domains {
        d.wait(0, false, 4 * LIMIT)?;
        let m = d.mailbox(0);
        let [made, passed] = [0, 1].map(|i| m.result[i].load(Relaxed));
        for (rc, count) in m.errors.iter().enumerate() {
            let count = count.load(Relaxed);
            if count > 0 {
                results.add(-(rc as i64), count);
            }
        }
        ensure!(
            made == each && passed == 0,
            "d{} made {made} calls, {passed} were not refused: {}",
            d.domid,
            results.text()
        );
    }
    ensure!(
        results.0.contains_key(&-1),
        "no call came as far as to -EPERM: {}",
        results.text()
    );
    ensure!(world.state()? == before, "a refused call changed something");
    let how = world.audit(false)?;
    world.destroy()?;
    Ok(format!(
        "{} calls, all refused: {}; state unchanged; {how}",
        3 * each,
        results.text()
    ))
}
