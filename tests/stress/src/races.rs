// SPDX-License-Identifier: GPL-2.0-only

//! Swaps at the same time as everything else that changes a domain's memory.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Result;
use nix::errno::Errno;

use crate::control;
use crate::emulated::emulated;
use crate::handover::handed_over;
use crate::mailbox;
use crate::offline::offline;
use crate::race::race;
use crate::race::Options;
use crate::race::FRAMES;
use crate::race::TWICE;
use crate::relocation::relocated;
use crate::swap::Statuses;
use crate::swap::Swapper;
use crate::world::join;
use crate::world::own_slot;
use crate::world::random_runs;
use crate::world::slot;
use crate::world::World;
use crate::world::LIMIT;
use crate::xen::Buffer;
use crate::xen::Foreign;
use crate::xen::Granted;

/// A race: its name and what runs it.
pub type Race = (&'static str, fn(Options) -> Result<String>);

/// All of them.
pub const RACES: [Race; 13] = [
    ("vCPUs write to the frames that are swapped", writers),
    ("nobody writes to a frame that was handed over", handed_over),
    ("swaps of three crossing pairs of domains", crossing),
    ("balloon and populate, by guests and by dom0", balloon),
    ("foreign mappings by dom0", foreign),
    ("grants mapped by dom0 and by a third domain", grants),
    ("frames mapped into a third domain's P2M", third),
    ("pause, save, log-dirty", paused),
    ("changes of memory type", types),
    ("destruction of either domain", destruction),
    ("frames that are taken offline", offline),
    (
        "frames relocated to where some are populated on demand",
        relocated,
    ),
    ("emulated accesses to the frames that are swapped", emulated),
];

/// Wait until told to stop.
fn idle(_: &World, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Relaxed) {
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn writers(options: Options) -> Result<String> {
    let world = World::new(2, 1, FRAMES, false)?;
    world.write();
    // Alone first: what the statuses say must be where the frames are.
    let mut random = fastrand::Rng::with_seed(options.seed);
    let swapper = Swapper::new(64 << 10)?;
    let mut model = [world.numbers(0)?, world.numbers(1)?];
    for round in 0..20 {
        let runs = random_runs(&mut random, FRAMES);
        let outcome = world.swap(&swapper, 0, 1, &runs)?;
        ensure!(outcome.rc == 0, "swap: {}", control::error(outcome.rc));
        let pairs = runs
            .iter()
            .flat_map(|r| (0..u64::from(r.nr)).map(|i| ((r.a + i) as usize, (r.b + i) as usize)));
        let [model_a, model_b] = &mut model;
        for ((a, b), status) in pairs.zip(&outcome.status) {
            if *status == 0 {
                std::mem::swap(&mut model_a[a], &mut model_b[b]);
            }
        }
        ensure!(
            model == [world.numbers(0)?, world.numbers(1)?],
            "round {round}: frames are elsewhere than the statuses say"
        );
    }
    race(
        world,
        options,
        &[(0, 1)],
        (&[TWICE], &[], false),
        &idle,
        &|world, ()| Ok(format!("{} writes, none lost", world.stop_writers()?)),
    )
}

fn crossing(options: Options) -> Result<String> {
    let world = World::new(3, 1, FRAMES, false)?;
    world.write();
    // The last one is the first from its other side.
    let pairs = [(0, 1), (1, 2), (2, 0), (1, 0)];
    // A frame that another swap holds has no reference: it looks like a duplicate.
    race(
        world,
        options,
        &pairs,
        (&[TWICE], &[], false),
        &idle,
        &|world, ()| Ok(format!("{} writes, none lost", world.stop_writers()?)),
    )
}

fn balloon(options: Options) -> Result<String> {
    let world = World::new(2, 1, FRAMES, false)?;
    let allowed = [TWICE, Errno::ENOENT, Errno::EBUSY];
    race(
        world,
        options,
        &[(0, 1)],
        (&allowed, &[], true),
        &|world, stop| {
            // The guests have the lower half, dom0 has the upper one.
            for (i, d) in world.domains.iter().enumerate() {
                let seed = options.seed + i as u64;
                d.run(0, mailbox::BALLOON, &[d.base, FRAMES / 2, seed]);
            }
            let mut random = fastrand::Rng::with_seed(options.seed);
            let mut count = 0u64;
            while !stop.load(Relaxed) {
                let d = &world.domains[random.usize(0..2)];
                let gfn = [d.base + random.u64(FRAMES / 2..FRAMES)];
                let gone = control::reserve(control::DECREASE, d.domid, 0, &gfn)?;
                ensure!(gone == 1, "decrease_reservation: {}", control::error(gone));
                control::populate(d.domid, 0, &gfn)?;
                count += 1;
            }
            Ok(count)
        },
        &|world, count| {
            let mut guests = 0;
            for d in &world.domains {
                d.wait(0, true, LIMIT)?;
                guests += d.mailbox(0).result[0].load(Relaxed);
            }
            ensure!(guests > 0, "no guest gave memory back");
            Ok(format!(
                "{guests} extents by guests, {count} frames by dom0"
            ))
        },
    )
}

fn foreign(options: Options) -> Result<String> {
    let world = World::new(2, 1, FRAMES, false)?;
    world.write();
    let allowed = [TWICE, Errno::EBUSY];
    race(
        world,
        options,
        &[(0, 1)],
        (&allowed, &[], false),
        &|world, stop| {
            let mut random = fastrand::Rng::with_seed(options.seed);
            let (mut writes, mut mappings) = (0u64, 0u64);
            while !stop.load(Relaxed) {
                let d = &world.domains[random.usize(0..2)];
                let gfns: Vec<u64> = (0..random.u64(1..16))
                    .map(|_| d.base + random.u64(0..FRAMES))
                    .collect();
                let mapped = Foreign::any(d.domid, &gfns)?;
                for i in (0..gfns.len()).filter(|i| mapped.has(*i)) {
                    // A frame that is mapped must not move.
                    let frame = mapped.frame(i);
                    let id = frame[0].load(Relaxed);
                    frame[own_slot(0)].fetch_add(1, Relaxed);
                    writes += 1;
                    thread::yield_now();
                    ensure!(
                        frame[0].load(Relaxed) == id,
                        "a frame changed while it was mapped"
                    );
                }
                mappings += 1;
            }
            Ok((mappings, writes))
        },
        &|world, (mappings, writes)| {
            let guests = world.stop_writers()?;
            let found = world.sums()?[own_slot(0)];
            ensure!(
                found == writes,
                "dom0 wrote {writes} times, {found} are there"
            );
            Ok(format!(
                "{mappings} mappings with {writes} writes by dom0, {guests} writes by guests, none lost"
            ))
        },
    )
}

/// First grant that is used; those before are reserved.
const FIRST_GRANT: u64 = 16;
const GRANTS: u64 = 64;

/// Writes through grants.
pub fn grants(options: Options) -> Result<String> {
    let world = World::new(3, 1, FRAMES, false)?;
    let granter = &world.domains[0];
    // Domain 0 of the test grants its first frames, to dom0 and to domain 2 by turns.
    control::map_grant_table(granter.domid, mailbox::GRANTS >> 12)?;
    {
        let table = Foreign::all(granter.domid, &[mailbox::GRANTS >> 12])?;
        for i in 0..GRANTS {
            let to = if i < GRANTS / 2 {
                0
            } else {
                u64::from(world.domains[2].domid)
            };
            let entry = 1 | (to << 16) | ((granter.base + i) << 32);
            table.frame(0)[(FIRST_GRANT + i) as usize].store(entry, Relaxed);
        }
    }
    let allowed = [TWICE, Errno::EBUSY, Errno::EXDEV];
    race(
        world,
        options,
        &[(0, 1)],
        (&allowed, &[], false),
        &|world, stop| {
            let (a, c) = (&world.domains[0], &world.domains[2]);
            let word = slot(2, 0);
            let half = GRANTS / 2;
            let at = (c.base + 0x7_0000) << 12;
            let args = [
                a.domid.into(),
                FIRST_GRANT + half,
                half,
                at,
                word,
                options.seed,
            ];
            c.run(0, mailbox::GRANT, &args);
            let mut random = fastrand::Rng::with_seed(options.seed);
            let mut writes = 0u64;
            while !stop.load(Relaxed) {
                let reference = FIRST_GRANT + random.u64(0..half);
                let Ok(mapped) = Granted::new(a.domid, reference as u32) else {
                    continue;
                };
                let id = mapped.words()[0].load(Relaxed);
                mapped.words()[own_slot(0)].fetch_add(1, Relaxed);
                writes += 1;
                thread::sleep(Duration::from_micros(random.u64(0..500)));
                ensure!(
                    mapped.words()[0].load(Relaxed) == id,
                    "a frame changed while its grant was mapped"
                );
            }
            Ok((writes, word))
        },
        &|world, (writes, word)| {
            let c = &world.domains[2];
            c.wait(0, true, LIMIT)?;
            let [guest, refused, moved] = [0, 1, 2].map(|i| c.mailbox(0).result[i].load(Relaxed));
            ensure!(
                moved == 0,
                "{moved} frames changed while domain 2 had them mapped"
            );
            ensure!(
                guest > 0 && writes > 0,
                "{writes} and {guest} writes: no grant was mapped ({refused} refused)"
            );
            let sums = world.sums()?;
            ensure!(
                sums[own_slot(0)] == writes && sums[word as usize] == guest,
                "{writes} and {guest} writes, {} and {} are there",
                sums[own_slot(0)],
                sums[word as usize]
            );
            Ok(format!(
                "{writes} writes by dom0, {guest} by a third domain, none lost"
            ))
        },
    )
}

fn third(options: Options) -> Result<String> {
    let world = World::new(3, 1, FRAMES, false)?;
    let allowed = [TWICE, Errno::EBUSY, Errno::EXDEV];
    race(
        world,
        options,
        &[(0, 1)],
        (&allowed, &[], false),
        &|world, stop| {
            // Only the device model of a domain may have its frames in its own P2M.
            let (a, c) = (&world.domains[0], &world.domains[2]);
            control::set_target(c.domid, a.domid)?;
            let at = c.base + 0x7_0000;
            let mut random = fastrand::Rng::with_seed(options.seed);
            let mut results = BTreeMap::new();
            while !stop.load(Relaxed) {
                let frame = a.base + random.u64(0..FRAMES);
                let rc = control::foreign(c.domid, at, Some((a.domid, frame)))?;
                *results.entry(rc).or_insert(0u64) += 1;
                if rc == 0 {
                    let rc = control::foreign(c.domid, at, None)?;
                    ensure!(rc == 0, "remove_from_physmap: {}", control::error(rc));
                }
            }
            let results: Vec<String> = results
                .iter()
                .rev()
                .map(|(rc, n)| format!("{n} {}", control::error(*rc)))
                .collect();
            ensure!(
                results.first().is_some_and(|r| r.ends_with(" 0")),
                "nothing could be mapped: {}",
                results.join(", ")
            );
            Ok(format!("results of mapping: {}", results.join(", ")))
        },
        &|_, text| Ok(text),
    )
}

fn paused(options: Options) -> Result<String> {
    let world = World::new(2, 1, FRAMES, false)?;
    world.write();
    let marked = AtomicU64::new(0);
    let text = race(
        world,
        options,
        &[(0, 1)],
        (&[TWICE, Errno::EOPNOTSUPP], &[Errno::EBUSY], false),
        &|world, stop| {
            let mut random = fastrand::Rng::with_seed(options.seed);
            // Covers all gfns below the end of both windows.
            let pages = world.domains[1].base + FRAMES;
            let bitmap = Buffer::new((pages as usize / 8).div_ceil(4096))?;
            let (mut pauses, mut saves, mut rounds) = (0u64, 0u64, 0u64);
            while !stop.load(Relaxed) {
                let d = &world.domains[random.usize(0..2)];
                match random.u8(0..8) {
                    0..5 => {
                        control::pause(d.domid)?;
                        thread::sleep(Duration::from_micros(random.u64(0..1000)));
                        control::unpause(d.domid)?;
                        pauses += 1;
                    }
                    5..7 => {
                        control::hvm_context(d.domid)?;
                        saves += 1;
                    }
                    _ => {
                        const OFF: u32 = 0;
                        const ENABLE_LOGDIRTY: u32 = 2;
                        const CLEAN: u32 = 11;
                        for op in [ENABLE_LOGDIRTY, CLEAN, CLEAN, OFF] {
                            let rc = control::shadow_op(d.domid, op, &bitmap, pages)?;
                            ensure!(rc == 0, "shadow_op {op}: {}", control::error(rc));
                            if op == CLEAN {
                                let dirty = |w: &AtomicU64| u64::from(w.load(Relaxed).count_ones());
                                marked.fetch_add(bitmap.words().iter().map(dirty).sum(), Relaxed);
                            }
                        }
                        rounds += 1;
                        thread::sleep(Duration::from_millis(20));
                    }
                }
            }
            Ok((pauses, saves, rounds))
        },
        &|world, (pauses, saves, rounds)| {
            let writes = world.stop_writers()?;
            Ok(format!(
                "{pauses} pauses, {saves} saves, {rounds} log-dirty rounds, {writes} writes, none lost"
            ))
        },
    )?;
    Ok(format!("{text}; {} frames logged", marked.load(Relaxed)))
}

fn types(options: Options) -> Result<String> {
    let world = World::new(2, 1, FRAMES, false)?;
    let allowed = [TWICE, Errno::EOPNOTSUPP, Errno::EROFS];
    race(
        world,
        options,
        &[(0, 1)],
        (&allowed, &[], false),
        &|world, stop| {
            let mut random = fastrand::Rng::with_seed(options.seed);
            let mut count = 0u64;
            while !stop.load(Relaxed) {
                let d = &world.domains[random.usize(0..2)];
                let nr = random.u32(1..64);
                let first = d.base + random.u64(0..FRAMES - 64);
                for kind in [control::RAM_RO, control::RAM_RW] {
                    let rc = control::set_type(d.domid, first, nr, kind)?;
                    ensure!(rc == 0, "set_mem_type: {}", control::error(rc));
                    count += 1;
                    thread::sleep(Duration::from_micros(random.u64(0..500)));
                }
            }
            Ok(count)
        },
        &|world, count| {
            // Says which frame is gone, if one is.
            world.sums()?;
            Ok(format!("{count} changes"))
        },
    )
}

fn destruction(options: Options) -> Result<String> {
    /// Each domain more than once, however slow the machine.
    const ROUNDS: u64 = 4;
    let mut random = fastrand::Rng::with_seed(options.seed);
    let mut statuses = Statuses::default();
    let start = Instant::now();
    let (mut rounds, mut during) = (0u64, 0u64);
    while rounds < ROUNDS || start.elapsed() < options.time {
        let before = control::host()?.free;
        {
            let mut world = World::new(2, 1, FRAMES, false)?;
            world.write();
            let ids = [world.domains[0].domid, world.domains[1].domid];
            let victim = (rounds % 2) as usize;
            let mut victim_domain = world.domains.remove(victim);
            let other = world.domains.remove(0);
            let (a, b) = if victim == 0 {
                (victim_domain.base, other.base)
            } else {
                (other.base, victim_domain.base)
            };
            let seed = random.u64(..);
            let wait = Duration::from_micros(random.u64(0..30_000));
            let (rc, counted) = thread::scope(|scope| {
                let swapper = scope.spawn(move || -> Result<(i64, Statuses)> {
                    let mut random = fastrand::Rng::with_seed(seed);
                    let swapper = Swapper::new(64 << 10)?;
                    let mut statuses = Statuses::default();
                    loop {
                        let mut runs = random_runs(&mut random, FRAMES);
                        for run in &mut runs {
                            run.a += a;
                            run.b += b;
                        }
                        let outcome = swapper.call(ids[0], ids[1], 0, &runs)?;
                        // A dying domain's frames vanish, its mappings go, and it gets
                        // no page table any more that a split would need.
                        let allowed = [
                            TWICE,
                            Errno::ENOENT,
                            Errno::EBUSY,
                            Errno::EXDEV,
                            Errno::ENOMEM,
                        ];
                        statuses.add(&outcome.status, &allowed)?;
                        if outcome.rc != 0 {
                            return Ok((outcome.rc, statuses));
                        }
                    }
                });
                thread::sleep(wait);
                victim_domain.destroy()?;
                join(swapper)
            })?;
            ensure!(rc == -3, "swap with a dying domain: {}", control::error(rc));
            during += u64::from(counted.swapped() > 0);
            statuses.merge(counted);
            other.check_alive()?;
        }
        if let Err(e) = control::wait_free(before) {
            bail!("round {rounds}: {e}");
        }
        rounds += 1;
    }
    ensure!(
        during > 0,
        "no swap was under way in any of {rounds} rounds"
    );
    Ok(format!(
        "{rounds} domains destroyed, {during} of them while swapping; {}; all memory returned",
        statuses.text()
    ))
}
